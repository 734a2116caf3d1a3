"""Whose socket listens on a port of this machine: a tunnel's end must be this user's own relay.

The proof that an agent demands of the manager can be passed on by whoever stands between. On a tunnel's port that would
be another user of this host who took it while the relay was away; the kernel knows better.
"""

from __future__ import annotations

import os
import socket
import struct

LISTENING = "0A"
MAX_LINES = 200_000


def is_own_listener(port: int, uid: int = -1, table: str = "/proc/net/tcp") -> bool:
    """Whether the socket that listens on 127.0.0.1:`port` belongs to this user. False where there is none."""
    wanted = "%08X:%04X" % (struct.unpack("=I", socket.inet_aton("127.0.0.1"))[0], port)
    owner = os.getuid() if uid < 0 else uid
    with open(table, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines):
            words = line.split(None, 8)
            if len(words) > 7 and words[1] == wanted and words[3] == LISTENING:
                return words[7] == str(owner)
            if number > MAX_LINES:
                break
    return False
