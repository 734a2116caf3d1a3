"""References of benchmarks: load at a given rate, and a processor as slow as another machine's."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from scripts.bench import paced, quota

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


class Slow(threading.Thread):
    """One request after the other, `takes_s` each; head and body of an answer come apart."""

    def __init__(self, connections: int, takes_s: float) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._connections, self._takes_s = connections, takes_s
        self._turn = threading.Lock()

    def run(self) -> None:
        for _ in range(self._connections):
            sock, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            while sock.recv(65536):
                with self._turn:
                    time.sleep(self._takes_s)
                    sock.sendall(ANSWER)
                    sock.sendall(b"{}")


def test_a_delay_counts_from_when_the_request_was_due() -> None:
    """A server that handles 50 requests a second gets 200: queueing is visible in the latencies."""
    server = Slow(20, 0.02)
    server.start()
    found = paced.drive(server.port, 20, 200.0, 1.0)
    assert 20 <= found.answered <= 75
    assert found.p99_ms > 200


@pytest.mark.parametrize(("share", "v1", "v2"), [(0.5, "5000", "5000 10000"), (3.0, "10000", "10000 10000")])
def test_a_quota_of_one_core(tmp_path: Path, share: float, v1: str, v2: str) -> None:
    name = f"procguard-bench-{os.getpid()}"
    made = quota.Quota(share, str(tmp_path / "none"), str(tmp_path))
    made.add(77)
    assert (tmp_path / name / "cpu.max").read_text() == v2
    assert (tmp_path / name / "cgroup.procs").read_text() == "77"
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "cpu.cfs_quota_us").write_text("-1")
    quota.Quota(share, str(tmp_path / "v1"), str(tmp_path))
    assert (tmp_path / "v1" / name / "cpu.cfs_quota_us").read_text() == v1


def test_where_there_is_no_quota_the_bench_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = quota.Quota(0.5, str(tmp_path / "none"), str(tmp_path / "file"))
    assert "run as root" in made.why_not
    made.add(77)
    made.close()


def test_a_machine_that_is_slow_enough_has_no_quota() -> None:
    assert quota.slowed(150.0, 135.0) is None and quota.slowed(150.0, 0.0) is None
