"""Finds the Chinese of a message by its English sentence. Pure; docs/decisions/0048-reasons-as-codes.md says why.

A key is matched as a whole, its `{}` with any text, which is translated in turn: a quoted error of SSH stays as it is,
a sentence of ours within it does not. What has no key is taken apart at "; " and ": ". Work is bounded, since a message
may quote what a stranger sent: no regular expressions, at most `MAX_LOOKUPS` passes over the keys.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from procguard import hints
from procguard.i18n.messages import commands, deploy, libraries, manager

MAX_CHARS = 1200  # a longer line is shown as it is
MAX_LINES = 200
MAX_LOOKUPS = 48
MAX_PIECES = 12
JOINTS = (("; ", "；"), (": ", "："), (", ", "，"))
OURS = commands.CHINESE | deploy.CHINESE | manager.CHINESE
_VALUE = re.compile(r"\{(\d?)\}")


class MessageTemplate(NamedTuple):
    head: str
    middle: tuple[str, ...]
    tail: str
    chinese: str


class MessageCatalogue(NamedTuple):
    whole: dict[str, str]  # keys without values
    templates: tuple[MessageTemplate, ...]  # those with the longest fixed text first


def localized(text: str, language: str) -> str:
    """A message of ours in a language, line by line; what is not ours is left as it is."""
    if language == "en":
        return text
    lines = text.split("\n")
    return "\n".join([*(_MessageTranslation(catalogue()).line(line) for line in lines[:MAX_LINES]), *lines[MAX_LINES:]])


def template_of(english: str) -> str:
    """The Chinese of a key, with its slots."""
    return OURS.get(english, english)


@functools.lru_cache(maxsize=1)
def catalogue() -> MessageCatalogue:
    whole, templates = {}, []
    for key, text in (OURS | libraries.CHINESE).items():
        english, chinese = hints.commands(key).strip(), hints.commands(text).strip()
        head, *rest = english.split("{}")
        if rest:
            templates.append(MessageTemplate(head, tuple(rest[:-1]), rest[-1], chinese))
        else:
            whole[english] = chinese
    templates.sort(key=lambda one: -len(one.head) - len(one.tail) - sum(map(len, one.middle)))
    return MessageCatalogue(whole, tuple(templates))


def values_of(entry: MessageTemplate, text: str) -> list[str] | None:
    """The values of an entry's slots; None where the text is not one of it."""
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
    if at > end or (not entry.head and any(": " in value or value == "there" for value in values)):
        return None  # a whole message would fit in a slot; "there is no X" says of nobody that it is no X
    return [*values, text[at:end]]


class _MessageTranslation:
    """Of one message."""

    def __init__(self, known: MessageCatalogue) -> None:
        self._known = known
        self._left = MAX_LOOKUPS

    def line(self, line: str) -> str:
        """With the blanks around it."""
        text = line.strip()
        if not text:
            return line
        before, _, after = line.partition(text)
        return before + self._part(hints.commands(text)) + after

    def _part(self, text: str) -> str:
        """A sentence, or a part of one."""
        if self._left <= 0 or len(text) > MAX_CHARS or not any(one.isalpha() for one in text):
            return text
        self._left -= 1
        if text in self._known.whole:
            return self._known.whole[text]
        for entry in self._known.templates:
            values = values_of(entry, text)
            if values is not None:
                return self._filled(entry.chinese, values)
        return self._apart(text)

    def _filled(self, chinese: str, values: list[str]) -> str:
        shown = [self.line(value) for value in values]
        following = iter(range(len(shown)))
        return _VALUE.sub(lambda found: shown[int(found[1]) if found[1] else next(following)], chinese)

    def _apart(self, text: str) -> str:
        for joint, chinese in JOINTS:
            if joint in text:
                pieces = text.split(joint, 1 if joint == ": " else MAX_PIECES)
                shown = [self._part(piece) for piece in pieces]
                return text if shown == pieces else chinese.join(shown)
        return text
