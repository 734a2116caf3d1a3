"""Deployments: an inventory's hosts and workers, declared to the fleet (fleet/workers/deployment.py)."""

from __future__ import annotations

import bottle
from typing_extensions import TypedDict

from procguard.agent_api import http_io
from procguard.agent_api.declaration import post
from procguard.agent_api.interface import Principal
from procguard.errors import Forbidden
from procguard.fleet.model import clock
from procguard.fleet.workers.deployed import Declaration
from procguard.fleet.workers.deployment import DeploymentRequest
from procguard.json_types import Json
from procguard.portal.api.resource import Resource

MAX_DEPLOYED_OBJECTS = 5_000_000  # in effect unlimited: the size of the body is the limit for operators


class ManagerTls(TypedDict):
    """`ca`: the CA certificates that agents trust, as PEM; "" for those of their operating system. `any_name`: accept
    the certificate for every address of the manager."""

    ca: str
    any_name: bool


class Deployed(Declaration):
    manager_urls: list[str]
    manager_configured: list[str]
    tls: ManagerTls


class DeploymentsApi(Resource):
    @post(
        "/api/deployments", "operator", tag="hosts", zh="声明主机与 worker（即 invoke deploy）", body=DeploymentRequest,
        errors=(409,), example={"hosts": [{"host": "gpu07", "workers": []}], "prune": True},
    )  # fmt: skip
    def deploy(self, caller: Principal) -> Deployed:
        """Declare hosts and their workers: what `invoke deploy` does.

        A host may also have `spare` (true, false or a number), `labels` and `tunnel`. After `invoke state.rebuild`,
        unknown workers are refused with 409 `records_needed` until a request reports what runs where: `"found":
        {"gpu01": [{"worker_id": "worker1", "alive": true}]}` for each host that was read; `"all_read": true` ends this.
        A browser session may not deploy: 403.
        """
        if caller.via == "session":
            raise Forbidden(
                "a browser session cannot declare workers",
                "deploy from a terminal: invoke deploy --hosts inventory.yaml",
            )
        environ = bottle.request.environ
        request = http_io.read_object(environ, self.services.limits.deployment_size, MAX_DEPLOYED_OBJECTS)
        http_io.note_change(_deployment(request))
        reply = self.fleet.workers.deploy(request, caller.actor, clock.read())
        pinned = self.services.pinned()
        return {
            **reply,
            "manager_urls": self.services.manager_urls(),
            "manager_configured": list(self.services.manager_configured),
            "tls": {"ca": pinned.ca, "any_name": pinned.any_name},
        }


def _deployment(request: Json) -> str:
    """A summary of the unvalidated request for the audit: "2 hosts: gpu01, gpu02 (check)"."""
    hosts = request.get("hosts")
    hosts = hosts if isinstance(hosts, list) else []
    names = [str(host.get("host", "?"))[:64] for host in hosts[:20] if isinstance(host, dict)]
    flags = [flag for flag in ("check", "prune") if request.get(flag) is True]
    return f"{len(hosts)} hosts: {', '.join(names)}" + (f" ({', '.join(flags)})" if flags else "")
