"""What operators may send, as types: they check each body, and /api/openapi.json is made of them.

Strict: a number is no text, `"true"` is not true. Unknown keys are ignored, so that a newer client can talk to an older
manager. What the values mean together is checked by whoever acts on them.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import bottle
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from procguard.agent_api import http_io
from procguard.agent_api.decode import Hints, validated
from procguard.fleet.agents.credentials import MAX_LIFE_S, MAX_USES
from procguard.fleet.agents.token_scopes import AGENT_SCOPE, SCOPES
from procguard.fleet.operations.controller import DEFAULT_CONCURRENCY, DEFAULT_TIMEOUT_S, MAX_ITEMS
from remote_agent.protocol import messages

MAX_REASON_CHARS = 500
MAX_OPERATION_TIMEOUT_S = 3_600.0
MIN_OPERATION_TIMEOUT_S = 5.0
MIN_SILENT_S, MAX_SILENT_S = 60.0, 10 * 365 * 86_400.0
MAX_FINGERPRINT_CHARS = 64
MAX_HOST_CHARS = 100
TOKEN_SCOPE_PATTERN = f"^(?:{'|'.join(SCOPES)}|{AGENT_SCOPE}{messages.AGENT_ID_PATTERN[1:-1]})$"

T = TypeVar("T")


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected one line of printable text")
    return text.strip()


def _null_is_empty(value: Any) -> Any:
    return "" if value is None else value


Reason = Annotated[str, BeforeValidator(_null_is_empty), AfterValidator(_one_line), Field(max_length=MAX_REASON_CHARS)]
Words = Annotated[str, BeforeValidator(_null_is_empty), AfterValidator(_one_line), Field(max_length=256)]


class RequestBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class CommandRequest(RequestBody):
    """{"command": "restart", "reason": "new driver"}"""

    command: messages.Verb
    reason: Reason = ""


class PreviewRequest(RequestBody):
    """{"command": "stop", "selector": "group=trainers", "q": ""}"""

    command: Annotated[str, Field(json_schema_extra={"enum": list(messages.VERBS)})]
    selector: str
    q: Words = ""


class OperationRequest(RequestBody):
    """{"token": "p-…", "concurrency": 100, "max_failures": "10%", "reason": "new driver", "timeout_s": 120}"""

    token: Annotated[str, Field(min_length=1)]
    concurrency: Annotated[int | None, Field(ge=1, le=MAX_ITEMS)] = DEFAULT_CONCURRENCY
    max_failures: Annotated[int | str | None, Field(description='A count, or a share such as "10%".')] = None
    reason: Reason = ""
    timeout_s: Annotated[float | None, Field(ge=MIN_OPERATION_TIMEOUT_S, le=MAX_OPERATION_TIMEOUT_S)] = (
        DEFAULT_TIMEOUT_S
    )


class PurgePreviewRequest(RequestBody):
    """{"silent_s": 86400}: hosts not heard for so long"""

    silent_s: Annotated[float, Field(ge=MIN_SILENT_S, le=MAX_SILENT_S)]


class PurgeRequest(RequestBody):
    """{"token": "g-…"}"""

    token: Annotated[str, Field(min_length=1, max_length=64)]


class RetryRequest(RequestBody):
    """{"rest": true}: also what was never begun."""

    rest: bool = False


class ReasonRequest(RequestBody):
    """{"reason": "fan is loud"}"""

    reason: Annotated[str, Field(max_length=MAX_REASON_CHARS)] = ""


class MoveRequest(RequestBody):
    """{"host": "gpu02"}"""

    host: Annotated[str, Field(min_length=1, max_length=MAX_REASON_CHARS)]


class FingerprintRequest(RequestBody):
    """{"fingerprint": "3f2a-91bc-77d0"}: which of several launchers with one id is meant."""

    fingerprint: str = ""


class CredentialsRequest(RequestBody):
    """{"secret_sha256": "9f86…"}: the digest of an agent's new secret, never the secret."""

    secret_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RotationRequest(RequestBody):
    """{"agents": ["gpu01", "launcher:worker1"]}"""

    agents: Annotated[
        list[Annotated[str, Field(pattern=messages.AGENT_ID_PATTERN)]], Field(min_length=1, max_length=20_000)
    ]


class NameRequest(RequestBody):
    """{"name": "oncall"}: one notification target; without it all."""

    name: str = ""


class TokenRequest(RequestBody):
    """{"scope": "enroll", "name": "lab", "expires_in_s": 86400, "uses": 8}"""

    scope: Annotated[str, Field(pattern=TOKEN_SCOPE_PATTERN)] = "operator"
    name: Annotated[str, AfterValidator(_one_line), Field(max_length=64)] = ""
    expires_in_s: Annotated[float | None, Field(ge=1, le=MAX_LIFE_S)] = None
    uses: Annotated[int | None, Field(ge=1, le=MAX_USES)] = None


class LoginRequest(RequestBody):
    """{"token": "pg-…"}"""

    token: Annotated[str, Field(min_length=1, max_length=512)]


def read(cls: type[T], max_bytes: int | None = None, hints: Hints | None = None) -> T:
    """The body of this request as a `cls`. Raises UsageError naming every field that is wrong."""
    return validated(cls, http_io.read_object(bottle.request.environ, max_bytes), hints)


def read_optional(cls: type[T], max_bytes: int | None = None, hints: Hints | None = None) -> T:
    """The same where the body may be left out."""
    return validated(cls, http_io.read_optional_object(bottle.request.environ, max_bytes), hints)
