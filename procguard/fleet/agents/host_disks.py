"""What a host's agent says of the disk under its procguard_home: that it refuses writes, and which way. Pure.

space inodes quota read_only io     as docs/protocol.md lists them; what a newer agent says besides is "io"
"""

from __future__ import annotations

from procguard.fleet.history.events import EventLog
from procguard.fleet.history.query import EventQuery
from remote_agent.protocol import messages

KINDS = ("space", "inodes", "quota", "read_only", "io")
EVENT_EVERY_S = 10.0  # of one host: an agent that changes its mind faster is told of less often
_WHAT = {
    "space": "no space is left on the disk that holds {path}: free some there (df -h {path})",
    "inodes": "no inodes are left on the disk that holds {path}: delete some files there (df -i {path})",
    "quota": "the quota of the agent's user is used up on the disk that holds {path}: free some space there (quota)",
    "read_only": "the disk that holds {path} is read-only: mount it writable (mount -o remount,rw)",
    "io": "the disk that holds {path} returns errors: look at it (dmesg)",
}
MEANWHILE = "until then nothing new starts there; what runs runs on, and stop and kill act"


def trouble_of(beat: messages.AgentHeartbeat | None) -> str:
    """One of KINDS; "" = its disk takes what is written, or it does not say."""
    if beat is None or not beat.disk_trouble:
        return ""
    return beat.disk_trouble if beat.disk_trouble in KINDS else "io"


def in_words(beat: messages.AgentHeartbeat) -> str:
    return f"{_WHAT[trouble_of(beat)].format(path=beat.disk_path or 'procguard_home')}; {MEANWHILE}"


def as_told(history: EventLog) -> dict[str, str]:
    """host -> what of its disk was told last, also by an earlier run of the manager: nothing is told twice."""
    found = history.find(EventQuery(kind=("host_disk_full", "host_disk_ok")), limit=100_000)
    return {event["host"]: event["after"] or "" for event in found}
