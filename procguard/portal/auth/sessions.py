"""Browser log-ins: sessions behind a cookie. In memory, bounded; `now` is passed in.

A session is as good as the token it was opened with: when that is revoked or expires, the session ends. Log-ins with a
token end the oldest sessions of that token, never those of another role, and those of another token only where that one
has more.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

COOKIE = "procguard_session"
CSRF_HEADER = "HTTP_X_PROCGUARD_CSRF"  # X-ProcGuard-CSRF, as WSGI names it
SESSION_TTL_S = 12 * 3600.0  # since last use
MAX_SESSIONS_PER_TOKEN = 200
MAX_SESSIONS = 1_000  # of each role
MAX_LIFE_S = 7 * 24 * 3600.0  # then the token is asked for again, however busy the session is

Role = Literal["operator", "viewer"]


@dataclass
class BrowserSession:
    """`handle` names it where its id, which is a secret, must not stand."""

    session_id: str
    csrf: str
    token_sha256: str
    name: str
    scope: Role
    expires: float  # monotonic, unless used before
    ends: float  # monotonic
    handle: str = ""


class BrowserSessions:
    """`on_closed(handle)`: what was opened with this session ends."""

    def __init__(self) -> None:
        self._sessions: dict[str, BrowserSession] = {}
        self._by_handle: dict[str, BrowserSession] = {}
        # role -> hash of the token -> its sessions' ids, the longest unused first
        self._by_token: dict[Role, dict[str, OrderedDict[str, None]]] = {"operator": {}, "viewer": {}}
        self._on_closed: Callable[[str], None] = lambda handle: None

    def __len__(self) -> int:
        return len(self._sessions)

    def on_closed(self, hook: Callable[[str], None]) -> None:
        self._on_closed = hook

    def open(self, token_sha256: str, name: str, scope: Role, now: float) -> BrowserSession:
        session = BrowserSession(
            secrets.token_urlsafe(32),
            secrets.token_urlsafe(24),
            token_sha256,
            name,
            scope,
            expires=now + SESSION_TTL_S,
            ends=now + MAX_LIFE_S,
            handle=secrets.token_hex(8),
        )
        self._sessions[session.session_id] = self._by_handle[session.handle] = session
        own = self._by_token[scope].setdefault(token_sha256, OrderedDict())
        own[session.session_id] = None
        if len(own) > MAX_SESSIONS_PER_TOKEN:
            self.close(next(iter(own)))
        self._bound_role(scope)
        return session

    def _bound_role(self, scope: Role) -> None:
        """The token with the most sessions gives its oldest."""
        of_role = self._by_token[scope]
        if sum(len(own) for own in of_role.values()) > MAX_SESSIONS:
            fullest = max(of_role, key=lambda token: len(of_role[token]))
            self.close(next(iter(of_role[fullest])))

    def find(self, session_id: str, now: float) -> BrowserSession | None:
        return self._live(self._sessions.get(session_id), now)

    def by_handle(self, handle: str, now: float) -> BrowserSession | None:
        return self._live(self._by_handle.get(handle), now)

    def _live(self, session: BrowserSession | None, now: float) -> BrowserSession | None:
        """Looking for it counts as its use."""
        if session is None:
            return None
        if now >= min(session.expires, session.ends):
            self.close(session.session_id)
            return None
        session.expires = now + SESSION_TTL_S
        self._by_token[session.scope][session.token_sha256].move_to_end(session.session_id)
        return session

    def close(self, session_id: str) -> None:
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        del self._by_handle[session.handle]
        of_role = self._by_token[session.scope]
        own = of_role[session.token_sha256]
        del own[session_id]
        if not own:
            del of_role[session.token_sha256]
        self._on_closed(session.handle)

    def close_token(self, token_sha256: str) -> None:
        """The token that they were opened with has ended."""
        for of_role in self._by_token.values():
            for session_id in list(of_role.get(token_sha256, ())):
                self.close(session_id)


def csrf_matches(session: BrowserSession, given: str) -> bool:
    return hmac.compare_digest(session.csrf.encode(), given.encode("utf-8", "replace"))
