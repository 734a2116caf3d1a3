"""The Chromium that browser tests, the portal's benchmark and its screenshots use: the system's own."""

from __future__ import annotations

import shutil

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOW_TO_HAVE_IT = "needs chromium (apt-get install chromium fonts-noto-cjk)"
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_SHELL = "chromium-headless-shell"  # the same engine without windows, at a third of the processor time


def path() -> str | None:
    """The full browser, as users have it; the headless shell if there is none."""
    return _first(*_PROGRAMS, _SHELL)


def path_for_tests() -> str | None:
    """The headless shell; the full browser if there is none."""
    return _first(_SHELL, *_PROGRAMS)


def _first(*names: str) -> str | None:
    return next((found for name in names if (found := shutil.which(name))), None)
