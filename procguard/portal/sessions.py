"""Browser log-ins: sessions behind a cookie. In memory; `now` is passed in.

A session is as good as the token it was opened with: when that is revoked or expires, the session ends.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

COOKIE = "procguard_session"
CSRF_HEADER = "HTTP_X_PROCGUARD_CSRF"  # X-ProcGuard-CSRF, as WSGI names it
SESSION_TTL_S = 12 * 3600.0  # since last use
MAX_SESSIONS = 1_000
MAX_LIFE_S = 7 * 24 * 3600.0  # then the token is asked for again, however busy the session is


@dataclass
class Session:
    session_id: str
    csrf: str
    token_sha256: str
    name: str
    scope: Literal["operator", "viewer"]
    expires: float  # monotonic, unless used before
    ends: float  # monotonic


class Sessions:
    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def open(self, token_sha256: str, name: str, scope: Literal["operator", "viewer"], now: float) -> Session:
        session = Session(
            secrets.token_urlsafe(32),
            secrets.token_urlsafe(24),
            token_sha256,
            name,
            scope,
            expires=now + SESSION_TTL_S,
            ends=now + MAX_LIFE_S,
        )
        self._sessions[session.session_id] = session
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def find(self, session_id: str, now: float) -> Session | None:
        session = self._sessions.get(session_id)
        if session is None:
            return None
        if now >= min(session.expires, session.ends):
            del self._sessions[session_id]
            return None
        session.expires = now + SESSION_TTL_S
        self._sessions.move_to_end(session_id)
        return session

    def close(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)


def csrf_matches(session: Session, given: str) -> bool:
    return hmac.compare_digest(session.csrf.encode(), given.encode("utf-8", "replace"))
