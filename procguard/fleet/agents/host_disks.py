"""Problems of the disk under a host's procguard_home, as its agent reports them: writes fail, and why. Pure.

space inodes quota read_only io     as listed in docs/protocol.md; any other value of a newer agent counts as "io"
"""

from __future__ import annotations

from procguard.fleet.history.events import EventLog
from procguard.fleet.history.query import EventQuery
from procguard.i18n.reasons import Reason, because
from remote_agent.protocol import messages

KINDS = ("space", "inodes", "quota", "read_only", "io")
EVENT_EVERY_S = 10.0  # per host: faster changes are not recorded individually


def trouble_of(beat: messages.AgentHeartbeat | None) -> str:
    """One of KINDS; "" if the disk accepts writes or nothing is reported."""
    if beat is None or not beat.disk_trouble:
        return ""
    return beat.disk_trouble if beat.disk_trouble in KINDS else "io"


def why(beat: messages.AgentHeartbeat) -> Reason:
    return because(f"disk.{trouble_of(beat)}", path=beat.disk_path or "procguard_home").then(
        because("host.disk_meanwhile")
    )


def last_reported(history: EventLog) -> dict[str, str]:
    """host -> the last recorded state of its disk, also from an earlier run of the manager, to prevent duplicates."""
    found = history.find(EventQuery(kind=("host_disk_full", "host_disk_ok")), limit=100_000)
    return {event["host"] or "": event["after"] or "" for event in found}
