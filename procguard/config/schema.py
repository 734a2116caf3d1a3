"""The manager's configuration: the one place that defines each key, its default, bounds and description.

Owns the keys and how file, `--set` and flags are combined; the result is frozen. Must not know what the values are
used for, and creates nothing: relative paths are relative to the working directory, and the code that writes to a
path creates its directory.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from procguard.config import checks, errors, loader
from procguard.config.errors import Mistakes
from procguard.config.groups import GroupPolicy
from procguard.config.limits import WebLimits
from procguard.config.logs import Logs
from procguard.config.notifications import EventSettings, MetricSettings, NotifyRoute, Rules, Targets
from procguard.config.types import Section, causes_of_failure, size_in_bytes
from procguard.errors import ConfigError
from procguard.json_types import Json

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600)]
Percent = Annotated[float, Field(ge=0, le=100)]

# ------------------------------------------------------------------------------------------------------ sections


class Logging(Section):
    """The manager's own log."""

    level: Annotated[LogLevel, BeforeValidator(checks.upper)] = Field(
        default="INFO", description="Log level of the manager."
    )
    file: Annotated[str, AfterValidator(checks.absolute_path)] = Field(
        default="logs/procguard.log",
        description="Log file of the manager, relative to the working directory; its directory is created.",
    )
    format: Annotated[str, AfterValidator(checks.log_format)] = Field(
        default="%(asctime)s - %(name)s - %(levelname)s - %(message)s",
        description="Format of a log line, as in Python's logging.",
    )


class State(Section):
    """The manager's persistent state."""

    state_file: Annotated[str, AfterValidator(checks.state_path), AfterValidator(checks.absolute_path)] = Field(
        default="data/procguard_state.yaml",
        description=(
            "Path of the state: a SQLite database `*.db` (or `.sqlite`), or `*.yaml` (or `.yml`) for the database"
            " `*.db` beside it and a readable snapshot (see docs/operations.md). The workers' logs and the lock "
            "of the running manager are stored beside it. Relative to the working directory; its directory is "
            "created. A manager without a configuration file uses ~/.local/share/procguard."
        ),
    )
    database: Annotated[str, AfterValidator(checks.database_url)] = Field(
        default="",
        description=(
            "A PostgreSQL database that several managers share, in place of the SQLite database: "
            "`postgresql://procguard@db1,db2/procguard?target_session_attrs=read-write`. One manager leads, the others "
            "stand by. The URL must not contain a password. `state_file` still defines where this manager keeps its "
            "lock, logs and certificates. See docs/several_managers.md."
        ),
        json_schema_extra=dict(errors.SECRET),
    )
    database_password_file: Annotated[str, AfterValidator(checks.path_or_nothing)] = Field(
        default="",
        description=(
            "A file whose first line is the password for `database`, read for each connection. Empty: libpq's own "
            "sources (PGPASSFILE, ~/.pgpass, PGPASSWORD, a client certificate)."
        ),
    )
    database_grace_s: Annotated[float, Field(ge=0, le=300)] = Field(
        default=0.0,
        description=(
            "Seconds without `database` during which a leader continues to renew the leases of fenced "
            "workers, each to the host that holds it. It lets gangs survive a failover of the database; in return a "
            "worker whose host and leader die together is reassigned that much later."
        ),
    )
    manager_name: Annotated[str, AfterValidator(checks.manager_name)] = Field(
        default="",
        description="Unique name of this manager among several. Empty: the name of its machine.",
    )
    auto_save: bool = Field(
        default=True,
        description=(
            "Write the readable snapshot within seconds of a change and at exit. `false` disables only the "
            "snapshot; every change is still committed to the database before it is acknowledged."
        ),
    )


class AdapterConfig(Section):
    """Settings of the additional channel."""

    mock_workers: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description=(
            "`mock`: number of simulated workers, to try the portal and the API without hosts. They have states "
            "only; no process is started."
        ),
    )
    host: Annotated[str, AfterValidator(checks.address)] = Field(
        default="0.0.0.0",
        description="`zmq`: listen address. A loopback address is offered to agents on this machine only.",
    )
    port_base: int = Field(
        default=5550,
        ge=1,
        le=65534,
        description="`zmq`: port for heartbeats and commands. The next port carries log bytes.",
    )
    timeout: int = Field(
        default=1000,
        ge=1,
        le=600_000,
        description=(
            "`zmq`: timeout of a connection and its handshake, in milliseconds. After it the agent uses HTTP and "
            "retries later."
        ),
    )


class Communication(Section):
    """An additional channel besides HTTP."""

    adapter_type: Literal["mock", "zmq"] = Field(
        default="mock",
        description=(
            "An additional channel besides HTTP, which is always available on `web.port`. `mock`: simulated "
            "workers, see `mock_workers`. `zmq`: ZeroMQ with CURVE on two more ports, for agents and launchers "
            "whose Python has pyzmq; others use HTTP."
        ),
    )
    adapter_config: AdapterConfig = Field(default_factory=AdapterConfig, description="Settings of the channel.")


class Monitoring(Section):
    """Detection of unreachable hosts and suspect workers."""

    interval: Seconds = Field(default=1.0, description="Monitor interval, in seconds.")
    heartbeat_timeout: Seconds = Field(
        default=10.0,
        description=(
            "Seconds without a heartbeat after which a host is unreachable and its workers show `unknown`. Agents"
            " send several heartbeats within this time."
        ),
    )
    zombie_detection: bool = Field(
        default=True,
        description=(
            "Report running workers that appear to hang: both usage thresholds undercut, zombie or stopped "
            "processes, output that pauses far longer than before, a GPU that is busy at idle power. Nothing is "
            "stopped or restarted."
        ),
    )
    cpu_threshold: Percent = Field(
        default=0.1,
        description=(
            "Percent of one core. A worker whose CPU and memory are below their thresholds for 60 s is reported "
            "as suspect, unless it printed in the last minute, passes its health checks, or is a server without "
            "connections."
        ),
    )
    memory_threshold: Percent = Field(default=0.1, description="Percent of the host's memory; see `cpu_threshold`.")
    dead_man_url: Annotated[str, AfterValidator(checks.web_address)] = Field(
        default="",
        description=(
            "URL of a dead man's switch that the manager requests (GET) while it monitors the fleet. The service "
            "behind it alerts when the requests stop. Empty: none."
        ),
    )
    dead_man_interval: Seconds = Field(default=60.0, description="Interval of requests to `dead_man_url`, in seconds.")


class Recovery(Section):
    """Automatic recovery."""

    enable_auto_recovery: bool = Field(
        default=True,
        description="`false` disables automatic restarts, of processes on their hosts and of agents over SSH.",
    )
    stop_all_on_failure: bool = Field(
        default=False,
        description="When a worker becomes `failed`, stop all workers of the fleet. They stay stopped.",
    )
    task_reassignment: bool = Field(
        default=False,
        description=(
            "Let spares (`procguard_spare` in the inventory) run workers of other hosts: workers with "
            "`on_partition: fence` whose host is lost, after their lease has expired, and workers that are "
            "`failed`."
        ),
    )
    recovery_timeout: Seconds = Field(
        default=30.0,
        description=(
            "Seconds within which a restarted worker or agent must be running; otherwise the restart has failed."
        ),
    )
    max_recovery_attempts: int = Field(
        default=3,
        ge=0,
        le=1_000_000,
        description=(
            "Restart budget of a worker before it is `failed`; reset after 10 healthy minutes. Per worker: "
            "`restart.max_attempts`. 0: no restarts. Also the number of starts of a silent agent over SSH before "
            "the manager gives up, and the number of moves of a worker to other hosts without being healthy."
        ),
    )
    gpu_failures: Literal["log", "cordon", "move"] = Field(
        default="log",
        description=(
            "Response to a fatal fault of a GPU (docs/gpu-failures.md). `log`: an event and an alert. `cordon`: in "
            "addition, the GPU is allocated to no worker. `move`: in addition, its workers are moved to a spare, a "
            "gang as a whole."
        ),
    )
    causes: Annotated[dict[str, str], AfterValidator(causes_of_failure)] = Field(
        default_factory=dict,
        description=(
            "Custom causes of failure: a word, and the regular expression (RE2) that one of the last 20 lines of a "
            "failed attempt matches, e.g. `data_gone: 'dataset .* is not mounted'`. They take precedence over the "
            "built-in ones (docs/failure-causes.md)."
        ),
    )


class Tls(Section):
    """https for API and portal."""

    shorthand: ClassVar[str] = "mode"  # the key that `web.tls: auto` sets

    mode: Literal["off", "auto", "files"] = Field(
        default="off",
        description=(
            "`auto`, also written `tls: auto`: https with the manager's own CA, created beside the state; agents "
            "receive it over SSH at deployment. `files`: https with `cert` and `key`; implied by them. `off`: "
            "http. The port serves either http or https. See docs/security.md."
        ),
    )
    cert: Annotated[str, AfterValidator(checks.path_or_nothing)] = Field(
        default="", description="Certificate chain (PEM). Reloaded when the file is replaced."
    )
    key: Annotated[str, AfterValidator(checks.path_or_nothing)] = Field(
        default="", description="Private key (PEM), not encrypted."
    )
    ca: Annotated[str, AfterValidator(checks.path_or_nothing)] = Field(
        default="",
        description=(
            "CA certificates (PEM) that agents trust for `cert` or for an https proxy in front of the manager; "
            "installed at deployment. Empty: the hosts' own trust store."
        ),
    )

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        if (self.mode == "files") != bool(self.cert and self.key):
            raise ValueError("both cert and key, or `tls: auto`" if self.mode == "files" else "cert and key, or mode")
        return self


def _tls(value: Any) -> Any:
    """Expand the short forms: `auto`, and `{cert, key}` without a mode."""
    if isinstance(value, str) or value is False:
        return {"mode": value or "off"}
    if isinstance(value, dict) and "mode" not in value and ("cert" in value or "key" in value):
        return {**value, "mode": "files"}
    return value


class Web(Section):
    """HTTP: the API for agents, launchers and operators, and the portal."""

    enabled: bool = Field(
        default=True, description="`false` disables the portal. The API stays, because agents need it."
    )
    host: Annotated[str, AfterValidator(checks.address)] = Field(
        default="0.0.0.0",
        description="Listen address. Agents on other hosts must reach it. Access is denied by default.",
    )
    port: int = Field(
        default=5000, ge=0, le=65535, description="Port of the API and the portal. 0: any free port, printed at start."
    )
    trust_local: bool = Field(
        default=True,
        description=(
            "The manager's own user (and root) is an operator on this machine without a token. `false`: a token "
            "is always required; the first one is written to `operator.token` beside the state."
        ),
    )
    tls: Annotated[Tls, BeforeValidator(_tls)] = Field(default_factory=Tls, description="https for API and portal.")
    trusted_proxies: list[Annotated[str, AfterValidator(checks.network)]] = Field(
        default_factory=list,
        description=(
            "Addresses or networks of reverse proxies, e.g. `[10.0.0.2, 10.1.0.0/24]`, whose X-Forwarded-For and "
            "X-Forwarded-Proto are trusted. Requests through a proxy always need a token. Let a proxy on this "
            "machine connect from 127.0.0.2 and list that address, to distinguish it from local requests."
        ),
    )
    keep_audit: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        default=32 * 2**20,
        ge=2**20,
        description=(
            "Size of the audit log in the state's database, in bytes: half for changes, a quarter each for logins"
            " and refusals. The oldest records of each share are dropped. Also as text: `32 MiB`."
        ),
    )
    advertise: list[Annotated[str, AfterValidator(checks.manager_url)]] = Field(
        default_factory=list,
        description=(
            "Additional manager addresses for agents, e.g. `http://10.0.0.5:5000`: a NAT or proxy in front of the"
            " manager. The manager's own addresses are included, except those of a bridge without a route off the"
            " machine (docker0)."
        ),
    )
    limits: WebLimits = Field(default_factory=WebLimits, description="Limits per caller and in total.")


class Config(Section):
    """The whole configuration. `source`: path of its file; "" for the built-in values."""

    logging: Logging = Field(default_factory=Logging, description="The manager's own log.")
    state: State = Field(default_factory=State, description="The manager's state.")
    communication: Communication = Field(
        default_factory=Communication, description="An additional channel besides HTTP."
    )
    monitoring: Monitoring = Field(
        default_factory=Monitoring, description="Detection of unreachable hosts and suspect workers."
    )
    recovery: Recovery = Field(default_factory=Recovery, description="Automatic recovery.")
    web: Web = Field(default_factory=Web, description="The API for agents and operators, and the portal.")
    logs: Logs = Field(default_factory=Logs, description="Logs of the workers.")
    events: EventSettings = Field(default_factory=EventSettings, description="Event history.")
    groups: Annotated[dict[str, GroupPolicy], BeforeValidator(checks.nothing_said)] = Field(
        default_factory=dict,
        description=(
            "Policies of groups, by name; a worker names its group (`group: trainers`). Also as "
            "`procguard_groups` in an inventory; this configuration takes precedence. See [groups](groups.md)."
        ),
    )
    metrics: MetricSettings = Field(default_factory=MetricSettings, description="Prometheus metrics at `/metrics`.")
    notifications: Targets = Field(
        default_factory=list,
        description=(
            "Notification targets: a list of `{name, type, url, …}` for webhooks, Slack, Feishu, DingTalk, WeCom "
            "and e-mail. All keys: docs/notifications.md."
        ),
    )
    notify: Annotated[list[NotifyRoute], Field(max_length=200)] = Field(
        default_factory=list,
        description=(
            "Routes: a list of `{select, to, on}` that send alerts of selected workers to a target, in addition to its "
            "`events`. See docs/notifications.md."
        ),
    )
    alerts: Rules = Field(
        default_factory=list,
        description=(
            "Alerts on measurements: a list of `{name, select, measure, above or below, for}`. See "
            "docs/notifications.md."
        ),
    )
    source: str = Field(default="", exclude=True)

    @property
    def state_directory(self) -> str:
        """The absolute path of the directory of the state. One manager at a time holds its lock."""
        return os.path.dirname(self.state.state_file)


# ----------------------------------------------------------------------------------------------- the keys, documented


@dataclasses.dataclass(frozen=True)
class Key:
    """One configuration key, for documentation. `default`: the value in YAML."""

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

    Raises ConfigError for a missing or unreadable file, for invalid YAML (with file:line), or for invalid keys and
    values, all of them in one error.
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


def _file_values(path: str, mistakes: Mistakes) -> Json:
    data, mistakes.positions = loader.read(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"configuration {path}: {loader.shown(data)}: expected sections such as 'web:'",
            "configs/procguard_config.yaml is an example",
        )
    return {str(name): value for name, value in data.items()}


def _validated(values: Json, source: str, mistakes: Mistakes) -> Config | None:
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
    names = {target.name for target in config.notifications}
    for number, route in enumerate(config.notify):
        for name in route.to:
            if name not in names:
                expected = f"the name of a target of notifications ({', '.join(sorted(names)) or 'there is none'})"
                mistakes.add(f"notify.{number}.to", name, expected)
    return config


def _drop_empty_sections(values: Json, model: type[BaseModel]) -> None:
    """Remove sections that are null, which is how YAML reads a section whose keys are all commented out."""
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
        return ConfigError(f"{what}: {lines[0]}", "see docs/configuration.md for all keys")
    listed = "".join(f"\n  {line}" for line in lines)
    return ConfigError(f"{what}: {len(lines)} mistakes:{listed}\nsee docs/configuration.md for all keys")


def _apply_override(values: Json, text: str, mistakes: Mistakes) -> None:
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


def _put(values: Json, names: Sequence[str], value: Any) -> None:
    """Set a nested value. If the file has something else than a section on the path, leave it for validation to
    report."""
    for name in names[:-1]:
        inner = values.get(name)
        if inner is None:
            inner = values[name] = {}
        if not isinstance(inner, dict):
            return
        values = inner
    values[names[-1]] = value
