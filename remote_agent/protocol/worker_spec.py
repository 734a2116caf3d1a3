"""What a worker is: every key an inventory may give one, with its default and what it means.

The one place of these words: scripts/worker_schema.py turns the descriptions here into docs/worker.schema.json, and
docs/worker.md shows each key with an example. Part of the wire (messages.py re-exports it): fields are only ever added.
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
        "on-failure", "What is restarted: failures only, whatever ended, or nothing"
    )
    # None: the manager's recovery.max_recovery_attempts (filled in before it reaches an agent).
    max_attempts: Union[int, None] = key(
        None, "Automatic restarts before the worker is failed; 0 = none, unset = recovery.max_recovery_attempts"
    )
    backoff_s: list[float] = key([0.0, 5.0, 30.0, 120.0, 300.0], "Pauses before the restarts; the last one repeats")
    jitter: float = key(0.25, "Each pause is multiplied by 1 ± jitter")
    start_secs: float = key(1.0, "Alive this long = running")
    start_timeout_s: float = key(
        30.0, "Not running by then = a failed attempt; where left at its default, recovery.recovery_timeout"
    )
    healthy_after_s: float = key(600.0, "Running this long gives the restart budget back")
    success_exit_codes: list[int] = key([0], "Exit codes that mean it finished well")


@record
class HealthCheck:
    """{"type": "http", "url": "http://127.0.0.1:8000/", "interval_s": 10, "failures": 3, "action": "alert"}"""

    type: Literal["http", "tcp", "exec", "log_silence", "heartbeat_file"] = key("http", "What is looked at")
    url: str = key("", "http: the address that must answer")
    port: int = key(0, "tcp: the port on 127.0.0.1 that must accept a connection")
    command: str = key("", "exec: shell words, run as the worker's user in its directory; exit code 0 is healthy")
    path: str = key("", "heartbeat_file: the file that the job touches or writes; relative to its working_dir")
    max_age_s: Union[float, None] = key(
        None,
        "log_silence, heartbeat_file: unchanged for longer is unhealthy. Unset: heartbeat_file 60 s, log_silence what "
        "the job's own rhythm says",
    )
    interval_s: float = key(10.0, "Seconds between two looks")
    timeout_s: float = key(3.0, "No answer within this time = a failure")
    failures: int = key(3, "This many failures in a row = failing")
    start_grace_s: float = key(10.0, "No look during the first seconds of an attempt")
    action: Literal["alert", "restart"] = key("alert", "What failing leads to: it is shown, or the worker is restarted")


@record
class Hook:
    """{"command": "rsync -a /data/ /scratch/", "timeout_s": 600}"""

    command: Union[str, list[str]] = key("", "A string is a line for /bin/sh, a list is executed as it is")
    timeout_s: float = key(30.0, "Longer than this = failed; the hook's processes are ended")


@record
class Limits:
    """{"nofile": 65536, "core": 0, "memory": "64G", "memory_max": "32G", "cpu_max": 4}"""

    nofile: Union[int, str, None] = key(None, "Open files (ulimit -n); a number or unlimited")
    nproc: Union[int, str, None] = key(None, "Processes and threads of the user (ulimit -u)")
    core: Union[int, str, None] = key(None, "Size of core dumps (ulimit -c): bytes, 500M, unlimited; 0 = none")
    memory: Union[int, str, None] = key(None, "Address space of each process (ulimit -v): bytes or 64G")
    memlock: Union[int, str, None] = key(None, "Memory that may be locked (ulimit -l); RDMA wants unlimited")
    stack: Union[int, str, None] = key(None, "Stack of each process (ulimit -s): bytes or 64M")
    fsize: Union[int, str, None] = key(None, "Largest file that may be written (ulimit -f): bytes or 10G")
    cpu_s: Union[int, str, None] = key(None, "CPU seconds of each process (ulimit -t)")
    memory_max: Union[int, str, None] = key(
        None, "Memory of the whole process tree, by cgroup v2: bytes or 32G; where it cannot be enforced, it is said"
    )
    cpu_max: Union[float, None] = key(
        None,
        "CPUs for the whole process tree, by cgroup v2: 2.5 = two and a half; where it cannot be enforced, it is said",
    )


@record
class ContainerSpec:
    """{"image": "docker.io/pytorch/pytorch:2.4.0", "mounts": ["/data:/data:ro"], "shm_size": "16g"}"""

    image: str = key("", "The image, as podman run takes it")
    mounts: list[str] = key(
        [], "Directories of the host: /data:/data or /data:/data:ro; working_dir is mounted by itself, at its own path"
    )
    gpus: int = key(0, "The same as gpus beside container: number of GPUs, passed by CDI")
    network: str = key("host", "As podman's --network: host, none, or the name of a network")
    user: str = key("", "The user inside the container: a name, a uid or uid:gid; unset: the image's")
    shm_size: str = key("", "Size of /dev/shm, like 16g; unset: podman's 64m")
    options: list[str] = key([], "More options of podman run, each in one word: --ipc=host")
    pull: Literal["missing", "always", "never"] = key(
        "missing", "When the image is fetched at a start; log-ins to registries are the host's (podman login)"
    )


@record
class WorkerSpec:
    """One supervised command. {"command": "python train.py --epochs 100", "working_dir": "~/project", "env": {}}

    `command`: a string is split into shell words (or handed to /bin/sh -c where `shell`), a list is taken as it is.
    """

    command: Union[str, list[str]] = key(
        "",
        "What to run: a string is split into shell words, a list is taken as it is; ~ and $VARIABLES need shell: true",
    )
    working_dir: str = key(
        "", "Where it runs; ~ is expanded on the host. Unset: the user's home (a launcher: its own directory)"
    )
    env: dict[str, str] = key(dict, "Environment variables; they win over env_file and the host's")
    shell: bool = key(False, "true: the command is a line for /bin/sh (pipes, &&, $VARIABLES)")
    stderr: Literal["merge", "separate"] = key(
        "merge", "One log in the order it was written, or stderr in one of its own"
    )
    restart: RestartPolicy = key(RestartPolicy, "What follows an end")
    stop_signal: str = key("TERM", "The first signal of a stop, to the whole process tree")
    stop_grace_s: float = key(10.0, "Seconds from the stop signal to SIGKILL")
    health: list[HealthCheck] = key([], "Health checks")
    labels: dict[str, str] = key(dict, "Your own marks, for selectors: invoke stop team=vision")
    group: str = key("", "The group it belongs to, for selectors: invoke stop group=trainers")
    env_file: Union[str, list[str]] = key(
        "", "File, or files, of NAME=VALUE lines, read at each start; relative to working_dir, a later one wins"
    )
    venv: str = key("", "Python virtual environment to run in, as its activate does; relative to working_dir")
    conda: str = key("", "Conda environment to run in: its name, wherever conda lives, or its path")
    setup: list[str] = key(
        [], "Shell lines before the command, in the same shell; the first that fails ends the attempt"
    )
    user: str = key(
        "",
        "Run as this user, with its groups, its home and an environment of its own; needs an agent that runs as root",
    )
    umask: str = key("", 'Permissions that new files do not get, octal and in quotes: "027"')
    limits: Limits = key(Limits, "Resource limits")
    pre_start: list[Hook] = key([], "Before each start: one after the other; one that fails fails the attempt")
    post_stop: list[Hook] = key(
        [], "After each end, whatever it was; PROCGUARD_EXIT_CODE or PROCGUARD_EXIT_SIGNAL says which"
    )
    gpus: int = key(0, "So many GPUs are handed out, by CUDA_VISIBLE_DEVICES; 0 = left as it is")
    evidence_signal: str = key(
        "", "Sent before a health check ends the worker, so that it prints its stacks (faulthandler): USR1"
    )
    oneshot: bool = key(False, "Run once to completion: a successful end is final, whatever restart.policy says")
    on_partition: Literal["keep", "fence"] = key(
        "keep",
        "While its host is cut off from the manager: keep it running, whatever comes, or fence: it is stopped when its "
        "lease ends, so that it may be started elsewhere",
    )
    lease_s: float = key(60.0, "on_partition: fence: it runs on for so long without word from the manager")
    container: Union[ContainerSpec, None] = key(
        None, "Run the command in a container, by podman; without a command the image's own is run"
    )
    requires: dict[str, str] = key(dict, "Labels a spare host must have to take this worker over (procguard_labels)")


# What a running child depends on: a change here needs a restart, a change elsewhere applies at once.
LAUNCH_FIELDS = ("command", "working_dir", "env", "shell", "stderr")
# Added later: they count only where they are used, or an upgrade would call every running child outdated.
LATER_LAUNCH_FIELDS = (
    "gpus", "env_file", "venv", "conda", "setup", "user", "umask", "limits", "pre_start", "container",
)  # fmt: skip
