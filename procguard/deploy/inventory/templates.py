"""Jinja variables as Ansible writes them: lazily, recursively, with their types kept.

Knows neither files nor hosts: it is handed one host's variables. The sandbox keeps a template from doing more than
computing a value. Jinja is imported where the first template is: an inventory without any need not wait for it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

MAX_DEPTH = 20
_ONE_EXPRESSION = re.compile(r"\s*\{\{((?:(?!\{\{|\}\}).)*)\}\}\s*", re.DOTALL)


class TemplateMistake(ValueError):
    """What a template can't do, in words; the caller adds where it stands."""


class Renderer:
    """Renders values with one host's variables; a variable may refer to others."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self._depth = 0

    @functools.cached_property
    def _environment(self) -> jinja2.Environment:
        return _environment(self._lookup)

    def having(self, **more: Any) -> Renderer:
        """One with further variables, over those of the same name."""
        return Renderer({**self._variables, **more})

    def render(self, value: Any) -> Any:
        """`value` with every template in it evaluated. Raises TemplateMistake."""
        if isinstance(value, str):
            return self._text(value) if "{{" in value or "{%" in value else value
        if isinstance(value, dict):
            return {self.render(key): self.render(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.render(one) for one in value]
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self.render(self._variables[name]) if name in self._variables else default

    def _lookup(self, name: str) -> Any:
        """A variable for jinja, itself rendered; jinja2's `missing` where there is none."""
        from jinja2.utils import missing  # noqa: PLC0415

        if name not in self._variables:
            return missing
        return self.render(self._variables[name])

    def _text(self, text: str) -> Any:
        import jinja2  # noqa: PLC0415

        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                raise TemplateMistake("its variables refer to each other in a circle")
            single = _ONE_EXPRESSION.fullmatch(text)
            if single:
                value = self._environment.compile_expression(single[1], undefined_to_none=False)()
                if isinstance(value, jinja2.Undefined):
                    str(value)  # raises UndefinedError with the name
                return value
            return self._environment.from_string(text).render()
        except jinja2.TemplateError as exc:
            raise TemplateMistake(exc.message or type(exc).__name__) from exc
        except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as exc:
            raise exc if isinstance(exc, TemplateMistake) else TemplateMistake(f"{exc} in {text.strip()}") from exc
        finally:
            self._depth -= 1


def _environment(lookup: Any) -> jinja2.Environment:
    import jinja2.runtime  # noqa: PLC0415
    import jinja2.sandbox  # noqa: PLC0415
    import jinja2.utils  # noqa: PLC0415

    class Context(jinja2.runtime.Context):
        def resolve_or_missing(self, key: str) -> Any:
            found = lookup(key)
            return super().resolve_or_missing(key) if found is jinja2.utils.missing else found

    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.context_class = Context
    environment.filters.update(
        basename=os.path.basename,
        dirname=os.path.dirname,
        expanduser=os.path.expanduser,
        quote=shlex.quote,
        bool=_as_bool,
        to_json=json.dumps,
        regex_replace=lambda text, pattern, by="": re.sub(pattern, by, text),
    )
    environment.globals["lookup"] = _look_up
    return environment


def _as_bool(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _look_up(plugin: str, name: str, **options: Any) -> str:
    """Only `lookup('env', NAME)`: the other plugins of Ansible read files and run programs."""
    if plugin.removeprefix("ansible.builtin.") != "env":
        raise TemplateMistake(f"lookup('{plugin}', …) is not known here; only lookup('env', NAME)")
    return os.environ.get(name, str(options.get("default", "")))
