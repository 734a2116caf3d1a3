"""Mutual authentication of an agent and its manager over a connection that others may relay or read.

The agent's secret is never sent in the clear. Hello, with a nonce that begins with NONCE_PREFIX:

    GET /api/hello?agent=gpu01&nonce=session.HEX&to=http://10.0.0.5:5000
    {"fleet_id": "f-1", "session": {"id": "…", "uid": 1000, "machine": "…", "proof": "…"}}

    handshake = MAC(proof_key, fleet, agent, nonce, id)           only the two sides can compute it
    proof     = MAC(handshake, "manager", to, uid, machine)       covers the address that the agent used
    sealed    = secret XOR MAC(handshake, "seal", 0), …           in the first request, X-ProcGuard-Open
    key       = MAC(handshake, "key", secret)

Each request then carries a MAC over its number, method, address and body, and each response a MAC over the request's
number, the status and the body. An intermediary can delay or drop messages, but cannot change, replay or forge them.
For such a nonce an agent accepts no other proof, and the manager gives no other.

A launcher with an enrolment token uses the token as the secret, its SHA-256 as the proof key and
"token:" + `token_mark` in place of the agent's id; the key that it receives for later is sealed, too.

MAC: keyed BLAKE2b (RFC 7693) over the parts, joined with NUL. Both sides use this module; its only state is
`ClientSession`, the agent's side of one session.
"""

from __future__ import annotations

import os

from remote_agent.protocol.digests import blake2b, same
from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.records import record

NONCE_PREFIX = "session."  # the manager answers such a nonce only with a session
SCHEME = "ProcGuard"  # Authorization: ProcGuard ID NUMBER BODY_DIGEST MAC
OPEN_HEADER = "X-ProcGuard-Open"  # AGENT NONCE SEALED, in a session's first request
ANSWER_HEADER = "X-ProcGuard-Proof"
NO_BODY = "-"
TOKEN_PREFIX = "token:"  # noqa: S105 - a name
SEALED = "sealed:"  # prefix of an encrypted proof key in a response
MAC_BYTES = 16
MAX_SECRET_BYTES = 512
_PAD_BYTES = 32


def new_nonce() -> str:
    return NONCE_PREFIX + os.urandom(16).hex()


def _mac(key: bytes, size: int, *parts: str) -> Any:
    return blake2b("\0".join(parts).encode(), key=key, digest_size=size)


def handshake(proof_key: str, fleet_id: str, agent_id: str, nonce: str, session_id: str) -> bytes:
    made: bytes = _mac(proof_key.encode(), 32, "procguard-session", fleet_id, agent_id, nonce, session_id).digest()
    return made


def manager_proof(shared: bytes, url: str, uid: int, machine: str) -> str:
    """The manager's proof of identity. `url`: the address that the agent used. `uid`, `machine`: the user and the
    machine of the manager."""
    return str(_mac(shared, 32, "manager", url, str(uid), machine).hexdigest())


def token_mark(token_sha256: str) -> str:
    """The identifier by which a manager finds a token that is not sent to it."""
    return str(_mac(token_sha256.encode(), 16, "procguard-token").hexdigest())


def session_key(shared: bytes, secret: str) -> bytes:
    made: bytes = _mac(shared, 32, "key", secret).digest()
    return made


def seal(shared: bytes, secret: str) -> str:
    return _xor(shared, secret.encode()).hex()


def seal_in_answer(key: bytes, number: int, secret: str) -> str:
    """A secret in the answer to request `number` of a session."""
    return SEALED + seal(_mac(key, 32, "answer", str(number)).digest(), secret)


def unseal_in_answer(key: bytes, number: int, text: str) -> str:
    """Decrypt a sealed text of a response; text that is not sealed is returned unchanged."""
    if not text.startswith(SEALED):
        return text
    return unseal(_mac(key, 32, "answer", str(number)).digest(), text[len(SEALED) :]) or ""


def unseal(shared: bytes, sealed: str) -> Optional[str]:
    """Decrypt a sealed secret; None if it cannot be one. The caller compares its digest to check that it is the right
    one."""
    try:
        data = bytes.fromhex(sealed)
        return _xor(shared, data).decode() if 0 < len(data) <= MAX_SECRET_BYTES else None
    except ValueError:  # UnicodeDecodeError is one
        return None


def _xor(shared: bytes, data: bytes) -> bytes:
    pad = b""
    while len(pad) < len(data):
        pad += _mac(shared, _PAD_BYTES, "seal", str(len(pad))).digest()
    mixed = int.from_bytes(data, "big") ^ int.from_bytes(pad[: len(data)], "big")
    return mixed.to_bytes(len(data), "big")


def body_digest(body: Optional[bytes]) -> str:
    if not body:
        return NO_BODY
    made: str = blake2b(body, digest_size=32).hexdigest()
    return made


def request_mac(key: bytes, number: int, method: str, path: str, query: str, digest: str) -> str:
    """`path` without percent encoding, which proxies may change; `query` as it is sent, "" if there is none."""
    text = f"request\0{number}\0{method}\0{path}\0{query}\0{digest}".encode("utf-8", "surrogateescape")
    made: str = blake2b(text, digest_size=MAC_BYTES, key=key).hexdigest()
    return made


def answer_mac(key: bytes, number: int, status: int, body: bytes) -> str:
    made: str = blake2b(b"answer\0%d\0%d\0" % (number, status) + body, digest_size=MAC_BYTES, key=key).hexdigest()
    return made


def machine_mark() -> str:
    """The same for all processes of this machine until it reboots; "" if the kernel does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return str(blake2b(b"procguard-machine\0" + file.read(64).strip(), digest_size=16).hexdigest())
    except OSError:
        return ""


@record(frozen=True)
class Offer:
    """`session` in the answer to hello. JSON: {"id": "…", "uid": 1000, "machine": "…", "proof": "…"}"""

    id: str
    uid: int
    machine: str
    proof: str

    @classmethod
    def read(cls, data: Any) -> Optional[Offer]:
        """Decode an offer, which is not verified yet; None for any other value."""
        if not isinstance(data, dict):
            return None
        found = cls(data.get("id"), data.get("uid"), data.get("machine"), data.get("proof"))  # type: ignore[arg-type]
        texts = (found.id, found.machine, found.proof)
        if not all(isinstance(text, str) and text.isascii() and len(text) <= 128 for text in texts):
            return None
        return found if isinstance(found.uid, int) and found.id and not found.id.strip("0123456789abcdef") else None


class ClientSession:
    """The agent's side of a session that the manager has proven. For one connection, of one thread."""

    def __init__(self, agent_id: str, secret: str, nonce: str, offer: Offer, shared: bytes) -> None:
        self.secret = secret
        self._id = offer.id
        self._key = session_key(shared, secret)
        self._number = 0
        self._open = f"{agent_id} {nonce} {seal(shared, secret)}"
        self.opened = False  # the manager has answered

    def sign(self, method: str, target: str, body: Optional[bytes]) -> "dict[str, str]":
        """The headers of the next request."""
        self._number += 1
        path, _, query = target.partition("?")
        digest = body_digest(body)
        mac = request_mac(self._key, self._number, method, _unquoted(path), query, digest)
        headers = {"Authorization": f"{SCHEME} {self._id} {self._number} {digest} {mac}"}
        if not self.opened:
            headers[OPEN_HEADER] = self._open
        return headers

    def unsealed(self, text: str) -> str:
        """A secret in the answer to the last request."""
        return unseal_in_answer(self._key, self._number, text)

    def proves(self, status: int, body: bytes, proof: str) -> bool:
        """Whether an answer to the last request is the manager's own."""
        if not same(proof, answer_mac(self._key, self._number, status, body)):
            return False
        self.opened = True
        return True


def _unquoted(path: str) -> str:
    if "%" not in path:
        return path
    first, *rest = path.encode().split(b"%")
    return (first + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in rest)).decode()
