"""Replaces ssh for rsync: connects rsync's two pipes to a socket of the deployer.

    python -I -S rsync_bridge.py FD HOST rsync --server …

Sends the command's words as one JSON line, then relays bytes in both directions. Imports the standard library only.
"""

import json
import os
import socket
import sys
import threading


def main() -> int:
    end = socket.socket(fileno=int(sys.argv[1]))
    end.sendall(json.dumps(sys.argv[3:]).encode() + b"\n")

    def hand_on() -> None:
        for data in iter(lambda: os.read(0, 64 * 1024), b""):
            end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    threading.Thread(target=hand_on, daemon=True).start()
    for data in iter(lambda: end.recv(64 * 1024), b""):
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
    return 0


if __name__ == "__main__":
    sys.exit(main())
