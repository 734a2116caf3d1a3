"""The agent's session with its manager: heartbeats, the long poll, retries, and their timing.

Owns the two calling threads and the timing. Knows no worker: the agent builds the heartbeat and processes the
replies. Driven by the agent's main loop, which calls `tick` and `outcome`; nothing here blocks.
"""

from __future__ import annotations

from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.protocol.messages import AgentReply, WireError, decode
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.caller import Caller, heartbeat, poll
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.negotiation import Channels
from remote_agent.transport.outcomes import LAST_RETRY_S, LinkDown, NotLeader, Outcome, Reply, Unknown, retry_delay_s

SHORTEST_INTERVAL_S = 0.2
COALESCE_S = 0.02  # changes within this time are sent in one heartbeat
STANDBY_RETRY_S = 2.0
QUICK_POLL_S, QUICK_POLLS, SLOW_POLL_S = 0.05, 20, 0.5


class Registrar:
    """Registration, which a launcher needs before heartbeats. The base class, for deployed agents, does nothing."""

    def needed(self) -> bool:
        return False

    def request(self) -> Callable[[Connection], Reply]:
        raise NotImplementedError

    def outcome(self, outcome: Outcome) -> float:
        """Handle the response (a Reply or a LinkDown). Returns seconds until the next attempt; 0.0 = registered."""
        raise NotImplementedError

    def lost(self, why: str) -> None:
        """The manager no longer knows or accepts this agent."""


class ManagerSession:
    """`build()` creates the heartbeat; `take(reply, asked_ns)` handles the reply to a request sent at `asked_ns`; both
    on the main loop. A reply may be arbitrarily old if this process was frozen."""

    def __init__(
        self,
        credentials: AgentCredentials,
        addresses: Addresses,
        deliver: Callable[[str, Outcome], None],
        *,
        build: Callable[[], dict[str, Any]],
        take: Callable[[AgentReply, int], None],
        cursor: Callable[[], tuple[str, int]],
        link_changed: Callable[[str], None],
        registrar: Optional[Registrar] = None,
        make_caller: Optional[Callable[[str], Caller]] = None,
        channels: Optional[Channels] = None,
    ) -> None:
        """`make_caller(name)`: creates the caller that sends requests; by default a thread with its own connection."""
        make_caller = make_caller or (
            lambda name: Caller(name, addresses.interrupt(Connection(addresses, credentials, channels)), deliver)
        )
        self._credentials = credentials
        self._addresses = addresses
        self._build, self._take, self._cursor, self._link_changed = build, take, cursor, link_changed
        self._registrar = registrar or Registrar()
        self._beat = make_caller("heartbeat")
        self._poll = make_caller("poll")
        self._interval_s = 2.0
        self.longest_pause_s = float("inf")  # between two heartbeats, whatever interval the manager assigns
        self._next_beat = 0.0  # monotonic
        self._not_before = 0.0  # monotonic: a retry is never sent earlier, whatever changes meanwhile
        self._next_poll = 0.0
        self._beat_failures = 0
        self._poll_failures = 0
        self._quick_polls = 0
        self._poll_sent = 0.0
        self._welcome = False  # a heartbeat was answered; polls make sense
        self.beats_answered = 0

    @property
    def interval_s(self) -> float:
        return self._interval_s

    @property
    def up(self) -> bool:
        return self._welcome and self._beat_failures == 0

    @property
    def failing(self) -> bool:
        """Whether a request has failed since the last response."""
        return self._beat_failures > 0

    def start(self) -> None:
        self._beat.start()
        self._poll.start()

    def end(self) -> None:
        self._beat.end()
        self._poll.end()

    def changed(self, now: float) -> None:
        """Send the next heartbeat at once, because something has changed."""
        self._next_beat = min(self._next_beat, now + COALESCE_S)

    def next_at(self) -> float:
        """The latest time for the next call of `tick` (monotonic)."""
        times = []
        if not self._beat.busy:
            times.append(max(self._next_beat, self._not_before))
        if self._welcome and not self._poll.busy:
            times.append(self._next_poll)
        return min(times) if times else float("inf")

    def tick(self, now: float) -> None:
        if not self._beat.busy and now >= max(self._next_beat, self._not_before):
            if self._registrar.needed():
                self._beat.submit("register", self._registrar.request())
            else:
                self._beat.submit("heartbeat", heartbeat(self._credentials.agent_id, self._build()))
                self._next_beat = now + min(self._interval_s, max(self.longest_pause_s, SHORTEST_INTERVAL_S))
        if self._welcome and not self._poll.busy and now >= self._next_poll and not self._registrar.needed():
            rev, seq = self._cursor()
            self._poll.submit("poll", poll(self._credentials.agent_id, rev, seq))
            self._poll_sent = now

    def outcome(self, tag: str, outcome: Outcome, now: float) -> None:
        if tag == "poll":
            self._poll.busy = False
            self._poll_outcome(outcome, now)
        elif tag == "heartbeat":
            self._beat.busy = False
            self._beat_outcome(outcome, now)
        elif tag == "register":
            self._beat.busy = False
            again_s = self._registrar.outcome(outcome)
            self._beat_failures = self._beat_failures + 1 if isinstance(outcome, LinkDown) else 0
            self._not_before = now + again_s
            self._next_beat = now

    def _beat_outcome(self, outcome: Outcome, now: float) -> None:
        reply, trouble = _read(outcome)
        if isinstance(outcome, LinkDown) or reply is None:
            self._beat_failures += 1
            refused = _refused(outcome)
            replaced = self._addresses.read_again()
            if replaced:  # failures of the old addresses do not delay the retry
                self._beat_failures, refused = 1, False
                trouble += f"; the manager has other addresses now: {', '.join(replaced)}"
            if refused:
                self._welcome = False
                self._registrar.lost(trouble)
            self._not_before = now + self._retry_s(outcome, refused)
            self._next_beat = now
            self._link_changed(trouble)
            return
        self._beat_failures = 0
        self._not_before = 0.0
        if not self._welcome:
            self._welcome = True
            self._next_poll = now
        self._link_changed("")
        self.beats_answered += 1
        self._interval_s = min(60.0, max(SHORTEST_INTERVAL_S, reply.interval_s))
        self._take(reply, outcome.asked_ns)

    def _retry_s(self, outcome: Outcome, refused: bool) -> float:
        """Seconds until the next attempt. With several managers, another one leads within seconds: no agent waits much
        longer than that, nor than a heartbeat's interval, which grows with the fleet, because 10,000 agents must not
        ask faster than a manager can respond."""
        most_s = LAST_RETRY_S
        if isinstance(outcome, NotLeader):
            most_s = STANDBY_RETRY_S
        elif self._addresses.term:
            most_s = min(LAST_RETRY_S, max(STANDBY_RETRY_S, self._interval_s))
        delay_s = retry_delay_s(self._beat_failures, refused, most_s=most_s)
        if isinstance(outcome, NotLeader) and outcome.retry_s:
            delay_s = outcome.retry_s / 2.0 + min(delay_s, outcome.retry_s / 2.0)
        return delay_s

    def _poll_outcome(self, outcome: Outcome, now: float) -> None:
        elapsed_s = now - self._poll_sent
        reply, _ = _read(outcome)
        if isinstance(outcome, LinkDown) or reply is None:
            self._poll_failures += 1
            self._next_poll = now + retry_delay_s(self._poll_failures, _refused(outcome))
            if self._poll_failures == 1:
                self._next_beat = now  # the manager may be gone: the next heartbeat finds out and reports it
            return
        if self._poll_failures or self._beat_failures:
            self._not_before = 0.0  # the manager is back: the heartbeat need not wait for its own retry
        self._poll_failures = 0
        self._next_poll = now
        self._quick_polls = self._quick_polls + 1 if elapsed_s < QUICK_POLL_S else 0
        if self._quick_polls > QUICK_POLLS:  # replies without changes must not cause a busy loop
            self._next_poll = now + SLOW_POLL_S
        self._take(reply, outcome.asked_ns)


def _read(outcome: Outcome) -> tuple[Optional[AgentReply], str]:
    """(reply, ""), or (None, error message)."""
    if isinstance(outcome, LinkDown):
        return None, str(outcome)
    if not outcome.ok:
        return None, outcome.why
    try:
        return decode(AgentReply, outcome.data), ""
    except WireError as exc:
        return None, f"the manager's answer cannot be read: {exc}"


def _refused(outcome: Outcome) -> bool:
    """Whether the manager responded with a refusal of this agent."""
    return isinstance(outcome, Unknown) or (isinstance(outcome, Reply) and (outcome.refused or outcome.status == 404))
