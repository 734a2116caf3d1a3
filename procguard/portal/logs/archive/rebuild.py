"""Rebuilds the archive's index from the headers of its objects, after the loss of the state or its disk.

Objects are read oldest first. Bytes in two objects (an interrupted upload) count once. If an object has different bytes
at a known offset, its worker was removed and declared again, and the earlier bytes belong to the removed worker.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import gevent.pool

from procguard.errors import ProcGuardError
from procguard.portal.logs.archive import objects
from procguard.portal.logs.archive.coverage import Range, common, merged
from procguard.portal.logs.archive.index import ArchiveIndex, Key, StoredPiece
from procguard.portal.logs.archive.object_store import ObjectDamaged, ObjectMissing, ObjectStore, RunInThread
from procguard.portal.logs.archive.objects import Piece
from remote_agent.protocol.messages import directory_name

FIRST_BYTES = 64 * 1024  # most headers are shorter
READ_AT_ONCE = 8  # headers

log = logging.getLogger("procguard.manager.archive")


@dataclass
class Rebuilt:
    objects: int = 0
    pieces: int = 0
    damaged: int = 0


def read_pieces(
    place: ObjectStore, name: str, in_thread: RunInThread, whole: bool = False
) -> tuple[float, list[Piece], int]:
    """Returns (creation time, pieces, size). Reads the last piece too, or all (`whole`): a server that was killed
    during an upload may leave an object of the announced length that lacks bytes. Raises ArchiveFailed, ObjectMissing,
    ObjectDamaged."""
    first = place.get(name, 0, FIRST_BYTES)
    start, head = first[: objects.START_BYTES], first[objects.START_BYTES :]
    length = objects.header_length(start)
    if len(head) < length:
        head += place.get(name, objects.START_BYTES + len(head), length - len(head))
    about, pieces = _of_thread(in_thread(_read, start, head[:length]))
    body = objects.START_BYTES + length
    size = max([body, *(one.position + one.packed for one in pieces)])
    packed = sorted((one for one in pieces if one.packed), key=lambda one: one.position)
    begin = min((one.position for one in (packed if whole else packed[-1:])), default=size - 1)
    rest = place.get(name, begin, size - begin + 1)
    if len(rest) != size - begin:
        raise ObjectDamaged("its length does not match its header")
    checked = in_thread(_checked, packed if whole else packed[-1:], begin, rest)
    if isinstance(checked, ObjectDamaged):
        raise checked
    return about, pieces, size


def _checked(pieces: list[Piece], begin: int, data: bytes) -> ObjectDamaged | None:
    """`data`: the object from `begin` on."""
    try:
        for one in pieces:
            at = one.position - begin
            objects.unpack(data[at : at + one.packed], one.length, one.digest)
        return None
    except ObjectDamaged as exc:
        return exc


def _read(start: bytes, head: bytes) -> tuple[float, list[Piece]] | ObjectDamaged:
    try:
        about, pieces = objects.read_header(start, head)
        return about["at"], pieces
    except ObjectDamaged as exc:
        return exc


def _of_thread(result: tuple[float, list[Piece]] | ObjectDamaged) -> tuple[float, list[Piece]]:
    if isinstance(result, ObjectDamaged):
        raise result
    return result


def rebuild(place: ObjectStore, index: ArchiveIndex, in_thread: RunInThread) -> Rebuilt:
    """Add every object that the index lacks. Raises ArchiveFailed, OSError."""
    found, known = Rebuilt(), index.known_names()
    covered: dict[Key, list[Range]] = {(one.folder, one.attempt, one.stream): one.covered for one in index.streams()}

    def read(name: str) -> tuple[str, tuple[float, list[Piece], int] | Exception]:
        try:
            return name, read_pieces(place, name, in_thread)
        except (ObjectDamaged, ProcGuardError) as exc:
            return name, exc

    unknown = (name for name in place.names() if name not in known)
    for name, result in gevent.pool.Pool(READ_AT_ONCE).imap(read, unknown, maxsize=READ_AT_ONCE):
        if isinstance(result, (ObjectDamaged, ObjectMissing)):
            log.error("log archive: %s is left out: %s", name, result)
            found.damaged += 1
            continue
        if isinstance(result, Exception):
            raise result
        at, pieces, size = result
        for folder in _declared_again(place, index, name, pieces, covered, in_thread):
            index.drop(folder + ".gone")
            index.rename(folder, folder + ".gone")
            for key in [key for key in covered if key[0] == folder]:
                del covered[key]
        fresh: list[tuple[Key, Piece]] = []
        changed: dict[Key, list[Range]] = {}
        for one in pieces:
            key = (directory_name(one.worker_id), one.attempt, one.stream)
            if not common(covered.get(key, []), one.start, one.end):
                fresh.append((key, one))
                changed[key] = covered[key] = merged([*covered.get(key, []), (one.start, one.end)])
        index.finish(index.begin(name, at), size, fresh, changed)
        found.objects += 1
        found.pieces += len(fresh)
    return found


def _declared_again(
    place: ObjectStore,
    index: ArchiveIndex,
    name: str,
    pieces: list[Piece],
    covered: dict[Key, list[Range]],
    in_thread: RunInThread,
) -> set[str]:
    """Folders of workers for which this object has different bytes than the index at the same offset."""
    found: set[str] = set()
    for one in pieces:
        key = (directory_name(one.worker_id), one.attempt, one.stream)
        if key[0] in found or not one.packed or not common(covered.get(key, []), one.start, one.end):
            continue
        here = _bytes_of(place, name, one, in_thread)
        for known in index.pieces(key, one.start, one.end, 2):
            there = _bytes_of(place, known.name, known, in_thread) if known.packed else None
            start, end = max(one.start, known.start), min(one.end, known.start + known.length)
            if here is None or there is None:
                continue
            if here[start - one.start : end - one.start] != there[start - known.start : end - known.start]:
                found.add(key[0])
    return found


def _bytes_of(place: ObjectStore, name: str, piece: Piece | StoredPiece, in_thread: RunInThread) -> bytes | None:
    """The bytes of a piece; None if it cannot be read."""
    try:
        packed = place.get(name, piece.position, piece.packed)
    except ObjectMissing:
        return None
    data: bytes | None = in_thread(_unpacked, packed, piece.length, piece.digest)
    return data


def _unpacked(packed: bytes, length: int, digest: bytes) -> bytes | None:
    try:
        return objects.unpack(packed, length, digest)[0]
    except ObjectDamaged:
        return None
