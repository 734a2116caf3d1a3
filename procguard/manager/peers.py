"""The leader's view of the other managers: their status, whether each could take over, and the handover.

Owns the texts of `procguard managers`. seat.py decides which one leads.
"""

from __future__ import annotations

import time
from typing import Any

import gevent.event

from procguard.errors import Conflict, NotFound
from procguard.fleet.model.clock import iso
from procguard.fleet.store import leader_row
from procguard.fleet.store.leader_row import OtherManager, Replication
from procguard.fleet.store.postgresql import PostgresqlStore
from procguard.manager.seat import BEAT_S, TAKEOVER_S, Seat
from procguard.portal.api.several import Managers, OneManager, SshChecks

AWAY_S = 3 * BEAT_S  # a manager not seen for this time is absent
SETTLED_S = 5.0  # minimum time as leader before a handover
CUT_OFF_BELOW = 0.1  # below this share of connected agents, a leader may be cut off from them
CLOCK_OFF_S = 5.0  # clock difference between managers above which a warning is shown


class ManagerPeers:
    """The leader's view of the other managers. `listener`: the socket of its time as a standby, None if it led from
    the start. Implements portal.api.resource.ManagersService."""

    def __init__(self, seat: Seat, store: PostgresqlStore, listener: Any = None) -> None:
        self.seat = seat
        self.store = store
        self.listener = listener
        self.handed_over = gevent.event.Event()
        self.successor = ""
        self._settled_at = time.monotonic() + SETTLED_S
        seat.acknowledged = lambda: store.acknowledged
        seat.on_beat = store.compare

    def view(self) -> Managers:
        seat, row = self.seat, self.seat.row
        found = [self._view_of(one) for one in seat.others]
        replication, warnings = "", list[str]()
        try:
            replication, warnings = in_words(seat.ask(leader_row.replication))
        except OSError as exc:
            warnings = [f"the database does not answer: {exc.strerror}"]
        return Managers(
            leader=seat.leader,
            term=seat.term,
            since=iso(row.since.timestamp()) or "" if row is not None and row.holder == seat.name else "",
            database=str(seat.place),
            replication=replication,
            warnings=[*warnings, *self._clock_warnings(), *_ssh_warnings(found), *_alone(found)],
            managers=found,
        )

    def _view_of(self, one: OtherManager) -> OneManager:
        leads = one.name == self.seat.leader
        behind = 0 if leads else max(0, self.store.acknowledged - int(one.about.get("commits", 0)))
        ssh = one.about.get("ssh")
        return OneManager(
            name=one.name,
            role="leader" if leads else "standby" if one.seen_s < AWAY_S else "away",
            urls=list(one.urls),
            version=str(one.about.get("version", "")),
            seen_s=round(one.seen_s, 1),
            behind=behind,
            clock_s=round(float(one.about.get("wall", one.seen_wall)) - one.seen_wall, 2),
            ssh=SshChecks(**ssh) if ssh else None,
        )

    def _clock_warnings(self) -> list[str]:
        off = {one.name: float(one.about.get("wall", one.seen_wall)) - one.seen_wall for one in self.seat.others}
        return [
            f"the clock of {name} is {abs(by):.0f} s {'ahead of' if by > 0 else 'behind'} the database's: set it (NTP)"
            for name, by in off.items()
            if abs(by) > CLOCK_OFF_S
        ]

    def better_connected(self, connected: int, agents: int) -> str:
        """The standby that most agents connect to, if this leader is cut off from them; otherwise "".

        `connected`: number of agents with a recent heartbeat to this leader; `agents`: number with any since it leads.
        Requests to a standby are not authenticated, so they count only if nearly all agents are silent here.
        """
        if time.monotonic() < self._settled_at or not agents or connected > CUT_OFF_BELOW * agents:
            return ""
        standbys = [one for one in self.seat.others if one.name != self.seat.name and one.seen_s < AWAY_S]
        asked = {one.name: int(one.about.get("asked", 0)) for one in standbys}
        name = max(asked, key=asked.__getitem__, default="")
        return name if name and asked[name] > connected else ""

    def promote(self, name: str) -> None:
        known = {one.name: one for one in self.seat.others}
        if name not in known:
            raise NotFound(f"no manager {name!r}", f"there are: {', '.join(sorted(known))}", code="unknown_manager")
        if name == self.seat.name:
            raise Conflict(f"{name} is already the leader", "nothing to do", code="leads_already")
        if known[name].seen_s > TAKEOVER_S:
            raise Conflict(
                f"{name} was last seen {known[name].seen_s:.0f} s ago", "start it first, or name another", code="away"
            )
        self.successor = name
        self.handed_over.set()


def in_words(found: Replication) -> tuple[str, list[str]]:
    """Returns (replication status, risk for commits at a failover of the database)."""
    if found.commit in ("off", "local"):
        return "commits do not wait for a replica", [
            f"synchronous_commit is {found.commit}: a failover of the database may lose acknowledged changes"
        ]
    if found.synchronous_names:
        said = f"synchronous ({found.synchronous_names}), {found.replicas} connected"
        if not found.replicas:
            return said, ["no replica is connected: changes wait until one is"]
        return said, []
    if not found.replicas:
        return "no replica", ["the database has no replica: if its machine is lost, so is the fleet's state"]
    return f"asynchronous, {found.replicas} connected", [
        "the replicas of the database are asynchronous: a failover may lose the last acknowledged changes; "
        "set synchronous_standby_names"
    ]


def _ssh_warnings(found: list[OneManager]) -> list[str]:
    return [
        f"{one.name}: recovery over SSH does not work to {one.ssh.failed} hosts "
        f"({'; '.join(f'{host}: {reason}' for host, reason in list(one.ssh.reasons.items())[:2])})"
        for one in found
        if one.role != "away" and one.ssh and one.ssh.failed
    ]


def _alone(found: list[OneManager]) -> list[str]:
    if any(one.role == "standby" for one in found):
        return []
    return ["no standby: if this manager is lost, no other takes over"]
