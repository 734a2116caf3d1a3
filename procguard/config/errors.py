"""Formats configuration errors: location, key, value, what was expected, and the closest valid key.

Works on any pydantic model of nested sections; must not know ProcGuard's keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from procguard.config import loader

Model = type[BaseModel]
SECRET = {"secret": True}  # json_schema_extra of a value that error messages must not repeat

_PLAIN = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "text",
    "list": "a list",
    "dict": "a section",
}
_BOUNDS = {
    "greater_than": ("more than {}", "gt"),
    "greater_than_equal": ("at least {}", "ge"),
    "less_than": ("less than {}", "lt"),
    "less_than_equal": ("at most {}", "le"),
}


class Mistakes:
    """Collects all errors of one configuration. `positions`: the origin of each dotted key (file:line, or "--set …").
    `lines`: one message per error."""

    def __init__(self, root: Model) -> None:
        self._root = root
        self.positions: dict[str, str] = {}
        self.lines: list[str] = []

    def add(self, dotted: str, value: Any, expected: str, *, secret: bool = False) -> None:
        shown = "" if secret else f"{loader.shown(value)}: "
        where = self._where(dotted)
        if secret and where.startswith("--set "):  # the location itself would repeat the value
            where = f"--set {dotted}"
        self.lines.append(f"{where}: {shown}expected {expected}")

    def add_validation(self, exc: ValidationError) -> None:
        for error in exc.errors(include_url=False):
            names = tuple(str(part) for part in error["loc"])
            if error["type"] == "extra_forbidden":
                self.unknown_key(names)
            else:
                self.add(".".join(names), error["input"], self._expected(error, names), secret=self._is_secret(names))

    def unknown_key(self, names: Sequence[str]) -> None:
        siblings = known_names(self._model_at(names[:-1]))
        section = ".".join(names[:-1])
        prefix = f"{section}." if section else ""
        near = difflib.get_close_matches(names[-1], siblings, n=1)
        elsewhere = [path for path in dotted_keys(self._root) if path.rsplit(".", 1)[-1] == names[-1]]
        if near:
            hint = f"did you mean {prefix}{near[0]}?"
        elif elsewhere:
            hint = f"did you mean {elsewhere[0]}?"
        elif siblings:
            hint = f"expected one of {', '.join(siblings)}"
        else:
            hint = f"{section} is not a section"
        where = self._where(".".join(names))
        if where.startswith("--set ") and "://" in where:  # may be a URL with a password, under a misspelt key
            where = f"{where.partition('=')[0]}: {'.'.join(names)}"
        self.lines.append(f"{where}: unknown key; {hint}")

    def _expected(self, error: Mapping[str, Any], names: Sequence[str]) -> str:
        kind, context = error["type"], error.get("ctx", {})
        if kind == "value_error":
            return str(context["error"])
        if kind == "literal_error":
            return f"one of {context['expected']}".replace("'", "").replace(" or ", ", ")
        if kind == "model_type":
            return f"a section with keys: {', '.join(known_names(self._model_at(names)))}"
        if kind in _BOUNDS:
            words, key = _BOUNDS[kind]
            bound = context[key]
            return words.format(f"{bound:g}" if isinstance(bound, float) else bound)
        return _PLAIN.get(kind.split("_", 1)[0], str(error["msg"]))

    def _model_at(self, names: Sequence[str]) -> Model | None:
        model: Model | None = self._root
        each: Model | None = None  # of a mapping or list of sections: the next part is any name or index
        for name in names:
            if each is not None:
                model, each = each, None
                continue
            info = model.model_fields.get(name) if model is not None else None
            model, each = (section_of(info), each_of(info)) if info is not None else (None, None)
        return model

    def _is_secret(self, names: Sequence[str]) -> bool:
        """Whether the value at this key, or one inside it, may be a password, which error messages must not repeat."""
        model = self._model_at(names[:-1])
        info = model.model_fields.get(names[-1]) if model is not None and names else None
        if info is not None and info.json_schema_extra == SECRET:
            return True
        inside = self._model_at(names) or (each_of(info) if info is not None else None)
        kinds = [info.annotation] if info is not None else []
        kinds += [one.annotation for one in inside.model_fields.values()] if inside is not None else []
        return any(kind is SecretStr for kind in kinds)

    def _where(self, dotted: str) -> str:
        """A key with its location: "file:12: web.port" or "--set web.port=x: web.port"; the bare key if the location is
        unknown."""
        probe = dotted
        while probe:
            if probe in self.positions:
                return f"{self.positions[probe]}: {dotted}"
            probe = probe.rpartition(".")[0]
        return dotted


def section_of(info: FieldInfo) -> Model | None:
    """The model of a field that is a section, None for a value."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def each_of(info: FieldInfo) -> Model | None:
    """The model of each section of a mapping or list of sections, None for anything else."""
    kinds = get_args(info.annotation) if get_origin(info.annotation) in (dict, list) else ()
    kind = kinds[-1] if kinds else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def known_names(model: Model | None) -> list[str]:
    return [name for name, info in model.model_fields.items() if not info.exclude] if model is not None else []


def fields(model: Model, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every value, in order, including those of nested sections."""
    for name in known_names(model):
        info = model.model_fields[name]
        inner = section_of(info)
        if inner is not None:
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def dotted_keys(model: Model) -> list[str]:
    return [dotted for dotted, _ in fields(model)]
