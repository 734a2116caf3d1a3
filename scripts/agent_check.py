"""Checks that remote_agent runs on a bare Python 3.9, as hosts have it: with vermin, and by its imports.

python scripts/agent_check.py      prints one line for each finding; exits with code 1 if there is any
"""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import file_findings

ROOT = Path(__file__).resolve().parents[1]
OWN = "remote_agent"
TARGET = "3.9"
# Modules of this Python, and those of later ones that the agent tries first.
STANDARD_LIBRARY = sys.stdlib_module_names | {"_sha2"}
# Imports that a bare Python may lack: pyzmq is used by this one module, if the host has it and the manager offers the
# zmq channel.
TRIED = {"zmq": "transport/zmq.py"}


def main() -> int:
    found = [*too_new(), *foreign_imports()]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


def too_new() -> list[str]:
    """Features that Python 3.9 lacks, as found by vermin. Only changed files are read, because reading all takes
    seconds."""
    paths = [str(path.relative_to(ROOT)) for path in _files()]
    basis = ("vermin", importlib.metadata.version("vermin"), TARGET)
    findings = file_findings.of_files(ROOT, paths, ROOT / "build" / "vermin.json", basis, _vermin)
    return [one for found in findings.values() for one in found]


def _vermin(paths: list[str]) -> file_findings.Findings:
    words = ["-c", "from vermin.main import main; main()", "--no-tips", f"--target={TARGET}-", "--violations"]
    done = subprocess.run(
        [sys.executable, *words, "--format", "parsable", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found: file_findings.Findings = {}
    for line in done.stdout.splitlines():
        name, number, _, _, version, feature = line.split(":", 5)
        if feature:
            path = str(Path(name).relative_to(ROOT))
            found.setdefault(path, []).append(f"{path}:{number}: {feature} needs Python {version}; hosts have {TARGET}")
    if done.returncode and not found:
        raise SystemExit(f"vermin did not run: {(done.stderr or done.stdout).strip()[-500:]}")
    return found


def foreign_imports() -> list[str]:
    """Imports of the agent that a bare Python does not have, except those in `TRIED`."""
    return [one for path in _files() for one in _foreign_imports_of(path)]


def _files() -> list[Path]:
    return sorted((ROOT / OWN).rglob("*.py"))


def _foreign_imports_of(path: Path) -> list[str]:
    siblings = {one.stem for one in path.parent.iterdir()}
    found = []
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            tried = top in TRIED and (ROOT / OWN / TRIED[top]) == path
            if top not in STANDARD_LIBRARY and top not in {OWN} | siblings and not tried:
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                found.append(f"{place}: {top} is not in the standard library; the hosts have nothing else")
    return found


if __name__ == "__main__":
    sys.exit(main())
