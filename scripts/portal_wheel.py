"""Builds the wheel and unpacks it into a folder, for tests of the bundled portal that install nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def missing() -> str:
    """Why the portal cannot be bundled on this machine; "" if it can."""
    if shutil.which("node") is None:
        return "needs node (apt-get install nodejs npm)"
    if not (ROOT / "scripts" / "web" / "node_modules" / "esbuild").is_dir():
        return "needs esbuild: run scripts/setup_web.sh"
    return ""


def unpacked(folder: Path) -> Path:
    """The folder from which `import procguard` imports the wheel's copy. Raises CalledProcessError."""
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    environment = {**os.environ, "PROCGUARD_WEB_BUNDLE": "required"}
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=120, env=environment)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    return folder / "wheel"
