"""`python -m tests.fleet.one_address PORT,PORT…`: one address in front of several managers, as a load balancer is.

Prints its port. New connections go to whoever answers /readyz with 200; those to a former leader end with it.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import contextlib  # noqa: E402
import http.client  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402

import gevent  # noqa: E402
import gevent.server  # noqa: E402

LOOK_S = 0.1
ASK_TIMEOUT_S = 0.5


class OneAddress:
    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._leader = 0
        self._open: set[socket.socket] = set()

    def find_leader(self) -> int:
        """The port of whoever leads, 0 where nobody has yet."""
        found = next((port for port in self._ports if _is_ready(port)), 0)
        if found and found != self._leader:
            self._leader, ended, self._open = found, self._open, set()
            for one in ended:
                _end(one)
        return self._leader

    def serve(self, here: socket.socket, _address: object) -> None:
        try:
            there = socket.create_connection(("127.0.0.1", self._leader), 2)
        except OSError:
            return
        there.settimeout(None)
        both = {here, there}
        self._open |= both
        gevent.joinall([gevent.spawn(_carry, here, there), gevent.spawn(_carry, there, here)])
        self._open -= both
        there.close()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    _end(source)
    _end(sink)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> None:
    one = OneAddress([int(port) for port in sys.argv[1].split(",")])
    server = gevent.server.StreamServer(("127.0.0.1", 0), one.serve, backlog=4096)
    server.start()
    while not one.find_leader():
        gevent.sleep(LOOK_S)
    print(server.server_port, flush=True)  # from now on it leads somewhere
    while True:
        gevent.sleep(LOOK_S)
        one.find_leader()


if __name__ == "__main__":
    main()
