"""The manager's configuration: the one place that knows each key, its default, its bounds and its description.

Owns the keys and how file, `--set` and flags combine; the result is frozen and built once. Must not know what the
values do, and creates nothing: relative paths are relative to the working directory, and whoever writes to a path
creates its directory.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from procguard.config import errors, loader
from procguard.config.errors import Mistakes
from procguard.config.groups import GroupPolicy
from procguard.config.limits import WebLimits
from procguard.config.notifications import EventSettings, MetricSettings, Targets
from procguard.config.types import STRICT, postgres_url_problem, size_in_bytes
from procguard.errors import ConfigError

# ------------------------------------------------------------------------------------------------- kinds of value


def _absolute_path(text: str) -> str:
    if not text.strip():
        raise ValueError("a path")
    return os.path.abspath(os.path.expanduser(text))


def _state_path(text: str) -> str:
    if not text.endswith((".yaml", ".yml", ".db", ".sqlite")):
        raise ValueError("a path that ends in .yaml (readable) or in .db (SQLite)")
    return text


def _database_url(text: str) -> str:
    problem = postgres_url_problem(text) if text else ""
    if problem:
        raise ValueError(problem)
    return text


def _manager_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,64}", text):
        raise ValueError("up to 64 letters, digits, dots, dashes and underscores")
    return text


def _path_or_nothing(text: str) -> str:
    return _absolute_path(text) if text else ""


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError as exc:
        raise ValueError("an IP address or a network, e.g. 10.0.0.2 or 10.1.0.0/24") from exc
    return text


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _log_format(text: str) -> str:
    record = logging.LogRecord("name", logging.INFO, "file", 1, "message", None, None)
    try:
        logging.Formatter(text).format(record)
    except (KeyError, ValueError, TypeError) as exc:
        raise ValueError(f'a format of Python\'s logging, e.g. "%(asctime)s - %(message)s" ({exc})') from exc
    return text


def _nothing_said(value: Any) -> Any:
    return {} if value is None else value


def _address(text: str) -> str:
    if not text or any(letter.isspace() or letter == "/" for letter in text):
        raise ValueError("an IP address or a host name to listen on, e.g. 0.0.0.0 or 127.0.0.1")
    return text


def _web_address(text: str) -> str:
    if text and (urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).hostname):
        raise ValueError("an address that begins with http:// or https://")
    return text


def _manager_url(text: str) -> str:
    expected = "an address that agents can reach, e.g. http://10.0.0.5:5000"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise ValueError(expected) from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or port == 0:
        raise ValueError(expected)
    return text.rstrip("/")


class _Section(BaseModel):
    model_config = STRICT


LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600)]
Percent = Annotated[float, Field(ge=0, le=100)]

# ------------------------------------------------------------------------------------------------------ sections


class Logging(_Section):
    """The manager's own log."""

    level: Annotated[LogLevel, BeforeValidator(_upper)] = Field(
        default="INFO", description="How much the manager logs."
    )
    file: Annotated[str, AfterValidator(_absolute_path)] = Field(
        default="logs/procguard.log",
        description="The manager's log file. Relative to the working directory; its directory is created.",
    )
    format: Annotated[str, AfterValidator(_log_format)] = Field(
        default="%(asctime)s - %(name)s - %(levelname)s - %(message)s",
        description="The shape of a log line, in the notation of Python's logging.",
    )


class State(_Section):
    """What the manager remembers across restarts."""

    state_file: Annotated[str, AfterValidator(_state_path), AfterValidator(_absolute_path)] = Field(
        default="data/procguard_state.yaml",
        description=(
            "Where the fleet's state is kept: a SQLite database, `*.db` (or `.sqlite`); with `*.yaml` (or `.yml`) the "
            "database `*.db` beside it and this readable snapshot of it; docs/operations.md says more. The workers' "
            "logs and the lock of a running manager lie beside it. Relative to the working directory; its directory "
            "is created. A "
            "manager that is started without a configuration file keeps its state in ~/.local/share/procguard."
        ),
    )
    database: Annotated[str, AfterValidator(_database_url)] = Field(
        default="",
        description=(
            "A PostgreSQL database that several managers share, in place of the SQLite database: "
            "`postgresql://procguard@db1,db2/procguard?target_session_attrs=read-write`. One manager leads, the others "
            "stand by. No password stands in it. `state_file` still says where this manager keeps its lock, logs and "
            "certificates. See docs/several_managers.md."
        ),
        json_schema_extra=dict(errors.SECRET),
    )
    database_password_file: Annotated[str, AfterValidator(_path_or_nothing)] = Field(
        default="",
        description=(
            "A file whose first line is the password for `database`, read for each connection. Empty: libpq's own ways "
            "(PGPASSFILE, ~/.pgpass, PGPASSWORD, a client certificate)."
        ),
    )
    database_grace_s: Annotated[float, Field(ge=0, le=300)] = Field(
        default=0.0,
        description=(
            "For so many seconds after its last contact with `database` a leader goes on renewing the leases of fenced "
            "workers, each to the host that holds it. It lets gangs survive a failover of the database; in return a "
            "worker whose host and leader die together is reassigned that much later."
        ),
    )
    manager_name: Annotated[str, AfterValidator(_manager_name)] = Field(
        default="",
        description="This manager's name among several, another one for each. Empty: the name of its machine.",
    )
    auto_save: bool = Field(
        default=True,
        description=(
            "Write the readable snapshot within seconds of a change and at the end. `false` stops these only: every "
            "change is still made durable in the database before it is acknowledged."
        ),
    )


class AdapterConfig(_Section):
    """Settings of that channel."""

    mock_workers: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description=(
            "`mock`: this many simulated workers, to try portal and API without hosts. They are states only; no "
            "process is started."
        ),
    )
    host: Annotated[str, AfterValidator(_address)] = Field(
        default="0.0.0.0",
        description="`zmq`: where it listens. On loopback it is offered to this machine's own agents only.",
    )
    port_base: int = Field(
        default=5550,
        ge=1,
        le=65534,
        description="`zmq`: its port, for heartbeats and commands. The next one takes the workers' log bytes.",
    )
    timeout: int = Field(
        default=1000,
        ge=1,
        le=600_000,
        description=(
            "`zmq`: how long an agent waits for a connection, its handshake included, in milliseconds; then it goes on "
            "over HTTP and tries again later."
        ),
    )


class Communication(_Section):
    """A further channel beside HTTP."""

    adapter_type: Literal["mock", "zmq"] = Field(
        default="mock",
        description=(
            "A further channel beside HTTP, which agents and launchers always find at `web.port`. `mock`: simulated "
            "workers, as many as `mock_workers` says. `zmq`: ZeroMQ with CURVE on two ports more, for the agents and "
            "launchers whose Python has pyzmq; the others stay on HTTP."
        ),
    )
    adapter_config: AdapterConfig = Field(default_factory=AdapterConfig, description="Settings of that channel.")


class Monitoring(_Section):
    """When something counts as silent or suspicious."""

    interval: Seconds = Field(default=1.0, description="Seconds between two looks of the monitor at the whole fleet.")
    heartbeat_timeout: Seconds = Field(
        default=10.0,
        description=(
            "A host not heard for this many seconds is out of reach: its workers show `unknown`. Agents send their "
            "heartbeats several times within it."
        ),
    )
    zombie_detection: bool = Field(
        default=True,
        description=(
            "Report running workers that look hung: below both thresholds, zombie or stopped processes, output that "
            "pauses far longer than it used to, a GPU that only spins. Nothing is stopped or restarted for it."
        ),
    )
    cpu_threshold: Percent = Field(
        default=0.1,
        description=(
            "Percent of one core. CPU and memory both below their thresholds for 60 s: reported as suspect, unless the "
            "worker printed in the last minute, passes its health checks, or is a server without a connection."
        ),
    )
    memory_threshold: Percent = Field(default=0.1, description="Percent of the host's memory; see `cpu_threshold`.")
    dead_man_url: Annotated[str, AfterValidator(_web_address)] = Field(
        default="",
        description=(
            "An address that the manager asks (GET) as long as it looks after the fleet, so that whoever watches that "
            "address tells you when the manager itself is gone. Empty: none."
        ),
    )
    dead_man_interval: Seconds = Field(default=60.0, description="Seconds between two askings of `dead_man_url`.")


class Recovery(_Section):
    """What is done about failures."""

    enable_auto_recovery: bool = Field(
        default=True,
        description="`false` restarts nothing by itself: neither children on their hosts nor agents over SSH.",
    )
    stop_all_on_failure: bool = Field(
        default=False,
        description="When a worker reaches `failed`, stop all workers of the fleet and leave them stopped.",
    )
    task_reassignment: bool = Field(
        default=False,
        description=(
            "Let spares (`procguard_spare` of the inventory) take over tasks: of workers with `on_partition: fence` "
            "whose host is lost, once their lease has surely ended, and of workers that reached `failed`."
        ),
    )
    recovery_timeout: Seconds = Field(
        default=30.0,
        description="A worker or agent that is not running this many seconds after its restart has failed again.",
    )
    max_recovery_attempts: int = Field(
        default=3,
        ge=0,
        le=1_000_000,
        description=(
            "Restarts of a worker before it is `failed`; given back after 10 minutes of healthy running. "
            "Per worker: `restart.max_attempts`. 0: never restarted. Also how often a silent agent is started "
            "over SSH before the manager gives up on it, and how often a task goes to another host without having "
            "been healthy since."
        ),
    )


class Tls(_Section):
    """https for API and portal."""

    shorthand: ClassVar[str] = "mode"  # `web.tls: auto` says this key alone

    mode: Literal["off", "auto", "files"] = Field(
        default="off",
        description=(
            "`auto`, which may also be written `tls: auto`: https with a CA of the manager's own, made beside the "
            "state; agents get it over SSH when they are deployed. `files`: with `cert` and `key`, which say so by "
            "themselves. `off`: plain http. The port speaks one of both. See docs/security.md."
        ),
    )
    cert: Annotated[str, AfterValidator(_path_or_nothing)] = Field(
        default="", description="The certificate chain in PEM. Read again when it is replaced."
    )
    key: Annotated[str, AfterValidator(_path_or_nothing)] = Field(
        default="", description="Its private key in PEM, not encrypted."
    )
    ca: Annotated[str, AfterValidator(_path_or_nothing)] = Field(
        default="",
        description=(
            "Certificates in PEM that agents are to trust for `cert`, or for an https proxy in front of the manager; "
            "they get them when they are deployed. Empty: those that their machines know."
        ),
    )

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        if (self.mode == "files") != bool(self.cert and self.key):
            raise ValueError("both cert and key, or `tls: auto`" if self.mode == "files" else "cert and key, or mode")
        return self


def _tls(value: Any) -> Any:
    """`auto` alone, and `{cert, key}` without a mode."""
    if isinstance(value, str) or value is False:
        return {"mode": value or "off"}
    if isinstance(value, dict) and "mode" not in value and ("cert" in value or "key" in value):
        return {**value, "mode": "files"}
    return value


class Web(_Section):
    """HTTP: the API for agents, launchers and operators, and the portal."""

    enabled: bool = Field(default=True, description="`false` drops the portal and keeps the API, which agents need.")
    host: Annotated[str, AfterValidator(_address)] = Field(
        default="0.0.0.0",
        description="Where the manager listens. Agents on other hosts must reach it; access is denied by default.",
    )
    port: int = Field(
        default=5000, ge=0, le=65535, description="The port of API and portal. 0: any free one, printed at the start."
    )
    trust_local: bool = Field(
        default=True,
        description=(
            "Let the manager's own user (and root) act as operator from this machine without a token. `false`: a "
            "token is always required; the first one is put into `operator.token` beside the state."
        ),
    )
    tls: Annotated[Tls, BeforeValidator(_tls)] = Field(default_factory=Tls, description="https for API and portal.")
    trusted_proxies: list[Annotated[str, AfterValidator(_network)]] = Field(
        default_factory=list,
        description=(
            "Addresses or networks of reverse proxies, e.g. `[10.0.0.2, 10.1.0.0/24]`, whose X-Forwarded-For and "
            "X-Forwarded-Proto are believed. Nobody behind one acts without a token; on this machine let the proxy "
            "connect from 127.0.0.2 and name that, so that local requests stay apart."
        ),
    )
    keep_audit: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        default=32 * 2**20,
        ge=2**20,
        description=(
            "Bytes of the audit in the state's database: half for changes, a quarter each for log-ins and refusals. "
            "The oldest records of a share are dropped when it is reached. Also as text: `32 MiB`."
        ),
    )
    advertise: list[Annotated[str, AfterValidator(_manager_url)]] = Field(
        default_factory=list,
        description=(
            "Further addresses of this manager for agents to try, e.g. `http://10.0.0.5:5000`: a NAT or proxy in "
            "front of it. Its own addresses need not be listed, but for one of a bridge without a way out of the "
            "machine (docker0) that agents are to use."
        ),
    )
    limits: WebLimits = Field(default_factory=WebLimits, description="What one caller, and all together, may take.")


class Logs(_Section):
    """The workers' logs."""

    keep_attempts: int = Field(
        default=50,
        ge=1,
        le=1_000_000,
        description=(
            "Attempts per worker whose logs are kept, by the manager and (all finished ones together within "
            "`keep_local`) on the worker's host; older ones are deleted."
        ),
    )
    keep_per_worker: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        default=4 * 2**30,
        ge=2**20,
        description=(
            "Bytes of one worker's logs on the manager's disk. Beyond it its oldest attempts go, then the head of the "
            "newest, and the log says how much. Also as text: `4 GiB`."
        ),
    )
    keep_in_all: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        default=64 * 2**30,
        ge=16 * 2**20,
        description=(
            "Bytes of all workers' logs on the manager's disk, and at most half of that disk. Beyond it those that "
            "have more than an equal share give theirs first. Also as text: `64 GiB`."
        ),
    )
    keep_local: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        default=256 * 2**20,
        ge=2**20,
        description=(
            "Bytes of each log that stay on its host, shipped or waiting for the manager; what waits beyond is "
            "dropped and its size shown in the log. Where the file system cannot give back parts of a file, this "
            "holds once the attempt has ended. Also as text: `256 MiB`."
        ),
    )


class Config(_Section):
    """The whole configuration. `source` is the file it came from, "" for the built-in values."""

    logging: Logging = Field(default_factory=Logging, description="The manager's own log.")
    state: State = Field(default_factory=State, description="What the manager remembers across restarts.")
    communication: Communication = Field(default_factory=Communication, description="A further channel beside HTTP.")
    monitoring: Monitoring = Field(
        default_factory=Monitoring, description="When something counts as silent or suspect."
    )
    recovery: Recovery = Field(default_factory=Recovery, description="What is done about failures.")
    web: Web = Field(default_factory=Web, description="The API for agents and operators, and the portal.")
    logs: Logs = Field(default_factory=Logs, description="The workers' logs.")
    events: EventSettings = Field(default_factory=EventSettings, description="The history of the fleet.")
    groups: Annotated[dict[str, GroupPolicy], BeforeValidator(_nothing_said)] = Field(
        default_factory=dict,
        description=(
            "Groups whose members belong together, by name; a worker names its group (`group: trainers`). Also as "
            "`procguard_groups` in an inventory; what is said of a group here is stronger. See [groups](groups.md)."
        ),
    )
    metrics: MetricSettings = Field(
        default_factory=MetricSettings, description="What Prometheus is told at `/metrics`."
    )
    notifications: Targets = Field(
        default_factory=list,
        description=(
            "Whom to tell about failures, and how: a list of `{name, type, url, …}` for webhooks, Slack, Feishu, "
            "DingTalk, WeCom and e-mail. Every key: docs/notifications.md."
        ),
    )
    source: str = Field(default="", exclude=True)

    @property
    def state_directory(self) -> str:
        """Where everything the manager remembers lies (absolute). One manager at a time holds its lock."""
        return os.path.dirname(self.state.state_file)


# ------------------------------------------------------------------------------------------- the keys, for people


@dataclasses.dataclass(frozen=True)
class Key:
    """One configuration key as documentation shows it. `default` is the value as written in YAML."""

    path: str
    kind: str
    default: str
    description: str


def keys() -> list[Key]:
    """Every key, in file order: what docs/configuration.md must document."""
    return [
        Key(
            dotted,
            _kind(info),
            loader.shown(info.get_default(call_default_factory=True)),
            info.description or "",
        )
        for dotted, info in errors.fields(Config)
    ]


def _kind(info: FieldInfo) -> str:
    if get_origin(info.annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(info.annotation))
    if get_origin(info.annotation) is dict:
        return "sections by name"
    plain: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return plain.get(info.annotation, "list")


# -------------------------------------------------------------------------------------------------------- loading


def load(
    path: str | None,
    overrides: Sequence[str] = (),
    host: str | None = None,
    port: int | None = None,
) -> Config:
    """Read `path` (None: the built-in values, which are those of configs/procguard_config.yaml), then apply
    `overrides` ("web.port=5055", the value in YAML), then `host` and `port`.

    Raises ConfigError: a missing or unreadable file, YAML that does not parse (file:line), or every mistake at once.
    """
    mistakes = Mistakes(Config)
    values = _file_values(path, mistakes) if path is not None else {}
    for text in overrides:
        _apply_override(values, text, mistakes)
    for key, value in (("host", host), ("port", port)):
        if value is not None:
            _put(values, ["web", key], value)
            mistakes.positions[f"web.{key}"] = f"--{key}"
    config = _validated(values, path or "", mistakes)
    if config is None or mistakes.lines:
        raise _error(path, mistakes.lines)
    return config


def _file_values(path: str, mistakes: Mistakes) -> dict[str, Any]:
    data, mistakes.positions = loader.read(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"configuration {path}: {loader.shown(data)}: expected sections such as 'web:'",
            "configs/procguard_config.yaml is an example",
        )
    return {str(name): value for name, value in data.items()}


def _validated(values: dict[str, Any], source: str, mistakes: Mistakes) -> Config | None:
    if "source" in values:  # a field of Config, but not a key
        del values["source"]
        mistakes.unknown_key(["source"])
    _drop_empty_sections(values, Config)
    try:
        config = Config(**values, source=source)
    except ValidationError as exc:
        mistakes.add_validation(exc)
        return None
    monitoring = config.monitoring
    if monitoring.heartbeat_timeout <= monitoring.interval:
        expected = f"more than monitoring.interval ({monitoring.interval:g})"
        mistakes.add("monitoring.heartbeat_timeout", monitoring.heartbeat_timeout, expected)
    return config


def _drop_empty_sections(values: dict[str, Any], model: type[BaseModel]) -> None:
    """A section whose keys are all commented out reads as null: it means "nothing said"."""
    for name, info in model.model_fields.items():
        inner = errors.section_of(info)
        if inner is None or name not in values:
            continue
        if values[name] is None:
            del values[name]
        elif isinstance(values[name], dict):
            _drop_empty_sections(values[name], inner)


def _error(path: str | None, lines: list[str]) -> ConfigError:
    what = f"configuration {path}" if path else "configuration"
    if len(lines) == 1:
        return ConfigError(f"{what}: {lines[0]}", "docs/configuration.md has every key")
    listed = "".join(f"\n  {line}" for line in lines)
    return ConfigError(f"{what}: {len(lines)} mistakes:{listed}\ndocs/configuration.md has every key")


def _apply_override(values: dict[str, Any], text: str, mistakes: Mistakes) -> None:
    dotted, separator, raw = text.partition("=")
    dotted = dotted.strip()
    if not separator or not dotted:
        mistakes.lines.append(f"--set {text}: expected KEY=VALUE, e.g. --set web.port=5055")
        return
    names = dotted.split(".")
    model: type[BaseModel] | None = Config
    for position, name in enumerate(names, start=1):
        if model is None or name not in errors.known_names(model):
            mistakes.positions[".".join(names[:position])] = f"--set {text}"
            mistakes.unknown_key(names[:position])
            return
        model = errors.section_of(model.model_fields[name])
    short = getattr(model, "shorthand", "")  # --set web.tls=auto
    if model is not None and not short:
        example = f"{dotted}.{errors.known_names(model)[0]}"
        mistakes.lines.append(f"--set {text}: {dotted} is a section; name one key in it, e.g. --set {example}=…")
        return
    try:
        value = loader.scalar(raw)
    except ValueError as exc:
        mistakes.lines.append(f"--set {text}: the value is not valid YAML: {exc}")
        return
    mistakes.positions[dotted] = f"--set {text}"
    _put(values, [*names, short] if short and not isinstance(value, dict) else names, value)


def _put(values: dict[str, Any], names: Sequence[str], value: Any) -> None:
    """Set a nested value. Where the file has a mistaken non-section on the way, it stays: validation names it."""
    for name in names[:-1]:
        inner = values.get(name)
        if inner is None:
            inner = values[name] = {}
        if not isinstance(inner, dict):
            return
        values = inner
    values[names[-1]] = value
