"""The keys of `events:`, of `metrics:`, and of each entry of `notifications:`.

Owns the names of the alerts' classes. Secrets are given as text, as `env:NAME` or as `file:PATH`, are read once at the
start and shown nowhere.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, model_validator

from procguard.config.types import STRICT, size_in_bytes

TargetType = Literal["webhook", "slack", "feishu", "dingtalk", "wecom", "email"]

# What people want to be woken for; procguard/notify/alerts.py says which events belong to which.
ALERT_CLASSES = (
    "failed",
    "suspect",
    "host_unreachable",
    "recovery_gave_up",
    "host_disk",
    "circuit_breaker",
    "stop_all",
    "reassigned",
    "no_spare",
    "gang_failed",
    "state",
)
MAX_SECRET_CHARS = 4_096


def _secret(value: Any) -> Any:
    """The text itself, or what an environment variable or a file holds. Nothing of it stands in a complaint."""
    if not isinstance(value, str):
        return value
    if value.startswith("env:"):
        found = os.environ.get(value[4:])
        if not found:
            raise ValueError(f"the environment variable {value[4:]} to be set, as {value} says")
        return SecretStr(found)
    if value.startswith("file:"):
        path = os.path.abspath(os.path.expanduser(value[5:]))
        try:
            with open(path, encoding="utf-8") as file:
                return SecretStr(file.read(MAX_SECRET_CHARS).strip())
        except (OSError, UnicodeDecodeError) as exc:
            raise ValueError(f"a readable file, as {value} says ({getattr(exc, 'strerror', 'not text')})") from exc
    return SecretStr(value)


def _event_names(names: list[str]) -> list[str]:
    for name in names:
        if name not in (*ALERT_CLASSES, "alerts", "all") and not re.fullmatch(r"[a-z][a-z_]{2,40}", name):
            raise ValueError(f"alerts, all, a class ({', '.join(ALERT_CLASSES)}) or a kind of event, e.g. worker_state")
    return names


def _target_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text):
        raise ValueError("a name of letters, digits, '_', '.', '-', e.g. oncall")
    return text


Secret = Annotated[SecretStr, BeforeValidator(_secret)]
Wait = Annotated[float, Field(ge=0, le=24 * 3600)]


class _NotificationSection(BaseModel):
    model_config = STRICT


class EventSettings(_NotificationSection):
    """The history of the fleet."""

    keep: int = Field(
        default=5_000,
        ge=100,
        le=1_000_000,
        description="How many of the newest events are held in memory, for the portal.",
    )
    keep_on_disk: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        default=32 * 2**20,
        ge=2**20,
        description=(
            "Bytes of events in the state's database; the oldest are dropped when it is reached. What is there "
            "is exported by `invoke events --json`. Also as text: `32 MiB`."
        ),
    )


class MetricSettings(_NotificationSection):
    """What Prometheus is told at /metrics."""

    per_worker: bool = Field(
        default=True,
        description=(
            "Series of each worker (about 15). `false` where there are too many for your Prometheus: counts by state, "
            "hosts and GPUs stay."
        ),
    )
    cache: Annotated[float, Field(ge=0, le=300)] = Field(
        default=1.0, description="Seconds for which an answer is given again, so that several scrapers cost one pass."
    )


class AlertTarget(_NotificationSection):
    """One entry of `notifications:`."""

    name: Annotated[str, AfterValidator(_target_name)] = Field(description="How it is called; each name once.")
    type: TargetType = Field(description="What is spoken there.")
    url: Secret = Field(
        default=SecretStr(""),
        description="Where to: the incoming webhook's address. Whoever has it can post, so it is treated as a secret.",
    )
    secret: Secret = Field(
        default=SecretStr(""),
        description=(
            "Signs each message: DingTalk and Feishu as their robots ask, `webhook` by the header "
            "`X-ProcGuard-Signature: sha256=HMAC(body)`."
        ),
    )
    events: Annotated[list[str], AfterValidator(_event_names)] = Field(
        default_factory=lambda: ["alerts"],
        description="`alerts`: all classes; or some of them; or kinds of events; `all`: every event.",
    )
    language: Literal["en", "zh"] = Field(default="en", description="The language of its messages.")
    group_wait: Wait = Field(default=2.0, description="Seconds that a first alert waits for others to go with it.")
    min_interval: Wait = Field(
        default=30.0, description="Seconds between two messages; what happens meanwhile comes as one."
    )
    dedup: Wait = Field(
        default=300.0, description="Seconds in which the same alert of the same worker or host is not told again."
    )
    unreachable_after: Wait = Field(
        default=60.0, description="Seconds for which a host must be out of reach before that is told."
    )
    timeout: Annotated[float, Field(gt=0, le=120)] = Field(
        default=10.0, description="Seconds for one try, from the connection to the answer."
    )
    smtp_host: str = Field(default="", description="`email`: the mail server.")
    smtp_port: Annotated[int, Field(ge=1, le=65_535)] = Field(default=587, description="`email`: its port.")
    smtp_tls: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="`email`: how the connection is protected; `tls` is usual on port 465."
    )
    smtp_user: str = Field(default="", description="`email`: who logs in; empty: nobody.")
    smtp_password: Secret = Field(default=SecretStr(""), description="`email`: with which password.")
    sender: str = Field(default="", description="`email`: the From address.")
    to: list[str] = Field(default_factory=list, description="`email`: the receivers.")

    @model_validator(mode="after")
    def _whole(self) -> AlertTarget:
        if self.type == "email":
            if not self.smtp_host or not self.sender or not self.to:
                raise ValueError("smtp_host, sender and to, for type email")
            if any("@" not in one or any(c in one for c in "\r\n,") for one in (self.sender, *self.to)):
                raise ValueError("addresses such as ops@example.org in sender and to")
            return self
        address = self.url.get_secret_value()
        try:
            parts = urlsplit(address)
            port_is_good = parts.port != 0
        except ValueError:
            parts, port_is_good = urlsplit(""), False
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_good or not address.isascii():
            raise ValueError(f"a url that begins with https:// or http://, for type {self.type}")
        return self

    @property
    def shown_address(self) -> str:
        """Where it goes, without anything that would let its reader post there."""
        if self.type == "email":
            return f"{self.smtp_host}:{self.smtp_port} to {', '.join(self.to)}"
        parts = urlsplit(self.url.get_secret_value())
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}/…"

    def scrubbed(self, text: str) -> str:
        """`text` (an error, an answer) without this target's secrets, bounded and in one line."""
        address = self.url.get_secret_value()
        parts = urlsplit(address)
        hidden = [address, parts.path if len(parts.path) > 8 else "", parts.query, parts.username, parts.password]
        hidden += [self.secret.get_secret_value(), self.smtp_password.get_secret_value()]
        for one in sorted({value for value in hidden if value}, key=len, reverse=True):
            text = text.replace(one, "…")
        return " ".join(text.split())[:300]


def refuse_doubles(targets: list[AlertTarget]) -> list[AlertTarget]:
    names = [target.name for target in targets]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise ValueError(f"each name once; {double} is there twice")
    return targets


Targets = Annotated[list[AlertTarget], AfterValidator(refuse_doubles)]
