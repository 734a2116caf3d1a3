"""The chaos suite's oracle: the exact times at which each instance of a worker ran, because all test hosts share one
kernel.

Each job notes every STAMP_MS who it is and the kernel's monotonic time, in a file on its own host's disk; the file
outlives kills, cuts and power losses. Overlap is then computed from the files of all hosts, not guessed from what
anybody reports.

    <worker> <epoch> <attempt> <pid on the host> <monotonic ns>
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.processes import HostProcess
from tests.waiting import wait_until

STAMP_PATH = "/opt/jobs/stamp.py"
STAMPS_DIRECTORY = "/var/tmp/stamps"
STAMP_MS = 10

# SIGTERM ends it at once, or never with "stubborn"; each stamp is also a numbered line of its log.
STAMP = """
import os, signal, sys, time

worker = sys.argv[1]
if "stubborn" in sys.argv[2:]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
env = os.environ
head = "%s %s %s %d " % (worker, env.get("PROCGUARD_EPOCH", 0), env.get("PROCGUARD_ATTEMPT", 0), os.getpid())
os.makedirs("/var/tmp/stamps", exist_ok=True)
file = os.open("/var/tmp/stamps/" + worker, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
number = 0
while True:
    os.write(file, b"%s%d\\n" % (head.encode(), time.monotonic_ns()))
    if number % 10 == 0:
        os.write(1, b"%s line %d\\n" % (worker.encode(), number // 10))
    number += 1
    time.sleep(0.01)
"""


class Stamp(NamedTuple):
    host: str
    worker: str
    epoch: int
    attempt: int
    pid: int
    ns: int


@dataclass(frozen=True)
class Instance:
    """One process of a worker, from its first to its last stamp. `ns`: all of them, rising."""

    host: str
    worker: str
    epoch: int
    attempt: int
    pid: int
    ns: tuple[int, ...]

    def __repr__(self) -> str:
        span = f"{self.ns[0] / 1e9:.3f}..{self.ns[-1] / 1e9:.3f} s"
        return f"<{self.worker} on {self.host}, epoch {self.epoch}, attempt {self.attempt}, pid {self.pid}, {span}>"

    def spans(self, asleep_over_s: float | None = None) -> list[tuple[int, int]]:
        """When it ran, in ns. Silence beyond `asleep_over_s` means it was frozen; None: it counts as running."""
        if asleep_over_s is None:
            return [(self.ns[0], self.ns[-1])]
        spans, began = [], self.ns[0]
        for before, after in pairwise(self.ns):
            if after - before > asleep_over_s * 1e9:
                spans.append((began, before))
                began = after
        return [*spans, (began, self.ns[-1])]


# ---------------------------------------------------------------------------------------------------- on the hosts


def plant(fleet: Fleet) -> None:
    """Put the job on every host."""
    for host in fleet.hosts:
        path = host.path(STAMP_PATH)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)
        path.write_text(STAMP)


def stamping(worker_id: str, *, stubborn: bool = False, **spec: Any) -> dict[str, Any]:
    """A worker that stamps, as an inventory declares it. `stubborn`: only SIGKILL ends it."""
    command = f"python3 -I -S {STAMP_PATH} {worker_id}{' stubborn' if stubborn else ''}"
    return {"worker_id": worker_id, "command": command, **spec}


def children(host: FleetHost, worker_id: str) -> list[HostProcess]:
    """The living processes of this worker on this host."""
    return [one for one in host.processes(STAMP_PATH) if one.command.split()[4:5] == [worker_id]]


def only_child(host: FleetHost, worker_id: str, timeout_s: float = 20) -> HostProcess:
    def found() -> HostProcess | None:
        now = children(host, worker_id)
        assert len(now) <= 1, f"{worker_id} runs more than once on {host.name}: {now}"
        return now[0] if now else None

    process = wait_until(found, timeout_s, f"child of {worker_id} on {host.name}")
    assert process is not None
    return process


def read(hosts: Iterable[FleetHost], worker_id: str) -> list[Stamp]:
    """What the worker noted on these hosts so far; also of one that is off."""
    found = []
    for host in hosts:
        upper = host.directory / "upper"  # where an overlay writes: there whether the host is on or off
        path = upper / STAMPS_DIRECTORY.lstrip("/") / worker_id
        if path.exists():
            found += parse(host.name, path.read_text())
    return found


# ----------------------------------------------------------------------------------------------------- the analyser


def parse(host: str, text: str) -> list[Stamp]:
    """Whole lines only: a power cut may tear the last one."""
    stamps = []
    for line in text.split("\n")[:-1]:
        worker, epoch, attempt, pid, ns = line.split(" ")
        stamps.append(Stamp(host, worker, int(epoch), int(attempt), int(pid), int(ns)))
    return stamps


def instances(stamps: Iterable[Stamp]) -> list[Instance]:
    """The processes that made these stamps, in the order in which they began."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for stamp in stamps:
        found.setdefault(stamp[:5], []).append(stamp.ns)
    made = [Instance(*who, tuple(sorted(ns))) for who, ns in found.items()]
    return sorted(made, key=lambda one: one.ns[0])


def common_ms(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> float:
    """How long both ran, in ms."""
    pairs = [(max(a, c), min(b, d)) for a, b in one for c, d in other]
    return sum(max(0, end - begin) for begin, end in pairs) / 1e6


def overlap_ms(found: Iterable[Instance], asleep_over_s: float | None = None) -> float:
    """The time in which more than one instance of the same worker ran, summed over all pairs: 0 is the promise."""
    return sum(
        common_ms(one.spans(asleep_over_s), other.spans(asleep_over_s))
        for one, other in combinations(found, 2)
        if one.worker == other.worker
    )


def mixed_epochs_ms(found: Iterable[Instance]) -> float:
    """The time in which instances of different epochs ran, of a group's workers together."""
    return sum(
        common_ms(one.spans(), other.spans()) for one, other in combinations(found, 2) if one.epoch != other.epoch
    )
