"""OpenAPI 3.1, generated from the declared routes and their types. Pure; generated once, on the first request."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, TypeAdapter

from procguard import __version__
from procguard.agent_api.declaration import BYTES, JSON, Route
from procguard.json_types import Json
from procguard.portal.api.resource import all_routes
from remote_agent.protocol import messages as protocol

VERSION = "3.1.0"
SCHEMAS = "#/components/schemas/"
RESPONSES = "#/components/responses/"
OURS = "procguard.portal.api."  # responses that are dataclasses of these modules always have all fields
ERROR = {"$ref": f"{SCHEMAS}Error"}

# Statuses that any route may return: an invalid query or body, missing rights, a body that is too slow or too large, a
# limit, a failure to write to the disk.
EVERYWHERE = (400, 414, 431, 503)
WHERE_RIGHTS_ARE_NEEDED = (401, 403, 429)
WITH_A_BODY = (408, 413, 429)

WHAT_AN_ERROR_SAYS = {
    400: "The request is invalid; the message names each error",
    401: "Credentials are missing or unknown; the message names the next step",
    403: "The caller is not permitted to do this",
    404: "The resource does not exist",
    408: "The body did not arrive in time",
    409: "The state does not allow it",
    413: "The body is too large",
    414: "The address is too long",
    429: "A limit is exceeded; Retry-After is the delay before the next attempt",
    431: "The headers are too large",
    503: "The manager cannot serve the request now: its disk refuses writes, or its limit of connections is reached",
    421: "The address does not lead directly to this manager, or this manager is a standby",
    507: "The manager cannot store the data: its disk, or the share of the logs, is full",
}
SECURITY_OF = {
    "anyone": [{}],
    "agent": [{"secret": []}],
    "agent or operator": [{"secret": []}, {"token": []}, {"session": []}, {}],
    "operator": [{"token": []}, {"session": []}, {}],
    "viewer": [{"token": []}, {"session": []}, {}],
    "viewer or metrics": [{"token": []}, {"session": []}, {}],
}
PATH_PARAMETERS = {
    "worker_id": {"type": "string", "pattern": protocol.ID_PATTERN},
    "agent_id": {"type": "string", "pattern": protocol.AGENT_ID_PATTERN},
}


class Localized(BaseModel):
    """The texts of an error in the language that Accept-Language prefers; absent in English."""

    language: str
    message: str
    next: str


class ErrorDetail(BaseModel):
    """`code`: an identifier for programs. `message`: what is wrong and where. `next`: the next step."""

    code: str
    message: str
    next: str
    request_id: str
    localized: Localized | None = None


class Error(BaseModel):
    """The body of every error response."""

    error: ErrorDetail
    acked: int | None = None  # of a log_gap: the length that is stored
    term: int | None = None  # sent to agents if there are several managers: the leader's term
    managers: list[str] | None = None  # sent by a standby: addresses of the other managers, the leader first


_LINK = re.compile(r"\]\(([^):]+)\)")
_SLOT = re.compile(r"<([a-z_]+)(:[a-z]+)?>")


def _linked(link: re.Match[str]) -> str:
    """A link as it stands in docs/protocol.md, relative to the root of the repository."""
    return f"](docs/{'protocol.md' if link[1].startswith('#') else ''}{link[1]})"


def path_of(rule: str) -> str:
    """bottle's `/api/workers/<worker_id>` in OpenAPI's notation."""
    return _SLOT.sub(r"{\1}", rule)


@functools.cache
def document() -> Json:
    """The description of all routes. All callers share the dict and must not change it."""
    return describe(all_routes())


def describe(routes: Iterable[Route]) -> Json:
    """The OpenAPI document of these routes."""
    routes = tuple(routes)
    names, schemas = _schemas(routes)
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(path_of(route.path), {})[route.method.lower()] = _operation(route, names)
    return {
        "openapi": VERSION,
        "info": {
            "title": "ProcGuard",
            "version": __version__,
            "summary": "Supervises long-running jobs on a fleet of SSH hosts.",
            "description": "docs/protocol.md shows each message with an example. Unknown keys are ignored and fields "
            "are only ever added.",
            "license": {"name": "MIT"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "tags": [{"name": name} for name in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                str(status): {"description": says, "content": {JSON: {"schema": ERROR}}}
                for status, says in WHAT_AN_ERROR_SAYS.items()
            },
            "securitySchemes": _security_schemes(),
        },
    }


@functools.cache
def document_bytes() -> bytes:
    return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()


def statuses(route: Route) -> list[int]:
    """Every status that the route may return, ascending."""
    found = {*route.answers, *EVERYWHERE, *route.errors}
    if route.who != "anyone" or route.path in ("/api/workers/register", "/api/login", "/api/logout", "/api/session"):
        found.update(WHERE_RIGHTS_ARE_NEEDED)
    if route.body is not None:
        found.update(WITH_A_BODY)
    return sorted(found)


def _operation(route: Route, names: dict[Any, str]) -> Json:
    operation: Json = {
        "operationId": _operation_id(route),
        "tags": [route.tag],
        "summary": route.summary,
        **({"description": _LINK.sub(_linked, route.description)} if route.description else {}),
        "x-summary-zh": route.zh,
        "x-who": route.who,
        "security": SECURITY_OF[route.who],
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": {str(status): _response(route, status, names) for status in statuses(route)},
    }
    if route.body is bytes:
        operation["requestBody"] = {"content": {BYTES: {"schema": {}}}}
    elif route.body is not None:
        example = {} if route.example is None else {"example": route.example}
        content = {JSON: {"schema": _ref(names, route.body), **example}}
        operation["requestBody"] = {"content": content, "required": not route.body_optional}
    return operation


def _operation_id(route: Route) -> str:
    words = [word for word in re.split(r"[^a-z_]+", route.path.removeprefix("/api")) if word]
    return "_".join([route.method.lower(), *words]).replace("-", "_")


def _path_parameters(route: Route) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": PATH_PARAMETERS.get(name, {"type": "string"})}
        for name, _ in _SLOT.findall(route.path)
    ]


def _query_parameters(route: Route) -> list[Json]:
    return [
        {"name": name, "in": "query", "schema": one.schema, **({"description": one.says} if one.says else {})}
        for name, one in route.parameters.items()
    ]


def _response(route: Route, status: int, names: dict[Any, str]) -> Json:
    if status not in route.answers:
        return {"$ref": f"{RESPONSES}{status}"}
    content = {
        media: {"schema": _ref(names, route.answers[status]) if media == JSON else {"type": "string"}}
        for media in route.media
    }
    return {"description": route.summary, "content": content}


def _ref(names: dict[Any, str], kind: Any) -> Json:
    return {"$ref": SCHEMAS + names[kind]} if kind in names else {"type": "object"}


def _schemas(routes: Iterable[Route]) -> tuple[dict[Any, str], Json]:
    """({type: its name}, {name: JSON Schema}) of all request and response bodies of the routes."""
    kinds = dict.fromkeys([Error, *(kind for route in routes for kind in _kinds(route))])
    adapters = [(kind, "validation", TypeAdapter(kind)) for kind in kinds]
    found, shared = TypeAdapter.json_schemas(adapters, ref_template=SCHEMAS + "{model}")  # type: ignore[arg-type]
    names = {kind: schema["$ref"].removeprefix(SCHEMAS) for (kind, _), schema in found.items()}
    for kind, name in names.items():
        says = _words_of(kind)
        if says:
            shared["$defs"][name].setdefault("description", says)
        if dataclasses.is_dataclass(kind) and kind.__module__.startswith(OURS):
            shared["$defs"][name]["required"] = [one.name for one in dataclasses.fields(kind)]
    return names, {name: schema for name, schema in sorted(shared["$defs"].items())}


def _words_of(kind: Any) -> str:
    """A dataclass's docstring; "" if it is only the generated signature."""
    doc = kind.__doc__ if dataclasses.is_dataclass(kind) else None
    return "" if doc is None or doc.startswith(f"{kind.__name__}(") else inspect.cleandoc(doc)


def _kinds(route: Route) -> list[Any]:
    return [
        kind for kind in (route.body, *route.answers.values()) if isinstance(kind, type) and kind not in (bytes, str)
    ]


def _security_schemes() -> Json:
    return {
        "token": {"type": "http", "scheme": "bearer", "description": "An operator's or viewer's: invoke token.create"},
        "secret": {"type": "http", "scheme": "bearer", "description": "An agent's own secret, from its agent.json"},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": "procguard_session",
            "description": "A browser's session; changes need the X-ProcGuard-CSRF header as well",
        },
    }
