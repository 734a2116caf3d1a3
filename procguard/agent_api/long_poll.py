"""Long polls: each waits for a wake-up or for its peer to close, whichever comes first.

Owns the set of open long polls; knows nothing of the responses. One event loop, no locks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Literal

import gevent
import gevent.event

Ending = Literal["", "peer_closed", "superseded", "stopping", "revoked"]

_READABLE = 1  # libev's EV_READ
_PEEK = 2  # MSG_PEEK
_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8  # values of the kernel's enum
FIRST_POLL_S, POLL_INTERVAL_S = 0.1, 1.0


def _no_use() -> None:
    """The default for requests that no revocable right has opened."""


class LongPoll:
    """One held request. `ending`: empty while it may continue to wait."""

    def __init__(self, key: str, agent_id: str, sock: Any | None) -> None:
        self.key = key
        self.agent_id = agent_id
        self.ending: Ending = ""
        self.close_use: Callable[[], None] = _no_use  # unregisters it from revocation
        self._signal = gevent.event.Event()
        self._socket = sock
        self._watcher: Any = None
        if sock is not None:
            self._watcher = gevent.get_hub().loop.io(sock.fileno(), _READABLE)
            self._watcher.start(self._on_readable)

    def wake(self) -> None:
        self._signal.set()

    def end(self, ending: Ending) -> None:
        if not self.ending:
            self.ending = ending
        self._signal.set()

    def wait(self, timeout_s: float) -> None:
        """Return when woken, ended, or after `timeout_s`."""
        self._signal.wait(timeout_s)
        self._signal.clear()

    def release(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None

    def _on_readable(self) -> None:
        """Runs in the hub and must not block. End of file: the peer has closed. Data: a pipelined request, which is
        not read, or the TLS close alert, which hides the end of file."""
        assert self._socket is not None
        try:
            closed = self._plain_socket().recv(1, _PEEK) == b""
        except BlockingIOError:
            return
        except OSError:
            closed = True
        if closed:
            self.end("peer_closed")
        self.release()  # level-triggered: it would fire continuously
        if not closed:
            self._watcher = gevent.get_hub().loop.timer(FIRST_POLL_S, POLL_INTERVAL_S)
            self._watcher.start(self._check_for_close)

    def _check_for_close(self) -> None:
        """Ask the kernel whether the connection is closed behind unread bytes."""
        try:
            state = self._plain_socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            state = _TCP_CLOSE
        if state in (_TCP_CLOSE, _TCP_CLOSE_WAIT):
            self.end("peer_closed")
            self.release()

    def _plain_socket(self) -> Any:
        """gevent's socket wraps a non-blocking one; the wrapper's recv would wait, which the hub must not."""
        return getattr(self._socket, "_sock", self._socket)


class LongPolls:
    """All held requests. The newest of a key supersedes the older one, which returns at once."""

    def __init__(self) -> None:
        self._current: dict[str, LongPoll] = {}
        self._by_agent: dict[str, set[LongPoll]] = {}
        self._stopping = False

    def open(self, key: str, agent_id: str, sock: Any | None) -> LongPoll:
        older = self._current.get(key)
        if older is not None:
            older.end("superseded")
        poll = LongPoll(key, agent_id, sock)
        self._current[key] = poll
        self._by_agent.setdefault(agent_id, set()).add(poll)
        if self._stopping:
            poll.end("stopping")
        return poll

    def close(self, poll: LongPoll) -> None:
        poll.release()
        poll.close_use()
        if self._current.get(poll.key) is poll:
            del self._current[poll.key]
        polls = self._by_agent.get(poll.agent_id)
        if polls is not None:
            polls.discard(poll)
            if not polls:
                del self._by_agent[poll.agent_id]

    def wake(self, agent_id: str) -> None:
        """Wake the held requests of an agent. Called synchronously by the fleet: O(held requests of the agent)."""
        for poll in self._by_agent.get(agent_id, ()):
            poll.wake()

    def end_agent(self, agent_id: str) -> None:
        """End an agent's held requests after its secret was revoked."""
        for poll in list(self._by_agent.get(agent_id, ())):
            poll.end("revoked")

    def stop(self) -> None:
        """End every held request; later ones end at once."""
        self._stopping = True
        for poll in list(self._current.values()):
            poll.end("stopping")

    def __len__(self) -> int:
        return len(self._current)
