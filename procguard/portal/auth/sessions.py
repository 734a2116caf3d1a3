"""Browser sessions, identified by a cookie. Kept in memory, bounded; `now` is passed in. With several managers they are
also stored in the shared database, with hashed ids, so that a takeover logs nobody out.

A session ends when the token that opened it is revoked or expires. If the limit is reached, a log-in ends the oldest
session of its own token, or of a token with more sessions; never a session of another role.
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

from procguard.fleet.store.interface import StoredRecord

COOKIE = "procguard_session"
CSRF_HEADER = "HTTP_X_PROCGUARD_CSRF"  # X-ProcGuard-CSRF, as WSGI names it
SESSION_TTL_S = 12 * 3600.0  # since last use
MAX_SESSIONS_PER_TOKEN = 200
MAX_SESSIONS = 1_000  # limit per role
MAX_LIFE_S = 7 * 24 * 3600.0  # absolute lifetime; then the token is required again

Role = Literal["operator", "viewer"]


@dataclass
class BrowserSession:
    """`handle` identifies it where the id, a secret, must not appear. `session_id`: "" in a restored session."""

    session_id: str
    digest: str  # the digest of its id
    csrf: str
    token_sha256: str
    name: str
    scope: Role
    expires: float  # monotonic; extended by each use
    ends: float  # monotonic
    handle: str = ""
    ends_wall: float = 0.0  # Unix seconds, for other managers


class BrowserSessions:
    """`on_closed(handle)`: called when a session ends, to close what it opened."""

    def __init__(self) -> None:
        self._sessions: dict[str, BrowserSession] = {}
        self._by_handle: dict[str, BrowserSession] = {}
        # role -> token hash -> ids of its sessions, least recently used first
        self._by_token: dict[Role, dict[str, OrderedDict[str, None]]] = {"operator": {}, "viewer": {}}
        self._on_closed: Callable[[str], None] = lambda handle: None
        self._keep: Callable[[str, StoredRecord | None], object] = lambda _digest, _record: None

    def keep_by(self, keep: Callable[[str, StoredRecord | None], object]) -> None:
        """Call `keep(digest, record)` for each opened session; `record` is None for a closed one."""
        self._keep = keep

    def kept(self) -> dict[str, StoredRecord]:
        """The records that `restore` accepts."""
        return {digest: _record_of(session) for digest, session in self._sessions.items()}

    def restore(self, records: Mapping[str, Mapping[str, Any]], now: float) -> None:
        """Restore sessions that another manager opened. The takeover counts as a use."""
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
        """Returns the sessions of its token."""
        self._sessions[session.digest] = self._by_handle[session.handle] = session
        own = self._by_token[session.scope].setdefault(session.token_sha256, OrderedDict())
        own[session.digest] = None
        return own

    def _bound_role(self, scope: Role) -> None:
        """End the oldest session of the token that has the most."""
        of_role = self._by_token[scope]
        if sum(len(own) for own in of_role.values()) > MAX_SESSIONS:
            fullest = max(of_role, key=lambda token: len(of_role[token]))
            self._close(next(iter(of_role[fullest])))

    def find(self, session_id: str, now: float) -> BrowserSession | None:
        session = self._live(self._sessions.get(_digest_of(session_id)), now)
        if session is not None and not session.csrf:  # a restored session: only its client knows the id
            session.csrf = _csrf_of(session_id)
        return session

    def by_handle(self, handle: str, now: float) -> BrowserSession | None:
        return self._live(self._by_handle.get(handle), now)

    def _live(self, session: BrowserSession | None, now: float) -> BrowserSession | None:
        """The live session with this id; the lookup counts as a use."""
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
        """End the sessions of a token that was revoked or has expired."""
        for of_role in self._by_token.values():
            for digest in list(of_role.get(token_sha256, ())):
                self._close(digest)


def _digest_of(session_id: str) -> str:
    return hashlib.sha256(session_id.encode("utf-8", "replace")).hexdigest()


def _csrf_of(session_id: str) -> str:
    """Derived from the id, so it need not be stored; does not reveal the id."""
    return hashlib.sha256(b"procguard-csrf\0" + session_id.encode("utf-8", "replace")).hexdigest()[:32]


def _record_of(session: BrowserSession) -> StoredRecord:
    return {
        "token_sha256": session.token_sha256,
        "name": session.name,
        "scope": session.scope,
        "handle": session.handle,
        "ends_wall": session.ends_wall,
    }


def csrf_matches(session: BrowserSession, given: str) -> bool:
    return hmac.compare_digest(session.csrf.encode(), given.encode("utf-8", "replace"))
