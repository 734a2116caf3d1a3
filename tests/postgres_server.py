"""A real PostgreSQL of Debian's packages for tests: a private cluster in a temporary folder, on loopback alone.

`cluster()` starts a primary, `replica()` a streaming replica of one; both run as a normal user (as root: as `postgres`,
or `nobody`) and end with the block. Where PostgreSQL is not installed tests that need it are skipped, and fail in CI.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.waiting import wait_until

BIN_GLOB = "/usr/lib/postgresql/*/bin"
MISSING = "PostgreSQL is not installed (apt-get install postgresql)"
PASSWORD = "s3cret-for-tests"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "wal_keep_size": "256MB",
    "hot_standby": "on",
    "logging_collector": "off",
    "log_min_messages": "fatal",
}


@functools.cache
def programs() -> str:
    """The folder of the newest installed server's programs, "" where there is none."""
    found = [path for path in glob.glob(BIN_GLOB) if os.access(os.path.join(path, "initdb"), os.X_OK)]
    return max(found, key=lambda path: float(path.split("/")[-2]), default="")


def need() -> None:
    """Skip the test where PostgreSQL is missing; in CI a skipped test is a failed one (conftest.py)."""
    if not programs():
        pytest.skip(MISSING)


def _user() -> str:
    """Who runs the server: it refuses to run as root."""
    if os.geteuid() != 0:
        return ""
    with contextlib.suppress(KeyError):
        pwd.getpwnam("postgres")
        return "postgres"
    return "nobody"


def _command(program: str, *arguments: str) -> list[str]:
    """As the server's user. The kernel ends it with the tests; a change of user clears that, so it comes first."""
    user = _user()
    drop = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"] if user else []
    return [*drop, "setpriv", "--pdeathsig", "KILL", os.path.join(programs(), program), *arguments]


@dataclass
class Postgres:
    """One running server. `password` is a file with the password of the user `procguard`."""

    folder: Path
    port: int
    password: Path
    process: subprocess.Popen[bytes] | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def start(self) -> None:
        words = [f"-c{name}={value}" for name, value in (SETTINGS | self.settings).items()]
        words += [f"-cport={self.port}", f"-cunix_socket_directories={self.folder}"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                _command("postgres", "-D", self.data, *words),
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
            )
        wait_until(lambda: self.ready() or self.process.poll() is not None, 60, "PostgreSQL answers", 0.05)  # type: ignore[union-attr]
        assert self.ready(), (self.folder / "log").read_text()[-2000:]

    def ready(self) -> bool:
        words = [os.path.join(programs(), "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(words, check=False).returncode == 0

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: fast shutdown; SIGQUIT: as if it crashed. Its processes share a group of their own."""
        process, self.process = self.process, None
        if process is None:
            return
        os.killpg(process.pid, signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)

    def signal_all(self, number: int) -> None:
        """To the server and every backend: SIGSTOP leaves TCP acknowledged and nothing answered."""
        assert self.process is not None
        tree = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        for pid in [self.process.pid, *map(int, tree)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def signal_receiver(self, number: int) -> None:
        """To the process that receives the primary's log: a replica whose receiver is stopped lags."""
        pid = self.sql("SELECT pid FROM pg_stat_wal_receiver")
        if pid:
            os.kill(int(pid), number)

    def url(self, database: str = "postgres", user: str = "procguard") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """As the superuser, over the unix socket."""
        psql = os.path.join(programs(), "psql")
        words = [psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-p", str(self.port)]
        words += ["-U", "postgres", "-d", database, "-c", statement]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def database(self) -> str:
        """A new, empty database of the user `procguard`; returns its name."""
        name = "t" + secrets.token_hex(5)
        self.sql(f"CREATE DATABASE {name} OWNER procguard TEMPLATE template0")
        return name

    def promote(self) -> None:
        wait_until(self.ready, 60, "the replica answers", 0.05)
        self.sql("SELECT pg_promote(true, 30)")


def _owned(folder: Path) -> None:
    if _user():
        shutil.chown(folder, _user())


def _folder(disk: Path | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pg", dir=disk))
    folder.chmod(0o711)
    _owned(folder)
    return folder


@contextlib.contextmanager
def cluster(data_disk: Path | None = None, log_disk: Path | None = None, **settings: str) -> Iterator[Postgres]:
    """`data_disk`: where the tables are; `log_disk`: where pg_wal is, in segments of 1 MB."""
    need()
    folder = _folder(data_disk)
    password = folder / "password"
    password.write_text(PASSWORD + "\n")
    password.chmod(0o600)
    server = Postgres(folder, free_port(), password, settings=settings)
    try:
        words = ["-D", server.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        if log_disk is not None:
            words += [f"--waldir={_folder(log_disk) / 'wal'}", "--wal-segsize=1"]
        subprocess.run(_command("initdb", *words), check=True, capture_output=True, cwd=folder, timeout=120)
        access = folder / "data" / "pg_hba.conf"
        access.write_text(
            "local all postgres trust\nlocal replication postgres trust\n"
            "host all procguard 127.0.0.1/32 scram-sha-256\nhost replication postgres 127.0.0.1/32 trust\n"
        )
        server.start()
        server.sql(f"CREATE ROLE procguard LOGIN PASSWORD '{PASSWORD}'")
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replica(primary: Postgres, name: str = "replica1") -> Iterator[Postgres]:
    """A streaming replica that calls itself `name` (for synchronous_standby_names)."""
    folder = _folder(None)
    server = Postgres(folder, free_port(), primary.password, settings=dict(primary.settings))
    try:
        source = f"host=127.0.0.1 port={primary.port} user=postgres application_name={name}"
        words = ["-D", server.data, "-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", source]
        subprocess.run(_command("pg_basebackup", *words), check=True, capture_output=True, cwd=folder, timeout=120)
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)
