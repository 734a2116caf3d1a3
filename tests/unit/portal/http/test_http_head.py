"""Parsing of a request's head. Refusals are tested in test_http_rules.py, against a running server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.portal.http import parser


def parsed(*lines: bytes, line: bytes = b"POST /x?a=1 HTTP/1.1") -> parser.Head:
    host = () if any(one.lower().startswith(b"host") for one in lines) else (b"Host: a",)
    return parser.parse(b"\r\n".join((line, *host, *lines, b"", b"")))


def test_a_usual_request() -> None:
    head = parsed(
        b"Host: localhost:5000", b"content-length: 12", b"X-Two: a", b"x-two:b", b"Cookie: a=1", b"cookie: b=2"
    )
    assert (head.method, head.target, head.version) == ("POST", "/x?a=1", "HTTP/1.1")
    assert head.fields == {
        "HTTP_HOST": "localhost:5000",
        "CONTENT_LENGTH": "12",
        "HTTP_X_TWO": "a,b",
        "HTTP_COOKIE": "a=1; b=2",
    }
    assert (head.content_length, head.chunked, head.close) == (12, False, False)


def test_a_header_with_an_underscore_is_left_out() -> None:
    """HTTP_X_FORWARDED_FOR must come from the proxy, never from a client that smuggled it through."""
    assert parsed(b"X_Forwarded_For: 1.2.3.4").fields == {"HTTP_HOST": "a"}


@pytest.mark.parametrize(
    "version, connection, close",
    [
        ("1.1", "", False),
        ("1.1", "close", True),
        ("1.1", "Keep-Alive, Close", True),
        ("1.1", "Not-Close", False),
        ("1.0", "Upgrade, Keep-Alive", False),
        ("1.0", "", True),
        ("1.0", "keep-alive", False),
    ],
)
def test_how_long_the_connection_lasts(version: str, connection: str, close: bool) -> None:
    fields = [f"Connection: {connection}".encode()] if connection else []
    assert parsed(*fields, line=f"GET / HTTP/{version}".encode()).close is close


def test_a_chunked_body_has_no_length() -> None:
    head = parsed(b"Transfer-Encoding: Chunked")
    assert head.chunked and head.content_length is None


def test_many_headers_are_too_many() -> None:
    parsed(*[b"X: 1"] * (parser.MAX_FIELDS - 1))  # and Host
    with pytest.raises(parser.TooLarge):
        parsed(*[b"X: 1"] * parser.MAX_FIELDS)


def test_names_that_are_never_used_again_do_not_fill_the_memory() -> None:
    for number in range(3 * parser._MAX_NAMES):
        parsed(f"X-N{number}: 1".encode())
    assert len(parser._NAMES) <= parser._MAX_NAMES


def test_a_header_that_was_said_before_is_checked_no_less() -> None:
    for _ in range(3):
        with pytest.raises(parser.BadHead, match="came twice"):
            parsed(b"Content-Length: 7", b"Content-Length: 7")
        assert parsed(b"Accept: a", b"Accept: a").fields["HTTP_ACCEPT"] == "a,a"
        assert parsed(b"Content-Length: 7").content_length == 7


def test_headers_that_are_kept_fill_no_memory_and_hold_no_secret() -> None:
    for number in range(3 * parser._MAX_LINES):
        parsed(f"User-Agent: {number}".encode(), b"Authorization: Bearer x", b"Cookie: c=x", b"X-Other: 1")
    assert len(parser._LINES) <= parser._MAX_LINES
    assert {name for name, _ in parser._LINES.values()} <= {"HTTP_HOST", "HTTP_USER_AGENT"}


@given(st.binary(max_size=300))
def test_whatever_comes_is_understood_or_refused(data: bytes) -> None:
    try:
        head = parser.parse(data)
    except parser.BadHead:
        return
    assert head.content_length is None or head.content_length >= 0
    assert all("\n" not in value and "\r" not in value for value in head.fields.values())
