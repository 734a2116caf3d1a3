"""The addresses of one manager or of several, the one in use, and the certificates that are trusted there.

Knows addresses and TLS, not the API. Tokens are sent to these addresses only. Thread-safe.
"""

from __future__ import annotations

import http.client
import threading
import urllib.parse
from collections.abc import Sequence
from typing import Any

from procguard.client import discovery
from procguard.errors import ManagerUnreachable, UsageError

MAX_URLS = 16
NEXT_URL = "start it (./start_manager.sh), or set PROCGUARD_MANAGER_URL"
_NEXT_CA = "set PROCGUARD_CA=FILE to the certificates to trust (with tls: auto: tls/ca.pem beside the manager's state)"


class ManagerUrl:
    """One address of a manager. `path`: the prefix of every route at this address."""

    def __init__(self, url: str, ca_file: str) -> None:
        self.url = url.rstrip("/")
        self._ca_file = ca_file
        self._context: Any = None  # for https, created with the first connection
        try:
            parts = urllib.parse.urlsplit(self.url)
            self._host, self._port, self._scheme = parts.hostname or "", parts.port, parts.scheme
        except ValueError:
            self._host = ""
        if not self._host or self._scheme not in ("http", "https"):
            raise ManagerUnreachable(f"not a manager's address: {url!r}", "write it like http://gpu-head:5000")
        self.path = parts.path.rstrip("/")

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection that is not open yet. `timeout_s`: for opening it."""
        if self._scheme != "https":
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        if self._context is None:
            self._context = self._made_context()
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._context)

    def _made_context(self) -> Any:
        import ssl

        known = discovery.find(self.url) if not self._ca_file else None
        path = self._ca_file or (known.ca_file if known is not None else "")
        try:
            context = ssl.create_default_context(cafile=path or None)
        except (OSError, ValueError) as exc:
            raise UsageError(f"{path}: it contains no PEM certificates ({exc})", _NEXT_CA) from exc
        if known is not None and known.any_name:
            context.check_hostname = False
        return context


class ManagerUrls:
    """Several addresses. `current` is the one in use; `failed` switches to the next one."""

    def __init__(self, urls: str | Sequence[str], ca_file: str = "") -> None:
        """`urls`: a list, or a string of addresses separated by commas. Raises ManagerUnreachable for an invalid
        address, or for more than MAX_URLS."""
        words = split(urls) if isinstance(urls, str) else list(urls)
        self.all = [ManagerUrl(url, ca_file) for url in dict.fromkeys(words or [""])]
        if len(self.all) > MAX_URLS:
            raise ManagerUnreachable(f"{len(self.all)} managers' addresses: at most {MAX_URLS}", "name fewer")
        self._at = 0
        self._lock = threading.Lock()

    @property
    def current(self) -> ManagerUrl:
        return self.all[self._at]

    def failed(self, one: ManagerUrl) -> None:
        """Report that an address does not answer or does not lead. Has no effect if another thread has already switched
        to the next one."""
        with self._lock:
            if self.current is one:
                self._at = (self._at + 1) % len(self.all)


def split(text: str) -> list[str]:
    """The addresses in "http://a:5000,http://b:5000"."""
    return [word.strip() for word in text.split(",") if word.strip()]
