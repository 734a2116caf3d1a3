"""Queries the kernel (NETLINK_SOCK_DIAG) for the owner of the client end of a local TCP connection, and for the
machine's other connections and listeners.

`owner_uid` is an exact lookup by the connection's addresses and ports (about 20 µs). It reads the kernel's table
without a lock and may miss an existing socket; `listed_owner` reads under the kernel's locks (about 2 ms) and is
authoritative. Neither guesses: a socket that is closed, in TIME_WAIT or unknown has no owner. (The kernel reports a
closed socket with uid 0 and inode 0, which must not be taken for root.)
"""

from __future__ import annotations

import _socket
import contextlib
import ipaddress
import logging
import os
import socket
import struct
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_IPPROTO_TCP = 6
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFF
_NETLINK_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_REQUEST = struct.Struct("=BBBBI")  # family, protocol, extensions, pad, states
_SOCKET_ID = struct.Struct("!HH16s16s")  # ports and addresses in network order
_SOCKET_ID_TAIL = struct.Struct("=III")  # interface, cookie (two words)
_ANSWER_UID_OFFSET = 4 + 48 + 12  # state bytes, socket id, expires/rqueue/wqueue
_ANSWER_MIN_BYTES = _ANSWER_UID_OFFSET + 8

_NLM_F_DUMP = 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_BYTECODE = 1  # INET_DIAG_REQ_BYTECODE
_JUMP, _SPORT_GE, _SPORT_LE, _PEER = 1, 2, 3, 8
_REJECT = 4  # jump beyond the end of the program: rejects the socket
_ATTRIBUTE = struct.Struct("=HH")
_OP = struct.Struct("=BBH")  # code, offset if true, offset if false
_HOST = struct.Struct("=BBxxi")  # family, prefix length of the address, port; the address follows
_LISTEN = 10
_OPEN_STATES = sum(1 << state for state in (1, 2, 4, 5, 8, 9, _LISTEN, 11))  # not TIME_WAIT, CLOSE, half-open
_MESSAGE = struct.Struct("!BBxxHH16s16s")  # family, state, ports, addresses
_READ_BYTES = 64 * 1024
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_READ_TIMEOUT_S = 2.0

Address = tuple[str, int]


class Owner(NamedTuple):
    uid: int
    inode: int


class Tcp(NamedTuple):
    """One TCP socket of this machine (of this network namespace)."""

    local: Address
    peer: Address
    listens: bool
    uid: int  # -1: not asked for
    inode: int  # 0: no process has it open


def owner_uid(client: Address, server: Address) -> int | None:
    """The uid that owns the socket whose local address is `client` and whose peer is `server`.

    None: unknown (closed, not on this machine, or the kernel lacks the interface).
    """
    found = owner(client, server)
    return None if found is None else found.uid


def owner(client: Address, server: Address) -> Owner | None:
    try:
        family, source = _packed(client[0])
        other_family, destination = _packed(server[0])
        if family != other_family:
            return None
        request = _request(family, source, client[1], destination, server[1])
    except (ValueError, struct.error):
        return None
    try:
        return _ask(request)
    except (OSError, struct.error) as exc:
        log.info("the owner of a local connection cannot be asked for: %s", exc)
        return None


def listed_owner(client: Address, server: Address) -> Owner | None:
    """As `owner_uid`, from the list of all sockets with the client's port. Blocks for about 2 ms. Raises OSError, and
    ValueError for an invalid address."""
    ends = (_text(*_packed(client[0])), client[1]), (_text(*_packed(server[0])), server[1])
    found: list[Tcp] = []
    for family in _FAMILIES:
        _list(family, _OP.pack(_SPORT_GE, 8, 20) + _OP.pack(0, 0, client[1])
              + _OP.pack(_SPORT_LE, 8, 8 + _REJECT) + _OP.pack(0, 0, client[1]), found)  # fmt: skip
    return next((Owner(one.uid, one.inode) for one in found if (one.local, one.peer) == ends and one.inode), None)


def _packed(address: str) -> tuple[int, bytes]:
    with contextlib.suppress(OSError):  # nearly always, in a tenth of the time
        return int(socket.AF_INET), socket.inet_pton(socket.AF_INET, address).ljust(16, b"\0")
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped  # the form of IPv4 clients at a dual-stack listener
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    return int(family), ip.packed.ljust(16, b"\0")


def _request(family: int, source: bytes, source_port: int, destination: bytes, destination_port: int) -> bytes:
    body = (
        _REQUEST.pack(family, _IPPROTO_TCP, 0, 0, _ALL_STATES)
        + _SOCKET_ID.pack(source_port, destination_port, source, destination)
        + _SOCKET_ID_TAIL.pack(0, _NO_COOKIE, _NO_COOKIE)
    )
    length = _NETLINK_HEADER.size + len(body)
    return _NETLINK_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + body


def _ask(request: bytes) -> Owner | None:
    # A blocking exchange is fine: the kernel answers within the send. gevent's socket would take longer to be made.
    netlink = _socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    try:
        netlink.send(request)
        answer = netlink.recv(8192)
    finally:
        netlink.close()
    return _owner(answer, request)


def _owner(answer: bytes, request: bytes) -> Owner | None:
    length, kind, _, _, _ = _NETLINK_HEADER.unpack_from(answer)
    body = answer[_NETLINK_HEADER.size : length]
    if kind != _SOCK_DIAG_BY_FAMILY or len(body) < _ANSWER_MIN_BYTES:
        return None  # NLMSG_ERROR: no such socket
    if body[4:40] != request[_NETLINK_HEADER.size + 8 : _NETLINK_HEADER.size + 44]:
        return None  # another socket than the one asked for
    uid, inode = struct.unpack_from("=II", body, _ANSWER_UID_OFFSET)
    return Owner(int(uid), int(inode)) if inode != 0 else None


# ---------------------------------------------------------------------------------------------- all connections


def connections(server: Address) -> list[Tcp]:
    """Every open TCP socket of this machine except both ends of the connections to the server at this address, which
    may be thousands of agents'. Blocking. Raises OSError, and ValueError for an invalid address."""
    found: list[Tcp] = []
    its_family, its_address = _packed(server[0])
    for family in _FAMILIES:
        _list(family, _all_but(family, server[1], its_address if family == its_family else b""), found)
    return found


def listeners() -> set[Address]:
    """The addresses at which programs of this machine listen: a tenth of a millisecond. Raises OSError."""
    found: list[Tcp] = []
    for family in _FAMILIES:
        _list(family, b"", found, 1 << _LISTEN)
    return {one.local for one in found}


def plain_address(address: tuple[Any, ...]) -> Address:
    """The address of a socket as in a `Tcp`: an IPv4 client of a dual-stack listener has its IPv4 address."""
    return _text(*_packed(address[0])), int(address[1])


def _list(family: int, program: bytes, found: list[Tcp], states: int = _OPEN_STATES) -> None:
    # On a separate netlink socket: each runs one dump at a time.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(_READ_TIMEOUT_S), 0))
        descriptor = netlink.fileno()
        os.write(descriptor, _dump_request(int(family), program, states))
        while _take(os.read(descriptor, _READ_BYTES), found):
            pass


def _all_but(family: int, port: int, peer: bytes) -> bytes:
    # A program that selects all sockets except those with the own port `port` and those connected to `peer` at `port`.
    # A jump to the end of the program selects the socket, a jump beyond it rejects it. The kernel refuses a program
    # with a jump to a step that the sequence of "yes" jumps does not reach; some "yes" jumps exist only for this
    # reason.
    other_ends = b""
    if peer:
        bits = 32 if family == socket.AF_INET else 128
        size = _OP.size + _HOST.size + bits // 8
        other_ends = (
            _OP.pack(_PEER, size, size + 4) + _HOST.pack(family, bits, port) + peer[: bits // 8] + _OP.pack(_JUMP, 4, 8)
        )
    return (
        _OP.pack(_SPORT_LE, 8, 12)
        + _OP.pack(0, 0, max(0, port - 1))
        + _OP.pack(_JUMP, 4, 12)
        + _OP.pack(_SPORT_GE, 8, 12 + len(other_ends))
        + _OP.pack(0, 0, min(65_535, port + 1))
        + other_ends
    )


def _dump_request(family: int, program: bytes, states: int) -> bytes:
    """`program` b"": all sockets in these states."""
    body = (
        _REQUEST.pack(family, _IPPROTO_TCP, 0, 0, states)
        + _SOCKET_ID.pack(0, 0, b"", b"")
        + _SOCKET_ID_TAIL.pack(0, _NO_COOKIE, _NO_COOKIE)
        + (_ATTRIBUTE.pack(_ATTRIBUTE.size + len(program), _BYTECODE) + program if program else b"")
    )
    length = _NETLINK_HEADER.size + len(body)
    return _NETLINK_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body


def _take(data: bytes, found: list[Tcp]) -> bool:
    """Add the sockets in a part of the dump. Returns False at its end."""
    at = 0
    while at + _NETLINK_HEADER.size <= len(data):
        length, kind, _, _, _ = _NETLINK_HEADER.unpack_from(data, at)
        if kind == _NLMSG_DONE:
            return False
        if kind == _NLMSG_ERROR or length < _NETLINK_HEADER.size:
            code = struct.unpack_from("=i", data, at + _NETLINK_HEADER.size)[0] if kind == _NLMSG_ERROR else 0
            raise OSError(-code or 5, "the kernel does not list its sockets")
        if kind == _SOCK_DIAG_BY_FAMILY and length >= _NETLINK_HEADER.size + _ANSWER_MIN_BYTES:
            found.append(_tcp(data, at + _NETLINK_HEADER.size))
        at += (length + 3) & ~3
    return True


def _tcp(data: bytes, at: int) -> Tcp:
    family, state, local_port, peer_port, local, peer = _MESSAGE.unpack_from(data, at)
    uid, inode = struct.unpack_from("=II", data, at + _ANSWER_UID_OFFSET)
    return Tcp(
        (_text(family, local), local_port), (_text(family, peer), peer_port), state == _LISTEN, int(uid), int(inode)
    )


def _text(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    if packed.startswith(b"\0" * 10 + b"\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)
