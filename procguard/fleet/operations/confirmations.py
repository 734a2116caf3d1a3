"""Confirmation tokens: a token refers to exactly one preview, once, for five minutes, for the caller who received it.

Knows nothing of the content of previews.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from typing import Generic, NamedTuple, TypeVar

from procguard.errors import Conflict
from procguard.fleet.model.clock import Now

T = TypeVar("T")

LASTS_S = 300.0
KEEP = 50


class _Kept(NamedTuple):
    actor: str
    expires: float  # monotonic


class Previews(Generic[T]):
    """`prefix` of every token; `next_step`: what the error for an expired token recommends."""

    def __init__(self, prefix: str, next_step: str) -> None:
        self._prefix, self._next_step = prefix, next_step
        self._shown: OrderedDict[str, tuple[_Kept, T]] = OrderedDict()  # oldest first

    def issue(self, shown: T, actor: str, now: Now) -> str:
        """Store the preview and return its token, valid for `actor` only."""
        for token in [token for token, (kept, _) in self._shown.items() if kept.expires <= now.monotonic]:
            del self._shown[token]
        while len(self._shown) >= KEEP:
            self._drop_one()
        token = self._prefix + secrets.token_hex(12)
        self._shown[token] = _Kept(actor, now.monotonic + LASTS_S), shown
        return token

    def _drop_one(self) -> None:
        """Drop the oldest preview of the actor with the most, so that one caller cannot displace the previews of
        others."""
        most = Counter(kept.actor for kept, _ in self._shown.values()).most_common(1)[0][0]
        del self._shown[next(token for token, (kept, _) in self._shown.items() if kept.actor == most)]

    def find(self, token: str, actor: str, now: Now) -> T:
        """The preview of a token. Raises Conflict if the token has expired, was used, or belongs to another actor."""
        found = self._shown.get(token)
        if found is None or found[0].expires <= now.monotonic:
            raise Conflict("this preview has expired, or was used", self._next_step, code="preview_expired")
        if found[0].actor != actor:
            raise Conflict(
                "this preview was shown to somebody else", "request a preview of your own", code="not_your_preview"
            )
        return found[1]

    def use_up(self, token: str) -> None:
        self._shown.pop(token, None)
