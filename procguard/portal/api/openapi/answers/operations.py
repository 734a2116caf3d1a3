"""Commands to many workers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from procguard.portal.api.openapi.answers import Moment
from remote_agent.protocol import messages


class StateSplit(BaseModel):
    state: str
    matching: int
    acts: int


class HostSplit(BaseModel):
    host: str
    matching: int
    acts: int


class PreviewCause(BaseModel):
    cause: str
    message: str
    action: Literal["act", "pending", "skip"]
    count: int
    examples: list[str]


class PreviewAnswer(BaseModel):
    """What an operation would do to whom. `token` is null where nothing matches."""

    token: str | None
    expires_in_s: float
    command: messages.Verb
    selector: str
    q: str
    matching: int
    acts: int
    pending: int
    skipped: int
    by_state: list[StateSplit]
    by_host: list[HostSplit]
    hosts: int
    causes: list[PreviewCause]


class OperationCause(BaseModel):
    result: str
    cause: str | None
    message: str
    count: int
    examples: list[str]


class ItemAnswer(BaseModel):
    worker_id: str
    result: str
    cause: str | None
    message: str
    command_id: str | None
    ended_at: Moment


class OperationAnswer(BaseModel):
    operation_id: str
    command: messages.Verb
    selector: str
    q: str
    actor: str
    reason: str
    status: Literal["running", "cancelling", "halting", "done", "cancelled", "halted", "interrupted"]
    created_at: Moment
    ended_at: Moment
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


class OperationWithItems(OperationAnswer):
    """`items` is the page that was asked for, of `items_total`."""

    items: list[ItemAnswer]
    items_total: int


class OperationsAnswer(BaseModel):
    operations: list[OperationAnswer]
