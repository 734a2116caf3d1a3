"""Files that the managers of a fleet share through the database: the fleet's CA, and host keys.

All managers use the CA that the first one created, so that agents trust any leader. Host keys are synchronised in both
directions: keys of hosts that ~/.ssh/known_hosts lacks are added to it. Private SSH keys are not shared. Handles files
and texts only; does not interpret CA or keys.
"""

from __future__ import annotations

import json
import os

from procguard.errors import ProcGuardError
from procguard.fleet.store import leader_row
from procguard.fleet.store.postgres_link import Connection
from remote_agent.system import paths

CA, HOST_KEYS = "ca", "known_hosts"
MAX_KNOWN_HOSTS_BYTES = 4 * 2**20
_CA_FILES = (("ca.pem", 0o644), ("ca.key", 0o600))


def own_known_hosts() -> str:
    return os.path.expanduser("~/.ssh/known_hosts")


def sync_ca(connection: Connection, directory: str) -> None:
    """Copy the shared CA to `directory`, or share the one in `directory` if there is none. Raises ProcGuardError if
    both exist and differ."""
    own = _read_ca(directory)
    shared = leader_row.shared(connection, CA)
    if shared is None:
        if own is not None:
            leader_row.share(connection, CA, json.dumps(own), replace=False)
            shared = leader_row.shared(connection, CA)
        if shared is None:
            return
    files: dict[str, str] = json.loads(shared)
    if own is None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for name, mode in reversed(_CA_FILES):  # the key first, because the existence of ca.pem indicates a CA
            paths.write_atomic(os.path.join(directory, name), files[name].encode(), mode, durable=True)
    elif own != files:
        raise ProcGuardError(
            f"web.tls: the CA in {directory} is not the one that the managers of this fleet share",
            f"move {directory} away and start this manager again: it takes the shared one from the database",
            code="bad_certificate",
        )


def _read_ca(directory: str) -> dict[str, str] | None:
    found = {}
    for name, _ in _CA_FILES:
        try:
            with open(os.path.join(directory, name), encoding="ascii") as file:
                found[name] = file.read()
        except FileNotFoundError:
            return None
    return found


class HostKeys:
    """`sync` is called periodically: it shares new local keys, and adds new shared ones to ~/.ssh/known_hosts."""

    def __init__(self, path: str = "") -> None:
        self.path = path or own_known_hosts()
        self._seen: tuple[int, int] = (0, 0)
        self._shared = ""

    def sync(self, connection: Connection) -> None:
        shared = leader_row.shared(connection, HOST_KEYS) or ""
        status = self._status()
        if status == self._seen and shared == self._shared:
            return
        own, theirs = _lines(self._read()), _lines(shared)
        known = {_subject(line) for line in own}  # a key that differs from a known one is never added
        self._append([line for line in theirs if _subject(line) not in known])
        together = "\n".join(dict.fromkeys([*theirs, *own])) + "\n"
        if len(together) <= MAX_KNOWN_HOSTS_BYTES and set(own) - set(theirs):
            leader_row.share(connection, HOST_KEYS, together)
            shared = together
        self._seen, self._shared = self._status(), shared

    def _status(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except OSError:
            return (0, 0)
        return found.st_mtime_ns, found.st_size

    def _read(self) -> str:
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                return file.read(MAX_KNOWN_HOSTS_BYTES)
        except OSError:
            return ""

    def _append(self, lines: list[str]) -> None:
        if not lines:
            return
        text = self._read()
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        with open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as file:
            file.write(("" if not text or text.endswith("\n") else "\n") + "".join(f"{line}\n" for line in lines))


def _lines(text: str) -> list[str]:
    """The host key lines, without comments and markers (@cert-authority, @revoked)."""
    return [line.strip() for line in text.splitlines() if len(line.split()) >= 3 and line.lstrip()[0] not in "#@"]


def _subject(line: str) -> tuple[str, str]:
    """(host names, key type) of a line."""
    name, kind = line.split()[:2]
    return name, kind
