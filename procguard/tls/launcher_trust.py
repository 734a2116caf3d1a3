"""The certificate that a launcher trusts: a file, a fingerprint, or this machine's own manager.

Knows `--ca`; nothing of workers.
"""

from __future__ import annotations

from procguard.client import discovery
from procguard.errors import ProcGuardError, UsageError
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.tls import FINGERPRINT_PREFIX, Trust, fingerprint

HOW = "give --ca FILE (tls/ca.pem beside the manager's state), or --ca sha256:… as the manager prints it at its start"


def trust_for(url: str, ca: str) -> Trust:
    """The trust for a launcher. `ca`: a PEM file, sha256:HEX, or "". Raises UsageError, or LinkDown if a fingerprint is
    given and the manager cannot be asked for its CA."""
    if ca.startswith(FINGERPRINT_PREFIX):
        return _by_fingerprint(url, ca.lower())
    if ca:
        return Trust(_read(ca), any_name=True)
    known = discovery.find(url) if url.startswith("https:") else None
    return Trust(_read(known.ca_file), known.any_name) if known is not None else Trust()


def _read(path: str) -> str:
    import ssl  # noqa: PLC0415 - most launchers use http

    try:
        with open(path, encoding="ascii") as file:
            pem = file.read()
        ssl.create_default_context(cadata=pem)
    except (OSError, UnicodeDecodeError, ValueError) as exc:
        raise UsageError(f"--ca {path}: it contains no PEM certificates ({exc})", HOW) from exc
    return pem


def _by_fingerprint(url: str, wanted: str) -> Trust:
    """The manager's CA, requested from the address without authentication, and accepted only if it has the given
    fingerprint."""
    digits = wanted.removeprefix(FINGERPRINT_PREFIX)
    if len(digits) != 64 or digits.strip("0123456789abcdef"):
        raise UsageError(f"--ca {wanted[:80]}: expected {FINGERPRINT_PREFIX} and 64 hexadecimal digits", HOW)
    connection = Connection(Addresses([url], Trust(verify=False)), AgentCredentials(""))
    answer = connection.anonymous("GET", "/api/ca")
    connection.disconnect()
    offered_ca = answer.data.get("ca")
    try:
        found = fingerprint(offered_ca) if isinstance(offered_ca, str) else ""
    except ValueError:
        found = ""
    if found != wanted:
        shown = f"has another CA: {found}" if found else "names no CA"
        raise ProcGuardError(f"{url} {shown}", HOW, code="untrusted")
    return Trust(str(offered_ca), any_name=True)
