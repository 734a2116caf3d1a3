"""The initial content of a fleet host's disk: users, keys, names.

Owns the contents of a host's upper layer; knows nothing of namespaces and networks.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

USER, USER_ID = "alice", 47001
SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
Subsystem sftp internal-sftp
"""


def write_key(path: Path) -> str:
    """A new Ed25519 key at `path` (0600). Returns the public half as a line for authorized_keys."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    path.touch(mode=0o600)
    path.write_bytes(private)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()


def furnish(directory: Path, name: str, addresses: dict[str, str], operator_key: str) -> str:
    """Write the host's own files into `<directory>/upper`. Returns its public host key."""
    for layer in ("upper", "work", "root"):
        (directory / layer).mkdir(parents=True)
    upper = directory / "upper"
    ssh_directory = upper / "etc/ssh"
    ssh_directory.mkdir(parents=True)
    os.setxattr(ssh_directory, "trusted.overlay.opaque", b"y")
    public = write_key(ssh_directory / "ssh_host_ed25519_key")
    (ssh_directory / "sshd_config").write_text(SSHD_CONFIG)
    moduli = Path("/etc/ssh/moduli")
    if moduli.exists():
        shutil.copy(moduli, ssh_directory)

    account = {"passwd": f"{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/bash", "group": f"{USER}:x:{USER_ID}:"}
    for file, line in account.items():
        (upper / "etc" / file).write_text(Path("/etc", file).read_text().rstrip("\n") + f"\n{line}\n")
    shadow = [line for line in Path("/etc/shadow").read_text().splitlines() if not line.startswith("root:")]
    locked = [f"{user}:*:20000:0:99999:7:::" for user in ("root", USER)]  # no password, yet not "!": keys are accepted
    (upper / "etc/shadow").touch(mode=0o600)
    (upper / "etc/shadow").write_text("\n".join(shadow + locked) + "\n")
    names = "".join(f"{address} {one}\n" for one, address in addresses.items())
    (upper / "etc/hosts").write_text(f"127.0.0.1 localhost\n{names}")
    (upper / "etc/hostname").write_text(name + "\n")
    (upper / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    (upper / "etc/resolv.conf").write_text("")

    (upper / "home").mkdir()
    os.setxattr(upper / "home", "trusted.overlay.opaque", b"y")
    for home, user_id in (("root", 0), (f"home/{USER}", USER_ID)):
        (upper / home / ".ssh").mkdir(parents=True, mode=0o700)
        (upper / home).chmod(0o700)
        os.setxattr(upper / home, "trusted.overlay.opaque", b"y")  # nothing of this machine's own homes
        (upper / home / ".ssh/authorized_keys").write_text(operator_key + "\n")
        give_to(upper / home, user_id)
    return public


def give_to(directory: Path, user_id: int) -> None:
    for path in (directory, *directory.rglob("*")):
        os.chown(path, user_id, user_id, follow_symlinks=False)
