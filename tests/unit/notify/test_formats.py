"""The format of a message for each kind of target, and the services' responses."""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import hmac
import json
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from procguard.notify import alerts, formats
from procguard.notify.alerts import Gathering
from tests.unit.notify.alert_examples import NOW, event, message, target


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
