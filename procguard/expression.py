"""Users' regular expressions: one dialect, RE2's, with the same meaning in RE2 and in Python's `re`.

RE2 matches on the manager, in time linear in the text and in bounded memory. Hosts have no RE2: they receive the same
expression rewritten for Python's `re` (`for_hosts`), without flags. Expressions that cannot mean the same in both are
refused. Owns the dialect (docs/protocol.md#regular-expressions); knows no logs, no HTTP, no hosts.
"""

from __future__ import annotations

import bisect
import functools
import re
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import re2

from procguard.errors import UsageError
from procguard.expression_cost import NOTHING, Characters, Either, Node, Ranges, Repeat, Sequence, merged

MAX_CHARS = 512
MAX_LITERAL_CHARS = 2 * MAX_CHARS  # maximum length of a literal text with a backslash before each character
MAX_MEMORY_BYTES = 1024 * 1024  # memory of one compiled expression: its program and the states of its automaton
MAX_INSTRUCTIONS = 2000  # in the worst case, a line costs its length times this
MAX_DEPTH = 50  # maximum nesting of groups, because Python's compiler recurses
MAX_MATCHED_CHARS = 16 * 1024  # maximum length of a line, as on hosts (remote_agent/logs/grep.py)
MAX_CODE_POINT = 0x10FFFF
DOCUMENT = "docs/protocol.md#regular-expressions"


class Expression:
    """A checked expression. `for_hosts`: the same for Python's `re`, without flags. `groups`: number of capturing
    groups. `tree`: its syntax tree (expression_cost.py)."""

    def __init__(
        self, text: str, ignore_case: bool, for_hosts: str, compiled: Any, groups: int = 0, tree: Node = NOTHING
    ) -> None:
        self.text = text
        self.ignore_case = ignore_case
        self.for_hosts = for_hosts
        self.groups = groups
        self.tree = tree
        self._search = compiled.search

    def found_in(self, text: str) -> bool:
        """Whether it matches anywhere in the first MAX_MATCHED_CHARS of `text`. Takes linear time, which is too much
        for many lines on the event loop."""
        return self._search(text[:MAX_MATCHED_CHARS].encode("utf-8", "replace")) is not None

    def place_in(self, text: str) -> tuple[int, int] | None:
        """[begin, end) of the first match, in characters; None without a match. As costly as `found_in`."""
        data = text[:MAX_MATCHED_CHARS].encode("utf-8", "replace")
        match = self._search(data)
        if match is None:
            return None
        begin, end = match.span()
        start = len(data[:begin].decode("utf-8", "replace"))
        return start, start + len(data[begin:end].decode("utf-8", "replace"))


def read(
    text: str, ignore_case: bool = False, name: str = "regex", max_chars: int = MAX_CHARS, captures: bool = False
) -> Expression:
    """Check and compile an expression. `name`: of the parameter, for messages. `captures`: its groups capture on hosts.
    Raises UsageError with what is wrong, where, and what to write instead."""
    if len(text) > max_chars:
        raise _refusal(f"{name}: longer than {max_chars} characters", "search for a part of it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise _refusal(
            f"{name}: character {exc.start + 1} is half a surrogate pair", "write the whole character"
        ) from exc
    compiled, error = _compile(text, ignore_case)
    try:
        translation = _Translation(text, ignore_case, captures)
        for_hosts, tree = translation.result()
    except _NotInDialect as exc:
        raise _refusal(f"{name}: {exc.what} at character {exc.at + 1} is not supported", exc.instead) from exc
    except (IndexError, ValueError, OverflowError) as exc:  # RE2's own message is clearer
        raise _refusal(f"{name}: {error or exc}", "check its brackets and backslashes") from exc
    if compiled is None:
        hint = "use smaller repeat counts" if "large" in error or "repetition size" in error else "correct it"
        raise _refusal(f"{name}: {error}", hint)
    return Expression(text, ignore_case, for_hosts, compiled, translation.groups, tree)


def literal(text: str) -> str:
    """An expression that matches `text` literally."""
    return "".join(one if one.isalnum() else "\\" + one if "!" <= one <= "~" and one != "_" else one for one in text)


def _refusal(what: str, instead: str) -> UsageError:
    return UsageError(what, f"{instead}; {DOCUMENT} lists the supported syntax", code="bad_expression")


def _compile(text: str, ignore_case: bool) -> tuple[Any, str]:
    """(the compiled expression, ""), or (None, the error)."""
    options = re2.Options()
    options.max_mem, options.never_capture, options.log_errors = MAX_MEMORY_BYTES, True, False
    options.case_sensitive = not ignore_case
    try:
        compiled = re2.compile(text, options)
        return (compiled, "") if compiled.programsize <= MAX_INSTRUCTIONS else (None, "it is too large once compiled")
    except re2.error as exc:
        said = exc.args[0] if exc.args else ""
        return None, said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    finally:
        re2.purge()  # its cache would keep 128 expressions of unknown callers


# ------------------------------------------------------------------------------------------------ translation


class _NotInDialect(Exception):
    def __init__(self, what: str, at: int, instead: str) -> None:
        super().__init__(what)
        self.what, self.at, self.instead = what, at, instead


@dataclass(frozen=True)
class _Flags:
    fold: bool  # i
    dot_newline: bool = False  # s
    multi_line: bool = False  # m
    swap_greed: bool = False  # U


class _Piece(NamedTuple):
    """A part of the translation. `repeatable`: whether a repeat may follow `text` without a group around it."""

    text: str
    repeatable: bool
    node: Node


@dataclass
class _Frame:
    """An open group: its flags, its pieces, and whether it captures."""

    flags: _Flags
    captures: bool = False
    pieces: list[_Piece] = field(default_factory=list)

    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def node(self) -> Node:
        branches: list[Node] = []
        parts: list[Node] = []
        for piece in self.pieces:
            if piece.text == "|":
                branches.append(Sequence(parts))
                parts = []
            else:
                parts.append(piece.node)
        return Either([*branches, Sequence(parts)]) if branches else Sequence(parts)


_NAMES = {"i": "fold", "s": "dot_newline", "m": "multi_line", "U": "swap_greed"}
_DIGITS, _SPACES = [(0x30, 0x39)], [(0x09, 0x0A), (0x0C, 0x0D), (0x20, 0x20)]
_WORD = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_PERL = {"d": _DIGITS, "s": _SPACES, "w": _WORD}
_POSIX: dict[str, Ranges] = {
    "alnum": [(0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A)], "alpha": [(0x41, 0x5A), (0x61, 0x7A)], "ascii": [(0, 0x7F)],
    "blank": [(9, 9), (0x20, 0x20)], "cntrl": [(0, 0x1F), (0x7F, 0x7F)], "digit": _DIGITS, "graph": [(0x21, 0x7E)],
    "lower": [(0x61, 0x7A)], "print": [(0x20, 0x7E)], "punct": [(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)],
    "space": [(9, 13), (0x20, 0x20)], "upper": [(0x41, 0x5A)], "word": _WORD,
    "xdigit": [(0x30, 0x39), (0x41, 0x46), (0x61, 0x66)],
}  # fmt: skip
_CONTROLS = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_REPEAT = re.compile(r"\{(0|[1-9][0-9]{0,8})(,(0|[1-9][0-9]{0,8})?)?\}")
_FLAG_GROUP = re.compile(r"\(\?([imsU]*)(?:-([imsU]+))?([:)])")
_NAMED_GROUP = re.compile(r"\(\?P?<[^<>=!]+>")
_POSIX_CLASS = re.compile(r"\[:(\^?)([a-z]+):\]")
# Groups beginning with "(?" that RE2 does not have, the longest first.
_FOREIGN_GROUPS = (
    ("(?<=", "a look-behind (?<=…)", "put what precedes it into the expression itself"),
    ("(?<!", "a look-behind (?<!…)", "put what may precede it into the expression, e.g. [^a]b"),
    ("(?=", "a look-ahead (?=…)", "put what follows into the expression itself"),
    ("(?!", "a look-ahead (?!…)", "list what may follow instead, e.g. a[^b]"),
    ("(?>", "an atomic group (?>…)", "write (?:…)"),
    ("(?#", "a comment (?#…)", "leave it out"),
    ("(?P=", "a back-reference (?P=…)", "search for the text itself"),
    ("(?P>", "a recursion (?P>…)", "write the group again"),
    ("(?(", "a condition (?(…)…)", "write both cases: (?:…|…)"),
)


class _Translation:
    """Parses one expression in RE2's syntax and rewrites it for Python's `re`. Malformed expressions are left to RE2's
    own check."""

    def __init__(self, text: str, ignore_case: bool, captures: bool) -> None:
        self._text = text
        self._at = 0
        self._frames = [_Frame(_Flags(ignore_case))]
        self._captures = captures
        self.groups = 0

    def result(self) -> tuple[str, Node]:
        while self._at < len(self._text):
            self._step()
        if len(self._frames) != 1:
            raise ValueError("a group is not closed")
        return self._frames[0].text(), self._frames[0].node()

    @property
    def _frame(self) -> _Frame:
        return self._frames[-1]

    @property
    def _flags(self) -> _Flags:
        return self._frame.flags

    def _add(self, text: str, repeatable: bool = False, node: Node = NOTHING) -> None:
        self._frame.pieces.append(_Piece(text, repeatable, node))

    def _step(self) -> None:
        text, at = self._text, self._at
        one = text[at]
        self._at += 1
        if one == "(":
            self._open(at)
        elif one == ")":
            self._close()
        elif one == "|":
            self._add("|")
        elif one == "[":
            self._set(self._class())
        elif one == ".":
            any_node = Characters([(0, MAX_CODE_POINT)])
            self._add("(?s:.)" if self._flags.dot_newline else ".", True, any_node)
        elif one == "^":
            self._add("(?m:^)" if self._flags.multi_line else r"\A")
        elif one == "$":
            self._add("(?m:$)" if self._flags.multi_line else r"\Z")
        elif one in "*+?":
            self._repeat(one, at)
        elif one == "{":
            self._brace(at)
        elif one == "\\":
            self._escape(at)
        else:
            self._literal(ord(one))

    def _set(self, ranges: Ranges) -> None:
        self._add(_ranges_written(ranges), True, Characters(merged(ranges)))

    def _literal(self, code: int) -> None:
        if self._flags.fold and len(orbit := _orbit(code)) > 1:
            self._set([(each, each) for each in sorted(orbit)])
        else:
            self._add(_written(code), True, Characters([(code, code)]))

    # ------------------------------------------------------------------------------------------------ groups

    def _open(self, at: int) -> None:
        text = self._text
        if not text.startswith("(?", at):
            self._push(self._flags, captures=True)
            return
        for begin, what, instead in _FOREIGN_GROUPS:
            if text.startswith(begin, at):
                raise _NotInDialect(what, at, instead)
        named = _NAMED_GROUP.match(text, at)
        if named:
            self._at = named.end()
            self._push(self._flags, captures=True)
            return
        found = _FLAG_GROUP.match(text, at)
        if found is None:
            if re.match(r"\(\?[-aLux]*[aLux]", text[at:]):
                raise _NotInDialect("a flag other than i, m, s, U", at, "leave it out")
            raise ValueError("unknown syntax after (?")
        self._at = found.end()
        changed = {_NAMES[one]: True for one in found[1]} | {_NAMES[one]: False for one in found[2] or ""}
        flags = replace(self._flags, **changed)
        if found[3] == ":":
            self._push(flags)
        else:
            self._frame.flags = flags

    def _push(self, flags: _Flags, captures: bool = False) -> None:
        if len(self._frames) > MAX_DEPTH:
            raise _NotInDialect(f"a group in {MAX_DEPTH} others", self._at - 1, "reduce the nesting")
        self.groups += captures
        self._frames.append(_Frame(flags, captures and self._captures))

    def _close(self) -> None:
        if len(self._frames) == 1:
            raise ValueError("unmatched )")
        inner = self._frames.pop()
        self._add(f"({'' if inner.captures else '?:'}{inner.text()})", True, inner.node())

    # ------------------------------------------------------------------------------------------------ repeats

    def _brace(self, at: int) -> None:
        found = _REPEAT.match(self._text, at)
        if found:
            self._at = found.end()
            self._repeat(found[0], at)
        elif re.match(r"\{,[0-9]+\}", self._text[at:]):
            raise _NotInDialect("a repeat without its lower bound", at, "write {0,n}")
        else:
            self._literal(ord("{"))

    def _repeat(self, how: str, at: int) -> None:
        lazy = self._text[self._at : self._at + 1] == "?"
        self._at += lazy
        if self._text[self._at : self._at + 1] == "+":
            raise _NotInDialect("a possessive repeat", at, "leave the second + out")
        if not self._frame.pieces or self._frame.pieces[-1].text == "|":
            raise ValueError("nothing to repeat")
        text, repeatable, node = self._frame.pieces.pop()
        greedy = lazy == self._flags.swap_greed
        repeated = Repeat(node, how not in ("?", "{0}", "{1}", "{0,1}"), how in "?*" or how.startswith("{0"))
        self._add((text if repeatable else f"(?:{text})") + how + ("" if greedy else "?"), False, repeated)

    # ------------------------------------------------------------------------------------------------ escapes

    def _escape(self, at: int) -> None:
        one = self._text[self._at]
        self._at += 1
        if one.lower() in _PERL and one in "dswDSW":
            self._set(self._perl(one))
        elif one == "b":
            self._add(r"(?a:\b)")
        elif one == "A":
            self._add(r"\A")
        elif one == "z":
            self._add(r"\Z")
        elif one == "Q":
            end = self._text.find("\\E", self._at)
            quoted = self._text[self._at : end if end >= 0 else None]
            self._at = end + 2 if end >= 0 else len(self._text)
            for each in quoted:
                self._literal(ord(each))
        else:
            self._literal(self._code(one, at))

    def _perl(self, one: str) -> Ranges:
        found = self._folded(_PERL[one.lower()])
        return _complement(found) if one.isupper() else found

    def _code(self, one: str, at: int) -> int:
        """The code point of an escape; `one` is the character after the backslash."""
        if one == "x":
            found = re.compile(r"\{([0-9A-Fa-f]+)\}|([0-9A-Fa-f]{2})").match(self._text, self._at)
            if found is None:
                raise ValueError(r"\x wants two hexadecimal digits, or \x{…}")
            self._at = found.end()
            code = int((found[1] or found[2])[:16], 16)
            if code > MAX_CODE_POINT:
                raise ValueError("no character has that number")
            return code
        if one in _CONTROLS:
            return _CONTROLS[one]
        if one in "pP":
            raise _NotInDialect(rf"a Unicode class \{one}", at, "write the characters as a range, e.g. [À-ÿ]")
        if one in "0123456789":
            what = "an octal escape" if one == "0" else f"the back-reference \\{one}"
            raise _NotInDialect(what, at, r"write the text itself, or \x{…} for a character")
        foreign = {
            "Z": "write \\z or $", "B": "write what may occur there, e.g. \\w", "C": "write . for any character",
            "G": "leave it out", "K": "leave it out", "X": "write . for any character", "R": "write \\r or \\n",
            "u": "write \\x{…}", "U": "write \\x{…}", "N": "write \\x{…}", "h": "write [ \\t]",
            "E": "write \\Q before it",
        }  # fmt: skip
        if one in foreign:
            raise _NotInDialect(f"\\{one}", at, foreign[one])
        if one.isascii() and not one.isalnum():
            return ord(one)
        raise ValueError(f"\\{one} is not defined")

    # ------------------------------------------------------------------------------------------------ classes

    def _class(self) -> Ranges:
        """The characters of a class [...], whose opening bracket has been read."""
        negated = self._text[self._at] == "^"
        self._at += negated
        found: Ranges = []
        first = True
        while first or self._text[self._at] != "]":
            first = False
            named = _POSIX_CLASS.match(self._text, self._at)
            one = self._text[self._at]
            if named:
                self._at = named.end()
                ranges = self._folded(_POSIX[named[2]]) if named[2] in _POSIX else _unknown_class(named[0])
                found += _complement(ranges) if named[1] else ranges
            elif one == "\\" and self._text[self._at + 1] in "dswDSW":
                self._at += 2
                found += self._perl(self._text[self._at - 1])
            else:
                low = high = self._class_code()
                if self._text[self._at] == "-" and self._text[self._at + 1] != "]":
                    self._at += 1
                    high = self._class_code()
                if high < low:
                    raise ValueError("a range is reversed")
                found += self._folded([(low, high)])
        self._at += 1
        return _complement(found) if negated else merged(found)

    def _class_code(self) -> int:
        one = self._text[self._at]
        self._at += 1
        if one != "\\":
            return ord(one)
        self._at += 1
        return self._code(self._text[self._at - 1], self._at - 2)

    def _folded(self, ranges: Ranges) -> Ranges:
        if not self._flags.fold:
            return list(ranges)
        return merged([*ranges, *(one for low, high in ranges for one in _other_cases(low, high))])


def _unknown_class(name: str) -> Ranges:
    raise ValueError(f"there is no class {name}")


def _complement(ranges: Ranges) -> Ranges:
    found, begin = [], 0
    for low, high in merged(ranges):
        if begin < low:
            found.append((begin, low - 1))
        begin = high + 1
    if begin <= MAX_CODE_POINT:
        found.append((begin, MAX_CODE_POINT))
    return found


def _ranges_written(ranges: Ranges) -> str:
    ranges = merged(ranges)
    if not ranges:
        return "(?:(?!))"  # matches nothing
    if ranges == [(0, MAX_CODE_POINT)]:
        return "(?s:.)"
    return "[" + "".join(_written(low) + (f"-{_written(high)}" if high > low else "") for low, high in ranges) + "]"


def _written(code: int) -> str:
    """A character as written for Python's `re`, both inside and outside of a class."""
    one = chr(code)
    if one.isascii():
        return one if one.isalnum() or one in " _" else f"\\x{code:02x}" if not one.isprintable() else "\\" + one
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


# ---------------------------------------------------------------------------------------------- upper, lower case

# Ranges of Unicode beyond ASCII that contain letters with two cases.
_CASED_BLOCKS = (
    (0xB5, 0x587), (0x10A0, 0x10FF), (0x13A0, 0x13FF), (0x1C80, 0x1CBF), (0x1D79, 0x1FFF), (0x2126, 0x218F),
    (0x24B6, 0x24E9), (0x2C00, 0x2D2F), (0xA640, 0xA7FF), (0xAB30, 0xABBF), (0xFF21, 0xFF5A), (0x10400, 0x104FF),
    (0x10570, 0x105BF), (0x10C80, 0x10CFF), (0x118A0, 0x118DF), (0x16E40, 0x16E7F), (0x1E900, 0x1E943),
)  # fmt: skip
_DOTLESS_I = 0x131  # its upper case is I, but simple case folding does not equate the two


def _orbit(code: int) -> frozenset[int]:
    """The characters that equal this one if case is ignored, including itself."""
    if code < 0x80:
        one = chr(code)
        more = {"k": {0x212A}, "s": {0x17F}}.get(one.lower(), set())
        return frozenset({code, ord(one.lower()), ord(one.upper())} | more)
    return _orbits().get(code) or frozenset({code})


@functools.cache
def _orbits() -> dict[int, frozenset[int]]:
    """Unicode's simple case folding, as in RE2: every character with another case -> all characters that equal it."""
    same: dict[int, set[int]] = {}
    codes = [*range(0x41, 0x5B), *range(0x61, 0x7B), *(c for low, high in _CASED_BLOCKS for c in range(low, high + 1))]
    for code in codes:
        one = chr(code)
        for other in (one.lower(), one.upper(), one.title()):
            if len(other) == 1 and other != one and code != _DOTLESS_I:
                joined = same.get(code, {code}) | same.get(ord(other), {ord(other)})
                for each in joined:
                    same[each] = joined
    return {code: frozenset(joined) for code, joined in same.items()}


@functools.cache
def _pairs() -> tuple[list[int], list[int]]:
    """Every pair of characters that differ only in case, in both directions, as two lists sorted by the first."""
    pairs = sorted((code, other) for code, same in _orbits().items() for other in same if other != code)
    return [code for code, _ in pairs], [other for _, other in pairs]


def _other_cases(low: int, high: int) -> Ranges:
    """The characters outside of the range `low`-`high` that equal a character in it if case is ignored."""
    if high < 0x80:
        return [(other, other) for code in range(low, high + 1) for other in _orbit(code)]
    codes, others = _pairs()
    among = others[bisect.bisect_left(codes, low) : bisect.bisect_right(codes, high)]
    return [(other, other) for other in among if not low <= other <= high]
