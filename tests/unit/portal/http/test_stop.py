"""Shutdown of a server: idle connections cause no delay, and responses in progress are completed."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.server_process import RunningServer

IDLE = 5


def connected(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def test_idle_connections_end_at_once_while_a_request_in_flight_is_still_answered(tmp_path: Path) -> None:
    """An agent's connection is idle between two heartbeats; earlier, each stop waited for its whole grace period."""
    server = RunningServer(tmp_path)
    idle = [connected(server) for _ in range(IDLE)]
    with connected(server) as in_flight:
        try:
            for one in idle:
                one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert one.recv(4096).startswith(b"HTTP/1.1 200")
            head = b"POST /api/login HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            in_flight.sendall(head + b"Content-Type: application/json\r\nContent-Length: 13\r\n\r\n")
            assert in_flight.recv(4096).startswith(b"HTTP/1.1 100")
            server.process.terminate()
            assert [one.recv(4096) for one in idle] == [b""] * IDLE
            in_flight.sendall(b'{"token":"x"}')
            assert in_flight.recv(4096).startswith(b"HTTP/1.1 401")
        finally:
            for one in idle:
                one.close()
            server.close()
