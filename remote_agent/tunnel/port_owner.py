"""Identifies the owner of a listening socket on an address of this host: the manager, ProcGuard's relay, or another
user.

An intermediary could relay the proof that an agent requires of the manager. On addresses of this host (loopback, a
bridge, any interface) such an intermediary may be another user's listener; the kernel reports its owner. Loopback and
other addresses of the host are treated alike.
"""

from __future__ import annotations

import os
import socket
import struct

from remote_agent.protocol.hints import Iterator, Optional, Set

LISTENING, HALF_OPEN = "0A", "03"
MAX_LINES = 200_000
ROOT, ELSEWHERE = 0, -1
FIB = "/proc/net/fib_trie"
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_MAPPED = bytes(10) + b"\xff\xff"  # prefix of an IPv4-mapped IPv6 address


def is_own_listener(port: int, uid: int = -1, table: str = "/proc/net/tcp") -> bool:
    """Whether the socket that listens on 127.0.0.1:`port` belongs to this user. False if there is none."""
    owner = os.getuid() if uid < 0 else uid
    wanted = _written(socket.inet_aton("127.0.0.1"), port)
    return [line_owner for address, line_owner in _listeners(table) if address == wanted][:1] == [owner]


def may_be_ours(sock: socket.socket, managers_uid: int = ELSEWHERE) -> bool:
    """Whether a connection leads to another machine, or on this machine to a listener of this user, of root or of
    `managers_uid`. Raises OSError if the kernel does not report the owner."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    address, port = sock.getpeername()[:2]
    if not is_local(address, sock.getsockname()[0]):
        return True
    owners = owners_of(address, port)
    return bool(owners) and owners <= {os.getuid(), ROOT, managers_uid}


def is_local(address: str, own_end: str = "") -> bool:
    """Whether `address` belongs to this host; `own_end`: the local address of a connection to it."""
    packed = _packed(address)
    if packed is None:
        return False
    if address == own_end or (len(packed) == 4 and packed[:1] == b"\x7f") or packed == bytes(15) + b"\x01":
        return True
    return _in_fib(socket.inet_ntoa(packed)) if len(packed) == 4 else _in_if_inet6(packed.hex())


def owners_of(address: str, port: int) -> Set[int]:
    """The users whose sockets listen at `address`:`port` of this host, or at all its addresses."""
    packed = _packed(address)
    if packed is None:
        return set()
    everywhere, any4 = bytes(16), bytes(4)
    ours = [packed, any4, _MAPPED + packed, everywhere] if len(packed) == 4 else [packed, everywhere]
    wanted = {_written(one, port) for one in ours}
    return {owner for table in _TABLES if os.path.exists(table) for at, owner in _listeners(table) if at in wanted}


def _packed(address: str) -> Optional[bytes]:
    """The address as 4 or 16 bytes; an IPv4-mapped IPv6 address as 4 bytes. None if it is not an address."""
    bare = address.partition("%")[0]
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in bare else socket.AF_INET, bare)
    except OSError:
        return None
    return packed[12:] if len(packed) == 16 and packed.startswith(_MAPPED) else packed


def _written(packed: bytes, port: int) -> str:
    """The form in /proc/net/tcp: each four-byte word in the machine's byte order."""
    words = ["%08X" % struct.unpack("=I", packed[at : at + 4])[0] for at in range(0, len(packed), 4)]
    return "".join(words) + ":%04X" % port


def _listeners(table: str) -> Iterator["tuple[str, int]"]:
    """(address:port, uid) of each listening socket; these are listed before all others."""
    with open(table, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines):
            words = line.split(None, 8)
            if number == 0 or len(words) < 8 or words[3] == HALF_OPEN:  # old kernels: connections follow
                continue
            if words[3] != LISTENING or number > MAX_LINES:
                break
            yield words[1], int(words[7])


def _in_fib(address: str) -> bool:
    """Whether an IPv4 address belongs to this host according to the routing tables. Without them (in a sandbox's
    kernel) only the local end of a connection shows it."""
    last = ""
    try:
        with open(FIB, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines):
                words = line.split()
                if words[:1] == ["|--"]:
                    last = words[1]
                elif last == address and "/32 host LOCAL" in line:
                    return True
                if number > MAX_LINES:
                    break
    except OSError:
        pass
    return False


def _in_if_inet6(digits: str) -> bool:
    try:
        with open("/proc/net/if_inet6", encoding="utf-8", errors="replace") as lines:
            return any(line.split(None, 1)[:1] == [digits] for line in lines)
    except OSError:  # this host has no IPv6
        return False
