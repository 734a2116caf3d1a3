"""What an agent costs its host: modules, memory, processor time, and that none of it grows with age.

`invoke bench memory` compares with supervisord; these bounds detect regressions.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from remote_agent.protocol.messages import RestartPolicy
from tests.agent_host import ROOT, Host, running
from tests.fake_manager import FakeManager
from tests.sizes import LONG
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

# Each costs memory for nothing that an agent always does; where one is needed, it is imported where it is used.
HEAVY = {"argparse", "hashlib", "_hashlib", "http.client", "email", "ssl", "_ssl", "logging", "asyncio", "urllib.parse"}
HEAVY |= {"random", "unicodedata", "multiprocessing", "tempfile", "concurrent.futures", "decimal", "urllib.request"}

CPYTHON = pytest.mark.skipif(sys.implementation.name != "cpython", reason="PyPy takes what it takes")


def resident_kib(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:"))


def sleeps(pid: int) -> int:
    """The number of context switches of its threads: independent of the load of the machine."""
    found = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii") as file:
            found += next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches:"))
    return found


def agent_pid(host: Host) -> int:
    assert host.agent is not None
    return host.agent.pid


def test_an_agent_imports_nothing_heavy() -> None:
    """In an interpreter with the agent's options."""
    code = "import sys, remote_agent.__main__, remote_agent.agent.agent, remote_agent.system.memory"
    code += "; print(*sorted(sys.modules))"
    words = [sys.executable, "-s", "-E", "-S", "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) & HEAVY == set()


@CPYTHON
def test_an_agent_with_a_worker_stays_under_22_mb(host: Host, manager: FakeManager) -> None:
    """The second start, from compiled modules: as every deployed agent starts."""
    manager.assign("w1", ["sleep", "600"])
    host.start()
    running(manager)
    host.kill_agent()
    beats = len(manager.beats)
    host.start()
    wait_until(lambda: len(manager.beats) > beats + 5, what="some heartbeats")
    pid, runner = agent_pid(host), int(host.status("w1")["runner_pid"])
    print(f"\nagent {resident_kib(pid) / 1024:.1f} MiB, runner {resident_kib(runner) / 1024:.1f} MiB")
    assert resident_kib(pid) < 21 * 1024
    assert resident_kib(runner) < 12 * 1024


@CPYTHON
def test_idle_workers_let_the_processor_sleep(host: Host, manager: FakeManager) -> None:
    """An idle runner never wakes; the agent wakes for heartbeats and its periodic checks, not for each worker.

    `invoke bench memory` measures the processor time.
    """
    manager.interval_s = 2.0
    names = [f"w{number}" for number in range(8)]
    for name in names:
        manager.assign(name, ["sleep", "600"])
    host.start()
    wait_until(lambda: all(manager.state(name) == "running" for name in names), 30, "all running")
    runners = [int(host.status(name)["runner_pid"]) for name in names]
    settled = time.monotonic() + 4.0  # a log is watched closely until it was quiet for 2 s
    wait_until(lambda: time.monotonic() > settled, 10, "quiet")
    before, beats, began = sleeps(agent_pid(host)), len(manager.beats), time.monotonic()
    runners_before = [sleeps(pid) for pid in runners]
    wait_until(lambda: len(manager.beats) >= beats + 3, 30, "three heartbeats")
    per_s = (sleeps(agent_pid(host)) - before) / (time.monotonic() - began)
    woken = [sleeps(pid) - earlier for pid, earlier in zip(runners, runners_before)]
    print(f"\nthe agent woke {per_s:.1f} times a second, its runners {woken}")
    assert per_s < 40  # about 18; a look at each worker ten times a second would be 80 more
    assert woken == [0] * len(names)


@CPYTHON
@pytest.mark.timeout(7200)
def test_memory_does_not_grow_with_heartbeats_and_restarts(host: Host, manager: FakeManager) -> None:
    """Changes, responses and dead runners in a row, as over months; file descriptors are counted too.

    The long form (PROCGUARD_LONG_TESTS=1): 10,000 heartbeats and 1,000 dead runners.
    """
    rounds = 10_000 if LONG else 120
    policy = RestartPolicy(start_secs=0.05, backoff_s=[0.0], max_attempts=1_000_000)
    manager.interval_s = 0.2
    manager.assign("w1", ["sleep", "600"], restart=policy)
    host.start()
    running(manager)
    pid = agent_pid(host)

    def change(number: int) -> None:
        """An assignment, which the agent stores and answers at once with a heartbeat and a poll."""
        beats = len(manager.beats)
        manager.assign("w1", ["sleep", "600"], restart=policy, labels={"round": str(number % 7)})
        wait_until(lambda: len(manager.beats) > beats, 5, "a heartbeat")
        del manager.beats[:-1], manager.requests[:-10]

    def restart() -> None:
        attempt = manager.report("w1")["attempt"]
        os.kill(host.status("w1")["runner_pid"], signal.SIGKILL)
        wait_until(
            lambda: manager.report("w1").get("attempt", 0) > attempt and manager.state("w1") == "running", 10, "attempt"
        )

    def live(some: int) -> None:
        for number in range(some):
            change(number)
            if number % 10 == 9:
                restart()

    live(60)
    before, files = resident_kib(pid), len(os.listdir(f"/proc/{pid}/fd"))
    live(rounds)
    print(f"\nresident {before} KiB, after {rounds} changes and {rounds // 10} dead runners {resident_kib(pid)} KiB")
    assert resident_kib(pid) < before + 1024
    assert len(os.listdir(f"/proc/{pid}/fd")) <= files + 2


@CPYTHON
def test_garbage_is_sought_also_before_it_settles() -> None:
    """A launcher retries its manager without limit, and leaves reference cycles at each failure."""
    program = """
import gc, weakref
usual = gc.get_threshold()
from remote_agent.system import memory
memory.begin_small()
class Circle: pass
def leave():
    one = Circle(); one.self = one; one.much = [[] for _ in range(9)]
    return weakref.ref(one)
first = leave()
for _ in range(20_000): leave()
assert first() is None
memory.settle()
assert gc.isenabled() and gc.get_threshold() == usual
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
