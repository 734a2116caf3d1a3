"""The manager itself: liveness, readiness, metrics, its CA, the description of its API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import bottle
import gevent
import gevent.lock

from procguard.agent_api.declaration import TEXT, get
from procguard.errors import NotFound
from procguard.fleet.store.interface import NotDurable
from procguard.json_types import Json
from procguard.portal.api.openapi import document
from procguard.portal.api.resource import Resource, Services
from procguard.portal.metrics.exposition import CONTENT_TYPE


@dataclass(frozen=True)
class Status:
    status: str


@dataclass(frozen=True)
class Ready:
    fleet_id: str
    status: Literal["ready"] = "ready"


@dataclass(frozen=True)
class Ca:
    """`ca`: the CA certificate that agents trust, as PEM. `any_name`: they accept its certificates for every address.
    `fingerprint`: SHA-256 of the certificate."""

    ca: str
    any_name: bool
    fingerprint: str


class ManagerApi(Resource):
    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._describing = gevent.lock.BoundedSemaphore(1)

    @get("/api/ca", "anyone", tag="manager", zh="管理端证书的 CA", errors=(404,))
    def ca(self) -> Ca:
        """The CA of the manager's certificate; verify it by its fingerprint.

        `{"ca": PEM, "any_name", "fingerprint": "sha256:…"}`; 404 if the manager has no CA of its own.
        """
        pinned = self.services.pinned()
        if not pinned.ca:
            raise NotFound(
                "this manager has no CA of its own", "its certificate is signed by a public CA, or it has none"
            )
        return Ca(pinned.ca, pinned.any_name, pinned.fingerprint)

    @get("/healthz", "anyone", tag="manager", zh="存活检查")
    def healthz(self) -> Status:
        """Liveness: the manager process responds."""
        return Status("ok")

    @get("/readyz", "anyone", tag="manager", zh="就绪检查", errors=(503,))
    def readyz(self) -> Ready:
        """Readiness: the manager accepts changes.

        503 while writes to the disk fail: every change is then refused with 503 `not_durable`; heartbeats are still
        answered with 200.
        """
        if self.fleet.state.durability.unwritten:  # the state itself was loaded before this object was created
            raise NotDurable(
                self.fleet.state.durability.unwritten, "free space or repair the disk; nothing else needs to be done"
            )
        if not self.fleet.state.leadership.may_direct():
            raise NotDurable("this manager lost its database, or its term has ended", "see: procguard managers")
        return Ready(self.fleet.state.fleet_id)

    @get("/metrics", "viewer or metrics", tag="manager", zh="Prometheus 指标", answers={200: str}, media=(TEXT,))
    def metrics(self) -> bottle.HTTPResponse:
        """Metrics for Prometheus.

        [Metrics](metrics.md).
        """
        return bottle.HTTPResponse(self.services.metrics.exposition(), 200, {"Content-Type": CONTENT_TYPE})

    @get("/api/openapi.json", "anyone", tag="manager", zh="本接口说明", answers={200: Json})
    def description(self) -> bottle.HTTPResponse:
        """The OpenAPI description of this API.

        OpenAPI 3.1, generated from the types that validate requests. It contains nothing about this fleet, so anyone
        may read it.
        """
        with self._describing:  # the first request generates it, in a thread, so that the event loop continues
            body = gevent.get_hub().threadpool.apply(document.document_bytes)
        return bottle.HTTPResponse(body, 200, {"Content-Type": "application/json"})
