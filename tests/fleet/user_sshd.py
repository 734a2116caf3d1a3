"""One sshd on a high port as the current user: a real SSH host where the tests have no root and can't build a fleet.

Its sessions get a home of their own (SetEnv overrides HOME), so that nothing of the developer's account is touched.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from pathlib import Path

from tests.fleet.disk import write_key
from tests.fleet.manager import END_WITH_US
from tests.ports import free_port
from tests.waiting import wait_until

CONFIG = """\
ListenAddress 127.0.0.1
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
SetEnv HOME={home} PATH=/usr/local/bin:/usr/bin:/bin
"""


def find_sshd() -> str | None:
    """Absolute, as sshd insists on for its own re-execution."""
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class UserSshd:
    """`with UserSshd(tmp_path) as host:` then connect to 127.0.0.1:<port> as `user` with `private_key`."""

    def __init__(self, directory: Path) -> None:
        program = find_sshd()
        assert program is not None
        self.directory = directory
        self.port = free_port()
        self.user = getpass.getuser()
        self.home = directory / "home"
        self.home.mkdir(mode=0o700)
        self.private_key = directory / "operator_key"
        self.known_hosts = directory / "known_hosts"
        (directory / "authorized_keys").write_text(write_key(self.private_key) + "\n")
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {write_key(directory / 'host_key')}\n")
        (directory / "sshd_config").write_text(CONFIG.format(directory=directory, home=self.home))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd as root refuses to start without it
        with open(directory / "sshd.log", "wb") as log:
            self.process = subprocess.Popen(
                [*END_WITH_US, program, "-D", "-e", "-f", str(directory / "sshd_config"), "-p", str(self.port)],
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> UserSshd:
        wait_until(self._answers, 10, f"sshd; it said: {self.log()}")
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.terminate()
        self.process.wait(10)

    def log(self) -> str:
        return (self.directory / "sshd.log").read_text(errors="replace")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False
