"""Runs the workers' health checks and acts on the results: notifies the runner, gathers evidence before a restart.

Owns the checks in progress and the evidence being gathered. schedule.py makes the checks, evidence.py writes the
evidence, the runner restarts. Main loop only; knows no manager.
"""

from __future__ import annotations

import os

from remote_agent.health.schedule import Due, Elsewhere, HealthMonitor, LogWatch, Result, timeout_of
from remote_agent.protocol.hints import TYPE_CHECKING, Any, Callable, Mapping, Optional, Protocol
from remote_agent.protocol.messages import Assignment, encode
from remote_agent.protocol.reasons import NONE, Reason, because, reason_of
from remote_agent.protocol.records import record
from remote_agent.protocol.states import RUNNING
from remote_agent.protocol.worker_spec import HealthCheck
from remote_agent.runner.control import RunnerLink
from remote_agent.telemetry.sampler import Measuring, log_mark

EVIDENCE_TIMEOUT_S = 30.0  # evidence.py ends earlier by itself; a hung host must not delay the restart of a hung job

Submit = Callable[[Any, Callable[[], Any]], bool]


if TYPE_CHECKING:  # not loaded by the agent
    from remote_agent.telemetry.sampler import MeasuredWorker

    class CheckedWorker(MeasuredWorker, Protocol):
        """The attributes of a worker that are used here; implemented by agent/worker.py."""

        assignment: Optional[Assignment]
        health: HealthMonitor
        cwd: str
        home: str
        other_user: bool

        @property
        def link(self) -> Optional[RunnerLink]: ...


@record
class _EvidenceGathering:
    attempt: int
    detail: Reason
    until: float  # monotonic
    over_time: bool = False  # the attempt exceeded its time limit; otherwise a check has failed


class Checks:
    """`say(event, **facts)` logs; `changed()` is called when a result should be reported to the manager."""

    def __init__(
        self,
        measuring: Measuring,
        submit: Submit,
        say: Callable[..., None],
        changed: Callable[[], None],
        *,
        python: str,
        base_env: dict[str, str],
    ) -> None:
        self._measuring, self._submit, self._say, self._changed = measuring, submit, say, changed
        self._python, self._base_env = python, base_env
        self._gathering: dict[str, _EvidenceGathering] = {}
        self._over_time: dict[str, int] = {}  # worker -> the attempt whose evidence was requested at its time limit

    def tick(self, worker: CheckedWorker, now: float) -> None:
        checks = worker.assignment.spec.health if worker.assignment is not None else []
        over_time = bool(worker.attempt) and worker.status.get("over_time") == worker.attempt
        if not (checks or over_time) or worker.link is None or worker.state != RUNNING:
            worker.health.stopped()
            self._gathering.pop(worker.worker_id, None)
            return
        gathering = self._gathering.get(worker.worker_id)
        if gathering is not None and now >= gathering.until:
            self._end(worker, gathering, because("evidence.slow", limit_s=EVIDENCE_TIMEOUT_S))
        elif over_time and gathering is None and self._over_time.get(worker.worker_id) != worker.attempt:
            self._over_time[worker.worker_id] = worker.attempt
            self._gather(worker, NONE, now, over_time=True)
        if not checks:
            return
        assert worker.assignment is not None
        directory, attempt = worker.directory, worker.attempt
        log = LogWatch(lambda: log_mark(directory, attempt), lambda: self._measuring.silence_limit_s(worker))
        worker.health.running(attempt, checks, now, elsewhere=self.elsewhere(worker), log=log)
        for due in worker.health.due(now):
            if not self._submit(due, due.run):
                worker.health.result(due, True, because("health.too_many"), now)

    def elsewhere(self, worker: CheckedWorker) -> Elsewhere:
        """The process for the current attempt's checks: with its user's rights, in its specification's environment."""
        status, python = worker.status, self._python
        facts = {
            "worker_dir": worker.directory,
            "attempt": worker.attempt,
            "pid": status.get("pid"),
            "pid_start": status.get("pid_start"),
        }

        def check(one: HealthCheck) -> Result:
            return _check_elsewhere(python, facts, one)

        def stat(path: str, timeout_s: float) -> Any:
            return _stat_elsewhere(python, facts, path, timeout_s)

        return Elsewhere(worker.cwd, worker.home, worker.other_user, check, stat)

    def next_at(self, worker: CheckedWorker) -> Optional[float]:
        gathering = self._gathering.get(worker.worker_id)
        return gathering.until if gathering is not None else worker.health.next_at()

    def take(self, tag: Any, value: Any, workers: Mapping[str, CheckedWorker], now: float) -> bool:
        """Process a helper's result. False if it does not belong to this module."""
        if isinstance(tag, Due):
            worker = workers.get(tag.worker_id)
            if worker is not None:
                self._take_result(worker, tag, value, now)
            return True
        if isinstance(tag, tuple) and tag[0] == "evidence":
            worker, gathering = workers.get(tag[1]), self._gathering.get(tag[1])
            if worker is not None and gathering is not None and gathering.attempt == tag[2]:
                if isinstance(value, Exception):
                    why = because("evidence.failed", error=str(value))
                else:
                    why = because("evidence.found", path=value.path, what=value.summary)
                self._end(worker, gathering, why)
            return True
        return False

    def _take_result(self, worker: CheckedWorker, due: Due, value: Any, now: float) -> None:
        before = worker.health.current()
        healthy, detail = value if isinstance(value, tuple) else (False, reason_of(str(value)))
        restart = worker.health.result(due, healthy, detail, now)
        after = worker.health.current()
        if after is None or before is None or (before.status == after.status and not restart):
            return
        self._say("health changed", worker=worker.worker_id, status=after.status, detail=after.detail)
        self._changed()
        if worker.link is None:
            return
        worker.link.health(after.status, reason_of(after.detail), False)
        if restart and worker.worker_id not in self._gathering:
            self._gather(worker, reason_of(after.detail), now)

    # ------------------------------------------------------------------------------------------------- evidence

    def _gather(self, worker: CheckedWorker, detail: Reason, now: float, over_time: bool = False) -> None:
        """Collect evidence before the runner ends the worker's process."""
        assert worker.assignment is not None
        gathering = self._gathering[worker.worker_id] = _EvidenceGathering(
            worker.attempt, detail, now + EVIDENCE_TIMEOUT_S, over_time
        )
        spec, status = worker.assignment.spec, worker.status
        facts = {
            "worker_id": worker.worker_id,
            "directory": worker.directory,
            "attempt": worker.attempt,
            "runner_pid": int(status.get("runner_pid") or 0),
            "pid": int(status.get("pid") or 0),
            "pid_start": int(status.get("pid_start") or 0),
            "reason": detail or because("failure.time_limit"),
            "gpus": list(self._measuring.gpus_of(worker.worker_id)),
            "signal": spec.evidence_signal,
            "path": spec.env.get("PATH") or self._base_env.get("PATH") or os.defpath,
            "python": self._python,
        }
        if not self._submit(("evidence", worker.worker_id, worker.attempt), lambda: _collect(facts)):
            self._end(worker, gathering, because("evidence.busy"))

    def _end(self, worker: CheckedWorker, gathering: _EvidenceGathering, found: Reason) -> None:
        """Request the end, unless the worker has recovered or ended by itself meanwhile."""
        del self._gathering[worker.worker_id]
        health = worker.health.current()
        self._say("evidence", worker=worker.worker_id, attempt=gathering.attempt, is_now=found)
        if worker.link is None or worker.attempt != gathering.attempt or worker.state != RUNNING:
            return
        if gathering.over_time:
            worker.link.time_limit(gathering.attempt, found)
        elif health is not None and health.status == "failing":
            worker.link.health("failing", gathering.detail.then(found), True)


def _collect(facts: dict[str, Any]) -> Any:
    from remote_agent.health import evidence  # rarely needed, therefore loaded on demand

    return evidence.collect(evidence.Scene(**facts))


def _check_elsewhere(python: str, facts: dict[str, Any], check: HealthCheck) -> Result:
    """Run the check in a separate process. Never raises."""
    import shlex

    from remote_agent.health import user_process  # rarely needed, therefore loaded on demand

    try:
        wanted = encode(check)
        if check.type == "exec":
            wanted["argv"] = shlex.split(check.command)
            if not wanted["argv"]:
                return False, because("health.no_command")
        healthy, detail = user_process.run(python, {**facts, "check": wanted, "timeout_s": timeout_of(check)})
        return bool(healthy), reason_of(str(detail) if not isinstance(detail, Reason) else detail)
    except user_process.Failed as exc:
        return None, because("health.not_checked", error=str(exc))
    except Exception as exc:  # any exception counts as a failed check
        return False, because("health.error", check=check.type, error=str(exc))


def _stat_elsewhere(python: str, facts: dict[str, Any], path: str, timeout_s: float) -> Any:
    from remote_agent.health import user_process

    try:
        found = user_process.run(python, {**facts, "stat": path, "timeout_s": timeout_s})
    except user_process.Failed as exc:
        raise OSError(0, str(exc)) from exc
    if isinstance(found, str):
        raise OSError(0, found)
    return tuple(found)
