"""Modules of a release are loaded as by Python's own finder: from their current sources, with the same names."""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from remote_agent.system import lean_import

SHOWN = """
import sys
sys.path.insert(0, sys.argv[1])
from remote_agent.system import lean_import
lean_import.install()
from remote_agent.sub import module
import remote_agent.sub
print(module.VALUE, type(module.__loader__).__name__, module.__file__, module.__name__, module.__package__)
print(list(remote_agent.sub.__path__), remote_agent.sub.VALUE, module.get.__code__.co_filename)
"""


@pytest.fixture
def release(tmp_path: Path) -> Path:
    package = tmp_path / "remote_agent"
    for folder in (package, package / "system", package / "sub"):
        folder.mkdir()
        (folder / "__init__.py").write_text("VALUE = 'package'\n")
    shutil.copy(lean_import.__file__, package / "system")
    (package / "sub" / "module.py").write_text("VALUE = 'first'\ndef get(): pass\n")
    for path in package.rglob("*.py"):
        py_compile.compile(str(path), doraise=True)
    return tmp_path


def shown(release: Path) -> list[str]:
    words = [sys.executable, "-I", "-S", "-c", SHOWN, str(release)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_compiled_module_is_loaded_with_its_names_and_places(release: Path) -> None:
    folder = release / "remote_agent" / "sub"
    first, second = shown(release)
    assert first == f"first Compiled {folder}/module.py remote_agent.sub.module remote_agent.sub"
    assert second == f"['{folder}'] package {folder}/module.py"


def test_a_changed_source_counts(release: Path) -> None:
    path = release / "remote_agent" / "sub" / "module.py"
    before = path.stat()
    path.write_text("VALUE = 'other'\ndef get(): pass\n")
    os.utime(path, (before.st_atime, before.st_mtime + 2))
    assert shown(release)[0].startswith("other SourceFileLoader ")
    assert shown(release)[0].startswith("other Compiled ")  # compiled by Python at the first start


@pytest.mark.parametrize("harm", ["missing", "short", "other Python", "by hash"])
def test_what_is_not_compiled_for_this_python_is_loaded_from_its_source(release: Path, harm: str) -> None:
    path = release / "remote_agent" / "sub" / "module.py"
    compiled = Path(py_compile.compile(str(path), doraise=True) or "")
    if harm == "missing":
        compiled.unlink()
    elif harm == "by hash":
        py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    else:
        data = compiled.read_bytes()
        compiled.write_bytes(data[:9] if harm == "short" else b"\0\0\0\0" + data[4:])
    assert shown(release)[0].startswith("first SourceFileLoader ")


def test_modules_of_others_are_left_to_python() -> None:
    assert lean_import.Finder.find_spec("remote_agent") is None
    assert lean_import.Finder.find_spec("json.decoder", ["/usr/lib/python3/json"]) is None
    assert lean_import.Finder.find_spec("remote_agent.nothing", [os.path.dirname(lean_import.__file__)]) is None
