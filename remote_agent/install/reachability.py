"""Finds addresses of the manager that work from this host. All are tried in parallel; each must prove its identity.

Knows HTTP and the proof in hello (protocol/session.py); sends no secret, changes nothing. An address of this host is
accepted only if no other user listens on it (tunnel/port_owner.py). Used by the installer.
"""

from __future__ import annotations

import json
import socket
import threading
import time

from remote_agent.protocol import session
from remote_agent.protocol.digests import same
from remote_agent.protocol.hints import Any, Optional
from remote_agent.transport.http import HttpConnection, WireTrouble, quote, split_url
from remote_agent.transport.tls import Trust, explain
from remote_agent.tunnel import port_owner

PROBE_TIMEOUT_S = 4.0
GRACE_S = 0.25  # time for the other addresses to prove their identity after the first one has
MAX_REPLY_BYTES = 64 * 1024


class Probe:
    """One round of probes. `proven`: the addresses of the manager; `failures`: the errors of the others."""

    def __init__(self, agent_id: str, fleet_id: str, proof_key: str, trust: Optional[Trust] = None) -> None:
        self._identity = (agent_id, fleet_id, proof_key)
        self._trust = trust or Trust()
        self._answers: dict[str, str] = {}  # URL -> "" if proven, otherwise the error; each thread writes its own key
        self._answered = threading.Event()  # set when another answer arrives
        self.failures: dict[str, str] = {}
        self.proven: list[str] = []

    def find(self, urls: "list[str]", timeout_s: float = PROBE_TIMEOUT_S) -> Optional[str]:
        """The first of `urls` (in their order) that proves to be the fleet's manager; None if there is none."""
        threads = [threading.Thread(target=self._ask, args=(url, timeout_s), daemon=True) for url in urls]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout_s + 0.5
        while (left_s := deadline - time.monotonic()) > 0 and len(self._answers) < len(urls):
            self._answered.wait(left_s)
            self._answered.clear()
            if "" in self._answers.values():
                deadline = min(deadline, time.monotonic() + GRACE_S)
        answers = dict(self._answers)
        self.failures = {url: answers.get(url, "no answer") for url in urls if answers.get(url, "no answer")}
        self.proven = [url for url in urls if answers.get(url) == ""]
        return self.proven[0] if self.proven else None

    def _ask(self, url: str, timeout_s: float) -> None:
        try:
            self._answers[url] = self._why_not(url, timeout_s)
        except (OSError, ValueError, WireTrouble) as exc:
            self._answers[url] = cause(exc)
        self._answered.set()

    def _why_not(self, url: str, timeout_s: float) -> str:
        """Why `url` is not accepted; "" if the fleet's manager answers there. Raises OSError, ValueError,
        WireTrouble."""
        agent_id, fleet_id, _ = self._identity
        nonce = session.new_nonce()
        address = split_url(url)
        connection = HttpConnection(address, timeout_s, self._trust)
        try:
            target = f"{address.path.rstrip('/')}/api/hello?agent={quote(agent_id)}&nonce={nonce}&to={quote(url)}"
            answer, _ = connection.exchange("GET", target, {}, None, timeout_s=timeout_s, max_bytes=MAX_REPLY_BYTES)
            reply = json.loads(answer.body)
            if not isinstance(reply, dict):
                raise ValueError("the answer is not ProcGuard's")
            proven, uid = self._proven_by(reply, url, nonce)
            if not proven:
                return self._what_answers(reply, fleet_id)
            if not port_owner.may_be_ours(connection.sock, uid):
                return "it is an address of this host, and another user listens there"
            return ""
        finally:
            connection.close()

    def _proven_by(self, reply: "dict[str, Any]", url: str, nonce: str) -> "tuple[bool, int]":
        """Whether it is the manager, and the user as whom it runs on this machine (ELSEWHERE: on another one)."""
        agent_id, fleet_id, proof_key = self._identity
        offer = session.Offer.read(reply.get("session"))
        if offer is None:
            return False, port_owner.ELSEWHERE
        shared = session.handshake(proof_key, fleet_id, agent_id, nonce, offer.id)
        here = bool(offer.machine) and offer.machine == session.machine_mark()
        right = same(offer.proof, session.manager_proof(shared, url, offer.uid, offer.machine))
        return right, offer.uid if here else port_owner.ELSEWHERE

    @staticmethod
    def _what_answers(reply: "dict[str, Any]", fleet_id: str) -> str:
        error = reply.get("error")
        if isinstance(error, dict) and error.get("code") == "not_this_manager":
            return str(error.get("message", ""))[:300].partition(": ")[2] or "it does not lead to the manager directly"
        if reply.get("fleet_id") not in (None, fleet_id):
            return "a manager of another fleet answers there"
        return "something answers there that can't prove to be this fleet's manager"


def cause(exc: Exception) -> str:
    """A short text for an exception of another library."""
    of_tls = explain(exc)
    if of_tls:
        return of_tls
    if isinstance(exc, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(exc, (socket.timeout, TimeoutError)):
        return "timed out"
    if isinstance(exc, ConnectionRefusedError):
        return "refused"
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    return "the answer is not ProcGuard's"
