"""Private keys for a login: files with a passphrase, and keys of ssh-agent that a file refers to.

Paramiko tries plain key files, the agent and the default keys itself; this module adds the rest. Opens no
connections.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import paramiko

from procguard.deploy.ssh.credentials import LoginCredentials
from procguard.json_types import Json

USUAL_KEYS = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519")


class LockedKey(paramiko.PasswordRequiredException):
    """The log-in was refused, and a key that might be accepted could not be used without its passphrase."""

    def __init__(self, path: str) -> None:
        super().__init__(f"the key {path} needs a passphrase")
        self.path = path


def identity_files(key_filename: str, ssh_config: Json) -> list[str]:
    """The existing key files for a log-in: those of the inventory, otherwise of ~/.ssh/config, otherwise the
    defaults."""
    named = [key_filename] if key_filename else list(ssh_config.get("identityfile", []))
    return [path for path in map(os.path.expanduser, named or USUAL_KEYS) if os.path.isfile(path)]


def is_locked(path: str) -> bool:
    """Whether the key at `path` needs a passphrase. False if it is not a key."""
    try:
        paramiko.PKey.from_path(path)
    except (paramiko.PasswordRequiredException, TypeError):  # TypeError: raised by cryptography
        return True
    except Exception:
        return False
    return False


def unlock(path: str, passphrase: str) -> paramiko.PKey | None:
    """The unlocked key; None for a wrong passphrase."""
    try:
        return paramiko.PKey.from_path(path, passphrase.encode())  # type: ignore[arg-type]  # it hands it on as it is
    except Exception:
        return None


def unlocked(paths: list[str], host: str, credentials: LoginCredentials) -> Iterator[paramiko.PKey]:
    """Yields the keys among `paths` that need a passphrase, unlocked one after the other, so that the next prompt
    appears only if the previous key was refused. Raises LockedKey at the end if one remained locked."""
    refused = ""
    for path in filter(is_locked, paths):
        key = credentials.key(path, host, functools.partial(unlock, path))
        if key is None:
            refused = refused or path
        else:
            yield key
    if refused:
        raise LockedKey(refused)


def agent_key(paths: list[str]) -> paramiko.PKey | None:
    """The first key of ssh-agent whose public key file is beside one of `paths`, for IdentitiesOnly."""
    wanted = {blob for path in paths if (blob := _public_blob(path))}
    if not wanted:
        return None
    agent = paramiko.Agent()
    return next((key for key in agent.get_keys() if key.get_base64() in wanted), None)


def _public_blob(path: str) -> str:
    try:
        with open(path.removesuffix(".pub") + ".pub", encoding="ascii", errors="replace") as file:
            words = file.readline(16 * 1024).split()
    except OSError:
        return ""
    return words[1] if len(words) > 1 else ""
