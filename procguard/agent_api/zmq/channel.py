"""The zmq channel: the agents' part of the API (agent_api/handlers.py) over ROUTER/DEALER sockets, on `port_base` and
the next port.

A message is one frame: a header (one line of JSON), followed by the body. `{"id", "method", "path"}` and the response's
`status` have the same meaning as over HTTP. Log bytes use the second port, so that other messages do not wait behind
them. docs/protocol.md has examples. Owns connections, their secrets and scheduling; handlers.py creates the responses.

Every connection uses CURVE, also on loopback, so that an agent's secret is never sent in the clear (keys.py decides who
may connect).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
from collections import deque
from typing import Any

import gevent
import zmq
from pydantic_core import from_json

from procguard.admission.connections import Unproven
from procguard.admission.memory import Bodies
from procguard.admission.rate import RateLimiter
from procguard.agent_api import decode, http_io
from procguard.agent_api.handlers import AgentApi
from procguard.agent_api.interface import Access
from procguard.agent_api.routes import FoundRoute, RouteTable, refusal
from procguard.agent_api.zmq.call import Rules, ZmqCall, end_session
from procguard.agent_api.zmq.keys import CurveKeyStore, ZapAuthenticator, key_from_hex
from procguard.agent_api.zmq.port import POLL_INTERVAL_S, Peer, Received, RouterPort
from procguard.config.limits import WebLimits
from procguard.config.schema import AdapterConfig
from procguard.errors import LimitExceeded, NotFound, ProcGuardError, UsageError
from procguard.fleet.model import clock
from procguard.json_types import Json
from procguard.runtime.cooperative import yield_to_hub
from remote_agent.protocol import messages as protocol

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16 * 1024
MAX_SECRET_CHARS = 512
MAX_REQUESTS_OF_PEER = 8  # unanswered
MAX_WAITING = 2_000  # limit of requests received and not begun
MAX_WAITING_BYTES = 64 * 1024 * 1024  # limit on the total size of those requests
BYTES_PER_TURN = 16 * 1024  # bytes that count as one more request
ARRIVALS_PER_S = 4.0  # additional connections per agent, after a burst of its maximum number
TURN = 50  # requests answered before other greenlets run
IDLE_WORKERS = 8  # greenlets that wait for further requests; a new one for each request would cost two system calls
REQUESTS, LOGS = "requests", "logs"  # the purposes of the ports
LOGS_PATH = "/api/workers/<worker_id>/logs"  # the one route of the second port


class ZmqChannel:
    """Listens on `port_base` and `port_base` + 1 of `host`."""

    name = "zmq"

    def __init__(
        self, agent_api: AgentApi, access: Access, adapter: AdapterConfig, limits: WebLimits, bodies: Bodies
    ) -> None:
        """`adapter`: communication.adapter_config; `bodies`: the memory for larger ones, shared with HTTP."""
        self._host, self._port_base, self._timeout_ms = adapter.host, adapter.port_base, adapter.timeout
        self._limits = limits
        self._rules = Rules(access, bodies, limits.body_timeout)
        self._routes = RouteTable(agent_api.routes())
        self._key_store = CurveKeyStore()
        self._context: Any = None
        self._authenticator: ZapAuthenticator | None = None
        self._door_watchers: list[Any] = []
        self._ports: list[RouterPort] = []
        self._inbox: deque[Received] = deque()
        self._inbox_bytes = 0
        self._begun = 0  # requests in progress: long polls, and those that wait for the disk
        self._arrivals = RateLimiter(limits.connections_per_agent, ARRIVALS_PER_S)
        self._called = False  # the hub is about to `_go_on`
        self._idle: list[Any] = []  # greenlets
        agent_api.offer_by(self.offer)

    # ------------------------------------------------------------------------------------------- start and end

    def start(self) -> None:
        """Listen on both ports. Raises ProcGuardError if a port is not available."""
        self._context = zmq.Context()
        # keeps libzmq's thread from preempting this one on a shared core: responses are sent in batches.
        self._context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_BATCH)
        self._authenticator = ZapAuthenticator(self._context, self._key_store, self._has_room_for)
        try:
            sizes = {REQUESTS: self._limits.heartbeat_size, LOGS: protocol.MAX_LOG_POST_BYTES}
            unproven: Unproven[int] = Unproven(self._limits.unproven_connections, self._limits.unproven_per_address)
            for number, (name, max_bytes) in enumerate(sizes.items()):
                port = RouterPort(
                    self._context,
                    self._key_store,
                    max_frame_bytes=max_bytes,
                    on_messages=self._arrived,
                    on_closed=end_session,
                    room=self._room,
                    unproven=unproven,
                    name=name,
                )
                self._ports.append(port)
                port.bind(self._host, self._port_base + number)
        except ProcGuardError:
            self.stop()
            raise
        loop = gevent.get_hub().loop
        door = loop.io(self._authenticator.socket.getsockopt(zmq.FD), 1)
        timer = loop.timer(POLL_INTERVAL_S, POLL_INTERVAL_S)
        self._door_watchers = [door, timer]
        for watcher in self._door_watchers:
            watcher.start(self._authenticator.answer_all)
        self._authenticator.answer_all()
        for port in self._ports:
            port.start()
        log.info("listening zmq host=%s ports=%d,%d", self._host, self._port_base, self._port_base + 1)

    def stop(self) -> None:
        if self._context is None:
            return
        for port in self._ports:
            port.close()
        for watcher in self._door_watchers:
            watcher.stop()
            watcher.close()
        if self._authenticator is not None:
            self._authenticator.close()
        idle, self._idle = self._idle, []
        gevent.killall(idle)
        context, self._context = self._context, None
        gevent.get_hub().threadpool.apply(context.term)  # waits until the last responses are sent

    @property
    def connection_count(self) -> int:
        return sum(len(port) for port in self._ports)

    @property
    def refused_count(self) -> int:
        refused = self._authenticator.refused if self._authenticator is not None else 0
        return refused + sum(port.cut for port in self._ports)

    def offer(self, agent_id: str, key: str, peer: str) -> protocol.ZmqOffer | None:
        """Admit an agent's proven key and return the address to connect to. None: not reachable from there."""
        if not reachable_from(self._host, peer):
            return None
        if key:
            own = key_from_hex(key)
            if own is None:
                raise UsageError("curve: expected a CURVE key as 64 hexadecimal digits", "see docs/protocol.md")
            self._key_store.admit(agent_id, own)
        return protocol.ZmqOffer(
            self._port_base, self._port_base + 1, self._key_store.public_key.hex(), self._timeout_ms
        )

    def revoke(self, agent_id: str) -> None:
        """Answer 401 on the agent's existing connections and refuse new ones."""
        self._key_store.revoke(agent_id)

    def _has_room_for(self, agent_id: str) -> bool:
        """Whether the agent may open another connection. Connections without a message are not counted; their rate is
        limited."""
        if self.connection_count >= self._limits.connections:
            return False
        own = sum(port.count_of(agent_id) for port in self._ports)
        return own < self._limits.connections_per_agent and not self._arrivals.wait_s(agent_id, clock.read().monotonic)

    # ------------------------------------------------------------------------------------------------- requests

    def _room(self) -> int:
        full = self._begun >= self._limits.connections or self._inbox_bytes >= MAX_WAITING_BYTES
        return 0 if full else MAX_WAITING - len(self._inbox)

    def _arrived(self, received: list[Received]) -> None:
        """Queue received messages for the greenlets. Runs in the hub."""
        self._inbox.extend(received)
        self._inbox_bytes += sum(len(message) for _, message in received if message)
        self._call_hub()

    def _call_hub(self) -> None:
        if not self._called:
            self._called = True
            gevent.get_hub().loop.run_callback(self._go_on)

    def _go_on(self) -> None:
        """Send pending responses, and let a greenlet process pending requests. Called in the hub when no greenlet is
        working, or when those that do are waiting (for the disk, or on a long poll)."""
        self._called = False
        self._flush()
        if self._inbox:
            if self._idle:
                self._idle.pop().switch()
            else:
                gevent.spawn(self._serve)

    def _serve(self) -> None:
        """One of a few greenlets that answer requests; each answers many in a row."""
        while True:
            self._work()
            if len(self._idle) >= IDLE_WORKERS or self._context is None:
                return
            self._idle.append(gevent.getcurrent())
            gevent.get_hub().switch()

    def _work(self) -> None:
        inbox, answered = self._inbox, 0
        self._begun += 1
        try:
            while inbox:
                peer, message = inbox.popleft()
                size = len(message) if message else 0
                self._inbox_bytes -= size
                if not self._called:
                    self._call_hub()
                self._take(peer, message)
                answered += 1 + size // BYTES_PER_TURN
                if answered >= TURN:
                    answered = 0
                    self._flush()
                    yield_to_hub()
        finally:
            self._begun -= 1
        self._flush()

    def _flush(self) -> None:
        for port in self._ports:
            port.flush()

    def _take(self, peer: Peer, message: bytes | None) -> None:
        session = peer.session
        request_id = 0
        try:
            if message is None:
                raise UsageError("more than one frame", "send header and body as one frame", code="bad_frames")
            head, _, body = message.partition(b"\n")  # one line of JSON, and the rest of the frame
            found, announced = session.usual, None
            request_id = session.usual_id(head)
            if found is None or not request_id or session.awaited:
                header = _header(head)
                request_id = _request_id(header)
                if session.awaited and session.take_body(request_id, body):
                    return
                found, announced = self._found(peer, header), header.get("body_bytes")
                session.remember(found, head, header)
            if session.unanswered >= MAX_REQUESTS_OF_PEER:
                raise LimitExceeded.for_now(
                    f"{MAX_REQUESTS_OF_PEER} requests of this connection are unanswered", "wait for answers", 1
                )
            session.unanswered += 1
            try:
                call = ZmqCall(found.query, self._rules, peer, request_id, body, announced)
                status, answer = found.handler(call, *found.arguments)
            finally:
                session.unanswered -= 1
        except Exception as exc:
            status, answer = refusal(exc, peer.address)
        peer.port.send_soon(peer, b'{"id":%d,"status":%d}\n' % (request_id, status) + decode.dumps(answer))

    def _found(self, peer: Peer, header: Json) -> FoundRoute:
        """Parse a request; a secret in it is used for the connection from now on."""
        if "secret" in header:
            secret = header["secret"]
            if not isinstance(secret, str) or not 0 < len(secret) <= MAX_SECRET_CHARS:
                raise UsageError("secret: expected text", 'send {"secret": "…"} with the connection\'s first request')
            peer.session.secret_sha256 = protocol.secret_sha256(secret)
        method, path = header.get("method"), header.get("path")
        if not isinstance(method, str) or not isinstance(path, str):
            raise UsageError("method and path are missing", 'e.g. {"id": 1, "method": "POST", "path": "/api/…"}')
        found = self._routes.find(method, path)
        takes_logs = peer.port.name == LOGS
        if (found.path == LOGS_PATH) != takes_logs:
            raise NotFound(
                "log bytes have a port of their own" if not takes_logs else "this port takes log bytes only",
                f"send it to port {self._port_base + (0 if takes_logs else 1)}",
            )
        return found


def _header(head: bytes) -> Json:
    if len(head) > MAX_HEADER_BYTES:
        raise LimitExceeded(
            f"the header is larger than {MAX_HEADER_BYTES} bytes", "shorten it", status=413, code="header_too_large"
        )
    try:
        header = from_json(head, allow_inf_nan=False)
    except ValueError as exc:
        raise UsageError(f"the header is not JSON: {exc}", "send one line of JSON in UTF-8", code="bad_json") from exc
    return http_io.as_object(header)


def _request_id(header: Json) -> int:
    number = header.get("id")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 2**53:
        raise UsageError("id: expected a whole number above 0", 'e.g. {"id": 1, "method": "GET", "path": "/api/…"}')
    return number


def reachable_from(host: str, peer: str) -> bool:
    """Whether `peer` can reach a channel that listens on `host`: loopback is not reachable from other machines."""
    return not _is_loopback(host) or _is_loopback(peer)


def _is_loopback(address: str) -> bool:
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None)
        return bool((mapped or found).is_loopback)
    return address == "localhost"
