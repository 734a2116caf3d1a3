"""GPU failures: an event and an alert by default; a cordon or a move to a spare if configured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import NotFound
from procguard.fleet.recovery.gpu_failures import EVENTS_PER_HOUR, MAX_CORDONED, GpuFailures
from procguard.fleet.shapes import gpus
from procguard.fleet.telemetry import gpu_faults
from procguard.notify.alerts import classified
from remote_agent.protocol.messages import GpuFault, GpuUsage, HostUsage
from tests.unit.fleet_world import World
from tests.unit.gang_world import GangWorld

LOST = GpuFault("xid", 79, 1, "GPU-b", at=1000.0, detail="GPU has fallen off the bus.")
OF_JOB = GpuFault("xid", 31, 0, "GPU-a", at=1000.0)
SWITCH = GpuFault("sxid", 20034, at=1000.0, detail="Fatal, Link 30 LTSSM Fault Up")


class Fleet:
    def __init__(self, directory: Path, policy: str, **h1: Any) -> None:
        self.world = World(directory)
        self.world.deploy({"h1": h1 or {"w1": {"command": "x", "gpus": 1}}, "h2": {}, "h3": {}})
        self.set(policy)
        for name in ("h2", "h3"):
            self.world.beat(name, usage=HostUsage(gpus=[GpuUsage(0, f"GPU-{name}")]))

    def set(self, policy: str) -> None:
        state = self.world.fleet.state
        state.settings = replace(state.settings, gpu_failures=policy)
        self.failures = GpuFailures(self.world.fleet)

    def beat(self, *faults: GpuFault, boot: str = "boot-1", worker: str = "") -> list[tuple[str, str]]:
        """The new events: (kind, reason)."""
        usage = HostUsage(gpus=[GpuUsage(0, "GPU-a"), GpuUsage(1, "GPU-b", worker_id=worker)], gpu_faults=list(faults))
        before = len(self.events())
        self.world.beat("h1", *([self.world.report("w1")] if worker else []), usage=usage, boot_id=boot)
        self.failures.tick(self.world.now)
        return [(one["kind"], one["reason"]) for one in self.events()[before:] if not one["kind"].startswith("agent_")]

    def events(self) -> list[dict[str, Any]]:
        return list(self.world.fleet.state.events(limit=10_000))

    def agent(self) -> Any:
        return self.world.fleet.state.agents_by_id["h1"]


def test_by_default_each_fault_is_one_event_and_nothing_else_happens(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "log")
    assert fleet.beat(LOST, OF_JOB, SWITCH) == [
        ("gpu_failed", "GPU 1: Xid 79, the GPU has fallen off the bus"),
        ("gpu_fault", "GPU 0: Xid 31, GPU memory page fault, most often an illegal access by the job"),
        ("gpu_failed", "NVSwitch SXid 20034: Fatal, Link 30 LTSSM Fault Up"),
    ]
    assert [classified(one) for one in fleet.events()[-3:]] == [
        ("gpu", "critical"),
        ("gpu", "warning"),
        ("gpu", "critical"),
    ]
    assert fleet.beat(LOST, OF_JOB, SWITCH) == [], "once"
    fleet.world.restart()
    fleet.set("log")
    assert fleet.beat(LOST, OF_JOB, SWITCH) == [], "another manager repeats nothing"
    assert fleet.agent().cordon is None and fleet.agent().gpu_cordons == {}
    assert [one[0] for one in fleet.beat(replace(OF_JOB, at=4601.0))] == ["gpu_fault"], "again, an hour later"
    assert [one[0] for one in fleet.beat(LOST, boot="boot-2")] == ["gpu_failed"]


def test_a_fatal_fault_cordons_its_gpu_or_its_host_until_an_operator_lifts_it(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "cordon")
    state, placement, now = fleet.world.fleet.state, fleet.world.fleet.placement, fleet.world.now
    assert [one[0] for one in fleet.beat(OF_JOB)] == ["gpu_fault"] and fleet.agent().gpu_cordons == {}
    assert [one[0] for one in fleet.beat(OF_JOB, LOST)] == ["gpu_failed", "gpu_cordoned"]
    assert fleet.world.fleet.agents.replies.base("h1").cordoned_gpus == ["GPU-b"]
    assert placement.candidate(fleet.agent(), now).gpus_free == 0  # the other one is promised to w1
    beat = state.agent_status["h1"].heartbeat
    assert beat is not None and beat.usage is not None
    views = [gpus.view(one, fleet.agent(), beat.usage.gpu_faults) for one in beat.usage.gpus]
    assert [one["state"] for one in views] == ["free", "failed"]
    cordoned, fault = views[1]["cordoned"], views[1]["faults"][0]
    assert cordoned and cordoned["actor"] == "failure handler" and fault["fatal"] and fault["code"] == 79
    fleet.world.restart()
    fleet.set("cordon")
    assert fleet.beat(OF_JOB, LOST) == [] and list(fleet.agent().gpu_cordons) == ["GPU-b"]
    fleet.world.fleet.placement.uncordon_gpu("h1", 1, "operator:li", now)
    assert fleet.beat(OF_JOB, LOST) == [] and fleet.agent().gpu_cordons == {}, "the same fault sets no cordon again"
    assert [one[0] for one in fleet.beat(SWITCH)] == ["gpu_failed", "host_cordoned"]
    assert fleet.agent().cordon.reason == "NVSwitch SXid 20034: Fatal, Link 30 LTSSM Fault Up"
    fleet.world.fleet.placement.cordon_gpu("h1", 0, "a fan", "operator:li", now)
    assert list(fleet.agent().gpu_cordons) == ["GPU-a"]
    with pytest.raises(NotFound, match="h1 reports no GPU 7"):
        fleet.world.fleet.placement.cordon_gpu("h1", 7, "", "operator:li", now)


def test_where_the_policy_is_to_move_its_worker_goes_to_a_spare(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "move")
    with fleet.world.fleet.state.transaction(fleet.world.now, "manager") as tx:
        tx.edit(fleet.world.fleet.state.agents_by_id["h2"]).spare = True
    fleet.beat(worker="w1")
    kinds = [one[0] for one in fleet.beat(LOST, worker="w1")]
    assert kinds == ["gpu_failed", "gpu_cordoned", "move"]
    worker = fleet.world.fleet.state.workers_by_id["w1"]
    assert worker.moving is not None and (worker.moving.to, worker.moving.run) == ("h2", True)
    assert worker.desired == "stopped", "until it has stopped; then it runs on the spare"


def test_without_a_spare_the_worker_stays_and_an_event_says_why(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "move")
    fleet.beat(worker="w1")
    (*_, (kind, reason)) = fleet.beat(LOST, worker="w1")
    assert kind == "no_spare" and reason.startswith("GPU 1: Xid 79")
    assert fleet.world.fleet.state.workers_by_id["w1"].desired == "running"


def test_workers_are_not_sent_to_a_spare_that_has_a_gpu_for_one_of_them(tmp_path: Path) -> None:
    one = {"command": "x", "gpus": 1}
    fleet = Fleet(tmp_path, "move", w1=one, w2=one)
    state = fleet.world.fleet.state
    with state.transaction(fleet.world.now, "manager") as tx:
        tx.edit(state.agents_by_id["h2"]).spare = True
    usage = HostUsage(gpus=[GpuUsage(0, "GPU-a", worker_id="w1"), GpuUsage(1, "GPU-b", worker_id="w2")])
    reports = [fleet.world.report("w1"), fleet.world.report("w2")]
    fleet.world.beat("h1", *reports, usage=usage, boot_id="boot-1")
    fleet.world.beat("h1", *reports, usage=replace(usage, gpu_faults=[SWITCH]), boot_id="boot-1")
    fleet.failures.tick(fleet.world.now)
    moved = [name for name in ("w1", "w2") if state.workers_by_id[name].moving is not None]
    assert moved == ["w1"] and state.workers_by_id["w2"].desired == "running"
    (event,) = [one for one in fleet.events() if one["kind"] == "no_spare"]
    assert event["worker_id"] == "w2" and "h2: " in event["reason"]


def test_only_the_workers_of_a_lost_gpu_move_although_its_index_is_unknown(tmp_path: Path) -> None:
    """A GPU that has fallen off the bus before its agent started is known by what the driver last called it."""
    one = {"command": "x", "gpus": 1}
    fleet = Fleet(tmp_path, "move", w1=one, w2=one)
    state = fleet.world.fleet.state
    with state.transaction(fleet.world.now, "manager") as tx:
        tx.edit(state.agents_by_id["h2"]).spare = True
    usage = HostUsage(gpus=[GpuUsage(0, "GPU-a", worker_id="w1"), GpuUsage(1, "GPU-b", worker_id="w2")])
    reports = [fleet.world.report("w1"), fleet.world.report("w2")]
    lost = replace(LOST, gpu=None)
    fleet.world.beat("h1", *reports, usage=replace(usage, gpu_faults=[lost]), boot_id="boot-1")
    fleet.failures.tick(fleet.world.now)
    assert [name for name in ("w1", "w2") if state.workers_by_id[name].moving is not None] == ["w2"]


@pytest.mark.parametrize(
    ("state", "gpus_left", "moves"),
    [("backoff", 0, True), ("backoff", 1, False), ("exited", 0, False), ("failed", 0, False)],
)
def test_a_worker_that_ended_before_the_fault_is_known_moves_if_its_host_has_no_gpu_left_for_it(
    tmp_path: Path, state: str, gpus_left: int, moves: bool
) -> None:
    fleet = Fleet(tmp_path, "move")
    world = fleet.world
    with world.fleet.state.transaction(world.now, "manager") as tx:
        tx.edit(world.fleet.state.agents_by_id["h2"]).spare = True
    others = [GpuUsage(2 + number, f"GPU-{number}") for number in range(gpus_left)]
    usage = HostUsage(gpus=[GpuUsage(1, "GPU-b"), *others], gpu_faults=[LOST])
    world.beat("h1", world.report("w1", state), usage=usage, boot_id="boot-1")
    fleet.failures.tick(world.now)
    moving = world.fleet.state.workers_by_id["w1"].moving
    assert (moving.to if moving is not None else "") == ("h2" if moves else "")


def test_a_member_that_ended_before_the_fault_is_known_moves_before_its_gang_starts_again(tmp_path: Path) -> None:
    """Otherwise it waits for a GPU that its host no longer has, and the gang with it."""
    world = GangWorld(tmp_path)
    world.deploy({f"h{n}": {f"w{n}": world.spec(gpus=1)} for n in (1, 2, 3)})
    state = world.fleet.state
    state.settings = replace(state.settings, gpu_failures="move")
    world.add_spare()
    world.go_on(1)
    with state.transaction(world.now, "manager") as tx:
        tx.edit(state.agents_by_id["h4"]).spare = True
    free = HostUsage(gpus=[GpuUsage(1, "GPU-b")])
    world.fleet.agents.heartbeat("h4", replace(world.hosts["h4"].heartbeat(), usage=free), world.now)
    world.hosts["h1"].fails("w1")
    usage = replace(free, gpu_faults=[LOST])
    world.fleet.agents.heartbeat("h1", replace(world.hosts["h1"].heartbeat(), usage=usage), world.now)
    GpuFailures(world.fleet).tick(world.now)
    for _ in range(20):
        world.go_on(2)
        world.fleet.placement.moved(world.now)
    assert state.workers_by_id["w1"].agent_id == "h4"
    assert world.running() == ["w1", "w2", "w3"] and world.gang.phase == "running"


def test_a_host_that_names_ever_new_gpus_is_cordoned_itself(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "cordon")
    for hour in range(4):
        fleet.beat(*(GpuFault("xid", 79, 1, f"GPU-{hour}-{number}", at=1.0) for number in range(64)))
        fleet.world.pass_time(3601)
    assert len(fleet.agent().gpu_cordons) == MAX_CORDONED and fleet.agent().cordon is not None
    assert len(fleet.world.fleet.agents.replies.base("h1").cordoned_gpus or ()) == MAX_CORDONED


def test_a_host_that_makes_up_faults_fills_neither_history_nor_record(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "cordon")
    seen = 0
    for boot in range(10):
        many = [GpuFault("xid", 1000 + number, 0, "GPU-a", at=1.0) for number in range(64)]
        seen += len(fleet.beat(*many, boot=f"{boot:08d}"))
    assert seen == EVENTS_PER_HOUR and len(fleet.agent().gpu_faults) <= 64


def test_the_table_names_each_number_in_both_languages() -> None:
    from procguard.i18n.reason_texts import MANAGER

    assert {f"xid.{number}" for number in gpu_faults.KNOWN_XIDS} | {"xid.unknown"} == {
        code for code in MANAGER if code.startswith("xid.")
    }
    assert not gpu_faults.is_fatal(GpuFault("xid", 99999)) and not gpu_faults.is_fatal(GpuFault("ecc", count=9))
    assert gpu_faults.is_fatal(GpuFault("row_remap_failed", gpu=1))
    assert not gpu_faults.is_fatal(replace(SWITCH, detail="Non-fatal, Link 30"))
