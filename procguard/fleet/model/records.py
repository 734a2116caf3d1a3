"""What the fleet keeps: the durable records (what a restart of the manager must not lose) and, apart from them,
what it only observes (rebuilt from the next heartbeats)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from procguard.fleet.model.clock import Now
from procguard.fleet.model.epochs import EPOCHS_PER_TERM
from remote_agent.protocol import messages, states

if TYPE_CHECKING:  # its group policies need pydantic, which costs every command 0.2 s to import
    from procguard.fleet.model.settings import FleetSettings

# ended: a hand-started launcher whose user ended it, after its worker had stopped. Nothing is expected of it.
AgentState = Literal["never", "connected", "suspect", "unreachable", "ended"]
KNOWN_STATES: tuple[AgentState, ...] = ("connected", "suspect", "ended")  # what it reported last is still so
CommandStatus = Literal["accepted", "delivered", "done", "failed", "expired"]


@dataclass
class AgentRecord:
    """One agent: deployed (named after its host) or a hand-started launcher."""

    agent_id: str
    host: str
    kind: Literal["deployed", "launcher"]
    secret_sha256: str = ""
    ssh: dict[str, Any] = field(default_factory=dict)  # how the manager reaches the host; {} for launchers
    procguard_home: str = ""
    release: str = ""
    ended_wall: float = 0.0  # when a launcher's user ended it; 0: it runs, or was lost
    # Workers that went to another agent: this one is told to drop them until it confirms.
    withdrawn: dict[str, dict[str, Any]] = field(default_factory=dict)
    proof_key_given: bool = True
    # Rises when its credentials are revoked: the key by which it knows its manager is another one from then on.
    key_generation: int = 0
    revoked_sha256: str = ""  # of its last revoked secret: a launcher that still shows it makes itself another
    tunnel: bool = False  # procguard_tunnel: it may reach the manager through the manager's own SSH
    tunnel_port: int = 0  # of its own machine, where such a tunnel begins; 0 = none was opened yet
    spare: bool | int = False  # procguard_spare: may carry tasks of other hosts; a number: at most so many
    labels: dict[str, str] = field(
        default_factory=dict
    )  # procguard_labels: what a worker's `requires` is compared with
    inventory: str = ""  # which inventory declared it last, e.g. "head:/home/ml/inventory/prod.yaml"; "": none is known
    undeclared: bool = False  # that inventory names it no more
    cordon: dict[str, Any] = field(default_factory=dict)  # {"reason", "actor", "at"}: no new tasks; {} = none
    ledger: list[dict[str, Any]] = field(default_factory=list)  # fleet/workers/failure_history.py
    # A new secret was asked for (fleet/agents/rotation.py): {"id", "at", "actor"}; {} = not. `next_sha256`: of the new
    # one, until it is used.
    rotation: dict[str, Any] = field(default_factory=dict)
    next_sha256: str = ""
    # The open incident, for the next manager: {"starts", "outcome", "reason", "manager_urls"}; {} = none.
    incident: dict[str, Any] = field(default_factory=dict)


@dataclass
class AgentObserved:
    """Liveness of an agent as this manager run has seen it. Times are monotonic seconds."""

    state: AgentState = "never"
    last_seen: float | None = None
    last_seen_wall: float | None = None
    polls_open: int = 0
    poll_lost_at: float | None = None  # the held request was closed by the peer and none has returned
    session: tuple[int, float] = (0, 0.0)  # (pid, started_at) of the agent process
    heartbeat: messages.AgentHeartbeat | None = None
    paid_until: float = 0.0  # monotonic: rises with the changes of its heartbeats (HeartbeatProcessor.wait_s)
    events_left: float = 0.0  # how many events it may cause at once (fleet/agents/heartbeat.py), as of `events_at`
    events_at: float | None = None  # monotonic
    events_left_out: int = 0  # since the last event that was kept
    refused_claims: set[str] = field(default_factory=set)  # workers whose refused claim has been reported
    rev: str = ""  # digest of its assignments; "" = to be computed
    interval: tuple[FleetSettings, int, float] | None = (
        None  # by which settings, among how many agents: seconds between beats
    )
    touched: int = 0  # the count of changes at the last one of its own (FleetState.make_durable_for)
    recovery_ssh: dict[str, Any] = field(default_factory=lambda: {"ok": None, "reason": "not tried yet"})
    tunnel: dict[str, Any] = field(default_factory=dict)  # {"state", "reason", "code", "since"}; {} = nothing known
    address: str = ""
    reason: str = ""
    channel: str = ""  # by which its last heartbeat came: http, zmq, mock
    disk_trouble: str = ""  # as the history has it; see host_disks
    disk_told_at: float | None = None


@dataclass
class WorkerRecord:
    worker_id: str
    agent_id: str
    host: str
    spec: messages.WorkerSpec
    desired: messages.Desired = "running"
    generation: int = 1
    epoch: int = EPOCHS_PER_TERM + 1
    undeclared: bool = False
    # Who wanted `desired` so, when (Unix seconds) and by which cause (fleet/history/causes.py); "" and 0: declared by a
    # deployment.
    desired_by: str = ""
    desired_at: float = 0.0
    desired_cause: str = ""
    # Member of a gang (fleet/gangs/controller.py): fenced, and never started alone. `held`: its gang keeps it from
    # running now; what the operator wants of it stays in `desired`.
    gang: bool = False
    held: bool = False
    # The host has said that this instance lives by a lease (WorkerReport.lease_left_s): only then is a fence a fence.
    leased: bool = False
    # Lease + stop grace of an earlier specification, where they were longer: the host may still go by them.
    lease_bound_s: float = 0.0
    attempts_before: int = 0  # the last attempt that an earlier host may have run; 0: it never changed its host
    home: str = ""  # the agent its inventory declares it on, while it lives on another
    moves: int = 0  # times it was reassigned without having been healthy since
    moving: dict[str, Any] = field(default_factory=dict)  # {"to": agent, "run": bool}: an operator's move
    # The last that was durably heard; shown while the agent is out of reach.
    attempt: int = 0
    event_seq: int = 0
    last_state: messages.State = "stopped"
    last_reason: str = ""
    last_since: float = 0.0

    def want(self, desired: messages.Desired, *, by: str, cause: str, now: Now) -> None:
        """Change what is desired, and remember whose wish it is. The caller raises the generation and stores it."""
        self.desired, self.desired_by, self.desired_at, self.desired_cause = desired, by, now.wall, cause

    @property
    def told(self) -> messages.Desired:
        """What its agent is told to make of it."""
        return "stopped" if self.held and self.desired == "running" else self.desired


class ResolvedSpec(NamedTuple):
    """A specification as its agent is told it, with the manager's settings filled in."""

    declared: messages.WorkerSpec  # what it was made of
    spec: messages.WorkerSpec
    digest: str


@dataclass
class WorkerObserved:
    report: messages.WorkerReport | None = None
    # The plain heartbeat's launchers hold no agent conversation; commands go out with their next reply.
    plain: bool = False
    last_seen: float | None = None
    launch_digest: tuple[messages.WorkerSpec, str] | None = None  # of the record's spec, as long as it is that one
    plight: dict[str, str] = field(default_factory=dict)  # why its task waits or goes nowhere: {"state", "reason"}
    resolved: ResolvedSpec | None = None  # good as long as the record's spec is the one it was made of
    suspect: str = ""  # evidence of a hang; never acted upon by itself
    told: messages.WorkerReply | None = None  # to a plain heartbeat that said nothing new


@dataclass
class CommandRecord:
    """One operator's command and its visible life: accepted -> delivered -> done | failed | expired."""

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
    message: str = ""
    reason: str = ""  # why it was asked, in the operator's words
    operation_id: str = ""  # the batch it belongs to
    origin: str = ""  # from where it was asked: "127.0.0.1, local"
    by_manager: bool = False  # carried out by the manager itself, with a whole gang: never sent to an agent
    finished_wall: float = 0.0

    @property
    def open(self) -> bool:
        return self.status in ("accepted", "delivered")


@dataclass
class TokenRecord:
    token_id: str
    name: str
    scope: str  # token_scopes.SCOPES, or "agent:" and an agent's id
    sha256: str
    created_wall: float
    created_by: str = ""
    expires_wall: float | None = None  # None: never
    uses_left: int | None = None  # launchers that an enrolment token still lets in; None: any number
    used_wall: float | None = None  # the last use, and from where
    used_from: str = ""


@dataclass
class PendingLauncher:
    """A hand-started launcher that waits for approval. Not durable: it asks again."""

    registration: messages.Registration
    agent_id: str
    fingerprint: str
    peer: str
    first_seen: float
    last_seen: float
    asked: float  # monotonic, when it asked last


def to_dict(record: Any) -> dict[str, Any]:
    return messages.encode(record)


def worker_from_dict(data: dict[str, Any]) -> WorkerRecord:
    known = {item.name for item in dataclasses.fields(WorkerRecord)}
    values = {name: value for name, value in data.items() if name in known}
    values["spec"] = messages.decode(messages.WorkerSpec, data.get("spec") or {})
    return WorkerRecord(**values)


def from_dict(cls: type[Any], data: dict[str, Any]) -> Any:
    known = {item.name for item in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in data.items() if name in known})


def settled(state: str) -> bool:
    return state in states.SETTLED


def fenced(worker: WorkerRecord) -> bool:
    """Whether it runs by a lease (leases.py)."""
    return worker.gang or worker.spec.on_partition == "fence"
