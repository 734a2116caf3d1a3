"""The local content of a `procguard_sync` entry: which files, their digest, and the packed archive.

Reads the local disk; knows neither hosts nor SSH. A folder is read once per run, for any number of hosts.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from procguard.deploy.inventory.code import VARIABLE, Sync
from procguard.errors import UsageError
from procguard.json_types import Json
from remote_agent.install.project_sync.folder import BLOCK_BYTES, KEPT, MAX_ENTRIES, digest_of

# Never useful on another machine: histories, byte code, environments with absolute paths.
ALWAYS_EXCLUDED = (".git/", ".hg/", ".svn/", "__pycache__/", ".venv/", f"{KEPT}/")
KEPT_PACKS = 4


@dataclass(frozen=True)
class CodeSource:
    """The desired content of a folder. `manifest`: in the form of install/project_sync/folder.py. `skipped`: sockets,
    devices and the like."""

    root: str
    manifest: Json
    digest: str
    skipped: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The files, in the order in which both sides number them."""
        return sorted(self.manifest["files"])


class Sources:
    """Reads each (src, exclude) once. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[tuple[str, tuple[str, ...]], CodeSource | UsageError] = {}
        self._packs: dict[tuple[str, str], Pack] = {}

    def of(self, sync: Sync) -> CodeSource:
        """The content of an entry. Raises UsageError if the folder cannot be read, because that affects every host."""
        key = (sync.src, sync.exclude)
        with self._lock:
            if key not in self._read:
                try:
                    self._read[key] = scan(sync)
                except UsageError as exc:
                    self._read[key] = exc
            found = self._read[key]
        if isinstance(found, UsageError):
            raise found
        return found

    def pack(self, source: CodeSource, needed: Sequence[int]) -> Pack:
        """The packed content of these files, cached because most hosts need the same ones."""
        key = (source.root, hashlib.sha256(repr(sorted(needed)).encode()).hexdigest())
        with self._lock:
            if key not in self._packs:
                while len(self._packs) >= KEPT_PACKS:
                    self._packs.pop(next(iter(self._packs)))
                self._packs[key] = Pack(source, [source.names[number] for number in needed])
            return self._packs[key]


def scan(sync: Sync) -> CodeSource:
    """Scan a folder. Raises UsageError with the path that cannot be read."""
    if not os.path.isdir(sync.src):
        raise UsageError(f"{VARIABLE}: there is no folder {sync.src}", "correct src in the inventory")
    found = _Scan(sync.src, (*ALWAYS_EXCLUDED, *sync.exclude))
    try:
        found.walk("")
    except OSError as exc:
        what = f"{VARIABLE}: cannot read {exc.filename or sync.src} ({exc.strerror or exc})"
        raise UsageError(what, "make it readable, or exclude it") from exc
    manifest = {"files": found.files, "links": found.links, "folders": sorted(found.folders)}
    return CodeSource(sync.src, manifest, digest_of(manifest), tuple(found.skipped))


@dataclass
class _Scan:
    root: str
    exclude: tuple[str, ...]
    files: dict[str, list[Any]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def walk(self, folder: str) -> None:
        with os.scandir(os.path.join(self.root, folder)) as entries:
            here = sorted(entries, key=lambda entry: entry.name)
        for entry in here:
            name = f"{folder}/{entry.name}" if folder else entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if excluded(name, is_folder, self.exclude):
                continue
            if is_folder:
                self.folders.append(name)
                self.walk(name)
            elif entry.is_symlink():
                self.links[name] = os.readlink(entry.path)
            elif entry.is_file(follow_symlinks=False):
                self.files[name] = _entry(entry.path)
            else:
                self.skipped.append(name)
            if len(self.files) + len(self.links) + len(self.folders) > MAX_ENTRIES:
                raise UsageError(
                    f"{VARIABLE}: {self.root} holds more than {MAX_ENTRIES} entries", "exclude what is not code"
                )


def _entry(path: str) -> list[Any]:
    with open(path, "rb") as file:
        sha, size = hashlib.sha256(), 0
        for data in iter(lambda: file.read(BLOCK_BYTES), b""):
            sha.update(data)
            size += len(data)
        return [stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o777, size, sha.hexdigest()]


def excluded(name: str, is_folder: bool, patterns: Sequence[str]) -> bool:
    """Whether a path is excluded. Patterns as in rsync and git: `*.pt` anywhere, `data/` folders only, `/out` and `a/b`
    from the top."""
    for pattern in patterns:
        only_folders, text = pattern.endswith("/"), pattern.strip("/")
        if only_folders and not is_folder:
            continue
        anchored = pattern.startswith("/") or "/" in text
        if fnmatch.fnmatchcase(name if anchored else name.rpartition("/")[2], text):
            return True
    return False


class Pack:
    """The content of some files, concatenated and compressed in an unlinked file."""

    def __init__(self, source: CodeSource, names: Sequence[str]) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        packer = zlib.compressobj(3)
        try:
            for name in names:
                with open(os.path.join(source.root, name), "rb") as file:
                    left = int(source.manifest["files"][name][1])
                    while left:  # exactly the announced length; a file that changed meanwhile is detected by its digest
                        data = file.read(min(left, BLOCK_BYTES)) or b"\0" * min(left, BLOCK_BYTES)
                        self._file.write(packer.compress(data))
                        left -= len(data)
            self._file.write(packer.flush())
            self._file.flush()
        except OSError as exc:
            what = f"{VARIABLE}: cannot read {exc.filename or source.root} ({exc.strerror or exc})"
            raise UsageError(what, "check the free space of the temporary folder, then deploy again") from exc
        self.size = self._file.tell()

    def blocks(self) -> Iterator[bytes]:
        """The whole content in blocks. Safe to use from several threads."""
        offset = 0
        while offset < self.size:
            data = os.pread(self._file.fileno(), BLOCK_BYTES, offset)
            offset += len(data)
            yield data
