"""What one request asks of a log: how many lines, of which attempt and stream, since when, matching what."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from procguard.errors import UsageError
from procguard.portal.logs.expression import Expression

DEFAULT_LINES = 200
MAX_LINES = 100_000
_AGE = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,3})?)(s|m|h|d)$")
_AGE_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class LogQuery:
    """The query of one request, checked."""

    def __init__(
        self,
        lines: int = DEFAULT_LINES,
        attempt: int | None = None,
        stream: str | None = None,
        since: float | None = None,
        expression: Expression | None = None,
        as_json: bool = False,
    ) -> None:
        self.lines = lines
        self.attempt = attempt
        self.stream = stream
        self.since = since
        self.expression = expression
        self.as_json = as_json


def parse_since(text: str, now_wall: float, name: str = "since") -> float:
    """`10m` ago, Unix seconds, or ISO 8601 (UTC unless it says otherwise), as Unix seconds."""
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
