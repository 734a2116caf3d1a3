"""`procguard_sync` of one host: which local folder goes where, and what is excluded.

Knows the variable only; deploy/sync/source.py reads the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VARIABLE = "procguard_sync"
KEYS = ("src", "dest", "exclude")

ReportMistake = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Sync:
    """One entry. `src`: an absolute local path; `dest`: a path on the host; `exclude`: patterns."""

    src: str
    dest: str
    exclude: tuple[str, ...] = ()


def read(value: Any, base: str, where: str, report: ReportMistake) -> tuple[Sync, ...]:
    """The rendered variable of one host. A relative `src` is relative to `base`, the inventory's folder."""
    if value in (None, "", []):
        return ()
    found = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, dict) or not entry.get("src"):
            report(where, f"{VARIABLE}: {entry!r} is not a mapping with src", "e.g. {src: ~/project, dest: ~/project}")
            continue
        unknown = [str(key) for key in entry if key not in KEYS]
        if unknown:
            report(where, f"{VARIABLE}: unknown key {', '.join(unknown)}", f"known: {', '.join(KEYS)}")
            continue
        exclude = entry.get("exclude") or []
        patterns = [exclude] if isinstance(exclude, str) else exclude
        if not isinstance(patterns, list) or not all(isinstance(one, str) and one.strip("/") for one in patterns):
            report(where, f"{VARIABLE}: exclude: {exclude!r}", "a list of patterns, e.g. ['*.ckpt', data/]")
            continue
        src = os.path.normpath(os.path.join(base, os.path.expanduser(str(entry["src"]))))
        dest = str(entry.get("dest") or f"~/{os.path.basename(src)}").rstrip("/")
        if not dest.startswith(("/", "~/")) or ".." in dest.split("/"):
            report(where, f"{VARIABLE}: dest: {dest!r}", "an absolute path on the host, or one that begins with ~/")
            continue
        found.append(Sync(src, dest, tuple(patterns)))
    for dest in {one.dest for one in found if sum(other.dest == one.dest for other in found) > 1}:
        report(where, f"{VARIABLE}: two entries go to {dest}", "use a different dest for each")
    return tuple(found)
