"""Notification targets, their status, and test messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from typing_extensions import TypedDict

from procguard.agent_api.declaration import get, post
from procguard.agent_api.decode import Hints
from procguard.errors import Conflict
from procguard.portal.api.resource import Moment, RequestBody, Resource


class NameRequest(RequestBody):
    """{"name": "oncall"}: one notification target; without it all."""

    max_bytes: ClassVar[int | None] = 4_096
    hints: ClassVar[Hints] = {"name": ("", 'e.g. {"name": "oncall"}, or nothing for all')}

    name: str = ""


class NotificationTarget(TypedDict):
    name: str
    type: str
    address: str
    events: list[str]
    language: str
    sent: int
    failures: int
    last_ok: Moment
    last_error: str
    last_error_at: Moment
    queued: int
    dropped: int
    deduplicated: int
    retry_in_s: float | None


@dataclass(frozen=True)
class NotificationTargets:
    notifications: list[NotificationTarget]


class Tried(TypedDict):
    name: str
    type: str
    ok: bool
    answer: str
    took_s: float


@dataclass(frozen=True)
class NotificationsTried:
    results: list[Tried]


class NotificationsApi(Resource):
    @get("/api/notifications", "viewer", tag="history", zh="通知目标的状态")
    def targets(self) -> NotificationTargets:
        """How each target of notifications fares.

        Of those in `notifications:` of the configuration: [notifications](notifications.md).
        """
        notifier = self.services.notifier
        return NotificationTargets(cast(list[NotificationTarget], notifier.views() if notifier is not None else []))

    @post(
        "/api/notifications/test", "operator", tag="history", zh="发送测试通知", body_optional=True, errors=(404, 409)
    )
    def test(self, body: NameRequest) -> NotificationsTried:
        """A test message to one target or all.

        `{"name": "oncall"}`; without a name every target is tried.
        """
        notifier = self.services.notifier
        if notifier is None:
            raise Conflict("this manager sends no notifications", "see docs/notifications.md", code="not_configured")
        return NotificationsTried(cast(list[Tried], notifier.test(body.name)))
