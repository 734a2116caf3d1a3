"""SHA-256, HMAC-SHA-256 and BLAKE2b without OpenSSL, which `hashlib` would load (3.6 MB of memory).

CPython includes its own SHA-256 and BLAKE2b as modules that hashlib uses as a fallback; elsewhere (PyPy) hashlib is
used. The results are identical.
"""

from __future__ import annotations

from remote_agent.protocol.hints import Any

sha256: Any  # the same as hashlib.sha256
try:
    from _sha2 import sha256  # type: ignore[import-not-found,no-redef,unused-ignore]  # CPython 3.12 and later
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found,no-redef,unused-ignore]  # CPython up to 3.11
    except ImportError:
        from hashlib import sha256  # type: ignore[assignment,unused-ignore]

blake2b: Any  # as hashlib.blake2b; with a key it is a MAC (RFC 7693), at a third of HMAC's time
try:
    from _blake2 import blake2b  # type: ignore[import-not-found,no-redef,unused-ignore]
except ImportError:
    from hashlib import blake2b  # type: ignore[assignment,unused-ignore]  # noqa: F401

_BLOCK_BYTES = 64
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))


def sha256_hex(data: bytes) -> str:
    return str(sha256(data).hexdigest())


def hmac_sha256_hex(key: bytes, message: bytes) -> str:
    """RFC 2104, as hmac.new(key, message, "sha256").hexdigest()."""
    key = (sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
    return sha256_hex(key.translate(_OUTER) + sha256(key.translate(_INNER) + message).digest())


def same(one: str, other: str) -> bool:
    """Compare in constant time, by comparing two digests under a random one-time key."""
    import os

    key = os.urandom(_BLOCK_BYTES)
    return hmac_sha256_hex(key, one.encode()) == hmac_sha256_hex(key, other.encode())
