"""What the manager says of itself, and every error."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from remote_agent.protocol.messages import ZmqOffer  # `protocol` is a field of Hello


class ErrorDetail(BaseModel):
    """`code` is a word for programs, `message` says what is wrong and where, `next` what to do now."""

    code: str
    message: str
    next: str
    request_id: str


class Error(BaseModel):
    """Every error, whatever its status."""

    error: ErrorDetail
    acked: int | None = None  # of a log_gap: the length that is stored


class Status(BaseModel):
    status: str


class Ready(BaseModel):
    status: Literal["ready"]
    fleet_id: str


class SessionOffer(BaseModel):
    """For requests that carry MACs in place of the secret (docs/protocol.md)."""

    id: str
    uid: int
    machine: str
    proof: str


class Hello(BaseModel):
    """`session` or, for a nonce of an earlier agent's, `proof`. `zmq`: where else the manager listens, told to agents
    that it knows."""

    fleet_id: str
    version: str
    protocol: int
    proof: str | None = None
    session: SessionOffer | None = None
    zmq: ZmqOffer | None = None


class LiveRows(BaseModel):
    """Rows in slots, told as columns (docs/protocol.md, Live lists): `slots` as differences, a column as its values or
    as `{"of": distinct values, "at": an index for each}`."""

    epoch: str
    topic: str
    seq: int
    key: str
    slots: list[int]
    columns: dict[str, Any]
