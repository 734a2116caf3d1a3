"""The states of a worker and the one table of allowed transitions (drawn in docs/states.md).

              start            ready (start_secs)
   stopped ─────────► starting ─────────► running ──exit, policy says done──► exited
      ▲                  │ exits early        │ exit / unhealthy
      │                  ▼                    ▼
      ├──── stopping ◄─ stop ─── backoff ◄────┘   budget spent: failed
      └──────────────────────────  unknown = the agent is unreachable (reported by the manager only)

Depends on nothing, so that the runner stays small: plain strings, no enum machinery.
"""

from __future__ import annotations

STOPPED = "stopped"
STARTING = "starting"
RUNNING = "running"
STOPPING = "stopping"
BACKOFF = "backoff"
EXITED = "exited"
FAILED = "failed"
UNKNOWN = "unknown"  # never a runner's state: the manager shows it while the agent is unreachable

ALL = (STOPPED, STARTING, RUNNING, STOPPING, BACKOFF, EXITED, FAILED, UNKNOWN)
ALIVE = (STARTING, RUNNING, STOPPING)  # a child may exist
SETTLED = (STOPPED, EXITED, FAILED)  # no child exists, and none is started without a new request

# from -> to. Any other transition is a bug: `check` raises. A worker that cannot be started goes via starting to
# failed.
# Each has a test named after it (tests/unit/fleet/workers/test_transitions.py), from which the table in docs/states.md
# is drawn.
TRANSITIONS: dict[str, tuple[str, ...]] = {
    STOPPED: (STARTING,),
    STARTING: (STARTING, RUNNING, STOPPING, BACKOFF, EXITED, FAILED),
    RUNNING: (STARTING, STOPPING, BACKOFF, EXITED, FAILED),
    STOPPING: (STARTING, STOPPED),
    BACKOFF: (STARTING, STOPPED),
    EXITED: (STARTING,),
    FAILED: (STARTING,),
}


class ForbiddenTransition(AssertionError):
    """A state change that the table does not allow: a bug in ProcGuard, never a user's mistake."""


def check(before: str, after: str) -> None:
    """Raise ForbiddenTransition unless `before` may become `after`."""
    if after not in TRANSITIONS.get(before, ()):
        raise ForbiddenTransition(f"{before} -> {after}")
