"""The cause of an attempt's end, with the line that proves it and the position of that line in the worker's log."""

from __future__ import annotations

from remote_agent.protocol.host_reasons import HOST
from remote_agent.protocol.reasons import because, reason_of
from remote_agent.runner.failure_causes.decision import find
from remote_agent.runner.failure_causes.own_patterns import own_cause
from remote_agent.runner.failure_causes.tail import MAX_LINES, read_tail

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHOWN_CHARS = 300


class ProvenCause:
    """A cause, its line, and the position of that line in the worker's log (`stream`, `offset` in bytes)."""

    def __init__(self, word: str, line: str = "", stream: str = "", offset: int = 0, where: str = "") -> None:
        self.word, self.line, self.stream, self.offset, self.where = word, line, stream, offset, where
        code = f"failure.{word}"
        known = because(f"failure.{word}") if code in HOST else word
        shown = f"{line} ({where})" if where else line
        self.reason = because("exit.proof", cause=known, line=shown) if line else reason_of(known)


def of_attempt(
    files: Sequence[tuple[str, str]],
    code: int | None,
    signal: int | None,
    oom: bool = False,
    oom_lately: bool = False,
    own: Mapping[str, str] | None = None,
) -> ProvenCause | None:
    """`files`: (stream, path), the one with the errors last. `oom_lately`: the kernel's OOM killer has killed a process
    since the attempt began. `own`: user-defined causes with their expressions for Python's `re`. Returns None if
    nothing is proven."""
    if oom:
        return ProvenCause("oom")
    origins: list[tuple[str, int]] = []
    lines: list[str] = []
    for stream, path in files:
        for offset, text in read_tail(path):
            origins.append((stream, offset))
            lines.append(text)
    del origins[:-MAX_LINES], lines[:-MAX_LINES]
    cause = (own_cause(lines, own) if own else None) or find(lines, code, signal, oom_lately)
    if cause is None:
        return None
    if cause.at < 0:
        return ProvenCause(cause.word)
    stream, offset = origins[cause.at]
    return ProvenCause(cause.word, lines[cause.at].strip()[:SHOWN_CHARS], stream, offset, cause.where)
