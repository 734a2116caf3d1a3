"""Watches the metric or file that a worker's restart.progress names, and passes each higher value to its runner.

The value of a metric comes from the worker's log metrics; the time of a file is read on a helper thread, with the
rights of the worker's user. The runner decides what counts as progress (runner/restart.py). Apart from that read, main
loop only.
"""

from __future__ import annotations

import os

from remote_agent.protocol.hints import TYPE_CHECKING, Any, Callable, Mapping, Optional
from remote_agent.protocol.messages import METRIC_PREFIX, LogMetric
from remote_agent.system.bounded import Bounded, HangsError
from remote_agent.system.paths import absolute

if TYPE_CHECKING:
    from remote_agent.health.checks import CheckedWorker

FILE_EVERY_S = 5.0
FILE_TIMEOUT_S = 3.0
TAG = "progress"

Stat = Callable[[str, float], Any]  # stat of a file as the worker's user: (path, timeout_s) -> (mtime_ns, …)


class ProgressWatch:
    """`metrics_of(worker, attempt)`: its last metrics. `stat_of(worker)`: reads its files if it runs as another
    user."""

    def __init__(
        self,
        submit: Callable[[Any, Callable[[], Any]], bool],
        metrics_of: Callable[[str, int], list[LogMetric]],
        stat_of: Callable[[CheckedWorker], Stat],
    ) -> None:
        self._submit, self._metrics_of, self._stat_of = submit, metrics_of, stat_of
        self._sent: dict[str, tuple[object, float]] = {}  # worker -> (link, highest value sent over it)
        self._next_file: dict[str, float] = {}
        self._bounded = Bounded()

    def tick(self, worker: CheckedWorker, now: float) -> None:
        rule = worker.assignment.spec.restart.progress if worker.assignment is not None else ""
        if not rule:
            self._sent.pop(worker.worker_id, None)
            self._next_file.pop(worker.worker_id, None)
        elif worker.link is None:
            pass
        elif rule.startswith(METRIC_PREFIX):
            for one in self._metrics_of(worker.worker_id, worker.attempt):
                if one.name == rule[len(METRIC_PREFIX) :] and one.value is not None:
                    self._send(worker, one.value)
        elif now >= self._next_file.get(worker.worker_id, 0.0):
            self._next_file[worker.worker_id] = now + FILE_EVERY_S
            self._submit((TAG, worker.worker_id), self._reading(worker, rule))

    def next_at(self, worker: CheckedWorker) -> Optional[float]:
        """The time of the next read of the worker's file. Metrics are passed on in every round of the loop."""
        return self._next_file.get(worker.worker_id) if worker.link is not None else None

    def take(self, tag: Any, value: Any, workers: Mapping[str, CheckedWorker]) -> bool:
        """Process a helper's result. False if it does not belong to this module."""
        if not isinstance(tag, tuple) or tag[0] != TAG:
            return False
        worker = workers.get(tag[1])
        if worker is not None and isinstance(value, float):
            self._send(worker, value)
        return True

    def _send(self, worker: CheckedWorker, value: float) -> None:
        link = worker.link
        if link is None:
            return
        sent = self._sent.get(worker.worker_id)
        if sent is None or sent[0] is not link or value > sent[1]:
            self._sent[worker.worker_id] = (link, value)
            link.progress(value)

    def _reading(self, worker: CheckedWorker, rule: str) -> Callable[[], Optional[float]]:
        path = absolute(rule, worker.cwd, worker.home)
        other_user, stat_as_user, key = worker.other_user, self._stat_of(worker), worker.worker_id

        def read() -> Optional[float]:
            try:
                if other_user:
                    changed_ns = stat_as_user(path, FILE_TIMEOUT_S)[0]
                else:
                    changed_ns = self._bounded.call(key, lambda: os.stat(path).st_mtime_ns, FILE_TIMEOUT_S)
            except (OSError, HangsError, ValueError):
                return None  # does not exist yet, or is not accessible
            return float(changed_ns) / 1e9

        return read
