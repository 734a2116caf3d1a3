"""Parameters of a log request: number of lines, attempt and stream, start time, pattern."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from procguard.errors import UsageError
from procguard.expression import Expression

DEFAULT_LINES = 200
MAX_LINES = 100_000
MAX_RESUMED = 16
_ADDRESS = re.compile(r"([0-9]{1,10})\.(out|err)\.([0-9]{1,18})")
_AGE = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,3})?)(s|m|h|d)$")
_AGE_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Resumed:
    """A reader's position when its connection ended: (attempt, stream) -> the offset after its last line."""

    def __init__(self, offsets: dict[tuple[int, str], int]) -> None:
        self.offsets = offsets
        self._newest = max(attempt for attempt, _ in offsets)
        self.oldest = min(attempt for attempt, _ in offsets)

    def lacks(self, attempt: int, stream: str, end: int) -> bool:
        """Whether the reader lacks a line that ends there."""
        known = self.offsets.get((attempt, stream))
        return attempt >= self._newest if known is None else end > known


def parse_resume(text: str) -> Resumed | None:
    """`3.out.73014,3.err.20`; None for "". Raises UsageError."""
    if not text:
        return None
    words = text.split(",")
    found = [_ADDRESS.fullmatch(word) for word in words]
    if len(words) > MAX_RESUMED or not all(found):
        example = f"e.g. 3.out.73014,3.err.20 (attempt, stream, offset), at most {MAX_RESUMED}"
        raise UsageError(f"resume={text[:80]!r}: not addresses in a log", example)
    return Resumed({(int(one[1]), one[2]): int(one[3]) for one in found if one})


class LogQuery:
    """The validated query of one request."""

    def __init__(
        self,
        lines: int = DEFAULT_LINES,
        attempt: int | None = None,
        stream: str | None = None,
        since: float | None = None,
        expression: Expression | None = None,
        as_json: bool = False,
        resume: Resumed | None = None,
        until: float | None = None,
    ) -> None:
        self.lines = lines
        self.attempt = attempt
        self.stream = stream
        self.since = since
        self.expression = expression
        self.as_json = as_json
        self.resume = resume
        self.until = until


def parse_since(text: str, now_wall: float, name: str = "since") -> float:
    """Parse `10m` (ago), Unix seconds, or ISO 8601 (UTC by default). Returns Unix seconds."""
    age = _AGE.match(text)
    if age:
        return now_wall - float(age[1]) * _AGE_UNIT_S[age[2]]
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text):
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        example = "e.g. 10m, 2026-11-23T22:00:00Z, or Unix seconds"
        raise UsageError(f"{name}={text[:40]!r}: not a time", example) from exc
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
