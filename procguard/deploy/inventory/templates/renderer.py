"""Renders Jinja variables as Ansible does: lazily, recursively, preserving types.

Knows neither files nor hosts: it receives one host's variables, and those of others by `HostVars`. The sandbox limits
a template to computing values, `Bounds` limits its resources. Jinja is imported with the first template, so that an
inventory without templates loads faster.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from procguard.deploy.inventory.positions import Unsafe
from procguard.deploy.inventory.templates import functions
from procguard.deploy.inventory.templates.contained import Bounds, OutOfTime
from procguard.deploy.inventory.templates.functions import TemplateMistake
from procguard.deploy.inventory.vault import MARK, Encrypted, Vault, VaultMistake

if TYPE_CHECKING:
    import jinja2

MAX_DEPTH = 20
MAX_CHARS = 1024 * 1024  # of a value, or of all its parts together
MAX_ITEMS = 100_000
MAX_VALUES = 1_000_000  # limit per host
OMIT = "__omit_place_holder__8f2c5d1e"  # a variable with exactly this value is treated as undefined


class Renderer:
    """Renders values with one host's variables; a variable may refer to others."""

    def __init__(
        self,
        variables: Mapping[str, Any],
        peers: Mapping[str, Any] | None = None,
        base: str = ".",
        vault: Vault | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """`peers`: the value of `hostvars`; `base`: the base folder of lookup('file'); `vault`: decrypts its files."""
        self._variables = {"omit": OMIT, **({} if peers is None else {"hostvars": peers}), **variables}
        self._more = (peers, base, vault, bounds)
        self._base, self._vault, self._bounds = base, vault, bounds
        self._depth = self._values = 0

    @functools.cached_property
    def _environment(self) -> jinja2.Environment:
        return _environment(self._lookup, self._lookup_plugin)

    def having(self, **more: Any) -> Renderer:
        """A renderer with further variables, which replace those of the same name."""
        return Renderer({**self._variables, **more}, *self._more)

    def render(self, value: Any) -> Any:
        """`value` with every template in it evaluated. Raises TemplateMistake."""
        if isinstance(value, Encrypted):
            try:
                return self.render(value.reveal())
            except VaultMistake as exc:
                raise TemplateMistake(f"{exc} (in {value.where})") from exc
        if isinstance(value, str):
            return self._text(value) if is_template(value) else value
        if isinstance(value, (dict, list)):
            self._values += len(value)
            if self._values > MAX_VALUES:  # nested aliases: a few lines of YAML can expand to any number of values
                raise TemplateMistake(f"there are more than {MAX_VALUES} values in it")
        if isinstance(value, dict):
            made = {self.render(key): self.render(one) for key, one in value.items()}
            return {key: one for key, one in made.items() if not _omitted(one)}
        if isinstance(value, list):
            return [found for one in value if not _omitted(found := self.render(one))]
        return value

    def get(self, name: str, default: Any = None) -> Any:
        found = self.render(self._variables[name]) if name in self._variables else default
        return default if _omitted(found) else found

    def names(self) -> Iterable[str]:
        return self._variables

    def _lookup(self, name: str) -> Any:
        """The rendered value of a variable, for Jinja; jinja2's `missing` if it is undefined."""
        from jinja2.utils import missing  # noqa: PLC0415

        if name not in self._variables:
            return missing
        if name == "hostvars":
            return self._variables[name]
        return self.render(self._variables[name])

    def _text(self, text: str) -> Any:
        with contextlib.ExitStack() as stack:
            if not self._depth and self._bounds is not None:
                stack.enter_context(self._bounds.of(text.strip()))
            self._depth += 1
            stack.callback(self._up)
            if self._depth > MAX_DEPTH:
                raise TemplateMistake("its variables refer to each other in a circle")
            return self._evaluated(text)

    def _up(self) -> None:
        self._depth -= 1

    def _evaluated(self, text: str) -> Any:
        import jinja2  # noqa: PLC0415

        try:
            expression = self._one_expression(text)
            if expression is None:
                return _plain(self._environment.from_string(_literal(text, self._environment)).render())
            value = expression()
            if isinstance(value, jinja2.Undefined):
                str(value)  # raises UndefinedError with the name
            return _plain(value)
        except jinja2.TemplateError as exc:
            raise TemplateMistake(exc.message or type(exc).__name__) from exc
        except MemoryError as exc:
            raise TemplateMistake(f"{_short(text)} takes too much memory") from exc
        except OutOfTime as exc:
            raise TemplateMistake(f"{_short(text)}: {exc}") from exc
        except RecursionError as exc:
            raise TemplateMistake(f"{_short(text)} is nested too deeply") from exc
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, re.error) as exc:
            raise exc if isinstance(exc, TemplateMistake) else TemplateMistake(f"{exc} in {_short(text)}") from exc

    def _one_expression(self, text: str) -> Callable[[], Any] | None:
        """The text as a single expression, whose value keeps its type; None if it is anything else."""
        import jinja2  # noqa: PLC0415

        text = text.strip()
        if not (text.startswith("{{") and text.endswith("}}")):
            return None
        inner = _literal(text, self._environment)[2:-2].strip("-+")
        try:
            return self._environment.compile_expression(inner, undefined_to_none=False)
        except jinja2.TemplateSyntaxError:  # several expressions, or an error that rendering reports more clearly
            return None

    def _lookup_plugin(self, plugin: str, *names: Any, **options: Any) -> Any:
        """lookup(…), limited to plugins without side effects; Ansible's others run programs and access networks."""
        kind = str(plugin).removeprefix("ansible.builtin.")
        if kind == "env":
            found = [os.environ.get(str(name), str(options.get("default", ""))) for name in names]
        elif kind == "file":
            found = [self._file(str(name)) for name in names]
        elif kind == "vars":
            found = [self._variable(str(name), options) for name in names]
        else:
            raise TemplateMistake(f"lookup('{plugin}', …) is not supported; use env, file or vars")
        if options.get("wantlist"):
            return found
        return found[0] if len(found) == 1 else ",".join(map(str, found))

    def _file(self, name: str) -> str:
        text = functions.read_file(name, self._base)
        if not text.startswith(MARK) or self._vault is None:
            return text
        try:
            return self._vault.reveal(text)
        except VaultMistake as exc:
            raise TemplateMistake(f"lookup('file', {name!r}): {exc}") from exc

    def _variable(self, name: str, options: Mapping[str, Any]) -> Any:
        if name in self._variables:
            return self.get(name)
        if "default" in options:
            return options["default"]
        raise TemplateMistake(f"lookup('vars', {name!r}): there is no such variable")


class HostVars(Mapping[str, Any]):
    """`hostvars`: each host's variables, rendered on access."""

    def __init__(self, hosts: Iterable[str], renderer_of: Callable[[str], Renderer]) -> None:
        self._hosts = dict.fromkeys(hosts)
        self._renderer_of = renderer_of

    def __getitem__(self, host: str) -> Mapping[str, Any]:
        if host not in self._hosts:
            raise KeyError(host)
        return _Rendered(self._renderer_of(host))

    def __iter__(self) -> Iterator[str]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)


class _Rendered(Mapping[str, Any]):
    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def __getitem__(self, name: str) -> Any:
        if name not in self._renderer.names():
            raise KeyError(name)
        return self._renderer.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(name for name in self._renderer.names() if name not in ("hostvars", "omit"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def is_template(value: str) -> bool:
    return ("{{" in value or "{%" in value) and not isinstance(value, Unsafe)


def _literal(text: str, environment: jinja2.Environment) -> str:
    """Keep a backslash in a literal, as Ansible does: `regex_replace('\\.lan$')` and `'\\1'` need no second one."""
    if "\\" not in text:
        return text
    tokens = environment.lex(text)
    return "".join(part.replace("\\", "\\\\") if kind == "string" else part for _, kind, part in tokens)


def _omitted(value: Any) -> bool:
    return isinstance(value, str) and value == OMIT


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 120 else f"{text[:117]}…"


def _plain(value: Any) -> Any:
    """The value limited to types of YAML, to MAX_ITEMS values and to MAX_CHARS."""
    left = [MAX_ITEMS, MAX_CHARS]

    def plain(one: Any) -> Any:
        left[0] -= 1
        if isinstance(one, str):
            left[1] -= len(one)
        if min(left) < 0:
            raise TemplateMistake(f"it gives more than {MAX_CHARS >> 20} MiB of text, or {MAX_ITEMS} values")
        if isinstance(one, Mapping):
            return {plain(key): plain(each) for key, each in one.items()}
        if one is None or isinstance(one, (str, bytes, int, float)):
            return one
        return [plain(each) for each in one] if isinstance(one, Iterable) else one

    return plain(value)


def _environment(lookup: Any, lookup_plugin: Any) -> jinja2.Environment:
    import jinja2.runtime  # noqa: PLC0415
    import jinja2.sandbox  # noqa: PLC0415
    import jinja2.utils  # noqa: PLC0415

    class Context(jinja2.runtime.Context):
        def resolve_or_missing(self, key: str) -> Any:
            found = lookup(key)
            return super().resolve_or_missing(key) if found is jinja2.utils.missing else found

    class Environment(jinja2.sandbox.SandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """Refuse `'a' * 10**9` and `9**9**9` before they use memory and time."""
            for one, times in ((left, right), (right, left)):
                long = isinstance(one, (str, bytes, list, tuple)) and isinstance(times, int)
                if operator == "*" and long and len(one) * times > MAX_CHARS:
                    raise TemplateMistake(f"a value of {len(one) * times} characters or items is too long")
            numbers = isinstance(left, int) and isinstance(right, int)
            if operator == "**" and numbers and right * left.bit_length() > 8 * 1024:
                raise TemplateMistake("a number is too large")
            return super().call_binop(context, operator, left, right)

    environment = Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.context_class = Context
    environment.filters.update(functions.FILTERS)
    environment.tests.update(functions.TESTS)
    for prefix in ("ansible.builtin.", "ansible.utils."):
        environment.filters.update({prefix + name: one for name, one in functions.FILTERS.items()})
        environment.tests.update({prefix + name: one for name, one in functions.TESTS.items()})
    environment.globals["lookup"] = lookup_plugin
    environment.globals["query"] = environment.globals["q"] = functools.partial(lookup_plugin, wantlist=True)
    return environment
