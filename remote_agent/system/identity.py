"""Switches permanently to a worker's user, and runs queries with that user's rights.

`run_as` is the result of resolving `user:` in agent/spec_file.py: {"name", "uid", "gid", "groups", "home", "shell"}.
Under a root agent, all actions for a worker (start, checks, reading its files) are done by a process that has called
`become`, so that a link, pipe or program planted by the user has no effect. Imported only for workers
with their own user; knows no states.
"""

from __future__ import annotations

import errno
import json
import os
import select
import time

from remote_agent.protocol import reasons
from remote_agent.system import processes
from remote_agent.system.signals import signal

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_S = 5.0  # timeout of a call that hangs (for example on a FUSE file system of the user)
DIES_WITHIN_S = 1.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
PR_SET_DUMPABLE = 4
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271}
KEYCTL_JOIN_SESSION_KEYRING = 1
# The base of a user's environment. Nothing else of the agent's is included, because it may contain root's secrets.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OF_THE_HOST = ("LANG", "LANGUAGE", "TZ")  # together with LC_*


def become(run_as: dict[str, object]) -> None:
    """Switch permanently to that user, with its groups and without root's kernel key rings. Raises OSError."""
    leave_key_ring()
    groups = run_as["groups"]
    assert isinstance(groups, list)
    os.setgroups(groups)
    os.setgid(int(str(run_as["gid"])))
    os.setuid(int(str(run_as["uid"])))
    processes.libc().prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # the user must not read this process's memory


def leave_key_ring() -> None:
    """Leave the inherited session key ring, whose holder may use its keys regardless of their owner."""
    number = SYS_KEYCTL.get(os.uname().machine)
    if number is not None:
        processes.libc().syscall(number, KEYCTL_JOIN_SESSION_KEYRING, None)


def base_environment(run_as: dict[str, object], of_host: dict[str, str]) -> dict[str, str]:
    """The base environment of that user's workers. `of_host`: the agent's recorded environment."""
    name = str(run_as.get("name"))
    env = {key: value for key, value in of_host.items() if key in OF_THE_HOST or key.startswith("LC_")}
    shell = str(run_as.get("shell") or "/bin/sh")
    env.update(HOME=str(run_as.get("home")), SHELL=shell, USER=name, LOGNAME=name, PATH=PATH)
    return env


def ask(run_as: dict[str, object], question: Callable[[], object], timeout_s: float = ANSWER_S) -> object:
    """Run `question()` in a child process with that user's rights and return its result (a JSON value).

    For single-threaded processes. Raises ValueError with the text of a ValueError of `question`, otherwise OSError,
    also if the user stops or kills the process.
    """
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer(run_as, question, writable, os.getppid())  # never returns
    os.close(writable)
    try:
        said = _read_all(readable, timeout_s)
    finally:
        os.close(readable)
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is still this process's
        _collect(pid)
    who = f"user {run_as.get('name')}"
    if said is None:
        raise OSError(errno.ETIMEDOUT, f"no answer within {timeout_s:g} s from its files, read as {who}")
    try:
        kind, value = json.loads(said)
    except ValueError:
        raise OSError(errno.EIO, f"its files could not be read as {who}: the reading process was ended") from None
    if kind == "wrong":
        raise ValueError(reasons.read(value))
    if kind != "is":
        raise OSError(errno.EIO, f"its files could not be read as {who}: {value}")
    return value


def _collect(pid: int) -> None:
    """Reap the child; if it hangs in the kernel, it is reaped later with the other children."""
    deadline = time.monotonic() + DIES_WITHIN_S
    while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.002)


def _answer(run_as: dict[str, object], question: Callable[[], object], writable: int, parent: int) -> None:
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(writable, 3)
        os.closerange(4, max([int(name) for name in os.listdir("/proc/self/fd")]) + 1)  # locks and sockets among them
        become(run_as)
        processes.die_with_parent(parent)
        try:
            answer = ["is", question()]
        except ValueError as exc:
            answer = ["wrong", reasons.fields("reason", reasons.of_exception(exc))]
        data = memoryview(json.dumps(answer).encode())
        while data:
            data = data[os.write(3, data) :]
    except BaseException as exc:  # after a fork nothing may escape into the caller's own code
        os.write(3, json.dumps(["failed", f"{type(exc).__name__}: {exc}"]).encode())
    finally:
        os._exit(0)


def _read_all(readable: int, timeout_s: float) -> bytes | None:
    """All data up to the end; None if it did not end in time or is too long."""
    deadline = time.monotonic() + timeout_s
    said = b""
    poller = select.poll()
    poller.register(readable, select.POLLIN)
    while len(said) <= MAX_ANSWER_BYTES:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poller.poll(left_s * 1000):
            return None
        data = os.read(readable, 65536)
        if not data:
            return said
        said += data
    return None
