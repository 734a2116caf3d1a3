"""The operators' HTTP API: workers, hosts, commands, deployments (docs/protocol.md lists every route).

Each route says who is asking, checks what was sent, and hands it to the registry. Logs are in logs.py, events in
history.py, log-in and tokens in access.py, agents' own routes in agent_api/http.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import bottle
import gevent

from procguard import __version__
from procguard.agent_api import http_io
from procguard.agent_api.handlers import checked_worker_id
from procguard.agent_api.interface import Access
from procguard.deploy.install.helper_client import Result
from procguard.deploy.session import bundle
from procguard.errors import Conflict, NotFound, UsageError
from procguard.fleet.model import clock
from procguard.fleet.registry import Registry
from procguard.fleet.workers import selectors
from procguard.portal.api import requests
from procguard.portal.api.search import MAX_SELECT_CHARS
from procguard.tls.certificates import Pinned
from remote_agent.protocol import messages

CHECK_SSH_DEADLINE_S = 30.0
MAX_PAGE = 100_000
MAX_DEPLOYED_OBJECTS = 5_000_000  # an operator may declare what the size allows
VERB_HINTS = {"command": ("unknown_command", f"use one of: {', '.join(messages.VERBS)}")}
DIGEST_HINTS = {"secret_sha256": ("", "send 64 hexadecimal digits: the SHA-256 of the secret, not it")}
SORTABLE = (
    "worker_id",
    "state",
    "desired",
    "host",
    "agent",
    "group",
    "pid",
    "attempt",
    "restarts",
    "restarts_total",
    "last_seen",
    "since",
    "reason",
)


class Ssh(Protocol):
    """The manager's way to try SSH to a host, outside the event loop."""

    def check(self, host: str, ssh: dict[str, Any], deadline_s: float) -> Result: ...


class OperatorApi:
    def __init__(
        self,
        registry: Registry,
        access: Access,
        ssh: Ssh | None,
        manager_urls: Callable[[], list[str]],
        pinned: Callable[[], Pinned],
        manager_configured: Sequence[str] = (),
    ) -> None:
        """`manager_configured`: those of `manager_urls()` that agents keep whether or not they prove themselves now."""
        self._registry = registry
        self._access = access
        self._ssh = ssh
        self._manager_urls = manager_urls
        self._manager_configured = list(manager_configured)
        self._pinned = pinned

    def mount(self, app: bottle.Bottle) -> None:
        for method, path, handler in (
            ("POST", "/api/workers/<worker_id>/command", self._command),
            ("DELETE", "/api/workers/<worker_id>", self._forget),
            ("GET", "/api/remote-workers", self._workers),
            ("GET", "/api/remote-workers/<worker_id>", self._worker),
            ("GET", "/api/commands", self._commands),
            ("GET", "/api/commands/<command_id>", self._command_status),
            ("GET", "/api/hosts", self._hosts),
            ("POST", "/api/hosts/<host>/check-ssh", self._check_ssh),
            ("GET", "/api/agents", self._agents),
            ("POST", "/api/agents/<agent_id>/approve", self._approve),
            ("POST", "/api/agents/<agent_id>/deny", self._deny),
            ("PUT", "/api/agents/<agent_id>/credentials", self._credentials),
            ("POST", "/api/agents/rotate", self._rotate),
            ("POST", "/api/agents/<agent_id>/revoke", self._revoke),
            ("DELETE", "/api/agents/<agent_id>", self._forget_agent),
            ("POST", "/api/deployments", self._deploy),
        ):
            app.route(path, method, http_io.answered(handler))

    def _operator(self) -> str:
        """Who acts, for the history."""
        return self._access.admitted(bottle.request.environ).actor

    # ------------------------------------------------------------------------------------------------ workers

    def _command(self, worker_id: str) -> bottle.HTTPResponse:
        caller = self._access.admitted(bottle.request.environ)
        worker_id = checked_worker_id(worker_id)
        asked = requests.read(requests.CommandRequest, hints=VERB_HINTS)
        http_io.note_change(f"{asked.command}: {asked.reason}" if asked.reason else asked.command)
        origin = f"{bottle.request.environ.get('REMOTE_ADDR', '?')}, {caller.via}"
        record = self._registry.command(worker_id, asked.command, caller.actor, clock.read(), asked.reason, origin)
        return http_io.json_response(
            {
                "command_id": record.command_id,
                "worker_id": record.worker_id,
                "command": record.command,
                "status": "accepted",
            },
            202,
        )

    def _command_status(self, command_id: str) -> dict[str, Any]:
        view: dict[str, Any] = self._registry.command_view(command_id[:80])
        return view

    def _commands(self) -> dict[str, Any]:
        worker_id = http_io.query_text("worker")
        if worker_id:
            checked_worker_id(worker_id)
        return {"commands": self._registry.commands(worker_id, http_io.query_int("limit", 50, 1, 1_000))}

    def _forget(self, worker_id: str) -> dict[str, Any]:
        actor = self._operator()
        self._registry.forget(checked_worker_id(worker_id), actor, clock.read())
        return {"worker_id": worker_id, "status": "forgotten"}

    def _worker(self, worker_id: str) -> dict[str, Any]:
        view: dict[str, Any] = self._registry.worker(checked_worker_id(worker_id))
        return view

    def _workers(self) -> dict[str, Any]:
        selector = selectors.parse(http_io.query_text("select", MAX_SELECT_CHARS))
        views = [view for view in self._registry.workers() if selector.matches(view) and _matches(view)]
        field = http_io.query_text("sort") or "worker_id"
        views = _sorted(views, field)
        offset = http_io.query_int("offset", 0, 0, 10**9)
        limit = http_io.query_int("limit", MAX_PAGE, 1, MAX_PAGE)
        return {"workers": views[offset : offset + limit], "total": len(views)}

    # -------------------------------------------------------------------------------------------- hosts, agents

    def _hosts(self) -> dict[str, Any]:
        return {"hosts": self._registry.hosts(), "server_time": clock.iso(clock.read().wall)}

    def _agents(self) -> dict[str, Any]:
        """Beside them this manager's own release, for the skew; packing it takes a moment, the first time."""
        releases = gevent.get_hub().threadpool.apply(bundle.releases)
        agents, now = self._registry.agents(), clock.iso(clock.read().wall)
        return {"agents": agents, "server_time": now, "version": __version__, "releases": releases}

    def _approve(self, agent_id: str) -> dict[str, Any]:
        actor, asked = self._operator(), requests.read_optional(requests.FingerprintRequest)
        self._registry.approve(agent_id, actor, clock.read(), asked.fingerprint)
        return {"agent_id": agent_id, "status": "approved"}

    def _deny(self, agent_id: str) -> dict[str, Any]:
        actor, asked = self._operator(), requests.read_optional(requests.FingerprintRequest)
        self._registry.deny(agent_id, actor, clock.read(), asked.fingerprint)
        return {"agent_id": agent_id, "status": "denied"}

    def _credentials(self, agent_id: str) -> dict[str, Any]:
        actor = self._operator()
        asked = requests.read(requests.CredentialsRequest, hints=DIGEST_HINTS)
        self._registry.set_credentials(agent_id, asked.secret_sha256, actor, clock.read())
        return {"agent_id": agent_id, "status": "set"}

    def _revoke(self, agent_id: str) -> dict[str, Any]:
        self._registry.revoke_credentials(agent_id[:100], self._operator(), clock.read())
        return {"agent_id": agent_id, "status": "revoked"}

    def _rotate(self) -> dict[str, Any]:
        actor, asked = self._operator(), requests.read(requests.RotationRequest)
        http_io.note_change(f"{len(asked.agents)} agents: {', '.join(asked.agents[:20])}")
        return {"agents": self._registry.rotations.begin(asked.agents, actor, clock.read())}

    def _forget_agent(self, agent_id: str) -> dict[str, Any]:
        forget = self._registry.retract_agent if http_io.query_flag("undeployed") else self._registry.forget_agent
        forget(agent_id[:100], self._operator(), clock.read())
        return {"agent_id": agent_id, "status": "forgotten"}

    def _check_ssh(self, host: str) -> dict[str, Any]:
        found = next(
            (agent for agent in self._registry.agents_by_id.values() if agent.host == host and agent.ssh), None
        )
        if found is None:
            raise NotFound(f"no deployed host {host[:80]!r}", "list them: invoke status, or GET /api/hosts")
        if found.ssh.get("local"):
            ok, reason = True, "this machine: no SSH needed"
        elif self._ssh is None:
            raise Conflict("this manager runs without its SSH helper", "restart the manager")
        else:
            result = self._ssh.check(host, found.ssh, CHECK_SSH_DEADLINE_S)
            ok, reason = result.ok, result.reason
        self._registry.set_recovery_ssh(host, ok, reason, clock.read())
        return {"host": host, "ok": ok, "reason": reason}

    # ---------------------------------------------------------------------------------------------- deployments

    def _deploy(self) -> dict[str, Any]:
        actor = self._operator()
        environ = bottle.request.environ
        request = http_io.read_object(environ, http_io.limits_of(environ).deployment_size, MAX_DEPLOYED_OBJECTS)
        http_io.note_change(_deployment(request))
        reply: dict[str, Any] = self._registry.deploy(request, actor, clock.read())
        pinned = self._pinned()
        reply.setdefault("manager_urls", self._manager_urls())
        reply.setdefault("manager_configured", self._manager_configured)
        reply["tls"] = {"ca": pinned.ca, "any_name": pinned.any_name}
        return reply


def _deployment(request: dict[str, Any]) -> str:
    """ "2 hosts: gpu01, gpu02 (check)": what was asked for, before it is known to be right."""
    hosts = request.get("hosts")
    hosts = hosts if isinstance(hosts, list) else []
    names = [str(host.get("host", "?"))[:64] for host in hosts[:20] if isinstance(host, dict)]
    flags = [flag for flag in ("check", "prune") if request.get(flag) is True]
    return f"{len(hosts)} hosts: {', '.join(names)}" + (f" ({', '.join(flags)})" if flags else "")


def _matches(view: dict[str, Any]) -> bool:
    """The query's filters; several values of one are separated by commas."""
    for name in ("state", "host", "group", "agent"):
        wanted = http_io.query_text(name, 4096)
        if wanted and view.get(name) not in wanted.split(","):
            return False
    needle = http_io.query_text("q").lower()
    texts = (view["worker_id"], view["host"], view["command"], view["group"], view["reason"])
    return not needle or any(needle in str(text).lower() for text in texts)


def _sorted(views: list[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    """`sort=host` or `sort=-restarts`; ties by id, what has no value last."""
    name = field.removeprefix("-")
    if name not in SORTABLE:
        raise UsageError(f"sort={field[:40]!r}: not a column to sort by", f"use one of: {', '.join(SORTABLE)}")
    views = sorted(views, key=lambda view: str(view["worker_id"]))
    present = [view for view in views if view.get(name) is not None]
    missing = [view for view in views if view.get(name) is None]
    return sorted(present, key=lambda view: view[name], reverse=field.startswith("-")) + missing
