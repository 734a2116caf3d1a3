"""Chunked bodies: parsed according to RFC 9112, and refused if the framing is unbounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.portal.http import body as http_body
from procguard.portal.http.body import BadBody, Body
from procguard.portal.http.buffer import SocketReader
from tests.unit.portal.http.test_http_reader import Pieces


def body(*pieces: bytes) -> Body:
    return Body(SocketReader(Pieces(*pieces)), None, chunked=True)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 50), st.integers(-1, 30))
def test_chunks_are_put_together_however_they_come_and_are_asked_for(chunks: list[bytes], cut: int, asked: int) -> None:
    sent = b"".join(b"%X;name=value\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nX: y\r\n\r\n"
    made = body(*[sent[at : at + cut] for at in range(0, len(sent), cut)])
    read = b""
    while part := made.read(asked if asked else 1):
        read += part
    assert read == b"".join(chunks) and made.ended and not made.abandoned


def test_what_follows_the_body_is_left_for_the_next_request() -> None:
    reader = SocketReader(Pieces(b"3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"))
    assert Body(reader, None, chunked=True).read() == b"abc"
    assert reader.head() == b"GET / HTTP/1.1\r\n\r\n"
    reader = SocketReader(Pieces(b"abcGET"))
    assert Body(reader, 3, chunked=False).read() == b"abc" and reader.read(3) == b"GET"


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",  # no size at all
        b";x\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n",
        b"1\na\n0\n\n",
        b"g\r\n",
        b"11111111111111111\r\n",
        b"1\r\nab\r\n",
        b"1\r\na",
        b"5\r\nab",
        b"1;" + b"x" * http_body.MAX_CHUNK_LINE_BYTES,
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n: x\r\n\r\n",
        b"0\r\na: " + b"x" * http_body.MAX_TRAILER_BYTES + b"\r\n\r\n",
        b"0\r\n" + b"a: b\r\n" * (http_body.MAX_TRAILERS + 1) + b"\r\n",
        b"0\r\n",
    ],
)
def test_what_breaks_the_rules_is_refused_and_nothing_after_it_is_read(sent: bytes) -> None:
    made = body(sent)
    with pytest.raises(BadBody):
        made.read()
    assert made.abandoned and made.read() == b""


def test_extensions_without_end_are_refused_and_small_chunks_are_not() -> None:
    with pytest.raises(BadBody, match="more framing than data"):
        body((b"1;" + b"x" * 200 + b"\r\na\r\n") * 1_000).read()
    assert len(body(b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n").read()) == 10_000


def test_a_small_rest_is_read_away_and_a_large_one_ends_the_connection() -> None:
    reader = SocketReader(Pieces(b"x" * 1000 + b"GET"))
    small = Body(reader, 1000, chunked=False)
    small.read(10)
    small.discard()
    assert not small.abandoned and reader.read(3) == b"GET"
    large = Body(SocketReader(Pieces(b"x" * 10)), http_body.MAX_DISCARD_BYTES + 1, chunked=False)
    large.discard()
    assert large.abandoned
    endless = body(b"1\r\na\r\n")
    endless.read(1)
    endless.discard()
    assert endless.abandoned
    nothing = Body(SocketReader(Pieces(b"GET")), None, chunked=False)
    nothing.discard()
    assert not nothing.abandoned and nothing.read() == b""
