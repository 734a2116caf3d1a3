"""Ranges [start, end) of one stream, ascending and disjoint. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Range = tuple[int, int]


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Merge ranges that touch or overlap; the result is ascending."""
    found: list[Range] = []
    for start, end in sorted(one for one in ranges if one[0] < one[1]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def common(ranges: Sequence[Range], start: int, end: int) -> list[Range]:
    """The parts of [start, end) that the ranges cover."""
    return [(max(one, start), min(other, end)) for one, other in ranges if one < end and start < other]


def lacking(ranges: Sequence[Range], start: int, end: int) -> list[Range]:
    """The parts of [start, end) that merged `ranges` do not cover."""
    found, position = [], start
    for one, other in common(ranges, start, end):
        if position < one:
            found.append((position, one))
        position = other
    if position < end:
        found.append((position, end))
    return found


def from_zero(ranges: Sequence[Range]) -> int:
    """The offset up to which merged `ranges` cover everything from 0."""
    return ranges[0][1] if ranges and ranges[0][0] == 0 else 0
