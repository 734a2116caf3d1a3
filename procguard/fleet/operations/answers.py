"""The shapes of operations, their items and previews, as the API responds with them."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from procguard.json_types import ReasonParams
from remote_agent.protocol import messages


class StateSplit(TypedDict):
    state: str
    matching: int
    acts: int


class HostSplit(TypedDict):
    host: str
    matching: int
    acts: int


class PreviewCause(TypedDict):
    cause: str
    message: str
    message_code: str
    message_params: ReasonParams
    action: Literal["act", "pending", "skip"]
    count: int
    examples: list[str]


class PreviewCounts(TypedDict):
    acts: int
    pending: int
    skipped: int
    by_state: list[StateSplit]
    by_host: list[HostSplit]
    hosts: int
    causes: list[PreviewCause]


class PreviewAnswer(PreviewCounts):
    """The preview of an operation. `token` is null if no worker matches."""

    token: str | None
    expires_in_s: float
    command: messages.Verb
    selector: str
    q: str
    matching: int


class OperationCause(TypedDict):
    result: str
    cause: str | None
    message: str
    message_code: str
    message_params: ReasonParams
    count: int
    examples: list[str]


class ItemAnswer(TypedDict):
    worker_id: str
    result: str
    cause: str | None
    message: str
    message_code: str
    message_params: ReasonParams
    command_id: str | None
    ended_at: str | None


class OperationAnswer(TypedDict):
    operation_id: str
    command: messages.Verb
    selector: str
    q: str
    actor: str
    reason: str
    status: Literal["running", "cancelling", "halting", "done", "cancelled", "halted", "interrupted"]
    created_at: str | None
    ended_at: str | None
    total: int
    counts: dict[str, int]
    causes: list[OperationCause]
    concurrency: int
    max_failures: str
    timeout_s: float
    retry_of: str | None
    joined: int
    left: int
    note: str
    note_code: str
    note_params: ReasonParams


class OperationWithItems(OperationAnswer):
    """`items`: the requested page, of `items_total` items."""

    items: list[ItemAnswer]
    items_total: int
