"""Requests of another user of this machine: a process with a uid of its own, told over stdin what to ask.

`python -I -S tests/other_user.py PORT`: each line of stdin is [method, target, headers, body]; it prints the status.
A line that begins with "vanish" is a list of those: each is sent over a connection of its own that is closed at once,
whether or not anybody has accepted it. Standard library only; reads no file of the project.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOBODY = 65534


class OtherUser:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, method: str, target: str, headers: dict[str, str], body: str | None = None) -> int:
        return int(self._ask(json.dumps([method, target, headers, body])))

    def vanish(self, requests: list[tuple[str, str, dict[str, str], str | None]]) -> int:
        """Returns how many were sent."""
        return int(self._ask("vanish " + json.dumps(requests)))

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the other user's process ended"
        return answer


@contextlib.contextmanager
def other_user(port: int) -> Iterator[OtherUser]:
    """Only root can become somebody else."""
    source = Path(__file__).read_text(encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", source, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        text=True,
    )
    try:
        yield OtherUser(process)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


def main(port: int) -> None:
    "x".encode("idna")  # while the interpreter's files can still be read
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for line in sys.stdin:
        if line.startswith("vanish "):
            answer: Any = _vanish(port, json.loads(line.removeprefix("vanish ")))
        else:
            method, target, headers, body = json.loads(line)
            connection.request(method, target, body, headers)
            with connection.getresponse() as reply:
                answer = reply.status
                reply.read()
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _vanish(port: int, requests: list[Any]) -> int:
    for method, target, headers, body in requests:
        data = (body or "").encode()
        head = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        head += [f"Content-Length: {len(data)}", "Connection: close"]
        with socket.create_connection(("127.0.0.1", port), 20) as sock:
            sock.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + data)
    return len(requests)


if __name__ == "__main__":
    main(int(sys.argv[1]))
