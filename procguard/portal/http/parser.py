"""Parses the head of a request strictly, so that a proxy in front cannot interpret it differently.

Pure: bytes in, a `Head` out. Knows HTTP/1 framing (RFC 9112), but neither sockets nor routes. Ten times faster than
http.client's parser, which was written for mail. Lines must end with CRLF, so that the end of a head does not depend on
how its bytes arrive.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_LINE_BYTES = 8192  # the request line, and each header
MAX_FIELDS = 100
MAX_PARAMETERS = 100  # limit on the parameters of a URL

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Methods are case-sensitive (RFC 9110, 9.1), and all known ones are in capitals; a target contains no control character
# and no fragment (#).
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Z-]+) ([!-\"$-~\x80-\xff]+) (HTTP/1\.[0-9])")
_BAD_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ABSOLUTE = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE)  # absolute form (RFC 9112, 3.2.2), as sent to proxies
_HOST = re.compile(r"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_JOINED_BY = {"HTTP_COOKIE": "; "}
# Fields that must be unique: a duplicate is an error or an attempt at request smuggling.
_ONCE = ("CONTENT_LENGTH", "HTTP_HOST", "HTTP_AUTHORIZATION", "HTTP_TRANSFER_ENCODING")
_NAMES: dict[bytes, str] = {}  # name as received -> WSGI name
_LINES: dict[bytes, tuple[str, str]] = {}  # cache of valid headers: an agent repeats nearly all of them in each request
_HOSTS: set[str] = set()  # Host values that were valid
_KEPT = {"HTTP_HOST", "HTTP_ACCEPT_ENCODING", "HTTP_ACCEPT", "HTTP_USER_AGENT", "CONTENT_TYPE", "CONTENT_LENGTH"}
_MAX_NAMES, _MAX_NAME_BYTES = 1_000, 64  # limits the memory used by invented names
_MAX_LINES, _MAX_LINE_KEPT_BYTES = 1_000, 64


class BadHead(ValueError):
    """The head is not a valid request."""


class UnknownCoding(BadHead):
    """The body's transfer coding is not implemented."""


class TooLarge(BadHead):
    """The head exceeds a limit; `in_target`: the request line does."""

    def __init__(self, message: str, in_target: bool = False) -> None:
        super().__init__(message)
        self.in_target = in_target


class Head(NamedTuple):
    """`fields`: by WSGI name (HTTP_HOST, CONTENT_TYPE, …); repeated fields are joined."""

    method: str
    target: str  # as received, with its query; of an absolute form, the part after the host
    version: str  # "HTTP/1.1"
    fields: dict[str, str]
    content_length: int | None  # None: not given, or chunked
    chunked: bool
    close: bool  # the connection is closed after the response


def parse(head: bytes) -> Head:
    """`head`: from the request line to the empty line. Raises BadHead."""
    line, *rest = head.split(b"\r\n")
    if len(line) > MAX_LINE_BYTES - 2:
        raise TooLarge("the request line is too long", in_target=True)
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise BadHead("the request line is not METHOD TARGET HTTP/1.1")
    method, target, version = found[1].decode("ascii"), found[2], found[3].decode("ascii")
    if target.count(b"&") >= MAX_PARAMETERS:
        raise BadHead(f"more than {MAX_PARAMETERS} parameters in the address")
    fields = _fields(rest)
    if target[0] != 0x2F:
        target = _origin_form(method, target, fields)
    host = fields.get("HTTP_HOST")
    if host is None:
        if version != "HTTP/1.0":
            raise BadHead("Host is missing")  # RFC 9112, 3.2: MUST
    elif host not in _HOSTS:
        _check_host(host)
    coding = fields.get("HTTP_TRANSFER_ENCODING")
    if coding is not None:
        _check_coding(coding, version, fields)
    options = fields.get("HTTP_CONNECTION")
    close = version == "HTTP/1.0" if options is None else _closes(options.lower(), version)
    return Head(method, target.decode("latin-1"), version, fields, _length(fields), coding is not None, close)


def _check_host(host: str) -> None:
    if not _HOST.fullmatch(host):
        raise BadHead("Host is not HOST or HOST:PORT")
    if len(_HOSTS) < _MAX_NAMES and len(host) <= _MAX_NAME_BYTES:
        _HOSTS.add(host)


def _origin_form(method: str, target: bytes, fields: dict[str, str]) -> bytes:
    """An absolute form without scheme and host. Its host replaces the Host field (RFC 9112, 3.2.2: MUST)."""
    if target == b"*" and method == "OPTIONS":
        return target
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise BadHead("the address begins neither with / nor with http://")
    fields["HTTP_HOST"] = found[1].decode("latin-1")
    return found[2] if found[2].startswith(b"/") else b"/" + found[2]


def _check_coding(coding: str, version: str, fields: dict[str, str]) -> None:
    """Refuse requests whose body length is ambiguous, and close their connection (RFC 9112, 6.1 and 6.3)."""
    if "CONTENT_LENGTH" in fields:
        raise BadHead("Transfer-Encoding and Content-Length contradict each other")
    if version == "HTTP/1.0":
        raise BadHead("HTTP/1.0 has no Transfer-Encoding")
    codings = [one.strip(" \t").lower() for one in coding.split(",")]
    if codings[-1] != "chunked" or codings.count("chunked") > 1:
        raise BadHead("the last Transfer-Encoding must be chunked")
    if len(codings) > 1:
        raise UnknownCoding(f"Transfer-Encoding {coding[:40]} is not known here")


def _closes(options: str, version: str) -> bool:
    if options in ("close", "keep-alive"):
        return options == "close"
    named = {one.strip(" \t") for one in options.split(",")}
    return "close" in named or (version == "HTTP/1.0" and "keep-alive" not in named)


def _fields(lines: list[bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    if len(lines) > MAX_FIELDS + 2:  # the empty line and the data after it
        raise TooLarge(f"more than {MAX_FIELDS} headers")
    for line in lines:
        known = _LINES.get(line)
        if known is not None and known[0] not in found:
            found[known[0]] = known[1]
            continue
        if len(line) > MAX_LINE_BYTES - 2:
            raise TooLarge("a header is too long")
        raw_name, colon, raw_value = line.partition(b":")
        if not colon:
            if not line:
                continue  # the empty line after the head
            raise BadHead("a header without a colon")
        name = _NAMES.get(raw_name) or _name(raw_name)
        value = raw_value.strip(b" \t")
        if _BAD_IN_VALUE.search(value):
            raise BadHead(f"the value of {raw_name[:40].decode('latin-1')} holds a control character")
        if not name:
            continue
        text = value.decode("latin-1")
        if name in _KEPT and len(line) <= _MAX_LINE_KEPT_BYTES:
            if len(_LINES) >= _MAX_LINES:
                _LINES.clear()
            _LINES[line] = (name, text)
        if name in found:
            if name in _ONCE:
                raise BadHead(f"{raw_name[:40].decode('latin-1')} came twice")
            text = found[name] + _JOINED_BY.get(name, ",") + text
        found[name] = text
    return found


def _name(raw: bytes) -> str:
    """The field's WSGI name; "" for names with an underscore, which are ignored as in nginx and pywsgi: HTTP_X_Y must
    mean X-Y only."""
    if not _TOKEN.fullmatch(raw):  # also rejects folded lines and a space before the colon
        raise BadHead(f"{raw[:40].decode('latin-1')!r} cannot be a header's name")
    if b"_" in raw:
        return ""
    name = raw.decode("ascii").replace("-", "_").upper()
    if name not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        name = "HTTP_" + name
    if len(_NAMES) < _MAX_NAMES and len(raw) <= _MAX_NAME_BYTES:
        _NAMES[raw] = name
    return name


def _length(fields: dict[str, str]) -> int | None:
    text = fields.get("CONTENT_LENGTH")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadHead("Content-Length is not a number")
    return int(text)
