"""Reads requests and writes responses: limits on size and time, JSON, and the common error format.

Knows WSGI and bottle, not the meaning of messages. The limits are those of `web.limits`.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any
from wsgiref.types import WSGIEnvironment

import bottle
import gevent
from pydantic_core import PydanticSerializationError, from_json, to_json

from procguard import hints
from procguard.admission.memory import SMALL_STRANGER_BYTES
from procguard.config.limits import WebLimits
from procguard.errors import LimitExceeded, ProcGuardError, UsageError
from procguard.i18n.messages.catalogue import localized
from procguard.i18n.words import pick
from procguard.json_types import Json
from procguard.runtime.cooperative import Pace

log = logging.getLogger(__name__)

READ_BYTES = 1024 * 1024
BODY_IS_HERE = "procguard.body_is_here"  # in the environment: the whole body has arrived
MAX_NOTE_CHARS = 500  # of the description of a change in the audit
# In a request's environ: its limits (Limits), its connection (ConnectionHandle) and the memory for bodies (Bodies).
# If they are missing, as in tests, the defaults apply.
PROXIED = "procguard.proxied"  # the peer is a trusted proxy (portal/http/proxies.py)
LIMITS, CONNECTION_HANDLE, BODIES = "procguard.limits", "procguard.connection_handle", "procguard.bodies"
CLOSE_USE = "procguard.close_use"  # called after the response was sent (portal/auth/live_uses.py)
_DEFAULTS = WebLimits()

# Maximum number of objects, lists and elements in one message: twice that of an agent with 2,000 workers and a full
# backlog.
MAX_OBJECTS = 60_000
VALUES_PER_OBJECT = 8

# Maps all digits to 0 and both letters of an exponent to e, because only the shape of a number is examined.
_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_LONG = b"0" * 200  # with an exponent of two digits, a number needs more than 200 digits to exceed 1e308
_BEFORE_A_NUMBER = b":,[ \t\r\n"
_LOOK_BACK = 2 * len(_LONG)  # bytes from an exponent back to the beginning of its number
_MAX_CHECKS = 1_000
_VALUES_AT_ONCE = 1_000  # examined before yielding to others


class _BodyTimeout(gevent.Timeout):
    pass


# ------------------------------------------------------------------------------------------------------ requests


def limits_of(environ: WSGIEnvironment) -> WebLimits:
    found: WebLimits = environ.get(LIMITS, _DEFAULTS)
    return found


def read_body(environ: WSGIEnvironment, max_bytes: int | None = None) -> bytes:
    """Read the whole body. A body larger than `max_bytes` (by default web.limits.body_size) is refused before it is
    read; one without a length (chunked) as soon as it exceeds the limit. A larger body waits for memory;
    unauthenticated callers have a short time limit. Raises LimitExceeded (413, 408, 429), and UsageError if the peer
    stops sending."""
    limits = limits_of(environ)
    max_bytes = limits.body_size if max_bytes is None else max_bytes
    declared = environ.get("CONTENT_LENGTH")
    size = int(declared) if declared else max_bytes if "HTTP_TRANSFER_ENCODING" in environ else 0
    if size > max_bytes:
        raise too_large(max_bytes)
    if size <= SMALL_STRANGER_BYTES and declared and environ.get(BODY_IS_HERE):  # nearly every heartbeat
        return _here(environ, size)
    connection_handle, bodies = environ.get(CONNECTION_HANDLE), environ.get(BODIES)
    caller = connection_handle.caller if connection_handle is not None else ""
    timeout_s = (
        limits.body_timeout
        if caller or connection_handle is None
        else min(limits.body_timeout, limits.unproven_timeout)
    )
    if bodies is None:
        return _read_in_time(environ, max_bytes, timeout_s)
    with bodies.turn(size, caller):
        return _read_in_time(environ, max_bytes, timeout_s)


def _here(environ: WSGIEnvironment, size: int) -> bytes:
    """Read a body that arrived together with its headers and does not count towards the memory limit. Never waits, and
    reads no more than the declared length."""
    try:
        body: bytes = environ["wsgi.input"].read(size)
    except OSError as exc:
        raise _incomplete(exc) from exc
    return body


def _incomplete(exc: OSError) -> UsageError:
    return UsageError(f"the body is incomplete ({exc})", "send it again", code="body_incomplete")


def _read_in_time(environ: WSGIEnvironment, max_bytes: int, timeout_s: float) -> bytes:
    try:
        if environ.get(BODY_IS_HERE):  # arrived together with the headers
            return _read_all(environ["wsgi.input"], max_bytes)
        with _BodyTimeout(timeout_s):
            return _read_all(environ["wsgi.input"], max_bytes)
    except _BodyTimeout as exc:
        environ["wsgi.input"].abandoned = True  # the rest of the body is not read
        raise too_slow(timeout_s) from exc
    except OSError as exc:
        raise _incomplete(exc) from exc


def _read_all(stream: Any, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := stream.read(min(READ_BYTES, max_bytes + 1 - size)):
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise too_large(max_bytes)
    return b"".join(parts)


def too_slow(timeout_s: float) -> LimitExceeded:
    return LimitExceeded(
        f"the body did not arrive within {timeout_s:g} s", "send it again", status=408, code="too_slow"
    )


def too_large(max_bytes: int) -> LimitExceeded:
    return LimitExceeded(
        f"the body is larger than {max_bytes} bytes", "send smaller requests", status=413, code="body_too_large"
    )


def read_json(environ: WSGIEnvironment, max_bytes: int | None = None, max_objects: int = MAX_OBJECTS) -> Any:
    """The body as JSON values. Raises UsageError naming line and column."""
    return parse_json(read_body(environ, max_bytes), max_objects)


def parse_json(body: bytes, max_objects: int = MAX_OBJECTS) -> Any:
    if not body.strip():
        raise UsageError("the body is empty; expected a JSON object", 'e.g. {"command": "start"}', code="bad_json")
    check_objects(body, max_objects)
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise UsageError(f"the body is not JSON: {exc}", "send one JSON object in UTF-8", code="bad_json") from exc
    if may_overflow(body) and not _finite(value):
        raise UsageError("the body contains a number that is out of range", "send finite numbers", code="bad_json")
    return value


def check_objects(body: bytes, max_objects: int) -> None:
    """Raise LimitExceeded if parsing would be too expensive: a few bytes of JSON can become objects of hundreds of
    bytes."""
    if len(body) <= max_objects:
        return
    max_values = VALUES_PER_OBJECT * max_objects
    if body.count(b"{") + body.count(b"[") > max_objects or body.count(b",") > max_values:
        raise LimitExceeded(
            f"the body contains more than {max_objects} objects, or {max_values} values",
            "send smaller requests",
            status=413,
            code="body_too_large",
        )


def may_overflow(body: bytes) -> bool:
    """Whether the body may contain a number that overflows to infinity: valid JSON that cannot be encoded as JSON
    again. Examines only the shape of numbers, in a small fraction of the time of parsing; false positives are rare."""
    if has_long_number(body):
        return True
    alike = body.translate(_ALIKE)
    if b"0e" not in alike:
        return False
    checks = 0
    for shape in (b"0e000", b"0e+000"):
        at = alike.find(shape)
        while at >= 0:
            checks += 1
            before = alike[max(0, at + 1 - _LOOK_BACK) : at + 1].rstrip(b"0.-")[-1:]
            if before in _BEFORE_A_NUMBER or checks > _MAX_CHECKS:  # also at the beginning of the body
                return True
            at = alike.find(shape, at + 1)
    return False


def has_long_number(body: bytes) -> bool:
    """Whether a run of digits is too long even for an integer."""
    return len(body) >= len(_LONG) and _LONG in body.translate(_ALIKE)


def read_object(environ: WSGIEnvironment, max_bytes: int | None = None, max_objects: int = MAX_OBJECTS) -> Json:
    return as_object(read_json(environ, max_bytes, max_objects))


def as_object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise UsageError(
            f"expected a JSON object, got {_json_type(value)}", 'e.g. {"command": "start"}', code="bad_json"
        )
    return value


def read_optional_object(environ: WSGIEnvironment, max_bytes: int | None = None) -> Json:
    """The body as a JSON object; {} if there is no body. Raises as `read_json`."""
    body = read_body(environ, max_bytes)
    return as_object(parse_json(body)) if body.strip() else {}


def _json_type(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _finite(value: Any) -> bool:
    pending, pace, checked = [value], Pace(), 0
    while pending:
        item = pending.pop()
        checked += 1
        if checked % _VALUES_AT_ONCE == 0:
            pace()
        if isinstance(item, float) and not math.isfinite(item):
            return False
        if isinstance(item, int) and abs(item) >= 2**63:
            return False
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return True


# `query`: of a request received over another channel than HTTP.
Query = Mapping[str, str]


def query_int(name: str, default: int, low: int, high: int, query: Query | None = None) -> int:
    text = query_of(query).get(name, "")
    if text == "":
        return default
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or not low <= int(text) <= high:
        raise UsageError(
            f"{name}={text[:40]!r}: expected a whole number from {low} to {high}", f"e.g. ?{name}={max(low, default)}"
        )
    return int(text)


def query_seconds(name: str, default: float, low: float, high: float, query: Query | None = None) -> float:
    """A number of seconds from the query, clamped to [low, high]."""
    text = query_of(query).get(name, "")
    if text == "":
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{name}={text[:40]!r}: expected a number of seconds", f"e.g. ?{name}=25")
    return min(high, max(low, value))


def query_flag(name: str, query: Query | None = None) -> bool:
    return str(query_of(query).get(name, "")).lower() in ("1", "true", "yes", "on")


def query_text(name: str, max_chars: int = 256, query: Query | None = None) -> str:
    found = query_of(query)
    text = found.getunicode(name, "") or "" if isinstance(found, bottle.FormsDict) else found.get(name, "")
    if len(text) > max_chars:
        raise UsageError(f"{name}: longer than {max_chars} characters", "shorten it")
    return str(text)


def query_of(query: Query | None) -> Any:
    """`query`, or the current request's if it is None."""
    return bottle.request.query if query is None else query


# ------------------------------------------------------------------------------------------------------- answers


MAX_ACCEPT_LANGUAGE = 200  # characters of the header that are read
JSON = {"Content-Type": "application/json"}  # the headers of an answer


def dumps(value: Any) -> bytes:
    """Encode JSON. NaN and infinities become null; characters that UTF-8 cannot encode become question marks."""
    try:
        return to_json(value, inf_nan_mode="null")  # takes a quarter of the time of json.dumps
    except PydanticSerializationError:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode("utf-8", "replace")


def json_response(value: Any, status: int = 200) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(dumps(value), status, JSON)


def error_body(code: str, message: str, next_step: str, request_id: str) -> Json:
    error = {"code": code, "message": hints.commands(message), "next": hints.commands(next_step)}
    return {"error": {**error, "request_id": request_id}}


def refusal_body(exc: ProcGuardError, request_id: str) -> Json:
    return error_body(exc.code, exc.message, exc.next_step, request_id) | getattr(exc, "extra", {})


def with_localized(body: Json, accept_language: str | None) -> Json:
    """The error, with `localized` added if the caller's language is not English: its texts in that language."""
    language = _language(accept_language)
    if language == "en":
        return body
    error = body["error"]
    texts = {name: hints.commands(localized(error[name], language)) for name in ("message", "next")}
    return {**body, "error": {**error, "localized": {"language": language, **texts}}}


def in_callers_language(text: str) -> str:
    """A message of ProcGuard in the language of the current request."""
    return in_language(text, callers_language())


def callers_language() -> str:
    """The language of the current request: "en" or "zh"."""
    return _language(accept_language())


def in_language(text: str, language: str) -> str:
    """A message of ProcGuard in a language, with the commands as this installation has them."""
    return hints.commands(localized(text, language))


def _language(accept_language: str | None) -> str:
    return pick(accept_language[:MAX_ACCEPT_LANGUAGE]) if accept_language else "en"


def error_response(exc: ProcGuardError, request_id: str, accept_language: str | None = None) -> bottle.HTTPResponse:
    """The response for an error, in the common error format."""
    body = with_localized(refusal_body(exc, request_id), accept_language)
    response = json_response(body, exc.http_status)
    if exc.http_status == 401:
        response.set_header("WWW-Authenticate", 'Bearer realm="procguard"')
    retry_after_s = getattr(exc, "retry_after_s", None)
    if retry_after_s is not None:
        response.set_header("Retry-After", str(max(1, math.ceil(retry_after_s))))
    return response


def note_change(what: str, *, final: bool = True) -> None:
    """Describe the change made by this request, in a few words without secrets, for the audit. `final` False: the
    description is completed after the change, and the audit entry is written then; otherwise it is durable together
    with the change."""
    environ = bottle.request.environ
    environ["procguard.change"], environ["procguard.change_final"] = what[:MAX_NOTE_CHARS], final


def noted_change(environ: WSGIEnvironment) -> tuple[str, bool]:
    """(the noted change, whether it is final)."""
    return str(environ.get("procguard.change", "")), bool(environ.get("procguard.change_final", True))


def accept_language() -> str | None:
    found = bottle.request.environ.get("HTTP_ACCEPT_LANGUAGE")
    return None if found is None else str(found)


def request_id() -> str:
    return str(bottle.request.environ.get("procguard.request_id", "-"))


def answered(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a route: a dict is returned as JSON, a ProcGuardError as its error response, any other exception as a 500
    without a traceback."""

    @functools.wraps(handler)
    def wrapper(**arguments: Any) -> Any:
        try:
            result = handler(**arguments)
        except bottle.HTTPResponse:
            raise
        except ProcGuardError as exc:
            return error_response(exc, request_id(), accept_language())
        except Exception:
            log.exception("request failed request_id=%s route=%s", request_id(), bottle.request.path)
            return internal_error(request_id())
        return json_response(result) if isinstance(result, dict) else result

    return wrapper


def internal_error(identifier: str) -> bottle.HTTPResponse:
    return json_response(internal_error_body(identifier), 500)


def internal_error_body(identifier: str) -> Json:
    return error_body(
        "internal_error",
        "the manager failed to answer this request",
        f"look for request_id={identifier} in the manager's log and report it",
        identifier,
    )
