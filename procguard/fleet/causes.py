"""Why something happened, as one stable word for programs: filters, notifications and explanations go by it. Pure.

    exit_code signal oom finished          how the attempt ended by itself
    background                             finished, but left processes running that were ended
    health start_timeout lost              ended by its checks; never ran; nobody saw its end
    operator stop_all fence gang           who or what wanted it so
    agent_lost reassigned brake suspicion  what the manager concluded
    state                                  of the manager's own memory

docs/protocol.md lists them for readers. Words are added, never renamed.
"""

from __future__ import annotations

from typing import Any

from procguard.fleet.records import WorkerRecord
from remote_agent import protocol, states

# What the runner says where the exit status alone would mislead (remote_agent/restart.py, Ending.cause).
_OF_RUNNER = {"unhealthy": "health", "start_timeout": "start_timeout", "lost": "lost"}


def of_exit(record: protocol.ExitRecord | None) -> str:
    if record is None:
        return ""
    if record.cause in _OF_RUNNER:
        return _OF_RUNNER[record.cause]
    if record.oom:
        return "oom"
    if record.signal is not None:
        return "signal"
    return "lost" if record.code is None else "exit_code"


def of_worker_event(event: protocol.WorkerEvent, worker: WorkerRecord) -> str:
    """Of one change of state as the runner told it; "" where a state simply follows from the one before."""
    if states.STOPPING in (event.before, event.after) or event.after == states.STOPPED:
        if worker.desired != "running":
            return worker.desired_cause or "operator"
        if worker.held:
            return "gang"
        if event.after == states.STARTING or not (worker.gang or worker.spec.on_partition == "fence"):
            return "operator"  # a restart
        return "fence"
    if event.after == states.EXITED:
        return "background" if event.exit is not None and event.exit.left else "finished"
    return of_exit(event.exit)


def exit_evidence(record: protocol.ExitRecord | None) -> dict[str, Any] | None:
    return {"exit": protocol.encode(record)} if record else None
