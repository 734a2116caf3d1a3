"""Value types that several configuration sections use."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from procguard.errors import UsageError

# strict: `port: true` and `enabled: "no"` are errors and not converted to 1 and true. YAML already yields typed values.
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class Section(BaseModel):
    model_config = STRICT


_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}


MAX_CAUSES = 50


def causes_of_failure(causes: dict[str, str]) -> dict[str, str]:
    """Validate user-defined causes of failure, {cause: regular expression}. Raises ValueError."""
    if not causes:
        return causes
    from procguard import expression  # noqa: PLC0415 - RE2 is loaded on demand: commands read the configuration

    if len(causes) > MAX_CAUSES:
        raise ValueError(f"at most {MAX_CAUSES} causes")
    for word, text in causes.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", word):
            raise ValueError(f"words of up to 40 lower-case letters, digits and _ as causes, not {word[:60]!r}")
        try:
            expression.read(text, name=word)
        except UsageError as exc:
            raise ValueError(f"regular expressions as RE2 reads them: {exc}") from exc
    return causes


def size_in_bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", value)
    if found is None or found[2].upper() not in _SIZE_UNITS:
        raise ValueError('a size in bytes, or with its unit: "256 MiB"')
    return int(found[1]) * _SIZE_UNITS[found[2].upper()]


POSTGRES_SCHEMES = ("postgresql://", "postgres://")


def is_postgres_url(text: str) -> bool:
    return text.startswith(POSTGRES_SCHEMES)


def postgres_url_problem(url: str) -> str:
    """What is expected instead of `url`; "" if it is valid for `state.database`. A URL with a password is invalid,
    because `ps`, the configuration and messages would show it; the text returned repeats nothing of the URL."""
    if not is_postgres_url(url):
        return "a URL that begins with postgresql://"
    rest = url.partition("://")[2]
    if ":" in rest.rpartition("@")[0] or re.search(r"[?&](password|passfile|sslpassword)=", rest, re.IGNORECASE):
        return "a URL without a password: put that into a file and name it in state.database_password_file"
    if any(letter.isspace() for letter in url) or not url.isprintable():
        return "a URL without spaces"
    return ""
