"""The texts in the language of a command: that of `--lang`, else that of the environment."""

from __future__ import annotations

from procguard.console import language
from procguard.i18n import words


def chosen(preference: str = "") -> words.Words:
    """The texts in the language `preference`, else in the environment's. Raises UsageError for an unknown language."""
    if preference:
        return words.Words(language.checked(preference))
    return words.Words(language.of_environment())
