"""Browser log-ins: sessions behind a cookie. In memory, bounded; `now` is passed in. One of several managers keeps them
in the shared database, too: their ids as hashes, so that a takeover behind one name logs nobody out.

A session is as good as the token it was opened with: when that is revoked or expires, the session ends. Log-ins with a
token end the oldest sessions of that token, never those of another role, and those of another token only where that one
has more.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

COOKIE = "procguard_session"
CSRF_HEADER = "HTTP_X_PROCGUARD_CSRF"  # X-ProcGuard-CSRF, as WSGI names it
SESSION_TTL_S = 12 * 3600.0  # since last use
MAX_SESSIONS_PER_TOKEN = 200
MAX_SESSIONS = 1_000  # of each role
MAX_LIFE_S = 7 * 24 * 3600.0  # then the token is asked for again, however busy the session is

Role = Literal["operator", "viewer"]


@dataclass
class BrowserSession:
    """`handle` names it where its id, which is a secret, must not stand. `session_id`: "" in one that was restored."""

    session_id: str
    digest: str  # of its id
    csrf: str
    token_sha256: str
    name: str
    scope: Role
    expires: float  # monotonic, unless used before
    ends: float  # monotonic
    handle: str = ""
    ends_wall: float = 0.0  # Unix seconds: for another manager's clock


class BrowserSessions:
    """`on_closed(handle)`: what was opened with this session ends."""

    def __init__(self) -> None:
        self._sessions: dict[str, BrowserSession] = {}
        self._by_handle: dict[str, BrowserSession] = {}
        # role -> hash of the token -> its sessions' ids, the longest unused first
        self._by_token: dict[Role, dict[str, OrderedDict[str, None]]] = {"operator": {}, "viewer": {}}
        self._on_closed: Callable[[str], None] = lambda handle: None
        self._keep: Callable[[str, dict[str, Any] | None], object] = lambda _digest, _record: None

    def keep_by(self, keep: Callable[[str, dict[str, Any] | None], object]) -> None:
        """`keep(digest, record)` with each session that is opened or, None, closed."""
        self._keep = keep

    def kept(self) -> dict[str, dict[str, Any]]:
        """What `restore` takes."""
        return {digest: _record_of(session) for digest, session in self._sessions.items()}

    def restore(self, records: Mapping[str, Mapping[str, Any]], now: float) -> None:
        """Sessions that another manager opened. The takeover counts as a use."""
        for digest, one in records.items():
            left_s = float(one["ends_wall"]) - time.time()
            role: Role = "operator" if one["scope"] == "operator" else "viewer"
            if 0 < left_s <= MAX_LIFE_S and len(self._sessions) < 2 * MAX_SESSIONS:
                ends = (now + SESSION_TTL_S, now + left_s)
                identity = (str(one["token_sha256"]), str(one["name"]), role)
                self._insert(
                    BrowserSession("", digest, "", *identity, *ends, str(one["handle"]), float(one["ends_wall"]))
                )

    def __len__(self) -> int:
        return len(self._sessions)

    def on_closed(self, hook: Callable[[str], None]) -> None:
        self._on_closed = hook

    def open(self, token_sha256: str, name: str, scope: Role, now: float) -> BrowserSession:
        session_id = secrets.token_urlsafe(32)
        session = BrowserSession(
            session_id,
            _digest_of(session_id),
            _csrf_of(session_id),
            token_sha256,
            name,
            scope,
            expires=now + SESSION_TTL_S,
            ends=now + MAX_LIFE_S,
            handle=secrets.token_hex(8),
            ends_wall=time.time() + MAX_LIFE_S,
        )
        own = self._insert(session)
        self._keep(session.digest, _record_of(session))
        if len(own) > MAX_SESSIONS_PER_TOKEN:
            self._close(next(iter(own)))
        self._bound_role(scope)
        return session

    def _insert(self, session: BrowserSession) -> OrderedDict[str, None]:
        """Returns those of its token."""
        self._sessions[session.digest] = self._by_handle[session.handle] = session
        own = self._by_token[session.scope].setdefault(session.token_sha256, OrderedDict())
        own[session.digest] = None
        return own

    def _bound_role(self, scope: Role) -> None:
        """The token with the most sessions gives its oldest."""
        of_role = self._by_token[scope]
        if sum(len(own) for own in of_role.values()) > MAX_SESSIONS:
            fullest = max(of_role, key=lambda token: len(of_role[token]))
            self._close(next(iter(of_role[fullest])))

    def find(self, session_id: str, now: float) -> BrowserSession | None:
        session = self._live(self._sessions.get(_digest_of(session_id)), now)
        if session is not None and not session.csrf:  # restored: only who has the id knows it
            session.csrf = _csrf_of(session_id)
        return session

    def by_handle(self, handle: str, now: float) -> BrowserSession | None:
        return self._live(self._by_handle.get(handle), now)

    def _live(self, session: BrowserSession | None, now: float) -> BrowserSession | None:
        """Looking for it counts as its use."""
        if session is None:
            return None
        if now >= min(session.expires, session.ends):
            self._close(session.digest)
            return None
        session.expires = now + SESSION_TTL_S
        self._by_token[session.scope][session.token_sha256].move_to_end(session.digest)
        return session

    def close(self, session_id: str) -> None:
        self._close(_digest_of(session_id))

    def _close(self, digest: str) -> None:
        session = self._sessions.pop(digest, None)
        if session is None:
            return
        del self._by_handle[session.handle]
        of_role = self._by_token[session.scope]
        own = of_role[session.token_sha256]
        del own[digest]
        if not own:
            del of_role[session.token_sha256]
        self._keep(digest, None)
        self._on_closed(session.handle)

    def close_token(self, token_sha256: str) -> None:
        """The token that they were opened with has ended."""
        for of_role in self._by_token.values():
            for digest in list(of_role.get(token_sha256, ())):
                self._close(digest)


def _digest_of(session_id: str) -> str:
    return hashlib.sha256(session_id.encode("utf-8", "replace")).hexdigest()


def _csrf_of(session_id: str) -> str:
    """Follows from the id, so that it need not be kept; tells nothing of it."""
    return hashlib.sha256(b"procguard-csrf\0" + session_id.encode("utf-8", "replace")).hexdigest()[:32]


def _record_of(session: BrowserSession) -> dict[str, Any]:
    return {
        "token_sha256": session.token_sha256,
        "name": session.name,
        "scope": session.scope,
        "handle": session.handle,
        "ends_wall": session.ends_wall,
    }


def csrf_matches(session: BrowserSession, given: str) -> bool:
    return hmac.compare_digest(session.csrf.encode(), given.encode("utf-8", "replace"))
