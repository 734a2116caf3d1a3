"""Response types for agents in addition to the messages of remote_agent.protocol: small JSON objects."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import NotRequired, TypedDict

from remote_agent.protocol.messages import ZmqOffer


class SessionOffer(TypedDict):
    """A session, in which requests carry MACs instead of the secret (docs/protocol.md)."""

    id: str
    uid: int
    machine: str
    proof: str


class Hello(TypedDict):
    """`session` or, for earlier agents that send a nonce, `proof`. `zmq`: the zmq channel's address, for known
    agents."""

    fleet_id: str
    version: str
    protocol: int
    proof: NotRequired[str | None]
    session: NotRequired[SessionOffer | None]
    zmq: NotRequired[ZmqOffer | None]


class Acked(TypedDict):
    """The number of durably stored bytes of this stream; with several managers also the offset up to which the leader
    has all bytes (`kept`), and its term."""

    acked: int
    kept: NotRequired[int]
    term: NotRequired[int]


class OfSearch(TypedDict):
    search_id: str
    status: str


@dataclass(frozen=True)
class OfAgent:
    agent_id: str
    status: str
