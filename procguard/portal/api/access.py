"""Tokens for operators, viewers, launchers and scrapers; log-in and log-out of browsers; the audit."""

from __future__ import annotations

import secrets
from typing import Any

import bottle

from procguard.admission.rate import BackOff, RateLimiter
from procguard.agent_api import http_io
from procguard.agent_api.interface import Principal
from procguard.errors import LimitExceeded, ProcGuardError, Refused
from procguard.fleet.agents.token_scopes import SCOPES_SHOWN, how_to_replace
from procguard.fleet.model import clock
from procguard.fleet.model.records import TokenRecord
from procguard.fleet.registry import Registry
from procguard.portal.api import requests
from procguard.portal.api.history import read_query
from procguard.portal.auth.access import Auth, cookie, same_origin, too_many_wrong_tokens
from procguard.portal.auth.audit import ASKS, Audit
from procguard.portal.auth.sessions import COOKIE, BrowserSessions, Role
from remote_agent.protocol.messages import secret_sha256

TOKEN_HINTS = {
    "scope": ("", f"use {SCOPES_SHOWN}"),
    "name": ("", 'one line of at most 64 characters: {"scope": "operator", "name": "me"}'),
}
TOKEN_PREFIX = "pg-"  # noqa: S105 -- what a token begins with, so that people recognise one
LOGIN_SCOPES: dict[str, Role] = {"operator": "operator", "viewer": "viewer"}
LOG_INS_AT_ONCE, LOG_INS_PER_S = 30, 1 / 10  # of one token


class AccessApi:
    def __init__(
        self, registry: Registry, auth: Auth, sessions: BrowserSessions, wrong_tokens: BackOff, audit: Audit
    ) -> None:
        self._registry = registry
        self._auth = auth
        self._sessions = sessions
        self._wrong_tokens = wrong_tokens
        self._audit = audit
        self._log_in_rate = RateLimiter(LOG_INS_AT_ONCE, LOG_INS_PER_S)

    def mount(self, app: bottle.Bottle) -> None:
        for method, path, handler in (
            ("POST", "/api/tokens", self._create),
            ("GET", "/api/tokens", self._list),
            ("DELETE", "/api/tokens/<token_id>", self._revoke),
            ("POST", "/api/login", self._login),
            ("POST", "/api/logout", self._logout),
            ("GET", "/api/session", self._session),
            ("GET", "/api/audit", self._changes),
        ):
            app.route(path, method, http_io.answered(handler))

    # ------------------------------------------------------------------------------------------------- tokens

    def _create(self) -> bottle.HTTPResponse:
        actor = self._auth.admitted(bottle.request.environ).actor
        asked = requests.read(requests.TokenRequest, hints=TOKEN_HINTS)
        http_io.note_change(f"scope {asked.scope}, name {asked.name}")
        token = new_token()
        record = self._registry.tokens.add(
            asked.scope, asked.name, secret_sha256(token), actor, clock.read(), asked.expires_in_s, asked.uses
        )
        http_io.note_change(f"{record.token_id}, scope {asked.scope}, name {asked.name}")
        return http_io.json_response({**_token_view(record), "token": token, "note": "shown only this once"}, 201)

    def _list(self) -> dict[str, Any]:
        return {"tokens": [_token_view(record) for record in self._registry.tokens.all()]}

    def _revoke(self, token_id: str) -> dict[str, Any]:
        actor = self._auth.admitted(bottle.request.environ).actor
        self._registry.tokens.revoke(token_id[:80], actor, clock.read())
        return {"token_id": token_id, "status": "revoked"}

    # -------------------------------------------------------------------------------------------------- audit

    def _changes(self) -> dict[str, Any]:
        """Who changed what, from where: the newest, oldest first."""
        records = self._audit.find(read_query(), http_io.query_int("limit", 200, 1, 10_000))
        return {"audit": [_audit_view(record) for record in records]}

    # ------------------------------------------------------------------------------------------------ browsers

    def _login(self) -> bottle.HTTPResponse:
        environ = bottle.request.environ
        try:
            caller, digest = self._checked_login(environ)
        except ProcGuardError as exc:
            self._audit.refused(environ, exc)
            raise
        self._sessions.close(cookie(environ, COOKIE))  # who logs in again has no use for the one before
        session = self._sessions.open(digest, caller.actor, LOGIN_SCOPES[caller.kind], clock.read().monotonic)
        self._audit.logged_in(environ, caller)
        response = http_io.json_response(_session_view(caller.kind, "session", session.name, session.csrf))
        response.add_header("Set-Cookie", _cookie_text(session.session_id, environ))
        return response

    def _checked_login(self, environ: dict[str, Any]) -> tuple[Principal, str]:
        """(who logs in, hash of the token). Raises LimitExceeded (429), Refused or UsageError."""
        address, now = environ.get("REMOTE_ADDR", ""), clock.read()
        if not same_origin(environ):
            raise Refused("the request comes from another site's page", "log in on the portal's own page")
        asked = requests.read(requests.LoginRequest, 4096, {"token": ("", 'send {"token": "pg-…"}')})
        digest = secret_sha256(asked.token.strip())
        record = self._registry.tokens.find(digest)
        if record is None or record.scope not in LOGIN_SCOPES:
            wait_s = self._wrong_tokens.wrong(address, now.monotonic)
            if wait_s > 0:
                raise too_many_wrong_tokens(address, wait_s)
            raise Refused("this is no operator's or viewer's token", "make one: invoke token.create, on its machine")
        ended = self._registry.tokens.usable(record, now)
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
            next_step = f"wait {wait_s:.0f} s; sessions that are open go on"
            raise LimitExceeded.for_now(f"{caller.actor} logs in too often", next_step, wait_s, "too_often")
        self._wrong_tokens.succeeded(address)
        self._registry.tokens.used(record, address, now)
        return caller, digest

    def _logout(self) -> bottle.HTTPResponse:
        environ = bottle.request.environ
        if self._auth.session(environ) is not None:
            self._audit.logged_out(environ, self._auth.identify(environ))  # which checks origin and CSRF header
            self._sessions.close(cookie(environ, COOKIE))
        response = http_io.json_response({"status": "logged out"})
        response.add_header("Set-Cookie", _cookie_text("", environ) + "; Max-Age=0")
        return response

    def _session(self) -> dict[str, Any]:
        """Who this browser is. Anyone may ask; the answer holds nothing but their own standing."""
        environ = bottle.request.environ
        session = self._auth.session(environ)
        caller = self._auth.identify(environ)
        if caller.kind not in LOGIN_SCOPES:
            wait_s = self._wrong_tokens.wait_s(environ.get("REMOTE_ADDR", ""), clock.read().monotonic)
            return {"operator": False, "role": None, "reason": caller.reason, "locked_s": round(wait_s)}
        csrf = session.csrf if session and caller.via == "session" else ""
        return _session_view(caller.kind, caller.via, caller.actor, csrf)


def _session_view(role: str, via: str, name: str, csrf: str) -> dict[str, Any]:
    return {"operator": role == "operator", "role": role, "via": via, "name": name, "csrf": csrf}


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def _token_view(record: TokenRecord) -> dict[str, Any]:
    return {
        "token_id": record.token_id,
        "name": record.name,
        "scope": record.scope,
        "created_at": clock.iso(record.created_wall),
        "created_by": record.created_by,
        "expires_at": clock.iso(record.expires_wall),
        "uses_left": record.uses_left,
        "last_used_at": clock.iso(record.used_wall),
        "last_used_from": record.used_from,
    }


def _audit_view(record: dict[str, Any]) -> dict[str, Any]:
    """An event of the audit's file, as the API tells it."""
    evidence = record["evidence"] if isinstance(record["evidence"], dict) else {}
    return {
        "seq": record["seq"],
        "at": record["at"],
        "kind": record["kind"],
        "actor": record["actor"],
        "via": evidence.get("via") or None,
        "address": evidence.get("from"),
        "what": record["reason"],
        "worker_id": record["worker_id"],
        "host": record["host"],
        "status": int(record["after"] or 0),
        "request_id": evidence.get("request_id"),
        "token_id": evidence.get("token") or None,
    }


def _cookie_text(value: str, environ: dict[str, Any]) -> str:
    secure = "; Secure" if environ.get("wsgi.url_scheme") == "https" else ""
    return f"{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict{secure}"
