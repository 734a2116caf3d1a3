"""A hostile agent or launcher affects only its own workers, whatever it reports, answers or sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from procguard.agent_api import decode
from procguard.errors import Conflict, UsageError
from procguard.fleet.history.events import EventBounds, EventLog
from procguard.fleet.history.query import EventQuery
from procguard.fleet.model import epochs
from procguard.fleet.model.clock import Now
from remote_agent.protocol import messages
from tests.unit.fleet_world import SECRET, World
from tests.unit.store_rig import opened

HIGHEST = 2**53 - 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    """w1 runs on h1; h2 (with w2) is hostile."""
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "secret-of-w1"}}, "h2": {"w2": {"command": "sleep 9"}}})
    world.beat("h1", world.report("w1", pid=4242))
    world.beat("h2", world.report("w2"))
    return world


def victim(world: World) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Everything that must not change: the record, its view, and the fleet's term."""
    view = {key: value for key, value in world.fleet.state.worker("w1").items() if key != "last_seen"}
    return world.fleet.state.workers_by_id["w1"].stored(), view, world.fleet.state.term


# ------------------------------------------------------------------------------------------------ claims


@pytest.mark.parametrize("epoch", [1, HIGHEST, 2**53, 2**63 - 1])
@pytest.mark.parametrize("grant", ["", "0" * 32, "\u00e9", "x" * 200])
def test_a_claim_without_a_grant_changes_nothing(world: World, epoch: int, grant: str) -> None:
    before = victim(world)
    reply = world.beat("h2", world.report("w2"), world.report("w1", epoch=epoch, generation=2**40, grant=grant))
    assert victim(world) == before
    assert [one.worker_id for one in reply.assignments or []] == ["w2"]
    assert "secret-of-w1" not in str(reply)


def test_a_claim_just_below_this_run_s_epochs_changes_nothing(tmp_path: Path) -> None:
    """The tolerance for agents after a state was restored gives another agent no access."""
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "secret-of-w1"}}, "h2": {"w2": {"command": "sleep 9"}}})
    world.pass_time(60)
    world.restart()
    before = victim(world)
    world.beat("h2", world.report("w1", epoch=world.fleet.state.first_epoch - 1))
    assert victim(world) == before


def test_the_grant_of_another_worker_epoch_or_agent_proves_nothing(world: World) -> None:
    epoch = world.fleet.state.workers_by_id["w1"].epoch + 1
    before = victim(world)
    for grant in (
        world.fleet.state.grant("w2", epoch, "h2"),
        world.fleet.state.grant("w1", epoch, "h1"),
        world.fleet.state.grant("w1", epoch - 1, "h2"),
        world.fleet.state.proof_key("h2"),
    ):
        world.beat("h2", world.report("w1", epoch=epoch, grant=grant))
    assert victim(world) == before


def test_an_unknown_worker_raises_no_epoch(world: World) -> None:
    term = world.fleet.state.term
    world.beat("h2", world.report("stranger", epoch=HIGHEST), world.report("other", epoch=HIGHEST, grant="0" * 32))
    assert world.fleet.state.term == term


def test_a_claim_that_is_refused_is_said_once(world: World) -> None:
    for _ in range(3):
        world.beat("h2", world.report("w1", epoch=HIGHEST))
    said = [event for event in world.fleet.state.events() if event["kind"] == "warning" and event["worker_id"] == "w1"]
    assert len(said) == 1 and "no grant" in said[0]["reason"]


def test_an_agent_raises_not_even_its_own_worker_s_epoch(world: World) -> None:
    own, term = world.fleet.state.workers_by_id["w2"].epoch, world.fleet.state.term
    world.beat("h2", world.report("w2", epoch=HIGHEST))
    assert (world.fleet.state.workers_by_id["w2"].epoch, world.fleet.state.term) == (own, term)


def test_an_agent_that_has_no_grants_is_granted_again_what_is_its_own(tmp_path: Path) -> None:
    """An agent of an earlier release accepts the manager of a restored state again, once."""
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}})
    known = world.fleet.state.workers_by_id["w1"].epoch
    world.pass_time(60)
    world.restart()
    for _ in range(3):
        reply = world.beat("h1", world.report("w1", epoch=known + 7))
    epoch = world.fleet.state.workers_by_id["w1"].epoch
    assert epoch == world.fleet.state.first_epoch + 1
    assert [(one.epoch, one.desired) for one in reply.assignments or []] == [(epoch, "running")]


def test_a_grant_survives_a_kill_of_the_manager_and_is_good_for_an_older_state(tmp_path: Path) -> None:
    """w1 moves to h2; then an earlier state is restored. h2 shows its grant, and h1 has to drop the worker."""
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}, "h2": {}})
    world.beat("h1", world.report("w1", "stopped"))
    world.fleet.state.durability.save()
    older = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    world.beat("h1", world.report("w1", "stopped"))
    world.fleet.placement.move("w1", "h2", "tester", world.now) if world.beat("h2") else None
    world.fleet.placement.moved(world.now)
    world.fleet.state.durability.commit()
    [reported] = world.beat("h2").assignments or []
    world.fleet = world.open()  # killed: nothing was closed
    assert world.fleet.state.grant("w1", reported.epoch, "h2") == reported.grant
    world.fleet.close()
    for path in tmp_path.iterdir():
        if path.is_file():
            path.unlink()
    for name, data in older.items():
        (tmp_path / name).write_bytes(data)
    world.fleet = world.open()
    assert world.fleet.state.workers_by_id["w1"].agent_id == "h1"
    world.beat("h2", world.report("w1", epoch=reported.epoch, grant=reported.grant))
    worker = world.fleet.state.workers_by_id["w1"]
    assert (worker.agent_id, worker.epoch) == ("h2", reported.epoch)
    assert world.next_epoch() > reported.epoch
    assert [(one.worker_id, one.desired) for one in world.beat("h1").assignments or []] == [("w1", "removed")]


def test_no_grant_takes_a_worker_from_who_is_connected_and_runs_it_under_a_higher_epoch(world: World) -> None:
    """An old grant of h2 beside an owner of an earlier release, whose higher epoch is unproven."""
    known = world.fleet.state.workers_by_id["w1"].epoch
    world.beat("h1", world.report("w1", epoch=known + 9, pid=4242))
    before = victim(world)
    old = world.fleet.state.grant("w1", known + 5, "h2")
    world.beat("h2", world.report("w1", epoch=known + 5, grant=old))
    assert victim(world) == before


def test_a_granted_epoch_far_beyond_the_clock_is_refused(world: World) -> None:
    """No manager can have granted it: the epoch is more than thirty days ahead of the manager's clock."""
    epoch = (epochs.next_term(0, world.now.wall) + epochs.MARGIN_TERMS + 1) * epochs.EPOCHS_PER_TERM
    before = victim(world)
    world.beat("h2", world.report("w1", epoch=epoch, grant=world.fleet.state.grant("w1", epoch, "h2")))
    assert victim(world) == before


def test_a_generation_beyond_reason_is_not_taken(world: World) -> None:
    before = world.fleet.state.workers_by_id["w2"].generation
    world.beat("h2", world.report("w2", generation=2**52))
    assert world.fleet.state.workers_by_id["w2"].generation == before
    world.beat("h2", world.report("w2", generation=before + 5))
    assert world.fleet.state.workers_by_id["w2"].generation == before + 5


# ------------------------------------------------------------------------------------------------ answers


def test_results_of_another_agent_s_commands_have_no_effect(world: World) -> None:
    record = world.fleet.workers.command("w1", "restart", "tester", world.now)
    for status in ("done", "failed", "expired"):
        world.beat("h2", world.report("w2"), results=[messages.CommandResult(record.command_id, status, "gotcha")])  # type: ignore[arg-type]
        assert record.open
    world.beat("h1", world.report("w1"), results=[messages.CommandResult(record.command_id, "done")])
    assert record.status == "done"


def test_a_launcher_s_plain_result_of_another_s_command_has_no_effect(world: World) -> None:
    world.register("w3", secret_sha256=SECRET)
    record = world.fleet.workers.command("w1", "restart", "tester", world.now)
    world.fleet.agents.heartbeats.take_plain(
        "w3", messages.WorkerHeartbeat(results=[messages.CommandResult(record.command_id, "done")]), world.now
    )
    assert record.open


def test_events_of_another_agent_s_worker_are_acknowledged_and_change_nothing(world: World) -> None:
    before, seq = victim(world), world.fleet.state.event_log.newest_seq
    event = messages.WorkerEvent("w1", 2**53, 1.0, 9, "running", "failed", "gotcha")
    reply = world.beat("h2", world.report("w2"), events=[event])
    assert victim(world) == before and world.fleet.state.event_log.newest_seq == seq
    assert reply.events_acked == {"w1": 2**53}


def test_numbers_that_a_thief_has_used_up_are_given_back_when_the_secret_is_revoked(world: World) -> None:
    """The next honest agent is served again."""
    thief = messages.WorkerEvent("w2", 2**47, 1.0, 1, "running", "failed", "gotcha")
    world.beat("h2", world.report("w2"), events=[thief])
    world.fleet.agents.secrets.revoke("h2", "tester", world.now)
    world.beat("h2", world.report("w2"), events=[world.event("w2", "running", "stopped", "the truth")])
    assert world.fleet.state.events(worker="w2")[-1]["reason"] == "the truth"


# ------------------------------------------------------------------------------------------------ a worker that left


@pytest.fixture
def moved(tmp_path: Path) -> World:
    """w1 was on h2, which never confirms that it has ended; it runs on h1 from attempt 4 on."""
    world = World(tmp_path)
    world.deploy({"h2": {"w1": {"command": "secret-of-w1"}}, "h1": {}})
    world.beat("h1")
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    world.beat("h2", world.report("w1", "stopped", attempt=3))
    world.deploy({"h1": {"w1": {"command": "secret-of-w1"}}, "h2": {}})
    assert world.fleet.state.workers_by_id["w1"].agent_id == "h1"
    world.beat("h1", world.report("w1", pid=4242, attempt=4))
    return world


def test_who_had_a_worker_reports_it_no_more(moved: World) -> None:
    assert "w1" in moved.fleet.state.agents_by_id["h2"].withdrawn
    assert not moved.fleet.agents.owns("h2", "w1")
    assert moved.fleet.agents.owns("h1", "w1")


def test_who_had_a_worker_brings_the_logs_of_its_own_attempts_alone(moved: World) -> None:
    allowed = [attempt for attempt in range(7) if moved.fleet.agents.may_ship("h2", "w1", attempt)]
    assert allowed == [0, 1, 2, 3]
    assert moved.fleet.agents.may_ship("h1", "w1", 4)
    assert not moved.fleet.agents.may_ship("h2", "other", 1)


def test_logs_of_a_forgotten_worker_never_get_into_a_later_one_of_its_name(world: World) -> None:
    world.fleet.workers.command("w2", "stop", "tester", world.now)
    world.beat("h2", world.report("w2", "stopped", attempt=3))
    world.fleet.workers.forget("w2", "tester", world.now)
    assert world.fleet.agents.may_ship("h2", "w2", 3)
    world.deploy({"h1": {"w1": {"command": "secret-of-w1"}, "w2": {"command": "sleep 8"}}})
    assert not world.fleet.agents.may_ship("h2", "w2", 3)


# ------------------------------------------------------------------------------------------------ registration


def test_a_stranger_learns_of_no_worker_by_registering_its_name(world: World) -> None:
    """The same answer for a name that runs elsewhere and for one that nobody has."""
    taken = world.register("w1", trusted=False, peer="10.0.0.9", secret_sha256="a" * 64)
    free = world.register("nobody", trusted=False, peer="10.0.0.9", secret_sha256="b" * 64)
    assert (taken.status, free.status) == ("pending", "pending")
    assert "h1" not in str(taken)
    with pytest.raises(Conflict, match="held by h1"):  # the operator learns it
        world.fleet.agents.enrolment.approve("launcher:w1", "tester", world.now)
    with pytest.raises(Conflict, match="held by h1"):  # and any caller that may register
        world.register("w1", trusted=True)


def test_one_address_can_t_keep_others_from_waiting_for_approval(tmp_path: Path) -> None:
    world = World(tmp_path, pending_launchers=4)
    for number in range(4):
        world.pass_time(1)
        world.register(f"n{number}", trusted=False, peer="10.0.0.9", secret_sha256=f"{number}" * 64)
    reply = world.register("mine", trusted=False, peer="10.0.0.7", secret_sha256="f" * 64)
    assert reply.status == "pending"
    waiting = {pending.agent_id for pending in world.fleet.agents.enrolment.waiting().values()}
    assert waiting == {"launcher:n1", "launcher:n2", "launcher:n3", "launcher:mine"}
    with pytest.raises(Conflict, match="launchers are already pending"):  # the other agents get no further share
        world.register("n9", trusted=False, peer="10.0.0.9", secret_sha256="9" * 64)


# ------------------------------------------------------------------------------------------------ shares


def test_one_agent_s_events_push_out_its_own_and_nobody_else_s(world: World) -> None:
    """The agent with the most data loses its oldest data; an event warns when its share of the disk is full."""
    world.emit("worker_state", reason="mine", worker_id="w1", source="h1")
    mine = world.fleet.state.events()[-1]
    for number in range(60):
        world.pass_time(30)
        events = [
            messages.WorkerEvent("w2", number * 400 + one, 1.0, 1, "running", "stopped", "x" * 4_000)
            for one in range(1, 401)
        ]
        world.beat("h2", world.report("w2"), events=events)
    kept = world.fleet.state.events(limit=10_000)
    assert mine in kept and len(kept) == 5_000
    assert "deploy" in {event["kind"] for event in kept}
    assert [event for event in kept if "share of the history on disk" in event["reason"]]
    on_disk = list(world.fleet.state.event_log.stream(EventQuery()))
    assert sum(len(json.dumps(event)) for event in on_disk) < 6 * 2**20
    assert mine in on_disk


def test_many_agents_together_push_out_nobody_s_events_either(tmp_path: Path) -> None:
    store, _ = opened(tmp_path / "s.db")
    log = EventLog(store, EventBounds(keep=100))
    now = Now(0.0, 1_790_000_000.0)
    quiet = [log.add("x", now, reason=f"q{number}", source="quiet") for number in range(5)]
    people = [log.add("x", now, reason="p") for _ in range(5)]
    for number in range(2_000):
        log.add("x", now, reason="noise", source=f"noisy{number % 8}")
    kept = log.query(limit=1_000)
    assert len(kept) == 100 and kept[:10] == quiet + people
    log.flush()
    again = EventLog(store, EventBounds(keep=100))
    again.restore()
    assert again.newest_seq == kept[-1]["seq"] and len(again.query(limit=1_000)) == 100


def test_events_beyond_an_agent_s_rate_are_said_again_later_and_none_is_lost(world: World) -> None:
    events = [messages.WorkerEvent("w2", seq, 1.0, 1, "running", "stopped", f"n{seq}") for seq in range(1, 1_301)]
    reply, rounds = world.beat("h2", world.report("w2"), events=events), 1
    assert 900 <= reply.events_acked["w2"] <= 1_000
    acked = reply.events_acked["w2"]
    while acked < 1_300:
        world.pass_time(2)
        left = [event for event in events if event.seq > acked]
        acked = max(acked, world.beat("h2", world.report("w2"), events=left).events_acked.get("w2", 0))
        rounds += 1
    assert rounds < 12
    assert [event["reason"] for event in world.fleet.state.events(worker="w2", limit=2_000)][-1_300:] == [
        f"n{seq}" for seq in range(1, 1_301)
    ]


def test_an_agent_that_seems_to_start_all_the_time_fills_no_history(world: World) -> None:
    for pid in range(1_500):
        world.beat("h2", world.report("w2"), pid=1000 + pid)
    started = world.kinds().count("agent_started")
    assert started <= 1_001
    world.pass_time(60)
    world.beat("h2", world.report("w2"), pid=1)
    assert any("changes were left out" in event["reason"] for event in world.fleet.state.events())


def test_heartbeats_that_change_much_wait_and_those_that_say_nothing_new_do_not(world: World) -> None:
    for _ in range(2_000):
        world.beat("h2", world.report("w2"))
    assert world.fleet.agents.heartbeats.wait_s("h2", world.now.monotonic) == 0.0
    for attempt in range(600):
        world.beat("h2", world.report("w2", attempt=attempt + 2))
    assert 0.5 < world.fleet.agents.heartbeats.wait_s("h2", world.now.monotonic) < 5
    assert world.fleet.agents.heartbeats.wait_s("h1", world.now.monotonic) == 0.0


def test_nothing_of_a_heartbeat_is_kept_but_the_agent_s_own(world: World) -> None:
    strays = [messages.WorkerReport(f"s{number}", reason="x" * 4_000) for number in range(1_000)]
    world.beat("h2", world.report("w2"), *strays, world.report("w1"))
    heartbeat = world.fleet.state.agent_status["h2"].heartbeat
    assert heartbeat is not None and [one.worker_id for one in heartbeat.workers] == ["w2"]


def test_times_beyond_all_calendars_are_shown_and_break_nothing(world: World) -> None:
    for wall in (1e300, -1e300, 1e18):
        world.beat("h2", world.report("w2", since=wall), started_at=wall, pid=int(abs(wall) % 97) + 2)
        assert len(world.fleet.state.workers()) == 2 and len(world.fleet.state.hosts()) == 2


@pytest.mark.parametrize("host", ["gpu01\nINFO all is well", "a\x1b[2J", "b\u202e", "c\0"])
def test_a_launcher_s_host_is_one_line_of_text(host: str) -> None:
    body = json.dumps({"worker_id": "w1", "command": "true", "host": host}).encode()
    with pytest.raises(UsageError, match="host: contains unprintable characters"):
        decode.read(messages.Registration, body)
