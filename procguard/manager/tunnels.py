"""Decides which hosts need a tunnel, and tracks the status of each: reconciles the fleet with the tunnel process.

Owns the reconciliation; decides nothing about hosts. All calls come from the manager's event loop.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from procguard.deploy.tunnel.client import TunnelSpec
from procguard.errors import Conflict, NotFound
from procguard.fleet.fleet import Fleet
from procguard.fleet.model import clock
from procguard.fleet.model.records import AgentRecord, SshSettings, TunnelState, TunnelStatus
from procguard.fleet.shapes.parts import TunnelAnswer
from procguard.fleet.store.interface import NotDurable
from procguard.fleet.workers import views
from remote_agent.protocol import reasons

log = logging.getLogger(__name__)


class TunnelWay(NamedTuple):
    ssh: SshSettings
    home: str


class Process(Protocol):
    """The interface of `deploy.tunnel_client.TunnelProcess`, replaced by a fake in tests."""

    def keep(self, spec: TunnelSpec) -> None: ...

    def drop(self, agent_id: str) -> None: ...

    def kick(self, agent_id: str) -> None: ...

    def moved(self, agent_id: str, port: int) -> None: ...

    def close(self) -> None: ...


class Tunnels:
    """Keeps tunnels open: `start` opens those of the fleet's hosts and follows changes."""

    def __init__(self, fleet: Fleet, process: Callable[[Callable[[Mapping[str, Any]], None]], Process]) -> None:
        self._fleet = fleet
        self._process = process(self._verifier)
        self._to_port = 0
        self._kept: dict[str, TunnelWay] = {}  # agent -> the settings sent to the process, without the port on the host
        self._news: dict[str, threading.Event] = {}  # wakes callers that wait for a tunnel

    def start(self, to_port: int) -> None:
        """`to_port`: the manager's port for agents connected through a tunnel."""
        self._to_port = to_port
        self._fleet.state.bus.hosts.subscribe(self._reconcile)
        for agent_id in list(self._fleet.state.agents_by_id):
            self._reconcile(agent_id)

    def stop(self) -> None:
        self._process.close()

    def kick(self, agent_id: str) -> None:
        if agent_id in self._kept:
            self._process.kick(agent_id)

    def open(self, host: str, timeout_s: float) -> TunnelAnswer:
        """Wait until the tunnel of a deployed host is up.

        Raises NotFound, and Conflict for a host without a configured tunnel.
        """
        agent = self._fleet.state.agents_by_id.get(host)
        if agent is None or agent.kind != "deployed":
            raise NotFound(f"no deployed host {host[:80]!r}", "list them: invoke status, or GET /api/hosts")
        if not _wanted(agent):
            raise Conflict(
                f"{host} has no tunnel configured", "set procguard_tunnel: true in its inventory, then deploy"
            )
        self._reconcile(host)
        status = self._status(host)
        if status is not None and status.code == "port_taken":
            self._keep(agent, may_move=True)  # the caller sends the agent its new address
        elif status is not None and status.state == "down":
            self._fleet.agents.tunnel_dropped(host)
            self._process.kick(host)  # reported again, even if the answer is the same
        deadline = clock.read().monotonic + timeout_s
        while (status := self._status(host)) is None or status.state != "up":
            left_s = deadline - clock.read().monotonic
            news = self._news.setdefault(host, threading.Event())
            if left_s <= 0 or not news.wait(left_s):
                break
            news.clear()
            status = self._status(host)
            if status is not None and status.state == "down":
                break  # the process retries; the deployment reports the current error
        return views.tunnel(self._status(host), agent.tunnel_port)

    # ------------------------------------------------------------------------------------------------ inside

    def _status(self, agent_id: str) -> TunnelStatus | None:
        observed = self._fleet.state.agent_status.get(agent_id)
        return observed.tunnel if observed is not None else None

    def _reconcile(self, agent_id: str) -> None:
        agent = self._fleet.state.agents_by_id.get(agent_id)
        wanted = agent is not None and _wanted(agent)
        if agent is not None and wanted and self._kept.get(agent_id) != _way(agent):
            self._keep(agent, may_move=False)
        elif not wanted and self._kept.pop(agent_id, None) is not None:
            self._process.drop(agent_id)
            if agent is not None:
                self._fleet.agents.tunnel_dropped(agent_id)

    def _keep(self, agent: AgentRecord, may_move: bool) -> None:
        way = self._kept[agent.agent_id] = _way(agent)
        self._fleet.agents.tunnel_dropped(agent.agent_id)
        self._process.keep(
            {
                "agent_id": agent.agent_id,
                "ssh": way.ssh,
                "home": way.home,
                "fleet_id": self._fleet.state.fleet_id,
                "port": agent.tunnel_port,
                "may_move": may_move or not agent.tunnel_port,
                "to": self._to_port,
            }
        )

    def _verifier(self, news: Mapping[str, Any]) -> None:
        agent_id = str(news.get("agent_id"))
        if agent_id not in self._kept:
            return
        port = int(news.get("port") or 0)
        if port:
            self._process.moved(agent_id, port)
        state: TunnelState = "up" if news.get("state") == "up" else "down"
        reason, code = reasons.read(news), str(news.get("code") or "")
        try:
            self._fleet.agents.tunnel_changed(agent_id, state, port, reason, code, clock.read())
        except NotDurable as exc:  # the port is written with the next successful commit
            log.error("%s", exc)
        self._news.setdefault(agent_id, threading.Event()).set()


def _wanted(agent: AgentRecord) -> bool:
    return agent.tunnel and agent.kind == "deployed" and not agent.ssh.get("local")


def _way(agent: AgentRecord) -> TunnelWay:
    return TunnelWay(agent.ssh, agent.procguard_home)
