"""Types of the manager's responses, which are plain dictionaries as decoded from JSON.

Times are ISO 8601 in UTC, `…_s` seconds, `…_bytes` bytes. A manager of a later release may send further keys; one of
an earlier release omits newer ones. tests/unit/client/test_types.py compares these types with the manager's own.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from procguard.json_types import Json, ReasonParams

State = Literal["stopped", "starting", "running", "stopping", "backoff", "exited", "failed", "unknown"]
Verb = Literal["start", "stop", "restart", "kill"]


class WorkerInfo(TypedDict):
    """One supervised command. `state`: as reported by its host. `desired`: as set by the inventory or an operator."""

    worker_id: str
    state: State
    last_known_state: State
    desired: Literal["running", "stopped"]
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
    last_seen: str | None
    since: str | None
    usage: Json | None
    metrics: list[Json]
    progress_percent: float | None
    eta_s: float | None
    last_exit: Json | None
    health: Json | None
    suspect: str | None
    suspect_code: str
    suspect_params: ReasonParams
    reason: str
    reason_code: str
    reason_params: ReasonParams
    restart_pending: bool
    undeclared: bool
    next_start_in_s: float | None
    home: str | None
    moving_to: str | None
    moves: int
    recovery: Json | None
    gang: Json | None


class HostInfo(TypedDict):
    """A machine of the inventory with its agent, or a launcher."""

    host: str
    agent: str
    kind: Literal["deployed", "launcher"]
    agent_state: Literal["never", "connected", "suspect", "unreachable", "ended", "pending"]
    last_seen: str | None
    address: str
    release: str
    usage: Json | None
    facts: Json | None
    workers: int
    recovery_ssh: Json
    reason: str
    reason_code: str
    reason_params: ReasonParams
    tunnel: Json | None
    agent_pid: int | None
    agent_started: str | None
    spare: bool | int
    labels: dict[str, str]
    undeclared: bool
    cordoned: Json | None
    recovery: Json | None
    failures: int
    last_failure: Json | None
    fingerprint: str | None
    worker_id: str | None
    command: str | None
    channel: str
    channel_trouble: str
    disk_trouble: str
    disk_path: str
    rotation: Json | None


class EventInfo(TypedDict):
    """An entry of the history. `seq` increases with every event; `cause` is a stable code for programs."""

    seq: int
    at: str | None
    kind: str
    worker_id: str | None
    host: str | None
    before: str | None
    after: str | None
    reason: str
    reason_code: str
    reason_params: ReasonParams
    actor: str | None
    attempt: int | None
    cause: str | None
    evidence: Any
    logs: str | None


class HostsInfo(TypedDict):
    """`server_time`: the manager's clock when it responded."""

    hosts: list[HostInfo]
    server_time: str


class WorkerResultInfo(TypedDict):
    """What a deployment does with a worker. `starts`: the attempt that it starts, if any. A deployment adds the `state`
    afterwards, and `trouble` if the worker did not come up."""

    result: str
    message: str
    differences: NotRequired[list[str]]
    starts: NotRequired[int | None]
    state: NotRequired[str]
    trouble: NotRequired[str]


class AbsentHostInfo(TypedDict):
    """A deployed host that the inventory no longer names. `guests`: workers that run there but are declared on other
    hosts."""

    agent_id: str
    ssh: Json
    procguard_home: str
    workers: dict[str, WorkerResultInfo]
    guests: list[str]


class SshTriedInfo(TypedDict, total=False):
    """Whether the manager can log in at a host."""

    host: str
    ok: bool
    reason: str
    reason_code: str
    reason_params: ReasonParams


class OpenedTunnelInfo(TypedDict, total=False):
    """`url`: the manager's address for the host, "" while the tunnel is down."""

    host: str
    ok: bool
    url: str
    reason: str
    reason_code: str
    reason_params: ReasonParams


class DeployedHostInfo(TypedDict):
    """A declared host. `workers`: results by worker id."""

    agent_id: str
    proof_key: str
    secret_sha256: str
    last_heartbeat_at: str | None
    workers: dict[str, WorkerResultInfo]


class DeploymentInfo(TypedDict):
    """The result of a declaration. `absent`: hosts that the inventory no longer names. `of_other_inventories`: hosts
    that another inventory named last, with its name."""

    fleet_id: str
    hosts: dict[str, DeployedHostInfo]
    absent: dict[str, AbsentHostInfo]
    of_other_inventories: dict[str, str]
    manager_urls: list[str]
    manager_configured: list[str]
    tls: Json


class LogLineInfo(TypedDict):
    """A line of a log, permanently identified by (attempt, stream, offset). `offset`, `end`: bytes. `at`: Unix seconds;
    0.0 if unknown."""

    attempt: int
    stream: Literal["out", "err"]
    offset: int
    end: int
    at: float
    text: str


class CommandInfo(TypedDict):
    """A command that the manager has accepted, whether or not the host is reachable now."""

    command_id: str
    worker_id: str
    command: Verb
    status: Literal["accepted"]


class ExplanationInfo(TypedDict):
    """An explanation of a worker's state, in sentences."""

    worker_id: str
    state: str
    language: Literal["en", "zh"]
    at: str | None
    headline: str
    sentences: list[Json]
    next_steps: list[str]
    timeline: list[Json]


class OperationInfo(TypedDict):
    """One command for many workers. `counts`: by result, e.g. {"done": 40, "failed": 2}."""

    operation_id: str
    command: Verb
    selector: str
    q: str
    actor: str
    reason: str
    status: Literal["running", "cancelling", "halting", "done", "cancelled", "halted", "interrupted"]
    created_at: str | None
    ended_at: str | None
    total: int
    counts: dict[str, int]
    causes: list[Json]
    concurrency: int
    max_failures: str
    timeout_s: float
    retry_of: str | None
    joined: int
    left: int
    note: str
    note_code: str
    note_params: ReasonParams
