"""Finds the Chinese of a message by its English sentence. Pure; see docs/decisions/0048-reasons-as-codes.md.

A message is a chain of links (sentences or names) joined by ": ", "; " and ", ": where, what, what to do next. It is
split at those joints for which the matching keys have the most fixed text in total. A link without a key is kept: a
path, a name, an error of SSH. A key's `{}` match any text, which is translated in turn. Joints within quotes and
parentheses are text. Work is bounded by MAX_JOINTS and MAX_LOOKUPS, because a message may quote what a stranger sent.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from procguard import hints
from procguard.i18n.messages import archive, commands, deploy, fleet, libraries, manager, specification, startup

MAX_CHARS = 1200  # a longer line is shown as it is
MAX_LINES = 200
MAX_LOOKUPS = 2_000  # passes over the keys, of all lines
MAX_JOINTS = 12  # of one message
JOINTS = {"; ": "；", ": ": "：", ", ": "，"}
CONJUNCTIONS = {"or": "或", "and": "和"}
OURS = (
    archive.CHINESE
    | commands.CHINESE
    | deploy.CHINESE
    | fleet.CHINESE
    | manager.CHINESE
    | specification.CHINESE
    | startup.CHINESE
)
SLOT = "\0"  # in place of a value, as a letter of the word beside it
_WORD = re.compile(r"[\w\0]+")
_VALUE = re.compile(r"\{(\d?)\}")
_LIST = re.compile(r"([^ ,;:]+(?:, [^ ,;:]+)*),? (or|and) ([^ ,;:]+)")
_QUOTED = re.compile(r"(?<![^\s(=\[,])(?:'[^']{0,200}'|\"[^\"]{0,200}\"|`[^`]{0,200}`|\([^()]{0,200}\))(?![\w])")


class MessageTemplate(NamedTuple):
    head: str
    middle: tuple[str, ...]
    tail: str
    chinese: str

    @property
    def weight(self) -> int:
        return sum(map(_letters, (self.head, *self.middle, self.tail)))

    def words(self) -> list[str]:
        """The words that each matching text contains: those of the fixed text that no value can lengthen."""
        found = _WORD.findall(SLOT.join((self.head, *self.middle, self.tail)))
        return [word for word in found if SLOT not in word]

    def swallows(self, values: list[str]) -> bool:
        """Whether the last value of a template may have matched the sentence that follows the message. This is harmless
            if
        the message ends with that value in both languages."""
        last = len(values) - 1
        open_end = not self.tail and self.chinese.endswith(("{}", f"{{{last}}}"))
        return any(map(_holds_another_sentence, values[:last] if open_end else values))


class MessageCatalogue(NamedTuple):
    whole: dict[str, str]  # keys without values
    templates: tuple[MessageTemplate, ...]  # longest fixed text first
    by_word: dict[str, tuple[int, ...]]  # indices in `templates` by a word of the fixed text; "" for those without one

    def candidates(self, text: str) -> Iterator[MessageTemplate]:
        """The templates that can match `text`: those whose word is in it. Longest fixed text first."""
        indices = (self.by_word.get(word, ()) for word in {"", *_WORD.findall(text)})
        return (self.templates[index] for index in sorted(itertools.chain.from_iterable(indices)))


def localized(text: str, language: str) -> str:
    """A message of ProcGuard in a language, translated line by line; other text is returned unchanged."""
    if language == "en":
        return text
    lines = text.split("\n")
    translation = _MessageTranslation(catalogue())
    return "\n".join([*(translation.line(line) for line in lines[:MAX_LINES]), *lines[MAX_LINES:]])


def template_of(english: str) -> str:
    """The Chinese template of an English one; the English one if it has none."""
    return OURS.get(english, english)


@functools.lru_cache(maxsize=1)
def catalogue() -> MessageCatalogue:
    messages = OURS | libraries.CHINESE
    # in one call, which asks the file system once for the form of this installation
    texts = hints.commands("\0".join((*messages, *messages.values()))).split("\0")
    whole, templates = {}, []
    for english, chinese in zip(texts[: len(messages)], texts[len(messages) :], strict=True):
        head, *rest = english.strip().split("{}")
        if rest:
            templates.append(MessageTemplate(head, tuple(rest[:-1]), rest[-1], chinese.strip()))
        else:
            whole[head] = chinese.strip()
    templates.sort(key=lambda one: -one.weight)
    by_word: dict[str, list[int]] = {}
    for index, one in enumerate(templates):
        by_word.setdefault(max(one.words(), key=len, default=""), []).append(index)
    return MessageCatalogue(whole, tuple(templates), {word: tuple(indices) for word, indices in by_word.items()})


def values_of(entry: MessageTemplate, text: str) -> list[str] | None:
    """The values of the template's slots in `text`; None if the text does not match."""
    if not text.startswith(entry.head) or not text.endswith(entry.tail):
        return None
    at, end = len(entry.head), len(text) - len(entry.tail)
    values = []
    for part in entry.middle:
        found = text.find(part, at, end)
        if found < 0:
            return None
        values.append(text[at:found])
        at = found + len(part)
    if at > end:
        return None
    values.append(text[at:end])
    inner = values[: max(1, len(values) - 1)]
    if not entry.head and any(_may_hold_more(value) for value in inner):
        return None  # the slot may contain a whole message; in "there is no X", "there" is not a value
    return values


def _may_hold_more(value: str) -> bool:
    return ": " in value or "; " in value or value.endswith((":", ";", ",", "there"))


class _Shown(NamedTuple):
    """A part of a message in Chinese."""

    weight: int  # letters of the keys that matched
    text: str


class _Link(NamedTuple):
    """A part of a message between two joints."""

    end: int  # the position of its joint in the message
    text: str
    is_ours: bool


class _Chain(NamedTuple):
    """One way to split a message. Of several, the greatest in the order of tuples is used."""

    weight: int
    negative_links: int
    links: tuple[_Link, ...]


class _MessageTranslation:
    """Translates one message, with at most MAX_LOOKUPS."""

    def __init__(self, known: MessageCatalogue) -> None:
        self._known = known
        self._left = MAX_LOOKUPS
        self._parts: dict[str, _Shown] = {}

    def line(self, line: str) -> str:
        return self._value(line).text

    def _value(self, line: str) -> _Shown:
        """Translate a text, keeping the blanks around it."""
        text = line.strip()
        if not text:
            return _Shown(0, line)
        before, _, after = line.partition(text)
        shown = self._part(hints.commands(text))
        return shown._replace(text=before + shown.text + after)

    def _part(self, text: str) -> _Shown:
        """Translate a message, or a value within one."""
        if len(text) > MAX_CHARS or not any(one.isalpha() for one in text):
            return _Shown(0, text)
        if text in self._known.whole:
            return _Shown(_letters(text), self._known.whole[text])
        if text not in self._parts:
            chain = self._cut(text)
            shown = _joined(text, chain.links) if chain.weight else _listed(text)
            self._parts[text] = _Shown(chain.weight, shown)
        return self._parts[text]

    def _cut(self, text: str) -> _Chain:
        """The best split of a message, computed from its last link to its first."""
        ends = [*joints_of(text), len(text)]
        best = {len(text) + 2: _Chain(0, 0, ())}
        for at in reversed([0, *(end + 2 for end in ends[:-1])]):
            ahead = [end for end in ends if end > at] or [len(text)]
            rest = best[ahead[0] + 2]
            plain = self._aside(text[at : ahead[0]])
            link = _Link(ahead[0], plain.text, plain.weight > 0)
            best[at] = _Chain(rest.weight + plain.weight, rest.negative_links - 1, (link, *rest.links))
            is_listed = text[at - 2 : at] == ", "
            for end in ahead:
                if is_listed and " " not in text[at:end]:
                    continue  # a name in a list, even if it is also a key
                rest = best[end + 2]
                for shown in self._matches(text[at:end]):
                    made = (rest.weight + shown.weight, rest.negative_links - 1)
                    if made > best[at][:2]:
                        best[at] = _Chain(*made, (_Link(end, shown.text, True), *rest.links))
        return best[0]

    def _aside(self, link: str) -> _Shown:
        """A link that no key matches, such as a name; a remark in parentheses after it is translated."""
        name, bracket, aside = link.partition(" (")
        if not bracket or not aside.endswith(")"):
            return _Shown(0, link)
        shown = self._part(aside[:-1])
        return _Shown(shown.weight * 7 // 8, f"{name}（{shown.text}）") if shown.weight else _Shown(0, link)

    def _matches(self, run: str) -> Iterator[_Shown]:
        """The translations by all keys that match."""
        if run in self._known.whole:
            yield _Shown(_letters(run), self._known.whole[run])
        if self._left <= 0:
            return
        self._left -= 1
        for entry in self._known.candidates(run):
            values = values_of(entry, run)
            if values is not None:
                shown = [self._value(value) for value in values]
                weight = entry.weight // (4 if entry.swallows(values) else 1)
                within = sum(one.weight for one in shown) * 7 // 8  # of equals, the key with more fixed text wins
                yield _Shown(weight + within, _filled(entry.chinese, shown))


def _filled(chinese: str, values: list[_Shown]) -> str:
    """Fill a template. A blank separates a Chinese character from a Latin letter or digit of a value."""
    following = iter(range(len(values)))

    def value(found: re.Match[str]) -> str:
        text = values[int(found[1]) if found[1] else next(following)].text
        before, after = chinese[: found.start()][-1:], chinese[found.end() :][:1]
        head = " " if _is_han(before) and _is_latin(text[:1]) else ""
        return f"{head}{text} " if _is_latin(text[-1:]) and _is_han(after) else head + text

    return _VALUE.sub(value, chinese)


def _is_han(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _listed(text: str) -> str:
    """A list of names, "a, b or c", in Chinese."""
    found = _LIST.fullmatch(text)
    return f"{found[1].replace(', ', '、')} {CONJUNCTIONS[found[2]]} {found[3]}" if found else text


def _letters(text: str) -> int:
    return sum(one.isalnum() for one in text)


def _joined(text: str, links: tuple[_Link, ...]) -> str:
    """Join links. Joints become Chinese, except those between two links of foreign text. A list of names is kept as it
    is, even if some of the names are also keys."""
    shown = links[0].text
    if len(links) > 1 and " " not in text.replace(", ", "") and not all(link.is_ours for link in links):
        return text
    for left, right in itertools.pairwise(links):
        joint = text[left.end : left.end + 2]
        is_ours = left.is_ours or right.is_ours or " " not in left.text
        shown += (JOINTS[joint] if is_ours else joint) + right.text
    return shown


def joints_of(text: str) -> list[int]:
    """The positions of a message's joints, ascending. Of more than MAX_JOINTS, commas are left out first."""
    outside = _QUOTED.sub(lambda quoted: "·" * len(quoted[0]), text)
    found = [at for joint in JOINTS for at in _occurrences(outside, joint)]
    return sorted(found[:MAX_JOINTS])


def _occurrences(text: str, part: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + len(part))


def _holds_another_sentence(value: str) -> bool:
    return "; " in value and any(value.startswith("; ", at) for at in joints_of(value))
