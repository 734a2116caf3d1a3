"""Syncs a project's code to one host over an open session, before its workers start: changed files only, by digest.

Owns the steps and their messages; source.py reads the local side, remote_agent the remote side. A folder with running
workers is left alone unless `under_running` is set.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from procguard.console import tables
from procguard.deploy.inventory.code import Sync
from procguard.deploy.session.session import HostSession
from procguard.deploy.sync import rsync_way
from procguard.deploy.sync.source import CodeSource, Sources
from procguard.errors import HostError
from procguard.json_types import Json

SYNC_TIMEOUT_S = 3600.0
STEP_TIMEOUT_S = 300.0  # timeout of a step without content
RSYNC_FROM_BYTES = 64 * 1024  # below this size, the open session is faster than starting rsync


@dataclass(frozen=True)
class Brought:
    """The result for one folder on one host. `names`: the first few of "+ new", "~ changed", "- gone"."""

    dest: str
    status: str  # same, changed, would_change, in_use
    text: str
    names: tuple[str, ...] = ()
    users: tuple[str, ...] = ()  # workers that run there
    way: str = ""  # rsync or session

    def as_json(self) -> Json:
        return {
            "dest": self.dest, "status": self.status, "text": self.text, "names": list(self.names),
            "workers_there": list(self.users), "way": self.way,
        }  # fmt: skip


class CodeSync:
    """Syncs the folders of a run; local folders are read once. Safe to use from several threads."""

    def __init__(self, *, check: bool, under_running: bool) -> None:
        self._check = check
        self._under_running = under_running
        self._sources = Sources()

    def read(self, syncs: Sequence[Sync]) -> None:
        """Read the local folders. Raises UsageError if one cannot be read, before any host is changed."""
        for sync in syncs:
            self._sources.of(sync)

    def bring(self, session: HostSession, sync: Sync, where: Json) -> Brought:
        """Sync one folder. Raises HostError; the folder is then unchanged, or the next sync detects that it is not."""
        source = self._sources.of(sync)
        found = self._ask(session, {"op": "code", **where, "dest": sync.dest, "digest": source.digest})["code"]
        users = tuple(str(one) for one in found.get("users") or ())
        if found["same"]:
            return Brought(sync.dest, "same", "nothing to do", users=users)
        packed = zlib.compress(json.dumps(source.manifest, separators=(",", ":")).encode(), 3)
        held = bool(users) and not self._under_running
        plan_request = {"op": "code_plan", **where, "check": self._check or held, "bytes": len(packed)}
        plan = self._ask(session, plan_request, [packed])["plan"]
        names = _names(plan)
        if not names:  # only the record was missing
            if not plan_request["check"]:
                self._finish(session, where)
            return Brought(sync.dest, "same", "nothing to do", users=users)
        text = _described(plan, source)
        if held:
            return Brought(sync.dest, "in_use", f"out of date ({text}), {', '.join(users)} run there", names, users)
        if self._check:
            return Brought(sync.dest, "would_change", f"would copy {text}", names, users)
        way = self._transfer(session, source, plan, found, where) if plan["needed"] else ""
        self._finish(session, where)
        by = " by rsync" if way == "rsync" else ""
        under = f", under {', '.join(users)}" if users else ""
        return Brought(sync.dest, "changed", f"{text}{by}{under}", names, users, way)

    def _finish(self, session: HostSession, where: Json) -> None:
        self._ask(session, {"op": "code_apply", **where, "under_running": self._under_running})
        self._ask(session, {"op": "code_end", **where})

    def _transfer(self, session: HostSession, source: CodeSource, plan: Json, found: Json, where: Json) -> str:
        """Transfer by rsync, or over the session if rsync fails. Returns the method used."""
        deadline = time.monotonic() + SYNC_TIMEOUT_S
        needed = [int(number) for number in plan["needed"]]
        program = shutil.which("rsync")
        if program and found.get("rsync") and session.beside and int(plan["bytes"]) >= RSYNC_FROM_BYTES:
            names = [source.names[number] for number in needed]
            try:
                rsync_way.bring(
                    program, source.root, names, str(found["incoming"]), str(found["path"]), session.beside, deadline
                )
                return "rsync"
            except HostError:
                self._ask(session, {"op": "code_again", **where})
        pack = self._sources.pack(source, needed)
        session.ask({"op": "code_content", **where, "bytes": pack.size}, deadline, pack.blocks())
        return "session"

    @staticmethod
    def _ask(session: HostSession, message: Json, data: Sequence[bytes] = ()) -> Json:
        return session.ask(message, time.monotonic() + STEP_TIMEOUT_S, data)


def _names(plan: Json) -> tuple[str, ...]:
    found: list[str] = []
    for mark, kind in (("+", "new"), ("~", "changed"), ("-", "gone")):
        found += [f"{mark} {name}" for name in plan[f"{kind}_names"]]
        more = int(plan[kind]) - len(plan[f"{kind}_names"])
        found += [f"{mark} … and {more} more"] if more > 0 else []
    return tuple(found)


def _described(plan: Json, source: CodeSource) -> str:
    """The summary for the recap: "3 files new, 1 changed, 2 removed, 1.2 MB"."""
    words = [f"{plan[kind]} {word}" for kind, word in (("new", "new"), ("changed", "changed"), ("gone", "removed"))
             if plan[kind]]  # fmt: skip
    if plan["bytes"]:
        words.append(tables.size(int(plan["bytes"])))
    if source.skipped:
        words.append(f"{len(source.skipped)} skipped that are not files")
    return ", ".join(words) or "nothing"
