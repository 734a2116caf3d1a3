"""Mutes leave out messages of their workers in their time, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gevent
import pytest

from procguard.config.notifications import AlertTarget
from procguard.errors import LimitExceeded, UsageError
from procguard.fleet.model.clock import Now, iso
from procguard.notify.alerts import Message
from procguard.notify.formats import Outcome
from procguard.notify.mutes import Mutes
from procguard.notify.notifier import Notifier
from procguard.notify.routes import facts_of
from tests.unit.fleet_world import World
from tests.unit.notify.alert_examples import NOW, event, failed, finished, target


def at(wall: float, made: dict[str, Any]) -> dict[str, Any]:
    return {**made, "at": iso(wall)}


def test_a_mute_leaves_out_messages_of_its_workers_in_its_time_and_nothing_else(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.deploy({"gpu01": {"w1": {"command": "a", "group": "g"}, "w2": {"command": "b"}}})
    mutes, wall = Mutes(), NOW.wall
    mutes.put(mutes.made("group=g", wall + 100, 50.0, "", "anna", wall))
    mutes.put(mutes.made("host=gpu01,id!=w*", None, 50.0, "", "anna", wall))
    covered = lambda made: mutes.cover(made["at"], facts_of(world.fleet.state, made))  # noqa: E731
    assert [covered(at(wall + when, failed("w1"))) for when in (10, 110, 160)] == [False, True, False]
    assert not covered(at(wall + 110, failed("w2")))
    assert covered(at(wall + 10, event("agent_unreachable", host="gpu01")))
    assert not covered(at(wall + 10, event("agent_unreachable", host="gpu02")))


def test_what_is_muted_is_counted_and_never_sent() -> None:
    sent: list[Message] = []

    def send(_target: AlertTarget, made: Message, _now: Now) -> Outcome:
        sent.append(made)
        return Outcome(True, "ok")

    notifier = Notifier([target(group_wait=0.0)], lambda: "f-1", lambda: "", send=send,
                        muted=lambda made: made["worker_id"] == "w1")  # fmt: skip
    notifier.start()
    for seq, worker in ((1, "w1"), (2, "w2")):
        notifier.take({**failed(worker), "seq": seq})
    with gevent.Timeout(5):
        while not sent:
            gevent.sleep(0.01)
    notifier.stop()
    assert [list(one["worker_id"] for one in made.events) for made in sent] == [["w2"]]
    assert notifier.views()[0]["muted"] == 1 and notifier.tables()["notifier"]["oncall"]["seq"] == 2


@pytest.mark.parametrize(
    ("select", "begins", "for_s", "words"),
    [
        ("a b", None, 60.0, "is not a valid worker id"),
        ("*", None, 0.0, "more than 0 s"),
        ("*", None, 1e9, "at most 366 days"),
        ("*", NOW.wall - 100, 60.0, "already ended"),
        ("*", NOW.wall + 1e9, 60.0, "begins in more than a year"),
    ],
)
def test_a_mute_that_means_nothing_is_refused(select: str, begins: float | None, for_s: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Mutes().made(select, begins, for_s, "", "anna", NOW.wall)


def test_mutes_are_bounded_and_end_by_themselves() -> None:
    mutes = Mutes()
    for _ in range(500):
        mutes.put(mutes.made("*", None, 10.0, "", "anna", NOW.wall))
    with pytest.raises(LimitExceeded):
        mutes.made("*", None, 10.0, "", "anna", NOW.wall)
    assert mutes.made("*", None, 10.0, "", "anna", NOW.wall + 20) and mutes.views(NOW.wall + 20) == []
    again = Mutes()
    again.restore(mutes.tables()["mutes"], NOW.wall + 5)
    assert len(again.views(NOW.wall + 5)) == 500
    again = Mutes()
    again.restore(mutes.tables()["mutes"], NOW.wall + 20)
    assert again.tables() == {"mutes": {}}


def test_an_end_that_was_not_sent_is_sent_once_by_the_next_leader_with_the_same_id() -> None:
    ids: list[str] = []

    def send(_target: AlertTarget, made: Message, _now: Now) -> Outcome:
        ids.append(made.message_id)
        return Outcome(True, "ok")

    def leader() -> Notifier:
        return Notifier([target(events=["finished"], group_wait=0.0)], lambda: "f-1", lambda: "", send=send)

    history = [{**finished("w1", seq=5), "at": iso(NOW.wall)}]
    first = leader()
    first.resume({"oncall": {"seq": 4}}, [], NOW.wall)
    first.take(history[0])  # and ends before it has sent anything
    for kept in (first.tables()["notifier"], {"oncall": {"seq": 4}}):
        following = leader()
        following.resume(kept, history, NOW.wall)
        following.start()
        with gevent.Timeout(5):
            while following.tables() != {"notifier": {"oncall": {"seq": 5}}}:
                gevent.sleep(0.01)
        following.stop()
    after = leader()
    after.resume(following.tables()["notifier"], history, NOW.wall)
    assert after.views()[0]["queued"] == 0
    assert ids == ["f-1-finished-5"] * 2  # the second one never learnt that the first had sent it: the same id


def test_an_end_whose_last_lines_are_awaited_when_the_manager_stops_is_sent_by_the_next_one() -> None:
    sent: list[str] = []

    def send(_target: AlertTarget, made: Message, _now: Now) -> Outcome:
        sent.append(made.message_id)
        return Outcome(True, "ok")

    def run() -> Notifier:
        return Notifier([target(events=["finished"], group_wait=0.0)], lambda: "f-1", lambda: "", send=send)

    history = [{**finished("w1", seq=5), "at": iso(NOW.wall)}]
    first = run()
    first.resume({"oncall": {"seq": 4}}, [], NOW.wall)
    first.start()
    first.take(history[0])
    with gevent.Timeout(5):
        while "message" not in first.tables()["notifier"]["oncall"]:
            gevent.sleep(0.01)
    first.stop()
    assert sent == []
    following = run()
    following.resume(first.tables()["notifier"], history, NOW.wall)
    following.start()
    with gevent.Timeout(5):
        while not sent:
            gevent.sleep(0.01)
    following.stop()
    assert sent == ["f-1-finished-5"]
