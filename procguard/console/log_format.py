"""Formats the manager's log: one line per record, even if untrusted text is part of it.

Host names, error texts and responses come from peers that could insert lines or terminal escape sequences. They are
cleaned here and nowhere else. This module does not know where the log is written.
"""

from __future__ import annotations

import logging
import re
from types import TracebackType
from typing import Any

MAX_MESSAGE_CHARS = 16_000
INDENT = "    "  # of continuation lines, so that no line of a traceback looks like a record

# Control characters, other line separators, characters that change the writing direction, and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_SOURCE_FILE = vars(logging)["_srcfile"]


def clean(text: str) -> str:
    """`text` on one line, with unprintable characters written as escapes (`\\n`, `\\x1b`)."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _indented(text: str) -> str:
    return "\n".join(INDENT + clean(line) for line in text.split("\n"))


class Formatter(logging.Formatter):
    """A logging.Formatter that cleans the record's message and indents its traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = clean(record.message[:MAX_MESSAGE_CHARS])
        if len(record.message) > MAX_MESSAGE_CHARS:
            message += f" … ({len(record.message)} characters)"
        record.message = message
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def look_up_only(named: str) -> None:
    """Make `logging` determine only what `named`, a format of records, contains, in the whole process. The thread
    alone, for which each greenlet gets an object of its own, costs more than the rest of a line."""
    logging.logThreads = "%(thread" in named
    logging.logProcesses = "%(process)" in named
    logging.logMultiprocessing = "%(processName)" in named
    from_source = any(f"%({name})" in named for name in ("pathname", "filename", "module", "lineno", "funcName"))
    vars(logging)["_srcfile"] = _SOURCE_FILE if from_source else None  # as Python's logging HOWTO recommends


def report_greenlets_to(log: logging.Logger, hub: Any) -> None:
    """Log exceptions that end a greenlet. By default, gevent writes them to stderr unchanged."""

    def report(context: Any, kind: type[BaseException], value: BaseException, traceback: TracebackType) -> None:
        log.error("a task of the event loop failed: %s", str(context)[:200], exc_info=(kind, value, traceback))

    hub.print_exception = report
