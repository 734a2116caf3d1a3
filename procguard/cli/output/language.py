"""The texts of a command's language: `--lang`, else the terminal's."""

from __future__ import annotations

from procguard.console import language
from procguard.i18n import words


def chosen(preference: str = "") -> words.Words:
    """Raises UsageError."""
    if preference:
        return words.Words(language.checked(preference))
    return words.Words(language.of_environment())
