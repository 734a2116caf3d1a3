"""Host names as written in inventories (ranges, ports, addresses), and as used by the fleet.

Pure. Raises ValueError for invalid names.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import string
from collections.abc import Iterator

from remote_agent.protocol import messages

MAX_HOSTS = 10_000
MAX_NAME_CHARS = 255
_ID_CHARS = 55  # length of the name within an id derived from it


def split_port(pattern: str) -> tuple[str, int]:
    """Split host:port. The colon of a range or of an IPv6 address is no separator; `[2001:db8::1]:22` has a port."""
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(\d+))?", pattern)
    if bracketed and is_ipv6(bracketed[1]):
        return bracketed[1], int(bracketed[2] or 0)
    if is_ipv6(pattern):
        return pattern, 0
    found = re.fullmatch(r"(.+):(\d+)", pattern)
    if found and found[1].count("[") == found[1].count("]"):
        return found[1], int(found[2])
    return pattern, 0


def is_ipv6(text: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def check(name: str) -> None:
    """Raises ValueError for an invalid host name, such as one with blanks or slashes."""
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable() or re.search(r"[\s/\\]", name):
        raise ValueError(f"{name[:80]!r} is not a valid host name")
    if name.endswith(":") or name in (".", ".."):
        raise ValueError(f"{name[:80]!r} is not a valid host name")


def fleet_id(name: str) -> str:
    """The host's id in the fleet: its name. If the name is not a valid id (an IPv6 address, letters beyond ASCII, more
    than 64 characters): its valid characters and a digest."""
    if messages.valid_id(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    words = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:_ID_CHARS]
    return f"{words or 'host'}-{digest}"


def address(name: str) -> str:
    """The default address of a host: its name in the form of DNS."""
    try:
        return name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        return name


def expand_range(pattern: str) -> Iterator[str]:
    """Expand gpu[01:16].lan to gpu01.lan …; also [a:f] and [0:10:2]. Several ranges multiply. Raises ValueError."""
    for count, name in enumerate(_expanded(pattern)):
        if count >= MAX_HOSTS:
            raise ValueError(f"these ranges name more than {MAX_HOSTS} hosts")
        yield name


def _expanded(pattern: str) -> Iterator[str]:
    before, bracket, rest = pattern.partition("[")
    if not bracket:
        yield pattern
        return
    inside, closed, after = rest.partition("]")
    bounds = inside.split(":")
    if not closed or len(bounds) not in (2, 3) or not bounds[1]:
        raise ValueError(f"bad range [{inside}]")
    step = int(bounds[2]) if len(bounds) == 3 and bounds[2].isdigit() else 1
    for middle in _sequence(bounds[0] or "0", bounds[1], max(1, step)):
        for end in _expanded(after):
            yield before + middle + end


def _sequence(first: str, last: str, step: int) -> list[str]:
    if first.isdecimal() and last.isdecimal() and first.isascii() and last.isascii():
        if len(first) > 1 and first.startswith("0") and len(first) != len(last):
            raise ValueError(f"both ends of [{first}:{last}] need the same number of digits")
        width = len(first) if first.startswith("0") else 0
        numbers = range(int(first[:9]), int(last[:9]) + 1, step)
        if not 0 < len(numbers) <= MAX_HOSTS:
            raise ValueError(f"[{first}:{last}] names {len(numbers)} hosts")
        return [str(number).zfill(width) for number in numbers]
    letters = string.ascii_letters
    if first in letters and last in letters and letters.index(first) <= letters.index(last):
        return list(letters[letters.index(first) : letters.index(last) + 1 : step])
    raise ValueError(f"bad range [{first}:{last}]")
