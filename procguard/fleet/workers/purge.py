"""Removes lost workers from the fleet in bulk: first a preview, then a confirmation with its token.

Removes workers that are undeclared and have ended, and workers of hosts without a heartbeat for `silent_s`. Owns the
previews; the fleet refuses workers that may still be running, one by one, without affecting the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from typing_extensions import TypedDict

from procguard.errors import Conflict, NotFound, ProcGuardError
from procguard.fleet.fleet import Fleet
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import WorkerRecord
from procguard.fleet.operations.confirmations import LASTS_S, Previews
from procguard.fleet.transaction import Transaction
from remote_agent.protocol import states

NAMED = 100  # of the shown and of the refused workers
AT_ONCE = 100  # per commit; other greenlets run in between


@dataclass(frozen=True)
class PurgeNumbers:
    silent_s: float
    worker_ids: tuple[str, ...]


class PurgePreview(TypedDict):
    """`workers`: ids of the first hundred of `count` workers. `token`: null if there is nothing to purge."""

    token: str | None
    expires_in_s: float
    count: int
    workers: list[str]


class PurgeRefusal(TypedDict):
    worker_id: str
    message: str
    next: str


class Purged(TypedDict):
    """`taken_out`, `refused`: numbers of workers. `refusals`: the first hundred refused ones."""

    taken_out: int
    refused: int
    refusals: list[PurgeRefusal]


class Purge:
    def __init__(self, fleet: Fleet, pause: Callable[[], None], began: Now) -> None:
        """`pause()`: yields to other greenlets. `began`: when the manager started; earlier silence of hosts is
        unknown."""
        self._fleet = fleet
        self._pause = pause
        self._began = began
        self._previews = Previews[PurgeNumbers]("g-", "review the list again")

    def preview(self, silent_s: float, actor: str, now: Now, owner: str = "") -> PurgePreview:
        """List the workers that are gone. The confirmation token is bound to this actor and these workers and expires
        after five minutes."""
        found = sorted(
            worker_id
            for number, (worker_id, worker) in enumerate(list(self._fleet.state.workers_by_id.items()), 1)
            if self._rest(number) and self._is_gone(worker, silent_s, now)
        )
        token = self._previews.issue(PurgeNumbers(silent_s, tuple(found)), owner or actor, now) if found else ""
        return {"token": token or None, "expires_in_s": LASTS_S, "count": len(found), "workers": found[:NAMED]}

    def carry_out(self, token: str, actor: str, now: Now, owner: str = "") -> Purged:
        """Remove the workers of the preview that are still gone; durable. Raises Conflict for an invalid token."""
        preview = self._previews.find(token, owner or actor, now)
        self._previews.use_up(token)
        refused: list[PurgeRefusal] = []
        for begin in range(0, len(preview.worker_ids), AT_ONCE):
            with self._fleet.state.transaction(now, actor) as tx:
                for worker_id in preview.worker_ids[begin : begin + AT_ONCE]:
                    try:
                        self._take_out(tx, worker_id, preview.silent_s)
                    except ProcGuardError as exc:
                        refused.append({"worker_id": worker_id, "message": exc.message, "next": exc.next_step})
            self._pause()
        done = len(preview.worker_ids) - len(refused)
        return {"taken_out": done, "refused": len(refused), "refusals": refused[:NAMED]}

    def _take_out(self, tx: Transaction, worker_id: str, silent_s: float) -> None:
        worker = self._fleet.state.workers_by_id.get(worker_id)
        if worker is None:
            raise NotFound(f"{worker_id} has already been removed", "nothing to do")
        if not self._is_gone(worker, silent_s, tx.now):
            raise Conflict(f"{worker_id} is part of the fleet again", "keep it")
        self._fleet.workers.take_out(tx, worker_id)

    def _rest(self, number: int) -> bool:
        if number % AT_ONCE == 0:
            self._pause()
        return True

    def _is_gone(self, worker: WorkerRecord, silent_s: float, now: Now) -> bool:
        if self._fleet.state.workers_by_id.get(worker.worker_id) is not worker:
            return False  # removed during a pause
        state = self._fleet.state.facts(worker)["state"]
        if worker.undeclared and state in states.SETTLED:
            return True
        if state != states.UNKNOWN:
            return False
        observed = self._fleet.state.agent_status.get(worker.agent_id)
        last_seen = (
            observed.last_seen if observed is not None and observed.last_seen is not None else self._began.monotonic
        )
        return now.monotonic - last_seen >= silent_s
