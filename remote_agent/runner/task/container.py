"""A worker in a podman container: the commands that start and remove it. While it runs, see container_job.py.

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
from remote_agent.protocol.reasons import Reason, because
from remote_agent.runner import environment
from remote_agent.runner import launch as child
from remote_agent.runner.task import container_job
from remote_agent.runner.task.assignment import Hook, TaskAssignment
from remote_agent.system import paths, podman, processes

PULL_S = 6 * 3600.0  # an image of 30 GB over a slow line
RUN_S = 120.0
REMOVE_S = 60.0
RUN, REMOVE = "podman run", "podman rm"  # kinds of steps, used in messages
# podman is written in Go. A start allocates less than 16 MB, of which 2 MB are live, and collects garbage four times by
# default. With 400, it collects first at 16 MB, and its heap is limited to five times what is live.
GO_GARBAGE = ("GOGC", "400")


def name_of(worker_dir: str) -> str:
    """The name of the only container that this worker may have on this host."""
    fleet = os.path.basename(os.path.dirname(os.path.dirname(os.path.dirname(worker_dir))))
    fleet = "".join(letter for letter in fleet if letter.isalnum() or letter in "_.-") or "fleet"
    return f"procguard-{fleet}-{os.path.basename(worker_dir)}-{zlib.crc32(os.fsencode(worker_dir)):08x}"


def run_step(container: dict[str, object]) -> Hook:
    pulls = container.get("pull") != "never"
    why = because("hook.podman_run", image=str(container.get("image")))
    shown = reasons.fields("shown", why.then(*_missing_gpus(container)))
    return {"kind": RUN, "argv": ["podman"], **shown, "timeout_s": PULL_S if pulls else RUN_S}


def _missing_gpus(container: dict[str, object]) -> list[Reason]:
    """Why podman will fail: assigned GPUs that no CDI specification lists."""
    options, prefix = container.get("options"), f"--device={podman.GPU_KIND}="
    words = [str(word) for word in options] if isinstance(options, list) else []
    wanted = [word[len(prefix) :] for word in words if word.startswith(prefix)]
    known = podman.gpus() if wanted else []
    missing = [name for name in wanted if name not in known]
    return [because("hook.podman_gpus", names=", ".join(missing))] if missing else []


def remove_step() -> Hook:
    """The hook that removes the container. Runs after a kill as well, because podman keeps the mounts of a container
    whose conmon was killed."""
    shown = reasons.fields("shown", because("hook.podman_remove"))
    return {"kind": REMOVE, "argv": ["podman"], **shown, "timeout_s": REMOVE_S, "always": True}


# If conmon was killed, podman refuses the first time, and only then records that the container has ended. Unless
# systemd does, nothing removes its control groups then: those listed in "$2", or those of its id. The kernel refuses to
# remove a group with processes.
_REMOVE = """command -v podman || exit 0
[ -s "$2" ] || podman inspect --type=container --format '{{.Id}}' "$1" 2>/dev/null | while read -r id; do
    for root in /sys/fs/cgroup /sys/fs/cgroup/*; do echo "$root/libpod_parent/libpod-$id"; done
done >"$2"
failed=1
for n in 1 2 3 4 5; do podman rm --force --ignore --time=0 "$1" && failed=0 && break; sleep 0.2; done
while read -r group; do rmdir "$group"; done <"$2" 2>/dev/null
rm -f "$2"
exit $failed"""


def steps(container: dict[str, object], number: int, removed: bool) -> list[Hook]:
    """The steps before the command of attempt `number`, in order. `removed`: the previous attempt's container is
    gone."""
    run = run_step(container)
    return [run] if number <= 1 or removed else [remove_step(), run]


def build(
    step: Hook, assignment: TaskAssignment, base_env: dict[str, str], number: int, cookie: str, worker_dir: str
) -> child.Launch:
    """The client's arguments, in the host's environment, because the job's own variables are not for the client. Raises
    NotStarted, or OSError if the file of variables cannot be written."""
    env = {**base_env, processes.COOKIE_VARIABLE: f"{cookie}-{number}"}
    if os.geteuid() != 0:  # the agent's session directory may be gone or may never have existed
        env["XDG_RUNTIME_DIR"] = podman.runtime_directory(base_env) or env.get("XDG_RUNTIME_DIR", "")
    container = assignment.start["container"]
    assert isinstance(container, dict)
    options, command = container.get("options"), container.get("command")
    words = [str(word) for word in options] if isinstance(options, list) else []
    if not any(word.startswith("--env-host") for word in words):  # the job would get it as well
        env.setdefault(*GO_GARBAGE)
    if step["kind"] == REMOVE:
        errors = os.path.join(worker_dir, "container.err")
        container_job.unlink(errors)
        removal = ["/bin/sh", "-c", _REMOVE, "sh", name_of(worker_dir), container_job.groups_file(worker_dir)]
        return child.Launch(removal, "", env, errors)
    if assignment.values.get("error"):
        raise child.NotStarted(reasons.read(assignment.values, "error"))
    container_job.forget(worker_dir)
    _write_env(assignment, number, f"{cookie}-{number}", worker_dir)
    argv = ["podman", "run", "--detach", "--replace", f"--name={name_of(worker_dir)}", "--log-driver=passthrough"]
    argv += [f"--pidfile={container_job.pid_file(worker_dir)}"]
    argv += [f"--conmon-pidfile={container_job.conmon_file(worker_dir)}"]
    argv += [f"--env-file={_env_file(worker_dir)}", f"--pull={container.get('pull') or 'missing'}"]
    fleet = os.path.basename(os.path.dirname(os.path.dirname(os.path.dirname(worker_dir))))
    for label, value in (
        ("fleet", fleet), ("worker", container.get("worker")), ("epoch", assignment.epoch), ("attempt", number),
    ):  # fmt: skip
        argv.append(f"--label=procguard.{label}={value}")
    argv += words
    argv.append(str(container.get("image")))
    argv += [str(word) for word in command] if isinstance(command, list) else []
    return child.Launch(argv, "", env, paths.log_file(worker_dir, number))


def join(launch: child.Launch, namespace: str) -> None:
    """Place a fenced container in the pid namespace at this path. Until it is inside, the kernel ends podman together
    with this runner."""
    launch.argv.insert(2, f"--pid=ns:{namespace}")
    launch.dies_with_runner = True


def _write_env(assignment: TaskAssignment, number: int, cookie: str, worker_dir: str) -> None:
    """Write the job's variables to a file of the agent's user, because command lines are readable by all users."""
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


def _env_file(worker_dir: str) -> str:
    return os.path.join(worker_dir, "container.env")
