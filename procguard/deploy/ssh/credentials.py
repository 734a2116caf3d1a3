"""The secrets of one run: passwords for SSH and sudo, passphrases of keys, and their order of precedence.

A host's own secret (ansible_password, ansible_become_password, … in the inventory), then the prompted one, then
PROCGUARD_SSH_PASSWORD and similar, or the private file in PROCGUARD_SSH_PASSWORD_FILE. Passphrases are prompted for
on a terminal when a key needs one. No secret is ever part of argv, a Target or the manager's state.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from procguard.console import terminal
from procguard.console.language import shown
from procguard.errors import UsageError

SSH_PASSWORD = "PROCGUARD_SSH_PASSWORD"  # noqa: S105 - names of variables, no secrets
BECOME_PASSWORD = "PROCGUARD_BECOME_PASSWORD"  # noqa: S105
JUMP_PASSWORD = "PROCGUARD_JUMP_PASSWORD"  # noqa: S105
PASSPHRASE = "PROCGUARD_SSH_PASSPHRASE"  # noqa: S105
MAX_FILE_BYTES = 4096
ATTEMPTS = 3

Ask = Callable[[str], str]


@dataclass(frozen=True)
class HostSecrets:
    """The secrets of one host in the inventory; empty if not given."""

    password: str = field(default="", repr=False)
    become_password: str = field(default="", repr=False)
    passphrase: str = field(default="", repr=False)


class LoginCredentials:
    """Passwords and passphrases of a run. Safe to use from several threads: one thread prompts, and the others wait.

    `ask`: prompts for a passphrase (None: no terminal). Raises UsageError for an unreadable file.
    """

    def __init__(
        self,
        hosts: Mapping[str, HostSecrets] | None = None,
        *,
        password: str = "",
        become_password: str = "",
        ask: Ask | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        values = os.environ if environ is None else environ
        self._hosts = dict(hosts or {})
        self._password = password or _from(values, SSH_PASSWORD)
        self._become_password = become_password or _from(values, BECOME_PASSWORD)
        self._jump_password = _from(values, JUMP_PASSWORD)
        self._passphrase = _from(values, PASSPHRASE)
        self._ask = ask
        self._lock = threading.Lock()
        self._opened: dict[str, object] = {}  # key file -> the key; None: its passphrase is unknown

    def password(self, host: str) -> str:
        """The password for the log-in at a host of the inventory; "" if none."""
        return self._of(host).password or self._password

    def jump_password(self) -> str:
        """The password for the log-in at jump hosts, which never receive the hosts' passwords; "" if none."""
        return self._jump_password

    def become_password(self, host: str) -> str:
        """The password for sudo on `host`; "" if none is known."""
        return self._of(host).become_password or self._become_password

    def key(self, path: str, host: str, unlock: Callable[[str], Any]) -> Any:
        """The key at `path`, unlocked by `unlock(passphrase)`, or None if its passphrase is unknown. Cached for all
        hosts, because it takes 0.1 s and possibly a prompt."""
        with self._lock:
            if path not in self._opened:
                known = filter(None, (self._of(host).passphrase, self._passphrase))
                found = next((key for one in known if (key := unlock(one)) is not None), None)
                self._opened[path] = self._asked(path, unlock) if found is None else found
            return self._opened[path]

    def opened(self, path: str) -> Any:
        """The key at `path` if it was unlocked already."""
        return self._opened.get(path)

    def _asked(self, path: str, unlock: Callable[[str], Any]) -> Any:
        for attempt in range(ATTEMPTS if self._ask else 0):
            assert self._ask is not None
            given = self._ask(f"{'Wrong. ' if attempt else ''}Passphrase of the key {path} (empty: do without it): ")
            key = unlock(given) if given else None
            if key is not None or not given:
                return key
        return None

    def _of(self, host: str) -> HostSecrets:
        return self._hosts.get(host) or HostSecrets()


def ask_on_terminal(question: str) -> str:
    """Prompt for one line without echo. Raises UsageError without a terminal."""
    import getpass  # noqa: PLC0415 - termios; only for a prompt

    if not sys.stdin.isatty():
        raise UsageError(
            f"{question.strip(' :')}: no terminal for a prompt",
            f"write it to a file that only you can read, and set {SSH_PASSWORD}_FILE, {BECOME_PASSWORD}_FILE",
        )
    return getpass.getpass(terminal.line(shown(question)))


def _from(environ: Mapping[str, str], name: str) -> str:
    """The value of `name`, or the first line of the file that `<name>_FILE` names."""
    path = environ.get(f"{name}_FILE", "")
    return _first_line(f"{name}_FILE", os.path.expanduser(path)) if path else environ.get(name, "")


def _first_line(name: str, path: str) -> str:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise UsageError(f"{name}: other users can read {path}", f"chmod 600 {path}")
            text = file.readline(MAX_FILE_BYTES).decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"{name}: cannot read {path} ({reason})", "use a file with the secret in its first line"
        ) from exc
    if not text:
        raise UsageError(f"{name}: {path} is empty", "write the secret into its first line")
    return text
