"""http and tcp health checks, bounded in time.

`check` is a HealthCheck or has its fields. A check made with the rights of another user (user_process.py) loads only
what it needs.
"""

from __future__ import annotations

import socket
import time

from remote_agent.protocol.reasons import Reason, because


def probe(check: object, timeout_s: float) -> "tuple[bool, Reason]":
    """(healthy, detail for people). Raises any exception of the probe; ends within about `timeout_s`."""
    if getattr(check, "type", "") == "tcp":
        return _tcp(int(getattr(check, "port", 0)), timeout_s)
    return _http(str(getattr(check, "url", "")), timeout_s)


def _tcp(port: int, timeout_s: float) -> "tuple[bool, Reason]":
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s):
            return True, because("health.port_accepts", port=port)
    except OSError as exc:
        return False, because("health.port", port=port, error=exc.strerror or str(exc))


def _http(url: str, timeout_s: float) -> "tuple[bool, Reason]":
    """Any status from 200 to 399 is healthy. Reads the status line only, under one deadline for the whole exchange."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return False, because("health.scheme", url=url)
    deadline = time.monotonic() + timeout_s
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with socket.create_connection((parts.hostname, parts.port or 80), timeout_s) as connection:
            head_sent = f"GET {target} HTTP/1.0\r\nHost: {parts.netloc}\r\nUser-Agent: procguard\r\n\r\n"
            connection.sendall(head_sent.encode())
            head = b""
            while b"\n" not in head and len(head) < 4096:
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                data = connection.recv(1024)
                if not data or time.monotonic() > deadline:
                    break
                head += data
    except OSError as exc:
        return False, because("health.url", url=url, error=exc.strerror or str(exc))
    words = head.split(b"\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return False, because("health.no_answer", url=url, limit_s=timeout_s)
    status = int(words[1])
    return 200 <= status < 400, because("health.http", url=url, status=status)


def load() -> None:
    """Import what `probe` needs while the interpreter's files are still readable."""
    import urllib.parse  # noqa: F401

    "x".encode("idna")
