"""When the monitor suspects a host, declares it unreachable, and freezes recovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.fleet.model.clock import Now
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery.monitor import Finding, ProcessMonitor
from procguard.fleet.workers import ownership
from remote_agent.protocol import messages
from tests.unit.fleet_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, heartbeat_timeout_s=10.0)
    world.deploy({f"h{n}": {f"w{n}": {"command": "sleep 9"}} for n in range(1, 6)})
    for n in range(1, 6):
        world.beat(f"h{n}", world.report(f"w{n}"))
    return world


def ticks(monitor: ProcessMonitor, world: World, seconds: int) -> list[Finding]:
    """Regular ticks, as the loop makes them; findings are applied as the failure handler does."""
    found: list[Finding] = []
    for _ in range(seconds):
        for finding in world.watched(monitor, 1.0):
            found.append(finding)
            if finding.kind in ("suspect", "unreachable"):
                world.fleet.agents.mark(finding.subject, finding.kind, finding.reason, world.now)
    return found


def keep_alive(world: World, *agents: str) -> None:
    for agent_id in agents:
        world.beat(agent_id)


def test_a_host_is_unreachable_only_after_the_whole_timeout(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    assert ticks(monitor, world, 9) == []
    keep_alive(world, "h2", "h3", "h4", "h5")
    assert [(f.kind, f.subject) for f in ticks(monitor, world, 2)] == [("unreachable", "h1")]


def lose(world: World, agent_id: str, away_s: float = 0.0) -> None:
    """The agent's side closes its held request; `away_s` passes."""
    world.fleet.agents.heartbeats.poll_opened(agent_id, world.now)
    world.fleet.agents.heartbeats.poll_closed(agent_id, world.pass_time(0.1), peer_closed=True)
    world.pass_time(away_s)


def findings(monitor: ProcessMonitor, world: World) -> list[tuple[str, str]]:
    """One tick; its findings are applied as the failure handler does."""
    found = world.watched(monitor)
    for finding in found:
        if finding.kind in ("suspect", "unreachable"):
            world.fleet.agents.mark(finding.subject, finding.kind, finding.reason, world.now)
    return [(finding.kind, finding.subject) for finding in found]


def test_a_lost_connection_is_suspected_at_once_called_lost_soon_and_forgotten_when_it_returns(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    lose(world, "h1", away_s=0.14)
    assert findings(monitor, world) == []
    world.pass_time(0.02)
    assert findings(monitor, world) == [("suspect", "h1")]
    world.pass_time(0.3)
    assert findings(monitor, world) == []
    world.pass_time(0.1)
    assert findings(monitor, world) == [("lost", "h1")]
    assert findings(monitor, world) == []  # told once
    world.beat("h1")
    assert world.fleet.state.agent_status["h1"].state == "connected"
    assert world.watched(monitor, 0.2) == []


def test_each_loss_of_a_connection_is_reported(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    for _ in range(2):
        lose(world, "h1", away_s=0.6)
        assert findings(monitor, world) == [("suspect", "h1"), ("lost", "h1")]
        world.beat("h1")


def test_a_suspected_host_s_workers_are_not_unknown_yet(world: World) -> None:
    world.fleet.agents.mark("h1", "suspect", "connection closed", world.now)
    assert world.fleet.state.worker("w1")["state"] == "running"
    world.fleet.agents.mark("h1", "unreachable", "silent", world.now)
    assert world.fleet.state.worker("w1")["state"] == "unknown"


def test_a_request_ended_by_the_manager_itself_is_no_sign(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    world.fleet.agents.heartbeats.poll_opened("h1", world.now)
    world.fleet.agents.heartbeats.poll_closed("h1", world.now, peer_closed=False)
    assert world.watched(monitor, 1.0) == []


def test_when_the_manager_itself_was_late_everybody_gets_that_much_longer(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    assert world.watched(monitor, 30.0) == []  # frozen for 30 s: no host is declared lost because of it
    assert ticks(monitor, world, 8) == []
    assert {f.subject for f in ticks(monitor, world, 3) if f.kind == "unreachable"} == {"h1", "h2", "h3", "h4", "h5"}


def test_many_hosts_silent_at_once_open_the_breaker_and_their_return_closes_it(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    found = ticks(monitor, world, 12)
    assert [f.kind for f in found].count("circuit_breaker_open") == 1
    assert monitor.circuit_open
    keep_alive(world, "h1", "h2", "h3", "h4", "h5")
    assert [f.kind for f in ticks(monitor, world, 1)] == ["circuit_breaker_closed"]
    assert not monitor.circuit_open


def circuit_open(world: World, *well: str, seconds: int) -> tuple[ProcessMonitor, list[Finding]]:
    """All but `well` become silent; then `seconds` pass without a probe over SSH."""
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    found: list[Finding] = []
    for _ in range(12 + seconds):
        keep_alive(world, *well)
        found += ticks(monitor, world, 1)
    assert monitor.circuit_open
    return monitor, found


def test_before_five_minutes_are_over_nothing_is_tried_and_the_breaker_stays_open(world: World) -> None:
    monitor, _ = circuit_open(world, "h5", seconds=290)
    assert monitor.breaker_probe(world.now) is None


def test_after_five_minutes_working_ssh_to_a_living_host_closes_the_breaker(world: World) -> None:
    monitor, _ = circuit_open(world, "h4", "h5", seconds=302)
    tried = monitor.breaker_probe(world.now)
    assert tried is not None and tried.host in ("h4", "h5")
    monitor.ssh_answered(True, "")
    off = [finding for finding in ticks(monitor, world, 1) if finding.kind == "circuit_breaker_closed"]
    assert "SSH to others works" in off[0].reason
    assert not monitor.circuit_open


def test_while_ssh_fails_everywhere_the_breaker_stays_open_and_probes_in_rotation(
    world: World,
) -> None:
    monitor, found = circuit_open(world, seconds=302)
    tried = set()
    for _ in range(120):
        agent = monitor.breaker_probe(world.now)
        if agent is not None:
            tried.add(agent.host)
            monitor.ssh_answered(False, f"{agent.host}: timed out")
        found += ticks(monitor, world, 1)
    assert tried == {"h1", "h2", "h3", "h4", "h5"}  # every 15 s another
    assert monitor.circuit_open
    reasons = [finding.reason for finding in found if finding.kind == "circuit_breaker_open"]
    assert len(reasons) == 2
    assert "SSH to other hosts does not work" in reasons[1] and "timed out" in reasons[1]
    keep_alive(world, "h1", "h2", "h3")
    assert [f.kind for f in ticks(monitor, world, 1)] == ["circuit_breaker_closed"]


def test_where_no_host_could_be_tried_the_breaker_closes_after_five_minutes(tmp_path: Path) -> None:
    world = World(tmp_path, heartbeat_timeout_s=10.0)
    for n in range(1, 6):
        world.register(f"w{n}")
        world.beat(f"launcher:w{n}")
    monitor, _ = circuit_open(world, seconds=295)
    assert [f.kind for f in ticks(monitor, world, 10)] == ["circuit_breaker_closed"]


def test_when_the_manager_stood_still_the_breaker_timeout_has_not_elapsed(world: World) -> None:
    monitor, _ = circuit_open(world, "h5", seconds=100)
    world.watched(monitor, 400.0)
    assert monitor.circuit_open
    keep_alive(world, "h5")
    assert monitor.breaker_probe(world.now) is None
    for _ in range(200):
        keep_alive(world, "h5")
        ticks(monitor, world, 1)
    assert monitor.breaker_probe(world.now) is not None


def test_one_silent_host_opens_no_breaker(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    ticks(monitor, world, 9)
    keep_alive(world, "h2", "h3", "h4", "h5")
    ticks(monitor, world, 2)
    assert not monitor.circuit_open


def idle_beat(world: World, cpu: float, **report: Any) -> None:
    usage = messages.WorkerUsage(cpu_percent=cpu, rss_bytes=1_000_000, processes=1)
    facts = messages.HostFacts(memory_bytes=16 * 2**30)
    world.beat("h1", world.report("w1", usage=usage, **report), facts=facts)


def test_a_worker_below_both_thresholds_for_a_minute_is_suspect_and_nothing_more(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    found: list[Finding] = []
    for _ in range(62):
        idle_beat(world, 0.0)
        keep_alive(world, "h2", "h3", "h4", "h5")
        found += world.watched(monitor, 1.0)
    assert [(f.kind, f.subject) for f in found] == [("worker_suspect", "w1")]
    idle_beat(world, 50.0)
    assert [f.kind for f in world.watched(monitor, 1.0)] == ["worker_clear"]


@pytest.mark.parametrize(
    "sign",
    [{"idle_because": "output"}, {"idle_because": "listening"}, {"health": messages.Health("ok", "200 in 3 ms")}],
)
def test_an_idle_worker_that_prints_or_waits_for_requests_or_is_healthy_is_not_suspect(
    world: World, sign: dict[str, Any]
) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    for _ in range(70):
        idle_beat(world, 0.0, **sign)
        keep_alive(world, "h2", "h3", "h4", "h5")
        assert world.watched(monitor, 1.0) == []
    for _ in range(62):
        idle_beat(world, 0.0)
        keep_alive(world, "h2", "h3", "h4", "h5")
        found = world.watched(monitor, 1.0)
        if found:
            break
    assert [one.kind for one in found] == ["worker_suspect"]


def test_a_busy_worker_is_never_suspect(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    for _ in range(70):
        idle_beat(world, 3.0)
        keep_alive(world, "h2", "h3", "h4", "h5")
        assert world.watched(monitor, 1.0) == []


def test_what_the_host_found_makes_a_worker_suspect_once_and_clears(world: World) -> None:
    """The numbers in the evidence change with every heartbeat; only a new kind of sign is an event."""
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)

    def say(suspect: str) -> list[Finding]:
        world.beat("h1", world.report("w1", suspect=suspect))
        keep_alive(world, "h2", "h3", "h4", "h5")
        return world.watched(monitor, 1.0)

    found = say("no output for 61 s")
    assert [(f.kind, f.subject, f.reason) for f in found] == [("worker_suspect", "w1", "no output for 61 s")]
    assert say("no output for 62 s") == []
    stopped = "process 7 (python) has been stopped by a signal for 10 s"
    assert [f.reason for f in say(f"{stopped}; no output for 63 s")] == [f"{stopped}; no output for 63 s"]
    assert [f.kind for f in say("")] == ["worker_clear"]
    assert say("") == []


# --------------------------------------------------------------------------------------- clocks, lateness, intervals


def test_a_wall_clock_that_jumps_ten_years_changes_nothing(world: World) -> None:
    """The same history with a wall clock that jumps back and forth at every tick."""
    reported = []
    for jump_s in (0.0, 3600.0, -3600.0, 10 * 365 * 86400.0, -10 * 365 * 86400.0):
        fleet, monitor = world.fleet, ProcessMonitor(world.fleet, world.settings, world.now)
        kinds = []
        for second in range(40):
            world.now = Now(world.now.monotonic + 1.0, world.now.wall + (jump_s if second % 2 else -jump_s) + 1.0)
            keep_alive(world, "h2", "h3", "h4", "h5", *(["h1"] if not 8 <= second < 30 else []))
            if second == 8:
                fleet.agents.heartbeats.poll_opened("h1", world.now)
                fleet.agents.heartbeats.poll_closed("h1", world.now, peer_closed=True)
            for finding in world.watched(monitor):
                kinds.append((second, finding.kind, finding.subject))
                if finding.kind in ("suspect", "unreachable"):
                    fleet.agents.mark(finding.subject, finding.kind, finding.reason, world.now)
        reported.append(kinds)
    assert reported == [[(9, "suspect", "h1"), (9, "lost", "h1"), (19, "unreachable", "h1")]] * 5


def test_a_late_manager_shifts_what_a_lost_connection_waits_for_too(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    lose(world, "h1")
    world.pass_time(60.0)  # the manager was frozen just then: the agent may have come back unheard
    assert findings(monitor, world) == []
    world.pass_time(0.6)
    assert findings(monitor, world) == [("suspect", "h1"), ("lost", "h1")]


def test_an_agent_that_reported_while_the_manager_was_late_is_owed_no_extra_time(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    world.pass_time(120.0)
    keep_alive(world, "h1", "h2", "h3", "h4", "h5")
    assert world.watched(monitor) == []
    assert ticks(monitor, world, 10) == []
    assert [f.kind for f in ticks(monitor, world, 1)].count("unreachable") == 5


def test_being_a_little_late_is_no_excuse(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    for _ in range(4):
        assert world.watched(monitor, 2.4) == []  # each tick 1.4 s late: less than a heartbeat
    assert {f.subject for f in world.watched(monitor, 2.4)} >= {"h1", "h2", "h3", "h4", "h5"}


def test_after_a_start_there_is_grace_and_a_stall_lengthens_it(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    assert monitor.in_grace(world.pass_time(29.0))
    regular = ProcessMonitor(world.fleet, world.settings, world.now)
    ticks(regular, world, 31)
    assert not regular.in_grace(world.now)
    fresh = ProcessMonitor(world.fleet, world.settings, world.now)
    world.watched(fresh, 100.0)
    assert fresh.in_grace(world.pass_time(20.0))


def test_a_removed_host_or_worker_is_no_finding(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    lose(world, "h1", away_s=0.2)
    idle_beat(world, 0.0)
    with world.changing() as tx:
        ownership.drop_worker(world.fleet.state, tx, world.fleet.state.workers_by_id["w1"], "forgotten", forgotten=True)
        ownership.drop_agent(tx, world.fleet.state.agents_by_id["h1"])
    assert [f for f in ticks(monitor, world, 3) if f.subject in ("h1", "w1")] == []


def test_a_large_fleet_reports_less_often_but_thrice_within_every_timeout() -> None:
    settings = FleetSettings(heartbeat_timeout_s=30.0)
    assert [settings.interval_for(agents) for agents in (1, 1000, 3000, 4000, 10_000)] == [6.0, 6.0, 6.0, 8.0, 10.0]
    quick = FleetSettings(heartbeat_timeout_s=1.0)
    assert quick.interval_for(1) == pytest.approx(0.2)
    assert quick.interval_for(10_000) == pytest.approx(1 / 3)


def test_an_agent_receives_the_interval_of_the_fleet_and_of_its_shortest_lease(world: World) -> None:
    assert world.beat("h1", world.report("w1")).interval_s == 2.0
    world.deploy({"h2": {"w2": {"command": "x", "on_partition": "fence", "lease_s": 3.0}}})
    assert world.beat("h2", world.report("w2")).interval_s == 1.0
    assert world.beat("h1", world.report("w1")).interval_s == 2.0
