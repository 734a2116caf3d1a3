"""Finds the workers that are running in a folder, whose code is not changed unless this is requested.

Reads files on this host's disk and /proc; changes nothing.
"""

from __future__ import annotations

import contextlib
import os

from remote_agent.protocol.hints import Any, Dict, List, Tuple
from remote_agent.protocol.ids import valid_id
from remote_agent.system import paths, state_files
from remote_agent.system.locks import lock_held

LIVE = ("starting", "running", "stopping", "backoff")


def users(folder: str, home: str, agent_dir: str, runtime_dir: str) -> "List[str]":
    """Ids of the workers that use `folder` (its real path), according to their commands and working directories.

    For other hosts' agents in a shared home, only the files are known: their recorded state counts.
    """
    own = os.path.realpath(agent_dir)
    known: "List[Any]" = []
    uids: "Dict[str, int]" = {}
    for directory in _worker_directories(home):
        spec = _json(paths.spec_file(directory))
        known.append((directory, spec))
        run_as = (spec.get("start") or {}).get("run_as") or {}
        uids[str(spec.get("worker_id"))] = int(run_as.get("uid", os.geteuid()))
    # Any process may have this working directory and claim any worker id. A claim counts only if the process belongs to
    # the worker's user or, for a worker of another home, to this user or the folder's owner.
    others = {os.geteuid(), _owner(folder)}
    claims = map(_claim, _processes_in(folder))
    found = {one for one, uid in claims if (uid == uids[one] if one in uids else uid in others)}
    for directory, spec in known:
        if not _uses(spec, folder):
            continue
        if os.path.realpath(os.path.dirname(os.path.dirname(directory))) == own:
            live = bool(runtime_dir) and lock_held(paths.runner_lock(runtime_dir, directory))
        else:
            live = _state(directory) in LIVE
        if live:
            found.add(str(spec.get("worker_id") or os.path.basename(directory)))
    return sorted(found - {""})


def _state(directory: str) -> str:
    try:
        return str((state_files.read(directory) or {}).get("state"))
    except (OSError, ValueError):
        return ""


def _uses(spec: "dict[str, Any]", folder: str) -> bool:
    """Whether its working directory or a word of its command is inside the folder."""
    words = [str(spec.get("cwd") or "")]
    words += [str(word) for word in spec.get("argv") or () if str(word).startswith(("/", "~"))]
    return any(_within(os.path.realpath(os.path.expanduser(word)), folder) for word in words if word)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _worker_directories(home: str) -> "List[str]":
    found = []
    for directory, names, _ in os.walk(home):
        if os.path.basename(directory) == "workers":
            found += [os.path.join(directory, name) for name in sorted(names)]
            names[:] = []
        else:
            names[:] = [name for name in names if name != "releases"]
    return found


def _processes_in(folder: str) -> "List[str]":
    """Pids of this user's processes with a working directory inside the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")) if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError):
            if _within(os.readlink(f"/proc/{pid}/cwd"), folder):
                found.append(pid)
    return found


def _claim(pid: str) -> "Tuple[str, int]":
    """Returns (worker id claimed by the process, its uid); "" for a process that no runner started, such as a shell."""
    with contextlib.suppress(OSError):
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/environ", "rb") as file:
            for entry in file.read(1024 * 1024).split(b"\0"):
                if entry.startswith(b"PROCGUARD_WORKER_ID="):
                    worker_id = entry.partition(b"=")[2].decode("utf-8", "replace")
                    return (worker_id, uid) if valid_id(worker_id) else ("", uid)
    return "", -1


def _owner(folder: str) -> int:
    try:
        return os.stat(folder).st_uid
    except OSError:
        return -1


def _json(path: str) -> "dict[str, Any]":
    try:
        found = paths.read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
