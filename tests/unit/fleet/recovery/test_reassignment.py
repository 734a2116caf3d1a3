"""Reassignment of tasks of lost hosts and failed workers: target, time, and the reason if there is no target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.config.groups import GroupPolicy
from procguard.errors import Conflict
from procguard.fleet.leases import InstanceStatus
from procguard.fleet.model import records
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import AgentRecord, WorkerRecord
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery.handler import FailureHandler
from procguard.fleet.recovery.incident import SshProbe
from procguard.fleet.recovery.monitor import ProcessMonitor
from procguard.fleet.recovery.policy import RecoveryPolicy, TaskCase, decide_task
from tests.unit.fleet_world import World

FENCED: dict[str, Any] = {"command": "train", "on_partition": "fence", "lease_s": 20.0, "stop_grace_s": 5.0}
CERTAIN_S = 20.0 + 5.0 + 2.1
ON = RecoveryPolicy(FleetSettings(task_reassignment=True, max_recovery_attempts=3))
GONE = InstanceStatus(True, "its lease has ended", by_time=True)


# -------------------------------------------------------------------------------------------------- the table


def case(**values: Any) -> TaskCase:
    usual: dict[str, Any] = {"cause": "host_lost", "wanted": True, "well": False, "by_hand": False}
    return TaskCase(**{**usual, "instance": GONE, "moves": 0, **values})


@pytest.mark.parametrize(
    ("one", "policy", "action", "state"),
    [
        (case(), ON, "reassign", ""),
        (case(cause="failed"), ON, "reassign", ""),
        (case(wanted=False), ON, "drop", ""),
        (case(well=True), ON, "drop", ""),
        (case(by_hand=True), ON, "leave", "by_hand"),
        (case(), RecoveryPolicy(FleetSettings(enable_auto_recovery=False)), "leave", "switched_off"),
        (case(), RecoveryPolicy(ON.settings, circuit_open=True), "wait", "waiting"),
        (case(), RecoveryPolicy(ON.settings, in_grace=True), "wait", "waiting"),
        (case(cause="failed"), RecoveryPolicy(ON.settings, circuit_open=True, in_grace=True), "reassign", ""),
        (case(instance=InstanceStatus(False, "keep")), ON, "wait", "not_proven_gone"),
        (case(instance=InstanceStatus(False, "its lease", 12.0)), ON, "wait", "waiting"),
        (case(agent_coming_s=9.0), ON, "wait", "waiting"),
        (case(moves=3), ON, "give_up", "gave_up"),
    ],
)
def test_each_row_of_the_table(one: TaskCase, policy: RecoveryPolicy, action: str, state: str) -> None:
    decision = decide_task(one, policy)
    assert (decision.action, decision.state) == (action, state)


def test_doubt_is_reported_before_anything_else_is_weighed() -> None:
    """Two copies are worse than none: no setting overrides this."""
    one = case(instance=InstanceStatus(False, "keep"), moves=9, agent_coming_s=9.0)
    assert decide_task(one, ON).state == "not_proven_gone"


# ------------------------------------------------------------------------------------------------- in a ticking


class TickingWorld:
    """A world in ticks: connected agents send a heartbeat each second; no host is reachable over SSH."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.world = World(directory, task_reassignment=True, **settings)
        self.silent: set[str] = set()
        self.states: dict[str, str] = {}  # worker -> what its host reports; "running" by default
        self.probe = SshProbe(False, "unknown", "timed out")
        self.failures = self.handler()

    def handler(self) -> FailureHandler:
        self.monitor = ProcessMonitor(self.world.fleet, self.world.settings, self.world.now)
        return FailureHandler(
            self.world.fleet,
            monitor=self.monitor,
            settings=self.world.settings,
            probe=self._probe,
            spawn=lambda task: task(),
            read_clock=lambda: self.world.now,
        )

    def _probe(self, agent: AgentRecord, replace_frozen: bool) -> SshProbe:
        return self.probe

    def restart(self) -> None:
        self.world.restart()
        self.failures = self.handler()
        self._silent = True

    _silent = True

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            now = self.world.pass_time(1.0)
            for agent_id in self.world.fleet.state.agents_by_id:
                if agent_id not in self.silent:
                    self.beat(agent_id)
            if self._silent and not self.monitor.in_grace(now):
                self._silent = False
                self.failures.open_incidents_for_silent_agents(now)
            self.failures.tick(now)
            self.world.fleet.gangs.tick(now)
            self.world.fleet.state.durability.commit()

    def beat(self, agent_id: str) -> None:
        fleet = self.world.fleet
        reports = []
        for worker in fleet.state.workers_of(agent_id):
            state = self.states.get(worker.worker_id, "running" if worker.assigned_state == "running" else "stopped")
            left = worker.spec.lease_s if records.fenced(worker) else None
            attempt = worker.attempt + (worker.attempt == 0)
            reports.append(self.world.report(worker.worker_id, state, lease_left_s=left, attempt=attempt))
        rev = fleet.agents.assignments.rev(agent_id)
        self.world.beat(agent_id, *reports, assignments_rev=rev)

    def worker(self, worker_id: str = "w1") -> WorkerRecord:
        return self.world.fleet.state.workers_by_id[worker_id]

    def view(self, worker_id: str = "w1") -> dict[str, Any]:
        return self.world.fleet.state.worker(worker_id)


@pytest.fixture
def ticking(tmp_path: Path) -> TickingWorld:
    ticking = TickingWorld(tmp_path)
    ticking.world.deploy({"h1": {"w1": FENCED}, "s1": {}, "s2": {}}, spares={"s1": True, "s2": True})
    ticking.run(40.0)
    return ticking


def test_a_fenced_task_of_a_lost_host_goes_to_a_spare_as_soon_as_it_is_confirmed_stopped(ticking: TickingWorld) -> None:
    epoch = ticking.worker().epoch
    ticking.silent = {"h1"}
    ticking.run(CERTAIN_S - 1.0)
    assert ticking.worker().agent_id == "h1"
    assert "lease" in ticking.view()["recovery"]["reason"]
    ticking.run(3.0)
    assert (ticking.worker().agent_id, ticking.view()["state"]) == ("s1", "running")
    assert ticking.worker().epoch > epoch
    assert {"task_waiting", "reassigned"} <= set(ticking.world.kinds())


def test_the_next_round_is_due_when_the_lease_ends_not_at_the_next_interval(ticking: TickingWorld) -> None:
    ticking.silent = {"h1"}
    ticking.run(15.0)
    assert 0.0 < ticking.failures.due_in_s(ticking.world.now) < CERTAIN_S
    assert ticking.failures.due_in_s(Now(1e9, 0.0)) == 0.0


def test_a_kept_task_of_a_lost_host_waits_for_ever_and_says_why(tmp_path: Path) -> None:
    ticking = TickingWorld(tmp_path)
    ticking.world.deploy({"h1": {"w1": {"command": "crawl"}}, "s1": {}}, spares={"s1": True})
    ticking.run(40.0)
    ticking.silent = {"h1"}
    ticking.run(300.0)
    assert ticking.worker().agent_id == "h1"
    assert ticking.view()["recovery"]["state"] == "not_proven_gone"
    assert "keep" in ticking.view()["reason"]
    assert ticking.world.kinds().count("task_waiting") == 1  # told once, not each second


def test_the_host_that_returns_in_time_keeps_its_task(ticking: TickingWorld) -> None:
    ticking.silent = {"h1"}
    ticking.run(CERTAIN_S - 3.0)
    ticking.silent = set()
    ticking.run(60.0)
    assert ticking.worker().agent_id == "h1"
    assert ticking.view()["recovery"] is None


def test_the_host_that_returns_late_receives_its_removal(ticking: TickingWorld) -> None:
    ticking.silent = {"h1"}
    ticking.run(40.0)
    reply = ticking.world.beat("h1", ticking.world.report("w1", epoch=1, lease_left_s=0.0), pid=99)
    assert [one.desired for one in reply.assignments or []] == ["removed"]
    ticking.silent = set()
    ticking.run(5.0)
    assert ticking.worker().agent_id == "s1"
    assert ticking.world.fleet.state.agents_by_id["h1"].withdrawn == {}


def test_an_agent_found_by_ssh_is_waited_for_before_its_task_is_moved(ticking: TickingWorld) -> None:
    """Only slow: its lease has ended, but the host and its task return shortly."""
    ticking.silent = {"h1"}
    ticking.run(CERTAIN_S - 4.0)
    ticking.probe = SshProbe(True, "started", "started")
    ticking.run(20.0)
    assert ticking.worker().agent_id == "h1"
    assert "agent has just been started" in ticking.view()["recovery"]["reason"]
    ticking.run(40.0)
    assert ticking.worker().agent_id == "s1"


def test_the_spare_dies_too(ticking: TickingWorld) -> None:
    ticking.silent = {"h1"}
    ticking.run(40.0)
    assert ticking.worker().agent_id == "s1"
    ticking.silent = {"h1", "s1"}
    ticking.run(40.0)
    assert (ticking.worker().agent_id, ticking.worker().moves) == ("s2", 2)
    assert ticking.worker().home == "h1"


def test_without_a_spare_it_waits_with_the_reason_and_goes_when_one_comes(ticking: TickingWorld) -> None:
    ticking.world.fleet.placement.cordon("s1", "fan", "anna", ticking.world.now)
    ticking.world.fleet.placement.cordon("s2", "disk", "anna", ticking.world.now)
    ticking.silent = {"h1"}
    ticking.run(60.0)
    assert ticking.view()["recovery"]["state"] == "no_spare"
    assert "s1: it is cordoned (fan)" in ticking.view()["reason"]
    assert ticking.world.kinds().count("no_spare") == 1
    ticking.world.fleet.placement.uncordon("s2", "anna", ticking.world.now)
    ticking.run(5.0)
    assert (ticking.worker().agent_id, ticking.view()["recovery"]) == ("s2", None)


def test_a_failed_worker_goes_to_a_spare_and_after_enough_moves_stays_failed_with_an_alert(tmp_path: Path) -> None:
    """Also a worker with `keep`: its agent reports that it has ended."""
    ticking = TickingWorld(tmp_path, max_recovery_attempts=2)
    ticking.world.deploy({"h1": {"w1": {"command": "x"}}, "s1": {}, "s2": {}}, spares={"s1": True, "s2": True})
    ticking.run(5.0)
    locations = []
    for _ in range(4):
        ticking.states["w1"] = "failed"
        ticking.run(3.0)
        ticking.states["w1"] = "running"
        if not locations or locations[-1] != ticking.worker().agent_id:
            locations.append(ticking.worker().agent_id)
        if len(locations) < 3:
            ticking.run(3.0)
    ticking.states["w1"] = "failed"
    ticking.run(10.0)
    assert ticking.worker().moves == 2
    assert ticking.view()["recovery"]["state"] == "gave_up"
    assert "task_gave_up" in ticking.world.kinds()


def test_health_gives_the_moves_back(ticking: TickingWorld) -> None:
    ticking.silent = {"h1"}
    ticking.run(40.0)
    assert ticking.worker().moves == 1
    ticking.run(620.0)
    assert ticking.worker().moves == 0


def test_a_worker_that_an_operator_starts_again_is_not_moved(tmp_path: Path) -> None:
    ticking = TickingWorld(tmp_path)
    ticking.world.deploy({"h1": {"w1": {"command": "x"}}, "s1": {}}, spares={"s1": True})
    ticking.run(3.0)
    ticking.world.beat("h1", ticking.world.report("w1", "failed"))
    ticking.world.fleet.workers.command("w1", "start", "anna", ticking.world.now)
    ticking.run(5.0)
    assert (ticking.worker().agent_id, ticking.view()["recovery"]) == ("h1", None)


def test_a_task_of_a_lost_host_that_is_stopped_and_started_again_meanwhile_still_goes_to_a_spare(
    ticking: TickingWorld,
) -> None:
    ticking.silent = {"h1"}
    ticking.run(15.0)
    ticking.world.fleet.workers.command("w1", "stop", "anna", ticking.world.now)
    ticking.run(30.0)
    assert (ticking.worker().agent_id, ticking.view()["recovery"]) == ("h1", None)
    ticking.world.fleet.workers.command("w1", "start", "anna", ticking.world.now)
    ticking.run(5.0)
    assert ticking.worker().agent_id == "s1"


def test_stop_all_goes_before_reassignment(tmp_path: Path) -> None:
    ticking = TickingWorld(tmp_path, stop_all_on_failure=True)
    ticking.world.deploy({"h1": {"w1": {"command": "x"}}, "s1": {"w2": {"command": "x"}}}, spares={"s1": True})
    ticking.run(3.0)
    ticking.states["w1"] = "failed"
    ticking.run(10.0)
    assert ticking.worker().agent_id == "h1"
    assert {ticking.worker(one).desired for one in ("w1", "w2")} == {"stopped"}


def test_switched_off_nothing_is_moved_and_nothing_is_said(tmp_path: Path) -> None:
    ticking = TickingWorld(tmp_path)
    ticking.world.settings = FleetSettings(task_reassignment=False)
    ticking.restart()
    ticking.world.deploy({"h1": {"w1": FENCED}, "s1": {}}, spares={"s1": True})
    ticking.run(40.0)
    ticking.silent = {"h1"}
    ticking.run(60.0)
    assert (ticking.worker().agent_id, ticking.view()["recovery"]) == ("h1", None)


def test_the_next_manager_goes_on_with_a_lost_host_after_its_own_grace_and_a_whole_lease(ticking: TickingWorld) -> None:
    ticking.silent = {"h1"}
    ticking.run(15.0)
    ticking.restart()
    ticking.run(CERTAIN_S - 1.0)
    assert ticking.worker().agent_id == "h1"
    ticking.run(12.0)
    assert ticking.worker().agent_id == "s1"


def test_a_manager_that_dies_between_the_change_of_hands_and_its_delivery_has_done_both_or_nothing(
    ticking: TickingWorld,
) -> None:
    """Epoch, owner and revoked right are one commit; the new owner gets no assignment before it."""
    ticking.silent = {"h1"}
    ticking.run(CERTAIN_S - 1.0)
    now = ticking.world.pass_time(2.0)
    ticking.beat("s1")
    ticking.failures.tick(now)  # … and dies before it commits
    assert ticking.worker().agent_id == "s1"
    dying = ticking.world.fleet
    on_disk = dying.state.store.read().tables
    assert (on_disk["workers"]["w1"]["agent_id"], on_disk["agents"]["h1"]["withdrawn"]) == ("h1", {})
    reply = dying.agents.replies.news_for_agent("s1", "", 0, now)  # what it tells is durable first
    assert reply is not None
    assert [one.worker_id for one in reply.assignments or []] == ["w1"]
    assigned_state = (reply.assignments or [])[0].epoch
    ticking.world.fleet = ticking.world.open()
    assert (ticking.worker().agent_id, ticking.worker().epoch) == ("s1", assigned_state)
    assert "w1" in ticking.world.fleet.state.agents_by_id["h1"].withdrawn


def test_a_gangs_lost_member_goes_to_a_spare_only_once_the_gang_is_held_and_all_start_under_one_epoch(
    tmp_path: Path,
) -> None:
    ticking = TickingWorld(tmp_path, groups={"trainers": GroupPolicy(restart="gang")})
    member = {**FENCED, "group": "trainers"}
    ticking.world.deploy({"h1": {"w1": member}, "h2": {"w2": member}, "s1": {}}, spares={"s1": True})
    ticking.run(40.0)
    first = ticking.worker().epoch
    assert ticking.worker("w2").epoch == first
    handed: list[bool] = []
    ticking.world.fleet.state.bus.events.subscribe(
        lambda event: handed.append(ticking.worker("w1").held) if event["kind"] == "reassigned" else None
    )
    ticking.silent = {"h1"}
    ticking.run(CERTAIN_S + 15.0)
    assert handed == [True]
    assert ticking.worker().agent_id == "s1"
    assert ticking.worker().epoch == ticking.worker("w2").epoch > first
    assert (ticking.worker().held, ticking.view()["state"], ticking.view("w2")["state"]) == (
        False,
        "running",
        "running",
    )


def test_two_members_of_one_gang_go_to_two_spares(tmp_path: Path) -> None:
    ticking = TickingWorld(tmp_path, groups={"trainers": GroupPolicy(restart="gang")})
    member = {**FENCED, "group": "trainers"}
    busy = {"x1": {"command": "x"}, "x2": {"command": "x"}}  # s2 has more tasks, but takes the second one nevertheless
    hosts = {"h1": {"w1": member}, "h2": {"w2": member}, "h3": {"w3": member}, "s1": {}, "s2": busy}
    ticking.world.deploy(hosts, spares={"s1": True, "s2": True})
    ticking.run(40.0)
    ticking.silent = {"h1", "h2"}
    ticking.run(CERTAIN_S + 15.0)
    assert {ticking.worker("w1").agent_id, ticking.worker("w2").agent_id} == {"s1", "s2"}


def test_a_member_whose_gang_still_runs_is_given_to_nobody(tmp_path: Path) -> None:
    ticking = TickingWorld(tmp_path, groups={"trainers": GroupPolicy(restart="gang")})
    ticking.world.deploy({"h1": {"w1": {**FENCED, "group": "trainers"}}, "s1": {}}, spares={"s1": True})
    ticking.run(10.0)
    ticking.world.pass_time(1e4)
    assert ticking.world.fleet.leases.is_confirmed_stopped("w1", ticking.world.now)
    with pytest.raises(Conflict, match="gang"):
        with ticking.world.changing() as tx:
            ticking.world.fleet.placement.reassign(tx, ticking.worker(), "s1", "too early", actor="tester")
