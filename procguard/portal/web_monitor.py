"""WebMonitor: combines the API, the live feed and the pages and serves them on one port.

Wires; decides nothing. `web.enabled: false` disables the pages and /ws and keeps the API, which agents need.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

import bottle
import gevent
import gevent.event

from procguard import resources
from procguard.admission.connections import ConnectionLimiter
from procguard.admission.memory import Bodies
from procguard.admission.rate import BackOff
from procguard.agent_api import factory, http_io
from procguard.agent_api.handlers import AgentApi, Call
from procguard.agent_api.http import HttpChannel
from procguard.agent_api.interface import Channel
from procguard.agent_api.sessions import AgentSessions
from procguard.config.schema import Config
from procguard.deploy.install.helper_client import ManagerFacts
from procguard.errors import ProcGuardError
from procguard.fleet.agents.maintenance import AgentMaintenance
from procguard.fleet.fleet import Fleet
from procguard.fleet.model import clock
from procguard.fleet.telemetry.timeseries import Measurements
from procguard.notify.mutes import Mutes
from procguard.notify.rules import AlertRules
from procguard.portal.api.live import all_fields
from procguard.portal.api.logs import LogsApi
from procguard.portal.api.resource import ManagersService, Notifications, Opener, Services, Ssh, all_resources
from procguard.portal.auth.access import Auth
from procguard.portal.auth.audit import Audit
from procguard.portal.auth.gate import Gate
from procguard.portal.auth.sessions import BrowserSessions
from procguard.portal.http import agents_listener, own_addresses, sockets, websocket
from procguard.portal.http import server as http_server
from procguard.portal.http.fast_path import FastPath
from procguard.portal.http.middleware import RequestMiddleware
from procguard.portal.http.proxies import TrustedProxies
from procguard.portal.http.web_files import WebFiles
from procguard.portal.live.endpoint import LiveEndpoint
from procguard.portal.live.hub import LiveHub
from procguard.portal.logs.matching import Matching
from procguard.portal.logs.rules import Rule
from procguard.portal.logs.store import LogStore
from procguard.portal.metrics.exposition import Metrics, MetricsOptions
from procguard.runtime.loop_lag import LagHistogram
from procguard.tls import certificates as tls

log = logging.getLogger(__name__)

REFRESH_CERTIFICATES_S = 60.0
STOP_GRACE_S = 2.0  # for requests in flight when the manager stops
# Served beside the API, but not part of the interface for programs. The WebSocket checks rights itself
# (portal/live/endpoint.py).
PAGES = (("GET", "/"), ("GET", "/static/<path:path>"), ("GET", "/ws"))
WEB_DIRECTORY = resources.path("web")


class WebMonitor:
    """`ssh`: the manager's SSH helper; `notifier`, `tunnels`, `maintenance`: the services for alerts, tunnels, and
    restarts and upgrades of agents; each may be None. `lags`: those of the event loop. Other parameters are for
    tests."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        log_store: LogStore,
        ssh: Ssh | None = None,
        notifier: Notifications | None = None,
        mutes: Mutes | None = None,
        alert_rules: AlertRules | None = None,
        *,
        tunnels: Opener | None = None,
        maintenance: AgentMaintenance | None = None,
        measurements: Measurements | None = None,
        lags: LagHistogram | None = None,
        web_directory: str = WEB_DIRECTORY,
        keeper: websocket.PingReaper | None = None,
        managers: ManagersService | None = None,
        listener: Any = None,
        retention: Sequence[Rule] = (),
    ) -> None:
        """`managers`: set if this is one of several; `listener`: a socket that already listens; `retention`: that of
        logs."""
        self._config = config
        limits = config.web.limits
        self._book = ConnectionLimiter(limits)
        self._bodies = Bodies(limits.bodies_in_memory, limits.unproven_bodies_in_memory)
        self._fleet = fleet
        self._log_store = log_store
        self._web_directory = web_directory
        self._listener = listener
        sessions, wrong_tokens = BrowserSessions(), BackOff()
        if managers is not None:
            _keep_sessions(sessions, fleet)
        agent_sessions = AgentSessions(fleet.state.fleet_id, fleet.agents.secrets.session_key_of)
        self._auth = Auth(
            fleet, sessions, wrong_tokens, trust_local=config.web.trust_local, agent_sessions=agent_sessions
        )
        self._audit = Audit(fleet.state.store, config.web.keep_audit)
        fleet.state.durability.lines = self._audit.take
        self._arrivals = own_addresses.Arrivals(config.web.advertise, lambda: self.port)
        self._agent_api = AgentApi(fleet, self._auth, log_store, limits, agent_sessions, self._why_not_here)
        self._http = HttpChannel(self._agent_api, self._auth)
        self._channel: Channel = factory.create(
            config.communication, fleet, self._agent_api, self._auth, limits, self._bodies
        )
        self._keeper = websocket.PingReaper() if keeper is None else keeper
        self._live = LiveHub(fleet, log_store)
        self._metrics = Metrics(
            fleet,
            log_store,
            {
                "procguard_connections": ("Open connections", lambda: float(len(self._book))),
                "procguard_connections_unproven": (
                    "Those that have not shown who they are",
                    lambda: float(self._book.unproven_count),
                ),
                "procguard_connections_refused": (
                    "Connections refused or closed for web.limits, since the start",
                    lambda: float(self._book.refused.total()),
                ),
                "procguard_websocket_clients": ("Open portal connections", lambda: float(len(self._keeper))),
                "procguard_log_followers": ("Logs being followed", lambda: float(self._logs_api.follower_count)),
                "procguard_held_requests": ("Agents' requests held open", lambda: float(self._agent_api.held_count)),
                "procguard_channel_connections": (
                    "Connections of the channel beside HTTP",
                    lambda: float(self._channel.connection_count),
                ),
                "procguard_channel_refused_connections": (
                    "Connections whose key was not admitted to it, since the start",
                    lambda: float(self._channel.refused_count),
                ),
            },
            notifier.views if notifier is not None else list,
            MetricsOptions(config.metrics.per_worker, config.metrics.cache),
            lags,
        )
        services = Services(
            fleet,
            self._auth,
            self._audit,
            sessions,
            wrong_tokens,
            limits,
            log_store,
            Matching(),
            measurements or Measurements(),
            self._metrics,
            self._live,
            self.manager_urls,
            config.web.advertise,
            self.pinned,
            ssh=ssh,
            notifier=notifier,
            mutes=mutes or Mutes(),
            alert_rules=alert_rules or AlertRules([]),
            tunnels=tunnels,
            maintenance=maintenance,
            managers=managers,
            retention=retention,
        )
        self._resources = [kind(services) for kind in all_resources()]
        self._logs_api = next(one for one in self._resources if isinstance(one, LogsApi))
        self._server: http_server.Server | None = None
        self._agents_server: http_server.Server | None = None
        self._certificates: tls.Certificates | None = None
        self._refresher: Any = None
        self._stopped = gevent.event.Event()
        self.app = self._build()

    # ---------------------------------------------------------------------------------------------------- serving

    @property
    def port(self) -> int:
        """The port listened on; the configured one before `bind`."""
        return int(self._server.server_port or 0) if self._server is not None else int(self._config.web.port)

    @property
    def agents_port(self) -> int:
        """The port that serves agents behind tunnels. Only available once it is bound."""
        assert self._agents_server is not None
        return int(self._agents_server.server_port or 0)

    @property
    def url(self) -> str:
        host = self._config.web.host
        shown = "localhost" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
        return f"{self._scheme}://{shown}:{self.port}"

    @property
    def _scheme(self) -> str:
        return "http" if self._config.web.tls.mode == "off" else "https"

    @property
    def ca_file(self) -> str:
        """The manager's own CA, for clients on this machine; "" if it has none."""
        return self._certificates.ca_file if self._certificates is not None else ""

    def pinned(self) -> tls.Pinned:
        """The certificates that agents and launchers must trust."""
        return self._certificates.pinned if self._certificates is not None else tls.pinned_by(self._config.web.tls)

    def bind(self) -> None:
        """Bind the port. Raises ProcGuardError with a one-line message if that is impossible."""
        if self._server is not None:
            return
        limits = self._config.web.limits
        self._book.most = min(limits.connections, sockets.allow_many_connections())
        self._certificates = tls.open_certificates(self._config, self._names(), _utc_now())
        self._auth.ca_file = self.ca_file
        listener = self._listener or sockets.listen(self._config.web.host, self._config.web.port)
        guard = (
            LiveEndpoint(self._live, self._auth, self._keeper, limits.websocket_clients)
            if self._config.web.enabled
            else None
        )
        fast_path = FastPath(self._http.frequent(), self._metrics.count)
        middleware = RequestMiddleware(self.app, self._metrics.count)
        self._server = http_server.Server(
            listener,
            middleware,
            guard,
            fast_path,
            limits,
            self._book,
            self._bodies,
            proxies=TrustedProxies(self._config.web.trusted_proxies),
            tls=self._certificates.context if self._certificates is not None else None,
        )
        self._agents_server = agents_listener.server(
            self._agent_api, self._auth, _error_as_json, self._metrics.count, limits
        )

    def start(self) -> None:
        """Start serving; returns at once."""
        self.bind()
        assert self._server is not None
        self._agent_api.start()
        self._http.start()
        self._fleet.state.bus.workers.subscribe(self._retire_logs)
        self._channel.start()
        if self._config.web.enabled:
            self._live.start()
            self._keeper.start()
        self._server.start()
        assert self._agents_server is not None
        self._agents_server.start()
        if self._certificates is not None:
            self._refresher = gevent.spawn(self._refresh_certificates, self._certificates)
        log.info("listening url=%s portal=%s", self.url, self._config.web.enabled)

    def serve_forever(self) -> None:
        """Serve until `stop`."""
        self.start()
        assert self._server is not None
        self._stopped.wait()

    def stop(self) -> None:
        """End held requests and live clients with a close frame, then the server. Safe to call twice."""
        if self._server is None:
            return
        if self._refresher is not None:
            self._refresher.kill()
        assert self._agents_server is not None
        for server in (self._server, self._agents_server):
            server.stop_accepting()
        self._http.stop()
        self._agent_api.stop()
        self._logs_api.stop()
        self._keeper.stop()
        self._auth.uses.stop()
        gevent.sleep(0.05)  # close frames are sent before connections are closed
        self._channel.stop()
        self._live.stop()
        self._server.stop(timeout=STOP_GRACE_S)
        self._agents_server.stop(timeout=0.2)
        self._audit.close()
        self._stopped.set()

    def manager_urls(self) -> list[str]:
        """The addresses of this manager for agents: `web.advertise` first, then this machine's own addresses. The
        latter are candidates: a deployment keeps those that lead to this manager from its host."""
        web = self._config.web
        return own_addresses.manager_urls(web.advertise, self._scheme, web.host, self.port)

    def for_agents(self, *, local: bool) -> ManagerFacts:
        """The facts about this manager that an agent receives over SSH. `local`: for an
        agent on this machine."""
        urls = [f"{self._scheme}://127.0.0.1:{self.port}"] if local else []
        pinned = self.pinned()
        return {
            "manager_urls": list(dict.fromkeys([*urls, *self.manager_urls()])),
            "manager_configured": list(self._config.web.advertise),
            "manager_port": self.port,
            "manager_ca": pinned.ca,
            "manager_any_name": pinned.any_name,
        }

    def _why_not_here(self, call: Call, url: str) -> str:
        return self._arrivals.why_not(url, call.peer, call.arrived_at, call.direct)

    def _names(self) -> list[str]:
        return tls.names_for(own_addresses.all_own(), self._config.web.advertise, self._config.web.host)

    def _refresh_certificates(self, certificates: tls.Certificates) -> None:
        """Use renewed certificates and replaced files for new connections without a restart."""
        while True:
            gevent.sleep(REFRESH_CERTIFICATES_S)
            try:
                if isinstance(certificates, tls.OwnCa):
                    certificates.rename(self._names())
                if certificates.refresh(_utc_now()):
                    log.info("another certificate serves new connections")
            except ProcGuardError as exc:
                log.error("%s", exc)

    def _retire_logs(self, worker_id: str) -> None:
        if worker_id not in self._fleet.state.workers_by_id:
            self._log_store.retire(worker_id)

    # --------------------------------------------------------------------------------------------------- building

    def _build(self) -> bottle.Bottle:
        app = bottle.Bottle()
        app.default_error_handler = _error_as_json
        app.install(Gate(self._auth, self._audit))
        self._http.mount(app)
        for resource in self._resources:
            if self._config.web.enabled or not resource.for_pages:
                resource.mount(app)
        if self._config.web.enabled:
            files = WebFiles(self._web_directory, lambda: http_io.dumps(all_fields()))
            pages: tuple[Callable[..., Any], ...] = (files.page, files.file, _not_a_websocket)
            for (method, path), page in zip(PAGES, pages, strict=True):
                app.route(path, method, http_io.answered(page), who="anyone")
        return app


def _keep_sessions(sessions: BrowserSessions, fleet: Fleet) -> None:
    """Store sessions in the database that several managers share. They are durable with the next commit, which a login
    causes by its audit entry."""
    sessions.restore(fleet.kept_tables.get("sessions", {}), clock.read().monotonic)
    sessions.keep_by(lambda digest, record: fleet.state.durability.hand_in([("sessions", digest, record)]))
    fleet.state.more_tables.append(lambda: {"sessions": sessions.kept()})


def _utc_now() -> datetime:
    return datetime.fromtimestamp(clock.read().wall, timezone.utc)


def _not_a_websocket() -> bottle.HTTPResponse:
    body = http_io.error_body(
        "upgrade_required", "/ws accepts only WebSocket connections", "open the portal at /", http_io.request_id()
    )
    response = http_io.json_response(body, 426)
    response.set_header("Upgrade", "websocket")
    return response


_STATUS_CODES = {
    400: ("bad_request", "the manager cannot process this request", "check the address and the body"),
    403: ("forbidden", "not permitted from this address", "see the list of routes in docs/protocol.md"),
    404: ("not_found", "no such route", "see the list of routes in docs/protocol.md"),
    405: ("method_not_allowed", "this route does not accept that method", "see the Allow header"),
}


def _error_as_json(error: bottle.HTTPError) -> bytes:
    """Convert bottle's own errors (no route, wrong method) to the common JSON form."""
    identifier = http_io.request_id()
    if error.exception is not None:
        log.error("request failed request_id=%s", identifier, exc_info=error.exception)
    code, message, next_step = _STATUS_CODES.get(
        error.status_code, ("error", f"status {error.status_code}", "see docs/protocol.md")
    )
    if error.status_code >= 500:
        code, message = "internal_error", "the manager failed to answer this request"
        next_step = f"look for request_id={identifier} in the manager's log and report it"
    bottle.response.content_type = "application/json"
    body = http_io.error_body(code, message, next_step, identifier)
    return http_io.dumps(http_io.with_localized(body, http_io.accept_language()))
