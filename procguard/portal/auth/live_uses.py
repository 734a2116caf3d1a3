"""Registry of everything that a token or a browser session keeps open: WebSockets, followed logs, downloads, searches,
long polls, and responses that are still being sent.

A use is registered when its caller is admitted and removed when its response has been sent. It is ended at once when
the token is revoked or the session closed, and within SWEEP_EVERY_S when either expires. Agents' secrets are not
included: agent_api/long_poll.py ends their long polls. Event loop only; `end` must not block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent

from procguard.agent_api.interface import Principal
from procguard.runtime.cooperative import yield_to_hub

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 0.5
REST_EVERY = 200  # rights checked per step

Stands = Callable[[Principal], bool]


def no_use() -> None:
    """The `end` of a use that cannot be revoked."""


class Use:
    __slots__ = ("_uses", "caller", "end", "greenlet")

    def __init__(self, uses: LiveUses, caller: Principal, end: Callable[[], None], greenlet: Any) -> None:
        self._uses = uses
        self.caller = caller
        self.end = end
        self.greenlet = greenlet

    def close(self) -> None:
        """Unregister a use that has ended. Idempotent."""
        self._uses.closed(self)
        self.end = no_use  # drop its references now


class LiveUses:
    """`stands(caller)`: whether the caller's token and session are valid now."""

    def __init__(self, stands: Stands) -> None:
        self._stands = stands
        self._by_right: dict[str, dict[Use, None]] = {}
        self._greenlet: Any = None

    def __len__(self) -> int:
        """The number of live uses; those of a session count once."""
        return len({use for uses in self._by_right.values() for use in uses})

    def open(self, caller: Principal, end: Callable[[], None]) -> Callable[[], None]:
        """Register a use. `end()` is called once if the caller's right ends before the returned function is called."""
        rights = rights_of(caller)
        if not rights:
            return no_use
        use = Use(self, caller, end, gevent.getcurrent())
        for right in rights:
            self._by_right.setdefault(right, {})[use] = None
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._loop)
        return use.close

    def closed(self, use: Use) -> None:
        for right in rights_of(use.caller):
            uses = self._by_right.get(right)
            if uses is not None:
                uses.pop(use, None)
                if not uses:
                    del self._by_right[right]

    def end_token(self, token_id: str) -> None:
        self._end(f"token:{token_id}")

    def end_session(self, handle: str) -> None:
        self._end(f"session:{handle}")

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def _end(self, right: str) -> None:
        """End all uses except the revoking request itself, so that its caller receives the response."""
        ours = gevent.getcurrent()
        for use in list(self._by_right.get(right, ())):
            if use.greenlet is ours:
                continue
            end = use.end
            use.close()
            try:
                end()
            except Exception:  # an error must not keep the others open
                log.exception("a live use could not be stopped right=%s", right)

    def _loop(self) -> None:
        while True:
            gevent.sleep(SWEEP_EVERY_S)
            self.sweep()

    def sweep(self) -> None:
        """End expired uses. Expiry is not notified, so it is checked periodically."""
        for number, right in enumerate(list(self._by_right), 1):
            if number % REST_EVERY == 0:
                yield_to_hub()
            use = next(iter(self._by_right.get(right, ())), None)
            if use is not None and not self._stands(use.caller):
                self._end(right)


def rights_of(caller: Principal) -> tuple[str, ...]:
    """The rights that must remain valid for this caller; none if nothing can be revoked (the local operator)."""
    if caller.session:
        return (f"session:{caller.session}", f"token:{caller.token_id}")
    return (f"token:{caller.token_id}",) if caller.token_id else ()
