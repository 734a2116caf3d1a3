"""Leader election: which of several managers leads, and for how long it may assume so.

The leader increments `beat` in its database row every second and considers itself the leader until 2.5 s after it
*sent* the last successful update, by CLOCK_BOOTTIME, so that the time of a suspended machine counts. A standby that has
seen (term, beat) unchanged for 3 s by its own monotonic clock takes the row by compare-and-swap. Clocks of different
machines are never compared.

    standby --(beat unchanged for 3 s, or handed over)--> leader --(term has ended)--> fenced: the process ends
                                                            |
                                                            +--(handed over: stop, promote)--> standby, or the end

This time limit applies only to what the process sends. The database prevents changes by an earlier leader
(fleet/store/postgresql.py). Owns the row and this manager's entry; knows neither the fleet nor HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gevent
import gevent.event
from gevent import monkey

from procguard import __version__
from procguard.fleet.store import leader_row, postgres_schema
from procguard.fleet.store.leader_row import LeaderRow, OtherManager, Taken
from procguard.fleet.store.postgres_link import LOAD_TIMEOUT_S, Connection, DatabaseLink, DatabasePlace
from procguard.fleet.store.postgresql import WarmCopy

BEAT_S = 1.0
BEAT_AGAIN_S = 0.2  # delay after a failed beat
BEAT_TIMEOUT_S = 1.5
LOOP_S = 0.1
LOOP_HANGS_S = 10.0  # a leader whose event loop hangs for this time stops its beats
TRUST_S = 2.5
TAKEOVER_S = 3.0
LOOK_S = 0.1  # interval at which a standby reads the leader's row
FOLLOW_S = 0.5  # minimum interval of reading changes
REGISTER_S = 1.0
POLL_LATE_S = 1.0  # a poll that took longer gives no information about the time before
MAX_URLS = 16  # limit on the URLs in a reply
MAX_URLS_EACH = 4

log = logging.getLogger(__name__)
_sleep = monkey.get_original("time", "sleep")  # blocks the native thread, not only a greenlet


def boottime() -> float:
    """Seconds since boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Seat:
    """This manager's state in the election. `urls`: its own; `about`: what it publishes to the others. Implements
    fleet.leadership.Leadership."""

    def __init__(
        self,
        place: DatabasePlace,
        name: str,
        grace_s: float = 0.0,
        *,
        urls: Callable[[], Sequence[str]] = list,
        about: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        self.name = name
        self.place = place
        self.process = secrets.token_hex(8)
        self.urls, self.about = urls, about
        self.own_grace_s = grace_s
        self.others: list[OtherManager] = []  # all registered managers, including this one
        self.row: LeaderRow | None = None  # the row as it was last read
        self.unreachable = ""  # why the database did not answer the last call
        self.ended = False  # the term according to the database
        self.fenced = gevent.event.Event()  # the same, as an event for waiting greenlets
        self._loop_at = float("inf")  # monotonic time at which the event loop last ran
        self.on_beat: Callable[[int, int], object] = lambda _commits, _before: None
        self.acknowledged: Callable[[], int] = lambda: 0
        self.warm = WarmCopy()
        self._link = DatabaseLink(place, "seat")
        self._taken: Taken | None = None
        self._beat_sent = float("-inf")  # boottime
        self._led_since = 0.0  # boottime
        # (term, beat) and the time since when it is unchanged
        self._unchanged: tuple[tuple[int, int], float] | None = None
        self._looked_at = 0.0
        self._followed = self._registered = float("-inf")
        self._free_since: float | None = None
        self._twin = ""
        self._edition = 0  # the number of the current version of `others`
        self._urls: tuple[tuple[str, int], list[str]] = (("", -1), [])
        self.released = False

    # ------------------------------------------------------------------------------------------ Leadership

    @property
    def term(self) -> int:
        return self._taken.term if self._taken is not None else self.row.term if self.row is not None else 0

    @property
    def grace_s(self) -> float:
        return self._taken.carried_s if self._taken is not None else 0.0

    def may_direct(self) -> bool:
        return boottime() < self._beat_sent + TRUST_S and not self.ended

    def may_renew(self) -> bool:
        return boottime() < self._beat_sent + max(TRUST_S, self.own_grace_s) and not self.ended

    def manager_urls(self) -> list[str]:
        """Called for each reply to an agent; rebuilt only for another leader or another list of managers."""
        made_of = (self.leader, self._edition)
        if self._urls[0] != made_of:
            self._urls = (made_of, self._joined_urls())
        return self._urls[1]

    def _joined_urls(self) -> list[str]:
        leader = self.leader
        ordered = sorted(self.others, key=lambda one: (one.name != leader, one.seen_s > TAKEOVER_S, one.name))
        return list(dict.fromkeys(url for one in ordered for url in one.urls[:MAX_URLS_EACH]))[:MAX_URLS]

    @property
    def leader(self) -> str:
        """The leader's name; "" if no manager leads."""
        if self._taken is not None:
            return self.name
        return self.row.holder if self.row is not None else ""

    @property
    def taken(self) -> Taken | None:
        return self._taken

    # ------------------------------------------------------------------------------------------ standing by

    def prepare(self) -> None:
        """Connect to the database and create missing tables. Raises OSError, ProcGuardError."""
        self._link.call(postgres_schema.migrate, LOAD_TIMEOUT_S)

    def poll(self) -> bool:
        """One poll by a standby, which also updates `warm`. Returns True once this manager leads. Database errors set
        `unreachable` and are not raised."""
        began = time.monotonic()
        try:
            self.row = row = self._link.call(leader_row.read)
            if began >= self._registered + REGISTER_S:
                self._registered = began
                self._link.call(self._register)
            if row.commits != self.warm.upto and began >= self._followed + FOLLOW_S:
                self._followed = began
                self._link.transaction(self.warm.follow, LOAD_TIMEOUT_S)
            due = self._is_due(row, began)
            won = due and self._take(row)
        except OSError as exc:
            if not self.unreachable:
                log.warning("the database does not answer place=%s problem=%s", self.place, exc.strerror)
            self.unreachable = exc.strerror or str(exc)
            self._unchanged = self._free_since = None  # the leader may have been without the database, too
            return False
        if self.unreachable:
            log.info("the database answers again place=%s", self.place)
        self.unreachable = ""
        return won

    def wait_s(self) -> float:
        """Seconds until the next `poll`."""
        if self._unchanged is None:
            return LOOK_S
        return min(LOOK_S, max(0.005, self._unchanged[1] + TAKEOVER_S - time.monotonic()))

    def _is_due(self, row: LeaderRow, began: float) -> bool:
        """Whether to take over. `began`: when the poll that read `row` began."""
        now, beat = time.monotonic(), (row.term, row.beat)
        if now - began > POLL_LATE_S or self._unchanged is None or self._unchanged[0] != beat:
            self._unchanged = (beat, now)
        if not row.holder:  # the last leader has released the row
            self._free_since = now if self._free_since is None else self._free_since
            return row.successor in ("", self.name) or now - self._free_since >= TAKEOVER_S
        self._free_since = None
        return began - self._unchanged[1] >= TAKEOVER_S

    def _take(self, row: LeaderRow) -> bool:
        sent = boottime()
        taken = self._link.transaction(lambda it: leader_row.take(it, self.name, self.own_grace_s, row))
        if taken is None:
            self._unchanged = None
            return False
        self._taken, self._beat_sent, self._led_since = taken, sent, sent
        self.row = self._link.call(leader_row.read)
        log.info("leads term=%d after=%s", taken.term, row.holder or "one that handed over")
        return True

    def _register(self, connection: Connection) -> None:
        about = {"version": __version__, "wall": time.time(), "commits": self.warm.upto, **self.about()}
        twin = leader_row.register(connection, self.name, self.process, self.urls(), about)
        if twin and twin != self._twin:
            log.error(
                "two managers have the name %s: give each its own state.manager_name, else neither is told apart",
                self.name,
            )
        self._twin = twin
        self.others = leader_row.managers(connection)
        self._edition += 1

    # ------------------------------------------------------------------------------------------ leading

    def beat_forever(self) -> None:
        """Send beats until the term ends (`fenced`) or the greenlet is killed. A native thread sends them, so that a
        busy event loop does not delay them; they stop if the loop hangs."""
        with self._beating():
            while not self.ended:
                self._loop_at = time.monotonic()
                gevent.sleep(LOOP_S)
        self.fenced.set()

    @contextlib.contextmanager
    def beating_beside(self) -> Iterator[None]:
        """Send beats from a thread while the event loop is blocked for seconds, for example to read a large state."""
        self._loop_at = float("inf")
        with self._beating():
            yield

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        over: list[bool] = []

        def beat() -> None:
            next_at = 0.0
            while not over and not self.ended:
                now = time.monotonic()
                if now >= next_at and now - self._loop_at < LOOP_HANGS_S:
                    next_at = now + (BEAT_S if self.beat_once() else BEAT_AGAIN_S)
                _sleep(0.05)
            self._link.close()  # the thread uses a connection of its own

        beating = gevent.get_hub().threadpool.spawn(beat)
        try:
            yield
        finally:
            over.append(True)
            beating.get()

    def beat_once(self) -> bool:
        """Send one beat. Returns whether the database accepted it."""
        assert self._taken is not None
        sent, before = boottime(), self.acknowledged()
        try:
            commits = self._link.call(lambda it: leader_row.beat(it, self.term), BEAT_TIMEOUT_S)
            if commits is None:
                log.critical("fenced: term %d has ended, another manager leads", self.term)
                self.ended = True
                return True
            self._beat_sent = sent
            self.unreachable = ""
            self.on_beat(commits, before)
            self._link.call(self._register, BEAT_TIMEOUT_S)
        except OSError as exc:
            if not self.unreachable:
                log.error("the database does not answer place=%s problem=%s", self.place, exc.strerror)
            self.unreachable = exc.strerror or str(exc)
            return False
        return True

    def release(self, successor: str = "") -> None:
        """End this term in an orderly way, after everything is durable and requests are no longer answered."""
        if self._taken is None or self.ended or self.released:
            return
        self.released = True
        self._beat_sent = float("-inf")
        try:
            led_s = boottime() - self._led_since
            self._link.call(lambda it: leader_row.release(it, self.term, successor, led_s))
        except OSError as exc:
            log.warning("could not hand over, another manager leads in %.0f s: %s", TAKEOVER_S, exc.strerror)

    def close(self, *, leave: bool = True) -> None:
        """`leave`: remove this manager from the list."""
        if leave:
            try:
                self._link.call(lambda it: leader_row.leave(it, self.name, self.process), BEAT_TIMEOUT_S)
            except OSError:
                log.info("the database does not answer; this manager stays listed for a day")
        self._link.close()

    def ask(self, task: Callable[[Connection], Any]) -> Any:
        """Run a query on a separate connection, so that beats are not delayed. Raises OSError."""
        link = DatabaseLink(self.place, "report")
        try:
            return link.call(task)
        finally:
            link.close()
