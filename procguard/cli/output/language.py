"""In which language a command answers: --lang, else the terminal's."""

from __future__ import annotations

import os

from procguard.errors import UsageError
from procguard.i18n import words


def chosen(wish: str) -> words.Words:
    """Raises UsageError."""
    if wish and wish.lower().split("-")[0].split("_")[0] not in words.LANGUAGES:
        raise UsageError(f"--lang {wish}: not a language of ProcGuard's", f"one of: {', '.join(words.LANGUAGES)}")
    return words.Words(words.pick(wish, *(os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))))
