"""The content that is sent to hosts: the installer's source for one session, and the release as a reproducible tar.gz.

The same input gives the same bytes and SHA-256 on every machine and day. Knows neither hosts nor SSH.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import io
import marshal
import re
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

import remote_agent
from procguard.deploy.session.ahead import Ahead

# Run as `exec(code)` by the boot line of `channel.REMOTE_COMMAND`, with `i` = the rest of stdin. If this Python can
# load the manager's byte code, nothing is compiled; compiling is most of a session's cost on a host. Each module is
# packed separately, because a session needs half of them. Nothing is freed that ends with the process.
_BOOT = """
import gc, marshal, sys, zlib
if hasattr(gc, "set_threshold"):  # PyPy has no such function
    gc.set_threshold(100000)
from importlib.machinery import ModuleSpec
from importlib.util import MAGIC_NUMBER
class ReceivedModules:
    magic, sources, codes = marshal.loads(i.read(int(i.readline())))
    packages = {name.rpartition(".")[0] for name in sources}
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return ModuleSpec(name, cls, is_package=name in cls.packages) if name in cls.sources else None
    @staticmethod
    def create_module(spec):
        return None
    @classmethod
    def exec_module(cls, module):
        name = module.__name__
        same = cls.magic == MAGIC_NUMBER
        made = zlib.decompress((cls.codes if same else cls.sources)[name])
        exec(marshal.loads(made) if same else compile(made, name, "exec"), module.__dict__)
sys.meta_path.insert(0, ReceivedModules)
import os, remote_agent.install.__main__
code = remote_agent.install.__main__.main(["session"])
sys.stdout.flush()
os._exit(code)
"""
_IMPORT = re.compile(r"^\s*from (remote_agent[\w.]*) import (\([^)]*\)|.+)$", re.MULTILINE)

MAGIC = importlib.util.MAGIC_NUMBER.hex()
_ROOT = Path(remote_agent.__file__).parent.parent
_ahead: Ahead | None = None

F = TypeVar("F", bound=Callable[..., Any])


def _once(function: F) -> F:
    """Cache a function's results; concurrent calls compute each only once, because 32 sessions start together."""
    lock, made = threading.Lock(), {}

    @functools.wraps(function)
    def asked(*arguments: Any) -> Any:
        with lock:
            if arguments not in made:
                made[arguments] = function(*arguments)
            return made[arguments]

    return asked  # type: ignore[return-value]


@_once
def installer_sources() -> dict[str, str]:
    """Module name -> source, of the installer and its imports from its own package. The installer runs from memory with
    these; it loads everything else from the release that it unpacked."""
    sources: dict[str, str] = {}
    waiting = ["remote_agent.install.__main__"]
    while waiting:
        name = waiting.pop()
        if name in sources:
            continue
        sources[name] = _file_of(name).read_text("utf-8")
        for module, names in _IMPORT.findall(sources[name]):
            inner = [f"{module}.{one.split(' as ')[0].strip()}" for one in names.strip("()").split(",")]
            waiting.extend(one for one in (module, *inner) if _file_of(one).exists())
    return sources


def _file_of(module: str) -> Path:
    return _ROOT / f"{module.replace('.', '/')}.py"


def _packages(modules: Iterable[str]) -> set[str]:
    """The packages that contain the modules."""
    parts = [module.split(".") for module in modules]
    return {".".join(one[:count]) for one in parts for count in range(1, len(one))}


def _release_files() -> dict[str, Path]:
    """Name in a release -> file, for every module."""
    return {str(path.relative_to(_ROOT)): path for path in sorted((_ROOT / "remote_agent").rglob("*.py"))}


@dataclass(frozen=True)
class Bundle:
    """A release to install. `sha256` identifies it; `unpacked_bytes` is the disk space that it requires."""

    data: bytes
    sha256: str
    unpacked_bytes: int


@_once
def build() -> Bundle:
    """Build the release, which is the same for every host."""
    data, unpacked_bytes = _made_ahead("build") or _packed()
    return Bundle(data, hashlib.sha256(data).hexdigest(), unpacked_bytes)


def _packed() -> tuple[bytes, int]:
    files = {name: path.read_bytes() for name, path in _release_files().items()}
    return pack(files), sum(map(len, files.values()))


def begin() -> None:
    """Build the common content in another process, while the caller imports modules and reads the inventory."""
    global _ahead
    _ahead = Ahead(lambda: {"bootstrap": bootstrap(), "byte_code": byte_code(), "build": _packed()})


def _made_ahead(name: str) -> Any:
    made = _ahead.value() if _ahead is not None else None
    return made[name] if made else None


def releases() -> list[str]:
    """The release names that agents of this release report."""
    return [build().sha256[:16]]


@_once
def byte_code() -> bytes:
    """The byte code of the release's modules, for hosts whose Python has the same MAGIC: {file: (hash of its source,
    code)}, packed.

    Not part of the bundle, which does not depend on the manager's Python.
    """
    if found := _made_ahead("byte_code"):
        return bytes(found)
    made = {}
    for name, path in _release_files().items():
        made[name] = (importlib.util.source_hash(path.read_bytes()), _code(name))
    return zlib.compress(marshal.dumps(made, 2), 1)


@_once
def _code(name: str) -> bytes:
    """The byte code of a file of the release; `name` appears in tracebacks. Usually read from Python's cache, which
    takes a fifth of the time of compiling."""
    path = _ROOT / name
    module = f"remote_agent.{path.stem}"
    code = SourceFileLoader(module, str(path)).get_code(module)
    assert code is not None, path
    return marshal.dumps(_renamed(code, name))


def _renamed(code: CodeType, filename: str) -> CodeType:
    inner = [_renamed(one, filename) if isinstance(one, CodeType) else one for one in code.co_consts]
    return code.replace(co_filename=filename, co_consts=tuple(inner))


def pack(files: dict[str, bytes]) -> bytes:
    """A tar.gz with sorted names and no trace of time, owner or machine."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(files[name]))
    return gzip.compress(tar.getvalue(), compresslevel=6, mtime=0)


def installer_zip() -> bytes:
    """remote_agent.install and its imports as one file for any Python >= 3.9: `python3 install.pyz status --home …`."""
    sources = installer_sources()
    files = {f"{name.replace('.', '/')}.py": source for name, source in sources.items()}
    files |= {f"{name.replace('.', '/')}/__init__.py": "" for name in _packages(sources)}
    files["__main__.py"] = "import sys\n\nfrom remote_agent.install.__main__ import main\n\nsys.exit(main())\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])  # ZipInfo's default date, always 1980
    return out.getvalue()


@_once
def bootstrap() -> bytes:
    """The bytes that turn a bare `python3` on a host into `remote_agent.install session`: sources and byte code."""
    if found := _made_ahead("bootstrap"):
        return bytes(found)
    packages = _packages(installer_sources())
    sources = dict.fromkeys(packages, b"")
    codes = {name: marshal.dumps(compile("", name, "exec")) for name in packages}
    for name, source in installer_sources().items():
        sources[name], codes[name] = source.encode(), _code(str(_file_of(name).relative_to(_ROOT)))
    packed = [{name: zlib.compress(data) for name, data in one.items()} for one in (sources, codes)]
    modules = marshal.dumps((importlib.util.MAGIC_NUMBER, *packed), 2)
    boot = _BOOT.encode()
    return b"%d\n%s%d\n%s" % (len(boot), boot, len(modules), modules)
