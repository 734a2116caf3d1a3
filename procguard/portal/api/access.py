"""Tokens for operators, viewers, launchers and scrapers; login and logout of browsers; the audit log."""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal
from wsgiref.types import WSGIEnvironment

import bottle
from pydantic import AfterValidator, Field

from procguard import __version__
from procguard.admission.rate import RateLimiter
from procguard.agent_api import http_io
from procguard.agent_api.declaration import delete, get, post
from procguard.agent_api.decode import Hints
from procguard.agent_api.interface import Principal
from procguard.errors import Forbidden, LimitExceeded, ProcGuardError, Refused
from procguard.fleet.agents.credentials import MAX_LIFE_S, MAX_USES, Tokens
from procguard.fleet.agents.token_scopes import AGENT_SCOPE, SCOPES, SCOPES_SHOWN, how_to_replace
from procguard.fleet.history.query import Event
from procguard.fleet.model import clock
from procguard.fleet.model.records import TokenRecord
from procguard.portal.api.history import ChangesQuery
from procguard.portal.api.manager import Status
from procguard.portal.api.resource import Moment, RequestBody, Resource, Services, one_line, read_body
from procguard.portal.auth.access import cookie, same_origin, too_many_wrong_tokens
from procguard.portal.auth.audit import ASKS
from procguard.portal.auth.sessions import COOKIE, Role
from procguard.runtime.cooperative import Pace
from remote_agent.protocol import messages
from remote_agent.protocol.messages import secret_sha256

KEPT_REFUSALS = 4_096  # translations kept in memory; the audit keeps 2,000 refusals there
TOKEN_PREFIX = "pg-"  # noqa: S105 -- the prefix of every token
LOGIN_SCOPES: dict[str, Role] = {"operator": "operator", "viewer": "viewer"}
# Scopes for which a browser session may create tokens. None of them may deploy, so that a stolen session cannot be
# used to run arbitrary commands.
BROWSER_SCOPES = ("viewer", "enroll", "metrics")
LOG_INS_AT_ONCE, LOG_INS_PER_S = 30, 1 / 10  # limits per token


TOKEN_SCOPE_PATTERN = f"^(?:{'|'.join(SCOPES)}|{AGENT_SCOPE}{messages.AGENT_ID_PATTERN[1:-1]})$"


class TokenRequest(RequestBody):
    """{"scope": "enroll", "name": "lab", "expires_in_s": 86400, "uses": 8}"""

    hints: ClassVar[Hints] = {
        "scope": ("", f"use {SCOPES_SHOWN}"),
        "name": ("", 'one line of at most 64 characters: {"scope": "operator", "name": "me"}'),
    }

    scope: Annotated[str, Field(pattern=TOKEN_SCOPE_PATTERN)] = "operator"
    name: Annotated[str, AfterValidator(one_line), Field(max_length=64)] = ""
    expires_in_s: Annotated[float | None, Field(ge=1, le=MAX_LIFE_S)] = None
    uses: Annotated[int | None, Field(ge=1, le=MAX_USES)] = None


class LoginRequest(RequestBody):
    """{"token": "pg-…"}"""

    max_bytes: ClassVar[int | None] = 4096
    hints: ClassVar[Hints] = {"token": ("", 'send {"token": "pg-…"}')}

    token: Annotated[str, Field(min_length=1, max_length=512)]


@dataclass(frozen=True)
class Token:
    """`uses_left`: how many more launchers an enrolment token admits; null if there is no limit."""

    token_id: str
    name: str
    scope: str
    created_at: Moment
    created_by: str
    expires_at: Moment
    uses_left: int | None
    last_used_at: Moment
    last_used_from: str


@dataclass(frozen=True)
class NewToken(Token):
    token: str
    note: str = "shown only this once"


@dataclass(frozen=True)
class TokenList:
    tokens: list[Token]


@dataclass(frozen=True)
class TokenRevoked:
    token_id: str
    status: Literal["revoked"] = "revoked"


@dataclass(frozen=True)
class Change:
    """An audit entry: what was requested, by whom, and the status of the response."""

    seq: int
    at: Moment
    kind: Literal["change", "refused", "login", "logout"]
    actor: str | None
    via: str | None
    address: str | None
    what: str
    worker_id: str | None
    host: str | None
    status: int
    request_id: str | None
    token_id: str | None


@dataclass(frozen=True)
class AuditTrail:
    audit: list[Change]


@dataclass(frozen=True)
class SessionAnswer:
    """The session of a browser."""

    operator: bool
    role: Literal["operator", "viewer"] | None
    via: str | None = None
    name: str | None = None
    csrf: str | None = None
    reason: str | None = None
    locked_s: int | None = None
    urls: list[str] = field(default_factory=list)  # addresses of this manager; empty for an unauthenticated caller
    version: str = ""  # of the manager; "" for an unauthenticated caller


# ------------------------------------------------------------------------------------------------ routes


class AccessApi(Resource):
    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._auth = services.auth
        self._sessions = services.sessions
        self._wrong_tokens = services.wrong_tokens
        self._audit = services.audit
        self._log_in_rate = RateLimiter(LOG_INS_AT_ONCE, LOG_INS_PER_S)

    # ------------------------------------------------------------------------------------------------- tokens

    @post(
        "/api/tokens", "operator", tag="access", zh="创建令牌（仅显示一次）", status=201, errors=(404, 409),
        example={"scope": "operator", "name": "me"},
    )  # fmt: skip
    def create(self, caller: Principal, body: TokenRequest) -> NewToken:
        """Create a token; its text is returned only once.

        `{"scope": "operator" | "viewer" | "enroll" | "metrics" | "agent:ID", "name", "expires_in_s", "uses"}`; `uses`:
        the number of launchers that an `enroll` token admits. A browser session may not create tokens of scope
        `operator` or `agent:ID`.
        """
        http_io.note_change(f"scope {body.scope}, name {body.name}", final=False)
        if caller.via == "session" and body.scope not in BROWSER_SCOPES:
            raise Forbidden(
                f"a browser session cannot create a token of scope {body.scope}",
                f"create it on the manager's machine: invoke token.create --scope {body.scope}",
            )
        token = new_token()
        record = self.fleet.tokens.add(
            body.scope, body.name, secret_sha256(token), caller.actor, clock.read(), body.expires_in_s, body.uses
        )
        http_io.note_change(f"{record.token_id}, scope {body.scope}, name {body.name}")
        return NewToken(**vars(_token_view(self.fleet.tokens, record)), token=token)

    @get("/api/tokens", "operator", tag="access", zh="令牌列表")
    def tokens(self) -> TokenList:
        """List the tokens, without their texts.

        With `created_by`, `expires_at`, `uses_left`, `last_used_at`, `last_used_from`.
        """
        return TokenList([_token_view(self.fleet.tokens, record) for record in self.fleet.tokens.all()])

    @delete("/api/tokens/<token_id>", "operator", tag="access", zh="撤销令牌", errors=(404,))
    def revoke(self, token_id: str, caller: Principal) -> TokenRevoked:
        """Revoke a token."""
        self.fleet.tokens.revoke(token_id, caller.actor, clock.read())
        return TokenRevoked(token_id)

    # -------------------------------------------------------------------------------------------------- audit

    @get("/api/audit", "viewer", tag="access", zh="审计：谁在何处做了什么改动")
    def changes(self, query: ChangesQuery) -> AuditTrail:
        """Who changed what, and from where.

        The newest changes, log-ins and refusals, oldest first; `kind` is `change`, `refused`, `login` or `logout`;
        filters as for events. Refusals are in the language of Accept-Language.
        """
        rest, views, language = Pace(), list[Change](), http_io.callers_language()
        for record in self._audit.find(query.wanted(), query.limit):
            rest()
            is_change = record["kind"] == "change"
            views.append(_audit_view(record, record["reason"] if is_change else _refusal(record["reason"], language)))
        return AuditTrail(views)

    # ------------------------------------------------------------------------------------------------ browsers

    @post(
        "/api/login", "anyone", tag="access", zh="浏览器登录", answers={200: SessionAnswer}, body=LoginRequest,
        example={"token": "pg-wrong"},
    )  # fmt: skip
    def login(self) -> bottle.HTTPResponse:
        """Log in a browser with a token.

        A token may log in 30 times in a burst, then once every 10 s; otherwise 429 `too_often`.
        """
        environ = bottle.request.environ
        try:
            caller, digest = self._checked_login(environ)
        except ProcGuardError as exc:
            self._audit.refused(environ, exc)
            raise
        self._sessions.close(cookie(environ, COOKIE))  # a new login replaces the previous session
        session = self._sessions.open(digest, caller.actor, LOGIN_SCOPES[caller.kind], clock.read().monotonic)
        self._audit.logged_in(environ, caller)
        response = http_io.json_response(_session_view(caller.kind, "session", session.name, session.csrf))
        response.add_header("Set-Cookie", _cookie_text(session.session_id, environ))
        return response

    def _checked_login(self, environ: WSGIEnvironment) -> tuple[Principal, str]:
        """(the caller, the hash of the token). Raises LimitExceeded (429), Refused or UsageError."""
        address, now = environ.get("REMOTE_ADDR", ""), clock.read()
        if not same_origin(environ):
            raise Refused("the request comes from a page of another site", "log in on the portal's own page")
        asked: LoginRequest = read_body(LoginRequest)
        digest = secret_sha256(asked.token.strip())
        record = self.fleet.tokens.find(digest)
        if record is None or record.scope not in LOGIN_SCOPES:
            wait_s = self._wrong_tokens.wrong(address, now.monotonic)
            if wait_s > 0:
                raise too_many_wrong_tokens(address, wait_s)
            raise Refused(
                "this is not an operator or viewer token", "create one on the manager's machine: invoke token.create"
            )
        ended = self.fleet.tokens.usable(record, now)
        if ended:
            raise Refused(f"this token {ended}", how_to_replace(record.scope))
        caller = Principal(
            LOGIN_SCOPES[record.scope],
            f"token {record.name or record.token_id}",
            via="session",
            token_id=record.token_id,
        )
        environ[ASKS] = caller
        wait_s = self._log_in_rate.wait_s(record.token_id, now.monotonic)
        if wait_s > 0:
            next_step = f"wait {wait_s:.0f} s; open sessions are not affected"
            raise LimitExceeded.for_now(f"{caller.actor} logs in too often", next_step, wait_s, "too_often")
        self._wrong_tokens.succeeded(address)
        self.fleet.tokens.used(record, address, now)
        return caller, digest

    @post("/api/logout", "anyone", tag="access", zh="退出登录", answers={200: Status})
    def logout(self) -> bottle.HTTPResponse:
        """End the browser's session."""
        environ = bottle.request.environ
        if self._auth.session(environ) is not None:
            self._audit.logged_out(environ, self._auth.identify(environ))  # also checks the origin and the CSRF header
            self._sessions.close(cookie(environ, COOKIE))
        response = http_io.json_response({"status": "logged out"})
        response.add_header("Set-Cookie", _cookie_text("", environ) + "; Max-Age=0")
        return response

    @get("/api/session", "anyone", tag="access", zh="当前会话")
    def session(self) -> SessionAnswer:
        """The browser's current session.

        Anyone may call it; the response describes only the caller. `role` is `operator`, `viewer` or null. For an
        authenticated caller, `urls` lists the manager's addresses (`web.advertise`, then its own) and `version` its
        release.
        """
        return current_session(self.services)


def current_session(services: Services) -> SessionAnswer:
    """The session of the current request."""
    environ = bottle.request.environ
    session = services.auth.session(environ)
    caller = services.auth.identify(environ)
    if caller.kind not in LOGIN_SCOPES:
        wait_s = services.wrong_tokens.wait_s(environ.get("REMOTE_ADDR", ""), clock.read().monotonic)
        reason = http_io.in_callers_language(caller.reason)
        return SessionAnswer(False, None, reason=reason, locked_s=round(wait_s))
    csrf = session.csrf if session and caller.via == "session" else ""
    view = _session_view(caller.kind, caller.via, caller.actor, csrf)
    return replace(view, urls=services.manager_urls(), version=__version__)


def _session_view(role: str, via: str, name: str, csrf: str) -> SessionAnswer:
    return SessionAnswer(role == "operator", LOGIN_SCOPES[role], via, name, csrf)


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def _token_view(tokens: Tokens, record: TokenRecord) -> Token:
    used_wall, used_from = tokens.last_use(record)
    return Token(
        token_id=record.token_id,
        name=record.name,
        scope=record.scope,
        created_at=clock.iso(record.created_wall),
        created_by=record.created_by,
        expires_at=clock.iso(record.expires_wall),
        uses_left=record.uses_left,
        last_used_at=clock.iso(used_wall),
        last_used_from=used_from,
    )


@functools.lru_cache(maxsize=KEPT_REFUSALS)
def _refusal(text: str, language: str) -> str:
    """A refusal, "POST /api/login: MESSAGE", with its message in a language. Cached across requests, because a
    translation takes up to a millisecond and viewers may ask for thousands."""
    request, separator, message = text.partition(": ")
    return request + separator + http_io.in_language(message, language)


def _audit_view(record: Event, what: str) -> Change:
    """The API form of an entry of the audit log. `what`: in the language of the current request."""
    evidence = record["evidence"] if isinstance(record["evidence"], dict) else {}
    return Change(
        seq=record["seq"],
        at=record["at"],
        kind=record["kind"],  # type: ignore[arg-type]  # the audit writes only these
        actor=record["actor"],
        via=evidence.get("via") or None,
        address=evidence.get("from"),
        what=what,
        worker_id=record["worker_id"],
        host=record["host"],
        status=int(record["after"] or 0),
        request_id=evidence.get("request_id"),
        token_id=evidence.get("token") or None,
    )


def _cookie_text(value: str, environ: WSGIEnvironment) -> str:
    secure = "; Secure" if environ.get("wsgi.url_scheme") == "https" else ""
    return f"{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict{secure}"
