"""A TCP forwarder as a process of its own, as socat is one:

    python -I -S tests/forwarder.py ADDRESS TARGET_PORT [once]

Prints the port it listens on; what comes in there goes to 127.0.0.1:TARGET_PORT, byte by byte. `once`: the listener is
closed when the first connection has come. Standard library only.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def forwarder(target_port: int, address: str = "127.0.0.1", *options: str) -> Iterator[int]:
    """Yields its port."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, address, str(target_port), *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main(address: str, target_port: str, *options: str) -> None:
    low = next(port for port in range(20_000, 30_000) if _free(address, port)) if "once" in options else 0
    listener = socket.create_server((address, low))
    print(listener.getsockname()[1], flush=True)
    while True:
        near, _ = listener.accept()
        if "once" in options:
            listener.close()
        far = socket.create_connection(("127.0.0.1", int(target_port)))
        for pair in ((near, far), (far, near)):
            threading.Thread(target=_pump, args=pair, daemon=True).start()
        if "once" in options:
            threading.Event().wait()


def _free(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server((address, port)):
        return True
    return False


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main(*sys.argv[1:])
