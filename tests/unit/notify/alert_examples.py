"""Events, targets and messages as tests of notify need them."""

from __future__ import annotations

from typing import Any

from procguard.config.notifications import AlertTarget
from procguard.fleet.model.clock import Now
from procguard.notify import alerts
from procguard.notify.alerts import Gathering, Message

NOW = Now(100.0, 1_790_000_000.5)
HIDDEN = "https://hooks.example.org/services/T000/B000/TheSecretPath"


def target(kind: str = "webhook", **values: Any) -> AlertTarget:
    address = {} if kind == "email" else {"url": "http://127.0.0.1:9/hook"}
    return AlertTarget.model_validate({"name": "oncall", "type": kind, **address, **values})


def event(kind: str, worker: str = "", host: str = "gpu01", **values: Any) -> dict[str, Any]:
    made = {"seq": 1, "at": "2026-09-21T14:13:20.500Z", "kind": kind, "worker_id": worker or None, "host": host}
    made |= {"before": None, "after": None, "reason": "because", "actor": None, "attempt": None, "cause": None}
    return made | values


def failed(worker: str = "w1") -> dict[str, Any]:
    evidence = {"exit": {"signal": 9, "oom": True, "duration_s": 540.0}}
    return event("worker_failed", worker, cause="oom", evidence=evidence)


def message(kind: str = "webhook", count: int = 1, **values: Any) -> Message:
    gathering = Gathering(target(kind, **values))
    for number in range(count):
        gathering.take(failed(f"w{number + 1}"), 0.0)
    group = gathering.pop()
    assert group is not None
    return alerts.compose(group, target(kind, **values), "f-1", "http://head:5000")


def finished(worker: str = "w1", seq: int = 7) -> dict[str, Any]:
    evidence = {"exit": {"attempt": 2, "code": 0, "duration_s": 7_260.0}}
    return event("worker_state", worker, seq=seq, before="running", after="exited", attempt=2, cause="finished",
                 evidence=evidence)  # fmt: skip
