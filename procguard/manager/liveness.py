"""The manager's dead man's switch: requests a URL periodically; the service behind it (healthchecks.io and similar, or
any web server's log) alerts when the requests stop.

Requests only while the monitoring loop is alive: a manager that answers but no longer monitors counts as dead.
"""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

import gevent

TIMEOUT_S = 10.0

log = logging.getLogger("procguard.manager.liveness")


class DeadMan:
    """`is_alive()`: whether the monitoring loop ran recently. The URL is a secret and never logged completely."""

    def __init__(self, url: str, interval_s: float, is_alive: Callable[[], bool]) -> None:
        self._url = url
        self._interval_s = interval_s
        self._is_alive = is_alive
        self._host = urlsplit(url).hostname or ""
        self._failing = False

    def run(self) -> None:
        """Send requests until the greenlet is killed. Logs the beginning and the end of failures once."""
        while True:
            if self._is_alive():
                self.ping()
            gevent.sleep(self._interval_s)

    def ping(self) -> bool:
        try:
            with urllib.request.urlopen(self._url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http(s), by config/schema.py
                answer.read(1024)
        except (OSError, ValueError) as exc:
            if not self._failing:
                log.warning("dead man's switch: %s does not answer (%s)", self._host, _cause(exc))
            self._failing = True
            return False
        if self._failing:
            log.info("dead man's switch: %s answers again", self._host)
        self._failing = False
        return True


def _cause(exc: Exception) -> str:
    if isinstance(exc, urllib.error.HTTPError):
        return f"HTTP {exc.code}"
    return str(getattr(exc, "reason", "") or getattr(exc, "strerror", "") or type(exc).__name__)
