"""The part of the installer's session that syncs a project's code: one folder at a time, identified by its digest.

    -> {"op": "code", "dest": "~/project", "digest": "…"}       <- {"code": {"path", "same", "users", "rsync"}}
    -> {"op": "code_plan", "check": false, "bytes": n}, then n bytes: the manifest as JSON, zlib-packed
                                                                <- {"plan": {"needed": [3, 17], "bytes", "changed", …}}
    -> {"op": "code_content", "bytes": n}, then n bytes: the needed files, concatenated and zlib-packed
       (or rsync has put them below `incoming`)                 <- {"received": true}
    -> {"op": "code_again"}: rsync failed; removes its remains          <- {"ready": true}
    -> {"op": "code_apply", "under_running": false}             <- {"applied": true}
    -> {"op": "code_end"}                                       <- {"ended": true}

`needed`: indices into the sorted names of the manifest's files. From `code_plan` (without "check") to `code_end`, or to
the session's end, the folder is locked. Owns the messages; folder.py performs the operations.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib

from remote_agent.install.installer import Installer
from remote_agent.install.project_sync.folder import BLOCK_BYTES, CodeFolder, checked
from remote_agent.install.project_sync.users import users
from remote_agent.install.release import InstallError
from remote_agent.protocol.hints import IO, Any, Callable, Dict, List, Optional

MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_NAMED = 50  # names in an answer: for --diff

Json = Dict[str, Any]


class CodeSession:
    def __init__(self, source: "IO[bytes]") -> None:
        self._source = source
        self._folder: "Optional[CodeFolder]" = None
        self._installer: "Optional[Installer]" = None
        self._manifest: Json = {}
        self._plan: Json = {}
        self._lock = contextlib.ExitStack()

    def do(self, request: Json, installer: Installer) -> Json:
        op = request["op"]
        if op == "code":
            self._end()
            self._folder, self._installer = CodeFolder(str(request["dest"]), installer.home), installer
            return {"code": self._describe(str(request["digest"]))}
        if op == "code_end":
            return self._end()
        if self._folder is None:
            raise InstallError("bad_request", f"{op} before code", "deploy again")
        steps: "Dict[str, Callable[[Json, CodeFolder], Json]]" = {
            "code_plan": self._planned,
            "code_content": self._received,
            "code_again": self._emptied,
            "code_apply": self._applied,
        }
        if op not in steps:
            raise InstallError("bad_request", f"unknown operation: {op}", "deploy again")
        return steps[op](request, self._folder)

    def _describe(self, digest: str) -> Json:
        assert self._folder is not None
        return {
            "path": self._folder.path,
            "same": self._folder.same(digest),
            "users": self._users(),
            # rsync would run as this user, which must not write into another user's folder.
            "rsync": self._folder.actor is None and bool(shutil.which("rsync")),
            "incoming": self._folder.incoming,
        }

    def _users(self) -> "List[str]":
        assert self._folder is not None and self._installer is not None
        one = self._installer
        return users(self._folder.path, one.home, one.dir, str(one.config().get("runtime_dir") or ""))

    def _planned(self, request: Json, folder: CodeFolder) -> Json:
        size = int(request["bytes"])
        if not 0 < size <= MAX_MANIFEST_BYTES:
            raise InstallError("bad_manifest", f"a list of {size} bytes is refused", "exclude what is not code")
        packed = self._source.read(size)
        unpack = zlib.decompressobj()
        text = unpack.decompress(packed, 4 * MAX_MANIFEST_BYTES)
        self._manifest = checked(json.loads(text))
        if not request.get("check"):
            self._lock.enter_context(folder.locked())
        self._plan = folder.plan(self._manifest)
        if not request.get("check") and self._plan["needed"]:
            folder.make_room(self._plan["bytes"])
        number = {name: at for at, name in enumerate(sorted(self._manifest["files"]))}
        summary: Json = {"needed": [number[name] for name in self._plan["needed"]], "bytes": self._plan["bytes"]}
        for kind in ("new", "changed", "gone"):
            summary[kind] = len(self._plan[kind])
            summary[f"{kind}_names"] = sorted(self._plan[kind])[:MAX_NAMED]
        return {"plan": summary}

    def _received(self, request: Json, folder: CodeFolder) -> Json:
        left = int(request["bytes"])

        def read() -> bytes:
            nonlocal left
            data = self._source.read1(min(left, BLOCK_BYTES)) if left else b""  # type: ignore[attr-defined]
            left -= len(data)
            return bytes(data)

        try:
            folder.receive(self._plan["needed"], self._manifest, read)
        finally:
            while read():  # unused data must not be parsed as the next message
                pass
        return {"received": True}

    def _emptied(self, _request: Json, folder: CodeFolder) -> Json:
        folder.forget_incoming()
        folder.make_room(self._plan["bytes"])
        return {"ready": True}

    def _applied(self, request: Json, folder: CodeFolder) -> Json:
        at_work = [] if request.get("under_running") else self._users()
        if at_work:
            raise InstallError(
                "in_use",
                f"{folder.path}: {', '.join(at_work)} started there in the meantime",
                "stop it and deploy again",
            )
        folder.apply(self._manifest, self._plan)
        return {"applied": True}

    def _end(self) -> Json:
        self._lock.close()
        self._folder = None
        return {"ended": True}


def from_file(installer: Installer, dest: str, digest: str, archive: str, under_running: bool) -> Json:
    """Sync from a file, for callers that copy files, such as Ansible. Without `archive`, only check. `archive`: a line
    with the packed manifest's length, the packed manifest, then all of its files, packed. Returns {"wanted": whether
    the code is needed, …}."""
    folder = CodeFolder(dest, installer.home)
    at_work = users(folder.path, installer.home, installer.dir, str(installer.config().get("runtime_dir") or ""))
    report: Json = {"ok": True, "changed": False, "dest": dest, "users": at_work, "same": folder.same(digest)}
    report["wanted"] = not report["same"] and (under_running or not at_work)
    if not archive or not report["wanted"]:
        return report
    with open(archive, "rb") as source:
        size = int(source.readline())
        if not 0 < size <= MAX_MANIFEST_BYTES:
            raise InstallError("bad_manifest", f"a list of {size} bytes is refused", "exclude what is not code")
        manifest = checked(json.loads(zlib.decompressobj().decompress(source.read(size), 4 * MAX_MANIFEST_BYTES)))
        with folder.locked():
            plan = folder.plan(manifest)
            if plan["needed"]:
                folder.make_room(plan["bytes"])
                folder.receive(plan["needed"], manifest, lambda: source.read(BLOCK_BYTES), sorted(manifest["files"]))
            folder.apply(manifest, plan)
    return dict(report, changed=bool(plan["new"] or plan["changed"] or plan["gone"]))
