"""Processes of other pid namespaces as seen from outside: their identity, state and ports.

Reads /proc only. A process is (pid, start time): nothing is ever signalled by number alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.fleet import leftovers


@dataclass(frozen=True)
class HostProcess:
    """A process of a host. `pid` as the host sees it, `outer_pid` as this machine does."""

    pid: int
    outer_pid: int
    parent_outer_pid: int
    user_id: int
    command: str
    started: str  # with outer_pid: its identity

    def is_alive(self) -> bool:
        return leftovers.is_alive(self.outer_pid, self.started)


def listens(pid: int, port: int) -> bool:
    """Whether something in the network namespace of `pid` accepts TCP connections on `port`."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(words[1].endswith(f":{port:04X}") and words[3] == "0A" for words in map(str.split, lines))


def state_of(pid: int) -> str:
    """The letter of /proc/<pid>/stat, "" when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def read_process(outer_pid: int) -> HostProcess | None:
    """None when it is gone, or a zombie."""
    started = leftovers.start_time(outer_pid)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{outer_pid}/status").read_text().splitlines())
    words = Path(f"/proc/{outer_pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    if started is None:
        return None
    return HostProcess(
        pid=int(status["NSpid"].split()[-1]),
        outer_pid=outer_pid,
        parent_outer_pid=int(status["PPid"]),
        user_id=int(status["Uid"].split()[0]),
        command=b" ".join(words).decode(errors="replace"),
        started=started,
    )
