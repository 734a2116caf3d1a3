"""One project's folder on this host: compares it with a manifest and installs the files that were received.

A record in `.procguard-sync/` inside the folder (hosts may share it) lists the synced files. Only these are ever
changed or removed; a job's own files are kept. New content is collected in `incoming/` on the same file system,
verified by digest, and moved into place by renames. Links below the folder are never followed. As root, all operations
in a user's folder are done with that user's rights (system/owners.py), and the files belong to that user.

The manifest comes from the deploying side; its digest is computed over its canonical JSON (`digest_of`):

    {"files": {"pkg/a.py": [420, 1234, "sha256…"]}, "links": {"data": "/mnt/data"}, "folders": ["empty"]}

Knows neither the network nor workers (users.py). Used by the session of remote_agent.install; not concurrently.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import stat
import time
import zlib

from remote_agent.install.release import InstallError, check_space, os_error
from remote_agent.protocol.hints import Any, Callable, Dict, Iterator, List, Optional, Tuple
from remote_agent.system import locks, owners, paths

KEPT = ".procguard-sync"
LOCK_TIMEOUT_S = 90.0
MAX_ENTRIES = 200_000
MAX_RECORD_BYTES = 256 * 1024 * 1024
BLOCK_BYTES = 256 * 1024
# Never valid: a mistyped `dest` must not scatter files over the system.
REFUSED = frozenset((
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin",
    "/srv", "/sys", "/tmp", "/usr", "/usr/local", "/var", "/var/tmp",  # noqa: S108 - refused, not used
))  # fmt: skip

Json = Dict[str, Any]


def digest_of(manifest: Json) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checked(manifest: Any) -> Json:
    """The manifest, checked to name only paths below the folder. Raises InstallError."""
    try:
        files, links, folders = dict(manifest["files"]), dict(manifest["links"]), list(manifest["folders"])
        if len(files) + len(links) + len(folders) > MAX_ENTRIES:
            raise ValueError(f"more than {MAX_ENTRIES} entries")
        for name in (*files, *links, *folders):
            _parts(name)
        for mode, size, sha in files.values():
            if not 0 <= int(mode) <= 0o777 or int(size) < 0 or len(sha) != 64:
                raise ValueError("an entry is invalid")
    except (KeyError, TypeError, ValueError) as exc:
        raise InstallError("bad_manifest", f"the list of files to sync is invalid: {exc}", "deploy again") from exc
    return {"files": files, "links": links, "folders": folders}


def _parts(name: str) -> "List[str]":
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts) or parts[0] == KEPT:
        raise ValueError(f"an unsafe path: {name!r}")
    return parts


def _with_its_rights(method: "Callable[..., Any]") -> "Callable[..., Any]":
    @functools.wraps(method)
    def doing(self: "CodeFolder", *arguments: Any) -> Any:
        with owners.acting_as(self.actor):
            return method(self, *arguments)

    return doing


class CodeFolder:
    """`dest` on this host. `look` without the lock; `plan`, `receive`, `apply` inside `locked()`."""

    def __init__(self, dest: str, home: str) -> None:
        wanted = os.path.normpath(os.path.join("/", os.path.expanduser(dest)))
        self.actor = self._whose(wanted)
        with owners.acting_as(self.actor):
            self.path = os.path.realpath(wanted)
        own = [os.path.realpath(os.path.expanduser("~")), os.path.realpath(home)]
        around = [path for path in own if path == self.path or path.startswith(self.path.rstrip("/") + "/")]
        if not os.path.isabs(os.path.expanduser(dest)) or self.path in REFUSED or around or self._inside(home):
            raise InstallError(
                "bad_dest",
                f"procguard_sync: {dest} is no folder of a project's own",
                "name one below the home directory, e.g. ~/project",
            )

    @staticmethod
    def _whose(wanted: str) -> "Optional[owners.Actor]":
        """The user whose rights are used; None: this process's."""
        try:
            found = owners.walk(os.path.join(wanted, KEPT))
        except OSError as exc:
            raise os_error(exc, f"cannot look at {wanted}") from exc
        if found.fd is not None:
            os.close(found.fd)
        if found.shared and found.actor is None and os.geteuid() == 0:
            raise InstallError(
                "bad_dest",
                f"procguard_sync: others than root can replace a folder on the way to {wanted}",
                "remove write permission (chmod go-w), or change the owner to the user who works there (chown)",
            )
        return found.actor

    def _inside(self, home: str) -> bool:
        return self.path.startswith(os.path.realpath(home) + "/")

    # -------------------------------------------------------------------------------------------- status

    def record(self) -> Json:
        """The record of the last sync: {"digest", "files": {name: [mode, size, sha256, mtime_ns]}, "links",
        "folders"}."""
        try:
            return _sane(json.loads(self._record_text()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {"files": {}, "links": {}, "folders": [], "digest": ""}

    def _record_text(self) -> bytes:
        """Read the record as a regular file, up to the maximum size of a record."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with owners.acting_as(self.actor), os.fdopen(os.open(self._kept("record.json"), flags), "rb") as file:
            return bytes(file.read(MAX_RECORD_BYTES)) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""

    @_with_its_rights
    def same(self, digest: str) -> bool:
        """Whether the folder contains exactly this code, judged by sizes, times and modes."""
        record = self.record()
        if record["digest"] != digest:
            return False
        whole = all(_unchanged(self._at(name), entry) for name, entry in record["files"].items())
        whole = whole and all(_link(self._at(name)) == target for name, target in record["links"].items())
        return whole and all(os.path.isdir(self._at(name)) for name in record["folders"])

    @_with_its_rights
    def plan(self, manifest: Json) -> Json:
        """{"needed": names whose content is missing, "changed", "new", "gone", "bytes"}; changes nothing."""
        record = self.record()
        needed, changed, new = [], [], []
        for name, (mode, size, sha) in manifest["files"].items():
            here = self._stat(name)
            if here is None:
                new.append(name)
                needed.append(name)
            elif self._of_another(here) or self._sha(name, here, size, record) != sha:
                changed.append(name)
                needed.append(name)
            elif stat.S_IMODE(here.st_mode) != mode:
                changed.append(name)
        for name, target in manifest["links"].items():
            known = _link(self._at(name))
            if known != target:
                (new if self._stat(name) is None else changed).append(name)
        new += [name for name in manifest["folders"] if self._stat(name) is None]
        return {
            "needed": needed,
            "changed": changed,
            "new": new,
            "gone": self._gone(manifest, record),
            "bytes": sum(manifest["files"][name][1] for name in needed),
        }

    def _of_another(self, here: os.stat_result) -> bool:
        """Whether an entry must be replaced because it is not a regular file, or not owned by the folder's owner
        (synced as root before the folder was given to its user)."""
        return not stat.S_ISREG(here.st_mode) or (self.actor is not None and here.st_uid != self.actor.uid)

    def _sha(self, name: str, here: os.stat_result, size: int, record: Json) -> str:
        entry = record["files"].get(name)
        if entry and entry[1] == here.st_size and entry[3] == here.st_mtime_ns:
            return str(entry[2])
        if here.st_size != size:
            return ""
        try:
            with _opened(self._at(name)) as file:
                return _digest(file)
        except OSError:
            return ""

    def _gone(self, manifest: Json, record: Json) -> "List[str]":
        """Synced files that are unchanged on this host and no longer part of the code."""
        files = [
            name
            for name, entry in record["files"].items()
            if name not in manifest["files"] and _unchanged(self._at(name), [None, *entry[1:]])
        ]
        links = [
            name
            for name, target in record["links"].items()
            if name not in manifest["links"] and _link(self._at(name)) == target
        ]
        return files + links

    # ----------------------------------------------------------------------------------------- syncing

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder, also if hosts share it. Remains of an interrupted sync are removed."""
        self._chown()
        with owners.acting_as(self.actor):
            fd = self._lock_file()
        try:
            if not locks.lock_within(fd, LOCK_TIMEOUT_S):
                raise InstallError(
                    "busy", f"another deployment is syncing code to {self.path}", "wait for it, deploy again"
                )
            self.forget_incoming()
            try:
                yield
            finally:
                self.forget_incoming()
        finally:
            os.close(fd)

    def _lock_file(self) -> int:
        try:
            os.makedirs(self._kept(), mode=0o755, exist_ok=True)
            if os.path.islink(self._kept()):
                raise InstallError("bad_dest", f"{self._kept()} is a link", "remove it, then deploy again")
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                return os.open(self._kept("lock"), flags, 0o600)
            except PermissionError:  # owned by root, in a folder that belongs to its user now
                os.unlink(self._kept("lock"))
                return os.open(self._kept("lock"), flags, 0o600)
        except OSError as exc:
            raise os_error(exc, f"cannot make {self.path}") from exc

    @_with_its_rights
    def forget_incoming(self) -> None:
        shutil.rmtree(self.incoming, ignore_errors=True)
        if os.path.lexists(self.incoming):  # owned by root
            with contextlib.suppress(OSError):
                os.rename(self.incoming, f"{self.incoming}.{time.time_ns()}")

    def _chown(self) -> None:
        """Change the owner of folders that were synced as root before the folder was given to its user, so that files
        in them can be replaced. Only world-readable folders, by descriptor, without following links."""
        if self.actor is None:
            return
        names = _folders(self.record()) | {KEPT}
        for name in sorted(names, key=len):
            with contextlib.suppress(OSError), self._place("/", f"{self.path[1:]}/{name}/.") as (folder, _):
                here = os.fstat(folder)
                if here.st_uid == 0 and here.st_mode & 0o005 == 0o005:
                    os.fchown(folder, self.actor.uid, self.actor.gid)

    @property
    def incoming(self) -> str:
        return self._kept("incoming")

    @_with_its_rights
    def make_room(self, needed_bytes: int) -> None:
        """Create `incoming`. Raises InstallError if the disk lacks the space."""
        check_space(self.path, needed_bytes)
        os.mkdir(self.incoming, 0o700)

    @_with_its_rights
    def receive(
        self, names: "List[str]", manifest: Json, read: "Callable[[], bytes]", sent: "Optional[List[str]]" = None
    ) -> None:
        """Write the content of `names`, zlib-packed and concatenated, below `incoming`. `read`: returns the next bytes,
        b"" at the end. `sent`: the names in the data, if there are more than `names`."""
        stream, wanted = _Unpacked(read), set(names)
        try:
            for name in names if sent is None else sent:
                left = int(manifest["files"][name][1])
                while left and name not in wanted:
                    left -= len(stream.take(min(left, BLOCK_BYTES)) or b"\0" * left)
                if name not in wanted:
                    continue
                with self._place(self.incoming, name, make=True) as (folder, last):
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    with os.fdopen(os.open(last, flags, 0o600, dir_fd=folder), "wb") as out:
                        while left:
                            data = stream.take(min(left, BLOCK_BYTES))
                            if not data:
                                raise InstallError("cut_off", "the code arrived incomplete", "deploy again")
                            out.write(data)
                            left -= len(data)
        except zlib.error as exc:
            raise InstallError("bad_code", f"the code arrived damaged ({exc})", "deploy again") from exc
        except OSError as exc:
            raise os_error(exc, f"cannot write into {self.path}") from exc

    @_with_its_rights
    def apply(self, manifest: Json, plan: Json) -> None:
        """Move everything into place. The record is empty until this has finished, so that an interruption is detected
        by the next sync."""
        digests = self._verified(manifest, plan["needed"])
        record = self.record()
        try:
            paths.write_json(self._kept("record.json"), {**record, "digest": ""}, durable=True)
            for name in plan["gone"]:
                self._remove(name)
            self._remove_empty_folders(record, manifest)
            for name in sorted(manifest["folders"]):
                with self._place(self.path, f"{name}/.", make=True):
                    pass
            for name in plan["needed"]:
                self._move_in(name, manifest["files"][name][0])
            for name in plan["changed"]:
                if name in manifest["files"] and name not in digests:
                    with self._place(self.path, name) as (folder, last):
                        _set_mode(folder, last, manifest["files"][name][0])
            for name, target in manifest["links"].items():
                self._link_to(name, target)
            paths.write_json(self._kept("record.json"), self._new_record(manifest), mode=0o644, durable=True)
        except NotADirectoryError as exc:
            raise self._in_the_way(exc) from exc
        except OSError as exc:
            in_the_way = exc.errno in (errno.ELOOP, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST)
            raise (self._in_the_way(exc) if in_the_way else os_error(exc, f"cannot write {self.path}")) from exc

    def _in_the_way(self, exc: OSError) -> InstallError:
        return InstallError(
            "in_the_way",
            f"another file is in the way: {exc.filename or '?'} in {self.path} ({exc.strerror})",
            "move it away, or exclude that part of the code",
        )

    def _verified(self, manifest: Json, names: "List[str]") -> "Dict[str, str]":
        found = {}
        for name in names:
            try:
                with self._place(self.incoming, name) as (folder, last):
                    fd = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                    with os.fdopen(fd, "rb") as file:
                        found[name] = _digest(file)
            except OSError:
                found[name] = ""
            if found[name] != manifest["files"][name][2]:
                raise InstallError(
                    "code_changed",
                    f"{name} differs from the announced file: it changed during the sync",
                    "deploy again",
                )
        return found

    def _move_in(self, name: str, mode: int) -> None:
        with self._place(self.incoming, name) as (source, last), self._place(self.path, name, make=True) as (target, _):
            os.chmod(last, mode, dir_fd=source)
            os.rename(last, last, src_dir_fd=source, dst_dir_fd=target)

    def _link_to(self, name: str, target: str) -> None:
        if _link(self._at(name)) == target:
            return
        with self._place(self.path, name, make=True) as (folder, last):
            scratch = f".{last[:80]}.procguard-new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch, dir_fd=folder)
            os.symlink(target, scratch, dir_fd=folder)
            os.rename(scratch, last, src_dir_fd=folder, dst_dir_fd=folder)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with self._place(self.path, name) as (folder, last):
                os.unlink(last, dir_fd=folder)

    def _remove_empty_folders(self, record: Json, manifest: Json) -> None:
        """Remove folders that contained only removed code."""
        wanted = _folders(manifest)
        for name in sorted(_folders(record) - wanted, key=len, reverse=True):
            with contextlib.suppress(OSError):
                with self._place(self.path, name) as (folder, last):
                    os.rmdir(last, dir_fd=folder)

    def _new_record(self, manifest: Json) -> Json:
        files = {}
        for name, (mode, size, sha) in manifest["files"].items():
            here = os.lstat(self._at(name))
            files[name] = [mode, size, sha, here.st_mtime_ns]
        return {**manifest, "files": files, "digest": digest_of(manifest)}

    # ------------------------------------------------------------------------------------------- inside

    def _kept(self, name: str = "") -> str:
        return os.path.join(self.path, KEPT, name) if name else os.path.join(self.path, KEPT)

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _stat(self, name: str) -> "Optional[os.stat_result]":
        try:
            return os.lstat(self._at(name))
        except OSError:
            return None

    @contextlib.contextmanager
    def _place(self, root: str, name: str, make: bool = False) -> "Iterator[Tuple[int, str]]":
        """Returns (descriptor of the folder, last component) of `name` below `root`, without following links."""
        *above, last = name.split("/")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(root, flags)
        try:
            for part in above:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=fd)
                deeper = os.open(part, flags, dir_fd=fd)
                os.close(fd)
                fd = deeper
            yield fd, last
        finally:
            os.close(fd)


class _Unpacked:
    def __init__(self, read: "Callable[[], bytes]") -> None:
        self._read = read
        self._unpack = zlib.decompressobj()

    def take(self, most: int) -> bytes:
        """Read up to `most` bytes; b"" at the end. Highly compressed data is unpacked in bounded pieces."""
        while True:
            data = self._unpack.decompress(self._unpack.unconsumed_tail, most)
            if data or self._unpack.eof:
                return data
            packed = self._read()
            if not packed:
                return b""
            data = self._unpack.decompress(packed, most)
            if data:
                return data


def _sane(record: Json) -> Json:
    """Validate a record, because jobs can write to it. Raises the errors of an invalid one."""
    names = [*record["files"], *record["links"], *record["folders"]]
    for name in names:
        _parts(name)
    files = {
        name: [int(mode), int(size), str(sha), int(mtime_ns)]
        for name, (mode, size, sha, mtime_ns) in record["files"].items()
    }
    links = {name: str(target) for name, target in record["links"].items()}
    return {"files": files, "links": links, "folders": list(record["folders"]), "digest": str(record.get("digest", ""))}


def _folders(manifest: Json) -> "set[str]":
    found = set(manifest["folders"])
    for name in (*manifest["files"], *manifest["links"]):
        parts = name.split("/")[:-1]
        found.update("/".join(parts[: number + 1]) for number in range(len(parts)))
    return found


def _set_mode(folder: int, name: str, mode: int) -> None:
    """Set the mode of the file itself; a link that replaced it is not followed."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _unchanged(path: str, entry: "List[Any]") -> bool:
    """`entry`: [mode (None: any), size, sha256, mtime_ns] as recorded."""
    try:
        here = os.lstat(path)
    except OSError:
        return False
    mode, size, _, mtime_ns = entry
    well = stat.S_ISREG(here.st_mode) and here.st_size == size and here.st_mtime_ns == mtime_ns
    return well and mode in (None, stat.S_IMODE(here.st_mode))


def _link(path: str) -> "Optional[str]":
    try:
        return os.readlink(path)
    except OSError:
        return None


def _opened(path: str) -> Any:
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")


def _digest(file: Any) -> str:
    sha = hashlib.sha256()
    for data in iter(lambda: file.read(BLOCK_BYTES), b""):
        sha.update(data)
    return sha.hexdigest()
