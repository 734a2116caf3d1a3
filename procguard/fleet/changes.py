"""The bus that publishes changes of the fleet's state to subscribers.

Owns the list of signals. A transaction's changes are published only when they are durable, or when the disk has
refused them (they stay in memory). Knows no subscriber.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Generic, ParamSpec

from procguard.fleet.history.query import Event
from procguard.fleet.model.records import CommandRecord, TokenRecord

if TYPE_CHECKING:  # the signal's publishers call it
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
        self.workers = Signal[[str]]()  # worker id: the view has changed, or the worker was removed
        self.hosts = Signal[[str]]()  # agent id, or the item of a pending launcher
        self.operations = Signal[[str]]()
        self.topics = {"workers": self.workers, "hosts": self.hosts, "operations": self.operations}
        # The same ids, if a report differs from the previous one in measurements only.
        self.worker_measures = Signal[[str]]()
        self.host_measures = Signal[[str]]()
        self.measures = {"workers": self.worker_measures, "hosts": self.host_measures}
        self.events = Signal[[Event]]()
        self.commands = Signal[[CommandRecord]]()  # after each change of a command's status but the first
        self.news = Signal[[str]]()  # agent id: there is something to send on its long poll
        self.poll_lost = Signal[[str]]()  # the agent closed its long poll; a running agent opens another immediately
        self.revoked = Signal[[str]]()  # agent id: its pending requests must not be answered
        self.secret_taken = Signal[[str]]()  # agent id: the agent has stored a new secret
        self.secret_replaced = Signal[[str]]()  # agent id: its previous secret has expired
        self.token_ended = Signal[[TokenRecord]]()  # revoked token: its sessions and feeds end
        self.unseen: set[str] = set()  # topics whose measurements have no subscribers; cleared by the next subscriber
        self.awaited_workers: Container[str] = ()  # each of their reports is a change
