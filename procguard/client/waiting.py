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
# For each state, those from which a worker does not reach it without intervention.
SETTLED = {
    states.RUNNING: (states.FAILED, states.STOPPED, states.EXITED),
    states.EXITED: (states.FAILED, states.STOPPED),
    states.STOPPED: (states.FAILED, states.EXITED),
    states.FAILED: (states.STOPPED, states.EXITED),
}


@dataclass(frozen=True)
class WaitOutcome:
    """`total`: number of matching workers. `missing`: those that are not in the requested state, with their states."""

    total: int
    missing: Mapping[str, str]


def wait(client: ManagerClient, selector: str, state: str, timeout_s: float) -> WaitOutcome:
    """Poll until all matching workers are in `state`, none of the others can reach it any more, or `timeout_s` has
    passed.

    Raises NotFound if no worker matches. A worker that is `stopped` although its desired state is running is about to
    start.
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
