"""Event filters, shared by the API, the command line and the export. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from typing_extensions import NotRequired, TypedDict

from procguard.fleet.model.clock import iso
from procguard.json_types import Json, ReasonParams
from remote_agent.protocol.reasons import also_of

_TEXTS = ("worker_id", "host", "kind", "cause", "actor", "reason", "before", "after")


Evidence = Json  # facts from which an event was concluded; each kind of event has its own


class Event(TypedDict):
    """An entry of the history; fleet/shapes/events.py describes its fields. Events of older releases lack some."""

    seq: int
    at: str
    kind: str
    worker_id: str | None
    host: str | None
    before: str | None
    after: str | None
    reason: str
    reason_code: NotRequired[str]
    reason_params: NotRequired[ReasonParams]
    actor: str | None
    attempt: int | None
    cause: NotRequired[str | None]
    evidence: NotRequired[Evidence | str | None]


@dataclass(frozen=True)
class EventQuery:
    """A filter: all given fields must match; several values of one field are alternatives. Times are Unix seconds."""

    after: int = 0  # only events with a higher seq
    before: int = 0  # only events with a lower seq; 0: all
    worker: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    cause: tuple[str, ...] = ()
    actor: tuple[str, ...] = ()
    operation: tuple[str, ...] = ()
    reason_code: tuple[str, ...] = ()  # codes or prefixes: `exit` matches every code that begins with "exit."
    since: float | None = None
    until: float | None = None
    text: str = ""  # each word must occur somewhere in the event, ignoring case

    def matches(self, event: Event) -> bool:
        if event["seq"] <= self.after or (self.before and event["seq"] >= self.before):
            return False
        for field, wanted in (
            ("worker_id", self.worker),
            ("host", self.host),
            ("kind", self.kind),
            ("cause", self.cause),
            ("actor", self.actor),
        ):
            if wanted and event.get(field) not in wanted:
                return False
        if self.operation and operation_of(event) not in self.operation:
            return False
        if self.reason_code and not self._has_code(event):
            return False
        if self.since_text is not None and event["at"] < self.since_text:
            return False
        if self.until_text is not None and event["at"] > self.until_text:
            return False
        return not self.text or self._has_words(event)

    @functools.cached_property
    def since_text(self) -> str | None:
        """`since` in the text form of events, which sorts in the order of time."""
        return None if self.since is None else iso(self.since)

    @functools.cached_property
    def until_text(self) -> str | None:
        return None if self.until is None else iso(self.until)

    def _has_code(self, event: Event) -> bool:
        """Whether the event's reason, or a reason that follows it, has one of the codes."""
        params = event.get("reason_params")
        following = [one["code"] for one in also_of(params)] if isinstance(params, dict) else []
        codes = [f"{code}." for code in (event.get("reason_code"), *following) if code]
        return any(code.startswith(f"{wanted}.") for code in codes for wanted in self.reason_code)

    def _has_words(self, event: Event) -> bool:
        text = "\n".join(str(event.get(field) or "") for field in _TEXTS).lower()
        return all(word in text for word in self.words)

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.text.lower().split()))


def operation_of(event: Event) -> str | None:
    """The batch operation that an event belongs to."""
    evidence = event.get("evidence")
    return evidence.get("operation_id") if isinstance(evidence, dict) else None


def read_pages(
    query: EventQuery,
    limit: int,
    page_size: int,
    after: int | None,
    read: Callable[[int | None, int, bool], list[Event]],
) -> list[Event]:
    """At most `limit` matching events, oldest first: the newest ones, or with `after` the first ones after that seq.

    `read(boundary, count, newest)` returns one page: with `newest`, newest first before `boundary`; otherwise oldest
    first after it.
    """
    found: list[Event] = []
    newest = after is None
    boundary = (query.before or None) if newest else after
    while len(found) < limit:
        count = page_size if query.text or query.reason_code else min(page_size, limit - len(found))
        page = read(boundary, count, newest)
        found += [event for event in page if query.matches(event)]
        if len(page) < count:
            break
        boundary = page[-1]["seq"]
    del found[limit:]
    return found[::-1] if newest else found
