"""A fenced worker whose host is partitioned, frozen or without power: it ends there before it runs elsewhere.

Two pairs of hosts with a task each; the hosts of a pair are each other's spare, so the task moves back and forth. The
pairs fail side by side, each in its own way, and change roles with every round. Everything is judged by stamps.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import HEARTBEAT_TIMEOUT_S, World
from tests.fleet.cuts import Direction, partitioned
from tests.fleet.hosts import FleetHost
from tests.fleet.stamps import Instance
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

LEASE_S, GRACE_S = 4.0, 1.0
GONE_MARGIN_S, SLACK_S = 2.0, 5.0
REPLACED_WITHIN_S = LEASE_S + GRACE_S + GONE_MARGIN_S + SLACK_S
ASLEEP_OVER_S = 1.0

# One ends when it is asked to, one only by SIGKILL: it takes the whole stop grace.
TASKS = {"polite": ("node1", "node2"), "stubborn": ("node3", "node4")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # They move many times without ten minutes of health between; each of these would spend an attempt.
    settings = ["recovery.task_reassignment=true", "recovery.max_recovery_attempts=200"]
    with World(tmp_path_factory.mktemp("fence"), hosts=4, settings=settings) as one:
        workers, variables = {}, {}
        for name, hosts in TASKS.items():
            fence = {"on_partition": "fence", "lease_s": LEASE_S, "stop_grace_s": GRACE_S, "requires": {"for": name}}
            workers[hosts[0]] = [stamps.stamping(name, stubborn=name == "stubborn", **fence)]
            workers[hosts[1]] = []
            variables |= {host: {"procguard_spare": True, "procguard_labels": {"for": name}} for host in hosts}
        one.deploy(workers, more=variables)
        yield one


class Pair:
    """A task and the two hosts between which it moves."""

    def __init__(self, world: World, task: str) -> None:
        self.world, self.task = world, task
        self.hosts = [world.host(name) for name in TASKS[task]]
        self.replaced_s: list[float] = []

    def place(self) -> tuple[FleetHost, FleetHost]:
        """The task's host and the other host; both are connected, and the task is settled."""
        for host in self.hosts:
            self.world.wait_connected(host.name)
        name = self.world.settled(self.task)["host"]
        here, other = sorted(self.hosts, key=lambda host: host.name != name)
        assert here.name == name
        return here, other

    def first_after(self, host: FleetHost, since_ns: int) -> Instance | None:
        """The first instance that began there after that moment."""
        return next((one for one in self.ran(host) if one.ns[0] > since_ns), None)

    def ran(self, *hosts: FleetHost) -> list[Instance]:
        return stamps.instances(stamps.read(hosts or self.hosts, self.task))

    def replaced(self, other: FleetHost, since_ns: int) -> None:
        """Wait until it runs on the other host, and note how long after the failure it began to."""
        what = f"{self.task} on {other.name}"
        try:
            instance = wait_until(lambda: self.first_after(other, since_ns), 90, what, every_s=0.05)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; {self.world.reported(self.task)}") from None
        assert instance is not None
        self.replaced_s.append((instance.ns[0] - since_ns) / 1e9)

    def stays_away(self, host: FleetHost, for_s: float) -> None:
        self.world.stays(lambda: not stamps.children(host, self.task), for_s)


class Scenario:
    """Rounds of failures on both pairs at once."""

    def __init__(self, world: World) -> None:
        self.pairs = [Pair(world, task) for task in TASKS]

    def round(self, number: int, one: Callable[[Pair], None], other: Callable[[Pair], None]) -> None:
        """Each pair has one of the failures; they take turns."""
        failures = (one, other) if number % 2 == 0 else (other, one)
        with ThreadPoolExecutor(2) as both:
            for done in [both.submit(failure, pair) for failure, pair in zip(failures, self.pairs)]:
                done.result()

    def ran(self) -> list[Instance]:
        return [one for pair in self.pairs for one in pair.ran()]

    def reported(self) -> str:
        """As text; the bound is checked here."""
        took_s = [one for pair in self.pairs for one in pair.replaced_s]
        assert max(took_s) <= REPLACED_WITHIN_S, took_s
        return f"replaced after at most {max(took_s):.1f} s in {len(took_s)} failures (bound {REPLACED_WITHIN_S:g} s)"


def cut_off(pair: Pair, direction: Direction) -> None:
    here, other = pair.place()
    began_ns = time.monotonic_ns()
    with partitioned(here, direction):
        pair.replaced(other, began_ns)
        pair.stays_away(here, 1)
    pair.world.wait_connected(here.name)
    pair.stays_away(here, 1)


def lose_power(pair: Pair) -> None:
    here, other = pair.place()
    began_ns = time.monotonic_ns()
    here.power_cut()
    try:
        pair.replaced(other, began_ns)
    finally:
        here.power_on()
    pair.world.wait_connected(here.name)
    pair.stays_away(here, 1)


def freeze_agent(pair: Pair) -> None:
    """For twice heartbeat_timeout and unreachable over SSH, with a command in its connection: it resumes with a lease
    that its worker no longer has. The runner alone ends the child meanwhile."""
    here, other = pair.place()
    (agent,) = jobs.agents(here)
    began_ns = time.monotonic_ns()
    here.kill(agent, signal.SIGSTOP)
    pair.world.manager.command(pair.task, "restart")
    with partitioned(here):  # or the manager would replace it over SSH
        pair.replaced(other, began_ns)
        time.sleep(max(0.0, 2 * HEARTBEAT_TIMEOUT_S - (time.monotonic_ns() - began_ns) / 1e9))
    woke_ns = time.monotonic_ns()
    here.kill(agent, signal.SIGCONT)
    pair.world.wait_connected(here.name)
    pair.stays_away(here, 2)
    assert [one for one in pair.ran(here) if one.ns[-1] > woke_ns] == []


class Thaws:
    """Frozen hosts: how long stale copies keep running after the thaw."""

    def __init__(self) -> None:
        self.stale_ms: list[float] = []

    def freeze_host(self, pair: Pair) -> None:
        here, other = pair.place()
        began_ns = time.monotonic_ns()
        here.freeze()
        try:
            pair.replaced(other, began_ns)
        finally:
            here.thaw()
        thawed_ns = time.monotonic_ns()
        wait_until(lambda: not stamps.children(here, pair.task), GRACE_S + 20, "the stale copy's end")
        pair.world.wait_connected(here.name)
        pair.stays_away(here, 1)
        self.stale_ms += [(one.ns[-1] - thawed_ns) / 1e6 for one in pair.ran(here) if one.ns[-1] > thawed_ns]


@pytest.mark.chaos(1)
def test_a_host_that_is_cut_off_or_dead_is_replaced_without_overlap(world: World, chaos_report: ChaosReport) -> None:
    """The lease stops the worker on the old host, without a command. Back in the network the host starts nothing."""
    scenario = Scenario(world)
    for number in chaos_report.rounds(short=1, long=20):
        scenario.round(number, lambda pair: cut_off(pair, "both"), lose_power)
    overlap_ms = stamps.overlap_ms(scenario.ran())
    assert overlap_ms == 0, scenario.ran()
    chaos_report(measured=f"overlap {overlap_ms:.0f} ms; {scenario.reported()}: cables pulled, power cuts")


@pytest.mark.chaos(8)
def test_a_network_that_works_in_one_direction_only_doubles_nothing(world: World, chaos_report: ChaosReport) -> None:
    """One-way partitions: once towards the manager, once towards the host."""
    scenario = Scenario(world)
    for number in chaos_report.rounds(short=1, long=10):
        scenario.round(number, lambda pair: cut_off(pair, "to manager"), lambda pair: cut_off(pair, "from manager"))
    overlap_ms = stamps.overlap_ms(scenario.ran())
    assert overlap_ms == 0, scenario.ran()
    chaos_report(measured=f"overlap {overlap_ms:.0f} ms each way; {scenario.reported()}")


@pytest.mark.chaos(9)
def test_what_was_frozen_wakes_up_to_a_right_that_it_no_longer_has(world: World, chaos_report: ChaosReport) -> None:
    """A frozen agent: nothing stale runs. A frozen host cannot fence itself: the running time of its copy is
    measured."""
    scenario, thaws = Scenario(world), Thaws()
    for number in chaos_report.rounds(short=1, long=10):
        scenario.round(number, freeze_agent, thaws.freeze_host)
    ran = scenario.ran()
    overlap_ms = stamps.overlap_ms(ran, asleep_over_s=ASLEEP_OVER_S)
    # Nothing of an older right began after its successor had.
    for one, other in itertools.permutations(ran, 2):
        if one.worker == other.worker and one.epoch < other.epoch:
            assert one.ns[0] < other.ns[0], (one, other)
    copies = f"{len(thaws.stale_ms)} stale copies ran on, for at most {max(thaws.stale_ms, default=0):.0f} ms"
    chaos_report(
        measured=f"agents: 0 stale commands ran, overlap 0 ms; whole hosts: {copies} (stop grace {GRACE_S:g} s), "
        f"overlap {overlap_ms:.0f} ms; {scenario.reported()}"
    )
