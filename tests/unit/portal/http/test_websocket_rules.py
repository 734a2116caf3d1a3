"""WebSocket frames according to RFC 6455: a table of bytes against the running manager (scenario 29).

The cases are those of Autobahn's testsuite, 1 to 7 and 10, by its numbers; the frames are our own. The manager echoes
nothing: that a message was understood as one shows in its answer, that a connection goes on in the answer to what
follows. What deviates, and why: docs/security.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.raw_websocket import BINARY, CLOSE, PING, PONG, TEXT, RawWebSocket, encode
from tests.rows import each
from tests.server_process import RunningManager, RunningServer

CONTINUATION = 0
ANSWERED = "answered"  # a message was understood, and answered
IGNORED = "ignored"  # no response, the connection stays open
WORLD = "Hello-µ@ßöäüàá-UTF-8!!".encode()
SUBSCRIBE = b'{"t":"sub","topic":"workers"}'


def said(payload: bytes, opcode: int = TEXT, **options: bool) -> bytes:
    return encode(opcode, payload, **options)


def fragments(*parts: bytes, opcode: int = TEXT, between: bytes = b"") -> bytes:
    frames = [
        encode(opcode if not number else CONTINUATION, part, fin=number == len(parts) - 1)
        for number, part in enumerate(parts)
    ]
    return between.join(frames)


def closing(code: int | None = None, reason: bytes = b"") -> bytes:
    return encode(CLOSE, (b"" if code is None else struct.pack("!H", code)) + reason)


def head(first: int, second: int, rest: bytes = b"") -> bytes:
    return bytes((first, second)) + rest


# ping -> the payload of its pong; ANSWERED; IGNORED; a number: closed with this code
CASES: dict[str, tuple[bytes, object]] = {
    **{f"1.1 text of {size}": (said(b"*" * size), ANSWERED) for size in (0, 125, 126, 127, 128, 65535, 65536)},
    **{
        f"1.2 binary of {size}": (said(b"\xfe" * size, BINARY), ANSWERED)
        for size in (0, 125, 126, 127, 128, 65535, 65536)
    },
    "2.1 a ping without a payload": (said(b"", PING), b""),
    "2.2 a ping": (said(b"Hello, world!", PING), b"Hello, world!"),
    "2.3 a ping of bytes": (said(b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", PING), b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"),
    "2.4 a ping of 125": (said(b"\xfe" * 125, PING), b"\xfe" * 125),
    "2.5 a ping of 126": (said(b"\xfe" * 126, PING), 1002),
    "2.7 a pong nobody asked for": (said(b"", PONG), IGNORED),
    "2.8 a pong with a payload": (said(b"unasked", PONG), IGNORED),
    "2.9 such a pong, then a ping": (said(b"unasked", PONG) + said(b"asked", PING), b"asked"),
    "2.10 ten pings: the last one is answered": (b"".join(said(b"%d" % n, PING) for n in range(10)), b"9"),
    **{f"3.{bits} reserved bits {bits}": (said(SUBSCRIBE, flags=bits << 4), 1002) for bits in range(1, 8)},
    "3 a ping with a reserved bit": (said(b"", PING, flags=0x40), 1002),
    **{f"4.1 opcode {opcode}": (said(b"x", opcode), 1002) for opcode in range(3, 8)},
    **{f"4.2 opcode {opcode}": (said(b"x", opcode), 1002) for opcode in range(11, 16)},
    "5.1 a ping in fragments": (fragments(b"a", b"b", opcode=PING), 1002),
    "5.2 a pong in fragments": (fragments(b"a", b"b", opcode=PONG), 1002),
    "5.3 text in fragments": (fragments(b"fragment1", b"fragment2"), ANSWERED),
    "5.6 a ping between": (fragments(b"fragment1", b"fragment2", between=said(b"between", PING)), b"between"),
    "5.9 a continuation of nothing": (said(b"x", CONTINUATION), 1002),
    "5.10 the same, and more to come": (said(b"x", CONTINUATION, fin=False), 1002),
    "5.12 the same behind a message": (said(b"x") + said(b"x", CONTINUATION), 1002),
    "5.15 a continuation behind the last fragment": (fragments(b"a", b"b") + said(b"x", CONTINUATION, fin=False), 1002),
    "5.18 a text within a text": (said(b"a", fin=False) + said(b"b"), 1002),
    "5.19 five fragments, pings between": (fragments(*[b"x"] * 5, between=said(b"p", PING)), b"p"),
    "6.1 fragments of nothing": (fragments(b"", b"", b""), ANSWERED),
    "6.1.3 one that is not": (fragments(b"", b"middle", b""), ANSWERED),
    "6.2 UTF-8": (said(WORLD), ANSWERED),
    "6.2.2 UTF-8 in two fragments": (fragments(WORLD[:11], WORLD[11:]), ANSWERED),
    "6.2.3 UTF-8, each byte a fragment": (fragments(*[WORLD[n : n + 1] for n in range(len(WORLD))]), ANSWERED),
    "6.3 a surrogate": (said(b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited"), 1007),
    "6.3.2 each byte a fragment": (fragments(*[b"\xed", b"\xa0", b"\x80"]), 1007),
    "6.4 the first fragment is UTF-8, the second is not": (fragments(b"good", b"\xf4\x90\x80\x80", b"good"), 1007),
    **{
        f"6.{number} {data.hex()}": (said(data), ANSWERED)
        for number, data in {
            "5.1": "κόσμε".encode(), "7.1": b"\0", "7.2": b"\xc2\x80", "7.3": b"\xe0\xa0\x80",
            "7.4": b"\xf0\x90\x80\x80", "9.1": b"\x7f", "9.2": b"\xdf\xbf", "9.3": b"\xef\xbf\xbf",
            "9.4": b"\xf4\x8f\xbf\xbf", "11.1": b"\xed\x9f\xbf", "11.2": b"\xee\x80\x80", "11.3": b"\xef\xbf\xbd",
            "22.1": b"\xef\xbf\xbe", "22.3": b"\xf0\x9f\xbf\xbe", "23.1": b"\xef\xbf\xb9",
        }.items()
    },
    **{
        f"6.{number} {data.hex()}": (said(data), 1007)
        for number, data in {
            "6.1": b"\xce", "6.4": "κόσμε".encode()[:-1], "8.1": b"\xf8\x88\x80\x80\x80",
            "8.2": b"\xfc\x84\x80\x80\x80\x80", "10.1": b"\xf7\xbf\xbf\xbf", "10.2": b"\xfb\xbf\xbf\xbf\xbf",
            "11.5": b"\xf4\x90\x80\x80", "12.1": b"\x80", "12.2": b"\xbf", "12.8": bytes(range(0x80, 0xC0)),
            "13.1": b"\xc0 \xc1 ", "13.5": b"\xfc \xfd ", "14.1": b"\xc0", "14.4": b"\xf8\x80\x80\x80",
            "14.6": b"\xdf", "15.1": b"\xc0\xe0\x80\xf0\x80\x80", "16.1": b"\xfe", "16.2": b"\xff",
            "17.1": b"\xc0\xaf", "17.2": b"\xe0\x80\xaf", "18.1": b"\xc1\xbf", "18.3": b"\xf0\x8f\xbf\xbf",
            "19.1": b"\xc0\x80", "20.1": b"\xed\xa0\x80", "20.7": b"\xed\xbf\xbf", "21.1": b"\xed\xa0\x80\xed\xb0\x80",
            "21.8": b"\xed\xaf\xbf\xed\xbf\xbf",
        }.items()
    },
    "7.1.2 two closes": (closing(1000) + closing(1000), 1000),
    "7.1.3 a ping behind a close": (closing(1000) + said(b"late", PING), 1000),
    "7.1.4 a message behind a close": (closing(1000) + said(SUBSCRIBE), 1000),
    "7.1.5 a close between fragments": (said(b"a", fin=False) + closing(1000) + said(b"b", CONTINUATION), 1000),
    "7.3.1 a close without a payload": (closing(), 1000),
    "7.3.2 one of one byte": (encode(CLOSE, b"a"), 1002),
    "7.3.4 with a reason": (closing(1000, b"Hello World!"), 1000),
    "7.3.5 with a reason of 123": (closing(1000, b"*" * 123), 1000),
    "7.3.6 with one of 124": (closing(1000, b"*" * 124), 1002),
    "7.5.1 with a reason that is no UTF-8": (closing(1000, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80"), 1007),
    "7.5.1 with one cut within a character": (closing(1001, "ß".encode()[:1]), 1007),
    **{f"7.7 code {code}": (closing(code), code) for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011)},
    **{f"7.7 code {code}": (closing(code), code) for code in (3000, 3999, 4000, 4999)},
    **{f"7.9 code {code}": (closing(code), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999)},
    **{f"7.13 code {code}": (closing(code), 1002) for code in (5000, 65535)},
    "10.1 a message of 65541 in pieces of 1300": (said(b"*" * 65541), ANSWERED),
    # What Autobahn has no case for.
    "RFC 5.1 a frame without a mask": (said(SUBSCRIBE, masked=False), 1002),
    "RFC 5.1 a ping without a mask": (said(b"", PING, masked=False), 1002),
    "RFC 5.2 a length of 16 bits where 7 would do": (head(0x81, 0xFE, struct.pack("!H", 5) + b"\0" * 9), 1002),
    "RFC 5.2 one of 64 bits where 16 would do": (head(0x81, 0xFF, struct.pack("!Q", 300) + b"\0" * 304), 1002),
    "RFC 5.2 the highest bit of 64": (head(0x81, 0xFF, struct.pack("!Q", 1 << 63)), 1002),
    "RFC 5.5 a ping whose length has 16 bits": (head(0x89, 0xFE, struct.pack("!H", 200)), 1002),
    "RFC 10.4 more than 1 MiB": (said(b"x" * (1024 * 1024 + 1))[:5000], 1009),
    "RFC 10.4 more than any memory": (head(0x81, 0xFF, struct.pack("!Q", (1 << 63) - 1)), 1009),
    "RFC 10.4 more than 1 MiB in fragments": (fragments(b"x" * 700_000, b"x" * 700_000), 1009),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The manager with its usual configuration."""
    running = RunningManager(tmp_path_factory.mktemp("manager"))
    running.deploy("h1", "w1")
    yield running
    running.close()
    assert "Traceback" not in running.log()
    assert "Traceback" not in (running.directory / "manager.log").read_text(errors="replace")


def connect(server: RunningServer, **options: object) -> RawWebSocket:
    client = RawWebSocket(server.port, **options)  # type: ignore[arg-type]
    assert client.accepted and client.message()["t"] == "hello"
    return client


def check(client: RawWebSocket, expected: object) -> None:
    """The next frame, and the last one: a close ends the connection; otherwise it continues."""
    if isinstance(expected, int):
        assert client.close_code() == expected and client.frame() is None
        return
    client.send(TEXT, b'{"t":"sub","topic":"workers"}')
    if expected == ANSWERED:
        assert client.until("error")["message"]
    while isinstance(expected, bytes) and (frame := client.frame()) != (PONG, expected):
        assert frame is not None and frame.opcode in (PONG, TEXT)
    if not isinstance(expected, bytes):
        assert client.until("snap")["topic"] == "workers"


@each("name", CASES)
def test_frames_are_understood_or_refused_as_the_standard_says(server: RunningServer, name: str) -> None:
    sent, expected = CASES[name]
    with connect(server) as client:
        for at in range(0, len(sent), 1300):
            client.socket.sendall(sent[at : at + 1300])
        check(client, expected)


@each("name", [name for name, (sent, _) in CASES.items() if len(sent) < 300])
def test_the_same_byte_by_byte(server: RunningServer, name: str) -> None:
    """Autobahn's x.y.z "in octet-wise chops"."""
    sent, expected = CASES[name]
    with connect(server) as client:
        for at in range(len(sent)):
            try:
                client.socket.send(sent[at : at + 1])
            except OSError:  # closed in the middle
                break
        check(client, expected)


def test_fragments_with_a_ping_between_make_one_message(server: RunningServer) -> None:
    with connect(server) as client:
        client.socket.sendall(fragments(b'{"t":"sub",', b'"topic":"workers"}', between=said(b"between", PING)))
        assert client.frame() == (PONG, b"between")
        assert client.until("snap")["topic"] == "workers"


def test_compression_is_never_negotiated(server: RunningServer) -> None:
    with connect(server, headers={"Sec-WebSocket-Extensions": "permessage-deflate"}) as client:
        assert "sec-websocket-extensions" not in client.headers


def test_no_subprotocol_is_made_up(server: RunningServer) -> None:
    """RFC 6455, 4.2.2: only a subprotocol that both sides support."""
    with connect(server, headers={"Sec-WebSocket-Protocol": "chat, superchat"}) as client:
        assert "sec-websocket-protocol" not in client.headers
