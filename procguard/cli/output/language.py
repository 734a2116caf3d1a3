"""In which language a command answers: --lang, else the terminal's."""

from __future__ import annotations

import os

from procguard.errors import UsageError
from procguard.i18n import words


def chosen(preference: str) -> words.Words:
    """Raises UsageError."""
    if preference and preference.lower().split("-")[0].split("_")[0] not in words.LANGUAGES:
        raise UsageError(f"--lang {preference}: not a language of ProcGuard's", f"one of: {', '.join(words.LANGUAGES)}")
    return words.Words(words.pick(preference, *(os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))))
