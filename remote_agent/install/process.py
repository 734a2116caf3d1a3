"""The agent's process: checks whether it runs, starts it detached, stops it. Never affects a runner or its process.

Owns the start command line and reads `agent.lock` and `agent.pid`; knows no HTTP and no release.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from remote_agent.install.release import InstallError
from remote_agent.protocol.hints import Any, Optional
from remote_agent.system import paths
from remote_agent.system.locks import lock_held

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 8.0
KILL_TIMEOUT_S = 5.0
POLL_S = 0.02  # each check takes 0.1 ms of processor time


def arguments(python: str, agent_dir: str) -> "list[str]":
    """The agent's command line. -s -E -S: the user's Python configuration must not affect the agent. -m finds the
    module in the working directory."""
    return [python, "-s", "-E", "-S", "-m", "remote_agent", "run", "--dir", agent_dir]


def is_running(runtime_dir: str) -> bool:
    """Whether an agent holds its lock; a pid file alone is no proof."""
    return lock_held(paths.agent_lock(runtime_dir))


def pid(runtime_dir: str, agent_dir: str) -> Optional[int]:
    """The pid of the running agent, checked against its command line: a reused pid is never taken for it."""
    try:
        with open(paths.agent_pid_file(runtime_dir), encoding="utf-8") as file:
            number = int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return number if _is_agent(number, agent_dir) else None


def _is_agent(number: int, agent_dir: str) -> bool:
    try:
        with open(f"/proc/{number}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return b"remote_agent" in words and os.fsencode(agent_dir) in words


def is_frozen(number: int) -> bool:
    """Whether the process is stopped by a signal or a tracer (state T or t)."""
    return _state(number) in ("T", "t")


def _state(number: int) -> str:
    """The state letter in /proc/<pid>/stat; "" if there is no such process."""
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def start(config: "dict[str, Any]", agent_dir: str) -> int:
    """Start the agent in a session of its own and return its pid once it holds its lock.

    Raises InstallError with the end of agent.log if it does not start.
    """
    import subprocess

    log = paths.agent_log(agent_dir)
    with open(log, "ab") as errors:
        errors_from = errors.tell()
        process = subprocess.Popen(
            arguments(config["python"] or sys.executable, agent_dir),
            cwd=os.path.realpath(paths.current_release(agent_dir)),
            env=config.get("base_env") or None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # at its end, the SSH session sends SIGHUP only to its own session
            close_fds=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while pid(config["runtime_dir"], agent_dir) != process.pid:  # written once the lock is held
        if process.poll() is not None:
            raise InstallError("agent_died", f"the agent ended at once: {_tail(log, errors_from)}", f"see {log}")
        if time.monotonic() > deadline:
            raise InstallError("agent_silent", f"the agent did not start within {START_TIMEOUT_S:.0f} s", f"see {log}")
        time.sleep(POLL_S)
    return process.pid


def await_running(runtime_dir: str, agent_dir: str, timeout_s: float = START_TIMEOUT_S) -> bool:
    """Wait for an agent that systemd starts. Returns whether it runs."""
    deadline = time.monotonic() + timeout_s
    while not (is_running(runtime_dir) and pid(runtime_dir, agent_dir)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def stop(runtime_dir: str, agent_dir: str) -> bool:
    """Stop the agent: SIGTERM, then SIGKILL. True if one was running. Its runners and workers continue to run."""
    if not is_running(runtime_dir):
        return False
    for signum, timeout_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, KILL_TIMEOUT_S)):
        number = pid(runtime_dir, agent_dir)
        if number is not None:
            _send(number, signum, agent_dir)
        if _wait_stopped(runtime_dir, number, timeout_s if number is not None else 1.0):
            return True
    raise InstallError(
        "agent_unstoppable", f"the agent of {agent_dir} does not stop", "check it with: ps -ef | grep remote_agent"
    )


def _send(number: int, signum: int, agent_dir: str) -> None:
    """Send a signal, by a pidfd if the kernel supports it, so that the pid cannot be reused between check and
    signal."""
    try:
        if not hasattr(os, "pidfd_open"):
            os.kill(number, signum)
            return
        fd = os.pidfd_open(number)
        try:
            if _is_agent(number, agent_dir):
                signal.pidfd_send_signal(fd, signum)  # type: ignore[attr-defined,unused-ignore]
                if signum == signal.SIGTERM and is_frozen(number):
                    signal.pidfd_send_signal(fd, signal.SIGCONT)  # type: ignore[attr-defined,unused-ignore]
        finally:
            os.close(fd)
    except OSError:
        pass  # has already ended


def _wait_stopped(runtime_dir: str, number: Optional[int], timeout_s: float) -> bool:
    """Wait until the lock is free and the process has ended; until then it may still write its log."""
    deadline = time.monotonic() + timeout_s
    while is_running(runtime_dir) or (number is not None and _state(number) not in ("", "Z", "X")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _tail(path: str, start: int) -> str:
    """The last lines since `start`, on one line, at most 400 characters."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            text = file.read(64 * 1024).decode("utf-8", "replace")
    except OSError:
        return "no log"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:] or "no output"
