"""Resource limits of a specification as numbers for setrlimit and control groups.

Pure; the manager validates inventories with it, the agent resolves limits with it, the runner receives the result.
"""

from __future__ import annotations

from remote_agent.protocol.hints import Union
from remote_agent.protocol.worker_spec import Limits

UNLIMITED = -1
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
CONSTANTS = {
    "nofile": "RLIMIT_NOFILE",
    "nproc": "RLIMIT_NPROC",
    "core": "RLIMIT_CORE",
    "memory": "RLIMIT_AS",
    "memlock": "RLIMIT_MEMLOCK",
    "stack": "RLIMIT_STACK",
    "fsize": "RLIMIT_FSIZE",
    "cpu_s": "RLIMIT_CPU",
}
_COUNTS = ("nofile", "nproc", "cpu_s")


def rlimits(limits: Limits) -> list[list[object]]:
    """The configured limits as [["nofile", "RLIMIT_NOFILE", 65536], …]. Raises ValueError naming the key."""
    found: list[list[object]] = []
    for name, constant in CONSTANTS.items():
        value = getattr(limits, name)
        if value is not None:
            found.append([name, constant, amount(value, f"limits.{name}")])
    return found


def group_limits(limits: Limits) -> dict[str, float]:
    """memory_max in bytes and cpu_max in CPUs, as far as they are set. Raises ValueError naming the key."""
    found: dict[str, float] = {}
    if limits.memory_max is not None:
        memory = amount(limits.memory_max, "limits.memory_max")
        if memory >= 0:
            found["memory_max"] = memory
    if limits.cpu_max is not None:
        if not isinstance(limits.cpu_max, (int, float)) or not 0.01 <= limits.cpu_max <= 1e6:
            raise ValueError(f"limits.cpu_max {limits.cpu_max!r}: expected a number of CPUs, like 2.5")
        found["cpu_max"] = float(limits.cpu_max)
    return found


def amount(value: Union[int, str], where: str) -> int:
    """65536, "65536", "64G" (K, M, G, T of 1024; GiB and GB are the same) or "unlimited" (-1)."""
    text = str(value).strip().upper()
    if text in ("UNLIMITED", "INFINITY"):
        return UNLIMITED
    counts = where.rpartition(".")[2] in _COUNTS
    number, unit = text, ""
    if not counts:
        number = text.rstrip("BI")
        if number[-1:] in _UNITS and number[-1:]:
            number, unit = number[:-1], number[-1:]
    try:
        found = int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        found = -1
    if isinstance(value, bool) or not 0 <= found < 2**63:
        expected = "a number or unlimited" if counts else "bytes, a size like 64G, or unlimited"
        raise ValueError(f"{where} {value!r}: expected {expected}")
    return found


def umask(text: str) -> int:
    """Parse a umask: "027" -> 23, "" -> -1 (unchanged). Raises ValueError."""
    if not text:
        return -1
    digits = text[2:] if text.startswith("0o") else text
    if not 1 <= len(digits) <= 4 or not set(digits) <= set("01234567") or int(digits, 8) > 0o777:
        raise ValueError(f'umask {text!r}: expected octal digits in quotes, like "027"')
    return int(digits, 8)
