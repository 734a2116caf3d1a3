"""The phases of a TaskRunner and the table of allowed transitions. A phase says which of the worker's processes exist.

      ┌──── SWEEPING (processes of a previous runner are being ended)
      │         │
     NEW ───────┤                      ┌──────── BACKOFF (a delay, or a full disk)
                ▼                      ▼   ▲
      ┌───► DECIDING (no process is alive) ───► SETTLED (this runner starts no further process)
      │         │ start
      │         ├──────► PREPARING (a pre_start hook) ──┐
      │         └──────► STARTING ◄─────────────────────┘
      │                     │ start_secs
      │                  RUNNING
      │                     │ from these three: it ended, is asked to end, or fails
      ├── POST_STOP ◄───────┤
      │    ▲  │ overdue     ▼
      │    │  └─────────► ENDING (its process tree gets the stop signal, then SIGKILL)
      └────┴────────────────┘

The reported state (protocol/states.py) follows from the decision, not from the phase: a worker that is terminated
because it is unhealthy remains "running" until it has ended. Plain strings, as there.
"""

from __future__ import annotations

NEW = "new"
SWEEPING = "sweeping"
DECIDING = "deciding"
PREPARING = "preparing"
STARTING = "starting"
RUNNING = "running"
ENDING = "ending"
POST_STOP = "post_stop"
BACKOFF = "backoff"
SETTLED = "settled"

WITH_ATTEMPT = (PREPARING, STARTING, RUNNING)  # a process of an attempt runs, and nothing ends it

# from -> to. Any other change is a bug: `check` raises. Each has a test named after it (tests/unit/remote_agent/runner/
# task/test_phases.py).
TRANSITIONS: dict[str, tuple[str, ...]] = {
    NEW: (SWEEPING, DECIDING),
    SWEEPING: (POST_STOP, DECIDING),
    DECIDING: (PREPARING, STARTING, BACKOFF, SETTLED),
    PREPARING: (STARTING, ENDING, POST_STOP, DECIDING),
    STARTING: (RUNNING, ENDING, POST_STOP, DECIDING),
    RUNNING: (ENDING, POST_STOP, DECIDING),
    ENDING: (POST_STOP, DECIDING),
    POST_STOP: (ENDING, DECIDING),
    BACKOFF: (DECIDING,),
    SETTLED: (),
}


class ForbiddenPhase(AssertionError):
    """A change of phase that the table does not allow: a bug in ProcGuard, never a user's mistake."""


def check(before: str, after: str) -> None:
    """Raise ForbiddenPhase unless `before` may become `after`."""
    if after not in TRANSITIONS[before]:
        raise ForbiddenPhase(f"{before} -> {after}")
