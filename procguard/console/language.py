"""The language of a command's output: that of `--lang`, which is stored in PROCGUARD_LANG, else that of the locale."""

from __future__ import annotations

import os

from procguard.errors import UsageError

VARIABLE = "PROCGUARD_LANG"
VARIABLES = (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG")


def of_environment() -> str:
    preferences = [os.environ.get(name, "") for name in VARIABLES]
    if not any("zh" in one.lower() for one in preferences):
        return "en"  # without loading i18n, which short commands do not need
    from procguard.i18n.words import pick

    return pick(*preferences)


def checked(preference: str) -> str:
    """The language (en or zh) that `preference`, the value of `--lang`, names. Raises UsageError."""
    from procguard.i18n.words import LANGUAGES, pick

    if preference.lower().split("-")[0].split("_")[0] not in LANGUAGES:
        raise UsageError(f"--lang {preference}: not a language of ProcGuard's", f"one of: {', '.join(LANGUAGES)}")
    return pick(preference)


def shown(text: str) -> str:
    """A message or a Reason of ProcGuard in the language of the command."""
    language = of_environment()
    if language == "en":
        return text
    from procguard.i18n import reasons

    if isinstance(text, reasons.Reason):
        return reasons.rendered(text.code, text.params, language)
    from procguard.i18n.messages.catalogue import localized

    return localized(text, language)


def template(text: str) -> str:
    """A template of `styled` in the language of the command. In Chinese its values may be numbered: {1}."""
    language = of_environment()
    if language == "en":
        return text
    from procguard.i18n.messages.catalogue import template_of

    return template_of(text)


def sentence(first: str, second: str) -> str:
    """Two sentences of ProcGuard on one line, in the language of the command: an error and the next step."""
    joint = "；" if of_environment() == "zh" else "; "
    return f"{shown(first)}{joint}{shown(second)}" if second else shown(first)
