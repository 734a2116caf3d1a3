"""Decodes JSON into the wire's dataclasses and encodes them. Checks types and bounds before anything else uses them.

The shapes are those of remote_agent.protocol.messages; this module adds the limits for an untrusted sender. msgspec
decodes and encodes; pydantic decides about what msgspec refuses and explains it (docs/decisions/0063).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from procguard import log_metrics
from procguard.agent_api import http_io
from procguard.errors import UsageError
from remote_agent.agent.spec_file import mistakes_in
from remote_agent.protocol import messages as protocol

T = TypeVar("T")

EXPLAINED_BYTES = 64 * 1024  # in larger messages only the first error is reported
_COLLECTIONS = ("list", "dict", "set", "frozenset", "tuple")
MAX_WORKERS_PER_AGENT = 2_000
MAX_EVENTS_PER_HEARTBEAT = 10_000
MAX_RESULTS_PER_HEARTBEAT = 10_000
MAX_REASON_CHARS = 4_096
MAX_COMMAND_CHARS = 65_536
MAX_NAME_CHARS = 256
MAX_REPORTED_ATTEMPT = 10**8  # a tenth of the limit of logs, because the next host of the worker continues above it
MAX_GPUS = 256
MAX_PROCESSES_OF_GPU = 256
MAX_FOUND_LINES = 10_000
MAX_FOUND_CHARS = 4_096
MAX_HELD_FILES = 10_000
MAX_LEFT_NAMES = 20
MAX_ENV_ENTRIES = 1_000
MAX_LABELS = 64
MAX_HEALTH_CHECKS = 16
MAX_HOOKS = 16
MAX_SETUP_LINES = 200
_SHOWN_MISTAKES = 8
_IS_ID = re.compile(protocol.ID_PATTERN[1:-1]).fullmatch
_IS_METRIC_NAME = re.compile(protocol.LOG_METRIC_NAME).fullmatch

Hints = Mapping[str, tuple[str, str]]  # field -> (error code, next step) if its value is invalid


# pydantic then refuses NaN, infinities and numbers that overflow to them in every message. It reads this setting from
# each class separately, including those of fields.
for _message in vars(protocol).values():
    if isinstance(_message, type) and dataclasses.is_dataclass(_message):
        _message.__pydantic_config__ = {"allow_inf_nan": False}  # type: ignore[attr-defined]


def _failing_fast(schema: Any) -> Any:
    """The same schema, but lists and mappings fail at their first error. pydantic otherwise collects all errors: 256
    KiB of empty objects instead of events took four seconds."""
    if isinstance(schema, dict):
        made = {key: _failing_fast(value) for key, value in schema.items()}
        return {**made, "fail_fast": True} if schema.get("type") in _COLLECTIONS else made
    return [_failing_fast(one) for one in schema] if isinstance(schema, list) else schema


class _Kind:
    """The decoders of a message's class: msgspec's, and pydantic's core validator without its public layer, which
    takes a fifth of the time."""

    def __init__(self, cls: Any) -> None:
        validator = SchemaValidator(_failing_fast(TypeAdapter[Any](cls).core_schema))
        self.decode: Callable[[bytes], Any] = msgspec.json.Decoder(cls).decode
        self.validate_json = validator.validate_json
        self.validate_python = validator.validate_python
        self.check: Callable[[Any, list[str]], None] | None = _CHECKS.get(cls)


class _Kinds(dict[Any, _Kind]):
    def __missing__(self, cls: Any) -> _Kind:
        self[cls] = _Kind(cls)
        return self[cls]


_KINDS = _Kinds()
_encode = msgspec.json.Encoder().encode


def dumps(message: Any) -> bytes:
    """Encode a protocol message or a JSON object. Same result as `protocol.encode`, in half the time."""
    if type(message) is bytes:
        return message
    if type(message) is not dict:
        try:
            return _encode(message)
        except (TypeError, UnicodeEncodeError):  # a text with a reason's code, or one that UTF-8 cannot encode
            message = protocol.encode(message)
    return http_io.dumps(message)


def read(cls: type[T], body: bytes, max_objects: int = http_io.MAX_OBJECTS) -> T:
    """Decode a body to `cls`, parsed and validated in one pass if it is valid, which is nearly always. Raises
    UsageError as `validated` does. Infinite numbers are refused, except under ignored keys."""
    http_io.check_objects(body, max_objects)
    if http_io.has_long_number(body):
        return validated(cls, http_io.as_object(http_io.parse_json(body, max_objects)))
    try:
        message: T = _KINDS[cls].decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return _read_leniently(cls, body, max_objects)
    return message if _KINDS[cls].check is None else _bounded(cls, message)


def _read_leniently(cls: type[T], body: bytes, max_objects: int) -> T:
    """What the strict decoder refuses: pydantic accepts 3.0 and "3" for 3, and names all invalid fields."""
    if len(body) <= EXPLAINED_BYTES:
        return validated(cls, http_io.as_object(http_io.parse_json(body, max_objects)))
    try:
        message: T = _KINDS[cls].validate_json(body)
    except ValidationError as exc:
        raise _usage_error(cls, exc, {}) from exc
    return _bounded(cls, message)


def validated(cls: type[T], data: Any, hints: Hints | None = None) -> T:
    """Decode `data` as `cls`. Unknown keys are ignored. Raises UsageError that names all invalid fields."""
    try:
        message: T = _KINDS[cls].validate_python(data)
    except ValidationError as exc:
        raise _usage_error(cls, exc, hints or {}) from exc
    return _bounded(cls, message)


def _bounded(cls: type[T], message: T) -> T:
    check = _KINDS[cls].check
    mistakes: list[str] = []
    if check is not None:
        check(message, mistakes)
    if mistakes:
        raise UsageError(f"{cls.__name__}: {'; '.join(mistakes[:_SHOWN_MISTAKES])}", "see docs/protocol.md")
    return message


def _usage_error(cls: type[Any], exc: ValidationError, hints: Hints) -> UsageError:
    errors = exc.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(str(part) for part in item['loc']) or 'body'}: {item['msg']}" for item in errors]
    more = f" (and {len(lines) - _SHOWN_MISTAKES} more)" if len(lines) > _SHOWN_MISTAKES else ""
    named = next((str(item["loc"][0]) for item in errors if item["loc"] and item["loc"][0] in hints), "")
    code, next_step = hints.get(named, ("", "see docs/protocol.md"))
    return UsageError(f"{cls.__name__}: {'; '.join(lines[:_SHOWN_MISTAKES])}{more}", next_step, code=code)


def _check_plain_heartbeat(beat: protocol.WorkerHeartbeat, mistakes: list[str]) -> None:
    if beat.attempt is not None:
        _within(mistakes, "attempt", beat.attempt, MAX_REPORTED_ATTEMPT)
    if beat.last_exit is not None:
        _check_exit(mistakes, "last_exit", beat.last_exit)
    if beat.usage is not None:
        del beat.usage.gpus[MAX_GPUS:]
    if beat.reason:
        _longest(mistakes, "reason", beat.reason, MAX_REASON_CHARS)
    if beat.results:
        _check_results(beat.results, mistakes)


def _check_heartbeat(beat: protocol.AgentHeartbeat, mistakes: list[str]) -> None:
    facts = beat.facts
    if (
        _longest_of(
            beat.fleet_id,
            beat.release,
            beat.boot_id,
            beat.assignments_rev,
            facts.hostname,
            facts.os,
            facts.python,
            facts.user,
        )
        > MAX_NAME_CHARS
    ):  # one combined test, because reports are nearly always valid
        for name in ("fleet_id", "release", "boot_id", "assignments_rev"):
            _longest(mistakes, name, getattr(beat, name), MAX_NAME_CHARS)
        for name in ("hostname", "os", "python", "user"):
            _longest(mistakes, f"facts.{name}", getattr(facts, name), MAX_NAME_CHARS)
    if beat.channel_trouble or beat.disk_trouble or beat.disk_path:
        _longest(mistakes, "channel_trouble", beat.channel_trouble, MAX_REASON_CHARS)
        _longest(mistakes, "disk_trouble", beat.disk_trouble, MAX_NAME_CHARS)
        _longest(mistakes, "disk_path", beat.disk_path, 4096)
    if not 0 <= beat.free_port <= 65_535:
        _within(mistakes, "free_port", beat.free_port, 65_535)
    if beat.usage is not None:
        _check_gpus(mistakes, beat.usage)
    _most(mistakes, "workers", beat.workers, MAX_WORKERS_PER_AGENT)
    for report in beat.workers:
        if (
            not _IS_ID(report.worker_id)
            or len(report.reason) > MAX_REASON_CHARS
            or len(report.launch_digest) > MAX_NAME_CHARS
            or len(report.grant) > MAX_NAME_CHARS
            or not 0 <= report.attempt <= MAX_REPORTED_ATTEMPT
        ):
            _id(mistakes, "workers", report.worker_id)
            _longest(mistakes, "workers.reason", report.reason, MAX_REASON_CHARS)
            _longest(mistakes, "workers.launch_digest", report.launch_digest, MAX_NAME_CHARS)
            _longest(mistakes, "workers.grant", report.grant, MAX_NAME_CHARS)
            _within(mistakes, "workers.attempt", report.attempt, MAX_REPORTED_ATTEMPT)
        if report.suspect:
            _cut(report, "suspect", MAX_REASON_CHARS)
        protocol.with_reasons(report)
        if report.last_exit is not None:
            _check_exit(mistakes, "workers.last_exit", report.last_exit)
        if report.usage is not None:
            del report.usage.gpus[MAX_GPUS:]
        if report.metrics:
            _most(mistakes, "workers.metrics", report.metrics, protocol.MAX_LOG_METRICS)
            if not all(_IS_METRIC_NAME(one.name) for one in report.metrics):
                mistakes.append("workers.metrics: a name is not letters, digits and _")
        if report.health is not None:
            _longest(mistakes, "workers.health.detail", report.health.detail, MAX_REASON_CHARS)
            protocol.with_reasons(report.health)
    if beat.events:
        _check_events(beat.events, mistakes)
    if beat.results:
        _check_results(beat.results, mistakes)


def _check_events(events: list[protocol.WorkerEvent], mistakes: list[str]) -> None:
    _most(mistakes, "events", events, MAX_EVENTS_PER_HEARTBEAT)
    for event in events:
        _id(mistakes, "events", event.worker_id)
        _longest(mistakes, "events.reason", event.reason, MAX_REASON_CHARS)
        _within(mistakes, "events.attempt", event.attempt, MAX_REPORTED_ATTEMPT)
        protocol.with_reasons(event)
        if event.exit is not None:
            _check_exit(mistakes, "events.exit", event.exit)


def _check_exit(mistakes: list[str], where: str, record: protocol.ExitRecord) -> None:
    _longest(mistakes, f"{where}.reason", record.reason, MAX_REASON_CHARS)
    _cut(record, "detail", MAX_REASON_CHARS)
    _cut(record, "cause", MAX_NAME_CHARS)
    _cut(record, "line", MAX_FOUND_CHARS)
    _cut(record, "line_stream", MAX_NAME_CHARS)
    _within(mistakes, f"{where}.line_offset", record.line_offset, 2**62)
    _most(mistakes, f"{where}.left_names", record.left_names, MAX_LEFT_NAMES)
    for name in record.left_names:
        _longest(mistakes, f"{where}.left_names", name, MAX_NAME_CHARS)
    protocol.with_reasons(record)


def _check_gpus(mistakes: list[str], usage: protocol.HostUsage) -> None:
    if usage.gpu_trouble or usage.kernel_log_trouble:
        _cut(usage, "gpu_trouble", MAX_REASON_CHARS)
        _cut(usage, "kernel_log_trouble", MAX_REASON_CHARS)
    del usage.gpu_faults[MAX_GPUS:]
    for fault in usage.gpu_faults:
        if fault.gpu is not None:
            _within(mistakes, "usage.gpu_faults.gpu", fault.gpu, MAX_GPUS - 1)
        _within(mistakes, "usage.gpu_faults.code", fault.code, 10**6)
        _within(mistakes, "usage.gpu_faults.count", fault.count, 2**53)
        _within(mistakes, "usage.gpu_faults.at", fault.at, 2**33)
        for name in ("kind", "uuid"):
            _cut(fault, name, MAX_NAME_CHARS)
        _cut(fault, "detail", MAX_REASON_CHARS)
    del usage.gpus[MAX_GPUS:]
    for gpu in usage.gpus:
        del gpu.throttled[8:]
        gpu.throttled = [one[:MAX_NAME_CHARS] for one in gpu.throttled]
        _within(mistakes, "usage.gpus.index", gpu.index, MAX_GPUS - 1)
        for name in ("uuid", "name", "worker_id"):
            _cut(gpu, name, MAX_NAME_CHARS)
        _cut(gpu, "trouble", MAX_REASON_CHARS)
        del gpu.processes[MAX_PROCESSES_OF_GPU:]
        for process in gpu.processes:
            for name in ("name", "user", "worker_id"):
                _cut(process, name, MAX_NAME_CHARS)


def _check_found(result: protocol.LogSearchResult, mistakes: list[str]) -> None:
    _longest(mistakes, "reason", result.reason, MAX_REASON_CHARS)
    protocol.with_reasons(result)
    _most(mistakes, "lines", result.lines, MAX_FOUND_LINES)
    if sum(map(len, (result.held or {}).values())) > MAX_HELD_FILES:
        mistakes.append(f"held: more than {MAX_HELD_FILES} files")
    _within(mistakes, "found", result.found, 2**53)
    _within(mistakes, "bytes", result.bytes, 2**62)
    for line in result.lines:
        _id(mistakes, "lines", line.worker_id)
        _longest(mistakes, "lines.text", line.text, MAX_FOUND_CHARS)
        _within(mistakes, "lines.attempt", line.attempt, 10**9)
        _within(mistakes, "lines.offset", line.offset, 2**62)
        _within(mistakes, "lines.end", line.end, MAX_FOUND_CHARS)
        _within(mistakes, "lines.begin", line.begin, MAX_FOUND_CHARS)


def _check_results(results: list[protocol.CommandResult], mistakes: list[str]) -> None:
    _most(mistakes, "results", results, MAX_RESULTS_PER_HEARTBEAT)
    for result in results:
        _longest(mistakes, "results.command_id", result.command_id, MAX_NAME_CHARS)
        _longest(mistakes, "results.message", result.message, MAX_REASON_CHARS)
        protocol.with_reasons(result)


def _check_registration(registration: protocol.Registration, mistakes: list[str]) -> None:
    _id(mistakes, "worker_id", registration.worker_id)
    _longest(mistakes, "host", registration.host, MAX_NAME_CHARS)
    if not registration.host.isprintable():  # shown in logs, tables and messages
        mistakes.append("host: contains unprintable characters")
    _command(mistakes, "command", registration.command)
    digest = registration.secret_sha256
    if digest and (len(digest) != 64 or not set(digest) <= set("0123456789abcdef")):
        mistakes.append("secret_sha256: expected 64 hexadecimal digits")
    if registration.spec is not None:
        check_spec(registration.spec, mistakes, "spec.")


def _check_renewal(renewal: protocol.SecretRenewal, mistakes: list[str]) -> None:
    _longest(mistakes, "rotation", renewal.rotation, MAX_NAME_CHARS)
    digest = renewal.secret_sha256
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        mistakes.append("secret_sha256: expected 64 hexadecimal digits")


def check_spec(spec: protocol.WorkerSpec, mistakes: list[str], where: str = "") -> None:
    """Check the limits of one specification. `where`: the path of its fields for messages."""
    _command(mistakes, where + "command", spec.command)
    _longest(mistakes, where + "working_dir", spec.working_dir, 4096)
    _most(mistakes, where + "env", spec.env, MAX_ENV_ENTRIES)
    _most(mistakes, where + "labels", spec.labels, MAX_LABELS)
    _most(mistakes, where + "health", spec.health, MAX_HEALTH_CHECKS)
    for name, value in spec.env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            mistakes.append(f"{where}env: {name[:40]!r} cannot be an environment variable")
        _longest(mistakes, where + "env", value, MAX_COMMAND_CHARS)
    for name, value in spec.labels.items():
        _longest(mistakes, where + "labels", name + value, MAX_NAME_CHARS)
    if spec.group and not protocol.valid_id(spec.group):
        mistakes.append(f"{where}group: {spec.group[:40]!r} does not match {protocol.ID_PATTERN}")
    _longest(mistakes, where + "stop_signal", spec.stop_signal, 16)
    mistakes.extend(where + mistake for mistake in log_metrics.mistakes(spec.metrics))
    _check_start(spec, mistakes, where)


def _check_start(spec: protocol.WorkerSpec, mistakes: list[str], where: str) -> None:
    files = [spec.env_file] if isinstance(spec.env_file, str) else spec.env_file
    for name, path in (("venv", spec.venv), ("conda", spec.conda), *(("env_file", path) for path in files)):
        _longest(mistakes, where + name, path, 4096)
    _most(mistakes, where + "env_file", files, MAX_HOOKS)
    _longest(mistakes, where + "user", spec.user, MAX_NAME_CHARS)
    _most(mistakes, where + "setup", spec.setup, MAX_SETUP_LINES)
    _longest(mistakes, where + "setup", "".join(spec.setup), MAX_COMMAND_CHARS)
    if spec.container is not None:
        words = [spec.container.image, spec.container.network, spec.container.user, spec.container.shm_size]
        for name, listed in (("mounts", spec.container.mounts), ("options", spec.container.options)):
            _most(mistakes, f"{where}container.{name}", listed, MAX_SETUP_LINES)
            words += listed
        _longest(mistakes, where + "container", "".join(words), MAX_COMMAND_CHARS)
    for name in ("pre_start", "post_stop"):
        hooks: list[protocol.Hook] = getattr(spec, name)
        _most(mistakes, where + name, hooks, MAX_HOOKS)
        for hook in hooks:
            _command(mistakes, f"{where}{name}.command", hook.command)
    mistakes.extend(where + mistake for mistake in mistakes_in(spec))


def _command(mistakes: list[str], name: str, command: str | list[str]) -> None:
    words = [command] if isinstance(command, str) else command
    if sum(len(word) for word in words) > MAX_COMMAND_CHARS:
        mistakes.append(f"{name}: longer than {MAX_COMMAND_CHARS} characters")
    if any("\0" in word for word in words):
        mistakes.append(f"{name}: contains a NUL character")


def _id(mistakes: list[str], where: str, text: str) -> None:
    if not _IS_ID(text):
        mistakes.append(f"{where}: worker_id {text[:40]!r} does not match {protocol.ID_PATTERN}")


def _longest(mistakes: list[str], where: str, text: str, limit: int) -> None:
    if len(text) > limit:
        mistakes.append(f"{where}: longer than {limit} characters")


def _longest_of(*texts: str) -> int:
    return max(map(len, texts))


def _cut(message: Any, name: str, limit: int) -> None:
    """Truncate a text of a driver, kernel or user, whose length the agent does not control."""
    text = getattr(message, name)
    if len(text) > limit:
        setattr(message, name, text[:limit])


def _within(mistakes: list[str], where: str, value: float, highest: int) -> None:
    if not 0 <= value <= highest:
        mistakes.append(f"{where}: {str(value)[:24]}, expected 0 to {highest}")


def _most(mistakes: list[str], where: str, items: Any, limit: int) -> None:
    if len(items) > limit:
        mistakes.append(f"{where}: {len(items)} entries, at most {limit}")


_CHECKS: dict[Any, Callable[[Any, list[str]], None]] = {
    protocol.AgentHeartbeat: _check_heartbeat,
    protocol.LogSearchResult: _check_found,
    protocol.Registration: _check_registration,
    protocol.SecretRenewal: _check_renewal,
    protocol.WorkerHeartbeat: _check_plain_heartbeat,
    protocol.WorkerSpec: check_spec,
}
