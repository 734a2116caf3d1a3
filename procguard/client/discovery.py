"""Finds the manager of this user on this machine: its https address and CA, for tools of the same user.

Owns /tmp/procguard-UID/manager-PORT.json, or the same in /var/tmp, in a directory that only this user can write to
(remote_agent's system/paths.py checks owner and mode). Written only by a manager that serves https.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from remote_agent.system import paths

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Known(NamedTuple):
    url: str
    ca_file: str
    any_name: bool


def announce(port: int, url: str, ca_file: str) -> None:
    for directory in _directories():  # the first that no other user owns; without one, tools need the CA's path
        with contextlib.suppress(OSError, paths.UnsafeDirectory):
            paths.ensure_private_dir(directory)
            paths.write_json(_file(directory, port), {"url": url, "ca_file": ca_file, "any_name": True})
            return


def withdraw(port: int) -> None:
    for directory in _directories():
        with contextlib.suppress(OSError, paths.UnsafeDirectory):
            paths.ensure_private_dir(directory, make=False)
            os.unlink(_file(directory, port))
            os.rmdir(directory)  # fails if agents of this machine still have files there


def find(url: str) -> Known | None:
    """What the manager at this loopback address has announced; None if there is no announcement, or for other
    addresses."""
    parts = urlsplit(url)
    if parts.hostname not in LOOPBACK:
        return None
    for directory in _directories():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, paths.UnsafeDirectory):
            paths.ensure_private_dir(directory, make=False)
            lines: Any = paths.read_json(_file(directory, parts.port or 443))
            return Known(str(lines["url"]), str(lines["ca_file"]), bool(lines["any_name"]))
    return None


def _directories() -> list[str]:
    return [os.path.join(shared, f"procguard-{os.getuid()}") for shared in paths.SHARED]  # owner and mode are checked


def _file(directory: str, port: int) -> str:
    return os.path.join(directory, f"manager-{port}.json")
