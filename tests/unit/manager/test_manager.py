"""The manager as a process, its printed lines, its files: forked from one that has imported its modules, except where
what a new interpreter does counts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from procguard.manager.app import PrivateLog
from tests import forked
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
MANAGER = "procguard.main"
GREETING_S = 60.0


class Started:
    """A manager on a free port. Use as a context: it ends with the block."""

    def __init__(self, directory: Path, *settings: str, forks: bool = True) -> None:
        self.directory = directory
        output = directory / "out.txt"
        named = [f"state.state_file={directory}/state.yaml", f"logging.file={directory}/log", *settings]
        words = ["--host", "127.0.0.1", "--port", "0", *(word for one in named for word in ("--set", one))]
        self.process: subprocess.Popen[bytes] | forked.Process
        with open(output, "wb") as out:
            if forks:
                self.process = forked.start(MANAGER, words, os.environ, ROOT, out.fileno(), out.fileno())
            else:
                command = [sys.executable, "-m", MANAGER, *words]
                self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        try:
            found = wait_until(lambda: re.search(r"portal +(\S+)\n", output.read_text()), GREETING_S, "its greeting")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
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
def test_a_manager_whose_greeting_does_not_come_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "GREETING_S", 0.0)
    with pytest.raises(AssertionError, match="greeting"):
        Started(tmp_path, forks=False)  # by its command line it is looked for
    path = str(tmp_path).encode()
    assert not [one for one in Path("/proc").glob("[0-9]*") if path in _command_line(one)]


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_a_state_that_lost_its_last_changes_starts_and_says_so(tmp_path: Path) -> None:
    """The event occurs while the state is read, before there is a fleet."""
    first = Started(tmp_path)
    first.process.kill()
    first.process.wait()
    (tmp_path / "state.db-wal").unlink()
    with Started(tmp_path) as again, urllib.request.urlopen(f"{again.url}/api/events?limit=50", timeout=10) as answer:
        assert "state.log_missing" in [one.get("reason_code") for one in json.load(answer)["events"]]


@pytest.mark.slow
def test_an_archive_without_credentials_refuses_the_start_and_leaves_the_state_alone(tmp_path: Path) -> None:
    with Started(tmp_path):
        pass
    words = [f"state.state_file={tmp_path}/state.yaml", f"logging.file={tmp_path}/log", "logs.archive=s3://bucket/x"]
    command = [sys.executable, "-m", MANAGER, "--port", "0", *(one for word in words for one in ("--set", word))]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    nobody = {**kept, "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    refused = subprocess.run(command, cwd=ROOT, env=nobody, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 1 and "logs.archive: s3: no credentials were found; set " in refused.stderr
    with Started(tmp_path) as again, urllib.request.urlopen(f"{again.url}/api/events?limit=50", timeout=10) as answer:
        assert "state" not in [one["kind"] for one in json.load(answer)["events"]]


@pytest.mark.slow
def test_a_shared_database_that_is_not_there_refuses_the_start_without_a_promise_to_retry(tmp_path: Path) -> None:
    command = [sys.executable, "-m", MANAGER, "--port", "0"]
    command += [
        "--set",
        f"state.state_file={tmp_path}/s/f.yaml",
        "--set",
        "state.database=postgresql://x@127.0.0.1:1/x",
    ]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1 and "state.database: cannot use postgresql://x@127.0.0.1:1/x (" in refused.stderr
    assert "check that the server is running and accepts this user" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and "retries" not in refused.stderr


@pytest.mark.slow
def test_without_trust_in_local_users_the_first_token_lies_in_a_private_file(tmp_path: Path) -> None:
    """Otherwise no token could ever be created. A later start creates no second one."""
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


@pytest.mark.slow
def test_nobody_else_can_read_what_a_manager_writes_whatever_the_umask_is(tmp_path: Path) -> None:
    """Every file of a running one: state, journal, logs, events, audit, measurements, keys, its own log and pid."""
    own = tmp_path / "home"
    (own / "data").mkdir(parents=True, mode=0o700)
    (own / "data" / "log").write_text("of an earlier release\n")
    (own / "data" / "log.1").write_text("rotated by an earlier release\n")
    for name in ("log", "log.1"):
        (own / "data" / name).chmod(0o644)
    settings = [f"state.state_file={own}/data/new/state.yaml", f"logging.file={own}/data/log", "web.tls=auto"]
    words = [word for one in settings for word in ("--set", one)]
    before = os.umask(0)
    try:
        command = [sys.executable, "-m", MANAGER, "--host", "127.0.0.1", "--port", "0", *words]
        with open(own / "out.txt", "wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
    finally:
        os.umask(before)
    try:
        wait_until(lambda: re.search(r"portal +(\S+)\n", (own / "out.txt").read_text()), 60, "the manager's greeting")
        port = int(re.search(r"portal +\S+:(\d+)", (own / "out.txt").read_text())[1])
        context = ssl._create_unverified_context()

        def ask(method: str, path: str, body: bytes, secret: str = "") -> bytes:
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            request = urllib.request.Request(f"https://localhost:{port}{path}", body, headers, method=method)
            return urllib.request.urlopen(request, timeout=10, context=context).read()

        host = {"host": "h1", "ssh": {}, "workers": [{"worker_id": "w1", "spec": {"command": "true"}}]}
        ask("POST", "/api/deployments", json.dumps({"hosts": [host]}).encode())
        digest = hashlib.sha256(b"secret-of-h1").hexdigest()
        ask("PUT", "/api/agents/h1/credentials", json.dumps({"secret_sha256": digest}).encode())
        ask("POST", "/api/workers/w1/logs?attempt=1&stream=out&offset=0", b"a line\n", "secret-of-h1")
        ask("POST", "/api/tokens", b'{"scope": "viewer", "name": "x"}')
        logs = own / "data" / "new" / "logs"
        wait_until(lambda: list(logs.rglob("1.out.log")), 10, "the worker's log")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    public = ("ca.pem", "server.pem")  # certificates, in a folder that is private
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (own / "data").rglob("*")}
    assert len(found) > 10
    open_ = {str(path): oct(mode) for path, mode in found.items() if mode & 0o077 and path.name not in public}
    assert not open_
    assert all(not stat.S_IMODE(path.parent.stat().st_mode) & 0o077 for path in found)


def test_the_log_is_bounded_and_each_record_formatted_once(tmp_path: Path) -> None:
    formatted: list[str] = []

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            formatted.append(record.getMessage())
            return formatted[-1]

    handler = PrivateLog(tmp_path / "log", maxBytes=1_000, backupCount=2)
    handler.setFormatter(Formatter())
    log = logging.Logger("tried")
    log.addHandler(handler)
    for number in range(100):
        log.info("%s", f"{number:02d}" + 47 * "x")
    handler.close()
    assert len(formatted) == 100
    files = [tmp_path / name for name in ("log", "log.1", "log.2")]
    assert sorted(tmp_path.iterdir()) == files
    assert all(file.stat().st_size <= 1_050 for file in files)
    assert "".join(file.read_text() for file in reversed(files)).splitlines() == formatted[-60:]
