"""All messages between agents and the manager, as records (records.py), and which of their fields hold others.

The manager imports them from here. Owns names, types and units; knows neither sockets nor files.
Unknown keys are ignored and fields are only added, so that agents and managers of different releases can communicate.
Times are seconds: `at` is wall clock (Unix time, for display only), `*_s` is a duration. docs/protocol.md shows each
message.
"""

from __future__ import annotations

import json

from remote_agent.protocol.codec import Codec, WireError
from remote_agent.protocol.digests import hmac_sha256_hex, sha256_hex
from remote_agent.protocol.hints import Any, Literal, Union
from remote_agent.protocol.ids import (
    AGENT_ID_PATTERN,
    ID_PATTERN,
    directory_name,
    fingerprint,
    manager_proof,
    secret_sha256,
    valid_agent_id,
    valid_id,
)
from remote_agent.protocol.records import field, record
from remote_agent.protocol.worker_spec import (
    LATER_LAUNCH_FIELDS,
    LAUNCH_FIELDS,
    ContainerSpec,
    HealthCheck,
    Hook,
    Limits,
    RestartPolicy,
    TerminalSpec,
    WorkerSpec,
)

# Worker specifications and ids are part of the wire format and are re-exported here.
__all__ = [
    "AGENT_ID_PATTERN", "ID_PATTERN", "ContainerSpec", "HealthCheck", "Hook", "Limits", "RestartPolicy", "TerminalSpec",
    "WireError", "WorkerSpec", "directory_name", "fingerprint", "manager_proof", "secret_sha256", "valid_agent_id",
    "valid_id",
]  # fmt: skip

PROTOCOL_VERSION = 1

LAUNCHER_PREFIX = "launcher:"
MAX_WAIT_S = 25.0
ZMQ_INLINE_BYTES = 64 * 1024  # a larger body is announced before it is sent over zmq
MAX_LOG_POST_BYTES = 4 * 1024 * 1024
MAX_LOG_METRICS = 16  # limit per worker
METRIC_PREFIX = "metrics."  # prefix of a metric's name where other names are possible
LOG_METRIC_NAME = "[A-Za-z_][A-Za-z0-9_]{0,39}"

State = Literal["stopped", "starting", "running", "stopping", "backoff", "exited", "failed", "unknown"]
Desired = Literal["running", "stopped", "removed"]
Verb = Literal["start", "stop", "restart", "kill"]
VERBS: tuple[Verb, ...] = ("start", "stop", "restart", "kill")
Stream = Literal["out", "err"]


# ------------------------------------------------------------------------------------------------------- workers


def launch_digest(spec: WorkerSpec) -> str:
    """16 hex digits over LAUNCH_FIELDS. A running attempt whose digest differs from its spec's is "restart pending"."""
    values, unset = encode(spec), encode(WorkerSpec())
    counting = {name: values[name] for name in LAUNCH_FIELDS}
    counting.update({name: values[name] for name in LATER_LAUNCH_FIELDS if values[name] != unset[name]})
    return canonical_digest(counting)


def canonical_digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256_hex(text.encode())[:16]


# ------------------------------------------------------------------------------------------- manager -> agent


@record
class Assignment:
    """One worker that an agent must run. The list of an agent's assignments is always complete; its digest is the
    `rev`.

    `generation` increases with every start or stop by an operator. A settled worker (exited, failed) starts again only
    when its generation increases. `epoch` (term * 1_000_000 + n) fences: an agent ignores epochs lower than the highest
    that it has received.
    `attempt_base`: the highest attempt known to the manager. The next attempt is higher than this and all local ones.
    `desired` "removed": stop the worker, ship its logs, then delete it.
    `lease_s`: None for `keep`. Otherwise the worker is fenced: it runs only while it has a Lease of this epoch that was
    granted since the host booted. `gang`: a member never restarts alone; the manager decides what follows its end.
    `env`: variables added by the manager (ranks, rendezvous). They override all others and are not part of the launch
    digest.
    `grant`: proof that the manager assigned this worker to this agent under this epoch. The agent stores it and returns
    it in its reports; "" if the worker is being removed.
    `causes`: user-defined causes of failure from the configuration, each with an expression for Python's `re`.
    `metrics`: the metrics of the specification, each as [expression, text that every match contains; "": unknown].
    """

    worker_id: str
    spec: WorkerSpec
    desired: Desired = "running"
    generation: int = 1
    epoch: int = 1_000_001
    attempt_base: int = 0
    lease_s: Union[float, None] = None
    gang: bool = False
    env: dict[str, str] = field(default_factory=dict)
    grant: str = ""
    causes: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[str]] = field(default_factory=dict)


@record
class Lease:
    """{"worker_id": "worker1", "epoch": 1000003, "lease_s": 60.0}

    Permits a fenced worker to run under this epoch for `lease_s`. The lease starts when the acknowledged heartbeat was
    *sent*, on the host's CLOCK_BOOTTIME, so that it always ends before the manager assumes that it has ended, even if
    the reply is late. The process is stopped when the lease ends. No lease survives a reboot.
    """

    worker_id: str
    epoch: int
    lease_s: float


@record
class Command:
    """{"seq": 7, "command_id": "c-…", "worker_id": "worker1", "command": "restart", "attempt": 3, "ttl_s": 59.2}

    restart and kill act only on `attempt`, at most once per command_id, and only within `ttl_s` of the time when the
    acknowledged request was sent, because the response may wait in the socket of a frozen process. start and stop are
    for information only: agents converge on the assignments (`desired`, `generation`).
    """

    seq: int
    command_id: str
    worker_id: str
    command: Verb
    attempt: int = 0
    ttl_s: float = 60.0
    generation: int = 0


@record
class LogSearch:
    """{"search_id": "s-0f3a91bc", "pattern": "CUDA error", "regex": false, "workers": ["worker1"], "timeout_s": 10.0}

    Requests a search for `pattern` in these workers' logs on this host, newest first, for at most `timeout_s`. May be
    sent twice. The result is a LogSearchResult.
    """

    search_id: str
    pattern: str
    regex: bool = True  # False: a literal text
    ignore_case: bool = False
    workers: list[str] = field(default_factory=list)
    stream: str = ""  # "out" or "err"; "": both
    since: Union[float, None] = None  # skip output that was certainly written earlier
    until: Union[float, None] = None
    max_lines: int = 500
    timeout_s: float = 10.0


@record
class LogRange:
    """{"range_id": "g-0f3a91bc", "worker_id": "worker1", "attempt": 3, "stream": "out", "offset": 0, "length": 1048576}

    Requests bytes that this manager never received. The agent posts those that still exist on its host to the log route
    with `fill=range_id`, the last post with `last=1`. `attempt` 0: report how much of each of the worker's files was
    acknowledged. May be sent twice.
    """

    range_id: str
    worker_id: str
    attempt: int = 0
    stream: str = ""
    offset: int = 0
    length: int = 0


@record
class AgentReply:
    """Answer to POST /api/agents/<id>/heartbeat and GET /api/agents/<id>/commands."""

    fleet_id: str = ""
    interval_s: float = 2.0  # send the next heartbeat within this time
    assignments_rev: str = ""
    assignments: Union[list[Assignment], None] = None  # None: the agent already has this rev
    commands: list[Command] = field(default_factory=list)
    events_acked: dict[str, int] = field(default_factory=dict)  # worker_id -> highest event seq stored
    keep_local_bytes: Union[int, None] = None  # logs.keep_local; None: as before
    keep_attempts: Union[int, None] = None  # logs.keep_attempts; None: as before
    log_gather_s: Union[float, None] = None  # output within this time is sent in one request; None: unchanged
    leases: list[Lease] = field(default_factory=list)  # in answers to heartbeats only
    # of the acknowledged heartbeat; leases count from then, even if the reply is late, duplicated or reordered
    beat: int = 0
    searches: list[LogSearch] = field(default_factory=list)
    rotate: str = ""  # in replies to heartbeats only: create a new secret and report its digest under this name
    ranges: list[LogRange] = field(default_factory=list)
    managers: list[str] = field(default_factory=list)  # their URLs, the leader's first; []: one manager alone
    term: int = 0  # the leader's term; a reply with a lower one than seen before is refused. 0: a single manager
    cordoned_gpus: Union[list[str], None] = None  # uuids, or "#" and an index, to assign to no worker; None: unchanged


# ------------------------------------------------------------------------------------------- agent -> manager


@record
class ExitRecord:
    """How one attempt ended. {"attempt": 3, "code": null, "signal": 9, "at": 1790000000.0, "duration_s": 11520.0}"""

    attempt: int
    code: Union[int, None] = None  # exit code, or None when a signal ended it
    signal: Union[int, None] = None
    oom: bool = False
    at: float = 0.0
    duration_s: float = 0.0
    reason: str = ""  # "killed by signal 9 (SIGKILL) after 3 h 12 min"
    # Set if the exit status alone is misleading: "not_started", "start_timeout", "unhealthy", "lost". For an attempt
    # that failed by itself, the cause proven by its last lines: "gpu_oom", "import_error", a user-defined one
    # (docs/failure-causes.md).
    cause: str = ""
    detail: str = ""  # details of the cause, such as the check's message
    line: str = ""  # the log line that proves it, at `line_offset` of the attempt's log `line_stream`
    line_stream: str = ""
    line_offset: int = 0
    # Background processes that the command left when it ended, and that were terminated.
    left: int = 0
    left_names: list[str] = field(default_factory=list)  # the names of some of them: ["nginx"]
    reason_code: str = ""
    reason_params: dict[str, Any] = field(default_factory=dict)
    detail_code: str = ""
    detail_params: dict[str, Any] = field(default_factory=dict)


@record
class WorkerUsage:
    """Usage of the whole process tree; CPU in percent of one core. None: not measured.

    CPU and memory of a container are those of its control group if the agent can read it; memory excludes the inactive
    file cache."""

    cpu_percent: float = 0.0
    rss_bytes: int = 0
    processes: int = 0
    threads: int = 0
    # memory with shared pages divided among the processes that share them; once a minute
    pss_bytes: Union[int, None] = None
    fds: Union[int, None] = None
    read_bytes: Union[int, None] = None  # from and to storage, by the live processes
    written_bytes: Union[int, None] = None
    read_bytes_per_s: Union[float, None] = None
    written_bytes_per_s: Union[float, None] = None
    gpus: list[int] = field(default_factory=list)  # assigned to it or used by it
    gpu_percent: Union[float, None] = None  # mean over these
    gpu_memory_bytes: Union[int, None] = None  # GPU memory of the worker's own processes


@record
class Health:
    status: Literal["ok", "failing", "unknown"] = "unknown"
    detail: str = ""
    detail_code: str = ""
    detail_params: dict[str, Any] = field(default_factory=dict)


@record
class LogMetric:
    """{"name": "step", "value": 12.0, "at": 1790000000.0, "total": 100.0, "eta_s": 340.0}

    A number that the current attempt printed, as WorkerSpec.metrics declares it. `at`: wall time of its last change.
    """

    name: str
    value: Union[float, None] = None  # None: none yet
    at: float = 0.0
    total: Union[float, None] = None  # of an expression with two groups
    eta_s: Union[float, None] = None  # seconds until `total` at the current rate, as of `at`; None: unknown
    # "too_long": the expression was disabled, because it takes too long on this output
    trouble: Literal["", "too_long"] = ""


@record
class WorkerReport:
    """The agent's current knowledge of one worker."""

    worker_id: str
    state: State = "stopped"
    generation: int = 0
    epoch: int = 0
    attempt: int = 0
    pid: Union[int, None] = None
    since: float = 0.0  # wall time of the last state change
    restarts: int = 0  # automatic restarts of this generation since the budget was last reset
    restarts_total: int = 0
    reason: str = ""
    launch_digest: str = ""  # of the running attempt; "" when none runs
    next_start_in_s: Union[float, None] = None  # backoff: the countdown
    last_exit: Union[ExitRecord, None] = None
    usage: Union[WorkerUsage, None] = None  # None: unavailable
    health: Union[Health, None] = None  # None: no checks configured
    suspect: str = ""  # the host's evidence that it hangs; nothing is terminated because of it
    lease_left_s: Union[float, None] = None  # of a fenced worker: seconds until its lease ends without renewal
    # Why an idle CPU is no sign of a hang: "output" (recent output), "listening" (a server without connections).
    idle_because: str = ""
    grant: str = ""  # Assignment.grant of `epoch`; "": the agent has none. A manager with an older state relies on it
    reason_code: str = ""
    reason_params: dict[str, Any] = field(default_factory=dict)
    suspect_code: str = ""
    suspect_params: dict[str, Any] = field(default_factory=dict)
    metrics: list[LogMetric] = field(default_factory=list)


@record
class WorkerEvent:
    """One state change. `seq` increases strictly per worker (it starts at the wall clock in ms)."""

    worker_id: str
    seq: int
    at: float
    attempt: int
    before: State
    after: State
    reason: str
    # with after == backoff/exited/failed/stopped: how the attempt ended
    exit: Union[ExitRecord, None] = None
    reason_code: str = ""
    reason_params: dict[str, Any] = field(default_factory=dict)


@record
class CommandResult:
    command_id: str
    status: Literal["done", "failed", "expired"]
    message: str = ""
    message_code: str = ""
    message_params: dict[str, Any] = field(default_factory=dict)


@record
class HostFacts:
    hostname: str = ""
    os: str = ""
    python: str = ""
    user: str = ""
    cpus: int = 0
    memory_bytes: int = 0


@record
class GpuProcess:
    """One process on a GPU. `worker_id` "": not of a worker of this agent."""

    pid: int
    memory_bytes: Union[int, None] = None
    name: str = ""
    user: str = ""
    worker_id: str = ""


@record
class GpuUsage:
    """One NVIDIA GPU. `index`: in PCI order, as in nvidia-smi. None: not reported by the driver."""

    index: int
    uuid: str = ""
    name: str = ""
    utilization_percent: Union[float, None] = None
    memory_used_bytes: Union[int, None] = None
    memory_total_bytes: Union[int, None] = None
    power_w: Union[float, None] = None
    power_limit_w: Union[float, None] = None
    temperature_c: Union[float, None] = None
    processes: list[GpuProcess] = field(default_factory=list)
    worker_id: str = ""  # the worker that it is allocated to
    trouble: str = ""  # why it cannot be read
    throttled: list[str] = field(default_factory=list)  # hw_slowdown, hw_thermal, hw_power_brake, sw_thermal


@record
class GpuFault:
    """{"kind": "xid", "code": 79, "gpu": 3, "uuid": "GPU-5c2f1f0e-0d3a-4b6e-8d8b-1f2e3d4c5b6a", "at": 1790000000.0}

    `kind`: xid, sxid (the kernel's log), ecc, row_remap_pending, row_remap_failed (NVML)."""

    kind: str
    code: int = 0  # of an xid or sxid
    gpu: Union[int, None] = None  # the GPU's index; None: the whole host, or an unknown GPU
    uuid: str = ""
    at: float = 0.0  # Unix time of the last occurrence; 0.0: not reported by the driver
    count: int = 1
    detail: str = ""  # the rest of the kernel's message


@record
class HostUsage:
    cpu_percent: float = 0.0
    load1: float = 0.0
    memory_used_bytes: int = 0
    disk_free_bytes: int = 0
    disk_total_bytes: int = 0
    swap_used_bytes: int = 0
    network_received_bytes_per_s: Union[float, None] = None
    network_sent_bytes_per_s: Union[float, None] = None
    gpus: list[GpuUsage] = field(default_factory=list)
    gpu_trouble: str = ""  # why the GPUs that should be here cannot be read
    gpu_faults: list[GpuFault] = field(default_factory=list)  # since the boot
    kernel_log_trouble: str = ""  # why the kernel's log cannot be read, where there are GPUs


@record
class AgentHeartbeat:
    """POST /api/agents/<id>/heartbeat: the complete report of one host. Sent every `interval_s`, and immediately after
    a change of state."""

    agent_id: str
    fleet_id: str = ""
    protocol: int = PROTOCOL_VERSION
    release: str = ""  # digest of the installed bundle
    boot_id: str = ""
    pid: int = 0
    started_at: float = 0.0
    at: float = 0.0
    facts: HostFacts = field(default_factory=HostFacts)
    usage: Union[HostUsage, None] = None
    workers: list[WorkerReport] = field(default_factory=list)
    events: list[WorkerEvent] = field(default_factory=list)
    results: list[CommandResult] = field(default_factory=list)
    assignments_rev: str = ""  # the rev this agent has stored
    commands_seq: int = 0  # the highest Command.seq this agent process has received; 0 after its start
    beat: int = 0  # creation time in ns of the host's CLOCK_BOOTTIME; repeated in the reply
    free_port: int = 0  # a free TCP port for a rendezvous on this host; 0: not determined
    channel_trouble: str = ""  # why HTTP is used although the manager offers zmq
    ends: bool = False  # of a launcher that is ending: its worker has ended, and this may be its last heartbeat
    # Why the disk refuses writes: "space", "inodes", "quota", "read_only" or "io"; "" = it does not. And which disk.
    disk_trouble: str = ""
    disk_path: str = ""


@record
class LogMatch:
    """One matching line. `text`: its displayed part; [begin, end): the match in `text`."""

    worker_id: str
    attempt: int
    stream: Literal["out", "err"]
    offset: int  # of the line's first byte
    text: str
    begin: int = 0
    end: int = 0
    at: float = 0.0  # when it was written, according to this host; 0: unknown


@record
class LogSearchResult:
    """POST /api/agents/<id>/searches. {"search_id": "s-0f3a91bc", "status": "done", "lines": […]}"""

    search_id: str
    status: Literal["done", "timeout", "failed"] = "done"
    reason: str = ""
    lines: list[LogMatch] = field(default_factory=list)  # the newest; may be fewer than `found`
    found: int = 0
    bytes: int = 0  # bytes searched
    elapsed_s: float = 0.0
    # {worker: {"3.out": offset of the first byte that is still on this host}}: the manager searches the earlier part
    # itself. None: not reported.
    held: Union[dict[str, dict[str, int]], None] = None
    reason_code: str = ""
    reason_params: dict[str, Any] = field(default_factory=dict)


@record
class Registration:
    """POST /api/workers/register. {"worker_id": "worker1", "command": "python train.py", "host": "gpu01"}

    `secret_sha256`: hex SHA-256 of a secret that the launcher has created and keeps; on approval the secret becomes its
    credential (Authorization: Bearer <secret>). Both sides show `fingerprint(secret_sha256)`. `attempt` > 0 and
    `state`: the launcher adopted a live process of that attempt.
    """

    worker_id: str
    command: Union[str, list[str]] = ""
    host: str = ""
    spec: Union[WorkerSpec, None] = None  # the full specification; `command` alone is enough
    secret_sha256: str = ""
    state: State = "stopped"
    attempt: int = 0
    epoch: int = 0  # the epoch under which it last ran; 0: never


@record
class RegisterReply:
    """200 {"status": "registered", …} or 202 {"status": "pending", "fingerprint": "3f2a-91bc-77d0", …}"""

    status: Literal["registered", "pending"]
    worker_id: str
    agent_id: str = ""
    fleet_id: str = ""
    fingerprint: str = ""
    epoch: int = 0
    interval_s: float = 2.0
    proof_key: str = ""  # the key with which this agent verifies its manager from now on
    log_offsets: dict[str, int] = field(default_factory=dict)  # "3.out" -> bytes the manager has
    message: str = ""
    managers: list[str] = field(default_factory=list)  # as in AgentReply
    term: int = 0


@record
class SecretRenewal:
    """POST /api/agents/<id>/secret, after a reply with `rotate`: the digest of the secret that the agent has created
    and stored. {"rotation": "r-0f3a91bc77d0", "secret_sha256": "9f86…"}. 409 no_rotation: the rotation is no longer
    requested."""

    rotation: str
    secret_sha256: str


@record
class WorkerHeartbeat:
    """POST /api/workers/<id>/heartbeat: the plain form, for a launcher in any language. {"state": "running"}"""

    state: State = "running"
    pid: Union[int, None] = None
    attempt: Union[int, None] = None
    usage: Union[WorkerUsage, None] = None
    reason: str = ""
    last_exit: Union[ExitRecord, None] = None
    results: list[CommandResult] = field(default_factory=list)


@record
class WorkerReply:
    """Answer to the plain heartbeat and to GET /api/workers/<id>/command. Each command is sent once to a live launcher,
    which confirms it by its state or by `results`."""

    worker_id: str
    desired: Desired = "running"
    epoch: int = 0
    interval_s: float = 2.0
    commands: list[Command] = field(default_factory=list)
    managers: list[str] = field(default_factory=list)  # as in AgentReply
    term: int = 0


@record
class ZmqOffer:
    """`zmq` in the answer to GET /api/hello: the manager's zmq channel. `proof` is `zmq_offer_proof` over it."""

    port: int
    logs_port: int
    curve_key: str  # the manager's, 64 hexadecimal digits
    timeout_ms: int = 1000  # timeout of the connection, after which the agent uses HTTP
    proof: str = ""


def curve_key_proof(proof_key: str, agent_id: str, nonce: str, curve_key: str) -> str:
    """The `mac` that an agent sends with its CURVE key (`curve`); requires the proof key."""
    message = "\0".join(("procguard-agents-curve-key", agent_id, nonce, curve_key)).encode()
    return hmac_sha256_hex(proof_key.encode(), message)


def zmq_offer_proof(proof_key: str, agent_id: str, nonce: str, offer: ZmqOffer) -> str:
    """Proves that an offer is from the fleet's manager, so that a relay cannot replace the key or the port."""
    parts = (str(offer.port), str(offer.logs_port), offer.curve_key, str(offer.timeout_ms))
    message = "\0".join(("procguard-zmq-offer", agent_id, nonce, *parts)).encode()
    return hmac_sha256_hex(proof_key.encode(), message)


# -------------------------------------------------------------------------------------------------- nested messages

# Fields that hold messages: how each is rebuilt from JSON. ("one", cls) or ("list", cls).
NESTED: dict[type, dict[str, tuple[str, type]]] = {
    WorkerSpec: {
        "restart": ("one", RestartPolicy),
        "health": ("list", HealthCheck),
        "limits": ("one", Limits),
        "container": ("one", ContainerSpec),
        "tty": ("one", TerminalSpec),
        "pre_start": ("list", Hook),
        "post_stop": ("list", Hook),
    },
    Assignment: {"spec": ("one", WorkerSpec)},
    AgentReply: {
        "assignments": ("list", Assignment),
        "commands": ("list", Command),
        "leases": ("list", Lease),
        "searches": ("list", LogSearch),
        "ranges": ("list", LogRange),
    },
    GpuUsage: {"processes": ("list", GpuProcess)},
    HostUsage: {"gpus": ("list", GpuUsage), "gpu_faults": ("list", GpuFault)},
    WorkerReport: {
        "last_exit": ("one", ExitRecord),
        "usage": ("one", WorkerUsage),
        "health": ("one", Health),
        "metrics": ("list", LogMetric),
    },
    WorkerEvent: {"exit": ("one", ExitRecord)},
    AgentHeartbeat: {
        "facts": ("one", HostFacts),
        "usage": ("one", HostUsage),
        "workers": ("list", WorkerReport),
        "events": ("list", WorkerEvent),
        "results": ("list", CommandResult),
    },
    LogSearchResult: {"lines": ("list", LogMatch)},
    Registration: {"spec": ("one", WorkerSpec)},
    WorkerHeartbeat: {
        "usage": ("one", WorkerUsage),
        "last_exit": ("one", ExitRecord),
        "results": ("list", CommandResult),
    },
    WorkerReply: {"commands": ("list", Command)},
}

# The fields that are reasons (reasons.py): NAME is accompanied by NAME_code and NAME_params if it has a code.
REASONS: dict[type, tuple[str, ...]] = {
    ExitRecord: ("reason", "detail"),
    Health: ("detail",),
    WorkerReport: ("reason", "suspect"),
    WorkerEvent: ("reason",),
    CommandResult: ("message",),
    LogSearchResult: ("reason",),
}

_CODEC = Codec(NESTED, REASONS)
encode, encode_short, encode_dict = _CODEC.encode, _CODEC.encode_short, _CODEC.encode_dict
decode, with_reasons = _CODEC.decode, _CODEC.with_reasons
