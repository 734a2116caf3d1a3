"""Reasons for SSH failures. The English text is the error's own message, which names ports and files."""

from __future__ import annotations

from procguard.errors import ProcGuardError
from procguard.i18n.reasons import Reason, because

# Codes of HostError and HostUnreachable that have a message of their own.
CODES = (
    "name", "refused", "timeout", "dropped", "network", "auth", "jump", "jump_auth", "host_key_unknown",
    "host_key_changed", "key_missing", "proxy", "become", "not_installed", "connection_lost",
)  # fmt: skip


def why(exc: ProcGuardError, host: str) -> Reason:
    if exc.code in CODES:
        return because(f"ssh_failed.{exc.code}", host=host, message=str(exc))
    return because("ssh.error", host=host, message=str(exc), error=exc.code)
