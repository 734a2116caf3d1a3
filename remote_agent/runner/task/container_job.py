"""A container that runs below this runner: its processes, its control groups, and kills by the OOM killer in it.

podman writes their ids to files beside spec.json. Imported only for workers with a container; knows no states and
starts nothing.
"""

from __future__ import annotations

import os

from remote_agent.protocol.reasons import because
from remote_agent.runner.attempt import Attempt
from remote_agent.system import cgroup, paths, podman, processes
from remote_agent.system.oom import OomCounter
from remote_agent.system.processes import Identity
from remote_agent.system.signals import signal

GROUP = "libpod-"  # how podman names a container's control group
MAX_COMMAND_BYTES = 65536


class Job:
    """`conmon` is awaited: it ends with the exit code of `first`, the container's first process. `fd` is readable once
    that has ended (-1: nothing to wait for)."""

    def __init__(self, conmon: int, first: Identity) -> None:
        self.conmon = conmon
        self.first = first
        self.ooms = JobOoms(first.pid, _bundle(conmon))
        self.fd = _pidfd(first)

    def check(self) -> None:
        """Count OOM kills once the job has ended. Called after every event, because podman removes the job's control
        group within tenths of a second."""
        if self.fd >= 0 and not processes.is_alive(self.first):
            self.ooms.read()
            os.close(self.fd)
            self.fd = -1


class JobOoms(OomCounter):
    """Counts the OOM kills of a container, also after its control group was removed. `before`: the count before the
    container began. `bundle`: folder in which conmon creates a file at an OOM kill (not with cgroup v1)."""

    def __init__(self, first: int, bundle: str) -> None:
        super().__init__(first)
        self._note = os.path.join(bundle, "oom") if bundle else ""
        count = super().read()
        self.before = 0 if GROUP in self._path else count

    def read(self) -> int:
        return super().read() + bool(self._note and os.path.exists(self._note))


def adopt(attempt: Attempt, worker_dir: str) -> Job | None:
    """Adopt the container as the attempt's process after podman has succeeded. None: `attempt` has the reason for the
    failure."""
    conmon, first = _read_pid(conmon_file(worker_dir)), _read_pid(pid_file(worker_dir))
    if not conmon or not first:
        attempt.cause, attempt.detail = "start_timeout", because("start.container_pids")
        return None
    found = processes.read_process(first)
    start = found.start if found is not None and found.ppid in (conmon, os.getpid()) else 0
    job = Job(conmon, Identity(first, start, processes.boot_id()))
    attempt.adopt(conmon, first, start, job.ooms, job.ooms.before)
    _note_groups(first if start else 0, worker_dir)
    return job


def members_of(first: Identity) -> list[Identity]:
    """The job's own processes, which receive stop signals. conmon and its helpers end with them."""
    if not processes.is_alive(first):
        return []
    below = processes.descendants({first.pid}, processes.all_processes())
    return [first, *(Identity(one.pid, one.start, first.boot_id) for one in below)]


def end_pause(env: dict[str, str]) -> None:
    """End podman's pause process if it is a child of this runner, where it would count as part of the job. For users
    other than root, podman keeps this sleeping process to find its namespaces again, and starts a new one if it is
    missing. `env`: of podman."""
    pid = _read_pid(os.path.join(podman.runtime_directory(env), "libpod", "tmp", "pause.pid"))
    found = processes.read_process(pid) if pid else None
    if found is not None and found.ppid == os.getpid():
        processes.send_signal(Identity(pid, found.start, processes.boot_id()), signal.SIGKILL)


def _note_groups(first: int, worker_dir: str) -> None:
    """Write down the container's control groups, innermost first, for its removal: podman leaves them behind if conmon
    was killed."""
    found = []
    for innermost in cgroup.directories_of(first) if first else ():
        directory = innermost
        while GROUP in directory:  # the container's group and those that the runtime created in it
            found.append(directory)
            directory = os.path.dirname(directory)
    try:
        paths.write_atomic(groups_file(worker_dir), "".join(f"{one}\n" for one in found).encode())
    except OSError:  # a full disk: podman is queried for them later
        unlink(groups_file(worker_dir))


def _bundle(conmon: int) -> str:
    """The directory of the container's files, from conmon's command line; "": it has ended."""
    try:
        with open(f"/proc/{conmon}/cmdline", "rb") as file:
            words = file.read(MAX_COMMAND_BYTES).split(b"\0")
        return os.fsdecode(words[words.index(b"-b") + 1])
    except (OSError, ValueError, IndexError):
        return ""


def _pidfd(one: Identity) -> int:
    if not hasattr(os, "pidfd_open"):
        return -1
    try:
        descriptor = os.pidfd_open(one.pid)
    except OSError:
        return -1
    if processes.is_alive(one):
        return descriptor
    os.close(descriptor)
    return -1


# ------------------------------------------------------------------------------------------------------------- files


def _read_pid(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(32).strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text.isdigit() else 0


def forget(worker_dir: str) -> None:
    """Delete the pid files of a former container."""
    unlink(pid_file(worker_dir))
    unlink(conmon_file(worker_dir))


def unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def pid_file(worker_dir: str) -> str:
    return os.path.join(worker_dir, "container.pid")


def conmon_file(worker_dir: str) -> str:
    return os.path.join(worker_dir, "conmon.pid")


def groups_file(worker_dir: str) -> str:
    return os.path.join(worker_dir, "container.groups")
