"""The head of a request, taken apart once and strictly: no second way to read it that a proxy before us might choose.

Pure: bytes in, a `Head` out. Knows HTTP/1's framing (RFC 9112), nothing of sockets or routes. A tenth of the time that
http.client's parser takes, which is made for mail.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_LINE_BYTES = 8192  # the request line, and each header
MAX_FIELDS = 100
MAX_PARAMETERS = 100  # in the address

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VERSION = re.compile(rb"HTTP/1\.[0-9]")
_BAD_IN_VALUE = re.compile(rb"[\0\r]")
_JOINED_BY = {"HTTP_COOKIE": "; "}
# Fields that say one thing about the whole request: twice is a contradiction, or an attempt to smuggle.
_ONCE = ("CONTENT_LENGTH", "HTTP_HOST", "HTTP_AUTHORIZATION", "HTTP_TRANSFER_ENCODING")
_NAMES: dict[bytes, str] = {}  # as they come -> as WSGI calls them
_MAX_NAMES, _MAX_NAME_BYTES = 1_000, 64  # a peer that invents names does not fill the memory


class BadHead(ValueError):
    """Not a request that can be understood."""


class TooLarge(BadHead):
    """More than anybody needs to say; `in_target`: in the request line."""

    def __init__(self, message: str, in_target: bool = False) -> None:
        super().__init__(message)
        self.in_target = in_target


class Head(NamedTuple):
    """`fields` as WSGI names them (HTTP_HOST, CONTENT_TYPE, …), joined where one came more often."""

    method: str
    target: str  # as it was written, with its query
    version: str  # "HTTP/1.1"
    fields: dict[str, str]
    content_length: int | None  # None: not said, or chunked
    chunked: bool
    close: bool  # the connection ends after the answer


def parse(head: bytes) -> Head:
    """`head`: from the request line to the empty line. Raises BadHead."""
    lines = head.split(b"\n")
    line, *rest = lines
    if len(line) > MAX_LINE_BYTES:
        raise TooLarge("the request line is too long", in_target=True)
    words = line.rstrip(b"\r").split(b" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not words[1] or not _VERSION.fullmatch(words[2]):
        raise BadHead("the request line is not METHOD TARGET HTTP/1.1")
    if words[1].count(b"&") >= MAX_PARAMETERS:
        raise BadHead(f"more than {MAX_PARAMETERS} parameters in the address")
    fields = _fields(rest)
    version = words[2].decode("ascii")
    coding = fields.get("HTTP_TRANSFER_ENCODING")
    chunked = coding is not None
    if chunked and (coding.lower() != "chunked" or version == "HTTP/1.0"):  # type: ignore[union-attr]
        raise BadHead("Transfer-Encoding can only be chunked")
    if chunked:
        fields.pop("CONTENT_LENGTH", None)  # RFC 9112, 6.3: the coding decides
    options = fields.get("HTTP_CONNECTION", "").lower()
    close = "close" in options if version != "HTTP/1.0" else "keep-alive" not in options
    return Head(words[0].decode("ascii"), words[1].decode("latin-1"), version, fields, _length(fields), chunked, close)


def _fields(lines: list[bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    if len(lines) > MAX_FIELDS + 2:  # the empty line and what stands after its end
        raise TooLarge(f"more than {MAX_FIELDS} headers")
    for line in lines:
        if len(line) > MAX_LINE_BYTES:
            raise TooLarge("a header is too long")
        raw_name, colon, raw_value = line.partition(b":")
        if not colon:
            if line in (b"\r", b""):
                continue  # the empty line
            raise BadHead("a header without a colon")
        name = _NAMES.get(raw_name) or _name(raw_name)
        if not name:
            continue
        value = raw_value.strip(b" \t\r")
        if _BAD_IN_VALUE.search(value):
            raise BadHead(f"the value of {raw_name[:40].decode('latin-1')} holds a control character")
        text = value.decode("latin-1")
        if name in found:
            if name in _ONCE:
                raise BadHead(f"{raw_name[:40].decode('latin-1')} came twice")
            text = found[name] + _JOINED_BY.get(name, ",") + text
        found[name] = text
    return found


def _name(raw: bytes) -> str:
    """The field's name in WSGI; "" for one that is left out: HTTP_X_Y could be X-Y or X_Y, and only the first is
    meant (as in nginx and pywsgi)."""
    if not _TOKEN.fullmatch(raw):  # also a folded line, and a space before the colon
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
