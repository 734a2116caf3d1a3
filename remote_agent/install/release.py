"""Releases on a host: verify, unpack, switch, delete. Owns `<home>/releases` and the `current`/`previous` links.

Knows neither the manager nor the agent's configuration. A release is named after the first 16 hex digits of the
bundle's SHA-256 and is immutable; several agents (and, over NFS, several hosts) share it.
"""

from __future__ import annotations

import errno
import os
import sys

from remote_agent.protocol.digests import sha256_hex
from remote_agent.protocol.hints import Iterator, Set, Tuple

SPARE_BYTES = 32 * 1024 * 1024  # must remain free after unpacking
MAX_UNPACKED_BYTES = 256 * 1024 * 1024
MAX_MEMBERS = 5000
_TAR_BLOCK = 512


class InstallError(Exception):
    """An error for people: `message` with path and cause, `next_step`, and a stable `code`."""

    def __init__(self, code: str, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.next_step = next_step


def releases_dir(home: str) -> str:
    return os.path.join(home, "releases")


def release_dir(home: str, digest: str) -> str:
    return os.path.join(releases_dir(home), digest[:16])


def present(home: str, digest: str) -> bool:
    """Whether the release is installed. Its directory is created by rename, so that it is complete if it exists."""
    return os.path.isfile(os.path.join(release_dir(home, digest), "remote_agent", "__main__.py"))


def free_bytes(directory: str) -> int:
    """The space available to this user on the file system where `directory` is, or will be."""
    while not os.path.isdir(directory) and os.path.dirname(directory) != directory:
        directory = os.path.dirname(directory)
    usage = os.statvfs(directory)
    return usage.f_bavail * usage.f_frsize


def check_space(directory: str, needed_bytes: int) -> None:
    """Raise InstallError unless `needed_bytes` and a reserve fit on the file system of `directory`."""
    free = free_bytes(directory)
    if free < needed_bytes + SPARE_BYTES:
        raise InstallError(
            "no_space",
            f"no space in {directory}: {free >> 20} MiB free, {(needed_bytes + SPARE_BYTES >> 20) + 1} MiB needed",
            "free some space, or set procguard_home to another file system",
        )


def unpack(home: str, digest: str, bundle: bytes, unpacked_bytes: int, code: bytes = b"") -> bool:
    """Install the release unless it exists. True if it is new. `code`: its byte code for this Python, from
    `bundle.byte_code`; b"" to compile it here.

    Raises InstallError if the bytes do not match `digest`, if a member would be outside the directory, or if the disk
    is full; then nothing is left behind.
    """
    if present(home, digest):
        return False
    found = sha256_hex(bundle)
    if found != digest:
        raise InstallError(
            "bad_bundle", f"the bundle arrived damaged: sha256 {found[:16]}, expected {digest[:16]}", "deploy again"
        )
    parent = releases_dir(home)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    check_space(parent, unpacked_bytes)
    scratch = os.path.join(parent, f".{digest[:16]}.{os.uname().nodename}.{os.getpid()}.tmp")
    _clear(scratch)
    try:
        os.mkdir(scratch, 0o755)
        names = _extract(bundle, scratch)
        _compile(scratch, release_dir(home, digest), names - _write_code(scratch, names, code))
        return _move_in(scratch, release_dir(home, digest))
    except OSError as exc:
        raise os_error(exc, f"cannot unpack into {parent}") from exc
    finally:
        _clear(scratch)


def _clear(scratch: str) -> None:
    if os.path.lexists(scratch):
        import shutil

        shutil.rmtree(scratch, ignore_errors=True)


def os_error(exc: OSError, what: str) -> InstallError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return InstallError("no_space", f"{what}: {exc.strerror}", "free some space, or set procguard_home elsewhere")
    return InstallError(
        "os_error", f"{what}: {exc.strerror or exc} {exc.filename or ''}".rstrip(), "check the path and its owner"
    )


def _extract(bundle: bytes, target: str) -> "Set[str]":
    """Unpack the bundle below `target`. Returns the names of its files. Only files and directories are valid; links,
    devices and invalid names are refused, not skipped."""
    unpacked = memoryview(_inflate(bundle))
    folders, names = {""}, set()
    for count, (name, is_folder, mode, data) in enumerate(_members(unpacked)):
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "" in parts:
            raise InstallError("bad_bundle", f"the bundle holds an unsafe path: {name!r}", "rebuild it")
        if count >= MAX_MEMBERS:
            raise _too_large()
        folder = name if is_folder else "/".join(parts[:-1])
        if folder not in folders:
            os.makedirs(f"{target}/{folder}", mode=0o755, exist_ok=True)
            folders.add(folder)
        if not is_folder:
            _write_new(f"{target}/{name}", data, mode)
            names.add(name)
    return names


def _members(archive: memoryview) -> "Iterator[Tuple[str, bool, int, memoryview]]":
    """(name, whether it is a directory, mode, content) of each member of a ustar archive (POSIX.1-1988), the format of
    `bundle.pack`. tarfile would take 12 ms more processor time, because it imports shutil, bz2 and lzma."""
    at = 0
    while at + _TAR_BLOCK <= len(archive) and archive[at]:
        head = bytes(archive[at : at + _TAR_BLOCK])
        kind, begin = head[156:157], at + _TAR_BLOCK
        try:
            name = b"/".join(filter(None, (_text(head[345:500]), _text(head[:100])))).decode()
            mode, size = int(_text(head[100:108]), 8), int(_text(head[124:136]), 8)
        except ValueError as exc:
            raise InstallError("bad_bundle", "the bundle is no tar file", "rebuild it") from exc
        if kind not in (b"0", b"\0", b"5") or head[257:262] != b"ustar":
            raise InstallError("bad_bundle", f"the bundle holds something not a file: {name!r}", "rebuild it")
        if size > len(archive) - begin:
            raise InstallError("bad_bundle", "the bundle ends too early", "rebuild it")
        is_folder, data = kind == b"5", archive[begin : begin + size]
        yield name.rstrip("/") if is_folder else name, is_folder, 0o755 if mode & 0o100 else 0o644, data
        at = begin + -(-size // _TAR_BLOCK) * _TAR_BLOCK


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0].strip(b" ")


def _inflate(bundle: bytes) -> bytes:
    """Decompress the bundle in one step, up to the maximum size of an agent. Streaming through tarfile's reader takes
    twice as long."""
    import zlib

    inflater = zlib.decompressobj(wbits=31)
    try:
        unpacked = inflater.decompress(bundle, MAX_UNPACKED_BYTES)
    except zlib.error as exc:
        raise InstallError("bad_bundle", f"the bundle is no gzip file: {exc}", "rebuild it") from exc
    if inflater.unconsumed_tail:
        raise _too_large()
    if not inflater.eof:
        raise InstallError("bad_bundle", "the bundle ends too early", "rebuild it")
    return unpacked


def _too_large() -> InstallError:
    return InstallError("bad_bundle", "the bundle is larger than any agent can be", "rebuild it")


def _write_new(path: str, data: "memoryview | bytes", mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
    finally:
        os.close(fd)


def _write_code(scratch: str, names: "Set[str]", packed: bytes) -> "Set[str]":
    """Write the byte code that was sent, which saves 0.1 s of processor time over compiling. Returns the names of its
    sources. It is not compared with its sources again, because a release does not change."""
    tag = sys.implementation.cache_tag
    if not packed or not tag:
        return set()
    import importlib.util
    import marshal
    import zlib

    head = importlib.util.MAGIC_NUMBER + b"\x01\0\0\0"
    codes = marshal.loads(zlib.decompress(packed))  # noqa: S302 - as code, over SSH
    folders, written = set(), names & set(codes)
    for name in written:
        folder, _, file = name.rpartition("/")
        cache = f"{scratch}/{folder}/__pycache__"
        if folder not in folders:
            os.mkdir(cache, 0o755)
            folders.add(folder)
        source_hash, code = codes[name]
        _write_new(f"{cache}/{file.rpartition('.')[0]}.{tag}.pyc", head + source_hash + code, 0o644)
    return written


def _compile(scratch: str, final: str, names: "Set[str]") -> None:
    """Compile the modules without byte code for this Python. An agent that compiled its modules at its start would
    retain 4 MB of memory."""
    for name in sorted(name for name in names if name.endswith(".py")):
        import py_compile

        try:
            py_compile.compile(os.path.join(scratch, name), dfile=os.path.join(final, name), quiet=2)
        except OSError:
            return  # no space: the agent compiles by itself


def _move_in(scratch: str, final: str) -> bool:
    try:
        os.rename(scratch, final)
        return True
    except OSError as exc:
        if exc.errno in (errno.EEXIST, errno.ENOTEMPTY) and os.path.isdir(final):
            return False  # a host that shares this home was faster; same digest, same content
        raise


def current(agent_dir: str) -> str:
    """The digest that `current` points to; "" if there is none."""
    return _link_digest(os.path.join(agent_dir, "current"))


def previous(agent_dir: str) -> str:
    return _link_digest(os.path.join(agent_dir, "previous"))


def _link_digest(path: str) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def switch(agent_dir: str, home: str, digest: str) -> bool:
    """Point `current` at the release, atomically, and `previous` at the former one. True if something changed."""
    before = current(agent_dir)
    if before == digest[:16]:
        return False
    if before:
        _replace_link(release_dir(home, before), os.path.join(agent_dir, "previous"))
    _replace_link(release_dir(home, digest), os.path.join(agent_dir, "current"))
    return True


def forget_previous(agent_dir: str, earlier: str = "", home: str = "") -> None:
    """After a rollback, point `previous` at the release `earlier` than the current one; "": none is known."""
    link = os.path.join(agent_dir, "previous")
    if earlier and earlier != current(agent_dir) and present(home, earlier):
        _replace_link(release_dir(home, earlier), link)
    elif os.path.lexists(link):
        os.unlink(link)


def _replace_link(target: str, link: str) -> None:
    scratch = f"{link}.{os.getpid()}.tmp"
    if os.path.lexists(scratch):
        os.unlink(scratch)
    os.symlink(os.path.relpath(target, os.path.dirname(link)), scratch)
    os.replace(scratch, link)


def remove_if_unused(home: str) -> bool:
    """Remove all releases, and the home itself, if no agent directory is left. True if the home was removed.

    Single releases are never removed while an agent remains, because a long-lived runner may use any of them.
    """
    if not os.path.isdir(home):
        return True
    for name in os.listdir(home):
        path = os.path.join(home, name)
        if name != "releases" and os.path.isdir(path) and not _empty_tree(path):
            return False
    import shutil

    shutil.rmtree(releases_dir(home), ignore_errors=True)
    for name in os.listdir(home):
        _remove_empty(os.path.join(home, name))
    return _remove_empty(home)


def _empty_tree(path: str) -> bool:
    return not any(files for _, _, files in os.walk(path))


def _remove_empty(path: str) -> bool:
    """Remove a tree if it contains only directories, no file."""
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(directory)
        except OSError:
            return False
    return not os.path.lexists(path)
