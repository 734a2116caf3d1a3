"""Hosts and their agents."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from procguard.portal.api.openapi.answers import Moment
from remote_agent.protocol import messages


class Checked(BaseModel):
    """Whether the manager itself can reach a host over SSH."""

    ok: bool | None
    reason: str
    checked_at: Moment = None


class Cordon(BaseModel):
    """No new tasks there by the manager's choice: who said so, when and why."""

    reason: str
    actor: str
    at: Moment


class HostRecovery(BaseModel):
    """The open incident of a silent host."""

    starts: int
    outcome: str
    reason: str


class Failure(BaseModel):
    """What went wrong on a host."""

    at: Moment
    kind: str
    what: str


class TunnelAnswer(BaseModel):
    """A host's way to the manager through the manager's own SSH."""

    state: Literal["opening", "up", "down"]
    port: int
    reason: str = ""
    code: str = ""
    since: Moment = None


class HostAnswer(BaseModel):
    """A host, or a launcher started by hand; one that waits for approval has `fingerprint`."""

    host: str
    agent: str
    kind: Literal["deployed", "launcher"]
    agent_state: Literal["never", "connected", "suspect", "unreachable", "ended", "pending"]
    last_seen: Moment
    address: str
    release: str
    usage: messages.HostUsage | None
    facts: messages.HostFacts | None
    workers: int
    recovery_ssh: Checked
    reason: str
    tunnel: TunnelAnswer | None = None
    agent_pid: int | None = None
    agent_started: Moment = None
    spare: bool | int = False
    labels: dict[str, str] = {}
    undeclared: bool = False  # the inventory that declared it names it no more
    cordoned: Cordon | None = None
    recovery: HostRecovery | None = None
    failures: int = 0
    last_failure: Failure | None = None
    fingerprint: str | None = None
    worker_id: str | None = None
    command: str | None = None
    channel: str = ""  # by which its last heartbeat came: http, zmq, mock
    channel_trouble: str = ""  # why not zmq, though it is offered
    disk_trouble: str = ""  # its disk refuses writes: space, inodes, quota, read_only, io
    disk_path: str = ""  # which disk
    rotation: Rotation | None = None


class Rotation(BaseModel):
    """A new secret was asked for: the agent has yet to make it (`asked`), or to use it (`taken`)."""

    id: str
    state: Literal["asked", "taken"]
    at: Moment
    actor: str


class HostsAnswer(BaseModel):
    hosts: list[HostAnswer]
    server_time: str


class Agents(BaseModel):
    agents: list[HostAnswer]
    server_time: str
    version: str
    releases: list[str]


class RotationAsked(BaseModel):
    status: Literal["asked", "unsupported", "unknown"]
    message: str


class RotationsAsked(BaseModel):
    agents: dict[str, RotationAsked]


class OfAgent(BaseModel):
    agent_id: str
    status: str


class OfHost(BaseModel):
    host: str
    status: str


class SshTried(BaseModel):
    host: str
    ok: bool
    reason: str


class CareBegun(BaseModel):
    """`seq`: of the event that tells of the wish; the one that tells of its end comes later."""

    host: str
    status: Literal["accepted"]
    seq: int


class AgentLogAnswer(BaseModel):
    """`bytes`: the whole file's; `text` is its end."""

    host: str
    text: str
    path: str
    bytes: int
    running: bool
    pid: int | None


class TunnelOpened(BaseModel):
    """`url`: what its agent is told, "" where the tunnel is not up."""

    host: str
    ok: bool
    url: str
    reason: str
