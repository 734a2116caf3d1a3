"""The host's end of a tunnel: one relay for each agent, on the port that the agent knows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from remote_agent.install.__main__ import LINE_MARK
from remote_agent.system import paths
from remote_agent.tunnel import relay
from remote_agent.tunnel.mux import OPEN, PING, Frames, frame
from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[4]


class Session:
    """`install/__main__.py session` as the manager's SSH starts it, with a request for a relay."""

    def __init__(self, fleet_id: str, home: Path, **request: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(REPOSITORY / "remote_agent" / "install" / "__main__.py"), "session"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.say(json.dumps({"op": "relay", "fleet_id": fleet_id, "host": "h1", "home": str(home), **request}).encode())
        self.say(b"\n")
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith(LINE_MARK)
        self.reply = json.loads(line[len(LINE_MARK) :])

    @property
    def port(self) -> int:
        return int(self.reply["report"]["port"])

    def say(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def frames(self, count: int) -> list[tuple[int, int, bytes]]:
        assert self.process.stdout is not None
        frames, found = Frames(), []
        while len(found) < count:
            found += [one for one in frames.feed(os.read(self.process.stdout.fileno(), 65536)) if one != (0, PING, b"")]
        return found

    def end(self) -> None:
        with suppress(OSError):
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


@contextmanager
def session(fleet_id: str, home: Path, **request: Any) -> Iterator[Session]:
    one = Session(fleet_id, home, **request)
    try:
        yield one
    finally:
        one.end()
        shutil.rmtree(paths.choose_runtime_dir(str(home), fleet_id, "h1"))


@pytest.fixture
def fleet_id() -> str:
    """A host id of its own: there is one relay per fleet and host on the whole machine."""
    return f"f-{uuid.uuid4().hex[:12]}"


def test_what_connects_to_its_port_is_reported_to_the_manager_and_answered(fleet_id: str, tmp_path: Path) -> None:
    with session(fleet_id, tmp_path) as one, socket.create_connection(("127.0.0.1", one.port), timeout=10) as agent:
        assert relay.FIRST_PORT <= one.port < relay.FIRST_PORT + relay.PORTS
        agent.sendall(b"hello")
        assert one.frames(2) == [(1, OPEN, b""), (1, 2, b"hello")]
        one.say(frame(1, 2, b"welcome") + frame(1, 3))
        assert agent.recv(100) == b"welcome" and agent.recv(1) == b""
    assert list(tmp_path.iterdir()) == []  # it leaves nothing


def test_it_ends_with_its_session(fleet_id: str, tmp_path: Path) -> None:
    with session(fleet_id, tmp_path) as one:
        assert one.process.stdin is not None
        one.process.stdin.close()
        assert one.process.wait(10) == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_a_new_one_takes_the_place_and_the_port_of_the_one_before(fleet_id: str, tmp_path: Path, frozen: bool) -> None:
    """Also of a stopped process, which cannot be asked to exit."""
    with ExitStack() as stack:
        old = stack.enter_context(session(fleet_id, tmp_path))
        if frozen:
            old.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        new = stack.enter_context(session(fleet_id, tmp_path, port=old.port))
        assert new.port == old.port and time.monotonic() - began < 8
        assert old.process.wait(10) == (-signal.SIGKILL if frozen else -signal.SIGTERM)


def test_relays_of_other_fleets_are_left_alone(fleet_id: str, tmp_path: Path) -> None:
    with session(fleet_id, tmp_path) as one, session(fleet_id + "x", tmp_path) as other:
        assert one.port != other.port and one.process.poll() is None


def test_a_port_that_another_program_took_is_reported_and_only_left_when_the_agent_can_be(
    fleet_id: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with session(fleet_id, tmp_path, port=port) as one:
            assert one.reply["error"]["code"] == "port_taken" and str(port) in one.reply["error"]["message"]
        with session(fleet_id, tmp_path, port=port, may_move=True) as one:
            assert one.port != port


def test_the_first_port_is_the_same_each_time_and_the_next_free_one_where_it_is_taken(fleet_id: str) -> None:
    with relay.listen(fleet_id, "h1", 0, True) as first:
        port = first.getsockname()[1]
        with relay.listen(fleet_id, "h1", 0, True) as second:
            assert second.getsockname()[1] != port
    with relay.listen(fleet_id, "h1", 0, True) as again:
        assert again.getsockname()[1] == port
        with pytest.raises(relay.RelayError) as caught:
            relay.listen(fleet_id, "h1", port, False)
    assert caught.value.code == "port_taken"


def test_a_killed_relay_is_noticed_by_the_agent_at_once(fleet_id: str, tmp_path: Path) -> None:
    with session(fleet_id, tmp_path) as one, socket.create_connection(("127.0.0.1", one.port), timeout=10) as agent:
        assert one.frames(1) == [(1, OPEN, b"")]
        one.process.kill()
        began = time.monotonic()
        with suppress(ConnectionResetError):
            assert agent.recv(1) == b""
        assert time.monotonic() - began < 5
        wait_until(lambda: one.process.poll() is not None, 10, "its end")


def test_nothing_is_left_of_a_relay_that_was_there_before_its_agent(fleet_id: str, tmp_path: Path) -> None:
    """Its session's end takes its lock along."""
    with session(fleet_id, tmp_path) as one:
        place = Path(paths.choose_runtime_dir(str(tmp_path), fleet_id, "h1"))
        assert place.is_dir()
        assert one.process.stdin is not None
        one.process.stdin.close()
        assert one.process.wait(10) == 0
        assert not place.exists()
