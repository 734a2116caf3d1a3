"""A bad network between agents and manager, as a proxy that knows where a request begins and an answer ends.

It loses requests and answers, cuts answers short, delivers requests twice, late, or again long after newer ones.
What it did is counted. Owns its threads; knows nothing of ProcGuard's messages.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Literal

Fate = Literal["pass", "lose request", "lose reply", "cut reply", "late request", "late reply", "double", "echo"]
# What is lost costs the sender a reconnect; most pass, or nothing would ever get through.
FATES: dict[Fate, int] = {
    "pass": 45,
    "lose request": 8,
    "lose reply": 12,
    "cut reply": 8,
    "late request": 7,
    "late reply": 5,
    "double": 9,
    "echo": 6,
}
LATE_S = (0.05, 1.0)
ECHO_S = (0.3, 2.5)  # a request comes again, after newer ones have been answered
IDLE_S = 60.0
MAX_HEAD_BYTES = 64 * 1024


class ChaosProxy:
    """`with ChaosProxy(("10.77.0.1", 0), ("127.0.0.1", 5000), seed=3) as proxy: …; proxy.calm = False`"""

    def __init__(self, bind: tuple[str, int], upstream: tuple[str, int], seed: int) -> None:
        self._server = socket.create_server(bind, backlog=128)
        self._upstream = upstream
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        self.calm = True  # everything passes
        self.fates: Counter[str] = Counter()
        self.url = f"http://{bind[0]}:{self._server.getsockname()[1]}"

    def __enter__(self) -> ChaosProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._closed = True
        self._server.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    # --------------------------------------------------------------------------------------------- connections

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request after the other until a fate or a peer ends the connection."""
        with self._held(client), contextlib.suppress(OSError, EOFError), self._connected() as upstream:
            while True:
                request = read_message(client)
                fate = self._draw()
                self.fates[fate] += 1
                if not self._deliver(fate, request, client, upstream):
                    return

    def _deliver(self, fate: Fate, request: bytes, client: socket.socket, upstream: socket.socket) -> bool:
        """Returns whether the connection goes on."""
        if fate == "lose request":
            return False
        if fate == "late request":
            time.sleep(self._random.uniform(*LATE_S))
        if fate in ("double", "echo"):
            threading.Thread(target=self._again, args=(request, fate), daemon=True).start()
        upstream.sendall(request)
        # A held request: whoever asked may leave meanwhile, and the manager is to see that at once.
        reply = read_message(upstream, or_gone=client)
        if fate == "lose reply":
            return False
        if fate == "cut reply":
            client.sendall(reply[: len(reply) // 2])
            return False
        if fate == "late reply":
            time.sleep(self._random.uniform(*LATE_S))
        client.sendall(reply)
        return True

    def _again(self, request: bytes, fate: Fate) -> None:
        """Send the same bytes on another connection; the answer is discarded."""
        if fate == "echo":
            time.sleep(self._random.uniform(*ECHO_S))
        with contextlib.suppress(OSError, EOFError), self._connected() as upstream:
            upstream.settimeout(3.0)
            upstream.sendall(request)
            read_message(upstream)

    def _draw(self) -> Fate:
        if self.calm:
            return "pass"
        with self._lock:
            return self._random.choices(list(FATES), weights=list(FATES.values()))[0]

    @contextlib.contextmanager
    def _held(self, one: socket.socket):  # type: ignore[no-untyped-def]
        with self._lock:
            self._open.add(one)
        try:
            with one:
                yield one
        finally:
            with self._lock:
                self._open.discard(one)

    def _connected(self):  # type: ignore[no-untyped-def]
        one = socket.create_connection(self._upstream, timeout=IDLE_S)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._held(one)


def read_message(source: socket.socket, or_gone: socket.socket | None = None) -> bytes:
    """One HTTP request or answer with a Content-Length (or no body). Raises EOFError when the source ends, or `or_gone`
    does before it begins."""
    import select

    if or_gone is not None:
        ready, _, _ = select.select([source, or_gone], [], [], IDLE_S)
        if source not in ready:
            raise EOFError
    data = b""
    while b"\r\n\r\n" not in data:
        piece = source.recv(65536)
        if not piece or len(data) > MAX_HEAD_BYTES:
            raise EOFError
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n")[1:] if line.lower().startswith(b"content-length:")]
    missing = (int(lengths[0]) if lengths else 0) - len(body)
    while missing > 0:
        piece = source.recv(min(missing, 65536))
        if not piece:
            raise EOFError
        data += piece
        missing -= len(piece)
    return data
