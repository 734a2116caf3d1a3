"""The bundle: reproducible bytes, and only what a host needs."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from procguard.deploy.session import bundle
from procguard.deploy.session.local import LocalPipe, clean_environment
from procguard.deploy.session.session import REMOTE_COMMAND, HostSession, skipped_in_words
from procguard.deploy.ssh.target import Target
from procguard.errors import HostError
from remote_agent.install import release


def names(one: bundle.Bundle) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(one.data)) as archive:
        return set(archive.getnames())


def test_same_input_gives_same_bytes_whatever_the_day() -> None:
    files = {"b": b"2", "a": b"1"}
    first = bundle.pack(files)
    time.sleep(1.1)  # a timestamp anywhere in it would show
    assert bundle.pack(dict(reversed(files.items()))) == first
    assert bundle.build().sha256 == hashlib.sha256(bundle.build().data).hexdigest()


def test_another_process_builds_the_same_bundle() -> None:
    code = "from procguard.deploy.session import bundle; print(bundle.build().sha256)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == bundle.build().sha256


def test_the_bundle_holds_the_agents_modules_and_nothing_else() -> None:
    package = Path(bundle.remote_agent.__file__).parent
    assert names(bundle.build()) == set(map(str, (path.relative_to(package.parent) for path in package.rglob("*.py"))))


def test_the_bootstrap_carries_all_that_the_installer_imports(tmp_path: Path) -> None:
    deadline = time.monotonic() + 20
    pipe = LocalPipe("here")
    try:
        session = HostSession(pipe, Target("here", local=True), bundle.bootstrap())
        session.open(deadline)
        where = {"fleet_id": "f", "host": "here", "home": str(tmp_path / "home")}
        assert session.hello(where, deadline)["installed"] is False
        assert session.perform("uninstall", where, deadline)["changed"] is False
        with pytest.raises(HostError, match="no agent is installed"):
            session.perform("start", where, deadline)
        with pytest.raises(HostError, match="not a valid fleet or host name"):
            session.hello({**where, "host": "../x"}, deadline)
    finally:
        pipe.close()


def test_the_local_environment_is_clean_of_the_operators_shell() -> None:
    seen = {
        "HOME": "/h",
        "PATH": f"{sys.prefix}/bin:/v/bin:/usr/bin",
        "VIRTUAL_ENV": "/v",
        "AWS_SECRET": "x",
        "LC_ALL": "C",
    }
    assert clean_environment(seen) == {"HOME": "/h", "PATH": "/usr/bin", "LC_ALL": "C"} or sys.prefix == sys.base_prefix
    assert os.defpath in clean_environment({"PATH": f"{sys.prefix}/bin", "VIRTUAL_ENV": sys.prefix})["PATH"]


def test_the_installers_sources_are_all_that_its_imports_name() -> None:
    """Also those inside of functions, which only some sessions reach."""
    sources = bundle.installer_sources()
    root = Path(bundle.remote_agent.__file__).parent.parent
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "remote_agent":
                named = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
                assert {one for one in named if (root / f"{one.replace('.', '/')}.py").exists()} <= set(sources)


def test_what_many_sessions_need_at_once_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    @bundle._once
    def slow(number: int) -> int:
        made.append(number)
        time.sleep(0.02)
        return number * 2

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(slow, [1, 1, 1, 1, 2, 1, 2, 1])) == [2, 2, 2, 2, 4, 2, 4, 2]
    assert sorted(made) == [1, 2]


def test_what_is_made_ahead_is_what_is_made_here() -> None:
    """In a separate interpreter: nothing is prepared in advance while other threads run."""
    code = (
        "from procguard.deploy.session import bundle; bundle.begin(); "
        "made = bundle._ahead.value(); bundle._ahead = None; "
        "print(made == {'bootstrap': bundle.bootstrap(), 'byte_code': bundle.byte_code(), 'build': bundle._packed()})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_what_cannot_be_made_ahead_is_made_by_who_asks_for_it() -> None:
    code = (
        "from procguard.deploy.session import bundle; made_here = bundle.byte_code; bundle.byte_code = None; "
        "bundle.begin(); bundle.byte_code = made_here; print(len(bundle.bootstrap()) > 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("same", [True, False], ids=["byte code of the same Python", "of another"])
def test_a_session_runs_with_the_managers_byte_code_and_without(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not same:
        monkeypatch.setattr(importlib.util, "MAGIC_NUMBER", b"xxxx")
    bootstrap = bundle.bootstrap.__wrapped__()
    deadline = time.monotonic() + 20
    pipe = LocalPipe("here")
    try:
        session = HostSession(pipe, Target("here", local=True, python=sys.executable), bootstrap)
        session.open(deadline)
        assert session.hello({"fleet_id": "f", "host": "here", "home": "/nonexistent"}, deadline)["installed"] is False
    finally:
        pipe.close()


def test_the_byte_code_that_travels_is_used_and_says_where_it_failed(tmp_path: Path) -> None:
    """It is written where this Python looks for it, for every module, and a traceback names the real file."""
    one = bundle.build()
    assert release.unpack(str(tmp_path), one.sha256, one.data, one.unpacked_bytes, bundle.byte_code())
    folder = Path(release.release_dir(str(tmp_path), one.sha256))
    modules = {str(path) for path in folder.rglob("*.py")}
    code = {f"{path.parent.parent}/{path.name.split('.')[0]}.py" for path in folder.rglob("__pycache__/*.pyc")}
    assert code == modules
    program = "import remote_agent.protocol.ids as m; print(m.__cached__); print(m.valid_id.__code__.co_filename)"
    command = [sys.executable, "-v", "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cached, file = done.stdout.split()
    assert f"matches {file}" in done.stderr or f"{cached} matches" in done.stderr, done.stderr[-500:]
    assert file == str(folder / "remote_agent" / "protocol" / "ids.py")


def _python_at(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


OLD = 'case "$*" in *platform*) echo 3.6.8;; *) exit 97;; esac'
REAL = f'exec {sys.executable} "$@"'
BROKEN = "echo Fatal Python error: init_fs_encoding: failed to get the Python codec >&2; exit 1"
CRASHES = "kill -SEGV $$"
STRIPPED = f"""exec {sys.executable} -c '
import sys, importlib.util as u; find = u.find_spec
u.find_spec = lambda name: None if name == "_ctypes" else find(name)
program = sys.argv[sys.argv.index("-c", 1) + 1]; sys.argv = ["-c"] + sys.argv[sys.argv.index("-c", 1) + 2:]
exec(program)' "$@"
"""
PYPY = f'exec {shutil.which("pypy3") or "/no/pypy3"} "$@"'
NAMES = {OLD: "3.6.8", BROKEN: "broken", CRASHES: "broken", STRIPPED: "incomplete", PYPY: "PyPy"}


def skipped_of(pythons: dict[str, str], wanted: str) -> list[str]:
    """As text, for those before the selected one."""
    if pythons.get(wanted) in (REAL, PYPY) or list(pythons.values()) == [PYPY]:
        return []
    return [f"{path.removeprefix('bin/')} ({NAMES[body]})" for path, body in pythons.items() if body in NAMES]


@pytest.mark.parametrize(
    ("pythons", "wanted", "found"),
    [
        ({"bin/python3": OLD, "bin/python3.11": REAL}, "", "installed"),
        ({"bin/python3": OLD, "home/miniconda3/bin/python3": REAL}, "", "installed"),
        ({"bin/python3": OLD, "own/python": REAL}, "own/python", "installed"),
        ({"bin/python3": BROKEN, "bin/python3.11": REAL}, "", "installed"),
        ({"bin/python3": CRASHES, "bin/python3.11": REAL}, "", "installed"),
        ({"bin/python3": STRIPPED, "bin/python3.11": REAL}, "", "installed"),
        ({"bin/python3": PYPY, "bin/python3.11": REAL}, "", "installed"),
        ({"bin/python3": PYPY}, "", "installed"),
        ({"own/pypy": PYPY, "bin/python3.11": REAL}, "own/pypy", "installed"),
        ({"own/python": BROKEN, "bin/python3": REAL}, "own/python", "installed"),
        ({"bin/python3": OLD, "bin/python3.9": "exit 2"}, "", "python3 (3.6.8), python3.9 (broken)"),
        ({"bin/python3": BROKEN, "bin/python3.9": STRIPPED}, "", "python3 (broken), python3.9 (incomplete)"),
        ({}, "", "none found"),
        ({"bin/python3": REAL}, "own/python", "not found on this host"),
        ({"home/own/python": REAL}, "~/own/python", "installed"),
        ({"own/python": OLD, "bin/python3": REAL}, "own/python", "installed"),
    ],
    ids=[
        "by its version",
        "conda",
        "the inventory's",
        "after a broken one",
        "after one that crashes",
        "after one that lacks modules",
        "rather than PyPy",
        "PyPy where there is nothing else",
        "PyPy by the inventory",
        "the inventory's is broken",
        "too old and broken",
        "broken and incomplete",
        "none",
        "the inventory's is missing",
        "the inventory's in the home",
        "the inventory's is too old",
    ],
)
def test_a_python_is_looked_for_where_one_may_be_and_what_was_found_instead_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pythons: dict[str, str], wanted: str, found: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to("/bin/sh")
    for name, body in pythons.items():
        _python_at(tmp_path / name, body)
    if PYPY in pythons.values() and shutil.which("pypy3") is None:
        pytest.skip("needs pypy3")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(exist_ok=True)
    command = re.sub(r" /(opt|usr)/[^\s;]+", "", REMOTE_COMMAND)  # what this machine may have there
    pipe, deadline = LocalPipe("here", command), time.monotonic() + 20
    try:
        session = HostSession(
            pipe,
            Target("here", python=wanted if wanted[:1] in ("", "~") else str(tmp_path / wanted)),
            bundle.bootstrap(),
        )
        where = {"fleet_id": "f", "host": "here", "home": str(tmp_path / "pg")}
        if found == "installed":
            session.open(deadline)
            hello = session.hello(where, deadline)
            assert hello["installed"] is False
            shown = [one.replace(f"{tmp_path}/", "") for one in skipped_in_words(hello["python_skipped"])]
            assert shown == skipped_of(pythons, wanted)
            return
        with pytest.raises(HostError, match=re.escape(found)) as caught:
            session.open(deadline)
            session.hello(where, deadline)
        assert caught.value.code == "no_python" and "ansible_python_interpreter" in str(caught.value)
    finally:
        pipe.close()
