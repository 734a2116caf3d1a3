"""The fields of an event. Events are stored as they are shown, so a field is read from the key of the same name."""

from __future__ import annotations

from typing import Any

from procguard.fields import Label, ShownField, Unit


def _field(
    name: str, kind: str, says: str = "", label: Label | None = None, unit: Unit = "", **more: Any
) -> ShownField[Any]:
    return ShownField(name, kind, name, says, label, unit, live="", **more)


EVENT: tuple[ShownField[Any], ...] = (
    _field("seq", "int", "Rises with each event"),
    _field("at", "Moment", "When", Label("Time", "时间"), "moment"),
    _field("kind", "str", "What kind of event", Label("Kind", "类型")),
    _field("worker_id", "str | None", "Null: it is of no worker", Label("Worker", "Worker")),
    _field("host", "str | None", "Null: it is of no host", Label("Host", "主机")),
    _field("before", "str | None", "The state before"),
    _field("after", "str | None", "The state after"),
    _field("reason", "str", "For people", Label("Reason", "原因")),
    _field("reason_code", "str", "The reason for programs (docs/protocol.md, Reasons)", optional=True),
    _field("reason_params", "dict[str, Any]", "Of the reason's text", optional=True),
    _field("actor", "str | None", "Who did it or asked for it", Label("By", "由")),
    _field("attempt", "int | None", "Of the worker"),
    _field("cause", "str | None", "For programs (docs/protocol.md, Events)", optional=True),
    _field("evidence", "dict[str, Any] | str | None", "What it was concluded from", optional=True),
    _field("logs", "str | None", "Of a failure: where the last lines of the failed attempt are", optional=True),
)
