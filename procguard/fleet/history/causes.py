"""Causes of events: stable words for programs, used by filters, notifications and explanations. Pure.

    exit_code signal oom finished          the attempt ended by itself
    not_started                            the attempt could not be started, and a retry would not help
    gpu_oom import_error no_space …        the cause of a failure according to its last lines (docs/failure-causes.md)
    background                             finished, but left background processes running, which were ended
    health start_timeout lost              ended by a health check; did not start in time; its end was not observed
    operator stop_all fence gang           the initiator of the change
    agent_lost reassigned circuit_breaker suspicion  conclusions of the manager
    state                                  the manager's own state

docs/protocol.md documents them. Words are added, never renamed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from procguard.fleet.history.query import Evidence
from procguard.fleet.model.records import WorkerRecord
from procguard.i18n.reasons import Reason, because, with_head
from remote_agent.protocol import messages, states
from remote_agent.protocol.host_reasons import HOST
from remote_agent.protocol.reasons import TEXT

# The runner's cause, if the exit status alone would be misleading (remote_agent/runner/restart.py, Ending.cause).
_OF_RUNNER = {"unhealthy": "health", "start_timeout": "start_timeout", "lost": "lost", "not_started": "not_started"}
MAX_WORD_CHARS = 40
# Permanent causes, which recur after a restart: candidates for restart.never_on.
LASTING = (
    "import_error", "syntax_error", "missing_library", "command_not_found", "file_not_found", "not_executable",
    "permission_denied", "usage_error",
)  # fmt: skip
# Every built-in cause that a host finds in the last lines, without those that a configuration adds.
FOUND = tuple(code.removeprefix("failure.") for code in HOST if code.startswith("failure."))
# All built-in causes, without those that a configuration adds; the values of labels in /metrics.
WORDS = frozenset(
    {
        "exit_code", "signal", "finished", "not_started", "background", "health", "start_timeout", "lost", "operator",
        "stop_all", "fence", "gang", "agent_lost", "reassigned", "circuit_breaker", "suspicion", "state", "disk", "",
        *FOUND,
    }
)  # fmt: skip
SAID_BEFORE = "stopped by an operator"
BY_OPERATOR = "asked.stop"  # reported by runners for every stop, because they do not know the actor


def of_exit(record: messages.ExitRecord | None) -> str:
    if record is None:
        return ""
    if record.cause in _OF_RUNNER:
        return _OF_RUNNER[record.cause]
    if record.oom:
        return "oom"
    if is_word(record.cause) and record.cause != "taken":
        return record.cause
    if record.signal is not None:
        return "signal"
    return "not_started" if record.code is None else "exit_code"


def is_word(cause: str) -> bool:
    return len(cause) <= MAX_WORD_CHARS and re.fullmatch(r"[a-z][a-z0-9_]*", cause) is not None


def final(record: messages.ExitRecord | None, spec: messages.WorkerSpec) -> bool:
    """Whether this end rules out a restart: the time limit was reached, or restart.never_on names its cause."""
    if record is None:
        return False
    if record.cause == "time_limit" and spec.max_run_s is not None and not record.line:  # a line: of the job's output
        return True
    return record.cause in spec.restart.never_on


def named(asked: tuple[str, ...], own: Iterable[str]) -> tuple[str, ...]:
    """The causes of a filter, with `failure` replaced by all causes found in last lines; `own`: the configured ones."""
    return tuple(dict.fromkeys([*asked, *FOUND, *own])) if "failure" in asked else asked


def hopeless(record: messages.ExitRecord | None) -> bool:
    """Whether the start failed for a reason that a restart cannot fix: a missing command, directory, user or file."""
    return of_exit(record) == "not_started"


def true_reason(reason: Reason, worker: WorkerRecord) -> Reason:
    """A runner's reason, replaced if the manager knows who stopped the worker."""
    if reason.code == TEXT and reason.startswith(SAID_BEFORE):  # from a runner of a release without reason codes
        reason = because(BY_OPERATOR).then(reason.removeprefix(SAID_BEFORE).lstrip(":; "))
    if reason.code != BY_OPERATOR:
        return reason
    if worker.desired != "running" and worker.desired_cause == "stop_all":
        return with_head(reason, because("worker.stop_all"))
    if worker.desired == "running" and worker.held:
        return with_head(reason, because("worker.gang_stopped"))
    return reason


def of_worker_event(event: messages.WorkerEvent, worker: WorkerRecord) -> str:
    """The cause of a state change that a runner reported; "" if the state simply follows from the previous one."""
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


def exit_evidence(record: messages.ExitRecord | None) -> Evidence | None:
    return {"exit": messages.encode(record)} if record else None
