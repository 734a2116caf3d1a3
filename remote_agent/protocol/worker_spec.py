"""The specification of a worker: every key of the inventory, with its default and description.

The single source of these keys: scripts/worker_schema.py converts the descriptions here to docs/worker.schema.json, and
docs/worker.md shows an example of each key. Part of the wire (re-exported by messages.py): fields are only added.
Knows neither files nor processes.
"""

from __future__ import annotations

from remote_agent.protocol.hints import Any, Literal, Union
from remote_agent.protocol.records import field, record


def key(default: Any, about: str) -> Any:
    """A field with its description; a list or dict is copied for each message."""
    metadata = {"description": about}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@record
class RestartPolicy:
    """{"policy": "on-failure", "max_attempts": 3, "backoff_s": [0, 5, 30, 120, 300]}"""

    policy: Literal["always", "on-failure", "never"] = key(
        "on-failure", "What to restart: failures only, every exit, or nothing"
    )
    # None: the manager's recovery.max_recovery_attempts (filled in before it reaches an agent).
    max_attempts: Union[int, None] = key(
        None, "Automatic restarts before the worker is failed; 0 = none, unset = recovery.max_recovery_attempts"
    )
    backoff_s: list[float] = key(
        [0.0, 5.0, 30.0, 120.0, 300.0], "Delays before the restarts, in seconds; the last one repeats"
    )
    jitter: float = key(0.25, "Each delay is multiplied by 1 ± jitter")
    start_secs: float = key(1.0, "Seconds after which a started process counts as running")
    start_timeout_s: float = key(30.0, "Seconds within which a start must succeed; default: recovery.recovery_timeout")
    healthy_after_s: float = key(600.0, "Seconds of running after which the restart budget is reset")
    progress: str = key(
        "",
        "Progress that resets the restart budget instead of healthy_after_s: metrics.NAME, when it exceeds all "
        "earlier values, or a file, when it is written or touched, e.g. checkpoints/last.pt; relative to working_dir",
    )
    success_exit_codes: list[int] = key([0], "Exit codes that count as success")
    never_on: list[str] = key(
        [], "Causes of failure that are not restarted, e.g. import_error, syntax_error; none by default"
    )


@record
class HealthCheck:
    """{"type": "http", "url": "http://127.0.0.1:8000/", "interval_s": 10, "failures": 3, "action": "alert"}"""

    type: Literal["http", "tcp", "exec", "log_silence", "heartbeat_file"] = key("http", "Type of the check")
    url: str = key("", "http: URL that must respond")
    port: int = key(0, "tcp: port on 127.0.0.1 that must accept a connection")
    command: str = key("", "exec: shell words, run as the worker's user in its directory; exit code 0 is healthy")
    path: str = key("", "heartbeat_file: file that the job touches or writes; relative to its working_dir")
    max_age_s: Union[float, None] = key(
        None,
        "log_silence, heartbeat_file: seconds without a change until unhealthy. Unset: 60 s for "
        "heartbeat_file; for log_silence, derived from the job's own output pattern",
    )
    interval_s: float = key(10.0, "Seconds between checks")
    timeout_s: float = key(3.0, "Timeout of a check, in seconds")
    failures: int = key(3, "Consecutive failures after which the worker is failing")
    start_grace_s: float = key(10.0, "Seconds after the start of an attempt without checks")
    action: Literal["alert", "restart"] = key("alert", "Action on failing: report it, or restart the worker")


@record
class Hook:
    """{"command": "rsync -a /data/ /scratch/", "timeout_s": 600}"""

    command: Union[str, list[str]] = key("", "A string is a line for /bin/sh, a list is executed unchanged")
    timeout_s: float = key(30.0, "Timeout in seconds; then the hook fails and its processes are stopped")


@record
class Limits:
    """{"nofile": 65536, "core": 0, "memory": "64G", "memory_max": "32G", "cpu_max": 4}"""

    nofile: Union[int, str, None] = key(None, "Open files (ulimit -n); a number or unlimited")
    nproc: Union[int, str, None] = key(None, "Processes and threads of the user (ulimit -u)")
    core: Union[int, str, None] = key(None, "Size of core dumps (ulimit -c): bytes, 500M, unlimited; 0 = none")
    memory: Union[int, str, None] = key(None, "Address space of each process (ulimit -v): bytes or 64G")
    memlock: Union[int, str, None] = key(None, "Locked memory (ulimit -l); RDMA needs unlimited")
    stack: Union[int, str, None] = key(None, "Stack of each process (ulimit -s): bytes or 64M")
    fsize: Union[int, str, None] = key(None, "Maximum file size (ulimit -f): bytes or 10G")
    cpu_s: Union[int, str, None] = key(None, "CPU seconds of each process (ulimit -t)")
    memory_max: Union[int, str, None] = key(
        None, "Memory of the whole process tree, by cgroup v2: bytes or 32G; reported if it cannot be enforced"
    )
    cpu_max: Union[float, None] = key(
        None,
        "CPUs of the whole process tree, by cgroup v2, e.g. 2.5; reported if it cannot be enforced",
    )


@record
class ContainerSpec:
    """{"image": "docker.io/pytorch/pytorch:2.4.0", "mounts": ["/data:/data:ro"], "shm_size": "16g"}"""

    image: str = key("", "Image name, as for podman run")
    mounts: list[str] = key(
        [], "Directories of the host: /data:/data or /data:/data:ro; working_dir is mounted at its own path"
    )
    gpus: int = key(0, "The same as gpus beside container: number of GPUs, passed by CDI")
    network: str = key("host", "Value of podman's --network: host, none, or the name of a network")
    user: str = key("", "User inside the container: name, uid or uid:gid; unset: the user of the image")
    shm_size: str = key("", "Size of /dev/shm, like 16g; unset: podman's 64m")
    options: list[str] = key([], "Additional options of podman run, one word each: --ipc=host")
    pull: Literal["missing", "always", "never"] = key(
        "missing", "When to pull the image; registry logins are those of the host (podman login)"
    )


@record
class TerminalSpec:
    """{"rows": 24, "columns": 80}"""

    rows: int = key(24, "Height of the terminal, in lines")
    columns: int = key(80, "Width of the terminal, in characters")


@record
class WorkerSpec:
    """One supervised command. {"command": "python train.py --epochs 100", "working_dir": "~/project", "env": {}}

    `command`: a string is split into shell words (or passed to /bin/sh -c if `shell` is true); a list is used
    unchanged.
    """

    command: Union[str, list[str]] = key(
        "",
        "Command: a string is split into shell words, a list is used unchanged; ~ and $VARIABLES need shell: true",
    )
    working_dir: str = key(
        "", "Working directory; ~ is expanded on the host. Unset: the user's home (a launcher: its own directory)"
    )
    env: dict[str, str] = key(dict, "Environment variables; they override env_file and the host environment")
    shell: bool = key(False, "true: run the command by /bin/sh (pipes, &&, $VARIABLES)")
    stderr: Literal["merge", "separate"] = key("merge", "One log in order of output, or a separate log for stderr")
    tty: Union[TerminalSpec, None] = key(
        None, "true: run the command on a pseudo-terminal; its output is in the same log. {rows, columns}: size"
    )
    restart: RestartPolicy = key(RestartPolicy, "Restart policy")
    stop_signal: str = key("TERM", "First signal of a stop, sent to the whole process tree")
    stop_grace_s: float = key(10.0, "Seconds from the stop signal to SIGKILL")
    health: list[HealthCheck] = key([], "Health checks")
    labels: dict[str, str] = key(dict, "Labels, for selectors: invoke stop team=vision")
    group: str = key("", "Group of the worker, for selectors: invoke stop group=trainers")
    env_file: Union[str, list[str]] = key(
        "",
        "File or files of NAME=VALUE lines, read at each start; relative to working_dir, later files take precedence",
    )
    venv: str = key("", "Python virtual environment, activated for the command; relative to working_dir")
    conda: str = key("", "Conda environment: a name, or a path")
    setup: list[str] = key(
        [], "Shell lines before the command, in the same shell; the first failing line ends the attempt"
    )
    user: str = key(
        "",
        "Run as this user, with its groups, home and environment; needs an agent that runs as root",
    )
    umask: str = key("", 'File mode creation mask, octal and in quotes: "027"')
    limits: Limits = key(Limits, "Resource limits")
    pre_start: list[Hook] = key([], "Hooks before each start, run in order; a failing hook fails the attempt")
    post_stop: list[Hook] = key(
        [], "Hooks after each end; PROCGUARD_EXIT_CODE or PROCGUARD_EXIT_SIGNAL contains the result"
    )
    gpus: int = key(0, "Number of GPUs to allocate, set in CUDA_VISIBLE_DEVICES; 0: no allocation")
    evidence_signal: str = key(
        "", "Signal sent before a health check restarts the worker, so that it prints its stacks (faulthandler): USR1"
    )
    oneshot: bool = key(False, "Run once to completion: a successful exit is final, independent of restart.policy")
    max_run_s: Union[float, None] = key(
        None, "Maximum duration of an attempt, in seconds; then it is stopped and failed with the cause time_limit"
    )
    on_partition: Literal["keep", "fence"] = key(
        "keep",
        "While the host cannot reach the manager: keep the worker running, or fence: stop it when its lease "
        "expires, so that it may be started elsewhere",
    )
    lease_s: float = key(60.0, "on_partition: fence: seconds that it keeps running without the manager")
    container: Union[ContainerSpec, None] = key(
        None, "Run the command in a podman container; without a command, the command of the image is run"
    )
    metrics: dict[str, str] = key(
        dict,
        "Numbers to read from the output: a name and a regular expression (RE2) with ( ) around the number; with a "
        "second ( ) around the total it is progress",
    )
    requires: dict[str, str] = key(dict, "Labels that a spare must have to run this worker (procguard_labels)")


# Keys on which a running child depends: a change needs a restart; changes of other keys apply immediately.
LAUNCH_FIELDS = ("command", "working_dir", "env", "shell", "stderr")
# Added later. They are included only if they are set; otherwise an upgrade would mark every running child as outdated.
LATER_LAUNCH_FIELDS = (
    "gpus", "env_file", "venv", "conda", "setup", "user", "umask", "limits", "pre_start", "container", "tty",
)  # fmt: skip
