"""WebSocket frames as bytes (RFC 6455, 5.2): encodes frames for a client, and reads a client's frames strictly.

Pure except for its byte source. Knows neither messages nor senders.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from procguard.portal.http.body import ByteSource

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MAX_CONTROL_BYTES = 125

CLOSE_NORMAL = 1000
CLOSE_PROTOCOL_ERROR = 1002
CLOSE_BAD_DATA = 1007
CLOSE_TOO_BIG = 1009


class Violation(Exception):
    """The peer broke the protocol: the connection ends with this close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class FrameCut(OSError):
    """The connection ended, within a frame or between two."""


class Frame(NamedTuple):
    opcode: int
    fin: bool
    payload: bytes


def encode(opcode: int, payload: bytes) -> bytes:
    """Encode a complete server frame: final, unmasked."""
    size = len(payload)
    if size <= MAX_CONTROL_BYTES:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def read(source: ByteSource, max_bytes: int) -> Frame:
    """Read the next frame of a client. Raises Violation, also for a frame larger than `max_bytes`, and FrameCut."""
    first, second = _exactly(source, 2)
    opcode, fin, size = first & 0x0F, bool(first & 0x80), second & 0x7F
    if first & 0x70:
        raise Violation(CLOSE_PROTOCOL_ERROR, "reserved bits set")
    if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
        raise Violation(CLOSE_PROTOCOL_ERROR, "unknown opcode")
    if not second & 0x80:
        raise Violation(CLOSE_PROTOCOL_ERROR, "unmasked frame")
    if opcode >= CLOSE and (not fin or size > MAX_CONTROL_BYTES):
        raise Violation(CLOSE_PROTOCOL_ERROR, "a control frame is whole and has at most 125 bytes")
    if size == 126:
        size = _length(source, "!H", 126)
    elif size == 127:
        size = _length(source, "!Q", 65536)
    if size > max_bytes:
        raise Violation(CLOSE_TOO_BIG, f"messages are at most {max_bytes} bytes")
    mask = _exactly(source, 4)
    return Frame(opcode, fin, unmask(_exactly(source, size), mask) if size else b"")


def _length(source: ByteSource, form: str, least: int) -> int:
    size: int = struct.unpack(form, _exactly(source, struct.calcsize(form)))[0]
    if size < least or size >> 63:
        raise Violation(CLOSE_PROTOCOL_ERROR, "the length is not written in its shortest form")
    return size


def _exactly(source: ByteSource, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise FrameCut("end of connection inside a frame")
    return data


def unmask(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def closing_code(payload: bytes) -> int:
    """The code of the response to a close frame with this payload."""
    if not payload:
        return CLOSE_NORMAL
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not _may_be_sent(code):
        return CLOSE_PROTOCOL_ERROR
    try:
        payload[2:].decode("utf-8")
    except UnicodeDecodeError:
        return CLOSE_BAD_DATA  # RFC 6455, 8.1
    return code


def _may_be_sent(code: int) -> bool:
    """Whether the code is allowed in a close frame (RFC 6455, 7.4)."""
    return code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014) or 3000 <= code <= 4999
