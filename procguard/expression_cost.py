"""Decides whether an expression could take unbounded time in Python's `re`, because it matches the same text in several
ways.

RE2 takes time linear in the text, while `re` backtracks. The syntax tree of expression.py is converted to the Glushkov
automaton, in which each set of characters of the expression is a position. If two successors of a position can take the
same character, there is a choice: within a repeat it multiplies (exponential time), outside of one a few are harmless.
Conservative: some expressions that `re` could match quickly are refused. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Ranges = list[tuple[int, int]]

MAX_CHOICES = 6  # outside of repeats; in the worst case, the cost of a line is multiplied by 2 to this power
MAX_LOOSE_REPEATS = 2  # such as .* ; in the worst case, the cost is multiplied by the line's length to this power


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
    automaton = _Automaton()
    try:
        found = automaton.add(tree, within=False)
    except _Ambiguous as exc:
        return str(exc)
    choices, loose = 0, set()
    for at, follows in automaton.choices(found.first):
        top = automaton.repeat_of.get(at)
        if top is None:
            choices += 1
        elif any(automaton.repeat_of.get(one) != top for one in follows):
            loose.add(top)
    if len(loose) > MAX_LOOSE_REPEATS:
        return f"it has more than {MAX_LOOSE_REPEATS} repeats that also match what follows them, such as .*"
    return f"it can match in more than {2**MAX_CHOICES} ways" if choices > MAX_CHOICES else ""


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


class _Automaton:
    def __init__(self) -> None:
        self._ranges: list[Ranges] = []
        self._follow: list[list[int]] = []  # a position is listed twice if it is reached in two ways
        self.repeat_of: dict[int, int] = {}  # position -> number of the outermost repeat that it is in

    def add(self, node: Node, within: bool) -> _Part:
        """Add a node to the automaton. `within`: whether it is in a repeat. Raises _Ambiguous."""
        if isinstance(node, Characters):
            at = len(self._ranges)
            self._ranges.append(node.ranges)
            self._follow.append([])
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
                self._follow[at] += part.first
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
                self._follow[at] += part.first
            inner = set(part.positions)
            if self._overlap(part.first) or any(self._overlap(self._follow[at]) for at in inner):
                raise _Ambiguous(
                    "it repeats what can match the same text in several ways, such as a repeat in a repeat"
                )
            if not within:
                self.repeat_of.update(dict.fromkeys(part.positions, part.positions[0]))
        part.nullable = part.nullable or node.optional
        return part

    def choices(self, first: list[int]) -> Iterator[tuple[int, list[int]]]:
        """(position, its successors) for each position with two successors that take the same character; -1 is the
        beginning."""
        if self._overlap(first):
            yield -1, first
        for at, follows in enumerate(self._follow):
            if self._overlap(follows):
                yield at, follows

    def _overlap(self, positions: Iterable[int]) -> bool:
        counted = Counter(positions)
        if any(times > 1 for times in counted.values()):
            return True
        end = -1
        for low, high in sorted(one for at in counted for one in self._ranges[at]):
            if low <= end:
                return True
            end = high
        return False
