"""Selects the channel of this agent: zmq if the manager offers it and this Python supports it, otherwise HTTP.

Owns this choice for all connections of the agent, and its log messages. The manager's offer is part of the hello
over HTTP and covered by its proof, so that an attacker cannot substitute a key or port. If zmq cannot be reached, it
is tried again later, and HTTP is used meanwhile. pyzmq is imported only when offered.
"""

from __future__ import annotations

import os
import threading
import time

from remote_agent.protocol import messages
from remote_agent.protocol.digests import same
from remote_agent.protocol.hints import TYPE_CHECKING, Any, Callable, Optional
from remote_agent.protocol.messages import WireError, ZmqOffer

if TYPE_CHECKING:
    from remote_agent.transport.zmq import Zmq, ZmqWire

AGAIN_FIRST_S, AGAIN_LAST_S = 5.0, 300.0
MAX_TIMEOUT_MS = 600_000


class Channels:
    """The channel in use, shared by the connections of one agent; thread-safe. `say(text)` is called from any thread
    when the channel changes, with "zmq", "http", or "http: " and why not zmq."""

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._zmq: Optional[Zmq] = None  # once it was offered and is available
        self._cannot = ""  # why this Python cannot use zmq
        self._failures = 0
        self._again_at = 0.0  # monotonic
        self._offered = False
        self._said = ""
        self.trouble = ""  # why not zmq, though it is offered

    def hello_query(self, proof_key: str, agent_id: str, nonce: str) -> str:
        """The addition to the hello's query: this agent's CURVE key, if it has one."""
        own = self._zmq
        if own is None or time.monotonic() < self._again_at:
            return ""
        proof = messages.curve_key_proof(proof_key, agent_id, nonce, own.public_key)
        return f"&curve={own.public_key}&mac={proof}"

    def due(self) -> bool:
        """Whether an HTTP connection should send hello again, because zmq may be available by now."""
        return self._offered and not self._cannot and time.monotonic() >= self._again_at

    def read_offer(self, data: Any, proof_key: str, agent_id: str, nonce: str) -> Optional[ZmqOffer]:
        """The zmq offer in a hello's response, if it is authentic and should be tried now."""
        self._offered = data is not None
        if data is None:
            self._settle("")
            return None
        try:
            offer = messages.decode(ZmqOffer, data)
            numbers = (offer.port, offer.logs_port, offer.timeout_ms)
            if not all(isinstance(one, int) and 0 < one <= MAX_TIMEOUT_MS for one in numbers):
                raise WireError("ports")
            if not same(str(offer.proof), messages.zmq_offer_proof(proof_key, agent_id, nonce, offer)):
                raise WireError("proof")
        except WireError:
            self.failed("the manager's zmq offer is not proven")
            return None
        if self._cannot or time.monotonic() < self._again_at:
            return None
        return offer

    def load(self) -> bool:
        """Whether this Python has pyzmq; checked once."""
        with self._lock:
            if self._zmq is None and not self._cannot:
                from remote_agent.transport import zmq as zmq_wire

                try:
                    self._zmq = zmq_wire.Zmq()
                except Exception as exc:  # a broken installation may raise any exception
                    self._cannot = f"no pyzmq in this Python ({exc})"
        if self._cannot:
            self._settle(self._cannot)
        return self._zmq is not None

    def renew_key(self) -> None:
        """Replace the CURVE key after the agent's secret was replaced."""
        own = self._zmq
        if own is not None:
            own.renew()

    @property
    def has_key(self) -> bool:
        return self._zmq is not None

    def connect(self, host: str, offer: ZmqOffer, logs: bool) -> Optional[ZmqWire]:
        """An established zmq connection; None if that fails now."""
        from remote_agent.transport import zmq as zmq_wire

        own, wire = self._zmq, None
        assert own is not None  # `has_key`
        try:
            wire = zmq_wire.ZmqWire(own, host, offer.logs_port if logs else offer.port, offer)
            wire.connect()
        except (zmq_wire.ZmqTrouble, OSError, ValueError, own.module.ZMQError) as exc:
            if wire is not None:
                wire.close()
            self.failed(str(exc))
            return None
        self._failures = 0
        self._settle("", "zmq")
        return wire

    def failed(self, why: str) -> None:
        """Use HTTP for a while, which grows with each consecutive failure."""
        with self._lock:
            now = time.monotonic()
            if now >= self._again_at:  # else another connection has noticed already
                self._failures += 1
                longest_s = min(AGAIN_LAST_S, AGAIN_FIRST_S * 2.0 ** min(self._failures - 1, 10))
                self._again_at = now + longest_s * (0.5 + int.from_bytes(os.urandom(2), "big") / 2.0**17)
        self._settle(why)

    def _settle(self, trouble: str, name: str = "http") -> None:
        self.trouble = trouble
        said = f"{name}: {trouble}" if trouble else name
        if said != self._said:
            self._said = said
            self._say(said)
