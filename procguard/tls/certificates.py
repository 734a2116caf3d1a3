"""The manager's certificates: `web.tls: auto` (its own CA beside the state), or files that are renewed externally.

Knows which certificate is in use and when to renew it; authority.py creates them. The own CA signs only this
manager's certificate, so that a client that trusts the CA needs no host name. Knows no sockets.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from procguard.config.schema import Config, Tls
from procguard.errors import ConfigError, ProcGuardError
from remote_agent.transport.tls import fingerprint

log = logging.getLogger(__name__)

MAX_NAMES = 200


@dataclass(frozen=True)
class Pinned:
    """The CA that agents and launchers trust. `ca`: PEM; "" for those of their operating system. `any_name`: the
    certificate need not contain the address, because its CA signs for no other server."""

    ca: str = ""
    any_name: bool = False

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.ca) if self.ca else ""


class Certificates:
    """The certificates of a running manager. `context`: for its listener. `refresh`: renews them, or reads files that
    were replaced."""

    def __init__(self, settings: Tls, names: Iterable[str], now: datetime) -> None:
        self._settings = settings
        self._names = _distinct(names)
        self._read: tuple[Any, ...] = ()  # size and time of the files in use
        self.context = new_context()
        self.ca_file = ""
        self.refresh(now)

    @property
    def pinned(self) -> Pinned:
        raise NotImplementedError

    def refresh(self, now: datetime) -> bool:
        """Renew or reload the certificate if necessary. Returns whether new connections use another one. Raises
        ProcGuardError."""
        raise NotImplementedError

    def _load(self, cert: str, key: str) -> None:
        try:
            self.context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as exc:
            reason = exc.strerror if not isinstance(exc, ssl.SSLError) and exc.strerror else str(exc)
            raise ProcGuardError(
                f"web.tls: {cert} and {key} cannot be used ({reason})",
                "give a certificate chain and its unencrypted key in PEM that the manager's user may read",
                code="bad_certificate",
            ) from exc


class OwnFiles(Certificates):
    """The certificate of `web.tls: {cert, key}`. Replaced files are loaded automatically; if they cannot be used, the
    manager continues with the previous ones."""

    @property
    def pinned(self) -> Pinned:
        return pinned_by(self._settings)

    def refresh(self, now: datetime) -> bool:
        cert, key = self._settings.cert, self._settings.key
        seen = tuple(_seen(path) for path in (cert, key))
        if seen == self._read:
            return False
        first = not self._read
        self._read = seen
        try:
            self._load(cert, key)
        except ProcGuardError as exc:
            if first:
                raise
            log.error("%s; the certificate before stays in use", exc)
            return False
        return not first


class OwnCa(Certificates):
    """`web.tls: auto`."""

    def __init__(self, settings: Tls, names: Iterable[str], now: datetime, directory: str) -> None:
        self._directory = directory
        from procguard.tls.authority import Authority  # noqa: PLC0415 - 10 MB that managers without a CA do not need

        self._authority = Authority(directory, now)
        super().__init__(settings, names, now)
        self.ca_file = self._authority.ca_file

    @property
    def pinned(self) -> Pinned:
        return Pinned(self._authority.ca_pem, any_name=True)

    def refresh(self, now: datetime) -> bool:
        cert, key, made = self._authority.server(self._names, now)
        seen = (_seen(cert), _seen(key))
        if not made and seen == self._read:
            return False
        first = not self._read
        self._read = seen
        self._load(cert, key)
        return not first

    def rename(self, names: Iterable[str]) -> None:
        """Note that this machine's addresses have changed; the next `refresh` creates a certificate that names them."""
        self._names = _distinct(names)


# ------------------------------------------------------------------------------------------------------- helpers


def open_certificates(config: Config, names: Iterable[str], now: datetime) -> Certificates | None:
    """The certificates configured by `web.tls`; None for plain HTTP. Raises ProcGuardError."""
    settings = config.web.tls
    if settings.mode == "auto":
        return OwnCa(settings, names, now, os.path.join(config.state_directory, "tls"))
    return OwnFiles(settings, names, now) if settings.mode == "files" else None


def pinned_by(settings: Tls) -> Pinned:
    """The CA for agents if the manager does not use its own CA: `web.tls.ca`, which may also be that of a proxy."""
    if not settings.ca:
        return Pinned()
    try:
        with open(settings.ca, encoding="ascii") as file:
            pem = file.read()
        ssl.create_default_context(cadata=pem)
    except (OSError, UnicodeDecodeError, ssl.SSLError) as exc:
        raise ConfigError(f"web.tls.ca: {settings.ca} cannot be used ({exc})", "give certificates in PEM") from exc
    return Pinned(pem)


def new_context() -> ssl.SSLContext:
    """The TLS context of a listener: TLS 1.2 and later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def names_for(addresses: Iterable[str], advertised: Iterable[str], host: str) -> list[str]:
    """The names in the certificate of `tls: auto`: all names and addresses of this machine."""
    asked = [urlsplit(url).hostname or "" for url in advertised]
    own = socket.gethostname()
    listening = [] if host in ("0.0.0.0", "::", "") else [host]
    return _distinct(["localhost", "127.0.0.1", "::1", own, own.partition(".")[0], *listening, *asked, *addresses])


def _distinct(names: Iterable[str]) -> list[str]:
    found = dict.fromkeys(name.strip("[]").rstrip(".").lower() for name in names)
    return [name for name in found if is_address(name) or _HOST_NAME.fullmatch(name)][:MAX_NAMES]


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")


def _seen(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return found.st_ino, found.st_mtime_ns, found.st_size
