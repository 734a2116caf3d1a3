"""How a manager of this user on this machine is reached: its https address and CA, for the tools of the same user.

Owns /tmp/procguard-UID/manager-PORT.json, in a directory that is nobody else's (remote_agent/paths.py checks owner and
mode). Written only by a manager that speaks https: plain http needs no telling.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from remote_agent import paths

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Known(NamedTuple):
    url: str
    ca_file: str
    any_name: bool


def announce(port: int, url: str, ca_file: str) -> None:
    with contextlib.suppress(OSError, paths.UnsafeDirectory):  # the tools then have to be told
        paths.ensure_private_dir(_directory())
        paths.write_json(_file(port), {"url": url, "ca_file": ca_file, "any_name": True})


def withdraw(port: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink(_file(port))
        os.rmdir(_directory())  # agents of this machine may still have theirs


def find(url: str) -> Known | None:
    """What the manager behind this address of this machine has announced, if it has."""
    parts = urlsplit(url)
    if parts.hostname not in LOOPBACK:
        return None
    try:
        paths.ensure_private_dir(_directory(), make=False)
        told: Any = paths.read_json(_file(parts.port or 443))
        return Known(str(told["url"]), str(told["ca_file"]), bool(told["any_name"]))
    except (OSError, ValueError, KeyError, TypeError, paths.UnsafeDirectory):
        return None


def _directory() -> str:
    return f"/tmp/procguard-{os.getuid()}"  # noqa: S108 - owner and mode are checked


def _file(port: int) -> str:
    return os.path.join(_directory(), f"manager-{port}.json")
