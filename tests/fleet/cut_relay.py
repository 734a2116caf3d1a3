"""`python -m tests.fleet.cut_relay PORT`: a TCP relay on loopback to that port, which `cut` and `restore` on standard
input harm; it prints its own port first, and each word once it is done."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading


class CutRelay:
    """While it is cut, bytes are accepted and discarded."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.is_cut = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut.set()

    def restore(self) -> None:
        """New connections work; those that were cut have lost bytes, so they end."""
        self.is_cut.clear()
        self._end()

    def _end(self) -> None:
        ended, self._open = self._open, []
        for one in ended:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                try:
                    there = socket.create_connection(("127.0.0.1", self._target), 5)
                except OSError:
                    here.close()
                    continue
                there.settimeout(None)
                self._open += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.is_cut.is_set():
                    sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def main() -> None:
    relay = CutRelay(int(sys.argv[1]))
    print(relay.port, flush=True)
    for line in sys.stdin:
        {"cut": relay.cut, "restore": relay.restore}[line.strip()]()
        print(line.strip(), flush=True)


if __name__ == "__main__":
    main()
