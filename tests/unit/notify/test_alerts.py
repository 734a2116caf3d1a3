"""Which events become alerts for which targets, and in how many messages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gevent
import pytest

from procguard.config import schema
from procguard.config.notifications import ALERT_CLASSES, AlertTarget, NotifyRoute
from procguard.errors import ConfigError
from procguard.fleet.model.clock import Now
from procguard.notify import alerts
from procguard.notify.alerts import Gathering, Message
from procguard.notify.formats import Outcome
from procguard.notify.notifier import Notifier
from procguard.notify.routes import Routes, facts_of
from tests.unit.fleet_world import World
from tests.unit.notify.alert_examples import event, failed, finished, message, target


@pytest.mark.parametrize(
    ("asked", "kind", "expected"),
    [
        (["alerts"], "worker_failed", True),
        (["alerts"], "worker_state", False),
        (["failed"], "worker_failed", True),
        (["failed"], "stop_all", False),
        (["suspect"], "worker_clear", True),
        (["worker_state"], "worker_state", True),
        (["circuit_breaker", "stop_all"], "stop_all", True),
        (["all"], "token", True),
        (["finished"], "worker_failed", True),
        (["finished"], "worker_state", False),
        ([], "worker_failed", False),
    ],
)
def test_a_target_receives_what_it_asked_for(asked: list[str], kind: str, expected: bool) -> None:
    gathering = Gathering(target(events=asked))
    gathering.take(event(kind, "w1"), 0.0)
    assert gathering.waiting is expected


@pytest.mark.parametrize(("asked", "expected"), [(["finished"], True), (["worker_state"], True), (["alerts"], False)])
def test_a_good_end_goes_to_those_who_ask_for_it(asked: list[str], expected: bool) -> None:
    gathering = Gathering(target(events=asked))
    gathering.take(finished(), 0.0)
    assert gathering.waiting is expected


def test_the_message_of_an_end_says_how_long_which_attempt_why_and_the_last_lines() -> None:
    for made, expected in ((finished(), ("exited", 2, 0, "finished", 7_260.0)),
                           ({**failed(), "attempt": 4}, ("failed", 4, None, "oom", 540.0))):  # fmt: skip
        gathering = Gathering(target(events=["finished"]))
        gathering.take(made, 0.0)
        group = gathering.pop()
        assert group is not None
        key = ("w1", made["attempt"])
        said = alerts.compose(group, target(), "f-1", "http://head:5000", 0, {key: ["step 9", "saved"]})
        ended = alerts.payload(said)["ended"]
        assert [(one["state"], one["attempt"], one["code"], one["cause"], one["duration_s"]) for one in ended] == [
            expected
        ]
        assert ended[0]["last_lines"] == ["step 9", "saved"] and said.lines[-2:] == ["> step 9", "> saved"]
        assert said.link == ended[0]["link"] == "http://head:5000/#/workers/w1"
    chinese = alerts.compose(group, target(language="zh"), "f-1", "")
    assert "失败" in chinese.title


def test_last_lines_are_read_only_where_a_target_wants_them() -> None:
    asked: list[tuple[str, int, int]] = []

    def last_lines(worker_id: str, attempt: int, most: int) -> list[str]:
        asked.append((worker_id, attempt, most))
        return ["bye"]

    sent: list[Message] = []

    def send(_target: AlertTarget, made: Message, _now: Now) -> Outcome:
        sent.append(made)
        return Outcome(True, "ok")

    cases = (
        ("finished", 0, ()),
        ("finished", 3, ()),
        ("finished", None, ()),
        ("failed", None, ()),
        ("failed", None, ("t",)),
    )
    for number, (what, most, notified_of_ends) in enumerate(cases, 1):
        one = target(name="t", events=[what], group_wait=0.0, last_lines=most)
        notifier = Notifier(
            [one], lambda: "f-1", lambda: "", send=send, last_lines=last_lines, notified_of_ends=notified_of_ends
        )
        notifier.start()
        notifier.take(finished() if what == "finished" else {**failed(), "attempt": 4})
        with gevent.Timeout(5):
            while len(sent) < number:
                gevent.sleep(0.01)
        notifier.stop()
    assert [made.ended[0].last_lines for made in sent] == [[], ["bye"], ["bye"], [], ["bye"]]
    assert asked == [("w1", 2, 3), ("w1", 2, 5), ("w1", 4, 5)], "who asked for failures alone is sent no log"


def test_an_end_that_is_sent_at_once_still_has_lines_that_arrive_just_after_it() -> None:
    """An agent reports an end at once, and sends output within a few tenths of a second."""
    stored: list[str] = []
    sent: list[Message] = []

    def send(_target: AlertTarget, made: Message, _now: Now) -> Outcome:
        sent.append(made)
        return Outcome(True, "ok")

    one = target(name="t", events=["finished"], group_wait=0.0)
    notifier = Notifier(
        [one], lambda: "f-1", lambda: "", send=send, last_lines=lambda worker_id, attempt, most: list(stored)
    )
    notifier.start()
    notifier.take(finished())
    gevent.spawn_later(0.2, stored.append, "bye")
    with gevent.Timeout(5):
        while not sent:
            gevent.sleep(0.01)
    notifier.stop()
    assert sent[0].ended[0].last_lines == ["bye"]


def routed(world: World, made: dict[str, Any], *routes: dict[str, Any]) -> frozenset[str]:
    found = Routes([NotifyRoute.model_validate(route) for route in routes])
    return found.targets(made, facts_of(world.fleet.state, made))


def test_a_route_sends_the_alerts_of_some_workers_to_a_target(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.deploy({"gpu01": {"w1": {"command": "a", "labels": {"owner": "li"}, "group": "g"}, "w2": {"command": "b"}}})
    li = {"select": "label.owner=li", "to": "feishu-li", "on": ["finished", "failed"]}
    assert routed(world, finished("w1"), li) == {"feishu-li"}
    assert routed(world, failed("w1"), li) == {"feishu-li"}
    assert routed(world, finished("w2"), li) == frozenset()
    assert routed(world, event("worker_suspect", "w1"), li) == frozenset()
    assert routed(world, finished("w1"), {**li, "select": "group=g,state=exited"}) == {"feishu-li"}
    assert routed(world, finished("gone"), {**li, "select": "gone"}) == {"feishu-li"}
    hosts = {"select": "host=gpu0*", "to": ["a", "b"], "on": ["host_unreachable"]}
    assert routed(world, event("agent_unreachable", host="gpu01"), hosts) == {"a", "b"}
    assert routed(world, event("agent_unreachable", host="cpu1"), hosts) == frozenset()


def test_a_target_without_events_gets_what_is_routed_to_it_and_nothing_else() -> None:
    gathering = Gathering(target(events=[]))
    gathering.take(failed("w1"), 0.0)
    assert not gathering.waiting
    gathering.take(failed("w2"), 0.0, True)
    group = gathering.pop()
    assert group is not None and list(group.names) == ["w2"]


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ({"to": "nobody"}, "the name of a target of notifications (oncall)"),
        ({"to": []}, "notify.0.to"),
        ({"to": "oncall", "on": ["Fin"]}, "a class (failed"),
        ({"to": "oncall", "onn": []}, "unknown key"),
    ],
)
def test_a_route_that_leads_nowhere_is_refused(route: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    targets = [{"name": "oncall", "type": "webhook", "url": "http://127.0.0.1:9/"}]
    path.write_text(json.dumps({"notifications": targets, "notify": [route]}))
    with pytest.raises(ConfigError, match=re.escape(words)):
        schema.load(str(path))


def test_a_selector_that_cannot_be_read_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"notify, entry 1: select: selector.*is not a valid worker id"):
        Routes([NotifyRoute.model_validate({"select": "a b", "to": ["x"]})])


def test_every_alert_has_its_words_in_both_languages() -> None:
    from procguard.i18n.words import Words

    for language in ("en", "zh"):
        words = Words(language)
        for alert, severity in set(alerts.ALERT_OF_KIND.values()):
            assert words.has(f"alert.{alert}") or words.has(f"alert.{alert}_{severity}")
        assert all(words.has(f"event.{kind}") for kind in alerts.ALERT_OF_KIND if not kind.startswith("worker_failed"))
    assert {alert for alert, _ in alerts.ALERT_OF_KIND.values()} == set(ALERT_CLASSES)


def test_two_hundred_failures_are_one_message_with_a_count() -> None:
    said = message(count=200)
    assert said.count == 200 and len(said.events) == alerts.SAMPLES
    assert said.title == "200 workers failed: w1, w2, w3, w4, w5 and 195 more"
    assert said.lines[-1] == "… and 180 more"
    assert "killed by the kernel: out of memory" in said.lines[0]


def test_a_million_alerts_for_a_dead_endpoint_cost_no_memory() -> None:
    gathering = Gathering(target(dedup=0))
    for number in range(20_000):
        gathering.take(failed(f"w{number}"), float(number))
    assert gathering.queued == 20_000
    group = gathering.pop()
    assert group is not None and len(group.events) == alerts.SAMPLES and len(group.names) == alerts.NAMES
    assert len(gathering._sent_at) <= alerts.REMEMBERED


def test_the_same_alert_is_reported_once_within_the_window() -> None:
    gathering = Gathering(target(dedup=300))
    for now in (0.0, 10.0, 299.0):
        gathering.take(failed(), now)
    assert gathering.queued == 1 and gathering.deduplicated == 2
    gathering.take(failed("w2"), 1.0)
    gathering.take(failed(), 301.0)
    assert gathering.queued == 3


def test_a_host_is_reported_only_when_it_stays_out_of_reach_and_then_its_return_too() -> None:
    gathering = Gathering(target(unreachable_after=60))
    gathering.take(event("agent_unreachable"), 0.0)
    assert gathering.ripen(10.0) == 60.0 and not gathering.waiting
    gathering.take(event("agent_connected"), 20.0)
    assert gathering.ripen(100.0) is None and not gathering.waiting  # no message was sent for either
    gathering.take(event("agent_unreachable", host="gpu02"), 200.0)
    assert gathering.ripen(261.0) is None
    gathering.take(event("agent_connected", host="gpu02"), 300.0)
    first, second = gathering.pop(), gathering.pop()
    assert first is not None and (first.alert, first.severity) == ("host_unreachable", "critical")
    assert second is not None and (second.alert, second.severity) == ("host_unreachable", "info")


def test_messages_use_the_target_s_language() -> None:
    said = message(count=2, language="zh")
    assert said.title == "2 个 worker 失败：w1、w2"
    assert said.lines[0] == "w1（gpu01）：任务运行 9 分钟后因内存不足被内核终止（OOM）；不再重启，判定为失败"
