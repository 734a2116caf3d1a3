"""Known vulnerabilities of the Python that runs the manager, for a note at start.

Each is detected in the library itself, because distributions fix them without a new version number. Only those that
can affect the manager are listed, with the workaround if there is one.
"""

from __future__ import annotations

import http.cookies
import sys
import tarfile
from collections.abc import Callable

NEWER = "use a newer release of the same Python"


def _cookies() -> bool:
    """Quadratic time for backslashes in a quoted cookie (CVE-2024-7592). The fixed module has `_unquote_sub`."""
    return not hasattr(http.cookies, "_unquote_sub")


def _tar() -> bool:
    """Endless loop for a tar member with a negative size (CVE-2025-8194). The fixed module raises TarError."""
    try:
        tarfile.TarInfo()._block(-1)  # type: ignore[attr-defined]
    except tarfile.TarError:
        return False
    return True


HOLES: tuple[tuple[str, Callable[[], bool], str], ...] = (
    ("CVE-2024-7592", _cookies, "http.cookies takes minutes for one request; ProcGuard does not use it"),
    ("CVE-2025-8194", _tar, "a tar from a host may never end; ProcGuard unpacks only what it has made itself"),
)


def known_holes() -> list[str]:
    """A message for each known vulnerability of this interpreter."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    found = ((f"this Python ({version}) has {name}", what) for name, has, what in HOLES if has())
    return [f"{hole}: {what}; {NEWER}" for hole, what in found]
