"""Stores of archived objects: their interface, and a folder on a disk that the managers share.

Object names are generated here and never contain a worker's id. Errors name the store, never a secret.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from procguard.errors import ProcGuardError

NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}/[0-9]{13}-[0-9]{1,12}-[0-9a-f]{16}\.pglogs")
T = TypeVar("T")
RunInThread = Callable[..., Any]  # (function, *arguments) -> the function's result


class ArchiveFailed(ProcGuardError):
    """The store does not answer, refuses the request, or is full."""

    http_status = 503
    default_code = "archive_unreachable"


class ObjectMissing(ProcGuardError):
    """The object was deleted or never written."""

    http_status = 404
    default_code = "archive_object_missing"


class ObjectDamaged(ValueError):
    """The object's content differs from what was archived."""


class ObjectStore(Protocol):
    shown: str  # for operators, without secrets
    conditional: bool | None  # whether it refuses to overwrite an object; None: not known yet

    def expect_objects(self) -> None:
        """Raise ArchiveFailed if the store is empty although objects were archived: it is probably the wrong one."""

    def put(self, name: str, data: bytes) -> None:
        """Store an object; complete and durable on return. An existing object is kept. Raises ArchiveFailed."""

    def get(self, name: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length), fewer at the end of the object. Raises ArchiveFailed, ObjectMissing."""

    def delete(self, name: str) -> None:
        """Delete an object; a missing one is no error. Raises ArchiveFailed."""

    def names(self) -> Iterator[str]:
        """The names of this fleet's objects, oldest first. Raises ArchiveFailed."""


def kind_of(shown: str) -> str:
    """The kind of a place, which everybody may see: s3://, file://."""
    return shown[: shown.find("://") + 3]


def without_place(text: str, shown: str) -> str:
    return text.replace(shown, kind_of(shown)) if shown else text


def new_name(term: int, wall: float) -> str:
    """A new object name: ascending with time, and unique across managers, runs and terms."""
    day = time.strftime("%Y-%m-%d", time.gmtime(wall))
    return f"{day}/{int(wall * 1000):013d}-{term}-{secrets.token_hex(8)}.pglogs"


class FolderStore:
    """A folder, local or on a file system that every manager has mounted. It must exist, so that a missing mount is
    detected instead of writing below the mount point."""

    def __init__(self, path: str, fleet_id: str, in_thread: RunInThread) -> None:
        self._root = path
        self._directory = os.path.join(path, fleet_id)
        self._in_thread = in_thread
        self._expected = False
        self.conditional: bool | None = None
        self.shown = f"file://{path}"

    def expect_objects(self) -> None:
        self._expected = True

    def put(self, name: str, data: bytes) -> None:
        self._do(self._put, name, data)

    def get(self, name: str, start: int, length: int) -> bytes:
        found: bytes = self._do(self._get, name, start, length)
        return found

    def delete(self, name: str) -> None:
        self._do(self._delete, name)

    def names(self) -> Iterator[str]:
        days: list[str] = self._do(self._listed, "")
        for day in days:
            yield from (name for file in self._do(self._listed, day) if NAME.fullmatch(name := f"{day}/{file}"))

    def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            result: T = self._in_thread(_returned, work, *arguments)
        except OSError as exc:
            raise self._failed(exc) from exc
        if isinstance(result, FileNotFoundError) and work == self._get:
            raise ObjectMissing(f"{self.shown}: an archived object is missing", "restore the folder from a backup")
        if isinstance(result, OSError):
            raise self._failed(result) from result
        return result

    def _failed(self, exc: OSError) -> ArchiveFailed:
        return ArchiveFailed(
            f"logs.archive: {self.shown}: {exc.strerror or type(exc).__name__}",
            "check that it is mounted, writable for the manager's user, and has room",
        )

    def _path(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise OSError(errno.EINVAL, "not the name of an archived object")
        return os.path.join(self._directory, name)

    def _put(self, name: str, data: bytes) -> None:
        target = self._path(name)
        if not stat.S_ISDIR(os.stat(self._root).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if self._expected and not os.path.isdir(self._directory):
            raise OSError(errno.ENOENT, "earlier archived logs are missing")
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        beside = f"{target}.{secrets.token_hex(4)}.new"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.conditional = _name_it(beside, target)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(beside)
        self._expected = True
        for folder in (os.path.dirname(target), self._directory, self._root):
            _sync(folder)

    def _get(self, name: str, start: int, length: int) -> bytes:
        descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def _listed(self, day: str) -> list[str]:
        try:
            return sorted(os.listdir(os.path.join(self._directory, day)))
        except (FileNotFoundError, NotADirectoryError):
            os.stat(self._root)
            return []


def _name_it(beside: str, target: str) -> bool:
    """Rename the file without overwriting, if the file system supports links. Returns whether it does."""
    try:
        os.link(beside, target)
    except FileExistsError:
        pass
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        os.rename(beside, target)
        return False
    return True


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _returned(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return expected errors instead of raising them, because gevent prints tracebacks of its threads."""
    try:
        return work(*arguments)
    except OSError as exc:
        return exc
