"""The process that holds the manager's tunnels: python -m procguard.deploy.tunnel.process.

One SSH session to each host that cannot reach the manager otherwise; connections of its agent to a local port are
forwarded to the manager's listener for agents. A broken session is reopened with backoff and jitter until the tunnel
is dropped. JSON lines on stdin and stdout; the end of stdin ends the process, and all tunnels.

    -> {"op": "keep", "agent_id": "gpu01", "ssh": {…Target…}, "home": "", "fleet_id": "f-…", "port": 23456,
        "may_move": false, "to": 40123}                   `port` 0: none is known yet; `to`: the manager's listener
    -> {"op": "kick" | "drop", "agent_id": "gpu01"}       kick: try now, the host has just been reached
    <- {"agent_id": "gpu01", "state": "up", "port": 23456}
    <- {"agent_id": "gpu01", "state": "down", "reason": "…", "code": "refused"}      sent when it changes
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from procguard.deploy.session.connector import Connector
from procguard.deploy.session.session import HostSession
from procguard.deploy.ssh.failures import why
from procguard.deploy.ssh.target import Target, from_dict
from procguard.errors import ProcGuardError
from procguard.i18n.reasons import Reason, because, reason_of
from procguard.json_types import Json
from remote_agent.protocol.reasons import fields as reason_fields
from remote_agent.tunnel.mux import Mux, MuxEnded, StreamBuffer

CONNECT_S = 30.0
AT_ONCE = 16  # limit of connections being opened, because each log-in needs processor time here
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 15.0
GOOD_AFTER_S = 10.0  # after this time a tunnel is considered stable and its backoff is reset
MAX_LINE_BYTES = 256 * 1024
MAX_WAITING_BYTES = 256 * 1024 * 1024  # connections of all hosts to the manager's listener


def retry_delay_s(failures: int, rng: Callable[[], float] = random.random) -> float:
    """Full jitter below a bound that doubles with each failure in a row (1 = the first)."""
    bound: float = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 10))
    return bound * (0.1 + 0.9 * rng())


class Tunnel(threading.Thread):
    """One host's tunnel. `say` is called with each change of its state."""

    def __init__(
        self,
        spec: Json,
        connector: Connector,
        gate: threading.Semaphore,
        say: Callable[[Json], None],
        store: StreamBuffer | None = None,
    ) -> None:
        self.agent_id = str(spec["agent_id"])
        super().__init__(name=f"tunnel-{self.agent_id}", daemon=True)
        self._spec = spec
        self._target: Target = from_dict(self.agent_id, spec.get("ssh") or {})
        self._port = int(spec.get("port") or 0)
        self._connector = connector
        self._gate = gate
        self._say = say
        self._store = store
        self._said: Json = {}
        self._hurry = threading.Event()
        self._dropped = False

    def kick(self) -> None:
        """Try now and report the result even if it is unchanged."""
        self._said = {}
        self._hurry.set()

    def drop(self) -> None:
        """Close the tunnel within a second, even while it is being opened."""
        self._dropped = True
        self._hurry.set()

    def run(self) -> None:
        failures = 0
        while not self._dropped:
            self._hurry.clear()
            up_at, reason, code = self._carry()
            if self._dropped:
                return
            failures = 1 if up_at and time.monotonic() - up_at > GOOD_AFTER_S else failures + 1
            self._send_status({"state": "down", **reason_fields("reason", reason), "code": code})
            self._hurry.wait(retry_delay_s(failures))

    def _carry(self) -> tuple[float, Reason, str]:
        """Serve one connection. Returns (time since it was up, 0.0 = never; reason of its end; code of the reason)."""
        up_at = 0.0
        deadline = time.monotonic() + CONNECT_S
        self._gate.acquire()
        waiting = True
        try:
            with self._connector.wire(self._target, deadline, lambda session: self._begin(session, deadline)) as (
                wire,
                unread,
            ):
                self._gate.release()
                waiting = False
                up_at = time.monotonic()
                self._send_status({"state": "up", "port": self._port})
                Mux(wire, connect=self._dial, store=self._store).run(lambda: not self._dropped, unread)
                return up_at, because("tunnel.given_up"), "dropped"
        except ProcGuardError as exc:
            return up_at, why(exc, self.agent_id), exc.code
        except (MuxEnded, OSError) as exc:
            return up_at, because("tunnel.broke", host=self.agent_id, error=str(exc)), "connection_lost"
        except Exception as exc:  # a bug must not end a tunnel permanently
            return up_at, reason_of(f"{self.agent_id}: {type(exc).__name__}: {exc}"), "internal"
        finally:
            if waiting:
                self._gate.release()

    def _begin(self, session: HostSession, deadline: float) -> None:
        where = {"fleet_id": str(self._spec.get("fleet_id", "")), "host": self.agent_id}
        where["home"] = str(self._spec.get("home") or "")
        asked = {"port": self._port, "may_move": bool(self._spec.get("may_move"))}
        self._port = int(session.perform("relay", {**where, **asked}, deadline)["port"])
        self._spec["may_move"] = False  # from now on the agent uses this port

    def _dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(("127.0.0.1", int(self._spec["to"])))
        return sock

    def _send_status(self, news: Json) -> None:
        if news != self._said:
            self._said = news
            self._say({"agent_id": self.agent_id, **news})


class OpenTunnels:
    """All tunnels of the process. Used from one thread."""

    def __init__(self, connector: Connector, out: Any) -> None:
        self._connector = connector
        self._out = out
        self._out_lock = threading.Lock()
        self._gate = threading.Semaphore(AT_ONCE)
        self._store = StreamBuffer(MAX_WAITING_BYTES)
        self._tunnels: dict[str, Tunnel] = {}

    def take(self, request: Json) -> None:
        agent_id, op = str(request.get("agent_id")), request.get("op")
        known = self._tunnels.get(agent_id)
        if op == "kick" and known is not None:
            known.kick()
        if op in ("drop", "keep") and known is not None:
            del self._tunnels[agent_id]
            known.drop()
        if op == "keep":
            tunnel = self._tunnels[agent_id] = Tunnel(request, self._connector, self._gate, self._say, self._store)
            tunnel.start()

    def _say(self, news: Json) -> None:
        with self._out_lock:
            self._out.write(json.dumps(news).encode() + b"\n")
            self._out.flush()


def main() -> int:
    tunnels = OpenTunnels(Connector(), sys.stdout.buffer)
    for line in iter(lambda: sys.stdin.buffer.readline(MAX_LINE_BYTES), b""):
        try:
            request = json.loads(line)
        except ValueError:
            continue
        if isinstance(request, dict):
            tunnels.take(request)
    os._exit(0)  # the kernel closes every connection, without waiting for threads


if __name__ == "__main__":
    sys.exit(main())
