"""Dataclasses without the module `dataclasses`, which costs 25 ms of processor time per agent start and 1.5 MB: it
imports `inspect`, `ast` and `dis`, and compiles three methods for each class.

`@record` and `field` replace `@dataclass` and `dataclasses.field`; for the type checker they are identical.
`__init__` is compiled when the first instance of a class is created. Functions of `dataclasses` (fields,
replace, asdict, is_dataclass; pydantic) accept a record; that module is loaded only then. Not supported, because
unused here: inheritance of fields, ordering, `__post_init__`. Knows nothing of the content of records.
"""

from __future__ import annotations

from remote_agent.protocol import hints

__all__ = ["empty_defaults", "field", "names", "record", "values_of"]

TYPE_CHECKING = False  # type checkers treat it as typing.TYPE_CHECKING
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T", bound=type[Any])

_MISSING: Any = object()  # no default; as an argument of __init__: call the factory


class Field:
    """The options of `field`: a default or a factory of defaults; whether repr shows the field."""

    __slots__ = ("default", "default_factory", "metadata", "repr")

    def __init__(
        self,
        *,
        default: Any = _MISSING,
        default_factory: Any = _MISSING,
        repr: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.repr = repr
        self.metadata = metadata


def _record(cls: T | None = None, *, frozen: bool = False) -> Any:
    """`frozen`: enforced by the type checker only."""
    if cls is None:
        return _record
    fields: dict[str, Field] = {}
    for name in cls.__annotations__:
        given = cls.__dict__.get(name, _MISSING)
        fields[name] = one = given if isinstance(given, Field) else Field(default=given)
        if one.default is not _MISSING:
            setattr(cls, name, one.default)
        elif given is not _MISSING:
            delattr(cls, name)
    cls.__record_fields__ = fields
    methods = {"__init__": _first_init(cls), "__eq__": _same, "__repr__": _shown, "__hash__": None}
    asked = ("__dataclass_fields__", "__dataclass_params__")
    for name, value in {**methods, **{name: _AsDataclass(name) for name in asked}}.items():
        setattr(cls, name, value)
    return cls


def names(cls: type[Any]) -> tuple[str, ...]:
    """The fields of a record's class, in their order."""
    return tuple(cls.__record_fields__)


def values_of(one: Any) -> dict[str, Any]:
    """The values of a record by field. A decoder may leave a default to the class; it is included."""
    values = vars(one)
    fields = getattr(one, "__record_fields__", values)
    return values if len(values) == len(fields) else {name: getattr(one, name) for name in fields}


def empty_defaults(cls: type[Any]) -> dict[str, Any]:
    """The defaults of a record's class that are empty (None, 0, "", an empty list), by field; not to be changed."""
    found: dict[str, Any] | None = cls.__dict__.get("__record_empty_defaults__")
    if found is None:
        values = {
            name: one.default if one.default_factory is _MISSING else one.default_factory()
            for name, one in cls.__record_fields__.items()
        }
        found = cls.__record_empty_defaults__ = {name: value for name, value in values.items() if not value}
    return found


if TYPE_CHECKING:
    from dataclasses import dataclass as record
    from dataclasses import field
else:
    record, field = _record, Field


def _first_init(cls: type[Any]) -> Callable[..., None]:
    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        made = _compiled_init(cls)
        cls.__init__ = made
        made(self, *arguments, **named)

    return __init__


def _compiled_init(cls: type[Any]) -> Callable[..., None]:
    known: dict[str, Any] = {"_MISSING": _MISSING}
    parameters, lines = ["self"], []
    for name, one in cls.__record_fields__.items():
        value, default = name, ""
        if one.default_factory is not _MISSING:
            known[f"_make_{name}"] = one.default_factory
            value, default = f"_make_{name}() if {name} is _MISSING else {name}", "=_MISSING"
        elif one.default is not _MISSING:
            known[f"_default_{name}"] = one.default
            default = f"=_default_{name}"
        parameters.append(name + default)
        lines.append(f"\n    self.{name} = {value}")
    exec(f"def __init__({', '.join(parameters)}):{''.join(lines)}", known)  # noqa: S102 - names of a class of our own
    made: Callable[..., None] = known["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"  # shown in the TypeError for wrong arguments
    return made


def _same(self: Any, other: object) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    mine, theirs = vars(self), vars(other)
    if mine.keys() != theirs.keys():
        mine, theirs = values_of(self), values_of(other)
    return mine == theirs


def _shown(self: Any) -> str:
    fields = self.__record_fields__
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name, one in fields.items() if one.repr)
    return f"{type(self).__qualname__}({shown})"


class _AsDataclass:
    """The attribute that `dataclasses` expects of a class: that of a real dataclass with the same fields, created on
    demand."""

    def __init__(self, asked: str) -> None:
        self._asked = asked

    def __get__(self, one: object, cls: type[Any]) -> Any:
        import dataclasses

        hints.evaluate()  # the caller may read the annotations next
        content: dict[str, Any] = {"__annotations__": cls.__annotations__, "__module__": cls.__module__}
        for name, field in cls.__record_fields__.items():
            said = {key: value for key in Field.__slots__ if (value := getattr(field, key)) is not _MISSING}
            content[name] = dataclasses.field(**said)
        twin: Any = dataclasses.dataclass(type(cls.__name__, (), content))
        cls.__dataclass_fields__, cls.__dataclass_params__ = twin.__dataclass_fields__, twin.__dataclass_params__
        return getattr(twin, self._asked)
