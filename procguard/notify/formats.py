"""Formats a message for each service and interprets the service's response. Pure.

The formats are documented by the services: Slack "incoming webhooks", Feishu "custom bot", DingTalk "custom robot",
WeCom "group robot". Texts are truncated to the limit of each service.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import urllib.parse
from datetime import datetime, timezone
from email.message import EmailMessage
from email.message import Message as Headers
from email.utils import format_datetime, make_msgid, parsedate_to_datetime
from typing import NamedTuple

from procguard.config.notifications import AlertTarget
from procguard.fleet.model.clock import Now
from procguard.i18n.words import Words
from procguard.json_types import Json
from procguard.notify.alerts import Message, payload

SLACK_HEADER_CHARS = 150
SLACK_SECTION_CHARS = 3_000
WECOM_BYTES = 4_096
TEXT_CHARS = 8_000  # Feishu and DingTalk take 20 kB
MARKS = {"critical": "🔴", "warning": "🟠", "info": "🔵"}


class NotificationRequest(NamedTuple):
    """An HTTP POST to send."""

    url: str
    body: bytes
    headers: dict[str, str]


class Outcome(NamedTuple):
    """The result of one attempt to send. `answer`: a short text for the status. `retry`: whether another attempt may
    succeed. `after_s`: the delay that the service requests, in seconds."""

    ok: bool
    answer: str
    retry: bool = False
    after_s: float | None = None


def request(target: AlertTarget, message: Message, now: Now) -> NotificationRequest:
    url = target.url.get_secret_value()
    body: Json
    if target.type == "slack":
        body = _slack(message)
    elif target.type == "feishu":
        body = _feishu(message, target.secret.get_secret_value(), now)
    elif target.type == "dingtalk":
        body = _dingtalk(message)
        url = _dingtalk_signed(url, target.secret.get_secret_value(), now)
    elif target.type == "wecom":
        body = _wecom(message)
    else:
        body = payload(message)
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace")
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "ProcGuard"}
    secret = target.secret.get_secret_value()
    if target.type == "webhook" and secret:
        headers["X-ProcGuard-Signature"] = "sha256=" + hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()
    return NotificationRequest(url, data, headers)


def _heading(message: Message) -> str:
    return f"{MARKS[message.severity]} {message.title}"


def _slack(message: Message) -> Json:
    """A Slack message: `text` is shown in notifications, the blocks in the channel."""
    section = _escaped(message.text)
    if message.link:
        section = f"{section[: SLACK_SECTION_CHARS - 300]}\n<{message.link}|{_open(message)}>"
    header = {"type": "plain_text", "text": _heading(message)[:SLACK_HEADER_CHARS], "emoji": True}
    return {
        "text": _escaped(_heading(message)),
        "blocks": [
            {"type": "header", "text": header},
            {"type": "section", "text": {"type": "mrkdwn", "text": section[:SLACK_SECTION_CHARS]}},
        ],
    }


def _escaped(text: str) -> str:
    """`text` with Slack's three special characters escaped, so that a worker's name cannot become a mention or a
    link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _feishu(message: Message, secret: str, now: Now) -> Json:
    lines: list[list[dict[str, str]]] = [[{"tag": "text", "text": message.text[:TEXT_CHARS]}]]
    if message.link:
        lines.append([{"tag": "a", "text": _open(message), "href": message.link}])
    locale = "zh_cn" if message.language == "zh" else "en_us"
    post = {locale: {"title": _heading(message), "content": lines}}
    body: Json = {"msg_type": "post", "content": {"post": post}}
    if secret:
        timestamp = str(int(now.wall))
        digest = hmac.new(f"{timestamp}\n{secret}".encode(), b"", hashlib.sha256).digest()
        body |= {"timestamp": timestamp, "sign": base64.b64encode(digest).decode()}
    return body


def _dingtalk(message: Message) -> Json:
    return {"msgtype": "markdown", "markdown": {"title": message.title[:200], "text": _markdown(message)[:TEXT_CHARS]}}


def _dingtalk_signed(url: str, secret: str, now: Now) -> str:
    if not secret:
        return url
    timestamp = str(int(now.wall * 1000))
    digest = hmac.new(secret.encode(), f"{timestamp}\n{secret}".encode(), hashlib.sha256).digest()
    sign = urllib.parse.quote_plus(base64.b64encode(digest))
    return f"{url}{'&' if '?' in url else '?'}timestamp={timestamp}&sign={sign}"


def _wecom(message: Message) -> Json:
    content = _markdown(message).encode()[:WECOM_BYTES].decode("utf-8", "ignore")
    return {"msgtype": "markdown", "markdown": {"content": content}}


def _markdown(message: Message) -> str:
    """Markdown in the subset common to DingTalk and WeCom; the link comes first, so that it is never cut off."""
    head = [f"### {_plain(_heading(message))}"]
    if message.link:
        head.append(f"[{_open(message)}]({message.link})")
    return "\n\n".join([*head, "\n".join(f"- {_plain(line)}" for line in message.lines)])


def _plain(line: str) -> str:
    """The line with Markdown escaped: a job's output must not become images, links or HTML."""
    for mark in "\\`*_[]<>!#":
        line = line.replace(mark, " " if mark in "<>`" else "\\" + mark)
    return line


def _open(message: Message) -> str:
    return Words(message.language).say("alert.open")


def email(target: AlertTarget, message: Message, now: Now) -> EmailMessage:
    words = Words(message.language)
    mail = EmailMessage()
    subject = words.say("alert.subject", title=message.title)
    mail["Subject"] = " ".join(subject.split())[:500]
    mail["From"], mail["To"] = target.sender, ", ".join(target.to)
    mail["Date"] = format_datetime(datetime.fromtimestamp(now.wall, timezone.utc))
    mail["Message-ID"] = make_msgid(domain=target.sender.rpartition("@")[2].strip("<> ") or "procguard.invalid")
    mail["Auto-Submitted"] = "auto-generated"
    lines = [message.title, "", *message.lines, "", f"{message.first_at} – {message.last_at}", message.link]
    mail.set_content("\n".join(lines).rstrip() + "\n")
    return mail


# ------------------------------------------------------------------------------------------------ answers

# Codes that the services return with HTTP 200 for "too often" or "busy". With any other code, a retry does not help.
_PASSING = {"dingtalk": (130101, -1), "wecom": (45009, -1), "feishu": (9499, 11232, 11233)}
RETRY_STATUSES = (408, 425, 429)
MOST_RETRY_AFTER_S = 3_600.0


def judged(target: AlertTarget, status: int, headers: Headers, body: bytes, now: Now) -> Outcome:
    """The outcome that an HTTP response means."""
    text = body[:500].decode("utf-8", "replace").strip()
    if not 200 <= status < 300:
        again = status in RETRY_STATUSES or status >= 500
        return Outcome(
            False, f"HTTP {status} {text[:200]}".strip(), again, retry_after_s(headers.get("Retry-After"), now)
        )
    if target.type not in _PASSING:
        return Outcome(True, f"HTTP {status}")
    try:
        said = json.loads(body)
        code = int(said.get("errcode", said.get("code", said.get("StatusCode", 0))))
        words = str(said.get("errmsg") or said.get("msg") or said.get("StatusMessage") or "")
    except (ValueError, TypeError, AttributeError):
        return Outcome(False, f"HTTP {status}, but not what {target.type} answers: {text[:120]}")
    if code == 0:
        return Outcome(True, f"HTTP {status}, code 0")
    passing = code in _PASSING[target.type]
    return Outcome(False, f"code {code}: {words[:200]}", passing, 60.0 if passing else None)


def retry_after_s(value: str | None, now: Now) -> float | None:
    """The delay requested by `Retry-After` (seconds or a date), in seconds, at most one hour; None if there is none."""
    if not value:
        return None
    try:
        seconds = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - now.wall
    except (ValueError, TypeError):
        return None
    return min(max(0.0, seconds), MOST_RETRY_AFTER_S)
