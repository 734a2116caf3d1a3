"""Batch operations over HTTP: preview, begin, look, cancel, retry (docs/protocol.md). Rules:
fleet/operations/controller.py."""

from __future__ import annotations

from typing import Any

import bottle

from procguard.agent_api import http_io
from procguard.agent_api.interface import Access
from procguard.fleet.model import clock
from procguard.fleet.operations.controller import DEFAULT_CONCURRENCY, DEFAULT_TIMEOUT_S, MAX_ITEMS, OperationOptions
from procguard.fleet.registry import Registry
from procguard.fleet.workers import selectors
from procguard.portal.api import requests

MAX_BODY_BYTES = 2 * selectors.MAX_CHARS  # a selection made by hand names every id
PREVIEW_HINTS = {name: ("", '{"command": "stop", "selector": "group=trainers"}') for name in ("command", "selector")}
BEGIN_HINTS = {
    "token": ("", "ask for a preview first: POST /api/operations/preview"),
    "max_failures": ("bad_limit", 'e.g. 5, or "10%"'),
}


class OperationsApi:
    def __init__(self, registry: Registry, access: Access) -> None:
        self._operations = registry.operations
        self._access = access

    def mount(self, app: bottle.Bottle) -> None:
        for method, path, handler in (
            ("POST", "/api/operations/preview", self._preview),
            ("POST", "/api/operations", self._begin),
            ("GET", "/api/operations", self._list),
            ("GET", "/api/operations/<operation_id>", self._show),
            ("POST", "/api/operations/<operation_id>/cancel", self._cancel),
            ("POST", "/api/operations/<operation_id>/retry", self._retry),
        ):
            app.route(path, method, http_io.answered(handler))

    def _operator(self) -> str:
        return self._access.admitted(bottle.request.environ).actor

    def _preview(self) -> dict[str, Any]:
        caller = self._access.admitted(bottle.request.environ)
        asked = requests.read(requests.PreviewRequest, MAX_BODY_BYTES, PREVIEW_HINTS)
        http_io.note_change(f"{asked.command} {asked.selector}")
        answer: dict[str, Any] = self._operations.preview(
            asked.command, asked.selector, caller.actor, clock.read(), asked.q, caller.identity
        )
        return answer

    def _begin(self) -> bottle.HTTPResponse:
        caller = self._access.admitted(bottle.request.environ)
        asked = requests.read(requests.OperationRequest, hints=BEGIN_HINTS)
        options = OperationOptions(
            concurrency=DEFAULT_CONCURRENCY if asked.concurrency is None else asked.concurrency,
            max_failures="" if asked.max_failures is None else str(asked.max_failures),
            reason=asked.reason,
            timeout_s=DEFAULT_TIMEOUT_S if asked.timeout_s is None else asked.timeout_s,
        )
        view = self._operations.begin(asked.token, caller.actor, clock.read(), options, caller.identity)
        http_io.note_change(f"{view['operation_id']}: {view['command']} of {view['total']} workers, {view['selector']}")
        return http_io.json_response(view, 202)

    def _list(self) -> dict[str, Any]:
        return {"operations": self._operations.views()}

    def _show(self, operation_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._operations.view(
            operation_id,
            http_io.query_text("result"),
            http_io.query_int("offset", 0, 0, 10**9),
            http_io.query_int("limit", 200, 1, MAX_ITEMS),
        )
        return answer

    def _cancel(self, operation_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._operations.cancel(operation_id, self._operator(), clock.read())
        return answer

    def _retry(self, operation_id: str) -> bottle.HTTPResponse:
        actor = self._operator()
        asked = requests.read_optional(requests.RetryRequest)
        view = self._operations.retry(operation_id, actor, clock.read(), rest=asked.rest)
        return http_io.json_response(view, 202)
