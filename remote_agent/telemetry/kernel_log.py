"""Reads faults of GPUs and NVSwitches (Xid, SXid) that the NVIDIA drivers write to the kernel log, /dev/kmsg.

    4,1234,98765432,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.

A job cannot forge a record: the kernel assigns another facility than its own (0) to messages of processes and escapes
line ends, and where its own messages name a process, the name is followed by "[pid]" rather than by a bus address. Does
not know the meaning of a number (see procguard/fleet/telemetry/gpu_faults.py). One thread at a time.
"""

from __future__ import annotations

import os
import re
import time

from remote_agent.protocol.hints import Any, Optional

PATH = "/dev/kmsg"
MAX_RECORD_BYTES = 8192
MAX_RECORDS = 20_000  # per call; the rest is read by the next call
MAX_FAULTS = 64
MAX_DETAIL_CHARS = 200
_KERNEL = 0  # facility
_LINE = re.compile(
    r"(?:NVRM: (Xid)|nvidia-nvswitch\d+: (SXid)) "
    r"\(PCI:([0-9a-fA-F]{1,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-7])?\): (\d{1,5}), (.*)"
)

Key = Any  # (bus, "xid" or "sxid", number)


class LoggedFault:
    def __init__(self, at: float, detail: str) -> None:
        self.at = at  # Unix time of the last occurrence
        self.count = 1
        self.detail = detail


class KernelLog:
    def __init__(self, path: str = PATH) -> None:
        self._path = path
        self._fd = -1
        self.trouble = ""  # why it cannot be read
        self.faults: dict[Key, LoggedFault] = {}

    def read(self) -> None:
        """Read new messages; at the first call, all that the kernel still has. Never blocks, never raises."""
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self.trouble = ""
            for _ in range(MAX_RECORDS):
                try:
                    data = os.read(self._fd, MAX_RECORD_BYTES)
                except BrokenPipeError:  # overwritten before it was read: continue with the next one
                    continue
                if not data:
                    return
                for line in data.split(b"\n"):
                    self._take(line.decode("ascii", "replace"))
        except BlockingIOError:
            pass
        except OSError as exc:
            self.trouble = exc.strerror or str(exc)
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _take(self, line: str) -> None:
        found = parsed(line)
        if found is None:
            return
        key, after_boot_s, detail = found
        at = time.time() - time.monotonic() + after_boot_s
        known = self.faults.get(key)
        if known is not None:
            known.at, known.detail = max(known.at, at), detail
            known.count += 1
            return
        if len(self.faults) >= MAX_FAULTS:
            del self.faults[min(self.faults, key=lambda one: self.faults[one].at)]
        self.faults[key] = LoggedFault(at, detail)


def parsed(line: str) -> Optional[tuple[Key, float, str]]:
    """(key, seconds since boot, rest of the message) of a GPU fault's record; None for other records."""
    head, separator, message = line.partition(";")
    if not separator or "Xid (PCI:" not in message:
        return None
    fields = head.split(",")
    if len(fields) < 3 or not fields[0].isdigit() or not fields[2].isdigit() or int(fields[0]) >> 3 != _KERNEL:
        return None
    found = _LINE.match(message)
    if found is None:
        return None
    bus = bus_of(f"{found[3]}:{found[4]}:{found[5]}")
    kind = "xid" if found[1] else "sxid"
    return (bus, kind, int(found[6])), int(fields[2]) / 1e6, found[7][:MAX_DETAIL_CHARS]


def bus_of(text: str) -> str:
    """The canonical bus address: "0:3b:00" for "00000000:3B:00.0" and "0000:3b:00"; "" if the text is not one."""
    parts = text.partition(".")[0].split(":")
    try:
        return ":".join(f"{int(part, 16):x}" for part in parts) if len(parts) == 3 else ""
    except ValueError:
        return ""
