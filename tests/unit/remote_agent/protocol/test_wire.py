"""The golden messages in tests/wire/v1 are permanent, because agents outlive manager upgrades and the reverse.

A file is `<message>[.<case>].json`. A new field needs a new file that shows it; a file is never changed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol import messages
from remote_agent.protocol.records import empty_defaults
from tests.rows import each

GOLDEN = Path(__file__).parents[3] / "wire" / "v1"
MESSAGES = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): cls
    for name, cls in vars(messages).items()
    if dataclasses.is_dataclass(cls) and isinstance(cls, type)
}
PEOPLES_OWN_KEYS = (
    "env",
    "labels",
    "causes",
    "metrics",
    "requires",
    "events_acked",
    "log_offsets",
    "held",
    "reason_params",
    "detail_params",
    "message_params",
    "suspect_params",
)  # dictionaries where no key is unknown
RETIRED = {"agent_heartbeat": {"knows"}}  # obsolete keys; messages with them are still accepted
FILES = sorted(GOLDEN.glob("*.json"))


def message_of(path: Path) -> type[Any]:
    return MESSAGES[path.name.split(".")[0]]


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def assert_kept(expected: Any, actual: Any, where: str) -> None:
    """Everything in `expected` stands in `actual`, which may have more keys (fields added since)."""
    if isinstance(expected, dict):
        assert isinstance(actual, dict), where
        for key, value in expected.items():
            assert key in actual, f"{where}.{key} lost"
            assert_kept(value, actual[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(actual, list) and len(actual) == len(expected), where
        for index, (one, other) in enumerate(zip(expected, actual)):
            assert_kept(one, other, f"{where}[{index}]")
    else:
        assert actual == expected and type(actual) is type(expected), f"{where}: {expected!r} became {actual!r}"


def with_strangers(value: Any, key: str = "") -> Any:
    """The same message from a newer release: an unknown key in every object that is a message."""
    if isinstance(value, list):
        return [with_strangers(one) for one in value]
    if isinstance(value, dict) and key not in PEOPLES_OWN_KEYS:
        return {name: with_strangers(one, name) for name, one in value.items()} | {"from_a_newer_release": {"x": [1]}}
    return value


@each("path", FILES)
def test_golden_message_survives_decode_and_encode(path: Path) -> None:
    """A message survives the round trip through the other side's dataclass and real JSON."""
    golden = read(path)
    message = messages.decode(message_of(path), golden)
    for key in RETIRED.get(path.name.split(".")[0], ()):
        golden.pop(key, None)
    again = json.loads(json.dumps(messages.encode(message)))
    assert_kept(golden, again, path.stem)
    assert messages.decode(message_of(path), again) == message


@each("path", FILES)
def test_a_message_without_its_empty_fields_is_the_same_message(path: Path) -> None:
    message = messages.decode(message_of(path), read(path))
    short = json.loads(json.dumps(messages.encode_short(message)))
    assert messages.decode(message_of(path), short) == message
    assert_nothing_empty(type(message), short)


def assert_nothing_empty(cls: type[Any], short: dict[str, Any]) -> None:
    for name, value in short.items():
        assert name not in empty_defaults(cls) or value != empty_defaults(cls)[name], f"{cls.__name__}.{name}"
        nested = messages.NESTED.get(cls, {}).get(name)
        for one in value if isinstance(value, list) else [value]:
            if nested is not None:
                assert_nothing_empty(nested[1], one)


def test_an_exit_code_of_0_and_the_protocol_are_never_left_out() -> None:
    """Their values differ in meaning from their absence."""
    assert messages.encode_short(messages.ExitRecord(1, code=0))["code"] == 0
    assert messages.encode_short(messages.AgentHeartbeat("gpu01"))["protocol"] == messages.PROTOCOL_VERSION


@each("path", FILES)
def test_unknown_keys_are_ignored_at_every_depth(path: Path) -> None:
    golden = read(path)
    newer = with_strangers(golden)
    assert newer != golden
    assert messages.decode(message_of(path), newer) == messages.decode(message_of(path), golden)


@each("path", FILES)
def test_missing_keys_take_their_defaults(path: Path) -> None:
    """A message of an older release lacks newer fields; only fields without a default are required."""
    cls, golden = message_of(path), read(path)
    required = {
        item.name
        for item in dataclasses.fields(cls)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    smallest = {key: value for key, value in golden.items() if key in required}
    message = messages.decode(cls, smallest)
    for item in dataclasses.fields(cls):
        if item.default is not dataclasses.MISSING:
            assert getattr(message, item.name) == item.default
        elif item.default_factory is not dataclasses.MISSING:
            assert getattr(message, item.name) == item.default_factory()
    for name in required:
        with pytest.raises(messages.WireError):
            messages.decode(cls, {key: value for key, value in smallest.items() if key != name})


@each("name", sorted(MESSAGES))
def test_every_message_and_every_field_has_a_golden_example(name: str) -> None:
    """A field without a golden file is not guaranteed."""
    shown = {key for path in FILES if message_of(path) is MESSAGES[name] for key in read(path)}
    assert RETIRED.get(name, set()) <= shown
    assert shown - RETIRED.get(name, set()) == {item.name for item in dataclasses.fields(MESSAGES[name])}


@pytest.mark.parametrize("bad", [None, [], "text", 7])
def test_what_is_no_object_is_refused_by_name(bad: Any) -> None:
    with pytest.raises(messages.WireError, match="AgentReply: expected an object"):
        messages.decode(messages.AgentReply, bad)
    with pytest.raises(messages.WireError, match=r"AgentReply\.commands: expected a list"):
        messages.decode(messages.AgentReply, {"commands": {"seq": 1}})
