"""`invoke fetch`: copies files of many hosts to ./fetched/<host>/…, under their absolute paths.

Names and contents come from hosts and are untrusted: nothing is written outside the host's own folder, and a file
appears only when it is complete. Knows sessions, not terminals; one host never hides the others.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from procguard.console import tables
from procguard.deploy.install.rollout import HostResult, Listener, Rollout, RolloutPlan
from procguard.deploy.session.session import HostSession, Sessions
from procguard.errors import HostError, UsageError
from procguard.json_types import Json
from remote_agent.install.files import PIECE_BYTES
from remote_agent.protocol import messages

if TYPE_CHECKING:
    from procguard.deploy.inventory.model import Host

HOST_TIMEOUT_S = 120.0  # to connect and to list the files
FETCH_TIMEOUT_S = 3600.0
PAUSE_S = 60.0  # maximum time without a byte received


@dataclass(frozen=True)
class Wanted:
    path: str
    max_bytes: int
    max_files: int


class Fetcher:
    def __init__(self, sessions: Sessions, listener: Listener, folder: Path, forks: int) -> None:
        self._sessions = sessions
        self._listener = listener
        self._folder = folder
        self._rollout = Rollout(RolloutPlan(forks), listener)

    def fetch(self, hosts: list[Host], wanted: Wanted) -> list[HostResult]:
        """Fetch from all hosts. One result per host; `report` = {"files", "bytes", "folder"}."""
        for host in hosts:
            if not messages.valid_id(host.name):
                raise UsageError(f"{host.name!r} is not a valid folder name", "rename the host in the inventory")
        return self._rollout.run(hosts, lambda _wave: None, lambda host, _, result: self._one(host, wanted, result))

    def _one(self, host: Host, wanted: Wanted, result: HostResult) -> None:
        self._listener.stage(host.name, "connect")
        deadline = time.monotonic() + HOST_TIMEOUT_S
        with self._sessions.session(host.target, deadline) as session:
            self._listener.stage(host.name, "fetch")
            request = {
                "op": "fetch", "path": wanted.path, "max_bytes": wanted.max_bytes, "max_files": wanted.max_files,
            }  # fmt: skip
            found = session.ask(request, deadline)["found"]
            if int(found["files"]) > wanted.max_files:
                raise HostError(f"{host.name}: sent more files than requested", "check that this is the expected host")
            into = self._folder / host.name
            result.report = {"files": 0, "bytes": 0, "folder": str(into), "left_out": int(found["left_out"])}
            unread = self._receive(session, int(found["files"]), wanted.max_bytes, into, result.report)
        left = f", {found['left_out']} links and similar entries skipped" if found["left_out"] else ""
        size = tables.size(result.report["bytes"])
        result.changes.append(f"{result.report['files']} files, {size} in {into}{left}")
        if unread:
            raise HostError(
                f"{host.name}: {len(unread)} files could not be read, {unread[0]} among them",
                "check who may read them on the host", code="unreadable",
            )  # fmt: skip

    @staticmethod
    def _receive(session: HostSession, files: int, max_bytes: int, into: Path, report: Json) -> list[str]:
        """Receive the files; returns the names of those that the host could not read."""
        end, unread = time.monotonic() + FETCH_TIMEOUT_S, []
        for _ in range(files):
            header = session.answer(min(end, time.monotonic() + PAUSE_S))["file"]
            target = place(into, str(header["name"]))
            with _new_file(target) as new:
                while True:
                    size = session.take_number(min(end, time.monotonic() + PAUSE_S))
                    if size <= 0:
                        break
                    report["bytes"] += size
                    if size > PIECE_BYTES or report["bytes"] > max_bytes:
                        raise HostError(f"{target.name}: received more bytes than announced", "fetch it again")
                    new.write(session.take(size, min(end, time.monotonic() + PAUSE_S)))
                if size < 0:
                    unread.append(str(header["name"]))
                else:
                    new.keep(float(header["mtime"]))
                    report["files"] += 1
        return unread


def place(into: Path, name: str) -> Path:
    """The local path of a host's file: its absolute path below `into`. Raises HostError for a name that leads
    elsewhere."""
    parts = name.split("/")
    if parts[0] != "" or any(part in ("", ".", "..") or "\0" in part for part in parts[1:]) or len(parts) < 2:
        raise HostError(f"a host sent a file with an invalid name:  {name!r}", "check that this is the expected host")
    return into.joinpath(*parts[1:])


class _NewFile:
    def __init__(self, target: Path) -> None:
        self._target = target
        self._part = target.with_name(f".{target.name[:200]}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._part.unlink()
        fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        self._out = os.fdopen(fd, "wb")
        self._kept = False

    def write(self, data: bytes) -> None:
        self._out.write(data)

    def keep(self, mtime: float) -> None:
        self._out.close()
        os.utime(self._part, (mtime, mtime))
        os.replace(self._part, self._target)
        self._kept = True

    def close(self) -> None:
        self._out.close()
        if not self._kept:
            self._part.unlink(missing_ok=True)


@contextlib.contextmanager
def _new_file(target: Path) -> Any:
    try:
        new = _NewFile(target)
        try:
            yield new
        finally:
            new.close()
    except OSError as exc:
        what = f"cannot write {target} ({exc.strerror or exc})"
        raise HostError(what, "check the free space and existing files") from exc
