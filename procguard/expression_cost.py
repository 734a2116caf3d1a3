"""Decides whether an expression could take unbounded time in Python's `re`, because it matches the same text in several
ways.

RE2 takes time linear in the text, while `re` backtracks. The syntax tree of expression.py is converted to the Glushkov
automaton, in which each set of characters of the expression is a position. If two successors of a position can take the
same character, there is a choice. Within a repeat, choices multiply (exponential time). Elsewhere, the number of paths
through the automaton grows with a power of the line's length: the number of repeats in a row of which each can take
text that the one before could have taken as well (Weber and Seidl: On the degree of ambiguity of finite automata,
1991). The search itself is the first of them, because a match may begin anywhere. Conservative: some expressions that
`re` could match quickly are refused. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

Ranges = list[tuple[int, int]]

MAX_POWER = 2  # of the line's length; the search alone is 1, and with one .* it is 2
MAX_CHOICES = {1: 6, 2: 4}  # that may each double the number of paths, for each power


@dataclass
class Characters:
    """One character of these ranges of code points, both ends included."""

    ranges: Ranges


@dataclass
class Sequence:
    parts: list[Node]


@dataclass
class Either:
    branches: list[Node]


@dataclass
class Repeat:
    """`many`: the body may be repeated; `optional`: it may be missing."""

    body: Node
    many: bool
    optional: bool


Node = Characters | Sequence | Either | Repeat
NOTHING = Sequence([])  # takes no character: an anchor, a word boundary


def unbounded_because(tree: Node) -> str:
    """Why the expression could take unbounded time, as text for a message; "" if it cannot."""
    automaton = Automaton()
    try:
        found = automaton.add(tree, within=False)
    except _Ambiguous as exc:
        return str(exc)
    power = automaton.power(found.first)
    if power > MAX_POWER:
        return "it has several repeats in a row that can match the same text, such as .*"
    most = MAX_CHOICES[power]
    return f"it can match in more than {2**most} ways" if automaton.choices(found.first) > most else ""


class _Ambiguous(Exception):
    pass


@dataclass
class _Part:
    """The positions with which a part of the expression may begin and end, and all its positions. `nullable`: whether
    it may be empty."""

    nullable: bool = True
    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


class Automaton:
    """`repeat_of`: position -> number of the outermost repeat that it is in. `follow`: successors of each position."""

    def __init__(self) -> None:
        self.ranges: list[Ranges] = []
        self.follow: list[list[int]] = []  # a position is listed twice if it is reached in two ways
        self.repeat_of: dict[int, int] = {}

    def add(self, node: Node, within: bool) -> _Part:
        """Add a node to the automaton. `within`: whether it is in a repeat. Raises _Ambiguous."""
        if isinstance(node, Characters):
            at = len(self.ranges)
            self.ranges.append(node.ranges)
            self.follow.append([])
            return _Part(False, [at], [at], [at])
        if isinstance(node, Sequence):
            return self._sequence(node.parts, within)
        if isinstance(node, Either):
            parts = [self.add(one, within) for one in node.branches]
            return _Part(
                any(one.nullable for one in parts),
                [at for one in parts for at in one.first],
                [at for one in parts for at in one.last],
                [at for one in parts for at in one.positions],
            )
        return self._repeat(node, within)

    def _sequence(self, nodes: list[Node], within: bool) -> _Part:
        done = _Part()
        for node in nodes:
            part = self.add(node, within)
            for at in done.last:
                self.follow[at] += part.first
            first = done.first + part.first if done.nullable else done.first
            last = done.last + part.last if part.nullable else part.last
            done = _Part(done.nullable and part.nullable, first, last, done.positions + part.positions)
        return done

    def _repeat(self, node: Repeat, within: bool) -> _Part:
        part = self.add(node.body, within or node.many)
        if node.many and part.positions:
            if part.nullable:
                raise _Ambiguous("it repeats what may be empty")
            for at in part.last:
                self.follow[at] += part.first
            inner = set(part.positions)
            if self._overlap(part.first) or any(self._overlap(self.follow[at]) for at in inner):
                raise _Ambiguous(
                    "it repeats what can match the same text in several ways, such as a repeat in a repeat"
                )
            if not within:
                self.repeat_of.update(dict.fromkeys(part.positions, part.positions[0]))
        part.nullable = part.nullable or node.optional
        return part

    def power(self, first: list[int]) -> int:
        """The power of the line's length with which the number of paths grows, at most. `first`: where a match may
        begin."""
        members: dict[int, list[int]] = {}
        for at, repeat in self.repeat_of.items():
            members.setdefault(repeat, []).append(at)
        taken = {repeat: merged(one for at in all_of for one in self.ranges[at]) for repeat, all_of in members.items()}
        powers: dict[int, int] = {}
        for repeat in sorted(members):  # in the order of the expression: paths lead forward
            before = [1] if self._leads(first, taken[repeat], repeat) else [0]
            for one, power in powers.items():
                both = _common(taken[one], taken[repeat])
                ends = [at for start in members[one] for at in self.follow[start] if self.repeat_of.get(at) != one]
                if both and self._leads(ends, both, repeat):
                    before.append(power)
            powers[repeat] = max(before) + 1
        return max([1, *powers.values()])

    def _leads(self, starts: list[int], within: Ranges, repeat: int) -> bool:
        """Whether a path leads from one of `starts` to a position of this repeat, on characters `within` alone."""
        seen: set[int] = set()
        todo = list(starts)
        while todo:
            at = todo.pop()
            if at in seen or not _common(self.ranges[at], within):
                continue
            if self.repeat_of.get(at) == repeat:
                return True
            seen.add(at)
            todo += self.follow[at]
        return False

    def choices(self, first: list[int]) -> int:
        """How often several paths continue on the same character: once for each repeat that may end or go on, and once
        for each position that has several successors elsewhere. `first`: where a match may begin."""
        count, loose = int(self._overlap(first)), set()
        for at, follows in enumerate(self.follow):
            repeat = self.repeat_of.get(at)
            outside = [one for one in follows if repeat is None or self.repeat_of.get(one) != repeat]
            if self._overlap(outside):
                count += 1
            elif self._overlap(follows):
                loose.add(repeat)
        return count + len(loose)

    def _overlap(self, positions: Iterable[int]) -> bool:
        counted = Counter(positions)
        if any(times > 1 for times in counted.values()):
            return True
        end = -1
        for low, high in sorted(one for at in counted for one in self.ranges[at]):
            if low <= end:
                return True
            end = high
        return False


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same characters as sorted ranges without overlaps."""
    found: Ranges = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def _common(one: Ranges, other: Ranges) -> Ranges:
    """The characters in both; each is sorted, without overlaps."""
    found, at, to = [], 0, 0
    while at < len(one) and to < len(other):
        low, high = max(one[at][0], other[to][0]), min(one[at][1], other[to][1])
        if low <= high:
            found.append((low, high))
        if one[at][1] < other[to][1]:
            at += 1
        else:
            to += 1
    return found
