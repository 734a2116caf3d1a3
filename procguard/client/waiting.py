"""Waits for workers to reach a state, by polling. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from procguard.errors import NotFound
from remote_agent.protocol import states

if TYPE_CHECKING:
    from procguard.client.api import ManagerClient

STATES = (states.RUNNING, states.EXITED, states.STOPPED, states.FAILED)
POLL_INTERVAL_S = 0.5
# Where a worker stays until a person acts: no waiting helps.
SETTLED = {
    states.RUNNING: (states.FAILED, states.STOPPED, states.EXITED),
    states.EXITED: (states.FAILED, states.STOPPED),
    states.STOPPED: (states.FAILED, states.EXITED),
    states.FAILED: (states.STOPPED, states.EXITED),
}


@dataclass(frozen=True)
class WaitOutcome:
    """`missing`: the workers that are not there, with their states."""

    total: int
    missing: Mapping[str, str]


def wait(client: ManagerClient, selector: str, state: str, timeout_s: float) -> WaitOutcome:
    """Until all that match are in `state`, none of them can get there any more, or `timeout_s` is over.

    Raises NotFound where nothing matches. One that is to run and shows `stopped` is about to start.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        mine = client.workers(select=selector)
        if not mine:
            raise NotFound(f"no worker matches {selector}", "list them: procguard ps")
        missing = {str(view["worker_id"]): str(view["state"]) for view in mine if view["state"] != state}
        stuck = [
            view
            for view in mine
            if view["state"] in SETTLED[state]
            and not (view["state"] == states.STOPPED and view.get("desired") == "running")
        ]
        if not missing or len(stuck) == len(missing) or time.monotonic() >= deadline:
            return WaitOutcome(len(mine), missing)
        time.sleep(min(POLL_INTERVAL_S, max(deadline - time.monotonic(), 0.01)))
