"""Caches the findings of a slow tool per file, by a digest of everything that they depend on, so that only changed
files are read again.

Independent of the tool. The cache is in build/, one file per tool; without it, all files are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Findings = dict[str, list[Any]]


def of_files(
    root: Path, paths: Iterable[str], memory: Path, basis: tuple[str, ...], read: Callable[[list[str]], Findings]
) -> Findings:
    """The findings by path below `root`. `basis`: what they depend on besides the file, such as the tool's version.
    `read` is called with the changed files, if there are any."""
    digests = {path: _digest(root / path, (*basis, path)) for path in paths}
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    results = {digest: known[digest] for digest in digests.values() if digest in known}
    changed = [path for path, digest in digests.items() if digest not in results]
    if changed:
        found = read(changed)
        results.update({digests[path]: found.get(path, []) for path in changed})
        memory.parent.mkdir(exist_ok=True)
        new = memory.with_suffix(".new")
        new.write_text(json.dumps(results), encoding="utf-8")
        new.replace(memory)
    return {path: results[digest] for path, digest in digests.items()}


def _digest(path: Path, basis: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(basis).encode() + b"\0" + path.read_bytes()).hexdigest()
