"""Where alerts go and how that fares; a test message on request."""

from __future__ import annotations

from typing import Any, Protocol

import bottle

from procguard.agent_api import http_io
from procguard.errors import Conflict
from procguard.portal.api import requests

NAME_HINTS = {"name": ("", 'e.g. {"name": "oncall"}, or nothing for all')}


class Notifications(Protocol):
    """What is asked of procguard/notify."""

    def views(self) -> list[dict[str, Any]]: ...

    def test(self, name: str = "") -> list[dict[str, Any]]: ...


class NotificationsApi:
    def __init__(self, notifier: Notifications | None) -> None:
        self._notifier = notifier

    def mount(self, app: bottle.Bottle) -> None:
        app.route("/api/notifications", "GET", http_io.answered(self._list))
        app.route("/api/notifications/test", "POST", http_io.answered(self._test))

    def _list(self) -> dict[str, Any]:
        return {"notifications": self._notifier.views() if self._notifier is not None else []}

    def _test(self) -> dict[str, Any]:
        """Optional body: {"name": "oncall"}; without it every target is tried."""
        name = requests.read_optional(requests.NameRequest, 4_096, NAME_HINTS).name
        if self._notifier is None:
            raise Conflict("this manager sends no notifications", "see docs/notifications.md", code="not_configured")
        return {"results": self._notifier.test(name)}
