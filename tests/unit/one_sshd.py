"""One sshd on a high port, run as whoever runs the tests, and the target that leads there."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from procguard.deploy.ssh.target import Target
from tests.ports import free_port
from tests.waiting import wait_until

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@dataclass
class Server:
    target: Target
    known_hosts: Path
    directory: Path
    log: Path
    authorized_keys: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not os.path.exists(SSHD):
        if os.environ.get("CI"):
            pytest.fail("sshd is not installed: apt install openssh-server")
        pytest.skip("sshd is not installed")
    directory = tmp_path_factory.mktemp("sshd")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    public = Path(tempfile.mkdtemp(prefix="procguard-keys-"))  # sshd reads it as the user who logs in
    public.chmod(0o755)
    shutil.copy(directory / "user_key.pub", public / "authorized_keys")
    port = free_port()
    config = directory / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {public}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        "PermitRootLogin yes\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    log = directory / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=out)
    try:
        wait_until(lambda: _listens(port), 10, "sshd listens")
        known = directory / "known_hosts"
        kind, key = (directory / "host_key.pub").read_text().split()[:2]
        known.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
        yield Server(
            Target("host1", "127.0.0.1", port, getpass.getuser(), str(directory / "user_key"), known_hosts=str(known)),
            known,
            directory,
            log,
            public / "authorized_keys",
        )
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(public)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
        return True
    return False
