"""A worker in a podman container: the commands that start and remove it, and its processes while it runs.

The container is owned like a plain command: `podman run --detach` is the last step before the command, and exits.
Below this runner, which is a subreaper, remain conmon and the job as its child. conmon exits with the job's exit code
and is the process that is awaited. If conmon is killed, the job becomes a child of this runner and continues. The job
writes directly to the worker's log (--log-driver=passthrough).

At most one container exists: its name contains the fleet and the worker, podman assigns a name once, and --replace
ends the container that has it. This happens after everything of a previous attempt was found by its mark and ended.
A fenced worker's container joins a pid namespace that ends with this runner (pid_namespace.py).
Imported only for workers with a container; knows no states.
"""

from __future__ import annotations

import os
import zlib

from remote_agent.protocol import reasons
from remote_agent.protocol.reasons import because
from remote_agent.runner import environment
from remote_agent.runner import launch as child
from remote_agent.runner.attempt import Attempt
from remote_agent.runner.task.assignment import Hook, TaskAssignment
from remote_agent.system import paths, processes
from remote_agent.system.processes import Identity

PULL_S = 6 * 3600.0  # an image of 30 GB over a slow line
RUN_S = 120.0
REMOVE_S = 60.0
RUN, REMOVE = "podman run", "podman rm"  # the kinds of steps, for messages
SIGNALLED = 128  # conmon ends with this and the signal's number


def name_of(worker_dir: str) -> str:
    """Of the one container that this worker may have on this host."""
    fleet = os.path.basename(os.path.dirname(os.path.dirname(os.path.dirname(worker_dir))))
    fleet = "".join(letter for letter in fleet if letter.isalnum() or letter in "_.-") or "fleet"
    return f"procguard-{fleet}-{os.path.basename(worker_dir)}-{zlib.crc32(os.fsencode(worker_dir)):08x}"


def run_step(container: dict[str, object]) -> Hook:
    pulls = container.get("pull") != "never"
    shown = reasons.fields("shown", because("hook.podman_run", image=str(container.get("image"))))
    return {"kind": RUN, "argv": ["podman"], **shown, "timeout_s": PULL_S if pulls else RUN_S}


def remove_step(container: dict[str, object]) -> Hook:
    """Also after a kill: what podman knows of a container whose conmon was killed keeps its mounts."""
    shown = reasons.fields("shown", because("hook.podman_remove"))
    return {"kind": REMOVE, "argv": ["podman"], **shown, "timeout_s": REMOVE_S, "always": True}


# podman refuses the first time where conmon was killed: only then it notes that the container has ended.
_REMOVE = """command -v podman || exit 0
for n in 1 2 3 4 5; do podman rm --force --ignore --time=0 "$1" && exit 0; sleep 0.2; done
exit 1"""


def steps(container: dict[str, object], number: int, removed: bool) -> list[Hook]:
    """Before the command of attempt `number`, in this order. `removed`: that of the attempt before it is gone."""
    run = run_step(container)
    return [run] if number <= 1 or removed else [remove_step(container), run]


def build(
    step: Hook, assignment: TaskAssignment, base_env: dict[str, str], number: int, cookie: str, worker_dir: str
) -> child.Launch:
    """The client's words, in the host's environment: the job's own variables are not the client's. Raises NotStarted,
    or OSError where the disk takes no file of them."""
    env = {**base_env, processes.COOKIE_VARIABLE: f"{cookie}-{number}"}
    container = assignment.start["container"]
    assert isinstance(container, dict)
    if step["kind"] == REMOVE:
        errors = os.path.join(worker_dir, "container.err")
        _unlink(errors)
        return child.Launch(["/bin/sh", "-c", _REMOVE, "sh", name_of(worker_dir)], "", env, errors)
    if assignment.values.get("error"):
        raise child.NotStarted(reasons.read(assignment.values, "error"))
    _forget(worker_dir)
    _write_env(assignment, number, f"{cookie}-{number}", worker_dir)
    argv = ["podman", "run", "--detach", "--replace", f"--name={name_of(worker_dir)}", "--log-driver=passthrough"]
    argv += [f"--pidfile={_pid_file(worker_dir)}", f"--conmon-pidfile={_conmon_file(worker_dir)}"]
    argv += [f"--env-file={_env_file(worker_dir)}", f"--pull={container.get('pull') or 'missing'}"]
    fleet = os.path.basename(os.path.dirname(os.path.dirname(os.path.dirname(worker_dir))))
    for label, value in (
        ("fleet", fleet), ("worker", container.get("worker")), ("epoch", assignment.epoch), ("attempt", number),
    ):  # fmt: skip
        argv.append(f"--label=procguard.{label}={value}")
    options, command = container.get("options"), container.get("command")
    argv += [str(word) for word in options] if isinstance(options, list) else []
    argv.append(str(container.get("image")))
    argv += [str(word) for word in command] if isinstance(command, list) else []
    return child.Launch(argv, "", env, paths.log_file(worker_dir, number))


def join(launch: child.Launch, namespace: str) -> None:
    """A fenced one: in the pid namespace at this path. Until it is there, the kernel ends podman with this runner."""
    launch.argv.insert(2, f"--pid=ns:{namespace}")
    launch.dies_with_runner = True


def _write_env(assignment: TaskAssignment, number: int, cookie: str, worker_dir: str) -> None:
    """The job's variables, in a file of the agent's user: secrets are nobody's to read in a command line."""
    own = assignment.spec.get("env")
    declared = {str(name): str(value) for name, value in own.items()} if isinstance(own, dict) else {}
    env, _ = environment.compose({}, {"env_files": assignment.start.get("env_files")}, declared, "")
    given = assignment.values.get("env")
    env.update({str(name): str(value) for name, value in given.items()} if isinstance(given, dict) else {})
    env.setdefault("PYTHONUNBUFFERED", "1")
    env.update(
        PROCGUARD_WORKER_ID=str(assignment.values.get("worker_id", "")),
        PROCGUARD_ATTEMPT=str(number),
        PROCGUARD_EPOCH=str(assignment.epoch),
    )
    env[processes.COOKIE_VARIABLE] = cookie
    for name, value in env.items():
        if "\n" in value or "\r" in value:
            raise child.NotStarted(because("start.container_env", name=name))
    text = "".join(f"{name}={value}\n" for name, value in env.items())
    paths.write_atomic(_env_file(worker_dir), text.encode("utf-8", "surrogateescape"))


# ------------------------------------------------------------------------------------------------ once it runs


class Job:
    """The processes of a container that runs below this runner."""

    def __init__(self, conmon: int, first: Identity) -> None:
        self.conmon = conmon
        self.first = first  # its pid 1: with it the kernel ends its whole pid namespace


def adopt(attempt: Attempt, worker_dir: str) -> Job | None:
    """podman has ended well: its container is the attempt's from now on. None: `attempt` says why it is not."""
    conmon, first = _read_pid(_conmon_file(worker_dir)), _read_pid(_pid_file(worker_dir))
    if not conmon or not first:
        attempt.cause, attempt.detail = "start_timeout", because("start.container_pids")
        return None
    found = processes.read_process(first)
    start = found.start if found is not None and found.ppid in (conmon, os.getpid()) else 0
    attempt.adopt(conmon, first, start)
    return Job(conmon, Identity(first, start, processes.boot_id()))


def members_of(first: Identity) -> list[Identity]:
    """The job's own processes: what a stop signal is for. conmon and its helpers end with them."""
    if not processes.is_alive(first):
        return []
    below = processes.descendants({first.pid}, processes.all_processes())
    return [first, *(Identity(one.pid, one.start, first.boot_id) for one in below)]


def _read_pid(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(32).strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text.isdigit() else 0


def _forget(worker_dir: str) -> None:
    _unlink(_pid_file(worker_dir))
    _unlink(_conmon_file(worker_dir))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _pid_file(worker_dir: str) -> str:
    return os.path.join(worker_dir, "container.pid")


def _conmon_file(worker_dir: str) -> str:
    return os.path.join(worker_dir, "conmon.pid")


def _env_file(worker_dir: str) -> str:
    return os.path.join(worker_dir, "container.env")
