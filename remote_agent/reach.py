"""Which address of the manager works from this host: asked all at once, believed only with proof.

Knows HTTP and the HMAC hello (ids.manager_proof); sends no secret, changes nothing. Used by the installer.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any, Optional

from remote_agent import ids
from remote_agent.http_wire import HttpConnection, WireTrouble, quote, split_url
from remote_agent.tls import Trust, explain

PROBE_TIMEOUT_S = 4.0
GRACE_S = 0.25  # an address that comes earlier in the list may still win this long after the first answer
MAX_REPLY_BYTES = 64 * 1024


class Probe:
    """One round of asking: `found` is the best proven address, `failures` what the others said."""

    def __init__(self, agent_id: str, fleet_id: str, proof_key: str, trust: Optional[Trust] = None) -> None:
        self._identity = (agent_id, fleet_id, proof_key)
        self._trust = trust or Trust()
        self._answers: dict[str, str] = {}  # url -> "" when proven, else why not; each thread writes its own key
        self.failures: dict[str, str] = {}

    def find(self, urls: "list[str]", timeout_s: float = PROBE_TIMEOUT_S) -> Optional[str]:
        """The first of `urls` (in their order) that proves to be the fleet's manager, None when none does."""
        threads = [threading.Thread(target=self._ask, args=(url, timeout_s), daemon=True) for url in urls]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout_s + 0.5
        while time.monotonic() < deadline and len(self._answers) < len(urls):
            if "" in self._answers.values():
                deadline = min(deadline, time.monotonic() + GRACE_S)
                if self._answers.get(urls[0]) == "":
                    break
            time.sleep(0.005)
        answers = dict(self._answers)
        self.failures = {url: answers.get(url, "no answer") for url in urls if answers.get(url, "no answer")}
        return next((url for url in urls if answers.get(url) == ""), None)

    def _ask(self, url: str, timeout_s: float) -> None:
        agent_id, fleet_id, proof_key = self._identity
        nonce = os.urandom(16).hex()
        try:
            reply = hello(url, agent_id, nonce, timeout_s, self._trust)
        except (OSError, ValueError, WireTrouble) as exc:
            self._answers[url] = cause(exc)
            return
        if reply.get("proof") == ids.manager_proof(proof_key, fleet_id, agent_id, nonce):
            self._answers[url] = ""
        elif reply.get("fleet_id") not in (None, fleet_id):
            self._answers[url] = "a manager of another fleet answers there"
        else:
            self._answers[url] = "something answers there that can't prove to be this fleet's manager"


def hello(url: str, agent_id: str, nonce: str, timeout_s: float, trust: Optional[Trust] = None) -> "dict[str, Any]":
    """GET /api/hello of the manager at `url`. Raises OSError, ValueError or WireTrouble."""
    address = split_url(url)
    connection = HttpConnection(address, timeout_s, trust)
    try:
        target = f"{address.path.rstrip('/')}/api/hello?agent={quote(agent_id)}&nonce={quote(nonce)}"
        answer, _ = connection.exchange("GET", target, {}, None, timeout_s=timeout_s, max_bytes=MAX_REPLY_BYTES)
        reply = json.loads(answer.body)
    finally:
        connection.close()
    if not isinstance(reply, dict):
        raise ValueError("the answer is not ProcGuard's")
    return reply


def cause(exc: Exception) -> str:
    """A foreign error in a few words."""
    of_tls = explain(exc)
    if of_tls:
        return of_tls
    if isinstance(exc, socket.gaierror):
        return "its name can't be resolved"
    if isinstance(exc, (socket.timeout, TimeoutError)):
        return "timed out"
    if isinstance(exc, ConnectionRefusedError):
        return "refused"
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    return "the answer is not ProcGuard's"
