"""Any course of failures, by hypothesis: hosts cut off, rebooted, lost; agents and the manager killed; answers lost,
late and doubled; operators commanding and deploying in between. Scenario 22 of the chaos suite.

The real fleet, leases, monitor, failure handler and store; the hosts are simulated_host.py. What must hold:

1. never two live instances of a worker, and no epoch on two hosts (the witness sees every start);
5. what was acknowledged is there after the manager was killed at any moment, also in the middle of a write;
6. when all can speak again, start and stop have converged; restart and kill acted at most once, on their attempt.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from procguard.errors import ProcGuardError
from procguard.fleet.fleet import Fleet
from procguard.fleet.history.events import EventLog
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import AgentRecord
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery.handler import FailureHandler
from procguard.fleet.recovery.incident import SshProbe
from procguard.fleet.recovery.monitor import ProcessMonitor
from procguard.fleet.store import open_store
from remote_agent.protocol import messages
from tests.chaos import ChaosReport
from tests.unit.simulated_host import SimulatedHost, Witness

HOSTS = ("h1", "h2", "h3")
LEASE_S, GRACE_S = 20.0, 2.0
FENCE: dict[str, Any] = {"on_partition": "fence", "lease_s": LEASE_S}
WORKERS: dict[str, tuple[str, dict[str, Any]]] = {"keep": ("h1", {}), "fence1": ("h1", FENCE), "fence2": ("h2", FENCE)}
SETTINGS = FleetSettings(heartbeat_timeout_s=6.0, recovery_timeout_s=5.0, task_reassignment=True)

hosts = st.sampled_from(HOSTS)
workers = st.sampled_from(sorted(WORKERS))
Answer = tuple[messages.AgentReply, float, list[messages.CommandResult], bool]


class Killed(BaseException):
    """The manager, at this moment."""


class FleetMachine(RuleBasedStateMachine):
    """`acknowledged`: worker -> what its desired state may be: the last acknowledged, and what was in doubt since."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        base = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.folder = tempfile.mkdtemp(prefix="pgmachine", dir=base)
        self.now = Now(1_000.0, 1_790_000_000.0)
        self.witness = Witness()
        self.hosts = {name: SimulatedHost(name, self.witness, self.now.monotonic) for name in HOSTS}
        self.acknowledged: dict[str, set[str]] = {}
        self.late: dict[str, Answer] = {}
        self.kill_at: str = ""  # "before" or "after" the next write reaches the disk
        self.command_ids: list[str] = []
        # What this test is about is order, not the disk's own truthfulness: test_store*.py and scenarios 5 and 21 are.
        self._syncs = mock.patch.multiple(os, fsync=lambda fd: None, fdatasync=lambda fd: None)
        self._syncs.start()
        self.open_manager()

    # ------------------------------------------------------------------------------------------ the manager's life

    def open_manager(self) -> None:
        path = f"{self.folder}/state.yaml"
        store = open_store(path, auto_save=False, run_blocking=self._write)
        self.fleet = Fleet(store, EventLog(store), SETTINGS, self.now)
        monitor = ProcessMonitor(self.fleet, SETTINGS, self.now)
        self.failures = FailureHandler(
            self.fleet,
            monitor=monitor,
            settings=SETTINGS,
            probe=self._probe,
            spawn=lambda task: task(),
            read_clock=lambda: self.now,
        )

    def _write(self, task: Callable[[], None]) -> None:
        when, self.kill_at = self.kill_at, ""
        if when == "before":
            raise Killed
        task()
        if when == "after":
            raise Killed

    def guarded(self, action: Callable[[], Any]) -> Any:
        """None if the manager was killed midway; then the next one is running."""
        try:
            return action()
        except Killed:
            self.open_manager()
            return None

    def _probe(self, agent: AgentRecord) -> SshProbe:
        host = self.hosts[agent.host]
        if not host.up or host.cut:
            return SshProbe(False, "unknown", "no route to host")
        found = "running" if host.agent_alive else "started"
        host.start_agent()
        return SshProbe(True, found, f"agent {found}")  # type: ignore[arg-type]

    def declare(self, moved: str = "") -> None:
        """Everything, as the inventory has it; `moved`: this worker stands on another host there."""
        locations = {name: place for name, (place, _) in WORKERS.items()}
        if moved:
            locations[moved] = "h2" if locations[moved] == "h1" else "h1"
        declared = [
            {
                "host": host,
                "ssh": {"hostname": host},
                "spare": host == "h3",
                "workers": [
                    {"worker_id": name, "spec": {"command": "x", "stop_grace_s": GRACE_S, **spec}}
                    for name, (_, spec) in WORKERS.items()
                    if locations[name] == host
                ],
            }
            for host in HOSTS
        ]
        self.guarded(lambda: self.fleet.workers.deploy({"hosts": declared}, "tester", self.now))

    # ------------------------------------------------------------------------------------------ what may happen

    @initialize()
    def everything_runs(self) -> None:
        self.declare()
        for name in WORKERS:
            self.acknowledged[name] = {"running"}
        for _ in range(2):
            for host in HOSTS:
                self.speak(host)

    @rule(
        host=hosts,
        fate=st.sampled_from(["arrives", "arrives", "arrives", "request lost", "answer lost", "answer late"]),
    )
    def agent_speaks(self, host: str, fate: str) -> None:
        self.speak(host, fate)

    def speak(self, name: str, fate: str = "arrives") -> None:
        host = self.hosts[name]
        if not host.talks or host.cut or fate == "request lost":
            return
        beat, sent_at = host.heartbeat(), self.now.monotonic
        reply = self.guarded(lambda: self.fleet.agents.heartbeat(name, beat, self.now))
        if reply is None or fate == "answer lost":
            return
        answer = (reply, sent_at, beat.results, False)
        if fate == "answer late":
            self.late[name] = answer
        else:
            host.take(reply, sent_at, beat.results, held=False)

    @rule(host=hosts, lost=st.booleans())
    def held_request_is_answered(self, host: str, lost: bool) -> None:
        one = self.hosts[host]
        if one.talks and not one.cut:
            sent_at = self.now.monotonic
            reply = self.guarded(lambda: self.fleet.agents.replies.news_for_agent(host, *one.known, self.now))
            if reply is not None and not lost:
                one.take(reply, sent_at, [], held=True)

    @rule(host=hosts, again=st.booleans())
    def late_answer_arrives(self, host: str, again: bool) -> None:
        answer = self.late.get(host) if again else self.late.pop(host, None)
        if answer is not None and self.hosts[host].talks:
            reply, sent_at, reported, held = answer
            self.hosts[host].take(reply, sent_at, reported, held=held)

    @rule(seconds=st.sampled_from([0.5, 2.0, 7.0, 15.0, 30.0]), all_speak=st.booleans())
    def time_passes(self, seconds: float, all_speak: bool) -> None:
        until = self.now.monotonic + seconds
        while self.now.monotonic < until:
            self.tick(min(1.0, until - self.now.monotonic))
            if all_speak:
                for host in HOSTS:
                    self.speak(host)

    def tick(self, seconds: float) -> None:
        self.now = Now(self.now.monotonic + seconds, self.now.wall + seconds)
        for host in self.hosts.values():
            host.pass_time(self.now.monotonic)
        self.guarded(self._round)

    def _round(self) -> None:
        self.failures.tick(self.now)
        self.fleet.state.durability.commit()

    @rule(host=hosts)
    def cable_is_cut(self, host: str) -> None:
        self.hosts[host].cut = True

    @rule(host=hosts)
    def cable_is_mended(self, host: str) -> None:
        self.hosts[host].cut = False

    @rule(host=hosts)
    def power_goes(self, host: str) -> None:
        self.hosts[host].power_off()
        self.late.pop(host, None)

    @rule(host=hosts)
    def power_returns(self, host: str) -> None:
        if not self.hosts[host].up:
            self.hosts[host].power_on()

    @rule(host=hosts)
    def agent_is_killed(self, host: str) -> None:
        self.hosts[host].kill_agent()
        self.late.pop(host, None)

    @rule(host=hosts)
    def agent_is_started(self, host: str) -> None:
        self.hosts[host].start_agent()

    @rule(host=hosts, worker=workers, how=st.sampled_from(["exited", "failed"]))
    def child_ends(self, host: str, worker: str, how: messages.State) -> None:
        self.hosts[host].child_exits(worker, how)

    @rule(when=st.sampled_from(["now", "before", "after"]))
    def manager_is_killed(self, when: str) -> None:
        """At once, or in the middle of the next write."""
        if when == "now":
            self.kill_at = ""
            self.open_manager()
        else:
            self.kill_at = when

    @precondition(lambda self: bool(self.acknowledged))
    @rule(worker=workers, verb=st.sampled_from(messages.VERBS))
    def operator_commands(self, worker: str, verb: messages.Verb) -> None:
        meant = {"start": {"running"}, "stop": {"stopped"}, "kill": {"stopped"}}.get(verb, self.acknowledged[worker])
        # Where nothing is alive a restart is a start; of a stopped one it is what an operator wants.
        doubt = self.acknowledged[worker] | meant | ({"running"} if verb == "restart" else set())
        try:
            record = self.guarded(lambda: self.fleet.workers.command(worker, verb, "tester", self.now))
        except ProcGuardError:
            return  # refused with a reason: nothing was acknowledged
        if record is None:
            self.acknowledged[worker] = doubt
        elif record.command == "start":
            self.acknowledged[worker] = {"running"}
        else:
            self.acknowledged[worker] = meant

    @rule(moved=st.sampled_from(["", "", *sorted(WORKERS)]))
    def operator_deploys(self, moved: str) -> None:
        before = {name: self.fleet.state.workers_by_id[name].agent_id for name in WORKERS}
        self.declare(moved)
        for name in WORKERS:  # one that had ended and moved is to run at its new place
            if self.fleet.state.workers_by_id[name].agent_id != before[name]:
                self.acknowledged[name] = self.acknowledged[name] | {"running"}

    # ------------------------------------------------------------------------------------------ what must hold

    @invariant()
    def acknowledged_changes_hold(self) -> None:
        for name, allowed in self.acknowledged.items():
            worker = self.fleet.state.workers_by_id.get(name)
            assert worker is not None, f"{name} was acknowledged and is gone"
            assert worker.desired in allowed, f"{name} is to be {worker.desired}; acknowledged was {allowed}"

    def teardown(self) -> None:
        try:
            if self.acknowledged:
                self._converges()
        finally:
            self._syncs.stop()
            shutil.rmtree(self.folder, ignore_errors=True)
            type(self).steps += 1

    def _converges(self) -> None:
        """Everything is repaired and no more commands come: the actual state becomes the desired state."""
        self.kill_at = ""
        self.open_manager()
        for host in self.hosts.values():
            host.cut = False
            if not host.up:
                host.power_on()
            host.start_agent()
        for _ in range(int(3 * SETTINGS.heartbeat_timeout_s + 2 * (LEASE_S + GRACE_S)) + 10):
            self.tick(1.0)
            for name in HOSTS:
                self.speak(name)
        for name, worker in self.fleet.state.workers_by_id.items():
            live = self.witness.live.get(name, set())
            slot = self.hosts[worker.agent_id].slots.get(name)
            if worker.desired == "running":
                ended = slot is not None and slot.state in ("exited", "failed") and slot.generation == worker.generation
                assert ended or live == {worker.host}, (name, worker, slot, live)
            else:
                assert live == set(), (name, worker, live)
            assert slot is None or slot.epoch == worker.epoch, (name, worker, slot)
        still_open = [
            record
            for host in HOSTS
            for record in self.fleet.state.command_queue.open_of_agent(host)
            if record.command != "start"
        ]
        assert still_open == []


def tried(examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        FleetMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.chaos(22)
def test_no_course_of_failures_breaks_a_promise(chaos_report: ChaosReport) -> None:
    FleetMachine.steps = 0
    for _round in chaos_report.rounds(short=1, long=20):
        tried(100 if chaos_report.long else 12, 60 if chaos_report.long else 25)
    chaos_report(measured=f"{FleetMachine.steps} courses of failures; 0 violations of promises 1, 5 and 6")
