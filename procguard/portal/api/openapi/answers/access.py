"""Tokens, sessions, and who changed what."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from procguard.portal.api.openapi.answers import Moment


class Token(BaseModel):
    """`uses_left`: launchers that an enrolment token still lets in; null: any number."""

    token_id: str
    name: str
    scope: str
    created_at: Moment
    created_by: str
    expires_at: Moment
    uses_left: int | None
    last_used_at: Moment
    last_used_from: str


class NewToken(Token):
    token: str
    note: str


class TokenList(BaseModel):
    tokens: list[Token]


class TokenRevoked(BaseModel):
    token_id: str
    status: Literal["revoked"]


class Change(BaseModel):
    """Of the audit: what somebody asked for, and the status that was answered."""

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


class AuditTrail(BaseModel):
    audit: list[Change]


class SessionAnswer(BaseModel):
    """Who this browser is."""

    operator: bool
    role: Literal["operator", "viewer"] | None
    via: str | None = None
    name: str | None = None
    csrf: str | None = None
    reason: str | None = None
    locked_s: int | None = None
