"""Bodies decoded in one pass: the same messages and errors as step by step."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procguard.agent_api import decode, http_io
from procguard.errors import UsageError
from procguard.fleet.shapes import log_metrics
from remote_agent.protocol import messages
from tests.sizes import examples

REPORT = {"worker_id": "w1", "state": "running", "pid": 7, "usage": {"cpu_percent": 1.5, "rss_bytes": 10}}
BEAT: dict[str, Any] = {"agent_id": "h1", "at": 1.0, "workers": [REPORT], "facts": {"cpus": 4}}


def step_by_step(body: bytes) -> Any:
    return decode.validated(messages.AgentHeartbeat, http_io.as_object(http_io.parse_json(body)))


def outcome(read: Any, body: bytes) -> Any:
    try:
        return read(body)
    except UsageError as exc:
        return str(exc)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(BEAT).encode(),
        json.dumps({**BEAT, "news": {"of": ["a", "later", "release"]}}).encode(),
        json.dumps({**BEAT, "pid": "seven"}).encode(),
        json.dumps({**BEAT, "pid": 1.0}).encode(),
        json.dumps({**BEAT, "pid": "7"}).encode(),
        json.dumps({**BEAT, "workers": [{**REPORT, "worker_id": "../w"}]}).encode(),
        json.dumps({**BEAT, "workers": [{**REPORT, "state": "dancing"}, 7]}).encode(),
        json.dumps({**BEAT, "workers": [{**REPORT, "reason": "loss is NaN"}]}).encode(),
        json.dumps({**BEAT, "workers": [{**REPORT, "reason": "loss is 1e999"}]}).encode(),
        b'{"agent_id": "h1", "at": NaN}',
        b'{"agent_id": "h1", "at": -Infinity}',
        b'{"agent_id": "h1", "at": 1e999}',
        b'{"agent_id": "h1", "at": -1.5E+4000}',
        b'{"agent_id": "h1", "at": ' + b"1" * 250 + b"e99}",
        b'{"agent_id": "h1", "at": ' + b"9" * 400 + b"}",
        b'{"agent_id": "h1", "pid": ' + b"9" * 400 + b"}",
        b'{"agent_id": "h1", "agent_id": "h2"}',
        b'{"agent_id": "\\ud800"}',
        b'{"agent_id": "\xff"}',
        b"[]",
        b"null",
        b"{",
        b"",
        b" \n",
        b'{"agent_id": "h1"} more',
    ],
)
def test_one_pass_gives_what_step_by_step_gives(body: bytes) -> None:
    assert outcome(lambda text: decode.read(messages.AgentHeartbeat, text), body) == outcome(step_by_step, body)


def test_a_decoded_report_equals_and_encodes_as_one_that_was_made() -> None:
    """The decoder leaves simple defaults to the class."""
    read = decode.read(messages.AgentHeartbeat, json.dumps(BEAT).encode())
    made = messages.AgentHeartbeat("h1", at=1.0, facts=messages.HostFacts(cpus=4))
    usage = messages.WorkerUsage(cpu_percent=1.5, rss_bytes=10)
    made.workers.append(messages.WorkerReport("w1", "running", pid=7, usage=usage))
    assert read == made
    assert made == read
    assert messages.encode(read) == messages.encode(made)
    assert messages.encode_short(read) == messages.encode_short(made)
    read.workers[0].pid = 8
    assert read != made


def test_a_metric_without_a_value_is_shown_without_one() -> None:
    body = json.dumps({**BEAT, "workers": [{**REPORT, "metrics": [{"name": "loss"}]}]}).encode()
    (shown,) = log_metrics.listed(decode.read(messages.AgentHeartbeat, body).workers[0])
    assert shown == {"name": "loss", "value": None, "at": 0.0, "total": None, "eta_s": None, "trouble": ""}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*REPORT, *BEAT]), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*BEAT, "usage", "events", "results", "pid", "beat"]), VALUES))
@settings(max_examples=examples(150), deadline=None)
def test_one_pass_gives_what_step_by_step_gives_whatever_comes(value: dict[str, Any]) -> None:
    body = json.dumps({"agent_id": "h1", **value}).encode()
    found, expected = (
        outcome(lambda text: decode.read(messages.AgentHeartbeat, text), body),
        outcome(step_by_step, body),
    )
    if isinstance(expected, str) and not isinstance(found, str):  # the invalid number was in a key that is not read
        expected = outcome(step_by_step, json.dumps({"agent_id": "h1", **finite(value)}).encode())
    assert found == expected


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1.5E+4000", "9" * 400])
def test_a_number_without_bounds_is_refused_where_it_is_read(number: str) -> None:
    for body in (
        '{"agent_id": "h1", "workers": [{"worker_id": "w1", "usage": {"cpu_percent": NUMBER}}]}',
        '{"agent_id": "h1", "usage": {"load1": NUMBER}}',
        '{"agent_id": "h1", "pid": NUMBER}',
    ):
        with pytest.raises(UsageError):
            decode.read(messages.AgentHeartbeat, body.replace("NUMBER", number).encode())


@pytest.mark.parametrize(
    "body, may",
    [
        (b'{"a": 1e999}', True),
        (b"[-1.5E+4000]", True),
        (b"1e400", True),
        (b"1" * 210 + b"e99", True),
        (b'{"a": 1e99}', False),
        (b'{"digest": "3e123", "other": "ab3e123", "uuid": "0e12-3e456-9e999"}', False),
    ],
)
def test_numbers_beyond_all_bounds_are_sought_where_numbers_stand(body: bytes, may: bool) -> None:
    assert http_io.may_overflow(body) is may


SPEC = messages.WorkerSpec(command=["python", "train.py"], env={"A": "ä", "B": ""}, labels={"team": "vision"})
USAGE = messages.WorkerUsage(cpu_percent=1e-7, rss_bytes=2**60, gpus=[0, 3], gpu_percent=float("nan"))
EXIT = messages.ExitRecord(3, at=1790000000.25, code=None, signal=9, reason="killed by signal 9")
COMMAND = messages.Command(1790000000000, "c-1", "w1", "restart")


@pytest.mark.parametrize(
    "message",
    [
        messages.AgentReply(),
        messages.AgentReply(
            fleet_id="f-1",
            assignments_rev="abc",
            assignments=[messages.Assignment("w1", SPEC, "running", 2, 28493125000064, lease_s=30.0)],
            commands=[COMMAND],
            events_acked={"w1": 1790000000001},
            leases=[messages.Lease("w1", 5, 29.5)],
        ),
        messages.WorkerReply("w1", commands=[COMMAND, COMMAND]),
        messages.WorkerReply("w\ud800"),  # no UTF-8 has that
        messages.RegisterReply("registered", "w1", log_offsets={"1.out": 7}),
        messages.AgentHeartbeat(
            "h1", workers=[messages.WorkerReport("w1", "running", usage=USAGE, last_exit=EXIT, since=0.1 + 0.2)]
        ),
        {"proof": "x", "zmq": {"port": 1}},
    ],
)
def test_an_answer_is_written_as_its_values_would_be(message: Any) -> None:
    values = message if isinstance(message, dict) else messages.encode(message)
    assert without_empty_codes(decode.dumps(message)) == without_empty_codes(http_io.dumps(values))


def without_empty_codes(data: bytes) -> bytes:
    """`encode` leaves out the code and the parameters of a text that has none, and metrics where none are declared."""
    return re.sub(rb',"([a-z]+_(code":""|params":\{\})|metrics":(\{\}|\[\]))', b"", data)
