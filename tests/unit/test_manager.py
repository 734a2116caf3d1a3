"""The manager as its user starts it: a process, its printed lines, its files."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Started:
    """A manager on a free port. Use as a context: it ends with the block."""

    def __init__(self, directory: Path, *settings: str) -> None:
        self.directory = directory
        output = directory / "out.txt"
        words = [f"state.state_file={directory}/state.yaml", f"logging.file={directory}/log", *settings]
        command = [sys.executable, "-m", "procguard.main", "--host", "127.0.0.1", "--port", "0"]
        for word in words:
            command += ["--set", word]
        with open(output, "wb") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        found = wait_until(lambda: re.search(r"portal +(\S+)\n", output.read_text()), 20, "the manager's greeting")
        self.url = found[1]

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0

    def status(self, token: str = "") -> int:
        request = urllib.request.Request(self.url + "/api/remote-workers")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            exc.close()
            return exc.code


@pytest.mark.slow
def test_without_trust_in_local_users_the_first_token_lies_in_a_private_file(tmp_path: Path) -> None:
    """Otherwise nobody could ever make one. A later start makes no second one."""
    path = tmp_path / "operator.token"
    path.write_text("an earlier one")
    path.chmod(0o644)  # as a backup may bring it back
    with Started(tmp_path, "web.trust_local=false") as manager:
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"), what="the token")
        token = path.read_text().strip()
        wait_until(lambda: manager.status(token) == 200, what="the token is known")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert manager.status() == 401
    with Started(tmp_path, "web.trust_local=false") as again:
        assert again.status(token) == 200
        assert path.read_text().strip() == token


@pytest.mark.slow
def test_with_trust_no_token_file_is_made(tmp_path: Path) -> None:
    with Started(tmp_path) as manager:
        assert manager.status() == 200
    assert not (tmp_path / "operator.token").exists()
