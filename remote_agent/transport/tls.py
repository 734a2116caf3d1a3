"""Verification of the manager's certificate, and TLS connections.

`ssl` uses 5 MB of memory and is imported only for https addresses.
"""

from __future__ import annotations

import socket

from remote_agent.protocol.hints import Any, Optional

FINGERPRINT_PREFIX = "sha256:"


class Trust:
    """`ca`: certificates in PEM, "" = the system's. `any_name`: the CA signs only for the manager, so its certificate
    need not name the address. `verify=False`: accept any certificate; only for data that is verified afterwards.
    """

    def __init__(self, ca: str = "", any_name: bool = False, verify: bool = True) -> None:
        self.ca = ca
        self.any_name = any_name
        self._verify = verify
        self._context: Optional[Any] = None  # cached, because creating it takes longer than a handshake

    def wrap(self, sock: socket.socket, host: str) -> socket.socket:
        """Wrap a connected socket in TLS; closes it on failure. Raises OSError (ssl.SSLError)."""
        try:
            if self._context is None:
                self._context = self._made()
            secured: socket.socket = self._context.wrap_socket(sock, server_hostname=host)
            return secured
        except BaseException:
            sock.close()
            raise

    def _made(self) -> Any:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self._verify or self.any_name:
            context.check_hostname = False
        if not self._verify:
            context.verify_mode = ssl.CERT_NONE
        elif self.ca:
            context.load_verify_locations(cadata=self.ca)
        else:
            context.load_default_certs()
        return context


def fingerprint(pem: str) -> str:
    """ "sha256:" and the hex digest of the first certificate in DER. Raises ValueError if it is not a certificate."""
    import ssl

    from remote_agent.protocol.digests import sha256_hex

    end = "-----END CERTIFICATE-----"
    first = pem[pem.index("-----BEGIN") : pem.index(end) + len(end)]
    return FINGERPRINT_PREFIX + sha256_hex(ssl.PEM_cert_to_DER_cert(first))


def explain(exc: BaseException) -> str:
    """The meaning of a TLS failure for people; "" for other exceptions."""
    if not isinstance(exc, OSError) or type(exc).__module__ != "ssl":
        return ""
    untrusted = getattr(exc, "verify_message", "")
    if untrusted:
        return f"its certificate cannot be trusted: {untrusted}"
    reason = str(getattr(exc, "reason", "") or exc)
    if reason in ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "it does not speak https there: use an http address"
    return f"TLS failed ({reason.lower().replace('_', ' ')})"


def is_untrusted(exc: Optional[BaseException]) -> bool:
    return bool(exc is not None and type(exc).__module__ == "ssl" and getattr(exc, "verify_message", ""))
