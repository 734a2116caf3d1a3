"""Host keys: reads them from hosts, and adds them to known_hosts after confirmation.

Owns reading keys over the same path as a deployment (including jump hosts) and writing known_hosts. A key that
differs from a known one is never added. Does not log in.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import fabric
import paramiko

from procguard.deploy.ssh import connection as ssh
from procguard.deploy.ssh.credentials import LoginCredentials
from procguard.deploy.ssh.target import Target
from procguard.errors import HostUnreachable, ProcGuardError

SCAN_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class ShownKey:
    """A key presented by a host. `name`: in the form of known_hosts, 10.0.0.7 or [10.0.0.7]:2222."""

    host: str
    status: Literal["new", "known", "changed", "unreachable"]
    name: str = ""
    kind: str = ""
    fingerprint: str = ""
    line: str = ""  # the known_hosts line of a new key
    error: HostUnreachable | None = None


def scan(targets: Sequence[Target], credentials: LoginCredentials | None = None, forks: int = 32) -> list[ShownKey]:
    """The keys that `targets` present, in their order. An untrusted jump host is returned alone and first, because
    hosts behind it can be reached only afterwards. `credentials`: for jump hosts; the hosts themselves present their
    keys before any log-in."""
    configs = {
        path: fabric.Config(runtime_ssh_path=path) if path else fabric.Config()
        for path in {target.ssh_config for target in targets}
    }

    def scanned(target: Target) -> ShownKey:
        return _scan(target, configs[target.ssh_config], credentials if target.proxy_jump else None)

    with ThreadPoolExecutor(max(1, min(forks, len(targets) or 1)), "scan") as pool:
        found = list(pool.map(scanned, targets))
    return list({(key.host, key.name, key.fingerprint): key for key in found}.values())


def _scan(target: Target, config: fabric.Config, credentials: LoginCredentials | None) -> ShownKey:
    if target.local:
        return ShownKey(target.host, "known", "this machine")
    connection = None
    try:
        connection = ssh.StrictConnection(target, config, SCAN_TIMEOUT_S, credentials)
        connection.open()
    except ssh.UnknownHostKey as exc:
        line = f"{exc.name} {exc.key.get_name()} {exc.key.get_base64()}"
        return ShownKey(target.host, "new", exc.name, exc.key.get_name(), exc.key.fingerprint, line)
    except paramiko.BadHostKeyException as exc:
        error = ssh.explain(exc, target)
        return ShownKey(target.host, "changed", exc.hostname, exc.key.get_name(), exc.key.fingerprint, error=error)
    except paramiko.AuthenticationException:
        return ShownKey(target.host, "known", target.address)  # the key was checked before any login was tried
    except Exception as exc:
        error = ssh.explain(exc, target)
        if error.code == "auth":
            return ShownKey(target.host, "known", target.address)
        return ShownKey(target.host, "unreachable", target.address, error=error)
    finally:
        if connection is not None:
            ssh.close(connection)
    return ShownKey(target.host, "known", target.address)


def add(keys: Sequence[ShownKey], target: Target | None = None) -> str:
    """Append the new keys to known_hosts (0600, created if missing) and return its path. Raises ProcGuardError."""
    own = shlex.split(target.known_hosts)[:1] if target and target.known_hosts else []
    path = os.path.expanduser(own[0] if own else "~/.ssh/known_hosts")
    lines = dict.fromkeys(key.line for key in keys if key.status == "new")
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write("".join(line + "\n" for line in lines).encode())
    except OSError as exc:
        raise ProcGuardError(f"{path}: cannot add host keys ({exc.strerror})", "add them by hand: ssh-keyscan") from exc
    return path
