"""What the manager answers, as types. Fields are only ever added; a client ignores those that it does not know.

An answer's fields are named here one by one: a test fails where the manager says something that is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from procguard.fleet.records import CommandRecord
from remote_agent import protocol
from remote_agent.protocol import ZmqOffer  # `protocol` is a field of Hello

Moment = str | None  # ISO 8601 in UTC; null: never, or not yet


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


# ------------------------------------------------------------------------------------------------- first contact


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


class Measured(BaseModel):
    """`at`: Unix seconds; of each series as many values, null where nothing was measured. A series of which nothing is
    known is left out."""

    at: list[float]
    series: dict[str, list[float | None]]


class GpuMeasurements(Measured):
    index: int


class WorkerMeasurements(Measured):
    worker_id: str
    span: str
    step_s: int
    points: int


class HostMeasurements(Measured):
    agent_id: str
    span: str
    step_s: int
    points: int
    gpus: list[GpuMeasurements]


class Acked(BaseModel):
    """So many bytes of this stream are stored durably."""

    acked: int


# ---------------------------------------------------------------------------------------------------- the fleet


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


class Worker(BaseModel):
    """One worker as the portal shows it. `state` is `unknown` while its agent is out of reach."""

    worker_id: str
    state: protocol.State
    last_known_state: protocol.State
    desired: protocol.Desired
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
    usage: protocol.WorkerUsage | None
    last_exit: protocol.ExitRecord | None
    health: protocol.Health | None
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


class Workers(BaseModel):
    workers: list[Worker]
    total: int


class Checked(BaseModel):
    """Whether the manager itself can reach a host over SSH."""

    ok: bool | None
    reason: str
    checked_at: Moment = None


class Cordon(BaseModel):
    """No new tasks there by the manager's choice: who said so, when and why."""

    reason: str
    actor: str
    at: Moment


class HostRecovery(BaseModel):
    """The open incident of a silent host."""

    starts: int
    outcome: str
    reason: str


class Failure(BaseModel):
    """What went wrong on a host."""

    at: Moment
    kind: str
    what: str


class Tunnel(BaseModel):
    """A host's way to the manager through the manager's own SSH."""

    state: Literal["opening", "up", "down"]
    port: int
    reason: str = ""
    code: str = ""
    since: Moment = None


class Host(BaseModel):
    """A host, or a launcher started by hand; one that waits for approval has `fingerprint`."""

    host: str
    agent: str
    kind: Literal["deployed", "launcher"]
    agent_state: Literal["never", "connected", "suspect", "unreachable", "ended", "pending"]
    last_seen: Moment
    address: str
    release: str
    usage: protocol.HostUsage | None
    facts: protocol.HostFacts | None
    workers: int
    recovery_ssh: Checked
    reason: str
    tunnel: Tunnel | None = None
    agent_pid: int | None = None
    agent_started: Moment = None
    spare: bool | int = False
    labels: dict[str, str] = {}
    undeclared: bool = False  # the inventory that declared it names it no more
    cordoned: Cordon | None = None
    recovery: HostRecovery | None = None
    failures: int = 0
    last_failure: Failure | None = None
    fingerprint: str | None = None
    worker_id: str | None = None
    command: str | None = None
    channel: str = ""  # by which its last heartbeat came: http, zmq, mock
    channel_trouble: str = ""  # why not zmq, though it is offered
    disk_trouble: str = ""  # its disk refuses writes: space, inodes, quota, read_only, io
    disk_path: str = ""  # which disk
    rotation: Rotation | None = None


class Rotation(BaseModel):
    """A new secret was asked for: the agent has yet to make it (`asked`), or to use it (`taken`)."""

    id: str
    state: Literal["asked", "taken"]
    at: Moment
    actor: str


class Hosts(BaseModel):
    hosts: list[Host]
    server_time: str


class Agents(BaseModel):
    agents: list[Host]
    server_time: str
    version: str
    releases: list[str]


class OfWorker(BaseModel):
    worker_id: str
    status: str


class RotationAsked(BaseModel):
    status: Literal["asked", "unsupported", "unknown"]
    message: str


class RotationsAsked(BaseModel):
    agents: dict[str, RotationAsked]


class OfAgent(BaseModel):
    agent_id: str
    status: str


class OfHost(BaseModel):
    host: str
    status: str


class Moving(BaseModel):
    worker_id: str
    host: str
    status: Literal["moving"]


class SshTried(BaseModel):
    host: str
    ok: bool
    reason: str


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


class CareBegun(BaseModel):
    """`seq`: of the event that tells of the wish; the one that tells of its end comes later."""

    host: str
    status: Literal["accepted"]
    seq: int


class AgentLog(BaseModel):
    """`bytes`: the whole file's; `text` is its end."""

    host: str
    text: str
    path: str
    bytes: int
    running: bool
    pid: int | None


class TunnelOpened(BaseModel):
    """`url`: what its agent is told, "" where the tunnel is not up."""

    host: str
    ok: bool
    url: str
    reason: str


# ------------------------------------------------------------------------------------------------------ commands


class Accepted(BaseModel):
    command_id: str
    worker_id: str
    command: protocol.Verb
    status: Literal["accepted"]


@dataclass
class CommandView(CommandRecord):
    """A command's whole life: who asked, when, why, and what became of it."""

    accepted_at: Moment = None
    finished_at: Moment = None


class Commands(BaseModel):
    commands: list[CommandView]


# ---------------------------------------------------------------------------------------------------- operations


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


class Preview(BaseModel):
    """What an operation would do to whom. `token` is null where nothing matches."""

    token: str | None
    expires_in_s: float
    command: protocol.Verb
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


class Item(BaseModel):
    worker_id: str
    result: str
    cause: str | None
    message: str
    command_id: str | None
    ended_at: Moment


class Operation(BaseModel):
    operation_id: str
    command: protocol.Verb
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


class OperationWithItems(Operation):
    """`items` is the page that was asked for, of `items_total`."""

    items: list[Item]
    items_total: int


class Operations(BaseModel):
    operations: list[Operation]


# ------------------------------------------------------------------------------------------------------- history


class Event(BaseModel):
    seq: int
    at: Moment
    kind: str
    worker_id: str | None
    host: str | None
    before: str | None
    after: str | None
    reason: str
    actor: str | None
    attempt: int | None
    cause: str | None = None
    evidence: dict[str, Any] | str | None = None
    logs: str | None = None


class Events(BaseModel):
    events: list[Event]


class Sentence(BaseModel):
    topic: str
    text: str


class Happened(BaseModel):
    seq: int
    at: Moment
    kind: str
    cause: str | None
    text: str


class Explanation(BaseModel):
    worker_id: str
    state: str
    language: Literal["en", "zh"]
    at: Moment
    headline: str
    sentences: list[Sentence]
    next_steps: list[str]
    timeline: list[Happened]


class Step(BaseModel):
    at: Moment
    text: str


class Incident(BaseModel):
    host: str
    agent: str
    opened: Moment
    ended: Moment
    duration_s: float | None
    outcome: Literal["open", "recovered", "gave_up", "left"]
    starts: int
    steps: list[Step]


class Recoveries(BaseModel):
    recoveries: list[Incident]


class Member(BaseModel):
    worker_id: str
    host: str
    state: str
    rank: int | None
    epoch: int
    attempt: int
    reason: str


class GangIncident(BaseModel):
    member: str
    reason: str
    at: Moment
    ended: Moment


class Group(BaseModel):
    group: str
    restart: str
    rendezvous: str
    said_by: Literal["configuration", "inventory", ""]
    phase: str | None
    epoch: int | None
    attempts: int | None
    max_attempts: int | None
    master: str | None
    since: Moment
    reason: str
    incident: GangIncident | None
    members: list[Member]


class Groups(BaseModel):
    groups: list[Group]


# ---------------------------------------------------------------------------------------------------------- logs


class Line(BaseModel):
    """`marker`: said by ProcGuard about the log; `partial`: its end isn't there yet."""

    attempt: int
    stream: protocol.Stream
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
    next: LogPlace | None
    attempts: list[int]  # of which anything is kept


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


class Found(BaseModel):
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


# -------------------------------------------------------------------------------------------------- deployments


class WorkerDeployed(BaseModel):
    """`starts`: the attempt that the deployment leads to; null where it starts nothing."""

    result: str
    message: str
    differences: list[str]
    starts: int | None


class HostDeployed(BaseModel):
    agent_id: str
    proof_key: str
    secret_sha256: str
    heard_at: Moment
    workers: dict[str, WorkerDeployed]


class HostAbsent(BaseModel):
    """A host that the inventory named in an earlier deployment, and names no more. `guests`: workers that live there
    and are declared elsewhere. `ssh`: how the manager reaches it."""

    agent_id: str
    ssh: dict[str, Any]
    procguard_home: str
    workers: dict[str, WorkerDeployed]
    guests: list[str]


class ManagerTls(BaseModel):
    """What agents are to trust: certificates in PEM ("": those that their machines know), for whatever address."""

    ca: str
    any_name: bool


class Ca(ManagerTls):
    fingerprint: str


class Deployed(BaseModel):
    fleet_id: str
    hosts: dict[str, HostDeployed]
    absent: dict[str, HostAbsent]
    of_other_inventories: dict[str, str]
    manager_urls: list[str]
    manager_configured: list[str]
    tls: ManagerTls


class NotificationTarget(BaseModel):
    name: str
    type: str
    address: str
    events: list[str]
    language: str
    sent: int
    failures: int
    last_ok: Moment
    last_error: str
    last_error_at: Moment
    queued: int
    dropped: int
    deduplicated: int
    retry_in_s: float | None


class NotificationTargets(BaseModel):
    notifications: list[NotificationTarget]


class Tried(BaseModel):
    name: str
    type: str
    ok: bool
    answer: str
    took_s: float


class NotificationsTried(BaseModel):
    results: list[Tried]


# -------------------------------------------------------------------------------------------------------- access


class Token(BaseModel):
    """`uses_left`: launchers that an enrolment token still lets in; null: any number."""

    token_id: str
    name: str
    scope: str
    created_at: Moment
    created_by: str
    expires_at: Moment
    uses_left: int | None
    last_used_at: Moment
    last_used_from: str


class NewToken(Token):
    token: str
    note: str


class Tokens(BaseModel):
    tokens: list[Token]


class TokenRevoked(BaseModel):
    token_id: str
    status: Literal["revoked"]


class Change(BaseModel):
    """Of the audit: what somebody asked for, and the status that was answered."""

    seq: int
    at: Moment
    kind: Literal["change", "refused", "login", "logout"]
    actor: str | None
    via: str | None
    address: str | None
    what: str
    worker_id: str | None
    host: str | None
    status: int
    request_id: str | None
    token_id: str | None


class AuditTrail(BaseModel):
    audit: list[Change]


class Session(BaseModel):
    """Who this browser is."""

    operator: bool
    role: Literal["operator", "viewer"] | None
    via: str | None = None
    name: str | None = None
    csrf: str | None = None
    reason: str | None = None
    locked_s: int | None = None
