"""The database of a demo with several managers: a PostgreSQL server of this machine's packages on loopback.

Owns a folder that it creates and removes, and one server process. As root it runs as another user, because PostgreSQL
refuses to run as root. Knows no managers.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

from procguard.errors import ProcGuardError, UsageError

DEBIAN = "/usr/lib/postgresql/*/bin"
USER = "procguard"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30
SETTINGS = ("listen_addresses=127.0.0.1", "max_connections=50", "shared_buffers=16MB")


def programs() -> str:
    """The folder of the newest PostgreSQL server's programs. Raises UsageError if there is none, or no psycopg."""
    if importlib.util.find_spec("psycopg") is None:
        raise UsageError("--managers needs psycopg", "install procguard[postgres], or omit --managers")
    folders = [*glob.glob(DEBIAN), *os.environ.get("PATH", "").split(os.pathsep)]
    found = [folder for folder in folders if os.access(os.path.join(folder, "initdb"), os.X_OK)]
    if not found:
        raise UsageError(
            "--managers needs a PostgreSQL server, and none is installed",
            "apt-get install postgresql, or omit --managers",
        )
    return max(found, key=_version)


def _version(folder: str) -> float:
    name = os.path.basename(os.path.dirname(folder))
    return float(name) if name.replace(".", "", 1).isdigit() else 0.0


class DemoDatabase:
    """`folder`: the demo's own, where the password and the place of the server's files are kept."""

    def __init__(self, folder: str) -> None:
        self.password_file = os.path.join(folder, "database.password")
        self._place_file = os.path.join(folder, "database.place")
        self._output = os.path.join(folder, "database.out")
        self.url = ""

    def start(self, port: int, waited: Callable[[Callable[[], bool], float], bool]) -> bool:
        """`waited(reached, timeout_s)`: False if the demo is being stopped. Raises ProcGuardError, UsageError."""
        found = programs()
        place = tempfile.mkdtemp(prefix="procguard-demo-db-")
        data = os.path.join(place, "data")
        password = secrets.token_urlsafe(24)
        for path, text in ((self._place_file, place), (self.password_file, password)):
            _write_private(path, text)
        given = os.path.join(place, "password")
        _write_private(given, password)
        for path in (place, given):
            if _server_user():
                shutil.chown(path, _server_user(), _group(_server_user()))
        words = ["-D", data, "-U", USER, "-A", "scram-sha-256", f"--pwfile={given}", "-E", "UTF8"]
        self._run([os.path.join(found, "initdb"), *words, "--no-locale", "--no-sync"], place)
        os.unlink(given)
        words = [
            word
            for setting in (*SETTINGS, f"port={port}", f"unix_socket_directories={place}")
            for word in ("-c", setting)
        ]
        with open(self._output, "ab") as output:
            server = subprocess.Popen(
                [os.path.join(found, "postgres"), "-D", data, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=place,
                **_as_server_user(),
            )
        self.url = f"postgresql://{USER}@127.0.0.1:{port}/postgres"
        ready = [os.path.join(found, "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]

        def answers() -> bool:
            if server.poll() is not None:
                raise ProcGuardError(f"the demo's database exited with code {server.returncode}: {self.output()}")
            return subprocess.run(ready, check=False).returncode == 0

        return waited(answers, START_TIMEOUT_S)

    def stop(self) -> None:
        """Stop the server of a demo in this folder and remove its files. Raises ProcGuardError."""
        try:
            with open(self._place_file, encoding="utf-8") as file:
                place = file.read().strip()
        except FileNotFoundError:
            return
        data = os.path.join(place, "data")
        if os.path.exists(os.path.join(data, "postmaster.pid")):
            words = ["stop", "-D", data, "-m", "fast", "-t", str(STOP_TIMEOUT_S), "-s"]
            self._run([os.path.join(programs(), "pg_ctl"), *words], place)
        shutil.rmtree(place, ignore_errors=True)
        for path in (self._place_file, self.password_file, self._output):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def output(self) -> str:
        with contextlib.suppress(OSError), open(self._output, encoding="utf-8", errors="replace") as file:
            return file.read()[-8000:].rstrip()
        return ""

    def _run(self, command: list[str], place: str) -> None:
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, timeout=120, check=False, **_as_server_user()
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise ProcGuardError(f"the demo's database: {os.path.basename(command[0])}: {said[-1]}")


def _server_user() -> str:
    """The user that runs the server; "" for the current user."""
    if os.geteuid() != 0:
        return ""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def _as_server_user() -> dict[str, Any]:
    user = _server_user()
    return {"user": user, "group": _group(user), "extra_groups": []} if user else {}


def _write_private(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text + "\n")
