"""How a route is declared: once, at its handler.

    @get("/api/commands", "viewer", tag="workers", zh="最近的命令")
    def commands(self, query: CommandsQuery) -> Commands:
        \"\"\"The newest commands.\"\"\"

From this come the route itself, who may call it, what is read from the query and the body, the OpenAPI document, the
table in docs/protocol.md and the row of the access test. The docstring's first paragraph is the summary, the rest the
description (Markdown). Parameters named `query`, `body` and `caller` are filled in by the module that mounts the
handler (portal/api/resource.py); all others are names in the path. Knows types and texts; calls nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from procguard.agent_api import http_io
from procguard.errors import UsageError
from procguard.json_types import Json

Who = Literal["anyone", "agent", "agent or operator", "operator", "viewer", "viewer or metrics"]
Tag = Literal["workers", "logs", "operations", "hosts", "history", "access", "agents", "manager"]
TAGS: tuple[Tag, ...] = typing.get_args(Tag)

JSON, TEXT, BYTES, LINES = "application/json", "text/plain", "application/octet-stream", "application/x-ndjson"
FILLED_IN = ("query", "body", "caller")

JsonSchema = Json
Handler = TypeVar("Handler", bound=Callable[..., Any])
T = TypeVar("T")

# ------------------------------------------------------------------------------------------------ the query

_PARAMETER = "procguard.parameter"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a query. `read(name, query)` raises UsageError; a `query` of None is the current request's."""

    schema: JsonSchema
    says: str
    read: Callable[[str, http_io.Query | None], Any]


def _parameter(default: Any, schema: JsonSchema, says: str, read: Callable[[str, http_io.Query | None], Any]) -> Any:
    return field(default=default, metadata={_PARAMETER: Parameter(schema, says, read)})


def whole(default: int, low: int, high: int, says: str = "") -> Any:
    """A parameter that is an integer from `low` to `high`."""
    schema = {"type": "integer", "minimum": low, "maximum": high, "default": default}
    return _parameter(default, schema, says, lambda name, query: http_io.query_int(name, default, low, high, query))


def seconds(default: float | None, low: float, high: float, says: str = "") -> Any:
    """A parameter in seconds, clamped to the bounds. None if it is omitted."""

    def read(name: str, query: http_io.Query | None) -> float | None:
        found = http_io.query_seconds(name, math.nan if default is None else default, low, high, query)
        return None if math.isnan(found) else found

    schema: JsonSchema = {"type": "number"}
    return _parameter(default, schema if default is None else {**schema, "default": default}, says, read)


def text(says: str = "", max_chars: int = 256) -> Any:
    schema = {"type": "string", "maxLength": max_chars}
    return _parameter("", schema, says, lambda name, query: http_io.query_text(name, max_chars, query))


def several(says: str = "several, separated by commas") -> Any:
    """A parameter that is a tuple of texts, separated by commas."""

    def read(name: str, query: http_io.Query | None) -> tuple[str, ...]:
        return tuple(one for one in http_io.query_text(name, 4096, query).split(",") if one)

    return _parameter((), {"type": "string", "maxLength": 4096}, says, read)


def choice(*values: str, default: str = "", says: str = "") -> Any:
    """A parameter that is one of `values`; `default` if it is omitted."""

    def read(name: str, query: http_io.Query | None) -> str:
        given = http_io.query_text(name, query=query) or default
        if given != default and given not in values:
            raise UsageError(f"{name}={given[:40]!r}: expected {' or '.join(values)}", f"e.g. ?{name}={values[0]}")
        return given

    schema: JsonSchema = {"type": "string", "enum": list(values)}
    return _parameter(default, {**schema, "default": default} if default else schema, says, read)


def flag(says: str) -> Any:
    schema = {"type": "string", "enum": ["0", "1", "true", "false", "yes", "no", "on", "off"]}
    return _parameter(False, schema, says, http_io.query_flag)


@functools.cache
def parameters_of(cls: Any) -> dict[str, Parameter]:
    """The parameters of a query class by name. Shared by all callers: do not modify."""
    if cls is None:
        return {}
    return {one.name: one.metadata[_PARAMETER] for one in dataclasses.fields(cls)}


def read_query(cls: type[T], query: Mapping[str, str] | None = None) -> T:
    """The current request's query, or `query`, decoded as `cls`. Raises UsageError."""
    given = http_io.query_of(query)
    return cls(**{name: one.read(name, given) for name, one in parameters_of(cls).items() if name in given})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ the route


@dataclass(frozen=True)
class Route:
    """A declared route. `path` in bottle's notation; `handler` is the method's name. `query`: a dataclass of
    parameters; `body`: the type that checks the body, bytes, or None. `answers`: status -> type. `errors`: in addition
    to those that any route of its kind may return (portal/api/openapi). `often`: called by every agent continually."""

    method: str
    path: str
    who: Who
    tag: Tag
    zh: str
    handler: str
    summary: str
    description: str
    answers: Mapping[int, Any]
    query: Any = None
    body: Any = None
    body_optional: bool = False
    errors: Sequence[int] = ()
    media: Sequence[str] = (JSON,)
    example: Any = None
    example_query: str = ""
    often: bool = False
    filled_in: frozenset[str] = frozenset()

    @property
    def status(self) -> int:
        """The status of a successful response."""
        status: int = next(iter(self.answers))
        return status

    @property
    def parameters(self) -> dict[str, Parameter]:
        return parameters_of(self.query)


def route(method: str, path: str, who: Who, *, tag: Tag, zh: str, **more: Any) -> Callable[[Handler], Handler]:
    """Declare a handler's route. `zh`: the summary in Chinese. `more`: `status` (200), `errors`, `media`, `example` (a
    body), `example_query`, `body_optional`, `often`; and `answers`, `query`, `body` if the handler's annotations do not
    declare them."""

    def declare(handler: Handler) -> Handler:
        handler.declared = {"method": method, "path": path, "who": who, "tag": tag, "zh": zh, **more}  # type: ignore[attr-defined]
        return handler

    return declare


get = functools.partial(route, "GET")
post = functools.partial(route, "POST")
put = functools.partial(route, "PUT")
delete = functools.partial(route, "DELETE")


@functools.cache
def routes_of(cls: Any) -> tuple[Route, ...]:
    """The routes declared by the methods of a class, in their order."""
    return tuple(
        _route(name, member, dict(member.declared)) for name, member in vars(cls).items() if hasattr(member, "declared")
    )


def _route(name: str, handler: Callable[..., Any], said: Json) -> Route:
    hints = typing.get_type_hints(handler)
    status = said.pop("status", 200)
    answers = said.pop("answers", None) or {status: hints.get("return")}
    summary, _, description = inspect.cleandoc(handler.__doc__ or "").partition("\n\n")
    known = {"query": hints.get("query"), "body": hints.get("body"), **said}
    return Route(
        handler=name,
        summary=_one_line(summary).removesuffix("."),
        description="\n\n".join(_one_line(part) for part in description.split("\n\n") if part.strip()),
        answers=answers,
        filled_in=frozenset(one for one in FILLED_IN if one in hints),
        **known,
    )


def _one_line(paragraph: str) -> str:
    return " ".join(paragraph.split())
