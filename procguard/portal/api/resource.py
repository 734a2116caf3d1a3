"""The base of every API resource: routes declared at their handlers, types of requests, and the services that handlers
work with.

Every module of this package that defines a `Resource` is discovered (`all_resources`): adding one adds its routes,
their access rights, their documentation and their cases in the tests. This module owns how a declared handler is called
(the caller's rights are checked first, then the path, the query and the body) and how its response is sent; the content
of responses belongs to the resources.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol

import bottle
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from procguard.admission.rate import BackOff
from procguard.agent_api import http_io
from procguard.agent_api.declaration import TAGS, Route, read_query, routes_of
from procguard.agent_api.decode import Hints, validated
from procguard.agent_api.handlers import AgentApi, checked_worker_id
from procguard.config.limits import WebLimits
from procguard.deploy.install.helper_client import Result
from procguard.fleet.agents.maintenance import AgentMaintenance
from procguard.fleet.fleet import Fleet
from procguard.fleet.model.records import SshSettings
from procguard.fleet.shapes.parts import TunnelAnswer
from procguard.fleet.telemetry.timeseries import Measurements
from procguard.notify.mutes import Mutes
from procguard.notify.notifier import NotificationTarget, Tried
from procguard.notify.rules import AlertRules
from procguard.portal import api
from procguard.portal.api.several import Managers
from procguard.portal.auth.access import CALLER, Auth
from procguard.portal.auth.audit import Audit
from procguard.portal.auth.sessions import BrowserSessions
from procguard.portal.live.hub import LiveHub
from procguard.portal.logs.matching import Matching
from procguard.portal.logs.rules import Rule
from procguard.portal.logs.store import LogStore
from procguard.portal.metrics.exposition import Metrics
from procguard.tls.certificates import Pinned

MAX_NAME_CHARS = 100  # of a name in the path; a longer one is truncated, which matches nothing
MAX_REASON_CHARS = 500

Moment = str | None  # ISO 8601 in UTC; null: never, or not yet


class Ssh(Protocol):
    """SSH checks of hosts, made outside the event loop."""

    def check(self, host: str, ssh: SshSettings, deadline_s: float) -> Result: ...


class Opener(Protocol):
    """Opens tunnels (manager/tunnels.py)."""

    def open(self, host: str, timeout_s: float) -> TunnelAnswer:
        """Open the host's tunnel and wait for it, at most `timeout_s` seconds. Raises NotFound or
        Conflict."""
        ...


class Notifications(Protocol):
    """The part of procguard/notify that the API uses."""

    @property
    def routes(self) -> list[Any]: ...

    def views(self) -> list[NotificationTarget]: ...

    def test(self, name: str = "") -> list[Tried]: ...


class ManagersService(Protocol):
    """The part of manager/several.py that the API uses."""

    def view(self) -> Managers:
        """The leader, the standbys, and how the database is replicated."""

    def promote(self, name: str) -> None:
        """Make the manager `name` the leader. Raises ProcGuardError if that is impossible."""


@dataclass
class Services:
    """Dependencies of resources. `ssh`, `notifier`, `tunnels`, `maintenance`, `managers`: None if not available.
    `manager_configured`: those of `manager_urls()` that agents keep even if they cannot be verified now."""

    fleet: Fleet
    auth: Auth
    audit: Audit
    sessions: BrowserSessions
    wrong_tokens: BackOff
    limits: WebLimits
    log_store: LogStore
    matching: Matching
    measurements: Measurements
    metrics: Metrics
    hub: LiveHub
    manager_urls: Callable[[], list[str]]
    manager_configured: Sequence[str]
    pinned: Callable[[], Pinned]
    ssh: Ssh | None = None
    notifier: Notifications | None = None
    mutes: Mutes = field(default_factory=Mutes)
    alert_rules: AlertRules = field(default_factory=lambda: AlertRules([]))
    tunnels: Opener | None = None
    maintenance: AgentMaintenance | None = None
    managers: ManagersService | None = None
    retention: Sequence[Rule] = ()


class Resource:
    """The routes of one resource. A subclass declares each route at its handler."""

    for_pages: ClassVar[bool] = False  # served only together with the pages (web.enabled)

    def __init__(self, services: Services) -> None:
        self.services = services
        self.fleet = services.fleet

    def mount(self, app: bottle.Bottle) -> None:
        for route in routes_of(type(self)):  # type: ignore[arg-type]
            answer = http_io.answered(_calling(route, getattr(self, route.handler)))
            app.route(route.path, route.method, answer, who=route.who, status=route.status)


def _calling(route: Route, handler: Callable[..., Any]) -> Callable[..., Any]:
    def call(**names: str) -> Any:
        arguments: dict[str, object] = {name: _checked(name, value) for name, value in names.items()}
        if "caller" in route.filled_in:
            arguments["caller"] = Auth.admitted(bottle.request.environ)
        if "query" in route.filled_in:
            arguments["query"] = read_query(route.query)
        if "body" in route.filled_in:
            arguments["body"] = read_body(route.body, optional=route.body_optional)
        answer = handler(**arguments)
        return answer if isinstance(answer, bottle.HTTPResponse) else http_io.json_response(answer, route.status)

    return call


def _checked(name: str, value: str) -> str:
    return checked_worker_id(value) if name == "worker_id" else value[:MAX_NAME_CHARS]


def caller_name() -> str:
    """The actor of the current request, for shares of the worker threads; "" without a caller."""
    return str(getattr(bottle.request.environ.get(CALLER), "actor", ""))


# ------------------------------------------------------------------------------------------------ all of them


@functools.cache
def all_resources() -> tuple[type[Resource], ...]:
    """All resources of this package, ordered by module name."""
    found: list[type[Resource]] = []
    for one in sorted(pkgutil.iter_modules(api.__path__), key=lambda one: one.name):
        module = importlib.import_module(f"{api.__name__}.{one.name}")
        found += [
            kind
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, Resource) and kind.__module__ == module.__name__
        ]
    return tuple(kind for kind in found if kind is not Resource)


def all_routes() -> tuple[Route, ...]:
    """All declared routes, including those of agents, ordered by tag."""
    found = [route for kind in (AgentApi, *all_resources()) for route in routes_of(kind)]
    return tuple(sorted(found, key=lambda route: TAGS.index(route.tag)))


# ------------------------------------------------------------------------------------------------ bodies


def one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected one line of printable text")
    return text.strip()


def _null_is_empty(value: Any) -> Any:
    return "" if value is None else value


Reason = Annotated[str, BeforeValidator(_null_is_empty), AfterValidator(one_line), Field(max_length=MAX_REASON_CHARS)]
Words = Annotated[str, BeforeValidator(_null_is_empty), AfterValidator(one_line), Field(max_length=256)]


class RequestBody(BaseModel):
    """Base of the request bodies of operators, validated by their type. Validation is strict: a number is not accepted
    as a string, nor `"true"` as true. Unknown keys are ignored, so that a newer client can talk to an older manager.
    `max_bytes`: None for web.limits.body_size. `hints`: for each field an error code and the next step, shown if the
    field is invalid."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    max_bytes: ClassVar[int | None] = None
    hints: ClassVar[Hints] = {}


def read_body(kind: Any, *, optional: bool = False) -> Any:
    """The body of the current request, decoded as `kind`. Raises UsageError that names all invalid fields."""
    environ = bottle.request.environ
    read = http_io.read_optional_object if optional else http_io.read_object
    return validated(kind, read(environ, kind.max_bytes), kind.hints)
