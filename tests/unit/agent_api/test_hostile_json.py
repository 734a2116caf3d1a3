"""The most expensive JSON of each kind of caller costs at most a multiple of the largest honest message.

Measured in CPU time of this thread, beside an anchor in the same run: an agent's heartbeat of 2,000 workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from procguard.agent_api import decode, http_io
from procguard.agent_api.handlers import MAX_REGISTRATION_BYTES
from procguard.errors import ProcGuardError
from remote_agent.protocol import messages

MAX_RATIO = 6.0  # of a registration, from a stranger; measured 0.1 to 2


def cost_s(work: Callable[[], Any]) -> float:
    began = time.thread_time()
    try:
        work()
    except ProcGuardError:
        pass
    return time.thread_time() - began


@pytest.fixture(scope="module")
def anchor_s() -> float:
    workers = [messages.WorkerReport(f"worker-{number}", state="running", attempt=1) for number in range(2_000)]
    body = decode.dumps(messages.AgentHeartbeat("a", workers=workers, at=1.0))
    decode.read(messages.AgentHeartbeat, body)
    return min(cost_s(lambda: decode.read(messages.AgentHeartbeat, body)) for _ in range(5))


def worst_registrations(size: int) -> dict[str, bytes]:
    begin = b'{"worker_id":"a","command":"b","host":"h",'
    return {
        "objects": begin + b'"x":[' + b"{}," * (size // 3) + b"1]}",
        "numbers": begin + b'"x":[' + b"1," * (size // 2) + b"1]}",
        "nothing that is required": begin + b'"spec":{"command":"x","health":[' + b"{}," * (size // 3) + b"{}]}}",
        "wrong values": begin + b'"spec":{"command":[' + b"1," * (size // 2) + b"1]}}",
        "wrong labels": begin + b'"spec":{"command":"x","labels":{' + b'"a":1,' * (size // 6) + b'"b":1}}}',
        "many labels": begin
        + b'"spec":{"command":"x","labels":{'
        + b",".join(b'"%x":1' % number for number in range(size // 10))
        + b"}}}",
        "exponents in text": begin + b'"x":[' + b'"a1e999",' * (size // 9) + b"1]}",
        "deep": begin + b'"x":' + b"[" * size,
        "the same keys": begin + b'"spec":1,' * (size // 9) + b'"a":1}',
        "digits": begin + b'"x":' + b"1" * size + b"}",
        "a long fraction": begin + b'"x":1.' + b"1" * size + b"}",
        "no JSON": begin + b'"x":[' + b"1," * (size // 2) + b"}",
    }


@pytest.mark.parametrize("name", worst_registrations(100))
def test_no_registration_of_a_stranger_takes_long(name: str, anchor_s: float) -> None:
    body = worst_registrations(MAX_REGISTRATION_BYTES - 200)[name]
    assert len(body) < MAX_REGISTRATION_BYTES * 1.05
    took_s = min(cost_s(lambda: decode.read(messages.Registration, body)) for _ in range(2))
    assert took_s < max(MAX_RATIO * anchor_s, 0.02), f"{1000 * took_s:.0f} ms beside {1000 * anchor_s:.0f} ms"


def test_events_that_are_none_are_given_up_at_the_first() -> None:
    """Before, 256 KiB of them took four seconds and 1 MiB 21 s: pydantic collected five mistakes of each."""
    body = b'{"agent_id":"a","events":[' + b"{}," * 59_000 + b"{}]}"
    began = time.thread_time()
    with pytest.raises(ProcGuardError, match=r"events\.0\.worker_id"):
        decode.read(messages.AgentHeartbeat, body)
    assert time.thread_time() - began < 0.5


def test_an_agent_with_all_it_may_have_is_understood() -> None:
    workers = [messages.WorkerReport(f"worker-{number}") for number in range(2_000)]
    events = [
        messages.WorkerEvent(f"worker-{number}", number, 1e9, 1, "running", "failed", "exit code 1")
        for number in range(10_000)
    ]
    results = [messages.CommandResult(f"c-{number}", "done", "") for number in range(10_000)]
    beat = messages.AgentHeartbeat("a", workers=workers, events=events, results=results, at=1.0)
    assert len(decode.read(messages.AgentHeartbeat, decode.dumps(beat)).events) == 10_000


def test_text_in_strings_is_not_taken_for_a_number_beyond_all_bounds() -> None:
    body = b'["' + b'a1e999 ,1e999x","' * 5_000 + b'"]'
    assert http_io.parse_json(body)[0] == "a1e999 ,1e999x"
    with pytest.raises(ProcGuardError, match="out of range"):
        http_io.parse_json(b'["' + b'a1e999","' * 5_000 + b'",1e999]')


def test_more_objects_than_anybody_needs_are_refused_before_they_are_made() -> None:
    with pytest.raises(ProcGuardError) as refused:
        http_io.parse_json(b"[" + b"{}," * http_io.MAX_OBJECTS + b"1]")
    assert refused.value.http_status == 413
    assert len(http_io.parse_json(b"[" + b"[]," * 1_000 + b"1]")) == 1_001
