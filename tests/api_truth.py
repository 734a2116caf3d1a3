"""Compares every response that a test receives with /api/openapi.json: status, media type and each field.

Stricter than a client: a field that the description does not name is an error here.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from typing import Any

import jsonschema_rs

from procguard.portal.api.openapi.document import RESPONSES, document

HOW = "see CONTRIBUTING.md, 'How to add a route': the answer's type stands beside its handler in procguard/portal/api"


class Untrue(AssertionError):
    """A response of the manager differs from its description."""


def check(method: str, target: str, status: int, content_type: str, body: bytes) -> None:
    """Raises Untrue. Requests to undocumented addresses or with other methods are ignored."""
    path = target.partition("?")[0]
    found = _operation(method, path)
    if found is None:
        return
    template, operation = found
    where = f"{method} {template} answered {status}"
    response = operation["responses"].get(str(status))
    if response is None:
        raise Untrue(f"{where}, which is not documented; {HOW}. It said: {body[:300]!r}")
    if "$ref" in response:
        response = document()["components"]["responses"][response["$ref"].removeprefix(RESPONSES)]
    kind = content_type.partition(";")[0].strip()
    if kind not in response["content"]:
        raise Untrue(f"{where} as {kind!r}, documented are {', '.join(response['content'])}; {HOW}")
    if kind == "application/json":
        for error in _validator(json.dumps(response["content"][kind]["schema"])).iter_errors(json.loads(body)):
            place = ".".join(str(part) for part in error.instance_path) or "the answer"
            raise Untrue(f"{where}: {place}: {str(error).splitlines()[0][:300]}; {HOW}")


def _operation(method: str, path: str) -> tuple[str, dict[str, Any]] | None:
    for pattern, template, operations in _paths():
        if pattern.fullmatch(path):
            operation = operations.get(method.lower())
            return (template, operation) if operation else None
    return None


@functools.cache
def _paths() -> list[tuple[re.Pattern[str], str, dict[str, Any]]]:
    """Paths without a parameter first, because the `preview` of /api/operations/preview is not an operation's id."""
    found = []
    for template, operations in document()["paths"].items():
        parts = re.split(r"\{[a-z_]+\}", template)
        found.append((re.compile("[^/]+".join(map(re.escape, parts))), template, operations))
    return sorted(found, key=lambda item: item[1].count("{"))


@functools.cache
def _validator(schema: str) -> Any:
    whole = {**json.loads(schema), "components": {"schemas": _strict_schemas()}}
    return jsonschema_rs.Draft202012Validator(whole)


@functools.cache
def _strict_schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = copy.deepcopy(document()["components"]["schemas"])
    for schema in schemas.values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return schemas
