"""Helper threads for slow work: health checks and measurements. Started on demand.

Owns the threads; knows nothing of their work. The main loop submits jobs, results come back through `deliver`.
"""

from __future__ import annotations

import queue
import threading

from remote_agent.protocol.hints import Any, Callable, Optional

MAX_THREADS = 4
MAX_WAITING = 1000


class HelperPool:
    """`submit(tag, job)`: `job()` runs on a helper thread; `deliver(tag, result)` is called there with its result."""

    def __init__(self, deliver: Callable[[Any, Any], None], max_threads: int = MAX_THREADS) -> None:
        self._deliver = deliver
        self._max_threads = max_threads
        self._threads = 0
        self._open = 0  # submitted and not yet delivered; under the lock
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Optional[tuple[Any, Callable[[], Any]]]] = queue.SimpleQueue()

    def submit(self, tag: Any, job: Callable[[], Any]) -> bool:
        """Queue a task. Returns False if the queue is full and the task is dropped."""
        with self._lock:
            if self._open >= MAX_WAITING:
                return False
            self._open += 1
            start = self._open > self._threads and self._threads < self._max_threads
            if start:
                self._threads += 1
        if start:
            threading.Thread(target=self._run, name="procguard-helper", daemon=True).start()
        self._jobs.put((tag, job))
        return True

    def end(self) -> None:
        for _ in range(self._threads):
            self._jobs.put(None)

    def _run(self) -> None:
        while True:
            item = self._jobs.get()
            if item is None:
                return
            tag, job = item
            try:
                result = job()
            except Exception as exc:  # a failed measurement must not cost a thread
                result = exc
            with self._lock:
                self._open -= 1
            self._deliver(tag, result)
