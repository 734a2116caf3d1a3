"""The keys of `events:`, `metrics:` and each entry of `notifications:`.

Owns the names of the alert classes. Secrets are given as text, `env:NAME` or `file:PATH`; they are read once at start
and never shown.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from procguard.config.types import Section, size_in_bytes

TargetType = Literal["webhook", "slack", "feishu", "dingtalk", "wecom", "email"]

# Classes of alerts that need a reaction; procguard/notify/alerts.py assigns events to them.
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
    "rule",
    "gpu",
)
# Classes that need no reaction: `alerts` does not include them, so a target must name them.
QUIET_CLASSES = ("finished",)
MAX_SECRET_CHARS = 4_096
# Measurements that a rule of `alerts:` may name, besides metrics.NAME; procguard/notify/rules.py reads them.
WORKER_MEASURES = (
    "cpu_percent", "rss_bytes", "gpu_percent", "gpu_memory_bytes", "processes", "threads", "fds", "progress_percent",
    "no_progress_s",
)  # fmt: skip
HOST_MEASURES = (
    "host.cpu_percent", "host.load1", "host.memory_used_percent", "host.swap_used_bytes", "host.disk_free_bytes",
    "host.disk_free_percent", "gpu.temperature_c", "gpu.utilization_percent", "gpu.memory_used_percent", "gpu.power_w",
)  # fmt: skip
MAX_RULES = 50


def _secret(value: Any) -> Any:
    """The secret: the given text, or the contents of a variable (`env:NAME`) or a file (`file:PATH`). Raises ValueError
    with a text that does not contain it."""
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
        if not re.fullmatch(r"[a-z][a-z_]{2,40}", name):
            classes = ", ".join((*ALERT_CLASSES, *QUIET_CLASSES))
            raise ValueError(f"alerts, all, a class ({classes}) or a kind of event, e.g. worker_state")
    return names


def _target_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text):
        raise ValueError("a name of letters, digits, '_', '.', '-', e.g. oncall")
    return text


Secret = Annotated[SecretStr, BeforeValidator(_secret)]
Wait = Annotated[float, Field(ge=0, le=24 * 3600)]


class EventSettings(Section):
    """The history of the fleet."""

    keep: int = Field(
        default=5_000,
        ge=100,
        le=1_000_000,
        description="Number of newest events kept in memory for the portal.",
    )
    keep_on_disk: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        default=32 * 2**20,
        ge=2**20,
        description=(
            "Size of the event history in the state's database, in bytes. The oldest events are dropped. `invoke "
            "events --json` exports it. Also as text: `32 MiB`."
        ),
    )


class MetricSettings(Section):
    """Settings of GET /metrics."""

    per_worker: bool = Field(
        default=True,
        description=(
            "Export series for each worker (about 15). `false` reduces the number of series; counts by state, "
            "hosts and GPUs remain."
        ),
    )
    cache: Annotated[float, Field(ge=0, le=300)] = Field(
        default=1.0, description="Seconds for which a response is cached, so that several scrapers cost one pass."
    )


class AlertTarget(Section):
    """One entry of `notifications:`."""

    name: Annotated[str, AfterValidator(_target_name)] = Field(description="Unique name of the target.")
    type: TargetType = Field(description="Protocol of the target.")
    url: Secret = Field(
        default=SecretStr(""),
        description="Address of the incoming webhook. Whoever has it can post, so it is treated as a secret.",
    )
    secret: Secret = Field(
        default=SecretStr(""),
        description=(
            "Key that signs each message: in the form of DingTalk's and Feishu's robots, or for `webhook` in the "
            "header `X-ProcGuard-Signature: sha256=HMAC(body)`."
        ),
    )
    events: Annotated[list[str], AfterValidator(_event_names)] = Field(
        default_factory=lambda: ["alerts"],
        description=(
            "`alerts`: all alert classes but `finished`; or a list of classes or event kinds; `all`: every event; "
            "`[]`: nothing but what `notify` routes to it."
        ),
    )
    language: Literal["en", "zh"] = Field(default="en", description="Language of the messages.")
    group_wait: Wait = Field(
        default=1.0, description="Seconds to wait after a first alert for others, to send them together."
    )
    min_interval: Wait = Field(
        default=30.0, description="Minimum interval between messages, in seconds; alerts in between are grouped."
    )
    dedup: Wait = Field(
        default=300.0, description="Seconds within which the same alert of the same worker or host is not repeated."
    )
    unreachable_after: Wait = Field(
        default=60.0, description="Seconds that a host must be unreachable before an alert."
    )
    last_lines: Annotated[int, Field(ge=0, le=20)] | None = Field(
        default=None,
        description=(
            "Number of last lines of the log in a message about a worker that has finished or failed. Without it 5 for"
            " a target that gets `finished`, by `events` or by `notify`, and none for the others."
        ),
    )
    timeout: Annotated[float, Field(gt=0, le=120)] = Field(
        default=10.0, description="Timeout of one attempt, in seconds."
    )
    smtp_host: str = Field(default="", description="`email`: SMTP server.")
    smtp_port: Annotated[int, Field(ge=1, le=65_535)] = Field(default=587, description="`email`: SMTP port.")
    smtp_tls: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="`email`: how the connection is protected; `tls` is usual on port 465."
    )
    smtp_user: str = Field(default="", description="`email`: SMTP user; empty: no login.")
    smtp_password: Secret = Field(default=SecretStr(""), description="`email`: SMTP password.")
    sender: str = Field(default="", description="`email`: From address.")
    to: list[str] = Field(default_factory=list, description="`email`: recipients.")

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
        """The target's address, without the parts that would allow a reader to post there."""
        if self.type == "email":
            return f"{self.smtp_host}:{self.smtp_port} to {', '.join(self.to)}"
        parts = urlsplit(self.url.get_secret_value())
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}/…"

    def scrubbed(self, text: str) -> str:
        """`text` (an error or a response) without this target's secrets, on one line of at most 300 characters."""
        address = self.url.get_secret_value()
        parts = urlsplit(address)
        hidden = [address, parts.path if len(parts.path) > 8 else "", parts.query, parts.username, parts.password]
        hidden += [self.secret.get_secret_value(), self.smtp_password.get_secret_value()]
        for one in sorted({value for value in hidden if value}, key=len, reverse=True):
            text = text.replace(one, "…")
        return " ".join(text.split())[:300]


def _names(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class NotifyRoute(Section):
    """One entry of `notify:`."""

    @model_validator(mode="before")
    @classmethod
    def _key_on(cls, values: Any) -> Any:
        """YAML reads the key `on` as true."""
        return (
            {"on" if key is True else key: value for key, value in values.items()}
            if isinstance(values, dict)
            else values
        )

    select: str = Field(
        default="*",
        max_length=4_096,
        description="Selector of workers, as on the command line: `label.owner=li`, `group=trainers`, `host=gpu0*`.",
    )
    to: Annotated[list[str], BeforeValidator(_names)] = Field(
        min_length=1, max_length=50, description="Name of a target of `notifications`, or a list of names."
    )
    on: Annotated[list[str], BeforeValidator(_names), AfterValidator(_event_names)] = Field(
        default_factory=lambda: ["alerts"], description="Alert classes or event kinds, as in `events` of a target."
    )


def _measure(name: str) -> str:
    if name in (*WORKER_MEASURES, *HOST_MEASURES) or re.fullmatch(r"metrics\.[A-Za-z_][A-Za-z0-9_]{0,39}", name):
        return name
    raise ValueError(f"metrics.NAME or one of {', '.join((*WORKER_MEASURES, *HOST_MEASURES))}")


Limit = Annotated[float, BeforeValidator(size_in_bytes)]


class AlertRule(Section):
    """One entry of `alerts:`."""

    @model_validator(mode="before")
    @classmethod
    def _key_for(cls, values: Any) -> Any:
        """The key `for`, which is a keyword in Python, as `for_s`."""
        if isinstance(values, dict) and "for" in values and "for_s" not in values:
            return {"for_s" if key == "for" else key: value for key, value in values.items()}
        return values

    name: Annotated[str, AfterValidator(_target_name)] = Field(description="Unique name of the rule.")
    select: str = Field(
        default="*",
        max_length=4_096,
        description="Selector of workers, or for a measurement of hosts and GPUs of hosts: `host=gpu0*`.",
    )
    measure: Annotated[str, AfterValidator(_measure)] = Field(
        description="The measurement: of a worker, e.g. `rss_bytes`, `metrics.loss`, `no_progress_s`; or of a host."
    )
    above: Limit | None = Field(default=None, description="Alert while it is above; sizes also as text: `20 GiB`.")
    below: Limit | None = Field(default=None, description="Alert while it is below. One of the two.")
    for_s: Annotated[float, Field(ge=0, le=7 * 86_400)] = Field(
        default=300.0, description="Seconds that it must last; also written `for`."
    )

    @model_validator(mode="after")
    def _one_limit(self) -> AlertRule:
        if (self.above is None) == (self.below is None):
            raise ValueError("one of above and below")
        return self

    @property
    def limit(self) -> float:
        return self.below if self.above is None else self.above  # type: ignore[return-value]


def refuse_double_rules(rules: list[AlertRule]) -> list[AlertRule]:
    names = [rule.name for rule in rules]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise ValueError(f"unique names; {double} is used twice")
    return rules


Rules = Annotated[list[AlertRule], Field(max_length=MAX_RULES), AfterValidator(refuse_double_rules)]


def refuse_doubles(targets: list[AlertTarget]) -> list[AlertTarget]:
    names = [target.name for target in targets]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise ValueError(f"unique names; {double} is used twice")
    return targets


Targets = Annotated[list[AlertTarget], AfterValidator(refuse_doubles)]
