"""Health checks of running workers (http, tcp, exec, log_silence, heartbeat_file), bounded in time, off the main loop.

Owns when a check is due, how it is made and the resulting health. Knows neither the manager nor the runners: the
agent's loop requests due checks, runs them on helper threads, returns the results and acts on `health`.
"""

from __future__ import annotations

import os
import signal
import time

from remote_agent.health.probes import probe
from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.protocol.messages import Health
from remote_agent.protocol.reasons import NONE, Reason, because
from remote_agent.protocol.records import field, record
from remote_agent.protocol.worker_spec import HealthCheck, WorkerSpec
from remote_agent.runner.restart import signal_number
from remote_agent.system.bounded import Bounded, HangsError
from remote_agent.system.paths import absolute

DETAIL_CHARS = 300
MIN_INTERVAL_S = 0.5
HEARTBEAT_AGE_S = 60.0
MAX_GPUS = 64
MAX_PENDING_EVENTS = 5  # number of passed checks combined into one detail
Result = tuple[Optional[bool], Reason]  # (healthy, detail for people); None: undetermined


@record
class Due:
    """One check to be run by a helper thread; `run` never raises and ends within the check's timeout_s (+ 1 s)."""

    worker_id: str
    attempt: int
    index: int
    run: Callable[[], Result]


class HealthWatch:
    """Measures on the monotonic clock how long a value has not changed. Used by the checking thread only."""

    def __init__(self, since: float) -> None:
        self._mark: Any = None
        self._since = since

    def age_s(self, mark: Any, now: float) -> float:
        if mark is not None and mark != self._mark:
            self._mark, self._since = mark, now
        return max(0.0, now - self._since)


@record
class LogWatch:
    """The worker's data for a log_silence check: `mark()` changes with every output; `limit_s()` is the limit derived
    from the worker's usual pauses (None: unknown yet)."""

    mark: Callable[[], Any]
    limit_s: Callable[[], Optional[float]]


@record
class Elsewhere:
    """Runs checks of the worker in a separate process with the rights of the worker's user (user_process.py).

    `cwd`, `home`: the folders that the paths of its checks are relative to. `other_user`: the agent is not that user;
    then every check that accesses the host runs there, otherwise only commands do."""

    cwd: str
    home: str
    other_user: bool
    check: Callable[[HealthCheck], Result]
    stat: Callable[[str, float], Any]  # (mtime_ns, size, inode); raises OSError, also without an answer


@record
class _Track:
    check: HealthCheck
    next_at: float
    watch: HealthWatch
    failures: int = 0
    passed: bool = False
    busy: bool = False
    detail: Reason = NONE
    bounded: Bounded = field(default_factory=Bounded)


class HealthMonitor:
    """The checks of one worker. `running` at each start of an attempt, `stopped` when it ends."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._attempt = 0
        self._tracks: list[_Track] = []
        self._checks: list[HealthCheck] = []
        self._elsewhere: Optional[Elsewhere] = None
        self._log: Optional[LogWatch] = None

    def running(
        self,
        attempt: int,
        checks: list[HealthCheck],
        now: float,
        *,
        elsewhere: Optional[Elsewhere] = None,
        log: Optional[LogWatch] = None,
    ) -> None:
        """An attempt runs; `now`: monotonic. Called with every status; no effect while attempt and checks are the
        same."""
        if attempt == self._attempt and checks == self._checks:
            return
        self._attempt, self._checks = attempt, checks
        self._elsewhere, self._log = elsewhere, log
        self._tracks = [_Track(check, now + max(0.0, check.start_grace_s), HealthWatch(now)) for check in checks]

    def stopped(self) -> None:
        self._attempt, self._tracks, self._checks = 0, [], []

    def due(self, now: float) -> list[Due]:
        """The checks to run now; each is marked busy until `result`."""
        found = []
        for index, track in enumerate(self._tracks):
            if not track.busy and now >= track.next_at:
                track.busy = True
                found.append(Due(self._worker_id, self._attempt, index, self._runnable(track)))
        return found

    def next_at(self) -> Optional[float]:
        times = [track.next_at for track in self._tracks if not track.busy]
        return min(times) if times else None

    def result(self, due: Due, healthy: Optional[bool], detail: Reason, now: float) -> bool:
        """Record a result. Returns whether the worker has just begun to fail a check whose action is restart.

        `healthy` None changes nothing, because a host that is too busy to run a check is no evidence against the
        job."""
        if due.attempt != self._attempt or due.index >= len(self._tracks):
            return False  # the attempt has ended
        track = self._tracks[due.index]
        track.busy = False
        track.next_at = now + max(MIN_INTERVAL_S, track.check.interval_s)
        if healthy is None:
            return False
        track.detail = detail if len(detail) <= DETAIL_CHARS else Reason(detail[:DETAIL_CHARS])
        if healthy:
            track.failures, track.passed = 0, True
            return False
        track.failures += 1
        return track.failures == max(1, track.check.failures) and track.check.action == "restart"

    def current(self) -> Optional[Health]:
        """The current health. None: no checks are configured, or nothing runs."""
        if not self._tracks:
            return None
        for track in self._tracks:
            if track.failures >= max(1, track.check.failures):
                what = {"check": track.check.type, "times": track.failures, "why": track.detail}
                return Health("failing", because("health.failed", **what))
        if all(track.passed for track in self._tracks):
            return Health("ok", NONE.then(*(track.detail for track in self._tracks[:MAX_PENDING_EVENTS])))
        return Health("unknown", because("health.not_yet"))

    def _runnable(self, track: _Track) -> Callable[[], Result]:
        check, elsewhere, log = track.check, self._elsewhere, self._log
        if check.type == "log_silence":
            return lambda: _log_silence(check, track.watch, log, time.monotonic())
        if check.type == "heartbeat_file":
            return lambda: _heartbeat_file(check, track, elsewhere)
        if elsewhere is not None and (check.type == "exec" or elsewhere.other_user):
            return lambda: elsewhere.check(check)
        return lambda: run_check(check)


def mistakes(spec: WorkerSpec) -> list[str]:
    """The host-independent mistakes in checks, gpus and evidence_signal."""
    found = []
    for check in spec.health:
        lacks = {"http": not check.url, "tcp": not check.port, "exec": not check.command.strip()}
        lacks["heartbeat_file"] = not check.path
        if lacks.get(check.type):
            key = {"http": "url", "tcp": "port", "exec": "command", "heartbeat_file": "path"}[check.type]
            found.append(f"health: a {check.type} check needs {key}")
        if check.max_age_s is not None and not check.max_age_s > 0:
            found.append(f"health: max_age_s {check.max_age_s!r}: expected seconds above 0")
    if isinstance(spec.gpus, bool) or not 0 <= spec.gpus <= MAX_GPUS:
        found.append(f"gpus {spec.gpus!r}: expected how many, 0 to {MAX_GPUS}")
    number = signal_number(spec.evidence_signal, default=0) if spec.evidence_signal else signal.SIGUSR1
    if number in (0, signal.SIGKILL, signal.SIGSTOP):
        found.append(f"evidence_signal {spec.evidence_signal!r}: expected one that the job answers, such as USR1")
    return found


def _log_silence(check: HealthCheck, watch: HealthWatch, log: Optional[LogWatch], now: float) -> Result:
    if log is None:
        return True, because("health.no_log")
    age_s = watch.age_s(log.mark(), now)
    limit_s = check.max_age_s if check.max_age_s is not None else log.limit_s()
    if limit_s is None:
        return True, because("health.output_unknown", age_s=age_s)
    if age_s > limit_s:
        return False, because("health.silent", age_s=age_s, limit_s=limit_s)
    return True, because("health.output", age_s=age_s)


def _heartbeat_file(check: HealthCheck, track: _Track, elsewhere: Optional[Elsewhere]) -> Result:
    """Check a heartbeat file. Its time is only compared with its own earlier time, so that wrong clocks do not
    matter."""
    timeout_s = timeout_of(check)
    cwd, home = (elsewhere.cwd, elsewhere.home) if elsewhere is not None else ("", "")
    path = absolute(check.path, cwd, home)
    try:
        if elsewhere is not None and elsewhere.other_user:
            mark = elsewhere.stat(path, timeout_s)
        else:
            found = track.bounded.call("stat", lambda: os.stat(path), timeout_s)
            mark = (found.st_mtime_ns, found.st_size, found.st_ino)
    except HangsError as exc:
        return False, because("health.file_hangs", path=path, error=str(exc))
    except OSError as exc:
        mark, missing = None, because("health.file_error", path=path, error=exc.strerror or str(exc))
    else:
        missing = NONE
    age_s = track.watch.age_s(mark, time.monotonic())
    limit_s = HEARTBEAT_AGE_S if check.max_age_s is None else check.max_age_s
    if age_s > limit_s:
        return False, because("health.file_unchanged", path=path, age_s=age_s, limit_s=limit_s).then(missing)
    return True, because("health.file_changed", path=path, age_s=age_s).then(missing)


def run_check(check: HealthCheck) -> Result:
    """Run an http or tcp check now, with the agent's user. Ends within about `timeout_s`; never raises."""
    try:
        return probe(check, timeout_of(check))
    except Exception as exc:  # any exception counts as a failed check
        return False, Reason(f"{type(exc).__name__}: {exc}")


def timeout_of(check: HealthCheck) -> float:
    return max(0.05, check.timeout_s)
