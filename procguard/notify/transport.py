"""Sends one message once, by HTTP or SMTP, within a hard deadline, and returns the outcome.

Every failure is an Outcome, never an exception, and no Outcome contains a secret. In the manager the sockets are
gevent's, so that waiting does not block other greenlets.
"""

from __future__ import annotations

import http.client
import smtplib
import socket
import ssl
import urllib.error
import urllib.request
from typing import Any

import gevent

from procguard.config.notifications import AlertTarget
from procguard.fleet.model.clock import Now
from procguard.notify import formats
from procguard.notify.alerts import Message
from procguard.notify.formats import Outcome

MAX_ANSWER_BYTES = 64 * 1024


class _Deadline(gevent.Timeout):
    pass


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Reports a redirect as an error instead of following it, which would turn the POST into a GET."""

    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:
        return None


def send(target: AlertTarget, message: Message, now: Now) -> Outcome:
    """Send a message to a target. Takes at most `target.timeout` seconds; raises nothing."""
    try:
        with _Deadline(target.timeout):
            outcome = _mail(target, message, now) if target.type == "email" else _post(target, message, now)
    except _Deadline:
        outcome = Outcome(False, f"no answer within {target.timeout:g} s", retry=True)
    except (OSError, http.client.HTTPException) as exc:
        outcome = Outcome(False, _words(exc), retry=True)
    except ValueError as exc:  # an address or a header that cannot be sent
        outcome = Outcome(False, f"cannot be sent: {exc}")
    return outcome._replace(answer=target.scrubbed(outcome.answer))


def _post(target: AlertTarget, message: Message, now: Now) -> Outcome:
    request = formats.request(target, message, now)
    opener = urllib.request.build_opener(_NoRedirect)
    posted = urllib.request.Request(request.url, request.body, request.headers, method="POST")  # noqa: S310 - checked
    try:
        with opener.open(posted, timeout=target.timeout) as answer:
            return formats.judged(target, answer.status, answer.headers, answer.read(MAX_ANSWER_BYTES), now)
    except urllib.error.HTTPError as exc:
        with exc:
            return formats.judged(target, exc.code, exc.headers, exc.read(MAX_ANSWER_BYTES), now)


def _mail(target: AlertTarget, message: Message, now: Now) -> Outcome:
    mail = formats.email(target, message, now)
    try:
        with _connected(target) as server:
            if target.smtp_tls == "starttls":
                server.starttls(context=ssl.create_default_context())
            if target.smtp_user:
                server.login(target.smtp_user, target.smtp_password.get_secret_value())
            refused = server.send_message(mail)
    except smtplib.SMTPRecipientsRefused as exc:
        return Outcome(False, f"refused for every receiver: {_reply(next(iter(exc.recipients.values())))}")
    except smtplib.SMTPResponseException as exc:
        return Outcome(False, _reply((exc.smtp_code, exc.smtp_error)), retry=400 <= exc.smtp_code < 500)
    except smtplib.SMTPNotSupportedError as exc:
        return Outcome(False, f"{exc} (see smtp_tls and smtp_user)")
    if refused:
        return Outcome(True, f"accepted, but refused for {', '.join(refused)}")
    return Outcome(True, "accepted by the mail server")


def _connected(target: AlertTarget) -> smtplib.SMTP:
    own_name = socket.gethostname()  # the default queries DNS, which may hang
    if target.smtp_tls == "tls":
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(target.smtp_host, target.smtp_port, own_name, timeout=target.timeout, context=context)
    return smtplib.SMTP(target.smtp_host, target.smtp_port, own_name, timeout=target.timeout)


def _reply(reply: tuple[int, bytes | str]) -> str:
    code, text = reply
    return f"SMTP {code} {text.decode('utf-8', 'replace') if isinstance(text, bytes) else text}"


def _words(exc: Exception) -> str:
    """A short cause, such as "connection refused" or "timed out", without the address, which may be secret."""
    cause = getattr(exc, "reason", exc)
    if isinstance(cause, (TimeoutError, gevent.Timeout)):
        return "timed out"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    text = str(getattr(cause, "strerror", "") or cause or type(cause).__name__)
    return f"{type(cause).__name__}: {text}" if isinstance(cause, ssl.SSLError) else text
