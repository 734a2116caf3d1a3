"""Detects whether a local connection was opened by the caller itself or by a forwarder: the end of an `ssh -L`, a
socat, a reverse proxy. The kernel reports only the socket's owner, which for a forwarder is the manager's user.

Owns the search for the process (its sockets: process_sockets.py) and the criteria for a forwarder:

- it is an sshd, an ssh client or another program known for tunnels (FORWARDERS);
- it listens for other machines;
- it has accepted a connection of another machine, another user, an sshd, or an unknown process.

Not detected: a forwarder behind a forwarder, one that receives its input through a pipe or a Unix socket, a reverse
tunnel of an unknown program, and root's processes if the manager is not root (their descriptors are not readable).
docs/security.md lists these. Knows processes and sockets, not HTTP.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

import gevent
import gevent.lock
from gevent.event import AsyncResult

from procguard.errors import LimitExceeded
from procguard.portal.auth import peer_uid, process_sockets
from procguard.portal.auth.peer_uid import Address, Owner, Tcp

log = logging.getLogger(__name__)

# By the first 15 characters of their names, as the kernel keeps them.
FORWARDERS = frozenset(
    {
        "sshd",
        "sshd-session",
        "ssh",
        "autossh",
        "dropbear",
        "dbclient",
        "socat",
        "ncat",
        "rinetd",
        "redir",
        "stunnel",
        "stunnel4",
        "haproxy",
        "nginx",
        "caddy",
        "envoy",
        "traefik",
        "kubectl",
        "frpc",
        "chisel",
        "ngrok",
        "cloudflared",
        "bore",
        "rathole",
        "gost",
        "tailscaled",
        "code-tunnel",
        "systemd-socket-",
    }
)
KEPT = 1_000  # connections whose process is remembered
RECENT = 4  # processes that are checked first: a browser opens six connections at once
MAX_WAITING = 2_000  # connections that wait for a check
TOGETHER = 64  # connections per check
FEW = 48  # descriptors of a process that are read on the event loop
_UNSEEN = "the process that opened the connection cannot be seen (sshd, for ssh -L?)"


class _Question(NamedTuple):
    client: Address
    server: Address
    answer: AsyncResult[str]


class LocalClients:
    """`why_forwarded` may be called by any greenlet. /proc is read in a thread, once for all pending callers; a result
    is never older than the call. A known connection of a small process is checked directly, which takes less time than
    a thread switch."""

    def __init__(self) -> None:
        self._holders: OrderedDict[int, tuple[int, ...]] = OrderedDict()  # inode of a socket -> pids
        self._own: set[int] = set()  # of these, those that were not forwarded at the last check
        self._asked: list[_Question] = []
        self._greenlet: Any = None
        self._listing = gevent.lock.Semaphore()
        self._to_list = 0

    def listed_uid(self, client: Address, server: Address) -> int | None:
        """The owner's uid from the kernel's list, for a connection that the exact lookup missed; one list at a time.
        None if it was closed. Raises LimitExceeded if too many callers wait."""
        self._check_room(self._to_list)
        self._to_list += 1
        try:
            with self._listing:
                began = time.monotonic()
                owner = gevent.get_hub().threadpool.apply(_listed_owner, (client, server))
                gevent.sleep(time.monotonic() - began)  # limits a client that closes many connections to half a core
        finally:
            self._to_list -= 1
        return None if owner is None else owner.uid

    def why_forwarded(self, client: Address, server: Address) -> str:
        """ "" if the caller opened the connection itself; otherwise the reason why it counts as forwarded. Raises
        LimitExceeded if too many callers wait."""
        if self._own_still(client, server):
            return ""
        self._check_room(len(self._asked))
        question = _Question(client, server, AsyncResult())
        self._asked.append(question)
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._answer_all)
        return str(question.answer.get())

    def _own_still(self, client: Address, server: Address) -> bool:
        """Whether this connection was found to be its process's own, and the process serves nobody now."""
        owner = peer_uid.owner(client, server)
        if owner is None or owner.inode not in self._own:
            return False
        seen = _Seen()
        try:
            pids = self._holders.get(owner.inode, ())
            if any(len(os.listdir(f"/proc/{pid}/fd")) > FEW for pid in pids):
                return False
            return bool(self._known(owner.inode, seen)) and _only_asks(pids, seen, server, self._holders)
        except OSError:  # it has ended meanwhile
            return False

    @staticmethod
    def _check_room(waiting: int) -> None:
        if waiting >= MAX_WAITING:
            raise LimitExceeded.for_now(
                "too many connections of this machine are being checked", "send it again", 1, "limit_exceeded"
            )

    def _answer_all(self) -> None:
        try:
            while self._asked:
                questions, self._asked = self._asked[:TOGETHER], self._asked[TOGETHER:]
                began = time.monotonic()
                try:
                    answers = gevent.get_hub().threadpool.apply(self._examine, ([one[:2] for one in questions],))
                except Exception as exc:
                    log.exception("local connections cannot be looked at")
                    answers = [f"the connection's process cannot be determined ({type(exc).__name__})"] * len(questions)
                for question, answer in zip(questions, answers, strict=True):
                    question.answer.set(answer)
                if self._asked:  # limits many requests through a forwarder to half a core
                    gevent.sleep(time.monotonic() - began)
        finally:
            self._greenlet = None

    def _examine(self, ends: list[tuple[Address, Address]]) -> list[str]:
        seen = _Seen()
        return [self._why(client, server, seen) for client, server in ends]

    def _why(self, client: Address, server: Address, seen: _Seen) -> str:
        try:
            owner = _owner_of(client, server)
            if owner is None:
                return "the connection's owner cannot be determined"
            if owner.uid == 0 and os.geteuid() != 0:
                return ""  # root's processes are not readable; root on this machine has all rights anyway
            pids = self._known(owner.inode, seen) or self._recent(owner, seen) or holders(owner.inode, owner.uid)
            if not pids:
                return _UNSEEN
            self._remember(owner.inode, pids)
            reason = _why(pids, owner.uid, seen, server, self._holders)
            (self._own.discard if reason else self._own.add)(owner.inode)
            return reason
        except OSError as exc:
            return f"the connection's process cannot be determined ({exc.strerror or exc})"

    def _known(self, inode: int, seen: _Seen) -> tuple[int, ...]:
        """The processes found earlier that still have the socket."""
        pids = self._holders.get(inode, ())
        return pids if pids and all(inode in seen.sockets_of(pid) for pid in pids) else ()

    def _recent(self, owner: peer_uid.Owner, seen: _Seen) -> tuple[int, ...]:
        """Recently seen processes that have the socket, and their ancestors that share it."""
        newest = itertools.islice(reversed(self._holders.values()), RECENT)
        for pid in dict.fromkeys(pids[0] for pids in newest):
            if _uid_of(pid) == owner.uid and owner.inode in seen.sockets_of(pid):
                return (pid, *(one for one in _ancestors(pid) if owner.inode in seen.sockets_of(one)))
        return ()

    def _remember(self, inode: int, pids: tuple[int, ...]) -> None:
        self._holders[inode] = pids
        self._holders.move_to_end(inode)
        while len(self._holders) > KEPT:
            forgotten, _ = self._holders.popitem(last=False)
            self._own.discard(forgotten)


def _listed_owner(client: Address, server: Address) -> peer_uid.Owner | None:
    try:
        return peer_uid.listed_owner(client, server)
    except (OSError, ValueError) as exc:
        log.info("the owner of a local connection cannot be found in the kernel's list: %s", exc)
        return None


class _Seen:
    """The observations of one check: each is read at most once and discarded afterwards."""

    def __init__(self) -> None:
        self._sockets: dict[int, dict[int, int]] = {}
        self._tables: dict[Address, list[Tcp]] = {}
        self._listening: set[Address] | None = None

    def sockets_of(self, pid: int) -> dict[int, int]:
        """Inode -> descriptor."""
        found = self._sockets.get(pid)
        if found is None:
            found = self._sockets[pid] = process_sockets.sockets_of(pid)
        return found

    def tcp_sockets(self, pids: tuple[int, ...], server: Address, without: Container[int]) -> list[Tcp] | None:
        """The TCP sockets of these processes except those of the server and connected to it, and the inodes in
        `without`; None if the kernel does not allow to look at them."""
        found: list[Tcp] = []
        for pid in pids:
            own = process_sockets.tcp_sockets(pid, self.sockets_of(pid), without)
            if own is None:
                return None
            found += [one for one in own if server not in (one.local, one.peer)]
        return found

    def connections(self, server: Address) -> list[Tcp]:
        """All connections except those of the server."""
        found = self._tables.get(server)
        if found is None:
            found = self._tables[server] = peer_uid.connections(server)
        return found

    def listening(self) -> set[Address]:
        """Where the programs of this machine listen."""
        if self._listening is None:
            self._listening = peer_uid.listeners()
        return self._listening


def _why(pids: tuple[int, ...], uid: int, seen: _Seen, server: Address, lead_here: Container[int] = frozenset()) -> str:
    """`lead_here`: inodes of connections to the manager. The machine's socket table, which may have tens of thousands
    of rows, is read only if the process has other sockets and the kernel does not allow to look at them. Inode numbers
    increase and are not reused for a long time."""
    for pid in pids:
        name = name_of(pid)
        if name in FORWARDERS:
            return f"the connection is {name}'s (process {pid}), which forwards requests of others"
    others = _others(pids, seen, lead_here)
    if not others:
        return ""
    own = seen.tcp_sockets(pids, server, lead_here)
    if own is not None:
        return _why_serving(pids, uid, own, seen.listening(), lambda one: _owner_of(one.peer, one.local))
    table = seen.connections(server)
    listening = {one.local for one in table if one.listens}
    ends = {(one.local, one.peer): one for one in table if not one.listens}
    own = [one for one in table if one.inode in others]
    return _why_serving(pids, uid, own, listening, lambda one: ends.get((one.peer, one.local)))


def _why_serving(
    pids: tuple[int, ...],
    uid: int,
    own: list[Tcp],
    listening: set[Address],
    other_end: Callable[[Tcp], Tcp | Owner | None],
) -> str:
    """`own`: the sockets of the process. `other_end`: the other end of an accepted connection, if it is on this
    machine."""
    ephemeral = _ephemeral_ports()
    for one in own:
        if one.listens:
            if not _is_loopback(one.local[0]):
                return f"{_asker(pids)}, which listens for other machines (port {one.local[1]})"
        elif _accepted(one, listening, ephemeral):
            reason = _why_not_ours(other_end(one), uid)
            if reason:
                return f"{_asker(pids)}, which serves {reason} (port {one.local[1]})"
    return ""


def _only_asks(pids: tuple[int, ...], seen: _Seen, server: Address, lead_here: Container[int]) -> bool:
    """Whether the process is no known forwarder, listens to no other machine and has accepted no connection; False if
    that takes more than some descriptors to find out."""
    if any(name_of(pid) in FORWARDERS for pid in pids):
        return False
    if not _others(pids, seen, lead_here):
        return True
    own = seen.tcp_sockets(pids, server, lead_here)
    if own is None:
        return False
    ephemeral = _ephemeral_ports()
    return not any(
        not _is_loopback(one.local[0]) if one.listens else _accepted(one, seen.listening(), ephemeral) for one in own
    )


def _owner_of(client: Address, server: Address) -> Owner | None:
    """The owner of the client's end, by the exact lookup or, because that may miss it, from the list."""
    return peer_uid.owner(client, server) or _listed_owner(client, server)


def _asker(pids: tuple[int, ...]) -> str:
    return f"the connection is {name_of(pids[0])}'s (process {pids[0]})"


def _others(pids: tuple[int, ...], seen: _Seen, lead_here: Container[int]) -> set[int]:
    return {inode for pid in pids for inode in seen.sockets_of(pid) if inode not in lead_here}


def _accepted(one: Tcp, listening: set[Address], ephemeral: range) -> bool:
    """Whether the process accepted this connection. If the listener is gone, a local port below the ephemeral range
    indicates it."""
    host, port = one.local
    return port not in ephemeral or bool({(host, port), ("0.0.0.0", port), ("::", port)} & listening)


def _why_not_ours(other: Tcp | Owner | None, uid: int) -> str:
    """Why the other end of an accepted connection is not a program of the same user on this machine; "" if it is."""
    if other is None:
        return "another machine"
    if other.inode == 0:
        return "a process that has exited"
    if other.uid not in (uid, 0):
        return f"uid {other.uid}"
    if other.uid == 0 and os.geteuid() != 0:
        return ""
    pids = holders(other.inode, other.uid)
    if not pids:
        return "a process that cannot be seen"
    name = name_of(pids[0])
    return f"{name} (process {pids[0]})" if name in FORWARDERS else ""


# ---------------------------------------------------------------------------------------------------------- /proc


def holders(inode: int, uid: int) -> tuple[int, ...]:
    """The processes of this user that have the socket: the newest, then those of its ancestors that share it."""
    wanted = f"socket:[{inode}]"
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True):
        if _uid_of(pid) == uid and _holds(pid, wanted):
            return (pid, *(one for one in _ancestors(pid) if _holds(one, wanted)))
    return ()


def _uid_of(pid: int) -> int:
    """The uid of a process; -1 if it has ended meanwhile."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def _holds(pid: int, wanted: str) -> bool:
    return any(link == wanted for _, link in process_sockets.links(pid))


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return
        if pid > 1:
            yield pid


def name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
            text = file.read().decode(errors="replace").strip()
    except OSError:
        return "?"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _ephemeral_ports() -> range:
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
            first, last = map(int, file.read().split())
    except (OSError, ValueError):
        return range(32_768, 61_000)
    return range(first, last + 1)


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")
