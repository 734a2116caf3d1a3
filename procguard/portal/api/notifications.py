"""Notification targets and test messages; alerts on measurements that fire; mutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

from pydantic import Field
from typing_extensions import TypedDict

from procguard.agent_api import http_io
from procguard.agent_api.declaration import delete, get, post, whole
from procguard.agent_api.decode import Hints
from procguard.agent_api.interface import Principal
from procguard.errors import Conflict
from procguard.fleet.model import clock
from procguard.fleet.model.clock import iso
from procguard.i18n.reasons import because
from procguard.notify.mutes import TABLE, MuteView
from procguard.notify.notifier import NotificationTarget, Tried
from procguard.notify.rules import FiringAlert
from procguard.portal.api.resource import MAX_REASON_CHARS, RequestBody, Resource


class NameRequest(RequestBody):
    """{"name": "oncall"}: the notification target; without `name`, all targets."""

    max_bytes: ClassVar[int | None] = 4_096
    hints: ClassVar[Hints] = {"name": ("", 'e.g. {"name": "oncall"}, or nothing for all')}

    name: str = ""


class NotificationRoute(TypedDict):
    select: str
    to: list[str]
    on: list[str]


@dataclass(frozen=True)
class NotificationTargets:
    """`routes`: the entries of `notify:` in the configuration."""

    notifications: list[NotificationTarget]
    routes: list[NotificationRoute]


@dataclass(frozen=True)
class NotificationsTried:
    results: list[Tried]


class MuteRequest(RequestBody):
    """{"select": "host=gpu0*", "for_s": 7200, "begins": 1790000000.0, "note": "new disks"}: `begins` in Unix seconds;
    without it, the mute begins now."""

    max_bytes: ClassVar[int | None] = 16_384
    hints: ClassVar[Hints] = {
        "select": ("", 'a selector, e.g. {"select": "group=trainers", "for_s": 7200}'),
        "for_s": ("", 'how long, in seconds, e.g. {"select": "group=trainers", "for_s": 7200}'),
    }

    select: str
    for_s: float
    begins: float | None = None
    note: Annotated[str, Field(max_length=MAX_REASON_CHARS)] = ""


class AcknowledgeRequest(RequestBody):
    """{"alert": "disk-full|gpu01", "note": "the disk is being replaced"}: `alert` as GET /api/alerts names it."""

    hints: ClassVar[Hints] = {"alert": ("", "as GET /api/alerts names it")}

    alert: Annotated[str, Field(max_length=1_000)]
    note: Annotated[str, Field(max_length=MAX_REASON_CHARS)] = ""


@dataclass(frozen=True)
class AlertsQuery:
    limit: int = whole(1_000, 1, 10_000)


@dataclass(frozen=True)
class AlertsAnswer:
    """`rules`: number of configured rules. `total`: number of alerts that fire; `alerts` has the latest `limit`."""

    alerts: list[FiringAlert]
    total: int
    rules: int


@dataclass(frozen=True)
class AlertSeen:
    alert: str
    status: str


@dataclass(frozen=True)
class MutesAnswer:
    mutes: list[MuteView]


@dataclass(frozen=True)
class MuteAnswer:
    mute: MuteView


class NotificationsApi(Resource):
    @get("/api/notifications", "viewer", tag="history", zh="通知目标的状态")
    def targets(self) -> NotificationTargets:
        """The status of each notification target.

        The targets are those of `notifications:` in the configuration ([notifications](notifications.md)), `routes`
        those of `notify:`.
        """
        notifier = self.services.notifier
        if notifier is None:
            return NotificationTargets([], [])
        return NotificationTargets(notifier.views(), cast(list[NotificationRoute], notifier.routes))

    @get("/api/alerts", "viewer", tag="history", zh="正在触发的测量告警")
    def firing(self, query: AlertsQuery) -> AlertsAnswer:
        """The alerts on measurements that fire now.

        The rules are those of `alerts:` in the configuration. Each alert has its value, its limit, the time since when
        it fires, and who has muted or acknowledged it ([notifications](notifications.md#alerts-on-measurements)).
        """
        rules = self.services.alert_rules
        found = rules.firing(self.fleet.state, self.services.mutes, clock.read().wall)
        return AlertsAnswer(found[: query.limit], len(found), rules.count)

    @post(
        "/api/alerts/acknowledge", "operator", tag="history", zh="确认已知晓正在触发的告警", errors=(404,),
        example={"alert": "disk-full|gpu01", "note": "the disk is being replaced"},
    )  # fmt: skip
    def acknowledge(self, caller: Principal, body: AcknowledgeRequest) -> AlertSeen:
        """Acknowledge an alert that fires, visible to everyone until it ends."""
        http_io.note_change(f"{body.alert[:200]}: {body.note}")
        self.services.alert_rules.acknowledge(self.fleet.state, body.alert, body.note, caller.actor, clock.read())
        return AlertSeen(body.alert, "acknowledged")

    @get("/api/mutes", "viewer", tag="history", zh="静默与维护时段")
    def mutes(self) -> MutesAnswer:
        """Active and planned mutes: alerts that are not sent."""
        return MutesAnswer(self.services.mutes.views(clock.read().wall))

    @post(
        "/api/mutes", "operator", tag="history", zh="在一段时间内不发送部分告警", errors=(429,),
        example={"select": "host=gpu0*", "for_s": 7200, "note": "new disks"},
    )  # fmt: skip
    def mute(self, caller: Principal, body: MuteRequest) -> MuteAnswer:
        """Mute the alerts of workers and hosts for a time, starting now or later (a maintenance window).

        Muted alerts stay in the history. A mute ends by itself.
        """
        mutes, now = self.services.mutes, clock.read()
        mute = mutes.made(body.select, body.begins, body.for_s, body.note, caller.actor, now.wall)
        http_io.note_change(f"{mute.mute_id} {body.select[:200]}: {body.note}")
        with self.fleet.state.transaction(now, caller.actor) as tx:
            for old in mutes.ended(now.wall):
                tx.put(TABLE, old.mute_id, None)
                mutes.take_out(old.mute_id)
            tx.put(TABLE, mute.mute_id, mute.row())
            mutes.put(mute)
            tx.undo(lambda: mutes.take_out(mute.mute_id))
            until = iso(mute.ends) or ""
            reason = because("mute.made", select=body.select[:200], begins=iso(mute.begins) or "", until=until)
            tx.event("alerts_muted", reason=reason.then(body.note), evidence={"mute_id": mute.mute_id})
        return MuteAnswer(mute.view(now.wall))

    @delete("/api/mutes/<mute_id>", "operator", tag="history", zh="结束静默", errors=(404,))
    def unmute(self, mute_id: str, caller: Principal) -> MuteAnswer:
        """End a mute before its time."""
        mutes, now = self.services.mutes, clock.read()
        mute = mutes.find(mute_id)
        with self.fleet.state.transaction(now, caller.actor) as tx:
            tx.put(TABLE, mute_id, None)
            mutes.take_out(mute_id)
            tx.undo(lambda: mutes.put(mute))
            reason = because("mute.ended", select=mute.select[:200])
            tx.event("alerts_unmuted", reason=reason, evidence={"mute_id": mute_id})
        return MuteAnswer(mute.view(now.wall))

    @post(
        "/api/notifications/test", "operator", tag="history", zh="发送测试通知", body_optional=True, errors=(404, 409)
    )
    def test(self, body: NameRequest) -> NotificationsTried:
        """Send a test message to one target or to all.

        `{"name": "oncall"}`; without a name every target is tried.
        """
        notifier = self.services.notifier
        if notifier is None:
            raise Conflict("this manager sends no notifications", "see docs/notifications.md", code="not_configured")
        return NotificationsTried(notifier.test(body.name))
