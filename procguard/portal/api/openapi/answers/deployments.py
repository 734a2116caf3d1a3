"""What was deployed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from procguard.portal.api.openapi.answers import Moment


class WorkerDeployed(BaseModel):
    """`starts`: the attempt that the deployment leads to; null where it starts nothing."""

    result: str
    message: str
    differences: list[str]
    starts: int | None


class HostDeployed(BaseModel):
    agent_id: str
    proof_key: str
    secret_sha256: str
    heard_at: Moment
    workers: dict[str, WorkerDeployed]


class HostAbsent(BaseModel):
    """A host that the inventory named in an earlier deployment, and names no more. `guests`: workers that live there
    and are declared elsewhere. `ssh`: how the manager reaches it."""

    agent_id: str
    ssh: dict[str, Any]
    procguard_home: str
    workers: dict[str, WorkerDeployed]
    guests: list[str]


class ManagerTls(BaseModel):
    """What agents are to trust: certificates in PEM ("": those that their machines know), for whatever address."""

    ca: str
    any_name: bool


class Ca(ManagerTls):
    fingerprint: str


class Deployed(BaseModel):
    fleet_id: str
    hosts: dict[str, HostDeployed]
    absent: dict[str, HostAbsent]
    of_other_inventories: dict[str, str]
    manager_urls: list[str]
    manager_configured: list[str]
    tls: ManagerTls
