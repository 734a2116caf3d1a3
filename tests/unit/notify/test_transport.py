"""Sending: webhooks, redirects, what cannot be reached, mail."""

from __future__ import annotations

import base64
import email
import email.policy

from procguard.notify import transport
from procguard.notify.formats import Outcome
from tests import sinks
from tests.sinks import HttpSink, Reply
from tests.unit.notify.alert_examples import NOW, message, target


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
