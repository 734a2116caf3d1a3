"""Transactions are the only way to change the fleet's state: everything in one commit, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from procguard.fleet.model.records import CommandRecord
from procguard.fleet.recovery.monitor import ProcessMonitor
from procguard.fleet.state import FleetState
from procguard.fleet.store.interface import Change, Line, NotDurable
from procguard.fleet.workers import ownership
from tests.unit.fleet_world import SECRET, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "sleep 9"}, "w2": {"command": "x"}}, "h2": {}}, labels={"h1": {"a": "b"}})
    world.fleet.agents.secrets.set("h1", SECRET, "tester", world.now)
    world.beat("h1", world.report("w1"), world.report("w2"))
    world.beat("h2")
    return world


class Commits:
    """What reaches the store; `refuse`: the disk refuses writes."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[Sequence[Change], Sequence[Line]]] = []
        self.refuse = False
        commit = world.fleet.state.store.commit

        def counted(changes: Sequence[Change], history: Sequence[Line] = ()) -> None:
            if self.refuse:
                raise NotDurable("No space left on device", "free some")
            self.made.append((changes, history))
            commit(changes, history)

        monkeypatch.setattr(world.fleet.state.store, "commit", counted)


def everything(state: FleetState) -> Any:
    """All that is kept and found by an index, and all that was told."""
    indexes = (
        state.agent_by_secret,
        state.agent_by_new_secret,
        sorted(state.agent_status),
        sorted(state.worker_status),
    )
    own = {agent_id: sorted(state.own_workers(agent_id)) for agent_id in state.agents_by_id}
    queue = state.command_queue
    open_commands = {one: [c.command_id for c in queue.open_of_worker(one)] for one in state.workers_by_id}
    shown = [queue.status(record) for record in queue.recent()]
    return copy.deepcopy((state.tables(), indexes, own, open_commands, shown, state.events(limit=1_000)))


def test_a_change_its_events_and_its_command_are_one_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fleet.state.durability.commit()  # that the agents have come
    commits = Commits(world, monkeypatch)
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    [(changes, history)] = commits.made
    assert sorted(table for table, _, _ in changes) == ["commands", "workers"]
    assert [event["kind"] for _, event in history] == ["command"]


def test_what_did_not_change_is_not_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = Commits(world, monkeypatch)
    with world.changing() as tx:
        worker = tx.edit(world.fleet.state.find("w1"))
        worker.desired = worker.desired
    assert commits.made == []


def test_an_exception_takes_everything_back_and_notifies_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    state, commits = world.fleet.state, Commits(world, monkeypatch)
    open_one = world.fleet.workers.command("w2", "restart", "tester", world.now)
    commits.made.clear()
    reported: list[Any] = []
    for signal in (state.bus.workers, state.bus.hosts, state.bus.events, state.bus.news, state.bus.commands):
        signal.subscribe(reported.append)
    before = everything(state)

    class Interrupted(Exception):
        pass

    with pytest.raises(Interrupted), world.changing() as tx:
        w1, h1 = state.find("w1"), state.agent("h1")
        ownership.withdraw(state, tx, h1, w1)
        world.fleet.placement.transfer(tx, w1, "h2", "h2")
        state.command_queue.add(tx, w1, "start", 1)
        state.command_queue.finish(tx, open_one, "done", "as it seems")
        state.set_secrets(tx, h1, secret_sha256="", next_sha256="b" * 64)
        state.set_secrets(tx, h1, secret_sha256="c" * 64)
        ownership.drop_worker(state, tx, state.find("w2"), "forgotten")
        ownership.drop_agent(tx, state.agent("h2"))
        tx.event("deploy", reason="half of it")
        assert everything(state) != before
        raise Interrupted
    assert everything(state) == before
    assert (reported, commits.made) == ([], [])
    world.fleet.workers.command("w1", "stop", "tester", world.now)  # and everything continues
    assert world.fleet.state.worker("w1")["desired"] == "stopped"


def test_nobody_changes_a_record_or_a_table_outside(world: World) -> None:
    state = world.fleet.state
    record = world.fleet.workers.command("w1", "restart", "tester", world.now)
    token = world.fleet.tokens.add("viewer", "t", SECRET, "tester", world.now)
    for kept, name in (
        (state.find("w1"), "desired"),
        (state.agent("h1"), "spare"),
        (record, "status"),
        (token, "name"),
        (state._fleet, "term"),
    ):
        with pytest.raises(AttributeError, match="outside a transaction"):
            setattr(kept, name, "stopped")
    with pytest.raises(TypeError):
        del state.workers_by_id["w1"]  # type: ignore[attr-defined]
    with world.changing() as tx:
        worker = tx.edit(state.find("w1"))
        worker.moves = 3
    with pytest.raises(AttributeError, match="outside a transaction"):
        worker.moves = 4


def test_two_transactions_never_change_the_same_record(world: World) -> None:
    worker = world.fleet.state.find("w1")
    with world.changing() as tx, pytest.raises(RuntimeError, match="another transaction"):
        tx.edit(worker)
        with world.changing() as other:
            other.edit(worker)


def test_where_the_disk_refuses_the_change_holds_is_shown_and_is_written_with_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, commits = world.fleet.state, Commits(world, monkeypatch)
    shown: list[str] = []
    state.bus.workers.subscribe(shown.append)
    commits.refuse = True
    with pytest.raises(NotDurable):
        world.fleet.workers.command("w1", "stop", "tester", world.now)
    assert (state.find("w1").desired, shown) == ("stopped", ["w1"])
    reported = world.beat("h1", world.report("w1", "running", generation=1))
    assert reported.assignments is None and reported.commands == []  # nothing that could be lost is handed out
    commits.refuse = False
    state.durability.commit()
    reported = world.beat("h1", world.report("w1", "running", generation=1))
    assert [one.desired for one in reported.assignments or []] == ["stopped", "running"]


def test_no_agent_gets_a_change_whose_commit_is_under_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its assignments may be rebuilt for another reason while the change waits for the disk."""
    state, reported = world.fleet.state, []
    commit, nested = state.durability.commit, []

    def asked_meanwhile() -> None:
        if not nested:
            nested.append(True)
            waited = []
            with monkeypatch.context() as inner:
                inner.setattr(state, "make_durable_for", waited.append)
                reported.append(world.fleet.agents.replies.news_for_agent("h1", "an older one", 0, world.now))
            assert waited == ["h1"]
            assert state.agent_status["h1"].last_change == state.durability.made  # so that it would have waited
        commit()

    monkeypatch.setattr(state.durability, "commit", asked_meanwhile)
    with world.changing() as tx:
        tx.edit(state.find("w1")).epoch = state.next_epoch(tx)
    assert len(reported) == 1


def test_who_decides_or_shows_changes_nothing(world: World) -> None:
    """The monitor, leases, placement and views only read; other components act on their findings."""
    fleet, state = world.fleet, world.fleet.state
    world.fleet.workers.command("w1", "restart", "tester", world.now)
    monitor = ProcessMonitor(fleet, world.settings, world.now)
    fleet.agents.heartbeats.poll_closed("h1", world.now, peer_closed=True)
    now = world.pass_time(60.0)

    def failed_probes() -> Any:
        observed = (state.agent_status, {key: vars(one) for key, one in state.worker_status.items()})
        return everything(state), copy.deepcopy(observed)

    before = failed_probes()
    assert monitor.tick(now)
    for worker in state.workers_by_id.values():
        fleet.leases.judge(worker.worker_id, now)
        fleet.placement.choose(worker, now)
        state.facts(worker)
    state.workers(), fleet.agents.views(), fleet.gangs.views(), fleet.operations.views(), state.commands()
    assert failed_probes() == before


def test_a_command_that_was_delivered_is_delivered_again_by_the_next_manager(world: World) -> None:
    record: CommandRecord = world.fleet.workers.command("w1", "restart", "tester", world.now)
    assert world.beat("h1", world.report("w1")).commands
    assert world.fleet.state.command_view(record.command_id)["status"] == "delivered"
    world.restart()
    assert world.fleet.state.command_view(record.command_id)["status"] == "accepted"
    assert [one.command_id for one in world.beat("h1", world.report("w1")).commands] == [record.command_id]
