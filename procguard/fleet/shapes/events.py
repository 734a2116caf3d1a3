"""The fields of an event. Events are stored as they are shown, so a field is read from the key of the same name."""

from __future__ import annotations

from typing import Any

from procguard.fields import Label, ShownField, Unit


def _field(
    name: str, kind: str, says: str = "", label: Label | None = None, unit: Unit = "", **more: Any
) -> ShownField[Any]:
    return ShownField(name, kind, name, says, label, unit, live="", **more)


EVENT: tuple[ShownField[Any], ...] = (
    _field("seq", "int", "Increases with every event"),
    _field("at", "Moment", "Time of the event", Label("Time", "时间"), "moment"),
    _field("kind", "str", "Kind of the event", Label("Kind", "类型")),
    _field("worker_id", "str | None", "The worker; null if it concerns none", Label("Worker", "Worker")),
    _field("host", "str | None", "The host; null if it concerns none", Label("Host", "主机")),
    _field("before", "str | None", "The state before"),
    _field("after", "str | None", "The state after"),
    _field("reason", "str", "The reason as text", Label("Reason", "原因")),
    _field("reason_code", "str", "Code of the reason, for programs (docs/protocol.md, Reasons)", optional=True),
    _field("reason_params", "ReasonParams", "Parameters of the reason", optional=True),
    _field("actor", "str | None", "Who did or requested it", Label("By", "由")),
    _field("attempt", "int | None", "The worker's attempt"),
    _field("cause", "str | None", "The cause, for programs (docs/protocol.md, Events)", optional=True),
    _field("evidence", "Json | str | None", "Facts from which it was concluded", optional=True),
    _field("logs", "str | None", "Of a failure: path of the last log lines of the failed attempt", optional=True),
)
