"""The connection to the manager: choice of address, authentication of the manager, one connection per thread, retry
intervals. Uses HTTP, or zmq if both sides support it (negotiation.py).

Owns connections and credentials; knows no worker and no file. The agent's secret is not sent: requests and responses
carry MACs under a key derived from it (protocol/session.py), and no request is sent to an unauthenticated manager.
"""

from __future__ import annotations

import json
import socket

from remote_agent.protocol import leadership, session
from remote_agent.protocol.digests import same
from remote_agent.protocol.hints import TYPE_CHECKING, Any, Callable, Optional
from remote_agent.protocol.messages import ZmqOffer, secret_sha256
from remote_agent.protocol.records import field, record
from remote_agent.runner.leases import boottime_ns
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.http import HttpAnswer, HttpConnection, WireTrouble, quote, split_url
from remote_agent.transport.negotiation import Channels
from remote_agent.transport.outcomes import (
    EXTRA_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    LinkDown,
    NotLeader,
    Reply,
    Unknown,
    UnknownToken,
    UnprovenManager,
    extra_timeout_s,
    of_all,
    stands_by,
)
from remote_agent.transport.tls import explain
from remote_agent.tunnel import port_owner

if TYPE_CHECKING:  # pyzmq is loaded only if zmq is offered
    from remote_agent.transport.zmq import ZmqWire

LOG_TIMEOUT_S = 15.0  # the manager may delay log bytes until it has space
SLOWEST_BYTES_PER_S = 16 * 1024  # the timeout of a body assumes this rate, in addition to the time for the response
MAX_REPLY_BYTES = 16 * 1024 * 1024


@record
class AgentCredentials:
    """The agent's credentials. `secret` and `proof_key` are "" for a launcher that is not registered yet."""

    agent_id: str
    fleet_id: str = ""
    secret: str = field(default="", repr=False)
    proof_key: str = field(default="", repr=False)


class Connection:
    """A persistent connection to the manager, used by one thread. Opens, authenticates and reopens by itself.

    `channels`: selects the channel (None: HTTP only); `logs`: used for log bytes, which have a separate zmq port."""

    def __init__(
        self,
        addresses: Addresses,
        credentials: AgentCredentials,
        channels: Optional[Channels] = None,
        *,
        logs: bool = False,
    ) -> None:
        self._addresses = addresses
        self._credentials = credentials
        self._channels = channels
        self._logs = logs
        self._http: Optional[HttpConnection] = None
        self._proven: Optional[HttpConnection] = None  # the connection on which the manager has proven its identity
        self._session: Optional[session.ClientSession] = None  # the session on that connection
        self._secret = ""  # the secret with which this connection was opened
        self._edition = 0  # edition of the addresses when it was opened
        self._zmq: Optional[ZmqWire] = None  # while this is open, there is no HTTP connection
        self._zmq_answered = False
        self._timeouts = 0  # consecutive ones, since the leader last answered
        self._base = ""
        self._url = ""
        self._closed = False

    def request(
        self,
        method: str,
        path: str,
        body: Optional[bytes] = None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        content_type: str = "application/json",
    ) -> Reply:
        """Send as this agent, after the manager's proof. Raises LinkDown (UnprovenManager, Unknown).

        A kept-alive connection that the manager closed meanwhile is reopened, once; so is one whose secret was replaced
        (rotation.py). Every request of an agent may arrive twice: events, results and log bytes carry numbers of their
        own.
        """
        headers = {"Content-Type": content_type} if body is not None else {}
        timeout_s += len(body or b"") / SLOWEST_BYTES_PER_S
        return self._anywhere(lambda: self._ask(method, path, body, headers, timeout_s))

    def _ask(self, method: str, path: str, body: Optional[bytes], headers: dict[str, str], timeout_s: float) -> Reply:
        if self._secret != self._credentials.secret or self._edition != self._addresses.edition:
            self.disconnect()
        reused = self._http is not None or self._zmq is not None
        try:
            reply = self._exchange(method, path, body, headers, timeout_s, prove=True)
            if reply.status != 401 or self._secret == self._credentials.secret:
                return reply
            self.disconnect()
        except LinkDown as exc:
            if isinstance(exc, (UnprovenManager, NotLeader)) or not reused or _timed_out(exc.__cause__):
                raise
        return self._exchange(method, path, body, headers, timeout_s, prove=True)

    def _anywhere(self, ask: Callable[[], Reply]) -> Reply:
        """Try each address once, until a leader responds. Raises LinkDown with the most informative failure."""
        tried: dict[str, LinkDown] = {}
        while True:
            edition = self._addresses.edition
            try:
                return ask()
            except LinkDown as exc:
                again = edition != self._addresses.edition and len(tried) < leadership.MAX_MANAGERS
                if self._closed or (self._url in tried and not again):
                    raise
                tried[self._url] = exc
                if again or self._addresses.current() not in tried:
                    continue
                if len(tried) == 1:
                    raise
                raise of_all(list(tried.values())) from exc.__cause__

    def anonymous(
        self,
        method: str,
        path: str,
        body: Optional[bytes] = None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Reply:
        """Send a request without a secret: registration and hello."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self.disconnect()

        def ask() -> Reply:
            reply = self._exchange(method, path, body, headers, timeout_s, prove=False)
            self._refuse_replaced(reply)
            if stands_by(reply):
                self.disconnect()
                if not self._credentials.proof_key:  # otherwise any server there could register this launcher
                    self._learn(reply)
                raise self._elsewhere(reply)
            return reply

        return self._anywhere(ask)

    def with_token(self, method: str, path: str, body: bytes, token: str) -> Reply:
        """Send a request with an enrolment token in a separate session, after the manager has proved that it knows
        the token."""
        mark = session.TOKEN_PREFIX + session.token_mark(secret_sha256(token))
        key = AgentCredentials(mark, self._credentials.fleet_id, token, secret_sha256(token))
        connection = Connection(self._addresses, key)
        try:
            reply = connection.request(method, path, body)
            proof_key = reply.data.get("proof_key")
            if isinstance(proof_key, str) and connection._session is not None:
                reply.data["proof_key"] = connection._session.unsealed(proof_key)
            return reply
        finally:
            connection.disconnect()

    def close(self) -> None:
        """Close permanently. Callable from any thread: a request in progress ends with LinkDown."""
        self._closed = True
        self.interrupt()

    def interrupt(self) -> None:
        """Interrupt a request in progress: it ends with LinkDown, or is repeated if another manager leads. Callable
        from any thread."""
        connection, wire = self._http, self._zmq
        if wire is not None:
            wire.interrupt()
        if connection is not None:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def disconnect(self) -> None:
        connection, self._http = self._http, None
        self._proven = self._session = None
        wire, self._zmq = self._zmq, None
        if connection is not None:
            connection.close()
        if wire is not None:
            wire.close()

    # -------------------------------------------------------------------------------------------------- inside

    def _exchange(
        self, method: str, path: str, body: Optional[bytes], headers: dict[str, str], timeout_s: float, *, prove: bool
    ) -> Reply:
        if self._zmq is not None:
            return self._send_zmq(self._zmq, method, path, body, timeout_s)
        if prove and self._proven is None:
            self.disconnect()  # never send data over a connection whose hello failed
        try:
            if self._http is None:
                self._open()
                if prove:
                    self._prove()
            elif prove and self._channels is not None and self._channels.due():
                self._prove()
            if self._zmq is not None:
                return self._send_zmq(self._zmq, method, path, body, timeout_s)
            return self._send(method, path, body, headers, timeout_s, signed=prove)
        except UnprovenManager:
            self._give_up_on_address()
            raise
        except LinkDown:
            self.disconnect()
            raise
        except (OSError, WireTrouble, ValueError) as exc:
            self._timeouts += _timed_out(exc)
            self._give_up_on_address(silent=_timed_out(exc))
            raise LinkDown(f"{self._url}: {_reason(exc)}") from exc

    def _give_up_on_address(self, silent: bool = False) -> None:
        self.disconnect()
        if self._edition == self._addresses.edition:  # otherwise it was interrupted because another manager leads now
            self._addresses.failed(self._url, silent=silent)

    def _open(self) -> None:
        if self._closed:
            raise LinkDown("the agent is ending")
        self._edition = self._addresses.edition
        self._url = self._addresses.current()
        address = split_url(self._url)
        self._base = address.path.rstrip("/")
        self._secret = self._credentials.secret
        connection = HttpConnection(address, self._addresses.connect_timeout_s(), self._addresses.trust)
        _notice_dead_peers(connection.sock)
        self._http = connection
        if self._url == self._addresses.tunnel_url:
            _check_tunnel(self._url, address.port)

    def _prove(self) -> None:
        """Authenticate the manager by the fleet's key; switch to zmq if it is offered. Raises UnprovenManager,
        Unknown."""
        offer = self._hello()
        channels = self._channels
        if offer is None or channels is None:
            return
        if not channels.has_key:
            if not channels.load():
                return
            offer = self._hello()  # now with our key
        if offer is not None:
            wire = channels.connect(split_url(self._url).host, offer, self._logs)
            if wire is not None:
                self.disconnect()
                self._zmq, self._zmq_answered = wire, False
                if self._closed:
                    wire.interrupt()

    def _hello(self) -> Optional[ZmqOffer]:
        """Send hello and verify the proof. Returns the manager's zmq offer, if usable."""
        mine = self._credentials
        if not mine.proof_key:  # a MAC without a key proves nothing
            raise UnprovenManager(f"{self._url}: this agent has no key to recognise its manager by")
        nonce = session.new_nonce()
        query = f"/api/hello?agent={quote(mine.agent_id)}&nonce={nonce}&to={quote(self._url)}"
        if self._channels is not None:
            query += self._channels.hello_query(mine.proof_key, mine.agent_id, nonce)
        reply = self._send("GET", query, None, {}, REQUEST_TIMEOUT_S)
        if reply.status >= 500 or reply.status == 429:
            self._give_up_on_address()
            raise LinkDown(f"{self._url}: {reply.why}")
        if stands_by(reply):
            proven = leadership.proves_standby(reply.data, mine.proof_key, mine.agent_id, nonce, self._url)
            if proven or mine.agent_id.startswith(session.TOKEN_PREFIX):  # the leader proves that it knows the token
                self._learn(reply)
            raise self._elsewhere(reply)
        fleet_id = reply.data.get("fleet_id")
        if not reply.ok or not isinstance(fleet_id, str):
            raise UnprovenManager(f"{self._url} does not answer like a manager ({reply.why})")
        if fleet_id != mine.fleet_id:
            raise UnprovenManager(f"{self._url} is the manager of fleet {fleet_id[:80]}, not of {mine.fleet_id}")
        offer = session.Offer.read(reply.data.get("session"))
        if offer is None:
            if mine.agent_id.startswith(session.TOKEN_PREFIX):
                raise UnknownToken(
                    f"the manager at {self._url} knows no such enrolment token (mistyped, revoked, of another manager, "
                    "or of another scope); it was not sent"
                )
            raise Unknown(f"the manager at {self._url} does not know agent {mine.agent_id}")
        if self._http is None:
            raise LinkDown(f"{self._url}: the connection was closed")
        self._begin_session(offer, nonce)
        self._proven = self._http
        self._addresses.answered(self._url)
        if self._channels is None:
            return None
        return self._channels.read_offer(reply.data.get("zmq"), mine.proof_key, mine.agent_id, nonce)

    def _begin_session(self, offer: session.Offer, nonce: str) -> None:
        mine = self._credentials
        shared = session.handshake(mine.proof_key, mine.fleet_id, mine.agent_id, nonce, offer.id)
        if not same(offer.proof, session.manager_proof(shared, self._url, offer.uid, offer.machine)):
            raise UnprovenManager(
                f"{self._url} cannot prove that it is the manager of fleet {mine.fleet_id}; the secret was not sent"
            )
        here = bool(offer.machine) and offer.machine == session.machine_mark()
        self._refuse_foreign_listener(offer.uid if here else port_owner.ELSEWHERE)
        self._session = session.ClientSession(mine.agent_id, self._secret, nonce, offer, shared)

    def _refuse_foreign_listener(self, managers_uid: int) -> None:
        """`managers_uid`: of a manager on this machine, or ELSEWHERE. Raises UnprovenManager."""
        assert self._http is not None
        if not port_owner.may_be_ours(self._http.sock, managers_uid):
            raise UnprovenManager(
                f"{self._url} is an address of this host, and another user listens there; the secret was not sent. "
                "What forwards to the manager has to run as this user or root"
            )

    def _send_zmq(self, wire: ZmqWire, method: str, path: str, body: Optional[bytes], timeout_s: float) -> Reply:
        """Only requests for a proven manager are sent here. A failed connection is reopened, by HTTP first."""
        from remote_agent.transport.zmq import ZmqTrouble

        asked_ns = boottime_ns()
        try:
            status, answer = wire.exchange(method, path, self._secret, body, timeout_s=timeout_s)
        except ZmqTrouble as exc:
            self.disconnect()
            if self._channels is not None and (not self._zmq_answered or _timed_out(exc)):
                self._channels.failed(str(exc))  # a channel that connects but sends nothing is unusable
            raise LinkDown(str(exc)) from exc
        self._zmq_answered = True
        return self._of_leader(Reply(status, _json_object(answer), asked_ns))

    def _send(
        self,
        method: str,
        path: str,
        body: Optional[bytes],
        headers: dict[str, str],
        timeout_s: float,
        *,
        signed: bool = False,
    ) -> Reply:
        """`signed`: as this agent, which only a connection that was proven may carry."""
        of_session = self._session if signed else None
        if self._http is None or (signed and (of_session is None or self._http is not self._proven)):
            raise LinkDown(f"{self._url}: the connection was closed")
        if of_session is not None:
            headers = {**headers, **of_session.sign(method, path, body)}
        asked_ns = boottime_ns()
        answer, keep = self._http.exchange(
            method,
            self._base + path,
            headers,
            body,
            timeout_s=timeout_s,
            max_bytes=MAX_REPLY_BYTES,
            extra_timeout_s=self._extra_timeout_s(),
        )
        if of_session is not None and not of_session.proves(answer.status, answer.body, answer.proof):
            raise self._not_the_managers(answer)
        if not keep:
            self.disconnect()
        reply = Reply(answer.status, _json_object(answer.body), asked_ns)
        return self._of_leader(reply) if signed else reply

    def _extra_timeout_s(self) -> float:
        """Reconnecting to an overloaded manager would cost it more than the response. With several managers, another
        one may lead; at an address that has proved nothing yet, another address may be right. If nobody else answered
        either, the manager is overloaded, not replaced."""
        addresses = self._addresses
        proven = self._proven is not None and self._proven is self._http
        alone = addresses.has_one_manager() and (proven or len(addresses.urls()) == 1)
        return EXTRA_TIMEOUT_S if alone else extra_timeout_s(self._timeouts)

    def _of_leader(self, reply: Reply) -> Reply:
        """Accept a proven manager's reply. Raises NotLeader if it is from a standby, or if its term is lower than one
        seen before; such a reply has no effect."""
        self._refuse_replaced(reply)
        self._learn(reply)
        if stands_by(reply):
            raise self._elsewhere(reply)
        self._timeouts = 0
        if reply.status == 503 and len(self._addresses.urls()) > 1:  # its term may have ended
            self._give_up_on_address()
        return reply

    def _refuse_replaced(self, reply: Reply) -> None:
        """Raises NotLeader for a reply with a lower term than seen before, or with an impossible term."""
        term = leadership.read_term(reply.data)
        if term is None or self._addresses.refuses(term):
            self._give_up_on_address()
            why = f"a manager of term {self._addresses.term} leads" if term else "it can't be right"
            raise NotLeader(f"{self._url}: a reply of term {reply.data.get('term')!r:.40} is refused: {why}")

    def _learn(self, reply: Reply) -> None:
        term, managers = leadership.read_term(reply.data) or 0, leadership.read_managers(reply.data)
        if self._addresses.learn(term, managers, self):
            self._edition = self._addresses.edition

    def _elsewhere(self, reply: Reply) -> NotLeader:
        leader = (leadership.read_managers(reply.data) or [""])[0]
        self._addresses.stands_by(self._url, leader)
        return NotLeader(f"{self._url}: that manager stands by", leadership.read_retry_s(reply.data))

    def _not_the_managers(self, answer: HttpAnswer) -> LinkDown:
        """The error for an unsigned response, with its status only: a restarted or overloaded manager cannot sign."""
        self.disconnect()
        return LinkDown(f"{self._url}: a response without the manager's proof is not accepted (HTTP {answer.status})")


def _check_tunnel(url: str, port: int) -> None:
    """Raises UnprovenManager if another user of this host listens on the tunnel's port."""
    from remote_agent.tunnel.port_owner import is_own_listener

    if not is_own_listener(port):
        raise UnprovenManager(
            f"{url} is a tunnel's port, and another user of this host listens there; the secret was not sent"
        )


def _notice_dead_peers(sock: socket.socket) -> None:
    """Enable TCP keep-alive, which detects a vanished manager in about 30 s instead of two hours."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 30000)):
        if hasattr(socket, name):
            try:
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            except OSError:
                pass


def _json_object(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload) if payload else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _timed_out(exc: Optional[BaseException]) -> bool:
    return isinstance(exc, (TimeoutError, socket.timeout))  # two classes before Python 3.10, and that of zmq.py


def _reason(exc: BaseException) -> str:
    if _timed_out(exc):
        return "no answer in time"
    if isinstance(exc, WireTrouble):
        return str(exc)
    of_tls = explain(exc)
    if of_tls:
        return of_tls
    if isinstance(exc, OSError):
        return exc.strerror or str(exc) or type(exc).__name__
    return f"{type(exc).__name__}: {exc}".rstrip(": ")
