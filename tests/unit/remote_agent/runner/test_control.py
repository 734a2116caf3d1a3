"""The control socket's JSON lines: partial reads, floods, silence and invalid input."""

from __future__ import annotations

import json
import socket

import pytest

from remote_agent.runner import control
from remote_agent.runner.control import JsonConnection, LineBuffer, RunnerLink


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    ends = JsonConnection(one), JsonConnection(other)
    yield ends
    for end in ends:
        end.close()


def test_messages_arrive_whole_and_in_order(pair):
    """Several in one read."""
    here, there = pair
    here.send({"op": "assign"})
    here.send({"op": "kill", "attempt": 3, "id": "c-1"})
    assert there.receive() == [{"op": "assign"}, {"op": "kill", "attempt": 3, "id": "c-1"}]
    assert there.receive() == [] and not there.closed


def test_lines_in_parts_are_put_together():
    """A read may end anywhere, even within a character."""
    buffer = LineBuffer()
    line = json.dumps({"detail": "größer"}, ensure_ascii=False).encode() + b"\n"
    found = [message for index in range(len(line)) for message in buffer.feed(line[index : index + 1])]
    assert found == [{"detail": "größer"}] and buffer.dropped == 0


def test_nonsense_is_dropped_and_counted():
    """Neither invalid JSON nor a bare number ends the connection."""
    buffer = LineBuffer()
    assert buffer.feed(b'{"a":\n17\n\xff\xfe\n\n{"a":1}\n') == [{"a": 1}]
    assert buffer.dropped == 3


def test_endless_line_is_bounded():
    """A line beyond the bound is skipped to its end; those before and after it are processed."""
    buffer = LineBuffer()
    assert buffer.feed(b'{"a":0}\n' + b"x" * (control.MAX_LINE_BYTES + 1)) == [{"a": 0}]
    for _ in range(3):
        assert buffer.feed(b"x" * control.MAX_LINE_BYTES) == []
    assert buffer.feed(b'x\n{"a":1}\n') == [{"a": 1}]
    assert buffer.dropped == 1 and len(buffer._rest) == 0


def test_last_words_of_a_closing_peer_are_received(pair):
    """bye comes with the end of the stream."""
    here, there = pair
    there.send({"type": "bye"})
    there.close()
    assert here.receive() == [{"type": "bye"}] and here.closed
    here.send({"op": "assign"})  # no error: who reads `closed` knows


def test_slow_peer_is_buffered_then_given_up(pair):
    """Data that the socket does not accept waits; a peer that never reads costs at most the bound."""
    here, there = pair
    message = {"fill": "x" * 60_000}
    for _ in range(8):
        here.send(message)
    assert here.wants_write and not here.closed
    got = 0
    while got < 8:
        got += len(there.receive())
        here.flush()
    assert not here.wants_write
    for _ in range(100):
        here.send(message)
    assert here.closed


def test_connect_says_hello_and_reports_nobody(tmp_path):
    """A missing socket and one without a listener raise OSError for the agent to handle."""
    path = str(tmp_path / "s")[-100:]
    with pytest.raises(FileNotFoundError):
        RunnerLink.connect(path + "none")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    with pytest.raises(ConnectionRefusedError):
        RunnerLink.connect(path)
    listener.listen(1)
    link = RunnerLink.connect(path)
    link.assign()
    link.restart(3, "c-1")
    link.kill(3, "c-2")
    link.health("failing", "http: 500", restart=True)
    peer = JsonConnection(listener.accept()[0])
    assert [message.get("op") for message in peer.receive()] == ["hello", "assign", "restart", "kill", "health"]
    for end in (peer, link, listener):
        end.close()


def test_argv_of_a_runner():
    """Isolated, without site: small, and independent of the agent's environment."""
    assert control.runner_argv("/usr/bin/python3", "/rel", "/w", "/r") == [
        "/usr/bin/python3", "-I", "-S", "/rel/remote_agent/runner/__main__.py",
        "--worker-dir", "/w", "--runtime-dir", "/r"
    ]  # fmt: skip
    assert control.runner_argv("p", "/rel", "/w", "/r", (7, 99))[-2:] == ["--lease", "7:99"]
