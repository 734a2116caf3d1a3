"""Parts of the views of workers and hosts, as the API responds with them. Times are ISO 8601."""

from __future__ import annotations

from typing import Literal

from typing_extensions import NotRequired, TypedDict

from procguard.json_types import ReasonParams


class WorkerRecoveryStatus(TypedDict):
    """Why a worker's task waits for another host, or is not moved to one."""

    state: str
    reason: str
    reason_code: str
    reason_params: ReasonParams


class Checked(TypedDict):
    """The result of an SSH check from the manager to a host."""

    ok: bool | None
    reason: str
    reason_code: str
    reason_params: ReasonParams
    checked_at: NotRequired[str | None]


class Cordon(TypedDict):
    """A cordon: actor, time and reason. The manager places no new tasks on a cordoned host."""

    reason: str
    reason_code: str
    reason_params: ReasonParams
    actor: str
    at: str | None


class HostRecovery(TypedDict):
    """The open incident of a silent host."""

    starts: int
    outcome: str
    reason: str
    reason_code: str
    reason_params: ReasonParams


class Failure(TypedDict):
    """One entry of a host's failure history."""

    at: str | None
    kind: str
    what: str
    what_code: str
    what_params: ReasonParams


class TunnelAnswer(TypedDict):
    """The tunnel from a host to the manager over the manager's SSH connection."""

    state: Literal["opening", "up", "down"]
    port: int
    reason: NotRequired[str]
    reason_code: NotRequired[str]
    reason_params: NotRequired[ReasonParams]
    code: NotRequired[str]
    since: NotRequired[str | None]


class Rotation(TypedDict):
    """A secret rotation in progress: the agent has not created the new secret yet (`asked`) or not used it yet
    (`taken`)."""

    id: str
    state: Literal["asked", "taken"]
    at: str | None
    actor: str


class PendingLauncherView(TypedDict):
    """A launcher that waits for approval, among the hosts."""

    host: str
    agent: str
    kind: Literal["launcher"]
    agent_state: Literal["pending"]
    last_seen: str | None
    address: str
    fingerprint: str
    worker_id: str
    command: str
    release: str
    usage: None
    facts: None
    workers: int
    recovery_ssh: Checked
    reason: str
    reason_code: str
    reason_params: ReasonParams
