"""The shapes of a deployment's result, as the API responds with them."""

from __future__ import annotations

from typing_extensions import TypedDict

from procguard.fleet.model.records import SshSettings


class WorkerDeployed(TypedDict):
    """`starts`: the attempt that the deployment starts; null if it starts none."""

    result: str
    message: str
    differences: list[str]
    starts: int | None


class HostDeployed(TypedDict):
    agent_id: str
    proof_key: str
    secret_sha256: str
    last_heartbeat_at: str | None
    workers: dict[str, WorkerDeployed]


class HostAbsent(TypedDict):
    """A host that the inventory named in an earlier deployment but no longer names. `guests`: ids of workers that run
    there but are declared on other hosts. `ssh`: the SSH parameters with which the manager reaches the host."""

    agent_id: str
    ssh: SshSettings
    procguard_home: str
    workers: dict[str, WorkerDeployed]
    guests: list[str]


class Declaration(TypedDict):
    """The result of a deployment, per host. `of_other_inventories`: hosts that another inventory named last, with its
    name."""

    fleet_id: str
    hosts: dict[str, HostDeployed]
    absent: dict[str, HostAbsent]
    of_other_inventories: dict[str, str]
