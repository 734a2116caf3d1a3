"""Batch operations, that is commands for many workers: preview, begin, inspect, cancel and retry; and the purge of lost
workers.

The rules are in fleet/operations/controller.py and fleet/workers/purge.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from procguard.agent_api import http_io
from procguard.agent_api.declaration import get, post, text, whole
from procguard.agent_api.decode import Hints
from procguard.agent_api.interface import Principal
from procguard.fleet.model import clock
from procguard.fleet.operations.answers import OperationAnswer, OperationWithItems, PreviewAnswer
from procguard.fleet.operations.controller import DEFAULT_CONCURRENCY, DEFAULT_TIMEOUT_S, MAX_ITEMS, OperationOptions
from procguard.fleet.workers import selectors
from procguard.fleet.workers.purge import Purge, Purged, PurgePreview
from procguard.portal.api.resource import Reason, RequestBody, Resource, Services, Words
from procguard.runtime.cooperative import yield_to_hub
from remote_agent.protocol import messages

MAX_BODY_BYTES = 2 * selectors.MAX_CHARS  # a selection made by hand lists every worker id
MAX_OPERATION_TIMEOUT_S = 3_600.0
MIN_OPERATION_TIMEOUT_S = 5.0
MIN_SILENT_S, MAX_SILENT_S = 60.0, 10 * 365 * 86_400.0
_AS_PREVIEWED = ("", '{"command": "stop", "selector": "group=trainers"}')

# ------------------------------------------------------------------------------------------------ request types


@dataclass(frozen=True)
class ItemsQuery:
    result: str = text("several, separated by commas")
    offset: int = whole(0, 0, 10**9)
    limit: int = whole(200, 1, MAX_ITEMS)


class PreviewRequest(RequestBody):
    """{"command": "stop", "selector": "group=trainers", "q": ""}"""

    max_bytes: ClassVar[int | None] = MAX_BODY_BYTES
    hints: ClassVar[Hints] = {"command": _AS_PREVIEWED, "selector": _AS_PREVIEWED}

    command: Annotated[str, Field(json_schema_extra={"enum": list(messages.VERBS)})]
    selector: str
    q: Words = ""


class OperationRequest(RequestBody):
    """{"token": "p-…", "concurrency": 100, "max_failures": "10%", "reason": "new driver", "timeout_s": 120}"""

    hints: ClassVar[Hints] = {
        "token": ("", "ask for a preview first: POST /api/operations/preview"),
        "max_failures": ("bad_limit", 'e.g. 5, or "10%"'),
    }

    token: Annotated[str, Field(min_length=1)]
    concurrency: Annotated[int | None, Field(ge=1, le=MAX_ITEMS)] = DEFAULT_CONCURRENCY
    max_failures: Annotated[int | str | None, Field(description='A count, or a share such as "10%".')] = None
    reason: Reason = ""
    timeout_s: Annotated[float | None, Field(ge=MIN_OPERATION_TIMEOUT_S, le=MAX_OPERATION_TIMEOUT_S)] = (
        DEFAULT_TIMEOUT_S
    )


class RetryRequest(RequestBody):
    """{"rest": true}: also retry the items that never began."""

    rest: bool = False


class PurgePreviewRequest(RequestBody):
    """{"silent_s": 86400}: for hosts that have sent no heartbeat for that many seconds."""

    silent_s: Annotated[float, Field(ge=MIN_SILENT_S, le=MAX_SILENT_S)]


class PurgeRequest(RequestBody):
    """{"token": "g-…"}"""

    hints: ClassVar[Hints] = {"token": ("", "ask for a preview first: POST /api/purge/preview")}

    token: Annotated[str, Field(min_length=1, max_length=64)]


# -------------------------------------------------------------------------------------------------- response types


@dataclass(frozen=True)
class OperationsAnswer:
    operations: list[OperationAnswer]


# ------------------------------------------------------------------------------------------------ routes


class PurgeApi(Resource):
    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._purge = Purge(self.fleet, yield_to_hub, clock.read())

    @post("/api/purge/preview", "operator", tag="operations", zh="预览已消失的 worker", example={"silent_s": 60})
    def preview(self, caller: Principal, body: PurgePreviewRequest) -> PurgePreview:
        """Preview the purge of lost workers: undeclared and ended ones, and those of hosts silent for `silent_s`.

        `{"silent_s": 86400}` → `{"token", "count", "workers"}`; only silence since the manager started counts.
        """
        http_io.note_change(f"preview of workers on hosts silent for {body.silent_s:.0f} s")
        return self._purge.preview(body.silent_s, caller.actor, clock.read(), caller.identity)

    @post("/api/purge", "operator", tag="operations", zh="清除预览中的 worker", errors=(409,), example={"token": "g-0"})
    def carry_out(self, caller: Principal, body: PurgeRequest) -> Purged:
        """Remove the previewed workers from the fleet.

        `{"token"}` → `{"taken_out", "refused", "refusals"}`; a worker that may still be running is refused.
        """
        http_io.note_change("", final=False)
        done = self._purge.carry_out(body.token, caller.actor, clock.read(), caller.identity)
        http_io.note_change(f"{done['taken_out']} workers removed, {done['refused']} refused")
        return done


class OperationsApi(Resource):
    @post(
        "/api/operations/preview", "operator", tag="operations", zh="批量操作预览",
        example={"command": "stop", "selector": "train-1"},
    )  # fmt: skip
    def preview(self, caller: Principal, body: PreviewRequest) -> PreviewAnswer:
        """Preview a batch operation.

        Returns the number of workers by state and by host, the workers that are left out with the cause, and a token
        that begins the operation ([below](#batch-operations)).
        """
        http_io.note_change(f"{body.command} {body.selector}")
        return self.fleet.operations.preview(
            body.command, body.selector, caller.actor, clock.read(), body.q, caller.identity
        )

    @post(
        "/api/operations", "operator", tag="operations", zh="开始已预览的批量操作", status=202, errors=(404, 409),
        example={"token": "p-0"},
    )  # fmt: skip
    def begin(self, caller: Principal, body: OperationRequest) -> OperationAnswer:
        """Begin a previewed operation.

        Requires the token of the preview ([below](#batch-operations)).
        """
        http_io.note_change("", final=False)
        options = OperationOptions(
            concurrency=DEFAULT_CONCURRENCY if body.concurrency is None else body.concurrency,
            max_failures="" if body.max_failures is None else str(body.max_failures),
            reason=body.reason,
            timeout_s=DEFAULT_TIMEOUT_S if body.timeout_s is None else body.timeout_s,
        )
        view = self.fleet.operations.begin(body.token, caller.actor, clock.read(), options, caller.identity)
        http_io.note_change(f"{view['operation_id']}: {view['command']} of {view['total']} workers, {view['selector']}")
        return view

    @get("/api/operations", "viewer", tag="operations", zh="最近 50 个批量操作")
    def operations(self) -> OperationsAnswer:
        """The newest 50 batch operations."""
        return OperationsAnswer(self.fleet.operations.views())

    @get("/api/operations/<operation_id>", "viewer", tag="operations", zh="一个批量操作及其条目", errors=(404,))
    def operation(self, operation_id: str, query: ItemsQuery) -> OperationWithItems:
        """One batch operation with its items.

        `result=failed,expired`: only items with one of these results.
        """
        return self.fleet.operations.view(operation_id, query.result, query.offset, query.limit)

    @post(
        "/api/operations/<operation_id>/cancel",
        "operator",
        tag="operations",
        zh="取消尚未开始的部分",
        errors=(404, 409),
    )
    def cancel(self, operation_id: str, caller: Principal) -> OperationAnswer:
        """Cancel the items of an operation that have not begun."""
        return self.fleet.operations.cancel(operation_id, caller.actor, clock.read())

    @post(
        "/api/operations/<operation_id>/retry", "operator", tag="operations", zh="重试失败的条目", status=202,
        body_optional=True, errors=(404, 409),
    )  # fmt: skip
    def retry(self, operation_id: str, caller: Principal, body: RetryRequest) -> OperationAnswer:
        """Retry the failed items as a new operation.

        `{"rest": true}`: also the items that never began.
        """
        return self.fleet.operations.retry(operation_id, caller.actor, clock.read(), rest=body.rest)
