"""Releases on a host: check, unpack, switch, forget. Owns `<home>/releases` and the `current`/`previous` links.

Knows neither the manager nor the agent's configuration. A release is named after the first 16 hex digits of the
bundle's SHA-256 and is never changed once it stands there; several agents (and, over NFS, several hosts) share it.
"""

from __future__ import annotations

import errno
import os
import time

from remote_agent.protocol.digests import sha256_hex
from remote_agent.protocol.hints import Optional

SPARE_BYTES = 32 * 1024 * 1024  # must remain free after unpacking
MAX_UNPACKED_BYTES = 256 * 1024 * 1024
MAX_MEMBERS = 5000


class InstallError(Exception):
    """What a person must know: `message` with path and cause, `next_step`, and a stable `code`."""

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
    """A release directory appears by rename only, so that its presence means it is whole."""
    return os.path.isfile(os.path.join(release_dir(home, digest), "remote_agent", "__main__.py"))


def free_bytes(directory: str) -> int:
    """What a user may still write where `directory` is, or will be."""
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
    """Put the release there unless it stands already. True when it was new. `code`: its byte code for this Python, as
    `bundle.byte_code` makes it, b"": made here.

    Raises InstallError when the bytes are not the ones named by `digest`, when a member would leave the directory,
    or when the disk is full; then nothing is left behind.
    """
    import shutil

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
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        os.mkdir(scratch, 0o755)
        _extract(bundle, scratch)
        _write_code(scratch, code)
        _compile(scratch, release_dir(home, digest))
        return _move_in(scratch, release_dir(home, digest))
    except OSError as exc:
        raise os_error(exc, f"cannot unpack into {parent}") from exc
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def os_error(exc: OSError, what: str) -> InstallError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return InstallError("no_space", f"{what}: {exc.strerror}", "free some space, or set procguard_home elsewhere")
    return InstallError(
        "os_error", f"{what}: {exc.strerror or exc} {exc.filename or ''}".rstrip(), "check the path and its owner"
    )


def _extract(bundle: bytes, target: str) -> None:
    """Files and directories only, below `target` only; links, devices and odd names are refused, not skipped."""
    import io
    import tarfile

    unpacked = _inflate(bundle)
    folders = {target}
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
        for count, member in enumerate(archive):
            parts = member.name.split("/")
            if member.name.startswith("/") or ".." in parts or "" in parts or "\0" in member.name:
                raise InstallError("bad_bundle", f"the bundle holds an unsafe path: {member.name!r}", "build it anew")
            if count >= MAX_MEMBERS:
                raise _too_large()
            path = os.path.join(target, *parts)
            if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
                raise InstallError(
                    "bad_bundle", f"the bundle holds something not a file: {member.name!r}", "build it anew"
                )
            folder = path if member.isdir() else os.path.dirname(path)
            if folder not in folders:
                os.makedirs(folder, mode=0o755, exist_ok=True)
                folders.add(folder)
            if not member.isdir():
                data = memoryview(unpacked)[member.offset_data : member.offset_data + member.size]
                _write_new(path, data, 0o755 if member.mode & 0o100 else 0o644)


def _inflate(bundle: bytes) -> bytes:
    """At once, and never more than an agent can be: a stream through tarfile's own reader takes twice as long."""
    import zlib

    inflater = zlib.decompressobj(wbits=31)
    try:
        unpacked = inflater.decompress(bundle, MAX_UNPACKED_BYTES)
    except zlib.error as exc:
        raise InstallError("bad_bundle", f"the bundle is no gzip file: {exc}", "build it anew") from exc
    if inflater.unconsumed_tail:
        raise _too_large()
    if not inflater.eof:
        raise InstallError("bad_bundle", "the bundle ends too early", "build it anew")
    return unpacked


def _too_large() -> InstallError:
    return InstallError("bad_bundle", "the bundle is larger than any agent can be", "build it anew")


def _write_new(path: str, data: "memoryview | bytes", mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
    finally:
        os.close(fd)


def _write_code(scratch: str, packed: bytes) -> None:
    """The byte code that came along, a tenth of a second of a processor less than making it. Never compared with its
    source again: a release does not change."""
    if not packed:
        return
    import importlib.util
    import marshal
    import zlib

    head = importlib.util.MAGIC_NUMBER + b"\x01\0\0\0"
    for name, (source_hash, code) in marshal.loads(zlib.decompress(packed)).items():  # noqa: S302 - as code, over SSH
        source = os.path.join(scratch, name)
        if os.path.isfile(source):
            path = importlib.util.cache_from_source(source)
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            _write_new(path, head + source_hash + code, 0o644)


def _compile(scratch: str, final: str) -> None:
    """Byte code for this Python, where there is none yet. An agent that compiles its own modules at its start keeps 4
    MB of what that took."""
    import importlib.util

    for directory, folders, names in os.walk(scratch):
        folders[:] = [one for one in folders if one != "__pycache__"]
        for name in sorted(names):
            path = os.path.join(directory, name)
            if name.endswith(".py") and not os.path.exists(importlib.util.cache_from_source(path)):
                import py_compile

                try:
                    py_compile.compile(path, dfile=os.path.join(final, os.path.relpath(path, scratch)), quiet=2)
                except OSError:
                    return  # no room: the agent compiles for itself


def _move_in(scratch: str, final: str) -> bool:
    try:
        os.rename(scratch, final)
        return True
    except OSError as exc:
        if exc.errno in (errno.EEXIST, errno.ENOTEMPTY) and os.path.isdir(final):
            return False  # a host that shares this home was quicker; same digest, same content
        raise


def current(agent_dir: str) -> str:
    """The digest `current` points to, "" when there is none."""
    return _link_digest(os.path.join(agent_dir, "current"))


def previous(agent_dir: str) -> str:
    return _link_digest(os.path.join(agent_dir, "previous"))


def _link_digest(path: str) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def switch(agent_dir: str, home: str, digest: str) -> bool:
    """Point `current` at the release, atomically, and `previous` at what it was. True when something changed."""
    before = current(agent_dir)
    if before == digest[:16]:
        return False
    if before:
        _replace_link(release_dir(home, before), os.path.join(agent_dir, "previous"))
    _replace_link(release_dir(home, digest), os.path.join(agent_dir, "current"))
    return True


def forget_previous(agent_dir: str, earlier: str = "", home: str = "") -> None:
    """After a way back: `previous` is the release `earlier` than the present one; "": none is known."""
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
    """Remove all releases, and the home itself, when no agent directory is left there. True when the home is gone.

    Single releases are never removed while an agent remains: a runner that has lived for weeks may stem from any.
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
    """Remove a tree that holds directories only; a file keeps it."""
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(directory)
        except OSError:
            return False
    return not os.path.lexists(path)


def wait_gone(path: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while os.path.lexists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def read_link_target(agent_dir: str) -> Optional[str]:
    """The absolute directory of the current release, None when there is none."""
    link = os.path.join(agent_dir, "current")
    return os.path.realpath(link) if os.path.lexists(link) else None
