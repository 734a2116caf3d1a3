"""The history: contents of events, filters, retention, and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from procguard.fleet.history.events import MAX_EVIDENCE_CHARS, EventBounds, EventLog
from procguard.fleet.history.query import Event, EventQuery
from procguard.fleet.model.clock import Now
from procguard.fleet.shapes.events import EVENT
from procguard.i18n.reasons import because
from remote_agent.protocol import messages
from tests.unit import store_rig
from tests.unit.fleet_world import World

NOW = Now(10.0, 1_790_000_000.0)


def opened(tmp_path: Path, **bounds: int) -> EventLog:
    """Also the log of an earlier manager that ended or was killed."""
    log = EventLog(store_rig.opened(tmp_path / "s.db")[0], EventBounds(**bounds))
    log.restore()
    return log


ENDED = because("exit.code", code=1, ran_s=3.0).then(because("restart.off"))


def later(seconds: float) -> Now:
    return Now(NOW.monotonic + seconds, NOW.wall + seconds)


def reasons(events: Any) -> list[str]:
    return [event["reason"] for event in events]


def test_an_event_carries_cause_evidence_and_actor(tmp_path: Path) -> None:
    log = opened(tmp_path)
    event = log.add("recovery", NOW, reason="SSH: refused", actor="failure handler", evidence={"look": "refused"})
    assert (event["cause"], event["evidence"], event["actor"]) == ("agent_lost", {"look": "refused"}, "failure handler")
    assert log.add("agent_connected", NOW, reason="heard")["cause"] is None


def test_evidence_is_bounded(tmp_path: Path) -> None:
    event = opened(tmp_path).add("warning", NOW, reason="r" * 100_000, evidence={"text": "x" * 100_000})
    assert len(event["evidence"]) <= MAX_EVIDENCE_CHARS + 1 and len(event["reason"]) < 10_000


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (EventQuery(), ["a", "b", ENDED]),
        (EventQuery(worker=("w1",)), ["a", ENDED]),
        (EventQuery(worker=("w1", "w2")), ["a", "b", ENDED]),
        (EventQuery(host=("h2",)), ["b"]),
        (EventQuery(kind=("worker_failed",)), [ENDED]),
        (EventQuery(cause=("oom",)), [ENDED]),
        (EventQuery(actor=("me",)), ["a"]),
        (EventQuery(since=NOW.wall + 5), ["b", ENDED]),
        (EventQuery(until=NOW.wall + 15), ["a", "b"]),
        (EventQuery(since=NOW.wall + 5, until=NOW.wall + 15), ["b"]),
        (EventQuery(text="CODE oom"), [ENDED]),
        (EventQuery(text="nowhere"), []),
        (EventQuery(after=2), [ENDED]),
        (EventQuery(before=3), ["a", "b"]),
        (EventQuery(operation=("o-1",)), ["b"]),
        (EventQuery(reason_code=("exit.code",)), [ENDED]),
        (EventQuery(reason_code=("exit",)), [ENDED]),
        (EventQuery(reason_code=("restart.off", "no.such")), [ENDED]),  # a reason that follows the first
        (EventQuery(reason_code=("exit.cod",)), []),
        (EventQuery(reason_code=("text",), kind=("command",)), ["a"]),
    ],
)
def test_every_filter_holds_in_memory_and_on_disk_alike(tmp_path: Path, query: EventQuery, found: list[str]) -> None:
    log = opened(tmp_path)
    log.add("command", NOW, reason="a", worker_id="w1", host="h1", actor="me")
    log.add("worker_state", later(10), reason="b", worker_id="w2", host="h2", evidence={"operation_id": "o-1"})
    log.add("worker_failed", later(20), reason=ENDED, worker_id="w1", host="h1", cause="oom")
    assert reasons(log.find(query)) == found
    assert reasons(log.stream(query)) == found
    assert reasons(log.search(query)) == found
    later_one = opened(tmp_path, keep=1)  # of a run that has but one of them in memory
    assert reasons(later_one.search(query)) == found


def test_memory_and_disk_stay_within_their_bounds(tmp_path: Path) -> None:
    log = opened(tmp_path, keep=100, disk_bytes=100_000)
    for number in range(0, 2_000, 10):
        for one in range(10):
            log.add("warning", NOW, reason=f"number {number + one}")
        log.flush()
    assert len(log.find(EventQuery(), limit=10_000)) == 100
    streamed = [event["seq"] for event in log.stream(EventQuery())]
    assert streamed == list(range(streamed[0], 2_001)) and len(streamed) > 150
    assert streamed == [event["seq"] for event in log.search(EventQuery(), 10_000)]
    log._store.save()
    assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.name == "s.db") < 250_000
    log.flush()
    assert opened(tmp_path, keep=100, disk_bytes=100_000).add("warning", NOW, reason="next")["seq"] == 2_001


def test_what_is_beyond_a_source_s_share_is_found_as_long_as_it_is_in_memory(tmp_path: Path) -> None:
    log = opened(tmp_path, disk_bytes=20_000)
    for number in range(20):
        log.add("worker_state", NOW, host="h1", reason=f"number {number}", source="h1")
    log.flush()
    assert log.left_out > 5
    assert len(log.search(EventQuery(host=("h1",)), 100)) == 21  # and the warning
    assert len(list(log.stream(EventQuery(host=("h1",))))) == 21 - log.left_out


def test_an_export_contains_nothing_that_came_after_it_began(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for number in range(300):
        log.add("warning", NOW, reason=f"number {number}")
    export = log.stream(EventQuery())
    first = next(export)
    log.add("warning", NOW, reason="later")
    log.flush()
    assert [first["seq"], *(event["seq"] for event in export)] == list(range(1, 301))


def test_a_host_alone_has_the_whole_memory(tmp_path: Path) -> None:
    log = opened(tmp_path, keep=100)
    for number in range(300):
        log.add("worker_state", NOW, host="only", reason=f"number {number}", source="only")
    assert [event["seq"] for event in log.find(EventQuery(), 1_000)] == list(range(201, 301))


def ended(world: World, **values: Any) -> messages.WorkerEvent:
    event = world.event("w1", "running", "backoff")
    event.exit = messages.ExitRecord(1, **values)
    return event


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"code": 3}, "exit_code"),
        ({"signal": 11}, "signal"),
        ({"signal": 9, "oom": True}, "oom"),
        ({"signal": 15, "cause": "unhealthy"}, "health"),
        ({"cause": "start_timeout"}, "start_timeout"),
        ({"cause": "lost"}, "lost"),
        ({"cause": "not_started", "reason": "command not found: pyton"}, "not_started"),
        ({"reason": "command not found: pyton"}, "not_started"),  # of a runner that names no cause
    ],
)
def test_the_cause_of_an_ending_is_reported_from_its_exit_record(
    tmp_path: Path, values: dict[str, Any], cause: str
) -> None:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "true"}}})
    world.beat("h1", world.report("w1", state="backoff"), events=[ended(world, **values)])
    (event,) = world.fleet.state.find_events(EventQuery(kind=("worker_state",)), 10)
    assert event["cause"] == cause and event["evidence"]["exit"]["attempt"] == 1


def test_a_stop_is_caused_by_who_wanted_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "true"}, "w2": {"command": "true"}}})
    world.fleet.workers.command("w1", "stop", "anna", world.now, origin="192.0.2.7, token")
    with world.changing() as tx:
        world.fleet.workers.stop_all(tx, "w9 failed")
    world.beat("h1", events=[world.event(name, "stopping", "stopped") for name in ("w1", "w2")])
    found = {e["worker_id"]: e for e in world.fleet.state.find_events(EventQuery(kind=("worker_state",)), 10)}
    assert (found["w1"]["cause"], found["w2"]["cause"]) == ("operator", "stop_all")
    (asked,) = world.fleet.state.find_events(EventQuery(kind=("command",)), 10)
    assert asked["actor"] == "anna" and asked["evidence"]["from"] == "192.0.2.7, token"
    world.restart()
    worker = world.fleet.state.find("w2")
    assert (worker.desired_by, worker.desired_cause, worker.desired_at) == (
        "failure handler",
        "stop_all",
        world.now.wall,
    )


def test_a_failed_worker_s_event_says_how_it_ended(tmp_path: Path) -> None:
    from procguard.fleet.recovery.handler import FailureHandler
    from procguard.fleet.recovery.incident import SshProbe
    from procguard.fleet.recovery.monitor import ProcessMonitor

    world = World(tmp_path)
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    FailureHandler(
        world.fleet, monitor=monitor, settings=world.settings,
        probe=lambda _one, _replace: SshProbe(True, "running", ""),
        spawn=lambda task: None, read_clock=lambda: world.now,
    )  # fmt: skip
    world.deploy({"h1": {"w1": {"command": "true"}}})
    world.beat("h1", world.report("w1", state="failed", last_exit=messages.ExitRecord(4, signal=9, oom=True)))
    (event,) = world.fleet.state.find_events(EventQuery(kind=("worker_failed",)), 10)
    assert event["cause"] == "oom" and json.loads(json.dumps(event["evidence"]))["exit"]["signal"] == 9


def test_every_kind_of_event_has_its_words() -> None:
    """Explained in both languages by explain and in alerts, and named on the portal's pages."""
    import re

    from procguard.i18n.words import LANGUAGES, Words

    root = Path(__file__).parents[4]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (root / "procguard" / "fleet").rglob("*.py"))
    code += (root / "procguard" / "manager" / "app.py").read_text(encoding="utf-8")
    kinds = set(re.findall(r'(?:tx\.event|self\._emit_event|_event)\(\s*(?:tx, )?"([a-z_]+)"', code))
    assert len(kinds) > 25
    of_the_audit = {"credentials", "deploy", "token"}  # whose English reason is all there is
    reported_otherwise = {"command", "worker_failed", "worker_state"}
    for name in ("en", "zh-CN"):
        shown = json.loads((root / "web" / "locales" / f"{name}.json").read_text(encoding="utf-8"))
        assert {kind for kind in kinds if f"event.{kind}" not in shown} == set()
    for language in LANGUAGES:
        words = Words(language)
        silent = {kind for kind in kinds if not words.has(f"event.{kind}")}
        assert silent - of_the_audit - reported_otherwise == set()


def test_a_fleet_of_thousands_leaves_room_for_what_the_manager_says(tmp_path: Path) -> None:
    """Each agent has caused one event, more than memory holds: all of the manager's newest events must be kept."""
    log = opened(tmp_path, keep=1_000)
    for number in range(2_000):
        log.add("agent_connected", NOW, reason="heard", host=f"h{number}", source=f"h{number}")
    for number in range(100):
        log.add("agent_unreachable", NOW, reason="no heartbeat", host=f"h{number}")
    assert len(log.find(EventQuery(kind=("agent_unreachable",)), 1_000)) == 100


def test_in_a_fleet_of_thousands_an_agents_newest_events_are_kept(tmp_path: Path) -> None:
    log = opened(tmp_path, keep=1_000)
    for number in range(2_000):
        log.add("agent_connected", NOW, reason="heard", host=f"h{number}", source=f"h{number}")
    for what in ("started", "crashed", "restarted"):
        log.add("worker_state", NOW, reason=what, host="h7", source="h7")
    assert reasons(log.find(EventQuery(host=("h7",)))) == ["started", "crashed", "restarted"]


def test_agents_that_say_a_lot_push_out_neither_the_managers_events_nor_a_quiet_agents(tmp_path: Path) -> None:
    log = opened(tmp_path, keep=1_000)
    log.add("deploy", NOW, reason="declared")
    log.add("agent_connected", NOW, reason="heard", host="quiet", source="quiet")
    for number in range(20_000):
        log.add("worker_state", NOW, reason="noise", host=f"loud{number % 40}", source=f"loud{number % 40}")
    assert reasons(log.find(EventQuery(kind=("deploy", "agent_connected")))) == ["declared", "heard"]


def test_the_type_of_an_event_has_the_fields_that_are_shown(tmp_path: Path) -> None:
    recorded = Event.__annotations__.keys()
    assert [one.name for one in EVENT if one.name != "logs"] == [*recorded]  # `logs` is added by the API
    assert opened(tmp_path).add("agent_connected", NOW, reason="heard").keys() == recorded
