"""The manager with the portal bundled, as a wheel has it: opening a page takes half the processor time of loading each
module of a checkout. `made_once` makes the bundle; `main` is that of the manager, run by tests/forked.py."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "PROCGUARD_TEST_PORTAL"  # the environment variable with the folder


def made_once(folder: Path) -> Path:
    """Make `folder` a copy of web/ with its bundle, unless another process has. Raises CalledProcessError."""
    with open(folder.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "dist" / "manifest.json").exists():
            folder.mkdir()
            for one in (ROOT / "web").iterdir():
                (folder / one.name).symlink_to(one)
            words = ["node", str(ROOT / "scripts" / "web" / "bundle.mjs"), str(folder / "dist")]
            subprocess.run(words, check=True, capture_output=True, timeout=120)
    return folder


def main(words: list[str]) -> int:
    from procguard import main as manager
    from procguard.portal import web_monitor
    from procguard.portal.http.web_files import WebFiles

    web_monitor.WebFiles = lambda _checkout, fields: WebFiles(os.environ[FOLDER], fields)  # type: ignore[assignment,misc]
    return manager.main(words)
