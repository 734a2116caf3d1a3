"""Counters of one process of the swarm: requests, delays, commands. Plain numbers, sent as JSON and added up."""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from typing import Any

STEPS = 16  # buckets per doubling of the delay: the error of a quantile is at most 4.4 %
MAX_SAMPLES = 2_000_000


class Delays:
    """A histogram of seconds, from a microsecond up."""

    def __init__(self, buckets: dict[int, int] | None = None, worst: float = 0.0) -> None:
        self.buckets: Counter[int] = Counter(buckets or {})
        self.worst = worst

    def add(self, seconds: float) -> None:
        self.buckets[round(math.log2(max(seconds, 1e-6) * 1e6) * STEPS)] += 1
        self.worst = max(self.worst, seconds)

    def merge(self, other: Delays) -> None:
        self.buckets.update(other.buckets)
        self.worst = max(self.worst, other.worst)

    @property
    def count(self) -> int:
        return sum(self.buckets.values())

    def quantile(self, share: float) -> float:
        """A quantile in seconds; 0.0 if nothing was counted."""
        left = share * self.count
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 0:
                return min(self.worst, 2 ** (bucket / STEPS) / 1e6)
        return self.worst

    def as_json(self) -> dict[str, Any]:
        return {"buckets": {str(bucket): count for bucket, count in self.buckets.items()}, "worst": self.worst}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Delays:
        return cls({int(bucket): count for bucket, count in data["buckets"].items()}, data["worst"])


COUNTS = (
    "beats_sent",
    "beats_answered",
    "connects",
    "losses",
    "failures",
    "commands",
    "obeyed",
    "refused",
    "log_bytes",
)


class Tally:
    """`samples`: (when a heartbeat was sent, its reply's delay), monotonic seconds, in pairs."""

    def __init__(self) -> None:
        self.beats_sent = self.beats_answered = self.connects = self.losses = self.failures = 0
        self.commands = self.obeyed = self.refused = self.log_bytes = 0
        self.statuses: Counter[str] = Counter()  # statuses other than 200, and reasons for missing responses
        self.replies = Delays()  # of heartbeats
        self.delivery = Delays()  # from the acceptance of a command to its arrival at the agent
        self.obedience = Delays()  # … to its execution
        self.followed_at = 0.0  # when an agent was last answered by a new leader, monotonic
        self.samples: array[float] = array("d")
        self.connected_at: array[float] = array("d")

    def answered(self, what: str, sent: float, status: int) -> None:
        if status != 200:
            self.statuses[f"{what} {status}"] += 1
        elif what == "heartbeat":
            delay = time.monotonic() - sent
            self.beats_answered += 1
            self.replies.add(delay)
            if len(self.samples) < 2 * MAX_SAMPLES:
                self.samples.extend((sent, delay))

    def failed(self, what: str, why: object) -> None:
        self.failures += 1
        self.statuses[f"{what}: {why}"[:100]] += 1

    def connected(self) -> None:
        self.connects += 1
        if len(self.connected_at) < MAX_SAMPLES:
            self.connected_at.append(time.monotonic())

    def command_came(self, age_s: float) -> None:
        self.commands += 1
        self.delivery.add(age_s)

    def command_ended(self, status: str, age_s: float) -> None:
        if status == "done":
            self.obeyed += 1
            self.obedience.add(age_s)
        else:
            self.refused += 1

    def as_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in COUNTS},
            "followed_at": self.followed_at,
            "statuses": dict(self.statuses),
            "replies": self.replies.as_json(),
            "delivery": self.delivery.as_json(),
            "obedience": self.obedience.as_json(),
        }


class Summary:
    """The tallies of all processes together."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.replies, self.delivery, self.obedience = Delays(), Delays(), Delays()
        self.cpu_s = 0.0
        self.linked = 0  # agents whose newest heartbeat was answered
        self.bytes_sent = self.bytes_received = 0  # HTTP requests of the agents
        self.worst_lag_s = 0.0  # of the swarm itself
        self.terms: Counter[int] = Counter()  # agents by the term of the newest leader that has answered them
        self.followed_at = 0.0  # when the last of them was first answered by a new leader, monotonic
        self.states: Counter[str] = Counter()  # of agents: on, off, silent
        self.workers: Counter[str] = Counter()  # by state

    def add(self, data: dict[str, Any]) -> None:
        self.counts.update({name: data[name] for name in COUNTS})
        self.statuses.update(data["statuses"])
        for name in ("replies", "delivery", "obedience"):
            getattr(self, name).merge(Delays.from_json(data[name]))
        for name in ("cpu_s", "linked", "bytes_sent", "bytes_received"):
            setattr(self, name, getattr(self, name) + data[name])
        self.worst_lag_s = max(self.worst_lag_s, data["worst_lag_s"])
        self.terms.update({int(term): count for term, count in data["terms"].items()})
        self.followed_at = max(self.followed_at, data["followed_at"])
        self.states.update(data["states"])
        self.workers.update(data["workers"])

    def __getattr__(self, name: str) -> int:
        if name in COUNTS:
            return self.counts[name]
        raise AttributeError(name)

    @property
    def cpu_per_beat_s(self) -> float:
        return self.cpu_s / self.beats_answered if self.beats_answered else 0.0
