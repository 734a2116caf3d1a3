"""One ROUTER socket with CURVE on the event loop: frames in and out, and closed connections.

Owns the socket, its monitor and how both are watched without a Python thread (docs/decisions/0013): libzmq's own
thread reads, decrypts and reassembles; the loop is woken once for everything received. Does not interpret frames. A
connection is identified by the routing id that the socket assigned; ids chosen by the peer are refused, because they
could belong to another connection.
"""

from __future__ import annotations

import _socket
import errno
import logging
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import zmq
import zmq.backend

from procguard.admission.connections import Unproven
from procguard.agent_api.zmq.keys import ZAP_DOMAIN, CurveKeyStore
from procguard.agent_api.zmq.session import ZmqSession
from procguard.errors import ProcGuardError

log = logging.getLogger(__name__)

MESSAGES_AT_ONCE = 200  # messages taken from the socket before other greenlets run
MESSAGES_PER_PEER = 8  # libzmq stops reading from a connection while this many of its messages wait
MANY = 8  # messages received together that indicate a busy manager
ANSWERS_PER_PEER = 64  # unread responses per peer; further ones are dropped
ENVELOPE_BYTES = 256  # overhead of CURVE per frame
HANDSHAKE_MS = 5_000
KEEPALIVE_S, DEAD_AFTER_MS = 10, 30_000  # the kernel detects a peer that vanished
BACKLOG = 1024
POLL_INTERVAL_S = 0.25  # interval of reading the sockets without a signal, because zmq's signals are edge-triggered
_MONITOR_EVENT = struct.Struct("=hi")
_ACCEPTED = int(zmq.EVENT_ACCEPTED)

# pyzmq's inner layer, without the wrapper for features that are not used here: a third of the time.
_Socket: Any = zmq.backend.Socket
_recv, _send, _get = _Socket.recv, _Socket.send, _Socket.get
_NOW, _NOW_AND_MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)


class Peer:
    """One connection of `port`. `user_id`: the agent whose key opened it; `session`: its cached data."""

    __slots__ = ("address", "closed", "descriptor", "port", "routing_id", "session", "user_id")

    def __init__(self, port: RouterPort, routing_id: bytes, descriptor: int, user_id: str, address: str) -> None:
        self.port = port
        self.routing_id = routing_id
        self.descriptor = descriptor
        self.user_id = user_id
        self.address = address
        self.closed = False
        self.session = ZmqSession()


Received = tuple[Peer, "bytes | None"]


class RouterPort:
    """`on_messages([(peer, message)…])` (None: it had more than one frame) and `on_closed(peer)` are called in the hub:
    they must not wait. `room()`: the number of messages that may be taken now; after it returned 0, its owner calls
    `read_sockets` when that has changed. `unproven`: connections that have sent nothing yet, by descriptor, because
    libzmq accepts connections without a limit before any proof. `name`: the purpose of the port."""

    def __init__(
        self,
        context: Any,
        key_store: CurveKeyStore,
        *,
        max_frame_bytes: int,
        on_messages: Callable[[list[Received]], None],
        on_closed: Callable[[Peer], None],
        room: Callable[[], int],
        unproven: Unproven[int],
        name: str = "",
    ) -> None:
        self._on_messages, self._on_closed, self._room, self.name = on_messages, on_closed, room, name
        self._unproven = unproven
        self._port = 0
        self.cut = 0  # number of unproven connections that were closed
        self._peers: dict[bytes, Peer] = {}
        self._by_descriptor: dict[int, Peer] = {}
        self._by_user: Counter[str] = Counter()
        self._watchers: list[Any] = []
        self._came = 0  # number of messages that recently arrived together
        self._unsent: list[tuple[Peer, bytes]] = []
        self.dropped = 0  # responses to connections that do not read
        self._socket = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.MAXMSGSIZE, max_frame_bytes + ENVELOPE_BYTES),
            (zmq.RCVHWM, MESSAGES_PER_PEER),
            (zmq.SNDHWM, ANSWERS_PER_PEER),
            (zmq.BACKLOG, BACKLOG),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S),
            (zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S),
            (zmq.TCP_MAXRT, DEAD_AFTER_MS),
            (zmq.CURVE_SERVER, 1),
            (zmq.CURVE_SECRETKEY, key_store.secret_key),
            (zmq.ZAP_DOMAIN, ZAP_DOMAIN),
        ):
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)

    def bind(self, host: str, port: int) -> None:
        """Bind the port. Raises ProcGuardError if it is not available."""
        shown = f"[{host}]" if ":" in host else host
        self._socket.ipv6 = ":" in host
        try:
            self._socket.bind(f"tcp://{'*' if host in ('0.0.0.0', '') else shown}:{port}")
        except zmq.ZMQError as exc:
            raise _cannot_listen(host, port, exc) from exc
        self._port = port

    def start(self) -> None:
        loop = gevent.get_hub().loop
        for watched, read_sockets in ((self._socket, self._signalled), (self._monitor, self._read_monitor)):
            watcher = loop.io(watched.getsockopt(zmq.FD), 1)
            watcher.start(read_sockets)
            timer = loop.timer(POLL_INTERVAL_S, POLL_INTERVAL_S)
            timer.start(read_sockets)
            self._watchers += [watcher, timer]
            read_sockets()

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers = []
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(200)  # pending responses are sent within this many ms

    def __len__(self) -> int:
        return len(self._peers)

    def count_of(self, user_id: str) -> int:
        """The number of connections with this agent's key that have sent a message."""
        return self._by_user.get(user_id, 0)

    # ------------------------------------------------------------------------------------------------ receiving

    def _signalled(self) -> None:
        """The first of some messages has arrived. If many arrive at once, libzmq's thread may be about to deliver more:
        let it run first on a shared core, where it would otherwise be stopped after each one."""
        if self._came >= MANY:
            os.sched_yield()
        self.read_sockets()

    def read_sockets(self) -> None:
        """Read the received messages without blocking."""
        most = min(self._room(), MESSAGES_AT_ONCE) if self._watchers else 0
        if most <= 0 or not _get(self._socket, _EVENTS) & _POLLIN:
            return
        received: list[Received] = []
        try:
            self._receive(received, most)
            if most == MESSAGES_AT_ONCE:
                gevent.get_hub().loop.run_callback(self.read_sockets)  # let the other greenlets run first
        except zmq.Again:
            pass  # there are no more messages
        except zmq.ZMQError as exc:
            log.warning("zmq port failed error=%s", exc)
        self._came = max(len(received), self._came // 2)
        if received:
            self._on_messages(received)

    def _receive(self, received: list[Received], most: int) -> None:
        """Receive up to `most` messages. Raises zmq.Again if there are fewer."""
        socket, peer_of = self._socket, self._peers.get
        for _ in range(most):
            routing_id = _recv(socket, _NOW)
            frame = first = _recv(socket, _NOW, False)
            message: bytes | None = first.bytes
            while frame.more:  # a request is one frame: discard messages with several
                frame, message = _recv(socket, _NOW, False), None
            peer = peer_of(routing_id)
            if peer is None:
                if routing_id[:1] != b"\0":
                    continue  # the id was chosen by the peer
                peer = self._new_peer(routing_id, first)
            received.append((peer, message))

    def _new_peer(self, routing_id: bytes, frame: Any) -> Peer:
        self._read_monitor()  # its descriptor may have belonged to another connection just before
        peer = Peer(
            self, routing_id, int(frame.get(zmq.SRCFD)), str(frame.get("User-Id")), str(frame.get("Peer-Address"))
        )
        self._unproven.remove(peer.descriptor)  # only a connection with an admitted key can send
        self._peers[routing_id] = peer
        self._by_user[peer.user_id] += 1
        earlier = self._by_descriptor.get(peer.descriptor)
        if earlier is not None:
            self.forget(earlier)
        self._by_descriptor[peer.descriptor] = peer
        return peer

    def _read_monitor(self) -> None:
        while _get(self._monitor, _EVENTS) & _POLLIN:
            event, *_ = self._monitor.recv_multipart(zmq.NOBLOCK)
            kind, descriptor = _MONITOR_EVENT.unpack(event)
            if kind == _ACCEPTED:
                self._accepted(descriptor)
                continue
            self._unproven.remove(descriptor)
            peer = self._by_descriptor.get(descriptor)
            if peer is not None:
                self.forget(peer)

    def _accepted(self, descriptor: int) -> None:
        address = self._with_socket(descriptor, lambda one: str(one.getpeername()[0]))
        if address is None:
            return  # it has ended already
        for too_many, _ in self._unproven.add(descriptor, address, time.monotonic()):
            self.cut += 1
            self._with_socket(too_many, lambda one: one.shutdown(socket.SHUT_RDWR))

    def _with_socket(self, descriptor: int, use: Callable[[Any], Any]) -> Any:
        """Call `use` with the socket of a connection that libzmq owns; None if it has ended. libzmq's thread may have
        closed the descriptor meanwhile, so that a socket without our port is not touched."""
        try:
            same = _socket.socket(fileno=descriptor)
        except OSError:
            return None
        try:
            return use(same) if same.getsockname()[1] == self._port else None
        except (OSError, IndexError):
            return None
        finally:
            same.detach()

    def forget(self, peer: Peer) -> None:
        """Forget a connection that is closed or closing."""
        if self._peers.pop(peer.routing_id, None) is None:
            return
        if self._by_descriptor.get(peer.descriptor) is peer:
            del self._by_descriptor[peer.descriptor]
        self._by_user[peer.user_id] -= 1
        if not self._by_user[peer.user_id]:
            del self._by_user[peer.user_id]
        peer.closed = True
        self._on_closed(peer)

    # -------------------------------------------------------------------------------------------------- sending

    def send_soon(self, peer: Peer, message: bytes) -> None:
        """Queue a message for the next `flush`, so that libzmq's thread is woken once for many."""
        self._unsent.append((peer, message))

    def flush(self) -> None:
        """Send queued messages without blocking. Messages that a peer does not read are dropped; its requests time
        out."""
        unsent, self._unsent = self._unsent, []
        socket = self._socket
        for peer, message in unsent:
            if peer.closed:
                continue
            try:
                _send(socket, peer.routing_id, _NOW_AND_MORE)
                _send(socket, message, _NOW)
            except zmq.Again:
                self.dropped += 1
            except zmq.ZMQError as exc:
                if exc.errno == errno.EHOSTUNREACH:
                    self.forget(peer)
                elif exc.errno not in (zmq.ENOTSOCK, zmq.ETERM):  # closed: the manager ends
                    raise
        if unsent:
            self.read_sockets()  # sending may have swallowed the socket's signal


def _cannot_listen(host: str, port: int, exc: Any) -> ProcGuardError:
    key = "communication.adapter_config"
    if exc.errno == errno.EADDRINUSE:
        return ProcGuardError(
            f"{key}.port_base: port {port} on {host} is in use by another program",
            f"see which: ss -ltnp 'sport = :{port}'; or use others: --set {key}.port_base=N",
            code="port_taken",
        )
    if exc.errno == errno.EACCES:
        return ProcGuardError(
            f"{key}.port_base: port {port} needs privileges that this user does not have", "use ports above 1023"
        )
    if exc.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return ProcGuardError(
            f"{key}.host: {host} is not an address of this machine", "use 0.0.0.0, or one shown by: ip addr"
        )
    return ProcGuardError(
        f"{key}: cannot listen on {host}:{port} ({os.strerror(exc.errno or 0)})", "see docs/configuration.md"
    )
