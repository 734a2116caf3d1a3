"""The keys of `web.limits:`: limits per caller and in total, so that no caller can exhaust the manager.

A connection is *unproven* until a request on it has been authenticated as that of an agent, an operator or the holder
of another token. Agents authenticate with their first request, within milliseconds; the limits can therefore be strict
for unauthenticated callers and still admit a thousand agents behind one address. docs/security.md explains each limit.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from procguard.config.types import STRICT, size_in_bytes

Size = Annotated[int, BeforeValidator(size_in_bytes)]
Timeout = Annotated[float, Field(gt=0, le=3600)]


class WebLimits(BaseModel):
    """Limits per caller and for all callers together."""

    model_config = STRICT

    connections: int = Field(
        default=65_536,
        ge=16,
        le=1_000_000,
        description="Connections in all, two for each agent; fewer where the system allows this process fewer files.",
    )
    unproven_connections: int = Field(
        default=2_048,
        ge=8,
        le=1_000_000,
        description=(
            "Unidentified connections. When there are more, the one that has been silent about "
            "it for the longest time (a second or more; at four times as many: any time) is answered 503 and closed, "
            "so that strangers never keep agents out."
        ),
    )
    unproven_per_address: int = Field(
        default=512, ge=4, le=1_000_000, description="The same from one address; a NAT with 1,000 agents needs few."
    )
    connections_per_agent: int = Field(
        default=64,
        ge=4,
        le=1_000_000,
        description="Connections of one agent; the oldest is closed. An agent needs three.",
    )
    unproven_timeout: Timeout = Field(
        default=15.0,
        description="Seconds that an unproven connection may be idle, or take to send a body or to accept an answer.",
    )
    idle_timeout: Timeout = Field(
        default=75.0, description="Seconds that a proven connection may be idle, or take to accept an answer."
    )
    headers_timeout: Timeout = Field(
        default=10.0, description="Seconds from the first byte of a request to the end of its headers; then 408."
    )
    headers_size: Size = Field(
        default=64 * 2**10, ge=4 * 2**10, le=2**20, description="Bytes of a request's headers together; then 431."
    )
    body_timeout: Timeout = Field(default=60.0, description="Seconds for the body of a request to arrive; then 408.")
    body_size: Size = Field(
        default=2**20,
        ge=64 * 2**10,
        le=2**30,
        description="Bytes of an operator's or a launcher's message; then 413. A selection made by hand may be longer.",
    )
    heartbeat_size: Size = Field(
        default=8 * 2**20, ge=2**20, le=2**30, description="Bytes of an agent's heartbeat with its backlog of events."
    )
    deployment_size: Size = Field(
        default=16 * 2**20, ge=2**20, le=2**30, description="Bytes of a deployment: thousands of hosts with workers."
    )
    bodies_in_memory: Size = Field(
        default=64 * 2**20,
        ge=2**20,
        le=2**40,
        description=(
            "Bytes of larger bodies that are being received at once, from all proven callers; a quarter of it from "
            "one. Others wait for their turn up to 8 s; then 429."
        ),
    )
    unproven_bodies_in_memory: Size = Field(
        default=8 * 2**20, ge=2**20, le=2**40, description="The same for all strangers together."
    )
    websocket_clients: int = Field(
        default=1_000, ge=1, le=100_000, description="Number of open portals; then close code 4429."
    )
    websocket_queue: Size = Field(
        default=8 * 2**20,
        ge=64 * 2**10,
        le=2**30,
        description="Bytes that wait for one portal that reads too slowly; then it is closed with 4408.",
    )
    websocket_memory: Size = Field(
        default=64 * 2**20,
        ge=2**20,
        le=2**40,
        description="Bytes that wait for all portals together; the one with the most is closed with 4408.",
    )
    log_followers: int = Field(default=500, ge=1, le=100_000, description="Number of logs followed at once; then 429.")
    follow_memory: Size = Field(
        default=64 * 2**20,
        ge=2**20,
        le=2**40,
        description="Bytes that wait for all followers together; what is beyond is left out, and its size is shown.",
    )
    registrations_at_once: int = Field(
        default=120, ge=1, le=1_000_000, description="Unknown launchers that may register from one address at once; "
        "then 429 until `registrations_per_second` allows more.",
    )  # fmt: skip
    registrations_per_second: Annotated[float, Field(gt=0, le=100_000)] = Field(
        default=4.0, description="Further registrations of unknown launchers from one address."
    )
    pending_launchers: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="Launchers that wait for approval; then the oldest of the address from which most wait gives way.",
    )
