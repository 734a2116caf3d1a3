"""Output of the operator's commands: trusted text, and untrusted text that never controls the terminal.

Untrusted text comes from hosts, jobs, launchers, remote managers, and SSH servers before their key is known.
`cleaned()` filters stdout and stderr, so that everything is clean unless it is deliberately written to `raw()`: by
the console of cli/output/deployment.py, which cleans piece by piece, and by `invoke logs`. Standard library only.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from procguard.console.language import shown

# Control characters (C0, DEL, C1), characters that reorder or hide text (bidi, zero width, tags), line separators and
# lone surrogates. Not tab and newline, which `clean` keeps and `line` replaces.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
SHOWN = "\ufffd"  # printed instead of unsafe characters
_BREAKS = re.compile(r"[\t\n\r\x0b\x0c\x85\u2028\u2029]+")


def clean(text: str) -> str:
    """`text` without characters that control a terminal; newlines and tabs are kept."""
    return _UNSAFE.sub(SHOWN, text)


def line(text: object) -> str:
    """The same on one line, so that a newline in untrusted text cannot imitate a line of ProcGuard."""
    return clean(_BREAKS.sub(" ", str(text)))


def say(text: object = "", *, err: bool = False) -> None:
    """Print one line of ProcGuard, in the language of the command."""
    _print(line(shown(str(text))), err)


def say_as_is(text: object, *, err: bool = False) -> None:
    """Print one line of untrusted text, or of text that is already in the right language."""
    _print(line(text), err)


def say_block(text: str, *, err: bool = False) -> None:
    """Print several lines. All but the first are indented, so that none of them looks like another message."""
    first, *rest = clean(shown(text)).split("\n")
    lines = [first, *(one if one[:1] in ("", " ") else f"  {one}" for one in rest)]
    _print("\n".join(lines), err)


def say_json(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON for programs, which cannot control a terminal either. `indent=None`: one line of a stream, flushed."""
    _print(json_escaped(json.dumps(value, indent=indent, ensure_ascii=indent is not None)), flush=indent is None)


def _print(text: str, err: bool = False, flush: bool = False) -> None:
    print(text, file=sys.stderr if err else sys.stdout, flush=flush)


def json_escaped(text: str) -> str:
    r"""JSON with escapes such as \u202e instead of unsafe characters; the value is the same."""
    return _UNSAFE.sub(_as_json, text)


def _as_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


# --------------------------------------------------------------------------------------------------- the streams


class CleanStream:
    """A text stream that writes nothing that controls the terminal. `buffer` accepts bytes with the same guarantee."""

    def __init__(self, stream: TextIO) -> None:
        self.raw = stream
        self.buffer = _CleanBytes(self)

    def write(self, text: str) -> int:
        self.raw.write(clean(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for one in lines:
            self.write(one)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class _CleanBytes:
    def __init__(self, stream: CleanStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: bytes) -> int:
        self._stream.write(self._decoder.decode(data))
        return len(data)

    def flush(self) -> None:
        self._stream.flush()


def install() -> None:
    """Clean all further output of this process, including a final traceback."""
    sys.stdout, sys.stderr = _clean(sys.stdout), _clean(sys.stderr)


@contextlib.contextmanager
def cleaned() -> Iterator[None]:
    """A context in which all output of this process is cleaned."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _clean(sys.stdout), _clean(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _clean(stream: TextIO) -> TextIO:
    return stream if stream is None or isinstance(stream, CleanStream) else cast(TextIO, CleanStream(stream))


def raw(stream: TextIO) -> TextIO:
    """The underlying stream, for output that is already clean or that was requested unchanged."""
    return stream.raw if isinstance(stream, CleanStream) else stream


# ------------------------------------------------------------------------------------------------ a worker's output

# Escape sequences: SGR (colours), other CSI, strings up to their terminator (OSC, DCS, …), ESC and one character.
_SEQUENCE = re.compile(
    r"\x1b\[(?P<sgr>[0-9;:]*)m|\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c)|\x1b[ -/]*[0-Z\\^_`-~]"
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\x9c]{0,4096}\x1b?|[ -/]*)?\Z")
MAX_SEQUENCE_CHARS = 4100
_HIDING = frozenset({"5", "05", "6", "06", "8", "08"})  # blinking and concealed
_RESET = "\x1b[0m"


class Colours:
    """Filters a worker's output for a terminal: of all escape sequences only colours are kept, each to the end of its
    line."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # the beginning of a sequence
        self._coloured = False

    def feed(self, data: bytes, final: bool = False) -> str:
        text = self._held + self._decoder.decode(data, final)
        unfinished = None if final else _UNFINISHED.search(text, max(0, len(text) - MAX_SEQUENCE_CHARS))
        at = unfinished.start() if unfinished else len(text)
        text, self._held = text[:at], text[at:]
        made: list[str] = []
        position = 0
        for found in _SEQUENCE.finditer(text):
            self._plain(text[position : found.start()], made)
            position = found.end()
            if found["sgr"] is not None and self._is_colour(found["sgr"]):
                made.append(found[0])
                self._coloured = found["sgr"].strip("0;") != ""
        self._plain(text[position:], made)
        if final and self._coloured:
            made.append(_RESET)
        return "".join(made)

    @staticmethod
    def _is_colour(parameters: str) -> bool:
        """Whether SGR parameters set a colour and hide nothing: 38;5;8 is colour number 8, but 8 alone conceals."""
        words = re.sub(r"[34]8[;:](5[;:]\d*|2([;:]\d*){3,4})", "", parameters).replace(":", ";").split(";")
        return len(parameters) <= 64 and not _HIDING.intersection(words)

    def _plain(self, text: str, made: list[str]) -> None:
        if not text:
            return
        text = "\r".join(clean(one) for one in text.split("\r"))  # a progress bar rewrites its own line
        if self._coloured and "\n" in text:
            text, self._coloured = text.replace("\n", _RESET + "\n", 1), False
        made.append(text)
