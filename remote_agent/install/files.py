"""Finds files on this host for `invoke fetch`, by path or pattern, and sends them over the session.

    -> {"op": "fetch", "path": "~/out/*.csv", "max_bytes": n, "max_files": n}
    <- {"found": {"files": 2, "bytes": 5120, "left_out": 1}}, then for each file
    <- {"file": {"name": "/home/ml/out/a.csv", "mtime": 1764000000.0}}, its pieces (length in a line, then the bytes)
       and a line that is 0 (complete) or -1 (could not be read)

Patterns are never passed to a shell. Folders are read recursively; links in them are skipped and counted, and only
regular files are opened. As root, each file is read with the rights of the owner of the folder it is in
(system/owners.py), so that a user's link gives access only to files that this user can read.
"""

from __future__ import annotations

import glob
import os
import re
import stat

from remote_agent.install.release import InstallError
from remote_agent.protocol.hints import IO, Any, Callable, Dict, Iterator, List, Optional, Tuple
from remote_agent.system import owners

PIECE_BYTES = 256 * 1024
_WILD_ON = re.compile(r"[*?[]")

Json = Dict[str, Any]


def send(request: Json, say: "Callable[[Json], None]", out: "IO[bytes]") -> Json:
    """Answer one request. Returns {} once everything was sent. Raises InstallError only before anything was sent."""
    path = _absolute(str(request["path"]))
    with owners.acting_as(_actor(path)):
        found, left_out = find(path, int(request["max_files"]), int(request["max_bytes"]))
    say({"found": {"files": len(found), "bytes": sum(size for _, size in found), "left_out": left_out}})
    for name, size in found:
        try:
            fd = owners.open_file(name)
        except OSError:
            say({"file": {"name": name, "mtime": 0.0}})
            out.write(b"-1\n")
            continue
        with os.fdopen(fd, "rb", buffering=0) as file:
            say({"file": {"name": name, "mtime": os.fstat(fd).st_mtime}})
            out.write(b"0\n" if _copy(file, size, out) else b"-1\n")
    out.flush()
    return {}


def _copy(file: "IO[bytes]", left: int, out: "IO[bytes]") -> bool:
    """Send the content up to the size at which the file was found, because a log may grow meanwhile."""
    try:
        while left:
            data = file.read(min(left, PIECE_BYTES))
            if not data:
                break
            out.write(b"%d\n" % len(data))
            out.write(data)
            left -= len(data)
    except OSError:
        return False
    return True


def find(pattern: str, max_files: int, max_bytes: int) -> "Tuple[List[Tuple[str, int]], int]":
    """([(absolute path, size)], number of links and the like that were skipped). Relative to the user's home."""
    path = _absolute(pattern)
    matches = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))
    if not matches:
        raise InstallError("nothing_there", f"nothing matches {pattern}", "check the path on the host: ls, over ssh")
    found: "Dict[str, int]" = {}
    left_out, total = 0, 0
    for name, size in (one for match in matches for one in _files(os.path.normpath(match))):
        if size < 0:
            left_out += 1
        elif name not in found:
            found[name] = size
            total += size
        if len(found) > max_files or total > max_bytes:
            raise InstallError(
                "too_much",
                f"{pattern} is more than {max_files} files or {max_bytes >> 20} MiB",
                "select less, or raise --max-size and --max-files",
            )
    return list(found.items()), left_out


def _absolute(pattern: str) -> str:
    return os.path.join(os.path.expanduser("~"), os.path.expanduser(pattern))


def _actor(pattern: str) -> "Optional[owners.Actor]":
    """The owner of the folder that the part before the first wildcard is in."""
    fixed = pattern if os.path.lexists(pattern) else _WILD_ON.split(pattern, maxsplit=1)[0].rpartition("/")[0]
    try:
        found = owners.walk(fixed or "/")
    except OSError:
        return None
    if found.fd is not None:
        os.close(found.fd)
    return found.actor


def _files(path: str) -> "Iterator[Tuple[str, int]]":
    """(path, size); size -1 for skipped entries. A link that is named explicitly is followed."""
    try:
        here = os.stat(path)
        if not stat.S_ISDIR(here.st_mode):
            yield path, here.st_size if stat.S_ISREG(here.st_mode) else -1
            return
    except OSError:
        yield path, -1
        return
    for folder, names, files in os.walk(path):
        names.sort()
        for name in sorted(files) + [one for one in names if os.path.islink(os.path.join(folder, one))]:
            full = os.path.join(folder, name)
            try:
                one = os.lstat(full)
            except OSError:
                yield full, -1
                continue
            yield full, one.st_size if stat.S_ISREG(one.st_mode) else -1
