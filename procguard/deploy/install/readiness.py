"""Readiness of deployed workers: waits for started workers, and fails hosts whose workers did not come up.

Owns the worker states in a host's result; client/coming_up.py has the criteria and limits.
"""

from __future__ import annotations

from procguard.client.api import ManagerClient
from procguard.client.coming_up import WaitLimit, Watcher, is_bad
from procguard.client.types import WorkerInfo
from procguard.deploy.install.rollout import HostResult
from procguard.errors import HostError

NOT_UP = "worker_not_up"
MAX_NAMED = 5
FRESH_VIEW_S = 1.0  # a view of at most this age is reused if nothing was started
DECLARED = ("new", "changed", "unchanged", "moved")


class WorkerReadiness:
    def __init__(self, client: ManagerClient, limit: WaitLimit) -> None:
        self._watcher = Watcher(client, limit)

    def views(self) -> dict[str, WorkerInfo]:
        return self._watcher.views()

    def settle(self, results: list[HostResult]) -> None:
        """Wait for the workers that these hosts started, then record the states of all their workers."""
        started = {name: one for result in results for name, one in result.started.items()}
        self._note(results, self._watcher.wait(started, [result.host for result in results]))
        for result in results:
            result.started = {}

    def check(self, results: list[HostResult]) -> None:
        """Record the states of these hosts' workers without waiting."""
        self._note(results, self._watcher.views(FRESH_VIEW_S))

    def _note(self, results: list[HostResult], views: dict[str, WorkerInfo]) -> None:
        bad: dict[str, WorkerInfo] = {}
        for result in results:
            for worker_id, one in result.workers.items():
                view = views.get(worker_id)
                if view is not None and one["result"] in DECLARED:
                    one["state"] = view["state"]
                    if is_bad(view):
                        bad[worker_id] = view
        complaints = self._watcher.complaints(bad.values())
        for result in results:
            mine = {name: complaints[name] for name in result.workers if name in complaints}
            for worker_id, text in mine.items():
                result.workers[worker_id]["trouble"] = text
            if mine and result.error is None:
                result.status, result.error = "failed", _error(result.host, mine)


def _error(host: str, complaints: dict[str, str]) -> HostError:
    first = next(iter(complaints))
    named = f"worker {first} is {complaints[first]}"
    others = ", ".join(list(complaints)[1 : MAX_NAMED + 1])
    more = f"; neither are up: {others}" + (" and more" if len(complaints) > MAX_NAMED + 1 else "") if others else ""
    next_step = f"correct it and deploy again, or start it: invoke start {first}; its log: invoke logs {first}"
    return HostError(f"{host}: {named}{more}", next_step, code=NOT_UP)
