"""Workers and commands to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from procguard.fleet.model.records import CommandRecord
from procguard.portal.api.openapi.answers import Moment
from remote_agent.protocol import messages


class Plight(BaseModel):
    """Why a worker's task waits for another host, or goes nowhere."""

    state: str
    reason: str


class GangOfWorker(BaseModel):
    phase: str
    rank: int | None
    epoch: int
    attempts: int
    held: bool
    reason: str


class WorkerAnswer(BaseModel):
    """One worker as the portal shows it. `state` is `unknown` while its agent is out of reach."""

    worker_id: str
    state: messages.State
    last_known_state: messages.State
    desired: messages.Desired
    host: str
    agent: str
    pid: int | None
    attempt: int
    epoch: int
    generation: int
    current: bool
    restarts: int
    restarts_total: int
    command: str
    group: str
    labels: dict[str, str]
    last_seen: Moment
    since: Moment
    usage: messages.WorkerUsage | None
    last_exit: messages.ExitRecord | None
    health: messages.Health | None
    suspect: str | None
    reason: str
    restart_pending: bool
    undeclared: bool
    next_start_in_s: float | None
    home: str | None
    moving_to: str | None
    moves: int
    recovery: Plight | None
    gang: GangOfWorker | None


class WorkersAnswer(BaseModel):
    workers: list[WorkerAnswer]
    total: int


class OfWorker(BaseModel):
    worker_id: str
    status: str


class Moving(BaseModel):
    worker_id: str
    host: str
    status: Literal["moving"]


class PurgePreview(BaseModel):
    """`workers`: the first hundred of them. `token`: null where nobody is gone."""

    token: str | None
    expires_in_s: float
    count: int
    workers: list[str]


class PurgeRefusal(BaseModel):
    worker_id: str
    message: str
    next: str


class Purged(BaseModel):
    """`refusals`: the first hundred."""

    taken_out: int
    refused: int
    refusals: list[PurgeRefusal]


class Accepted(BaseModel):
    command_id: str
    worker_id: str
    command: messages.Verb
    status: Literal["accepted"]


@dataclass
class CommandView(CommandRecord):
    """A command's whole life: who asked, when, why, and what became of it."""

    accepted_at: Moment = None
    finished_at: Moment = None


class Commands(BaseModel):
    commands: list[CommandView]
