"""The manager's side of the tunnel process: sends the desired tunnels, receives their status.

A process that dies is restarted and receives all tunnels again. Knows the messages; no SSH and no fleet state.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TypedDict

from procguard.i18n.reasons import because
from procguard.json_types import Json
from procguard.runtime.json_process import JsonProcess

START_AGAIN_S = 1.0


class TunnelSpec(TypedDict):
    """A tunnel to keep. `port`: on the host; 0 for any. `to`: the manager's port."""

    agent_id: str
    ssh: Json
    home: str
    fleet_id: str
    port: int
    may_move: bool
    to: int


class TunnelProcess:
    """Started with the first request. `on_news` receives {"agent_id", "state": "up" | "down", …}, one at a time."""

    def __init__(self, on_news: Callable[[Json], None], command: list[str] | None = None) -> None:
        self._on_news = on_news
        self._command = command or [sys.executable, "-m", "procguard.deploy.tunnel.process"]
        self._lock = threading.Lock()
        self._specs: dict[str, TunnelSpec] = {}
        self._process: JsonProcess | None = None
        self._closed = False

    def keep(self, spec: TunnelSpec) -> None:
        """Keep a tunnel to `spec["agent_id"]`; replaces an earlier specification."""
        with self._lock:
            self._specs[spec["agent_id"]] = spec
            if self._process is None:
                self._start()
            else:
                self._send([{"op": "keep", **spec}])

    def drop(self, agent_id: str) -> None:
        with self._lock:
            if self._specs.pop(agent_id, None) is not None:
                self._send([{"op": "drop", "agent_id": agent_id}])

    def kick(self, agent_id: str) -> None:
        """Retry a tunnel that is down at once, because the host has just been reached."""
        with self._lock:
            if agent_id in self._specs:
                self._send([{"op": "kick", "agent_id": agent_id}])

    def moved(self, agent_id: str, port: int) -> None:
        """Stores the port on the host; the next process requests the same one."""
        with self._lock:
            if agent_id in self._specs:
                self._specs[agent_id] = {**self._specs[agent_id], "port": port, "may_move": False}

    def close(self) -> None:
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None:
            process.close()

    # ---------------------------------------------------------------------------------------------- inside

    def _start(self) -> None:
        """Call with the lock held."""
        self._process = JsonProcess(self._command, self._on_news, self._take_end)
        self._send([{"op": "keep", **spec} for spec in self._specs.values()])

    def _send(self, requests: list[Json]) -> None:
        """Call with the lock held. The death of a process is reported when the next one starts."""
        if self._process is None:
            return
        try:
            self._process.send(requests)
        except (OSError, ValueError):
            pass

    def _take_end(self, process: JsonProcess) -> None:
        with self._lock:
            mine = self._process is process
            agents = list(self._specs) if mine and not self._closed else []
        for agent_id in agents:
            reason = because("tunnel.process_ended")
            self._on_news({"agent_id": agent_id, "state": "down", "reason": reason, "code": "process"})
        time.sleep(START_AGAIN_S)
        with self._lock:
            if mine and not self._closed and self._process is process:
                self._process = None
                if self._specs:
                    self._start()
