"""A thread that makes an agent's requests, and the requests of its session."""

from __future__ import annotations

import json
import queue
import threading

from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.protocol.messages import MAX_WAIT_S
from remote_agent.transport.client import Connection
from remote_agent.transport.http import quote
from remote_agent.transport.outcomes import REQUEST_TIMEOUT_S, LinkDown, Outcome, Reply


class Caller(threading.Thread):
    """A thread that sends one request at a time for the main loop and passes the outcome to `deliver`.

    `deliver(tag, outcome)` is called on this thread; outcome is a Reply or a LinkDown.
    """

    def __init__(self, name: str, connection: Connection, deliver: Callable[[str, Outcome], None]) -> None:
        super().__init__(name=f"procguard-{name}", daemon=True)
        self._connection = connection
        self._deliver = deliver
        self._jobs: queue.SimpleQueue[Optional[tuple[str, Callable[[Connection], Reply]]]] = queue.SimpleQueue()
        self.busy = False  # written by the main loop only: a request is in progress or its outcome is not yet handled

    def submit(self, tag: str, job: Callable[[Connection], Reply]) -> None:
        assert not self.busy, "one request at a time"
        self.busy = True
        self._jobs.put((tag, job))

    def end(self) -> None:
        self._jobs.put(None)
        self._connection.close()

    def run(self) -> None:
        while True:
            item = self._jobs.get()
            if item is None:
                return
            tag, job = item
            try:
                outcome: Outcome = job(self._connection)
            except LinkDown as exc:
                outcome = exc
            except Exception as exc:  # a bug here must not end the thread, and the link with it
                self._connection.disconnect()
                outcome = LinkDown(f"{type(exc).__name__}: {exc}")
            self._deliver(tag, outcome)


def heartbeat(agent_id: str, payload: dict[str, Any]) -> Callable[[Connection], Reply]:
    body = json.dumps(payload, separators=(",", ":")).encode()
    path = f"/api/agents/{quote(agent_id)}/heartbeat"
    return lambda connection: connection.request("POST", path, body)


def poll(agent_id: str, rev: str, seq: int) -> Callable[[Connection], Reply]:
    """The long poll for commands; the manager responds within MAX_WAIT_S."""
    path = f"/api/agents/{quote(agent_id)}/commands?wait={MAX_WAIT_S:g}&rev={quote(rev)}&seq={seq}"
    return lambda connection: connection.request("GET", path, timeout_s=MAX_WAIT_S + REQUEST_TIMEOUT_S)
