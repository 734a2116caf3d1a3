"""An idle server is distinguished from a hung process: real processes, real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from remote_agent.protocol.messages import WorkerUsage
from remote_agent.telemetry.listening import Listening, waits_for_connections
from remote_agent.telemetry.procfs import Proc, Sample
from tests.waiting import wait_until

TCP = "s.bind(('127.0.0.1', 0)); s.listen(); print(s.getsockname()[1], flush=True); c, _ = s.accept(); time.sleep(60)"
SERVER = "import socket, time; s = socket.socket(); " + TCP
SERVER6 = "import socket, time; s = socket.socket(socket.AF_INET6); " + TCP.replace("127.0.0.1", "::1")
UNIX = (
    "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); "
    "print(0, flush=True); time.sleep(60)"
)
SLEEPER = "import time; print(0, flush=True); time.sleep(60)"


@pytest.fixture
def started(tmp_path: Any) -> Iterator[Any]:
    with ExitStack() as stack:

        def start(program: str) -> tuple[int, int]:
            process = subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            return process.pid, int(process.stdout.readline())

        yield start


@pytest.mark.parametrize("program", [SERVER, UNIX])
def test_a_listening_server_waits_for_connections(started: Any, program: str) -> None:
    pid, _ = started(program)
    assert waits_for_connections([pid])


def test_a_server_on_ipv6_counts_too(started: Any) -> None:
    if not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this kernel has no IPv6")
    pid, _ = started(SERVER6)
    assert waits_for_connections([pid])


def test_a_server_with_a_connection_does_not_wait(started: Any) -> None:
    """So a rank of a distributed job, which listens too, is never taken for an idle server."""
    pid, port = started(SERVER)
    with socket.create_connection(("127.0.0.1", port)):
        wait_until(lambda: not waits_for_connections([pid]), 10, "the server takes the connection")


def test_a_process_that_merely_sleeps_waits_for_nobody(started: Any) -> None:
    pid, _ = started(SLEEPER)
    assert not waits_for_connections([pid])
    assert not waits_for_connections([])


def test_only_idle_trees_are_checked_and_seldom(started: Any) -> None:
    pid, _ = started(SERVER)
    tree = {"web": [Proc(pid, 1, "python", "S", 0, 1, 0, 0)]}
    idle, busy = WorkerUsage(cpu_percent=0.0), WorkerUsage(cpu_percent=50.0)
    reader = Listening()
    assert reader.probe(Sample(None, {"web": busy}, tree, 0.0), 100.0) == set()
    assert reader.probe(Sample(None, {"web": idle}, tree, 0.0), 105.0) == {"web"}
    gone = {"web": [Proc(2**22 - 1, 1, "python", "S", 0, 1, 0, 0)]}
    assert reader.probe(Sample(None, {"web": idle}, gone, 0.0), 110.0) == {"web"}
    assert reader.probe(Sample(None, {"web": idle}, gone, 0.0), 136.0) == set()
