"""The bus that publishes changes of the fleet's state to subscribers.

Owns the list of signals. A transaction's changes are published only when they are durable, or when the disk has
refused them (they stay in memory). Knows no subscriber.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, Generic, ParamSpec

from procguard.fleet.model.records import CommandRecord, TokenRecord

if TYPE_CHECKING:  # it publishes here
    pass

P = ParamSpec("P")


class Signal(Generic[P]):
    """A signal. Calling it calls all subscribers in the order of their subscription."""

    __slots__ = ("_subscribers",)

    def __init__(self) -> None:
        self._subscribers: list[Callable[P, object]] = []

    def subscribe(self, subscriber: Callable[P, object]) -> None:
        self._subscribers.append(subscriber)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        for subscriber in self._subscribers:
            subscriber(*args, **kwargs)


class ChangeBus:
    """The signals of the fleet; the comment beside each names its argument."""

    def __init__(self) -> None:
        self.workers = Signal[[str]]()  # a worker's id: its view has changed, or it is gone
        self.hosts = Signal[[str]]()  # an agent's id, or a waiting launcher's item
        self.operations = Signal[[str]]()
        self.topics = {"workers": self.workers, "hosts": self.hosts, "operations": self.operations}
        # The same ids, where an agent's report differs from the one before in measurements alone.
        self.worker_measures = Signal[[str]]()
        self.host_measures = Signal[[str]]()
        self.measures = {"workers": self.worker_measures, "hosts": self.host_measures}
        self.events = Signal[[dict[str, Any]]]()
        self.commands = Signal[[CommandRecord]]()  # after each step of a command's life but its first
        self.news = Signal[[str]]()  # an agent's id: its held request has something to answer
        self.poll_lost = Signal[[str]]()  # an agent's side closed its held request; a living one opens another at once
        self.revoked = Signal[[str]]()  # an agent's id: nothing that it has asked may be answered any more
        self.secret_taken = Signal[[str]]()  # an agent's id: it has stored a new secret
        self.secret_replaced = Signal[[str]]()  # an agent's id: the secret before its new one has ended
        self.token_ended = Signal[[TokenRecord]]()  # revoked; what was opened with it ends now
        self.unseen: set[str] = set()  # topics whose measurements nobody sees; who looks again empties it
        self.awaited_workers: Container[str] = ()  # each of their reports is a change
