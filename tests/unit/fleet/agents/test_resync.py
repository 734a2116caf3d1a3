"""After a start with a possibly incomplete state, no agent gets assignments before the agents have reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.fleet.store.interface import NotDurable
from tests.unit.fleet_world import World
from tests.unit.store_rig import refusing


@pytest.fixture
def lost(tmp_path: Path) -> World:
    """w1 on h1, w2 on h2; then the database is lost and only the snapshot remains."""
    world = World(tmp_path, "state.yaml")
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}, "h2": {"w2": {"command": "sleep 9"}}})
    world.fleet.close()
    (tmp_path / "state.db").unlink()
    world.fleet = world.open()
    return world


def test_no_assignment_is_handed_out_until_every_agent_has_reported(lost: World) -> None:
    assert lost.beat("h1", lost.report("w1")).assignments is None
    assert lost.fleet.agents.replies.news_for_agent("h1", "", 0, lost.now) is None
    assert lost.beat("h2", lost.report("w2")).assignments is not None
    assert lost.beat("h1", lost.report("w1")).assignments is not None


def test_an_agent_that_never_returns_does_not_hold_it_up_for_ever(lost: World) -> None:
    assert lost.beat("h1", lost.report("w1")).assignments is None
    lost.pass_time(3 * lost.settings.heartbeat_timeout_s + 1)
    assert lost.beat("h1", lost.report("w1")).assignments is not None
    reasons = [event["reason"] for event in lost.fleet.state.events() if event["kind"] == "state"]
    assert any("no heartbeat from: h2" in one for one in reasons)


def test_a_worker_that_has_moved_in_the_lost_part_is_started_nowhere_else(lost: World) -> None:
    epoch = lost.fleet.state.workers_by_id["w1"].epoch + 1
    assert lost.beat("h1").assignments is None
    grant = lost.fleet.state.grant("w1", epoch, "h2")  # as the manager that moved it gave it to h2
    reply = lost.beat("h2", lost.report("w2"), lost.report("w1", epoch=epoch, grant=grant))
    assert [(one.worker_id, one.desired, one.epoch) for one in reply.assignments or []] == [
        ("w1", "running", epoch),
        ("w2", "running", lost.fleet.state.workers_by_id["w2"].epoch),
    ]
    assert [(one.worker_id, one.desired) for one in lost.beat("h1").assignments or []] == [("w1", "removed")]


def test_an_intact_state_is_handed_out_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}, "h2": {}})
    world.restart()
    assert world.beat("h1", world.report("w1")).assignments is not None


# ------------------------------------------------------------------------------------------------ disks that refuse


def test_with_a_disk_that_refuses_heartbeats_are_answered_and_nothing_new_is_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "sleep 9", "on_partition": "fence"}}})
    rev = world.beat("h1", world.report("w1", lease_left_s=30.0)).assignments_rev

    with monkeypatch.context() as patched:
        refusing(patched)
        with pytest.raises(NotDurable, match="No space left on device"):
            world.fleet.workers.command("w1", "stop", "tester", world.now)
        reply = world.beat("h1", world.report("w1"), assignments_rev=rev, events=[world.event("w1", "a", "b")])
        assert (reply.assignments, reply.commands, reply.events_acked) == (None, [], {})
        assert [lease.worker_id for lease in reply.leases] == ["w1"]
        assert world.fleet.agents.replies.news_for_agent("h1", rev, 0, world.now) is None
        assert "No space left" in world.fleet.state.durability.unwritten
    world.fleet.state.durability.commit()  # the manager's own round
    assert world.fleet.state.durability.unwritten == ""
    reply = world.beat("h1", world.report("w1"), assignments_rev=rev)
    assert [one.desired for one in reply.assignments or []] == ["stopped"]
    world.restart()
    assert world.fleet.state.workers_by_id["w1"].desired == "stopped"


# ---------------------------------------------------------------------------- long polls before the first heartbeat


def test_a_poll_before_the_first_heartbeat_gets_no_assignments_that_the_agent_has(tmp_path: Path) -> None:
    """After a restart of the manager, half of all agents poll before they send a heartbeat. Each received its
    assignments with another digest, and again with the heartbeat."""
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}})
    world.beat("h1", world.report("w1", attempt=1))
    rev = world.beat("h1", world.report("w1", attempt=1)).assignments_rev
    world.restart()
    replies = world.fleet.agents.replies
    assert replies.news_for_agent("h1", rev, 0, world.now) is None
    reply = world.beat("h1", world.report("w1", attempt=1), assignments_rev=rev)
    assert (reply.assignments_rev, reply.assignments) == (rev, None)
    assert replies.news_for_agent("h1", rev, 0, world.now) is None
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    assert replies.news_for_agent("h1", rev, 0, world.now) is not None


def test_a_command_that_a_poll_before_the_first_heartbeat_did_not_get_comes_with_the_heartbeat(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}})
    rev = world.beat("h1", world.report("w1", attempt=1)).assignments_rev
    world.restart()
    world.fleet.workers.command("w1", "restart", "tester", world.now)
    assert world.fleet.agents.replies.news_for_agent("h1", rev, 0, world.now) is None
    assert [one.command for one in world.beat("h1", world.report("w1", attempt=1)).commands] == ["restart"]
