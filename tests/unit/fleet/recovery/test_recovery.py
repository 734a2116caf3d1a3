"""The failure handler's actions for silent agents and failed workers: each row of its table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from procguard.fleet.history.query import EventQuery
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import AgentRecord
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery import policy as recovery
from procguard.fleet.recovery.handler import FailureHandler
from procguard.fleet.recovery.incident import Incident, SshProbe
from procguard.fleet.recovery.monitor import ProcessMonitor
from procguard.fleet.recovery.policy import RecoveryPolicy, decide
from remote_agent.protocol import messages
from tests.unit.fleet_world import SECRET, World

SETTINGS = FleetSettings(recovery_timeout_s=30.0, max_recovery_attempts=3)
NOW = Now(100.0, 1_790_000_100.0)


def incident(**values: object) -> Incident:
    made = Incident("h1", "h1", Now(90.0, 1_790_000_090.0), reachable_by_ssh=True)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def decided(
    one: Incident, settings: FleetSettings = SETTINGS, *, circuit_open: bool = False, grace: bool = False
) -> str:
    return decide(one, RecoveryPolicy(settings, circuit_open, grace), NOW).action


def test_a_silent_agent_is_probed_over_ssh_at_once() -> None:
    assert decide(incident(), RecoveryPolicy(SETTINGS), NOW)[:2] == ("probe", 0.0)


def test_a_hand_started_launcher_is_left_to_its_user() -> None:
    assert decided(incident(reachable_by_ssh=False)) == "leave"


def test_enable_auto_recovery_false_starts_nothing() -> None:
    assert decided(incident(), FleetSettings(enable_auto_recovery=False)) == "leave"


@pytest.mark.parametrize(("circuit_open", "grace"), [(True, False), (False, True)])
def test_the_breaker_and_the_grace_after_a_start_hold_it_back(circuit_open: bool, grace: bool) -> None:
    assert decided(incident(), circuit_open=circuit_open, grace=grace) == "wait"


def test_an_agent_whose_connection_closed_needs_no_grace() -> None:
    """It has sent a heartbeat since the manager's start, so that start is no explanation."""
    assert decided(incident(connection_closed=True), grace=True) == "probe"
    assert decided(incident(connection_closed=True), circuit_open=True) == "wait"


def test_a_host_out_of_reach_is_probed_again_however_long_it_takes() -> None:
    gone = incident(last_probe=SshProbe(False, "unknown", "timed out"), failed_probes=1_000, last_probe_at=99.0)
    decision = decide(gone, RecoveryPolicy(SETTINGS), NOW)
    assert (decision.action, decision.delay_s) == ("probe", 14.0)


def test_a_started_agent_has_recovery_timeout_to_reconnect() -> None:
    started = incident(last_probe=SshProbe(True, "started", "started"), starts=1, last_probe_at=80.0)
    decision = decide(started, RecoveryPolicy(SETTINGS), NOW)
    assert (decision.action, decision.delay_s) == ("wait", 10.0)


def test_attempts_end_after_max_recovery_attempts_with_a_reason() -> None:
    spent = incident(last_probe=SshProbe(True, "started", "started"), starts=3, last_probe_at=50.0)
    decision = decide(spent, RecoveryPolicy(SETTINGS), NOW)
    assert decision.action == "give_up"
    assert "max_recovery_attempts" in decision.reason


def test_the_table_in_the_docstring_names_every_row_in_order() -> None:
    for rows in (recovery.SILENT_AGENT, recovery.TASK):
        locations = [(recovery.__doc__ or "").index(f" {row.__name__} ") for row in rows]
        assert locations == sorted(locations)


def test_attempts_of_the_manager_before_count_without_another_probe() -> None:
    decision = decide(incident(starts=3), RecoveryPolicy(SETTINGS), NOW)
    assert (decision.action, "3 starts" in decision.reason) == ("give_up", True)


def test_a_probe_replaces_a_frozen_agent_only_after_heartbeat_timeout() -> None:
    """A short stop by a debugger is intended by its user."""
    assert decide(incident(last_heartbeat=95.0), RecoveryPolicy(SETTINGS), NOW).replace_frozen is False
    assert decide(incident(last_heartbeat=85.0), RecoveryPolicy(SETTINGS), NOW).replace_frozen is True
    assert (
        decide(incident(), RecoveryPolicy(SETTINGS), NOW).replace_frozen is True
    )  # no heartbeat in this run of the manager


def test_an_agent_found_frozen_is_probed_again_when_its_time_is_over() -> None:
    frozen = incident(last_heartbeat=95.0, last_probe=SshProbe(True, "frozen", "stopped"), last_probe_at=99.5)
    decision = decide(frozen, RecoveryPolicy(SETTINGS), NOW)
    assert (decision.action, decision.delay_s, decision.replace_frozen) == ("probe", 5.0, True)


class Ssh:
    """Scripted results of SSH probes; records the probed hosts."""

    def __init__(self, *answers: SshProbe) -> None:
        self.answers = list(answers)
        self.probed: list[str] = []
        self.replaced: list[bool] = []

    def __call__(self, agent: AgentRecord, replace_frozen: bool) -> SshProbe:
        self.probed.append(agent.agent_id)
        self.replaced.append(replace_frozen)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def handler(
    world: World, ssh: Ssh, settings: FleetSettings | None = None, urls: list[str] | None = None
) -> FailureHandler:
    settings = settings or world.settings
    monitor = ProcessMonitor(world.fleet, settings, world.now)
    while monitor.in_grace(world.now):  # heartbeats continue until the grace period after the manager's start ends
        world.pass_time(1.0)
        for agent_id, seen in world.fleet.state.agent_status.items():
            if seen.heartbeat is not None:
                world.fleet.agents.heartbeat(agent_id, seen.heartbeat, world.now)
        world.watched(monitor)
    return FailureHandler(
        world.fleet,
        monitor=monitor,
        settings=settings,
        probe=ssh,
        spawn=lambda task: task(),
        read_clock=lambda: world.now,
        manager_urls=lambda: urls or [],
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}})
    world.beat("h1", world.report("w1"))
    return world


def lose_connection(world: World, agent_id: str = "h1") -> None:
    world.fleet.agents.heartbeats.poll_opened(agent_id, world.now)
    world.fleet.agents.heartbeats.poll_closed(agent_id, world.now, peer_closed=True)
    world.pass_time(0.6)


def test_a_killed_agent_is_started_over_ssh_and_the_incident_reports_it(world: World) -> None:
    ssh = Ssh(SshProbe(True, "started", "agent started"))
    failures = handler(world, ssh)
    lose_connection(world)
    failures.tick(world.now)
    assert ssh.probed == ["h1"]
    world.pass_time(1.0)
    world.beat("h1", world.report("w1"), pid=99)
    failures.tick(world.now)
    (recovery,) = failures.incidents()
    assert (recovery.outcome, recovery.starts) == ("recovered", 1)
    assert any("agent started" in step.text for step in recovery.steps)
    evidence = [event["evidence"] for event in world.fleet.state.events() if event["kind"] == "recovery"]
    assert {"ssh": {"reached": True, "agent": "started"}} in evidence and {"outcome": "recovered"} in evidence


def test_an_agent_killed_again_between_two_rounds_is_probed_at_once(world: World) -> None:
    """It was connected for less than a round: the first incident is over nevertheless, and the second has its own
    delay."""
    ssh = Ssh(SshProbe(True, "started", "agent started"))
    failures = handler(world, ssh)
    lose_connection(world)
    failures.tick(world.now)
    world.pass_time(1.0)
    world.beat("h1", world.report("w1"), pid=99)
    lose_connection(world)
    failures.tick(world.now)
    assert ssh.probed == ["h1", "h1"]
    assert [one.outcome for one in failures.incidents()] == ["open", "recovered"]


def test_a_dead_host_restarts_nothing_and_shows_unknown(world: World) -> None:
    ssh = Ssh(SshProbe(False, "unknown", "h1: cannot connect (timed out)"))
    failures = handler(world, ssh)
    for _ in range(40):
        failures.tick(world.pass_time(1.0))
    view = world.fleet.state.worker("w1")
    assert view["state"] == "unknown"
    assert "timed out" in view["reason"]
    assert world.fleet.state.workers_by_id["w1"].agent_id == "h1"
    assert len(ssh.probed) >= 3
    assert failures.incidents()[0].outcome == "open"


def test_a_probe_that_fails_is_an_answer_too(world: World) -> None:
    class Broken(Ssh):
        def __call__(self, agent: AgentRecord, replace_frozen: bool) -> SshProbe:
            super().__call__(agent, replace_frozen)
            raise RuntimeError("helper died")

    ssh = Broken(SshProbe(True, "started", ""))
    failures = handler(world, ssh)
    lose_connection(world)
    failures.tick(world.now)
    assert any("helper died" in step.text for step in failures.incidents()[0].steps)
    for _ in range(5):
        failures.tick(world.pass_time(1.0))
    assert len(ssh.probed) >= 2


def test_stop_all_on_failure_stops_every_worker_of_the_fleet(tmp_path: Path) -> None:
    world = World(tmp_path, stop_all_on_failure=True)
    world.deploy({"h1": {"w1": {"command": "a"}}, "h2": {"w2": {"command": "a"}}})
    world.beat("h1", world.report("w1"))
    world.beat("h2", world.report("w2"))
    handler(world, Ssh(SshProbe(True, "started", "")))
    world.beat("h1", world.report("w1", "failed", reason="exit code 1"))
    assert {worker.desired for worker in world.fleet.state.workers_by_id.values()} == {"stopped"}
    assert {"worker_failed", "stop_all"} <= set(world.kinds())


def test_without_stop_all_a_failed_worker_concerns_nobody_else(world: World) -> None:
    world.deploy({"h1": {"w1": {"command": "sleep 9"}, "w2": {"command": "a"}}})
    handler(world, Ssh(SshProbe(True, "started", "")))
    world.beat("h1", world.report("w1", "failed"), world.report("w2"))
    assert world.fleet.state.workers_by_id["w2"].desired == "running"


def test_a_launcher_that_went_away_is_not_probed(world: World) -> None:
    world.register("train", secret_sha256=SECRET)
    world.beat("launcher:train", world.report("train"))
    ssh = Ssh(SshProbe(True, "started", ""))
    failures = handler(world, ssh)
    lose_connection(world, "launcher:train")
    failures.tick(world.now)
    assert ssh.probed == []
    assert failures.incidents()[0].outcome == "left"


def test_what_agents_and_launchers_say_of_themselves_never_steers_ssh(world: World) -> None:
    """Host names and addresses that agents report are shown; only the deployment determines how to reach a host."""
    declared = {"hostname": "10.0.0.7", "user": "ml", "port": 22}
    world.fleet.workers.deploy({"hosts": [{"host": "h1", "ssh": declared, "workers": []}]}, "tester", world.now)
    facts = messages.HostFacts("evil.example -oProxyCommand=id", "os", "3", "root", 1, 1)
    world.beat("h1", facts=facts)
    world.register("spy", host="h1", secret_sha256=SECRET, peer="203.0.113.9")  # a launcher that says it is h1
    world.beat("launcher:spy", world.report("spy"), facts=facts)
    asked: list[AgentRecord] = []

    class Watched(Ssh):
        def __call__(self, agent: AgentRecord, replace_frozen: bool) -> SshProbe:
            asked.append(agent)
            return super().__call__(agent, replace_frozen)

    failures = handler(world, Watched(SshProbe(True, "started", "")))
    for agent_id in ("h1", "launcher:spy"):
        lose_connection(world, agent_id)
    failures.tick(world.now)
    assert [(agent.agent_id, agent.host, agent.ssh) for agent in asked] == [("h1", "h1", declared)]


def test_a_frozen_agent_is_left_alone_at_first_and_counts_as_no_attempt(world: World) -> None:
    ssh = Ssh(SshProbe(True, "frozen", "stopped by a signal"), SshProbe(True, "started", "replaced"))
    failures = handler(world, ssh)
    lose_connection(world)
    failures.tick(world.now)
    assert (ssh.replaced, failures.incidents()[0].starts) == ([False], 0)
    for _ in range(11):
        failures.tick(world.pass_time(1.0))
    assert (ssh.replaced, failures.incidents()[0].starts) == ([False, True], 1)


def test_giving_up_is_a_state_of_its_own_with_an_alert_and_outlives_the_manager(world: World) -> None:
    ssh = Ssh(SshProbe(True, "started", "started"))
    failures = handler(world, ssh)
    for _ in range(400):
        failures.tick(world.pass_time(1.0))
    assert "recovery_gave_up" in world.kinds()
    assert len(ssh.probed) == 3
    world.fleet.state.durability.commit()
    world.restart()
    assert world.fleet.state.hosts()[0]["recovery"]["outcome"] == "gave_up"
    failures = handler(world, ssh)
    failures.open_incidents_for_silent_agents(world.now)
    failures.tick(world.pass_time(1.0))
    assert len(ssh.probed) == 3
    assert failures.incidents()[0].outcome == "gave_up"


def test_an_agent_that_was_given_the_managers_new_addresses_is_an_event(world: World) -> None:
    failures = handler(world, Ssh(SshProbe(True, "running", "it only knew http://a", ("http://b", "http://c"))))
    lose_connection(world)
    failures.tick(world.now)
    event = next(one for one in world.fleet.state.event_log.find(EventQuery()) if one["kind"] == "agent_addresses")
    assert (event["host"], event["reason"], event["cause"]) == ("h1", "http://b, http://c", "agent_lost")
    assert "http://a" in failures.incidents()[0].steps[-1].text


def test_giving_up_says_that_no_address_works_from_the_host(world: World) -> None:
    failures = handler(world, Ssh(SshProbe(True, "running", "no address leads here (http://a: refused)", no_way=True)))
    for _ in range(400):
        failures.tick(world.pass_time(1.0))
    last = failures.incidents()[0]
    assert (last.outcome, "http://a: refused" in last.steps[-1].text) == ("gave_up", True)


def test_attempts_of_a_manager_with_other_addresses_do_not_count(world: World) -> None:
    """It has been corrected since: earlier failed attempts do not count."""
    ssh = Ssh(SshProbe(True, "running", "no address leads here", no_way=True))
    failures = handler(world, ssh, urls=["http://a"])
    for _ in range(400):
        failures.tick(world.pass_time(1.0))
    assert len(ssh.probed) == 3
    for urls, probed in ((["http://a"], 3), (["http://b"], 4)):
        world.fleet.state.durability.commit()
        world.restart()
        failures = handler(world, ssh, urls=urls)
        failures.open_incidents_for_silent_agents(world.now)
        failures.tick(world.pass_time(1.0))
        assert len(ssh.probed) == probed
    shown = {"starts", "outcome", "reason", "reason_code", "reason_params"}
    assert set(world.fleet.state.hosts()[0]["recovery"]) == shown


def test_an_agent_that_reconnects_has_all_its_attempts_again(world: World) -> None:
    failures = handler(world, Ssh(SshProbe(True, "started", "started")))
    for _ in range(400):
        failures.tick(world.pass_time(1.0))
    world.beat("h1", world.report("w1"), pid=99)
    assert world.fleet.state.agents_by_id["h1"].incident is None


def test_a_lost_host_and_a_failed_worker_are_in_the_failure_history(world: World) -> None:
    failures = handler(world, Ssh(SshProbe(False, "unknown", "timed out")))
    world.beat("h1", world.report("w1", "failed"))
    for _ in range(15):
        failures.tick(world.pass_time(1.0))
    assert [one.kind for one in world.fleet.state.agents_by_id["h1"].failures] == ["worker_failed", "agent_silent"]


# ------------------------------------------------------------------------------------------------ thousands at once


def crowd(tmp_path: Path, rest: Callable[[World], None], urls: Callable[[], list[str]]) -> tuple[World, FailureHandler]:
    """50 hosts without a heartbeat since the manager started. `rest(world)`: what the other hosts do meanwhile."""
    world = World(tmp_path)
    world.deploy({f"h{number}": {f"w{number}": {"command": "sleep 9"}} for number in range(50)})
    world.fleet.state.durability.commit()
    world.restart()
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    while monitor.in_grace(world.now):
        world.watched(monitor, 1.0)
    never = Ssh(*[SshProbe(False, "unknown", "refused")] * 1000)
    failures = FailureHandler(
        world.fleet, monitor=monitor, settings=world.settings, probe=never, spawn=lambda task: task(),
        read_clock=lambda: world.now, manager_urls=urls, rest=lambda: rest(world),
    )  # fmt: skip
    return world, failures


def test_an_agent_that_reports_during_the_scan_gets_no_incident(tmp_path: Path) -> None:
    last_heartbeat: list[str] = []

    def rest(world: World) -> None:
        if not last_heartbeat:
            last_heartbeat.append("h49")
            world.beat("h49", world.report("w49"))

    world, failures = crowd(tmp_path, rest, list)
    failures.open_incidents_for_silent_agents(world.now)
    found = world.fleet.state.agent_status
    assert [agent_id for agent_id, seen in found.items() if seen.state != "unreachable"] == ["h49"]


def test_others_have_their_turn_between_thousands_that_are_lost_and_return(tmp_path: Path) -> None:
    rests, asked = [], []
    world, failures = crowd(tmp_path, lambda _world: rests.append(1), lambda: asked.append(1) or ["http://a"])
    failures.open_incidents_for_silent_agents(world.now)
    assert (len(rests), len(asked)) == (50, 1), "its own addresses are asked for once, not for each"
    failures.tick(world.now)
    assert len(rests) == 100
    for number in range(50):
        world.beat(f"h{number}", world.report(f"w{number}"))
    failures.tick(world.pass_time(1.0))
    assert len(rests) == 150
    assert {one.outcome for one in failures.incidents()} == {"recovered"}


def test_who_returns_while_others_run_is_closed_before_the_monitor_runs(tmp_path: Path) -> None:
    """Otherwise its next loss would count as a step of the previous incident."""
    late = ["h7"]

    def rest(world: World) -> None:
        if returning and late:
            world.beat(late.pop(), world.report("w7"))

    returning: list[int] = []
    world, failures = crowd(tmp_path, rest, list)
    failures.open_incidents_for_silent_agents(world.now)
    world.beat("h3", world.report("w3"))
    returning.append(1)
    failures.tick(world.now)
    assert {one.agent_id for one in failures.incidents() if one.outcome == "recovered"} == {"h3", "h7"}
