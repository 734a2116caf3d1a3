"""Logs, and searches through them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from remote_agent.protocol import messages


class Acked(BaseModel):
    """So many bytes of this stream are stored durably."""

    acked: int


class Line(BaseModel):
    """`marker`: said by ProcGuard about the log; `partial`: its end isn't there yet."""

    attempt: int
    stream: messages.Stream
    offset: int
    end: int
    at: float
    text: str
    marker: bool = False
    partial: bool = False


class LogPlace(BaseModel):
    attempt: int
    offset: int


class Lines(BaseModel):
    worker_id: str
    lines: list[Line]
    next: LogPlace | None = None  # where what comes after the last line begins; not with `at`
    attempts: list[int]  # of which anything is kept
    target: Line | None = None  # with `at`: the line that was asked for


class FoundLine(BaseModel):
    host: str
    worker_id: str
    attempt: int
    stream: Literal["out", "err"]
    offset: int
    text: str
    begin: int
    end: int
    at: float


class HostSearched(BaseModel):
    agent: str
    host: str
    status: Literal["asked", "done", "timeout", "failed", "no_answer", "away"]
    reason: str
    workers: int
    found: int
    bytes: int
    elapsed_s: float


class FoundAnswer(BaseModel):
    """The newest lines first; `[begin, end)` of its text is what matched."""

    search_id: str
    hosts_asked: int
    hosts_answered: int
    hosts_open: int
    workers: int
    found: int
    shown: int
    bytes: int
    complete: bool
    elapsed_s: float
    hosts: list[HostSearched]
    lines: list[FoundLine]


class OfSearch(BaseModel):
    search_id: str
    status: str
