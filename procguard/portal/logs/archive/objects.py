"""The format of an archived object: a header with its table of contents, then pieces of logs, each compressed
separately.

    8 bytes   PGLOGS1\\n
    4 + 4     length of the header as stored, and unpacked (big-endian)
    32        SHA-256 of the header as stored
    header    zlib, JSON: {"fleet", "term", "at", "pieces": [[worker, attempt, stream, start, length, position, packed,
              at, digest], …]}; `position`: from the header's end; `packed` 0: these bytes were lost before
    pieces    zlib: at most PIECE_BYTES of the log, then the times of its bytes: records as in an `.idx` (reader.py)

A piece is read by a range request; `digest` covers its unpacked bytes. Nothing is unpacked beyond its announced size,
and sizes above the limits here are refused. Pure; safe in a worker thread.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from procguard.json_types import Json
from procguard.portal.logs.archive.object_store import ObjectDamaged

MAGIC = b"PGLOGS1\n"
PIECE_BYTES = 1024 * 1024
MAX_TIMES_BYTES = 512 * 1024  # records of times per piece; more are thinned out
MAX_PACKED_BYTES = PIECE_BYTES + MAX_TIMES_BYTES + 4096
MAX_HEADER_BYTES = 16 * 1024 * 1024  # unpacked
MAX_PIECES = 20_000
LEVEL = 4
DIGEST_BYTES = 16
_START = struct.Struct(">8sII32s")
START_BYTES = _START.size
_WORKER = re.compile(r"[^\x00-\x1f\x7f/]{1,255}")
_MAX_OFFSET = 10**15


class Piece(NamedTuple):
    """Bytes [start, start + length) of one stream. `position`: in the object; `packed` 0: the bytes were lost, at
    `at`."""

    worker_id: str
    attempt: int
    stream: str
    start: int
    length: int
    position: int
    packed: int
    at: float  # wall time of the first byte
    digest: bytes

    @property
    def end(self) -> int:
        return self.start + self.length


class Chunk(NamedTuple):
    """The input of a piece; `data` None: `length` lost bytes. `times`: complete records (offset in the log, wall time)
    that begin in it."""

    worker_id: str
    attempt: int
    stream: str
    start: int
    length: int
    at: float
    data: bytes | None
    times: bytes = b""


def build(chunks: Sequence[Chunk], fleet_id: str, term: int, at: float) -> tuple[bytes, list[Piece]]:
    """Build an object from chunks. Returns (the object's bytes, its pieces)."""
    bodies, pieces, position = [], [], 0
    for one in chunks:
        raw = b"" if one.data is None else one.data + one.times
        packed = zlib.compress(raw, LEVEL) if raw else b""
        digest = digest_of(raw)
        pieces.append(Piece(*one[:5], position, len(packed), round(one.at, 3), digest))
        bodies.append(packed)
        position += len(packed)
    rows = [[*one[:8], one.digest.hex()] for one in pieces]
    head = json.dumps({"fleet": fleet_id, "term": term, "at": round(at, 3), "pieces": rows}, separators=(",", ":"))
    packed_head = zlib.compress(head.encode(), LEVEL)
    start = _START.pack(MAGIC, len(packed_head), len(head.encode()), hashlib.sha256(packed_head).digest())
    body_at = START_BYTES + len(packed_head)
    return b"".join([start, packed_head, *bodies]), [one._replace(position=body_at + one.position) for one in pieces]


def header_length(start: bytes) -> int:
    """The length of the header after the first START_BYTES. Raises ObjectDamaged."""
    if len(start) != START_BYTES:
        raise ObjectDamaged("it is too short")
    magic, packed, raw, _ = _START.unpack(start)
    if magic != MAGIC:
        raise ObjectDamaged("it is not an object of ProcGuard")
    if not 0 < packed <= MAX_HEADER_BYTES or not 0 < raw <= MAX_HEADER_BYTES:
        raise ObjectDamaged("its header is too large")
    return int(packed)


def read_header(start: bytes, head: bytes) -> tuple[Json, list[Piece]]:
    """Parse the header. Returns (its fields, the pieces). Raises ObjectDamaged."""
    length = header_length(start)
    _, _, raw_length, digest = _START.unpack(start)
    if len(head) != length or hashlib.sha256(head).digest() != digest:
        raise ObjectDamaged("its header's checksum is wrong")
    try:
        text = _unpacked(head, raw_length)
        if len(text) != raw_length:
            raise ObjectDamaged("the length of its header is wrong")
        about = json.loads(text)
        rows = about.pop("pieces")
        if len(rows) > MAX_PIECES:
            raise ObjectDamaged("it names too many pieces")
        pieces = [_piece(row, START_BYTES + length) for row in rows]
        at = float(about["at"])
        if not 0 <= at < 1e11:
            raise ValueError("a number out of range")
        return {"fleet": str(about["fleet"]), "term": int(about["term"]), "at": at}, pieces
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as exc:
        raise ObjectDamaged("its header cannot be read") from exc


def _piece(row: Any, body_at: int) -> Piece:
    """Raises ValueError, TypeError."""
    worker, attempt, stream, start, length, position, packed, at, digest = row
    numbers = (attempt, start, length, position, packed)
    if not all(type(one) is int and 0 <= one <= _MAX_OFFSET for one in numbers) or attempt > 10**9:
        raise ValueError("a number out of range")
    if not isinstance(worker, str) or not _WORKER.fullmatch(worker) or stream not in ("out", "err") or not length:
        raise ValueError("not a stream")
    if packed and (length > PIECE_BYTES or packed > MAX_PACKED_BYTES):
        raise ValueError("a piece that is too large")
    found = Piece(worker, attempt, stream, start, length, body_at + position, packed, float(at), bytes.fromhex(digest))
    if len(found.digest) != DIGEST_BYTES or not 0 <= found.at < 1e11:
        raise ValueError("no digest, or no time")
    return found


def unpack(packed: bytes, length: int, digest: bytes) -> tuple[bytes, bytes]:
    """The log's bytes of a piece and the records of their times, exactly as archived. Raises ObjectDamaged."""
    raw = _unpacked(packed, length + MAX_TIMES_BYTES)
    if digest_of(raw) != digest:
        raise ObjectDamaged("the checksum of a piece is wrong")
    if len(raw) < length:
        raise ObjectDamaged("a piece is shorter than was archived")
    return raw[:length], raw[length:]


def _unpacked(packed: bytes, most: int) -> bytes:
    """Decompress at most `most` bytes of any input."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, most)
        if len(data) == most and not unpacker.eof:  # the end marker may follow the last byte
            data += unpacker.decompress(unpacker.unconsumed_tail, 1)
    except zlib.error as exc:
        raise ObjectDamaged("it cannot be decompressed") from exc
    if len(data) > most or not unpacker.eof:
        raise ObjectDamaged("it is longer than what may be archived, or cut off")
    return data


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]
