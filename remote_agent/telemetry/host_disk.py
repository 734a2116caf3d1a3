"""Checks whether the disk under procguard_home accepts writes, and reports to the manager while it does not.

Checks in a helper thread, because a file system may hang. Main loop only. Knows no worker.
"""

from __future__ import annotations

import errno

from remote_agent.protocol.hints import Any, Callable
from remote_agent.system import disk_space

POLL_INTERVAL_S = 5.0
RECHECK_S = 2.0  # while it refuses writes or is suspected to
KINDS = {errno.EDQUOT: "quota", errno.EROFS: "read_only", errno.EIO: "io"}


class HostDisk:
    def __init__(self, directory: str, submit: Callable[[Any, Callable[[], Any]], bool]) -> None:
        self.directory = directory
        self.trouble = ""  # "space", "inodes", "quota", "read_only", "io"; "": it accepts writes
        self._submit = submit
        self._probed_at = -POLL_INTERVAL_S  # monotonic
        self._busy = False
        self._well = 0

    def next_at(self) -> float:
        """The latest time of the next call of `tick`."""
        return float("inf") if self._busy else self._probed_at + (RECHECK_S if self.trouble else POLL_INTERVAL_S)

    def tick(self, now: float, suspected: bool) -> None:
        """Start a check if one is due. `suspected`: a write has failed recently."""
        thorough = suspected or bool(self.trouble)
        if self._busy or now < self._probed_at + (RECHECK_S if thorough else POLL_INTERVAL_S):
            return
        self._probed_at = now
        self._busy = self._submit("disk", lambda: probe(self.directory, thorough))

    def take(self, found: Any) -> bool:
        """Process a result. Returns whether the state has changed. The disk counts as recovered after two good
        results."""
        self._busy = False
        if not isinstance(found, str):
            return False
        self._well = 0 if found else self._well + 1
        if found == self.trouble or (not found and self._well < 2):
            return False
        self.trouble = found
        return True


def probe(directory: str, thorough: bool) -> str:
    """A word of KINDS, "space" or "inodes"; "" if the disk accepts writes. Creates a small file if space is low."""
    try:
        if not thorough and not disk_space.is_low(directory):
            return ""
    except OSError as exc:
        return KINDS.get(exc.errno or 0, "io")
    problem = disk_space.refusal(directory)
    if problem == errno.ENOSPC:
        return disk_space.which_is_used_up(directory)
    return KINDS.get(problem, "io") if problem else ""
