"""An intermediary between an agent and its manager: forwards bytes, records them, and modifies them as the test
requires.

Also a program of its own, for a user of a fleet host: `python -I -S relay_in_between.py HOST PORT TO_HOST TO_PORT FILE`
appends all that agents send to FILE. Standard library only; reads no file of the project.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable

Change = Callable[[bytes], bytes]


def _same(data: bytes) -> bytes:
    return data


class Relay:
    """`sent` and `answered`: what went either way, in pieces as it came; `url`: where it listens."""

    def __init__(self, to: tuple[str, int], at: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._to = to
        self.sent: list[bytes] = []
        self.answered: list[bytes] = []
        self.change_request: Change = _same
        self.change_answer: Change = _same
        self._listener = socket.create_server(at)
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._to, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for one, other, kept, forth in ((near, far, self.sent, True), (far, near, self.answered, False)):
                threading.Thread(target=self._pass_on, args=(one, other, kept, forth), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, kept: list[bytes], forth: bool) -> None:
        try:
            while data := one.recv(256 * 1024):
                kept.append(data)
                other.sendall(self.change_request(data) if forth else self.change_answer(data))
        except OSError:
            pass
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def main(host: str, port: str, to_host: str, to_port: str, path: str) -> None:
    relay = Relay((to_host, int(to_port)), (host, int(port)))
    with open(path, "ab", buffering=0) as file:

        def keep(data: bytes) -> bytes:
            file.write(data)
            return data

        relay.change_request = keep
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
