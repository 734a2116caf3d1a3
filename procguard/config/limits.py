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
        description=(
            "Maximum number of connections; an agent uses two. Lower if the system allows this process fewer files."
        ),
    )
    unproven_connections: int = Field(
        default=2_048,
        ge=8,
        le=1_000_000,
        description=(
            "Maximum number of unproven connections. Beyond it, the oldest one that is at least a second old (at four "
            "times as many, of any age) is answered with 503 and closed, so that unauthenticated clients cannot "
            "exclude agents."
        ),
    )
    unproven_per_address: int = Field(
        default=512,
        ge=4,
        le=1_000_000,
        description="The same for one address. 1,000 agents behind one NAT have few unproven connections.",
    )
    connections_per_agent: int = Field(
        default=64,
        ge=4,
        le=1_000_000,
        description=(
            "Maximum number of connections of one agent; beyond it, its oldest is closed. An agent needs three."
        ),
    )
    unproven_timeout: Timeout = Field(
        default=15.0,
        description="Seconds for which an unproven connection may be idle, send a body or receive a response.",
    )
    idle_timeout: Timeout = Field(
        default=75.0, description="Seconds for which a proven connection may be idle or receive a response."
    )
    headers_timeout: Timeout = Field(
        default=10.0,
        description="Maximum seconds from the first byte of a request to the end of its headers; then 408.",
    )
    headers_size: Size = Field(
        default=64 * 2**10,
        ge=4 * 2**10,
        le=2**20,
        description="Maximum size of all headers of a request, in bytes; larger: 431.",
    )
    body_timeout: Timeout = Field(
        default=60.0, description="Maximum seconds for the body of a request to arrive; then 408."
    )
    body_size: Size = Field(
        default=2**20,
        ge=64 * 2**10,
        le=2**30,
        description=(
            "Maximum size of an operator's or a launcher's request, in bytes; larger: 413. A list of selected workers "
            "may be larger."
        ),
    )
    heartbeat_size: Size = Field(
        default=8 * 2**20,
        ge=2**20,
        le=2**30,
        description="Maximum size of an agent's heartbeat, including its backlog of events, in bytes.",
    )
    deployment_size: Size = Field(
        default=16 * 2**20,
        ge=2**20,
        le=2**30,
        description=(
            "Maximum size of the request of a deployment, in bytes; sufficient for thousands of hosts with workers."
        ),
    )
    bodies_in_memory: Size = Field(
        default=64 * 2**20,
        ge=2**20,
        le=2**40,
        description=(
            "Memory for large bodies of all proven callers that are being received at the same time, in bytes; one "
            "caller may use a quarter. Other requests wait for up to 8 s; then 429."
        ),
    )
    unproven_bodies_in_memory: Size = Field(
        default=8 * 2**20, ge=2**20, le=2**40, description="The same for all unproven callers together."
    )
    websocket_clients: int = Field(
        default=1_000, ge=1, le=100_000, description="Maximum number of open portal pages; beyond it, close code 4429."
    )
    websocket_queue: Size = Field(
        default=8 * 2**20,
        ge=64 * 2**10,
        le=2**30,
        description=(
            "Maximum bytes queued for one portal page that reads too slowly; beyond it, the page is closed with 4408."
        ),
    )
    websocket_memory: Size = Field(
        default=64 * 2**20,
        ge=2**20,
        le=2**40,
        description="Maximum bytes queued for all portal pages; beyond it, the page with the most is closed with 4408.",
    )
    log_followers: int = Field(
        default=500, ge=1, le=100_000, description="Maximum number of followed logs; beyond it, 429."
    )
    follow_memory: Size = Field(
        default=64 * 2**20,
        ge=2**20,
        le=2**40,
        description=(
            "Maximum bytes queued for all followers of logs; output beyond it is omitted, and its size is shown."
        ),
    )
    registrations_at_once: int = Field(
        default=120, ge=1, le=1_000_000, description="Unknown launchers that may register from one address in a burst; "
        "then 429 until `registrations_per_second` allows more.",
    )  # fmt: skip
    registrations_per_second: Annotated[float, Field(gt=0, le=100_000)] = Field(
        default=4.0, description="Rate of further registrations of unknown launchers from one address."
    )
    pending_launchers: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description=(
            "Maximum number of pending launchers; beyond it, the oldest of the address with the most is dropped."
        ),
    )
