"""The loop: grouping, retries, giving up; and the messages of the next leader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from procguard.config.notifications import AlertTarget
from procguard.fleet.model.clock import Now, iso
from procguard.notify.alerts import Message
from procguard.notify.formats import Outcome
from procguard.notify.notifier import Notifier
from tests.sinks import HttpSink, Reply
from tests.unit.fleet_world import World
from tests.unit.notify.alert_examples import NOW, event, failed, target


class Endpoint:
    """A fake for all services: records messages, answers as scripted."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.messages: list[Message] = []

    def send(self, _target: AlertTarget, said: Message, _now: Now) -> Outcome:
        self.messages.append(said)
        return self.outcomes.pop(0) if self.outcomes else Outcome(True, "HTTP 200")


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Let the greenlets run until it holds."""
    with gevent.Timeout(timeout_s):
        while not condition():
            gevent.sleep(0.005)


def notifier(endpoint: Endpoint, *targets: AlertTarget, **options: Any) -> Notifier:
    made = Notifier(targets, lambda: "f-1", lambda: "", send=endpoint.send, **options)
    made.start()
    return made


def quick(**values: Any) -> AlertTarget:
    return target(group_wait=0.02, min_interval=0.02, **values)


def test_alerts_that_come_together_are_sent_together() -> None:
    endpoint = Endpoint()
    one = notifier(endpoint, quick())
    for number in range(200):
        one.take(failed(f"w{number}"))
    until(lambda: endpoint.messages)
    one.take(event("stop_all", host=""))
    until(lambda: len(endpoint.messages) == 2)
    one.stop()
    assert [said.count for said in endpoint.messages] == [200, 1]
    assert one.views()[0]["sent"] == 2 and one.views()[0]["queued"] == 0


def test_a_passing_failure_is_tried_again_and_a_lasting_one_is_dropped_and_named() -> None:
    endpoint = Endpoint(Outcome(False, "HTTP 503", True, 0.01), Outcome(True, "ok"), Outcome(False, "HTTP 404"))
    one = notifier(endpoint, quick())
    one.take(failed("w1"))
    until(lambda: len(endpoint.messages) == 2)
    assert endpoint.messages[0] == endpoint.messages[1]
    one.take(failed("w2"))
    until(lambda: one.views()[0]["dropped"] == 1)
    one.take(failed("w3"))
    until(lambda: len(endpoint.messages) == 4)
    one.stop()
    view = one.views()[0]
    assert (
        endpoint.messages[3].undelivered == 1 and "1 earlier alert could not be delivered" in endpoint.messages[3].text
    )
    assert (view["sent"], view["failures"], view["last_error"]) == (2, 2, "HTTP 404")


def test_a_dead_endpoint_is_given_up_in_time_and_nothing_piles_up() -> None:
    class Dead(Endpoint):
        def send(self, _target: AlertTarget, said: Message, _now: Now) -> Outcome:
            self.messages.append(said)
            return Outcome(False, "connection refused", True)

    endpoint = Dead()
    one = notifier(endpoint, quick(dedup=0), retry_for_s=0.0)
    for number in range(500):
        one.take(failed(f"w{number}"))
    until(lambda: one.views()[0]["dropped"] == 500)
    one.stop()
    assert one.views()[0]["queued"] == 0 and one.views()[0]["last_error"] == "connection refused"


def test_a_slow_target_delays_no_other(sink: HttpSink) -> None:
    class Slow(Endpoint):
        def send(self, to: AlertTarget, said: Message, now: Now) -> Outcome:
            if to.name == "slow":
                gevent.sleep(60)
            return super().send(to, said, now)

    endpoint = Slow()
    one = notifier(endpoint, quick(name="slow"), quick(name="swift"))
    one.take(failed())
    until(lambda: endpoint.messages)
    slow, swift = one.views()
    one.stop()
    assert (slow["sent"], slow["queued"], swift["sent"]) == (0, 1, 1)


def test_the_history_notifies(tmp_path: Path) -> None:
    endpoint = Endpoint()
    one = notifier(endpoint, quick())
    world = World(tmp_path)
    world.fleet.state.bus.events.subscribe(one.take)
    world.emit("circuit_breaker_open", reason="5 of 9 hosts became silent", actor="monitor")
    until(lambda: endpoint.messages)
    one.stop()
    assert endpoint.messages[0].title == "Recovery of hosts is frozen"


def test_a_test_message_says_what_each_target_answered(sink: HttpSink) -> None:
    sink.reply = Reply(500, b"broken")
    one = Notifier(
        [target(name="a", url=sink.url), target(name="b", url="http://127.0.0.1:1/")], lambda: "f", lambda: ""
    )
    results = {result["name"]: result for result in one.test()}
    assert not results["a"]["ok"] and results["a"]["answer"] == "HTTP 500 broken"
    assert results["b"]["answer"] == "connection refused"
    assert sink.posted[0].json["test"] is True
    assert [result["name"] for result in one.test("b")] == ["b"]


def test_what_was_not_delivered_is_sent_by_the_next_manager_and_what_was_delivered_is_not() -> None:
    def notifier(answer: Outcome, got: list[Message]) -> Notifier:
        def send(_target: AlertTarget, message: Message, _now: Now) -> Outcome:
            got.append(message)
            return answer

        return Notifier([target(group_wait=0.0)], lambda: "f-1", lambda: "", send=send, retry_for_s=900.0)

    def run(one: Notifier, got: list[Message]) -> None:
        one.start()
        with gevent.Timeout(10):
            while not got:
                gevent.sleep(0.01)
        gevent.sleep(0.05)
        one.stop()

    history = [event("worker_failed", f"w{seq}", seq=seq, at=iso(NOW.wall + seq)) for seq in (1, 2, 3)]
    first_got, second_got = list[Message](), list[Message]()
    first = notifier(Outcome(True, "200", False), first_got)
    first.resume({}, history[:1], NOW.wall)  # what was before is not told
    first.take(history[1])
    run(first, first_got)
    kept = first.moved()
    first.take(history[2])  # never sent: the manager dies
    assert first.moved() == {}, "what waits moves no cursor"
    assert [one.message_id for one in first_got] == ["f-1-failed-2"]
    second = notifier(Outcome(True, "200", False), second_got)
    second.resume(kept, history, NOW.wall + 10)
    run(second, second_got)
    assert [one.message_id for one in second_got] == ["f-1-failed-3"]
    assert second.tables() == {"notifier": {"oncall": {"seq": 3}}}


def test_a_message_that_was_under_way_is_sent_again_as_the_same_and_a_delivered_one_is_not() -> None:
    got: list[Message] = []

    def send(_target: AlertTarget, message: Message, _now: Now) -> Outcome:
        got.append(message)
        return Outcome(True, "200", False)

    history = [event("worker_failed", f"w{seq}", seq=seq, at=iso(NOW.wall + seq)) for seq in range(2, 7)]
    history[2]["kind"] = "stop_all"  # of another class, delivered while the message about 3 and 5 was being sent
    kept = {"seq": 1, "done": {"failed|critical": 2, "stop_all|critical": 4}, "message": ["failed|critical", 3, 5]}
    stored: list[dict[str, Any]] = []
    next_one = Notifier([target(group_wait=0.0)], lambda: "f-1", lambda: "", send=send,
                        keep=lambda name, progress: stored.append(progress))  # fmt: skip
    next_one.resume({"oncall": kept}, history, NOW.wall + 10)
    next_one.start()
    with gevent.Timeout(10):
        while len(got) < 2:
            gevent.sleep(0.01)
    gevent.sleep(0.05)
    next_one.stop()
    assert [(one.message_id, [each["seq"] for each in one.events]) for one in got] == [
        ("f-1-failed-3", [3, 5]), ("f-1-failed-6", [6])
    ]  # fmt: skip
    assert [one["message"] for one in stored] == [["failed|critical", 3, 5], ["failed|critical", 6, 6]]
    assert next_one.tables() == {"notifier": {"oncall": {"seq": 6}}}
