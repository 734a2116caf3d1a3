"""Alerts: which events, how many messages, in which shape for whom, and what happens when nobody takes them."""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import hmac
import json
import re
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from procguard.config import schema
from procguard.config.notifications import ALERT_CLASSES, AlertTarget, NotifyRoute
from procguard.errors import ConfigError, LimitExceeded, UsageError
from procguard.fleet.model.clock import Now, iso
from procguard.notify import alerts, formats, transport
from procguard.notify.alerts import Gathering, Message
from procguard.notify.formats import Outcome
from procguard.notify.mutes import Mutes
from procguard.notify.notifier import Notifier
from procguard.notify.routes import Routes, facts_of
from tests import sinks
from tests.sinks import HttpSink, Reply
from tests.unit.fleet_world import World

NOW = Now(100.0, 1_790_000_000.5)
HIDDEN = "https://hooks.example.org/services/T000/B000/TheSecretPath"


def target(kind: str = "webhook", **values: Any) -> AlertTarget:
    address = {} if kind == "email" else {"url": "http://127.0.0.1:9/hook"}
    return AlertTarget.model_validate({"name": "oncall", "type": kind, **address, **values})


def event(kind: str, worker: str = "", host: str = "gpu01", **values: Any) -> dict[str, Any]:
    made = {"seq": 1, "at": "2026-09-21T14:13:20.500Z", "kind": kind, "worker_id": worker or None, "host": host}
    made |= {"before": None, "after": None, "reason": "because", "actor": None, "attempt": None, "cause": None}
    return made | values


def failed(worker: str = "w1") -> dict[str, Any]:
    evidence = {"exit": {"signal": 9, "oom": True, "duration_s": 540.0}}
    return event("worker_failed", worker, cause="oom", evidence=evidence)


def message(kind: str = "webhook", count: int = 1, **values: Any) -> Message:
    gathering = Gathering(target(kind, **values))
    for number in range(count):
        gathering.take(failed(f"w{number + 1}"), 0.0)
    group = gathering.pop()
    assert group is not None
    return alerts.compose(group, target(kind, **values), "f-1", "http://head:5000")


# ------------------------------------------------------------------------------------------------ which events


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


def finished(worker: str = "w1", seq: int = 7) -> dict[str, Any]:
    evidence = {"exit": {"attempt": 2, "code": 0, "duration_s": 7_260.0}}
    return event("worker_state", worker, seq=seq, before="running", after="exited", attempt=2, cause="finished",
                 evidence=evidence)  # fmt: skip


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


# ------------------------------------------------------------------------------------------------ routes


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
    with pytest.raises(ConfigError, match=r"notify, entry 1: select: selector.*can't be a worker's id"):
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
    assert gathering.ripen(100.0) is None and not gathering.waiting  # nobody was told of either
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


# ------------------------------------------------------------------------------------------------ formats


def sent(kind: str, **values: Any) -> tuple[formats.NotificationRequest, dict[str, Any]]:
    request = formats.request(target(kind, **values), message(kind, **values), NOW)
    return request, json.loads(request.body)


def test_generic_json_is_what_the_documentation_says() -> None:
    request, body = sent("webhook", secret="s3cret")
    shown = (Path(__file__).parents[3] / "docs" / "notifications.md").read_text(encoding="utf-8")
    assert all(f'"{key}"' in shown for key in body)
    signature = hmac.new(b"s3cret", request.body, hashlib.sha256).hexdigest()
    assert request.headers["X-ProcGuard-Signature"] == f"sha256={signature}"
    assert body["alert"] == "failed" and body["severity"] == "critical" and body["events"][0]["cause"] == "oom"


def test_slack_gets_blocks_and_nothing_that_acts() -> None:
    gathering = Gathering(target())
    gathering.take(event("recovery_gave_up", host="<!channel>"), 0.0)
    group = gathering.pop()
    assert group is not None
    said = alerts.compose(group, target("slack"), "f", "http://head:5000")
    body = json.loads(formats.request(target("slack"), said, NOW).body)
    assert "<!channel>" not in body["text"] and "&lt;!channel&gt;" in body["blocks"][1]["text"]["text"]
    assert body["blocks"][0]["type"] == "header" and len(body["blocks"][0]["text"]["text"]) <= 150
    assert "<http://head:5000|" in body["blocks"][1]["text"]["text"]


def test_feishu_is_signed_as_its_page_says() -> None:
    _, body = sent("feishu", secret="s3cret", language="zh")
    expected = hmac.new(b"1790000000\ns3cret", b"", hashlib.sha256).digest()
    assert body["timestamp"] == "1790000000" and base64.b64decode(body["sign"]) == expected
    post = body["content"]["post"]["zh_cn"]
    assert body["msg_type"] == "post" and "1 个 worker 失败" in post["title"] and post["content"][0][0]["tag"] == "text"
    assert "sign" not in sent("feishu")[1]


def test_dingtalk_is_signed_in_its_address() -> None:
    request, body = sent("dingtalk", secret="SEC1", url="https://oapi.dingtalk.com/robot/send?access_token=x")
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(request.url).query))
    expected = hmac.new(b"SEC1", b"1790000000500\nSEC1", hashlib.sha256).digest()
    assert query["timestamp"] == "1790000000500" and base64.b64decode(query["sign"]) == expected
    assert query["access_token"] == "x"
    assert body["msgtype"] == "markdown" and body["markdown"]["title"] and "- w1 on gpu01" in body["markdown"]["text"]


def test_wecom_stays_within_its_bytes() -> None:
    said = message("wecom", count=200, language="zh")
    body = json.loads(formats.request(target("wecom"), said, NOW).body)
    assert body["msgtype"] == "markdown" and len(body["markdown"]["content"].encode()) <= formats.WECOM_BYTES


@pytest.mark.parametrize(
    ("kind", "status", "headers", "body", "expected"),
    [
        ("webhook", 204, {}, b"", (True, False, None)),
        ("webhook", 404, {}, b"gone", (False, False, None)),
        ("webhook", 302, {"Location": "http://x/"}, b"", (False, False, None)),
        ("webhook", 429, {"Retry-After": "7"}, b"", (False, True, 7.0)),
        ("webhook", 503, {"Retry-After": "Mon, 21 Sep 2026 14:13:30 GMT"}, b"", (False, True, 9.5)),
        ("webhook", 503, {"Retry-After": "soon"}, b"", (False, True, None)),
        ("webhook", 500, {}, b"", (False, True, None)),
        ("slack", 200, {}, b"ok", (True, False, None)),
        ("slack", 403, {}, b"invalid_token", (False, False, None)),
        ("feishu", 200, {}, b'{"code": 0, "msg": "success"}', (True, False, None)),
        ("feishu", 200, {}, b'{"StatusCode": 0, "StatusMessage": "success"}', (True, False, None)),
        ("feishu", 200, {}, b'{"code": 19021, "msg": "sign match fail"}', (False, False, None)),
        ("dingtalk", 200, {}, b'{"errcode": 0, "errmsg": "ok"}', (True, False, None)),
        ("dingtalk", 200, {}, b'{"errcode": 130101, "errmsg": "send too fast"}', (False, True, 60.0)),
        ("dingtalk", 200, {}, b'{"errcode": 310000, "errmsg": "sign not match"}', (False, False, None)),
        ("wecom", 200, {}, b'{"errcode": 45009, "errmsg": "freq out of limit"}', (False, True, 60.0)),
        ("wecom", 200, {}, b"<html>a proxy</html>", (False, False, None)),
    ],
)
def test_answers_mean_what_the_services_say(
    kind: str, status: int, headers: dict[str, str], body: bytes, expected: tuple[bool, bool, float | None]
) -> None:
    made = email.message.Message()
    for name, value in headers.items():
        made[name] = value
    outcome = formats.judged(target(kind), status, made, body, NOW)
    assert (outcome.ok, outcome.retry, outcome.after_s) == expected


# ------------------------------------------------------------------------------------------------ sending


@pytest.fixture
def sink() -> Iterator[HttpSink]:
    with sinks.http_sink() as one:
        yield one


def test_a_webhook_is_posted_and_its_answer_read(sink: HttpSink) -> None:
    outcome = transport.send(target(url=sink.url + "/hook?key=1"), message(), NOW)
    assert outcome == Outcome(True, "HTTP 200")
    assert sink.posted[0].path == "/hook?key=1" and sink.posted[0].json["title"] == "1 worker failed: w1"


def test_a_redirect_is_reported_and_not_followed(sink: HttpSink) -> None:
    sink.reply = Reply(302, b"", {"Location": sink.url + "/elsewhere"})
    outcome = transport.send(target(url=sink.url), message(), NOW)
    assert not outcome.ok and "302" in outcome.answer and len(sink.posted) == 1


def test_what_cannot_be_reached_is_an_outcome_and_no_secret_is_reported(sink: HttpSink) -> None:
    refused = transport.send(target(url="http://127.0.0.1:1/services/TheSecretPath"), message(), NOW)
    assert refused == Outcome(False, "connection refused", retry=True)
    sink.reply = Reply(400, b"no such hook /services/TheSecretPath signed s3cret")
    echoed = transport.send(target(url=sink.url + "/services/TheSecretPath", secret="s3cret"), message(), NOW)
    assert "Secret" not in echoed.answer and "s3cret" not in echoed.answer and "no such hook" in echoed.answer


def test_mail_is_sent_with_its_login(sink: HttpSink) -> None:
    with sinks.smtp_sink() as server:
        mailed = target(
            "email", smtp_host="127.0.0.1", smtp_port=server.port, smtp_tls="none", smtp_user="pg",
            smtp_password="s3cret", sender="ProcGuard <pg@example.org>", to=["a@example.org", "b@example.org"],
            language="zh",
        )  # fmt: skip
        outcome = transport.send(mailed, message("webhook", language="zh"), NOW)
        assert outcome.ok, outcome
        got = email.message_from_bytes(server.mails[0], policy=email.policy.default)
        assert got["Subject"] == "[ProcGuard] 1 个 worker 失败：w1" and got["To"] == "a@example.org, b@example.org"
        assert got["Auto-Submitted"] == "auto-generated" and "内存不足" in got.get_content()
        assert len(server.receivers) == 2 and base64.b64decode(server.login) == b"\0pg\0s3cret"
        server.refuse = "550 no such user"
        refused = transport.send(mailed, message(), NOW)
        assert not refused.ok and not refused.retry and "550" in refused.answer
        tls = transport.send(mailed.model_copy(update={"smtp_tls": "starttls"}), message(), NOW)
        assert not tls.ok and "STARTTLS" in tls.answer


# ------------------------------------------------------------------------------------------------ the loop


class Endpoint:
    """Stands in for all services: keeps what it is sent, answers as scripted."""

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
    world.emit("circuit_breaker_open", reason="5 of 9 hosts fell silent", actor="monitor")
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


# ------------------------------------------------------------------------------------------------ configuration


def mistakes(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        schema.load(str(path))
    return str(caught.value)


def test_secrets_come_from_environment_and_files_and_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hook").write_text(HIDDEN + "\n")
    monkeypatch.setenv("DING_SECRET", "SECabc")
    path = tmp_path / "c.yaml"
    path.write_text(
        f"notifications:\n  - {{name: a, type: slack, url: 'file:{tmp_path}/hook'}}\n"
        f"  - {{name: b, type: dingtalk, url: '{HIDDEN}', secret: env:DING_SECRET}}\n"
    )
    loaded = schema.load(str(path))
    first, second = loaded.notifications
    assert first.url.get_secret_value() == HIDDEN and second.secret.get_secret_value() == "SECabc"
    one = Notifier(loaded.notifications, lambda: "f", lambda: "")
    shown = repr(loaded) + str(loaded.model_dump()) + str(one.views()) + loaded.model_dump_json()
    assert "TheSecretPath" not in shown and "SECabc" not in shown
    assert one.views()[0]["address"] == "https://hooks.example.org/…"


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("{name: a, type: slack, url: 'ftp://TheSecretPath'}", "a url that begins with https:// or http://"),
        ("{name: a, type: slack, url: 'https://x:TheSecretPath/'}", "a url that begins with https:// or http://"),
        ("{name: a, type: slack}", "a url that begins with https:// or http://"),
        ("{name: a, type: slack, url: [TheSecretPath]}", "notifications.0.url: expected"),
        ("{name: a, type: slack, url: 'env:NOT_SET_ANYWHERE'}", "NOT_SET_ANYWHERE to be set"),
        ("{name: a, type: slack, url: 'file:/nowhere/x'}", "No such file"),
        ("{name: a, type: pigeon, url: 'https://x/TheSecretPath'}", "one of webhook, slack, feishu"),
        ("{name: 'a b', type: slack, url: 'https://x/TheSecretPath'}", "letters, digits"),
        ("{name: a, type: slack, url: 'https://x/', events: [Failed!]}", "or a kind of event"),
        ("{name: a, type: slack, url: 'https://x/', secrte: TheSecretPath}", "did you mean notifications.0.secret?"),
        ("{name: a, type: email, smtp_host: m, sender: me, to: [you]}", "addresses such as"),
        ("{name: a, type: email, smtp_password: TheSecretPath}", "smtp_host, sender and to"),
        (
            "{name: a, type: slack, url: 'https://x/'}\n  - {name: a, type: slack, url: 'https://x/'}",
            "a is used twice",
        ),
    ],
)
def test_mistakes_are_reported_without_the_secret(tmp_path: Path, entry: str, complaint: str) -> None:
    sent_at = mistakes(tmp_path, f"notifications:\n  - {entry}\n")
    assert complaint in sent_at and "TheSecretPath" not in sent_at, sent_at


def test_every_key_of_a_target_is_documented() -> None:
    shown = (Path(__file__).parents[3] / "docs" / "notifications.md").read_text(encoding="utf-8")
    for name, info in AlertTarget.model_fields.items():
        assert f"| `{name}` |" in shown and (info.description or "") in shown, name
    for alert in ALERT_CLASSES:
        assert f"`{alert}`" in shown


def test_the_documented_examples_are_read_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    shown = (Path(__file__).parents[3] / "docs" / "notifications.md").read_text(encoding="utf-8")
    for name in re.findall(r"env:([A-Z_]+)", shown):
        monkeypatch.setenv(name, "https://hooks.example.org/x")
    blocks = re.findall(r"```yaml\n(.*?)```", shown, re.DOTALL)
    kinds = set()
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        kinds |= {one.type for one in schema.load(str(path)).notifications}
    assert kinds == {"webhook", "slack", "feishu", "dingtalk", "wecom", "email"}


# ------------------------------------------------------------------------------------------------ after a takeover


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


# ------------------------------------------------------------------------------------------------ mutes


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
        ("a b", None, 60.0, "can't be a worker's id"),
        ("*", None, 0.0, "more than 0 s"),
        ("*", None, 1e9, "at most 366 days"),
        ("*", NOW.wall - 100, 60.0, "over already"),
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
            while following.tables() == {"notifier": {"oncall": {"seq": 4}}}:
                gevent.sleep(0.01)
        following.stop()
        assert following.tables() == {"notifier": {"oncall": {"seq": 5}}}
    after = leader()
    after.resume(following.tables()["notifier"], history, NOW.wall)
    assert after.views()[0]["queued"] == 0
    assert ids == ["f-1-finished-5"] * 2  # the second one never learnt that the first had sent it: the same id
