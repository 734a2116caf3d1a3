"""The fleet's data: durable records, which survive a restart of the manager, and observed status, which is rebuilt
from heartbeats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from procguard.fleet.model.clock import Now
from procguard.fleet.model.epochs import EPOCHS_PER_TERM
from procguard.i18n.reasons import NONE, Reason, because
from procguard.json_types import Json
from remote_agent.protocol import messages, reasons, states

if TYPE_CHECKING:  # its group policies need pydantic, which costs every command 0.2 s to import
    from procguard.fleet.model.settings import FleetSettings

T = TypeVar("T")
NOT_TRIED = because("ssh.not_tried")

# ended: a hand-started launcher whose user ended it after its worker had stopped. It is not expected to return.
AgentState = Literal["never", "connected", "suspect", "unreachable", "ended"]
KNOWN_STATES: tuple[AgentState, ...] = ("connected", "suspect", "ended")  # states in which its last report is current
SshSettings = Json  # of one host, as deploy/ssh/target.py reads them
TunnelState = Literal["opening", "up", "down"]
CommandStatus = Literal["accepted", "delivered", "done", "failed", "expired"]


class Record:
    """A durable record. Once it is in its table, only a transaction may change it (fleet/transaction.py).

    Its values are never changed in place: containers are replaced.
    """

    __slots__ = ("_writer",)  # unset: in no table; None: in its table; otherwise the transaction that changes it

    TABLE: ClassVar[str]
    KEY: ClassVar[str]  # the field that names it in its table
    SHOWN_IN: ClassVar[Literal["workers", "hosts", ""]] = ""  # where its changes are published
    UNSHOWN: ClassVar[frozenset[str]] = frozenset()  # fields that no view shows
    # Fields that contain a nested record, or a mapping of such records; stored as {} if there is none.
    NESTED: ClassVar[Mapping[str, type[Any]]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_writer", self) is None:
            raise AttributeError(f"{type(self).__name__}.{name} is changed outside a transaction")
        object.__setattr__(self, name, value)

    @property
    def key(self) -> str:
        return str(getattr(self, self.KEY))

    def stored(self) -> Json:
        body = messages.encode(self)
        for name in self.NESTED:
            body[name] = body[name] or {}
        return body

    @classmethod
    def restored(cls, data: Mapping[str, Any]) -> Self:
        """The record from its stored form; unknown fields are ignored."""
        record = cls.__new__(cls)
        values = vars(record)
        for name, default, factory, is_reason in _fields_of(cls):
            if is_reason and name in data:
                values[name] = reasons.read(data, name)  # a sentence of an older version is one of code `text`
            else:
                values[name] = data[name] if name in data else default if factory is None else factory()
        for name, kind in cls.NESTED.items():
            values[name] = nested(kind, values[name]) if values[name] else None
        cls._revive(values)
        return record

    @classmethod
    def _revive(cls, values: Json) -> None:
        """Replace stored plain values with the objects that they encode."""

    # ------------------------------------------------------------------------------------------ for transactions

    @property
    def opened_by(self) -> object | None:
        """The transaction that may change the record; the record itself while it is in no table; None: read-only."""
        return getattr(self, "_writer", self)

    def open_for(self, writer: object) -> None:
        object.__setattr__(self, "_writer", writer)

    def close(self) -> None:
        object.__setattr__(self, "_writer", None)

    def close_with(self, before: Mapping[str, Any]) -> None:
        vars(self).update(before)
        self.close()

    def leave(self) -> None:
        """Mark the record as removed from its table."""
        object.__delattr__(self, "_writer")


_FIELDS: dict[type[Any], tuple[tuple[str, Any, Any, bool], ...]] = {}


def _fields_of(cls: type[Any]) -> tuple[tuple[str, Any, Any, bool], ...]:
    """(name, default, its factory or None, whether it is a reason)."""
    found = _FIELDS.get(cls)
    if found is None:
        missing = dataclasses.MISSING
        found = _FIELDS[cls] = tuple(
            (
                one.name,
                one.default,
                None if one.default_factory is missing else one.default_factory,
                one.type == "Reason",
            )
            for one in dataclasses.fields(cls)
        )
    return found


def nested(kind: type[T], data: Mapping[str, Any]) -> T:
    """Decode a nested record from plain values; unknown keys are ignored."""
    return kind(
        **{
            name: reasons.read(data, name) if is_reason else data[name]
            for name, _, _, is_reason in _fields_of(kind)
            if name in data
        }
    )


@dataclass
class FleetRecord(Record):
    """The fleet's identity and granted epochs. `n`: epochs granted in this term."""

    TABLE, KEY = "fleet", "name"

    fleet_id: str
    fleet_key: str
    term: int = 0
    n: int = 0
    stopped_by: Reason = NONE
    rebuilt: bool = False  # rebuilt for a running fleet; not every host has been read since

    @property
    def name(self) -> str:
        return "fleet"


@dataclass(frozen=True)
class Withdrawal:
    """A worker that moved to another agent, and that its last agent is instructed to drop. `attempts_to`: the last
    attempt whose log this agent may still upload; -1 for a removed worker, because a new one of its name has its own
    attempts.
    """

    command: str | list[str]
    generation: int
    epoch: int
    attempts_to: int = -1


@dataclass(frozen=True)
class HostCordon:
    """A host cordoned by the manager: it receives no new tasks. `at`: ISO 8601."""

    reason: Reason
    actor: str = ""
    at: str | None = None


@dataclass(frozen=True)
class HostFailure:
    """One entry of a host's failure history; `at`: Unix seconds."""

    at: float
    kind: Literal["agent_silent", "worker_failed"]
    what: Reason = NONE


@dataclass(frozen=True)
class PendingRotation:
    """A requested secret rotation (fleet/agents/rotation.py); `at`: Unix seconds."""

    id: str
    at: float = 0.0
    actor: str = ""


@dataclass(frozen=True)
class SpentRecovery:
    """Recovery attempts spent on an unreachable agent, kept for the next manager. `manager_urls`: this manager's."""

    starts: int = 0
    outcome: str = "open"
    reason: Reason = NONE
    manager_urls: Sequence[str] | None = None


@dataclass(frozen=True)
class Move:
    """An operator's move: the target agent, and whether to start the worker there. `settles`: the inventory declares it
    there."""

    to: str
    run: bool = False
    actor: str = ""
    settles: bool = False


@dataclass(frozen=True)
class TunnelStatus:
    """The status of the tunnel to a host; `since`: ISO 8601."""

    state: TunnelState
    reason: Reason = NONE
    code: str = ""
    since: str | None = None


@dataclass(frozen=True)
class RecoverySsh:
    """Whether SSH for recovery works; None: not tried yet."""

    ok: bool | None = None
    reason: Reason = NOT_TRIED
    checked_at: str | None = None


@dataclass(frozen=True)
class RecoveryStatus:
    """Why a task waits for another host, or is not moved."""

    state: str
    reason: Reason


@dataclass
class AgentRecord(Record):
    """One agent: deployed (named after its host) or a hand-started launcher."""

    TABLE, KEY, SHOWN_IN = "agents", "agent_id", "hosts"
    UNSHOWN = frozenset({
        "withdrawn", "key_generation", "revoked_sha256", "secret_sha256", "process", "was_connected", "ended_wall",
        "gpu_faults",
    })  # fmt: skip
    NESTED: ClassVar[Mapping[str, type[Any]]] = {
        "cordon": HostCordon,
        "rotation": PendingRotation,
        "incident": SpentRecovery,
    }

    agent_id: str
    host: str
    kind: Literal["deployed", "launcher"]
    secret_sha256: str = ""
    ssh: SshSettings = field(default_factory=dict)  # how the manager reaches the host; {} for launchers
    procguard_home: str = ""
    release: str = ""
    process: tuple[int, float] = (0, 0.0)  # (pid, started_at) of the agent process whose start was recorded last
    was_connected: bool = False  # according to the last event about its connection
    ended_wall: float = 0.0  # when a launcher's user ended it; 0: it runs, or was lost
    # Workers that moved to another agent: this one is instructed to drop them until it confirms.
    withdrawn: Mapping[str, Withdrawal] = field(default_factory=dict)
    proof_key_given: bool = True
    # Increases when its credentials are revoked, which changes the key by which it verifies its manager.
    key_generation: int = 0
    revoked_sha256: str = ""  # digest of its last revoked secret: a launcher that still uses it generates another one
    tunnel: bool = False  # procguard_tunnel: it may reach the manager through the manager's own SSH
    tunnel_port: int = 0  # the tunnel's port on the host; 0: not opened yet
    spare: bool | int = False  # procguard_spare: may run workers of other hosts; a number: at most this many
    # procguard_labels: compared with a worker's `requires`
    labels: Mapping[str, str] = field(default_factory=dict)
    inventory: str = ""  # the inventory that declared it last, e.g. "head:/home/ml/inventory/prod.yaml"; "": unknown
    undeclared: bool = False  # that inventory no longer names it
    cordon: HostCordon | None = None
    gpu_cordons: Mapping[str, HostCordon] = field(default_factory=dict)  # uuid, or "#" and an index
    gpu_faults: Mapping[str, float] = field(
        default_factory=dict
    )  # known GPU faults -> time of their last event (fleet/recovery/gpu_failures.py)
    failures: Sequence[HostFailure] = ()  # fleet/workers/failure_history.py
    rotation: PendingRotation | None = None
    next_sha256: str = ""  # of the new secret, until it is used
    incident: SpentRecovery | None = None

    @classmethod
    def restored(cls, data: Mapping[str, Any]) -> Self:
        """Also accepts the form of an earlier release, in which `failures` was named `ledger`."""
        return super().restored({"failures": data.get("ledger", ()), **data})

    @classmethod
    def _revive(cls, values: Json) -> None:
        values["process"] = tuple(values["process"])
        values["withdrawn"] = {key: nested(Withdrawal, one) for key, one in values["withdrawn"].items()}
        values["gpu_cordons"] = {key: nested(HostCordon, one) for key, one in values["gpu_cordons"].items()}
        values["failures"] = tuple(nested(HostFailure, one) for one in values["failures"])


@dataclass
class AgentObserved:
    """Liveness of an agent as observed by this manager process. Times are monotonic seconds."""

    state: AgentState = "never"
    last_seen: float | None = None
    last_seen_wall: float | None = None
    polls_open: int = 0
    poll_lost_at: float | None = None  # time at which the peer closed its long poll without opening another
    session: tuple[int, float] = (0, 0.0)  # (pid, started_at) of the agent process
    heartbeat: messages.AgentHeartbeat | None = None
    paid_until: float = 0.0  # monotonic: rises with the changes of its heartbeats (HeartbeatProcessor.wait_s)
    events_left: float = 0.0  # how many events it may cause at once (fleet/agents/heartbeat.py), as of `events_at`
    events_at: float | None = None  # monotonic
    events_left_out: int = 0  # since the last event that was kept
    refused_claims: set[str] = field(default_factory=set)  # workers whose refused claim has been reported
    rev: str = ""  # digest of its assignments; "" = to be computed
    interval: tuple[FleetSettings, int, float] | None = (
        None  # (settings, number of agents) -> seconds between heartbeats
    )
    last_change: int = 0  # number of its last own change (FleetState.make_durable_for)
    recovery_ssh: RecoverySsh = RecoverySsh()
    tunnel: TunnelStatus | None = None  # None: unknown
    address: str = ""
    reason: Reason = NONE
    channel: str = ""  # the channel of its last heartbeat: http, zmq, mock
    shown: tuple[Any, ...] = ()  # the host's data in its last heartbeat, without measurements
    disk_trouble: str = ""  # as in the history; see host_disks
    disk_reported_at: float | None = None


@dataclass
class WorkerRecord(Record):
    TABLE, KEY, SHOWN_IN = "workers", "worker_id", "workers"
    UNSHOWN = frozenset({"event_seq", "leased", "lease_bound_s", "attempts_before", "source", "started_spec"})
    NESTED: ClassVar[Mapping[str, type[Any]]] = {"moving": Move}
    # The assignment of its agent (agents/assignments.py).
    ASSIGNED: ClassVar[frozenset[str]] = frozenset(
        {"agent_id", "spec", "desired", "generation", "epoch", "gang", "held"}
    )

    worker_id: str
    agent_id: str
    host: str
    spec: messages.WorkerSpec
    desired: messages.Desired = "running"
    generation: int = 1
    epoch: int = EPOCHS_PER_TERM + 1
    undeclared: bool = False
    # Actor, time (Unix seconds) and cause (fleet/history/causes.py) of the last change of `desired`; "" and 0: declared
    # by a deployment.
    desired_by: str = ""
    desired_at: float = 0.0
    desired_cause: str = ""
    # Member of a gang (fleet/gangs/controller.py): fenced, and never started alone. `held`: its gang prevents it from
    # running now; `desired` is unchanged.
    gang: bool = False
    held: bool = False
    # The host has reported that this instance holds a lease (WorkerReport.lease_left_s): only then is fencing
    # effective.
    leased: bool = False
    # Lease + stop grace of an earlier specification if they were longer: the host may still use them.
    lease_bound_s: float = 0.0
    attempts_before: int = 0  # the last attempt that an earlier host may have run; 0: it never changed its host
    home: str = ""  # the agent on which its inventory declares it, while it runs on another one
    moves: int = 0  # times it was reassigned without having been healthy since
    moving: Move | None = None
    # The last durable report; shown while the agent is unreachable.
    attempt: int = 0
    event_seq: int = 0
    last_state: messages.State = "stopped"
    last_reason: Reason = NONE
    last_since: float = 0.0
    source: str = ""  # file and line that declare it, on the machine that deployed last; "": unknown
    # The specification of the running process, if a deployment has changed it since.
    started_spec: messages.WorkerSpec | None = None

    def set_desired(self, desired: messages.Desired, *, by: str, cause: str, now: Now) -> None:
        """Change the desired state and record the actor and cause. The caller increments the generation."""
        self.desired, self.desired_by, self.desired_at, self.desired_cause = desired, by, now.wall, cause

    @classmethod
    def _revive(cls, values: Json) -> None:
        values["spec"] = messages.decode(messages.WorkerSpec, values["spec"] or {})
        if values.get("started_spec"):
            values["started_spec"] = messages.decode(messages.WorkerSpec, values["started_spec"])

    def stop_moving_on(self) -> None:
        """End an operator's pending move, if any, with the worker stopped."""
        if self.moving is not None:
            self.moving = dataclasses.replace(self.moving, run=False)

    @property
    def assigned_state(self) -> messages.Desired:
        """The desired state in its agent's assignment."""
        return "stopped" if self.held and self.desired == "running" else self.desired


class ResolvedSpec(NamedTuple):
    """A specification as sent to its agent, with the manager's settings filled in."""

    declared: messages.WorkerSpec  # its source
    spec: messages.WorkerSpec


@dataclass
class WorkerObserved:
    report: messages.WorkerReport | None = None
    # Plain launchers have no agent session; commands are sent with the next reply to their heartbeat.
    plain: bool = False
    last_seen: float | None = None
    recovery_status: RecoveryStatus | None = None
    resolved: ResolvedSpec | None = None  # valid as long as the record's spec is its source
    suspect: Reason = NONE  # evidence of a hang; never acted upon by itself
    last_reply: messages.WorkerReply | None = None  # the latest reply to a plain heartbeat without changes


@dataclass
class CommandRecord(Record):
    """One operator's command and its status: accepted -> delivered -> done | failed | expired."""

    TABLE, KEY = "commands", "command_id"

    command_id: str
    seq: int
    worker_id: str
    agent_id: str
    command: messages.Verb
    attempt: int
    generation: int
    actor: str
    accepted_wall: float
    status: CommandStatus = "accepted"
    message: Reason = NONE
    reason: str = ""  # the operator's reason
    operation_id: str = ""  # the operation that it belongs to
    origin: str = ""  # origin of the request: "127.0.0.1, local"
    by_manager: bool = False  # executed by the manager itself, with a whole gang: never sent to an agent
    finished_wall: float = 0.0

    @property
    def open(self) -> bool:
        return self.status in ("accepted", "delivered")


@dataclass
class TokenRecord(Record):
    TABLE, KEY = "tokens", "token_id"

    token_id: str
    name: str
    scope: str  # token_scopes.SCOPES, or "agent:" and an agent's id
    sha256: str
    created_wall: float
    created_by: str = ""
    expires_wall: float | None = None  # None: never
    uses_left: int | None = None  # remaining uses of an enrolment token; None: unlimited
    used_wall: float | None = None  # time and address of the last use
    used_from: str = ""


@dataclass
class PendingLauncher:
    """A hand-started launcher pending approval. Not durable, because it registers again."""

    registration: messages.Registration
    agent_id: str
    fingerprint: str
    peer: str
    first_seen: float
    last_seen: float
    asked: float  # monotonic time of its last request


def settled(state: str) -> bool:
    return state in states.SETTLED


def fenced(worker: WorkerRecord) -> bool:
    """Whether the worker runs under a lease (leases.py)."""
    return worker.gang or worker.spec.on_partition == "fence"
