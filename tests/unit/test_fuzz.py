"""Any bad input is a clear error: configuration, selectors, messages, stored files.

Each case is a real document with a mutation: characters changed, or a part replaced by another kind of value. What was
found stays below as an @example. What reads the bytes of others is fuzzed by coverage, inventories and frames too:
scripts/test_fuzz_targets.py.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from procguard.agent_api import decode, http_io
from procguard.config import schema as config
from procguard.errors import ConfigError, ProcGuardError, UsageError
from procguard.fleet.store import legacy, snapshot
from procguard.fleet.workers import selectors
from remote_agent.agent import journal
from remote_agent.protocol import messages
from remote_agent.runner import control
from tests.sizes import examples

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BOUNDED = settings(
    max_examples=examples(60, 5_000),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CONFIGS = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("configs/*.yaml"))]
KEYS = [key.path for key in config.keys()]  # noqa: SIM118 -- a function
SYNTAX = st.sampled_from([b":", b"- ", b"{", b"[", b"&a ", b"*a", b"\t", b"<<: ", b"'", b"!!int ", b"2026-99-99"])
STRANGE = st.sampled_from([
    None, True, False, 0, -1, 2**70, 1e308, float("inf"), float("nan"), "", " ", "x" * 5000, "\0", "\ud800", "a\nb",
    "{{ 1/0 }}", "{{ loop }}", "{{ [0] * 10 ** 3 }}", "{% for %}", "env:NOPE", "../../x", "🦀", "1e999", "0x7f", "~",
    "2026-01-01", "2026-99-99",
    [], {}, [[]], [None], {"": {}}, {1: 2}, {None: None}, {"a": [{"b": {}}]}, b"\xff", [1, "a", {}],
])  # fmt: skip
ANYTHING = st.recursive(
    STRANGE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def locations(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield from locations(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return made


@st.composite
def strange_documents(draw: Any, text: str) -> str:
    """A document of YAML with one part replaced, or one part more."""
    value = yaml.safe_load(text)
    path = draw(st.sampled_from(list(locations(value))))
    new = draw(ANYTHING)
    with contextlib.suppress(Exception):
        return str(yaml.dump(replaced(value, path, new), allow_unicode=True))
    return "a: b"


@st.composite
def garbled(draw: Any, text: str) -> bytes:
    """A document with a few bytes changed, lost, or put in."""
    data = bytearray(text.encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        cut = draw(st.integers(0, 12))
        data[at : at + cut] = draw(st.binary(max_size=6) | SYNTAX)
    return bytes(data)


def only(kinds: type[BaseException] | tuple[type[BaseException], ...], act: Callable[[], Any]) -> None:
    """It works, or fails with one of these errors and a short message."""
    try:
        act()
    except kinds as exc:
        assert str(exc).strip() and len(str(exc)) < 20_000


# ------------------------------------------------------------------------------------------------- configuration


@BOUNDED
@given(data=st.sampled_from(CONFIGS).flatmap(lambda text: garbled(text) | strange_documents(text).map(str.encode)))
@example(data=b"? {a: b}\n: c\n")
@example(data=b"web: &a [*a]\n")
@example(data=b"\xff\xfe")
@example(data=b"web: {limits: {headers_size: [1]}}\n")
@example(data=b"web: {port: !!python/object/apply:os.system [id]}\n")
@example(data=b"a: " + b"[" * 2000)  # RecursionError
@example(data=b"\0web: {}\n")  # ReaderError
@example(data=b"a: 2026-99-99\n")  # ValueError
@example(data=b"a: &b {c: *b}\n")
@example(data=b"a: !!int ''\n")  # IndexError
@example(data=b"a: !!bool x\n")  # KeyError
@example(data=b"a: !!timestamp x\n")  # AttributeError
def test_any_configuration_is_read_or_refused_with_its_mistakes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    only(ConfigError, lambda: config.load(str(path)))


@BOUNDED
@given(key=st.sampled_from(KEYS) | st.text(max_size=20), value=st.text(max_size=40))
def test_any_set_is_taken_or_refused(key: str, value: str) -> None:
    only(ConfigError, lambda: config.load(None, [f"{key}={value}"]))


# ----------------------------------------------------------------------------------------------------- selectors


@BOUNDED
@given(text=st.text(max_size=60) | st.text("abcst=!,()~*<>\"' -_|&", max_size=40))
def test_any_selector_is_read_or_refused(text: str) -> None:
    only(UsageError, lambda: selectors.parse(text).matches({"worker_id": "w", "labels": {}, "state": "running"}))


# ------------------------------------------------------------------------------------------------------ messages

MESSAGES: list[tuple[type[Any], Any]] = []
for golden in sorted((ROOT / "tests/wire/v1").glob("*.json")):
    name = "".join(word.title() for word in golden.name.split(".")[0].split("_"))
    cls = getattr(messages, name, None)
    if dataclasses.is_dataclass(cls):
        MESSAGES += [(cls, json.loads(line)) for line in [golden.read_text(encoding="utf-8")]]  # type: ignore[list-item]


@BOUNDED
@given(data=st.data())
def test_any_message_is_understood_or_refused_by_manager_and_agent(data: st.DataObject) -> None:
    cls, value = data.draw(st.sampled_from(MESSAGES))
    path = data.draw(st.sampled_from(list(locations(value))))
    with contextlib.suppress(TypeError, ValueError, UnicodeEncodeError):
        body = json.dumps(replaced(value, path, data.draw(ANYTHING))).encode()
        only(UsageError, lambda: http_io.dumps(messages.encode(decode.read(cls, body))))
        only(messages.WireError, lambda: messages.decode(cls, json.loads(body)))


@BOUNDED
@given(data=st.binary(max_size=200) | ANYTHING.map(repr).map(lambda text: text.encode("utf-8", "replace")))
@example(data=b"[" * 100_000)
@example(data=b'{"a":' * 5_000)
def test_any_body_is_parsed_or_refused(data: bytes) -> None:
    only(ProcGuardError, lambda: http_io.parse_json(data))


# -------------------------------------------------------------------------------------- between agent and runner


@BOUNDED
@given(
    pieces=st.lists(
        st.binary(max_size=80) | st.sampled_from([b'{"v": 1, "op": "hel', b'lo"}\n', b"\n", b"[1]\n", b"nul"])
    )
)
def test_any_line_between_agent_and_runner_is_a_message_or_ignored(pieces: list[bytes]) -> None:
    buffer = control.LineBuffer()
    for piece in pieces:
        try:
            assert all(isinstance(message, dict) for message in buffer.feed(piece))
        except (ValueError, OSError) as exc:
            assert str(exc)
            return


# -------------------------------------------------------------------------------------------------------- files


@BOUNDED
@given(data=st.binary(max_size=300) | st.lists(st.binary(max_size=40)).map(b"\n".join))
def test_a_snapshot_and_a_journal_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.yaml"
    path.write_bytes(data)
    only(snapshot.Changed, lambda: snapshot.read(str(path)))
    path.with_name("state.yaml.j00000001").write_bytes(data)
    only(ProcGuardError, lambda: legacy.read(str(path)))


@BOUNDED
@given(data=st.binary(max_size=300) | st.lists(st.binary(max_size=40)).map(b"\n".join))
def test_an_agent_s_spool_is_read_whatever_stands_in_it(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "spool.jsonl"
    path.write_bytes(data)
    only((OSError, ValueError), lambda: journal.AgentJournal(str(path)))
