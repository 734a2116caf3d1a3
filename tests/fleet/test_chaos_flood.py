"""Unauthenticated floods and slow readers attack the manager; its agents are not affected. The agents are simulated
with the real protocol (scripts/swarm); the flood is a process of its own (tests/flood.py). Needs no root."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.swarm import Swarm
from tests.chaos import ChaosReport
from tests.fleet.hosts import REPOSITORY
from tests.fleet.manager import END_WITH_US, Manager, own_environment
from tests.raw_websocket import RawWebSocket
from tests.waiting import wait_until

AGENTS = 20
ON_TIME_S = 2.0  # the interval of such a fleet's heartbeats: answered before the next one is due
MORE_MEMORY = 100 * 2**20
MORE_DISK = 64 * 2**20
NORMAL_WITHIN_S = 10.0
SHORT = (8.0, {"slow": 300, "endless": 2, "ids": 6_000, "websockets": 200})
LONG = (180.0, {"slow": 1_000, "endless": 4, "ids": 100_000, "websockets": 1_000})


class Watch:
    """The manager's memory and disk while something happens to it."""

    def __init__(self, pid: int, directory: Path) -> None:
        self._pid, self._directory = pid, directory
        self._before = (self._memory(), self._disk())
        self.more_memory = self.more_disk = 0

    def _memory(self) -> int:
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the manager is gone")

    def _disk(self) -> int:
        size = 0
        for path in self._directory.rglob("*"):
            with contextlib.suppress(OSError):
                size += path.stat().st_blocks * 512 if path.is_file() else 0
        return size

    def sample(self) -> None:
        self.more_memory = max(self.more_memory, self._memory() - self._before[0])
        self.more_disk = max(self.more_disk, self._disk() - self._before[1])


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(0.1):
            watch.sample()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def flood(port: int, seconds: float, wanted: dict[str, int]) -> Counter[str]:
    words = [*END_WITH_US, sys.executable, "-m", "tests.flood", str(port), str(seconds)]
    words += [f"{name}={number}" for name, number in wanted.items()]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds + 90, check=True)
    return Counter(json.loads(done.stdout))


def gauge(manager: Manager, name: str) -> float:
    text = manager.request("GET", "/metrics")[1].decode()
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


@pytest.mark.alone
@pytest.mark.chaos(20)
@pytest.mark.timeout(120)
def test_agents_notice_nothing_of_a_flood(tmp_path: Path, chaos_report: ChaosReport) -> None:
    seconds, wanted = LONG if chaos_report.long else SHORT
    memory, disk, worst, normal_after, beats = [], [], [], [], 0
    reported: Counter[str] = Counter()
    with Manager(tmp_path, own_environment(tmp_path), ["web.host=127.0.0.1"]) as manager:
        with Swarm(manager.url, agents=AGENTS, workers_per_agent=4, seed=20) as swarm:
            swarm.wait_running(60)
            assert manager.process is not None
            for _round in chaos_report.rounds(short=1, long=1):
                connected = swarm.summary().connects
                few = gauge(manager, "procguard_connections")
                began = time.monotonic()
                watch = Watch(manager.process.pid, tmp_path)
                with watched(watch):
                    reported += flood(manager.port, seconds, wanted)
                ended = time.monotonic()
                wait_until(
                    lambda few=few: usual(manager, few), NORMAL_WITHIN_S, f"as usual after {dict(reported)}", 0.2
                )
                normal_after.append(time.monotonic() - ended)
                during = [delay for sent, delay in samples(swarm) if began <= sent <= ended]
                assert len(during) >= 0.8 * AGENTS * (ended - began) / ON_TIME_S, "heartbeats are missing"
                beats += len(during)
                worst.append(max(during))
                memory.append(watch.more_memory)
                disk.append(watch.more_disk)
                summary = swarm.summary()
                assert (summary.connects, summary.losses, summary.failures) == (connected, 0, 0), "a connection was cut"
            lost = [event for event in manager.get("/api/events?limit=5000")["events"] if "suspect" in event["kind"]]
            assert lost == [] and not swarm.summary().statuses
    assert "Traceback" not in manager.console()
    assert max(worst) <= ON_TIME_S, worst
    assert max(memory) < MORE_MEMORY and max(disk) < MORE_DISK, (memory, disk)
    refused = reported["ids_401"] + reported["ids_429"]
    assert reported["ids_404"] and refused and reported["websockets_101"] and reported["slow_connections"]
    asked = sum(reported[name] for name in reported if name.startswith("ids_"))
    chaos_report(
        f"all {beats} heartbeats on time, the slowest answered after {1000 * max(worst):.0f} ms; memory +"
        f"{max(memory) >> 20} MB, disk +{max(disk) >> 20} MB; as usual {max(normal_after):.1f} s after. It was sent "
        f"{reported['endless_bytes'] / 2**30:.1f} GB of bodies without end and {asked:,} unknown ids, by "
        f"{reported['websockets_101']} portals that read nothing and {reported['slow_connections']:,} slow connections"
    )


def samples(swarm: Swarm) -> list[tuple[float, float]]:
    """(time of a heartbeat, duration of its response)"""
    flat = swarm.samples()["beats"]
    return list(zip(flat[::2], flat[1::2], strict=True))


def usual(manager: Manager, connections: float) -> bool:
    """Nothing of the flood remains, and the manager responds as before."""
    began = time.monotonic()
    with contextlib.suppress(OSError, AssertionError):
        client = RawWebSocket(manager.port, timeout_s=2)
        with client:
            client.say({"t": "sub", "topic": "workers", "seq": 0})
            assert client.until("snap")["items"]
        few = gauge(manager, "procguard_connections") <= connections + 4
        return few and manager.request("GET", "/api/hosts")[0] == 200 and time.monotonic() - began < 1
    return False
