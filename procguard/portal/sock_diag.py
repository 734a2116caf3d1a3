"""Which user owns the client end of a local TCP connection, asked from the kernel (NETLINK_SOCK_DIAG).

One exact look-up by the connection's four addresses, some 20 µs. It never guesses: a socket that is closed, in
TIME_WAIT or unknown has no owner. (A closed one is shown with uid 0 and inode 0: the trap this module exists for.)
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct

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

Address = tuple[str, int]


def owner_uid(client: Address, server: Address) -> int | None:
    """The uid that owns the socket whose local address is `client` and whose peer is `server`.

    None: it can't be known (closed, gone, not on this machine, or the kernel has no such interface).
    """
    try:
        family, source = _packed(client[0])
        other_family, destination = _packed(server[0])
        if family != other_family:
            return None
        return _ask(_request(family, source, client[1], destination, server[1]))
    except (OSError, ValueError, struct.error):
        return None


def _packed(address: str) -> tuple[int, bytes]:
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped  # a dual-stack listener shows IPv4 clients so
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


def _ask(request: bytes) -> int | None:
    # A plain blocking exchange: the kernel answers within the send, nothing is waited for.
    descriptor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG).detach()
    try:
        os.write(descriptor, request)
        answer = os.read(descriptor, 8192)
    finally:
        os.close(descriptor)
    return _uid(answer, request)


def _uid(answer: bytes, request: bytes) -> int | None:
    length, kind, _, _, _ = _NETLINK_HEADER.unpack_from(answer)
    body = answer[_NETLINK_HEADER.size : length]
    if kind != _SOCK_DIAG_BY_FAMILY or len(body) < _ANSWER_MIN_BYTES:
        return None  # NLMSG_ERROR: no such socket
    if body[4:40] != request[_NETLINK_HEADER.size + 8 : _NETLINK_HEADER.size + 44]:
        return None  # another socket than the one asked for
    uid, inode = struct.unpack_from("=II", body, _ANSWER_UID_OFFSET)
    return int(uid) if inode != 0 else None
