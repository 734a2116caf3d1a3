"""Turns a source into views: the API's object, a row of the live feed, measurements, /metrics."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

from procguard.client.types import HostInfo, WorkerInfo
from procguard.fields import ShownField
from procguard.fleet.model.clock import iso
from procguard.fleet.model.records import WorkerObserved
from procguard.fleet.shapes.hosts import HOST
from procguard.fleet.shapes.sources import HostSource, WorkerSource
from procguard.fleet.shapes.workers import WORKER
from remote_agent.protocol import messages

Row = tuple[Any, ...]
Read = Callable[[Any], Any]
ReadAll = Callable[[Any], list[Any]]
_PATH = re.compile(r"[a-z_0-9]+(?:\.[a-z_0-9]+)*")


class Feed(NamedTuple):
    """The live feed's columns and measures of one shape, and how they are read: from the source, or from its usage
    (the last `of_usage` measures)."""

    columns: tuple[str, ...]
    row: ReadAll
    measures: tuple[str, ...]
    own: ReadAll
    usage: ReadAll
    of_usage: int


def worker_view(source: WorkerSource) -> WorkerInfo:
    return cast(WorkerInfo, dict(zip(_WORKER_NAMES, _WORKER_VALUES(source), strict=True)))


def host_view(source: HostSource) -> HostInfo:
    return cast(HostInfo, dict(zip(_HOST_NAMES, _HOST_VALUES(source), strict=True)))


def measured(
    feed: Feed, source: HostSource | WorkerObserved, usage: messages.WorkerUsage | messages.HostUsage | None
) -> Row:
    """`usage`: None if nothing was measured."""
    return (*feed.own(source), *(feed.usage(usage) if usage is not None else [None] * feed.of_usage))


def metrics_of(fields: Iterable[ShownField[Any]]) -> tuple[tuple[str, str, Read], ...]:
    """(name, help, accessor) of the usage fields in /metrics; percentages become ratios."""
    return tuple(
        (one.metric.name, one.metric.help, _ratio(_call(one.read)) if one.unit == "percent" else _call(one.read))
        for one in fields
        if one.metric is not None
    )


def three_digits(value: float | None) -> int | None:
    """A size rounded to the three digits that lists show: zeros compress well, and small changes are not sent."""
    if value is None:
        return None
    whole = int(value)
    return whole if whole < 1000 else round(whole, 3 - len(str(whole)))


def _ratio(read: Read) -> Read:
    def ratio(measures: Any) -> float | None:
        percent = read(measures)
        return None if percent is None else round(percent / 100.0, 6)

    return ratio


def _call(read: str | Read) -> Read:
    return operator.attrgetter(read) if isinstance(read, str) else read


def _shown(field: ShownField[Any], value: str) -> str:
    return f"iso({value})" if field.unit == "moment" else value


def _live_value(field: ShownField[Any], value: str) -> str:
    """Rounds times to a tenth of a second and sizes to three digits."""
    if field.unit == "moment" and field.fed == "row":
        return f"round({value} or 0.0, 1) or None"
    return f"three_digits({value})" if field.unit in ("bytes", "bytes_per_s") else value


def _read_all(fields: Sequence[ShownField[Any]], form: Callable[[ShownField[Any], str], str], *, live: bool) -> ReadAll:
    """Compile a function that reads the fields in order, as dataclasses do. Ten thousand rows are read often, and one
    call per field took twice the time."""
    names: dict[str, object] = {"iso": iso, "three_digits": three_digits}
    values = []
    for one in fields:
        read = (one.live_read if live else None) or one.read
        if isinstance(read, str):
            if not _PATH.fullmatch(read):
                raise ValueError(f"{one.name}: {read!r} is not an attribute")
            value = f"source.{read}"
        else:
            names[f"read_{one.name}"] = read
            value = f"read_{one.name}(source)"
        values.append(form(one, value))
    code = f"lambda source: [{', '.join(values)}]"
    read_all: ReadAll = eval(code, names)  # noqa: S307 -- made of the fields' own names and attributes, above
    return read_all


def _view(fields: Sequence[ShownField[Any]]) -> tuple[tuple[str, ...], ReadAll]:
    shown = [one for one in fields if one.api and not one.part_of]
    return tuple(one.name for one in shown), _read_all(shown, _shown, live=False)


def feed_of(fields: Sequence[ShownField[Any]]) -> Feed:
    rows = [one for one in fields if one.fed == "row"]
    own = [one for one in fields if one.fed == "measure" and not one.part_of]
    of_usage = [one for one in fields if one.fed == "measure" and one.part_of]
    return Feed(
        tuple(one.name for one in rows),
        _read_all(rows, _live_value, live=True),
        tuple(one.name for one in (*own, *of_usage)),
        _read_all(own, _live_value, live=True),
        _read_all(of_usage, _live_value, live=True),
        len(of_usage),
    )


_WORKER_NAMES, _WORKER_VALUES = _view(WORKER)
_HOST_NAMES, _HOST_VALUES = _view(HOST)
WORKER_FEED, HOST_FEED = feed_of(WORKER), feed_of(HOST)
