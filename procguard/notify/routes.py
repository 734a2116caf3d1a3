"""Applies the routes of `notify:` and mutes: additional targets of an event, or none at all. Pure.

A route is a selector, targets and classes of alerts; a mute is a selector and a time. The selectors are matched against
the worker or the host of an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from procguard.config.notifications import NotifyRoute
from procguard.errors import ConfigError, UsageError
from procguard.fleet.history.query import Event
from procguard.fleet.state import FleetState
from procguard.fleet.workers import selectors
from procguard.notify import alerts


def facts_of(state: FleetState, event: Event) -> selectors.Facts:
    """The facts of an event that selectors match: its worker as declared, with the state after the event; for an event
    of a host only its name."""
    return facts_about(state, event.get("worker_id") or "", event.get("host") or "", event.get("after") or "")


def facts_about(state: FleetState, worker_id: str, host: str, after: str = "") -> selectors.Facts:
    """As `facts_of`, of a worker or, without an id, a host. `after`: "" for the worker's current state."""
    worker = state.workers_by_id.get(worker_id)
    if worker is None:
        return {"host": host, "state": after, "worker_id": worker_id}
    return {
        "worker_id": worker.worker_id,
        "host": worker.host,
        "agent": worker.agent_id,
        "group": worker.spec.group,
        "labels": worker.spec.labels,
        "desired": worker.desired,
        "state": after or worker.last_state,
    }


class Routes:
    def __init__(self, routes: Sequence[NotifyRoute]) -> None:
        """Raises ConfigError for a selector that cannot be read."""
        self._routes = []
        self.notified_of_ends = {name for route in routes if alerts.FINISHED[0] in route.on for name in route.to}
        for number, route in enumerate(routes, 1):
            try:
                self._routes.append((selectors.parse(route.select), frozenset(route.to), route.on))
            except UsageError as exc:
                raise ConfigError(f"notify, entry {number}: select: {exc.message}", exc.next_step) from exc

    def targets(self, event: Event, facts: Mapping[str, Any]) -> frozenset[str]:
        """The names of the targets that receive the event by a route."""
        found: frozenset[str] = frozenset()
        for selector, names, classes in self._routes:
            if not names <= found and alerts.among(classes, event) and selector.matches(facts):
                found |= names
        return found
