"""Connections to the PostgreSQL database that several managers share, and calls that end in bounded time.

Owns the interpretation of `state.database`, a URL without a password; the password comes from a file, PGPASSFILE or
PGPASSWORD and is never printed. Knows no tables. psycopg is imported with the first connection, so a single manager
never loads it.

A server that is stopped (SIGSTOP) still acknowledges TCP, so keepalives and the server's own timeouts do not end a
call: in a process that gevent has patched, `gevent.Timeout` ends it. A connection whose call was cut is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from procguard.errors import ProcGuardError
from procguard.fleet.store.interface import NotDurable
from procguard.json_types import Json

if TYPE_CHECKING:
    import psycopg

CONNECT_TIMEOUT_S = 2.0  # for each host of the connection string
CALL_TIMEOUT_S = 3.0
LOAD_TIMEOUT_S = 60.0  # for reading or writing the whole state
MAX_PASSWORD_BYTES = 4096
_EXTRA = "install it: pip install 'procguard[postgres]'"

R = TypeVar("R")
Connection = Any  # psycopg.Connection[tuple[Any, ...]], which is not imported here


@dataclass(frozen=True)
class DatabasePlace:
    """The location of the database. `password_file`: its first line is the password, read for every connection; "":
    use `given`, or libpq's defaults (PGPASSFILE, ~/.pgpass, PGPASSWORD, certificates)."""

    url: str
    password_file: str = ""
    given: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.url.partition("?")[0]

    def password(self) -> str | None:
        """The password. Raises ProcGuardError if its file cannot be read."""
        if not self.password_file:
            return self.given or None
        try:
            with open(self.password_file, encoding="utf-8") as file:
                found = file.read(MAX_PASSWORD_BYTES).partition("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as exc:
            raise ProcGuardError(
                f"state.database_password_file: cannot read {self.password_file} "
                f"({getattr(exc, 'strerror', None) or 'not text'})",
                "let the manager's user read it: one line, the password",
            ) from exc
        return found or None


class DatabaseUnreachable(NotDurable):
    """No connection, or no answer in time."""

    default_code = "database_unreachable"

    def __init__(self, place: DatabasePlace, problem: str) -> None:
        super().__init__(
            f"database {place}: {problem}; changes are not acknowledged",
            "the manager retries automatically; check the database server",
        )


class _TimedOut(BaseException):
    """A call timed out. Not an Exception, so that no handler in between swallows it."""


class _Closed(OSError):
    """The connection is gone, or could not be opened."""


class DatabaseLink:
    """One connection, opened on demand and again after each failure. Serves one caller at a time."""

    def __init__(self, place: DatabasePlace, purpose: str) -> None:
        self.place = place
        self._purpose = purpose
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def call(self, task: Callable[[Connection], R], timeout_s: float = CALL_TIMEOUT_S) -> R:
        """Run `task(connection)` in autocommit mode and return its result within `timeout_s`.

        If the connection turns out to be closed (the server was restarted), it is opened again and `task` is repeated,
        so `task` must be idempotent. Raises OSError if there is no connection or no answer, or if the database
        refuses; it is then unknown whether the call took effect.
        """
        was_open = self._connection is not None and not self._connection.closed
        try:
            return self._call(task, timeout_s)
        except _Closed as exc:
            if was_open:
                return self._call(task, timeout_s)
            raise OSError(errno.EIO, exc.strerror) from exc

    def _call(self, task: Callable[[Connection], R], timeout_s: float) -> R:
        psycopg = driver()
        try:
            with bounded(timeout_s):
                if self._connection is None or self._connection.closed:
                    self._connection = self._connect()
                return task(self._connection)
        except _TimedOut as exc:
            self.close()
            raise OSError(errno.ETIMEDOUT, f"no answer within {timeout_s:g} s") from exc
        except psycopg.errors.DiskFull as exc:  # the connection is intact
            raise OSError(errno.ENOSPC, words_of(exc)) from exc
        except psycopg.Error as exc:
            if isinstance(exc, (psycopg.OperationalError, psycopg.InterfaceError)):
                self.close()
                raise _Closed(errno.EIO, words_of(exc)) from exc
            raise OSError(errno.EIO, words_of(exc)) from exc
        # the greenlet was killed during a call: the pending answer would be read by the next call
        except BaseException:
            self.close()
            raise

    def transaction(self, task: Callable[[Connection], R], timeout_s: float = CALL_TIMEOUT_S) -> R:
        """As `call`, in one transaction."""

        def whole(connection: Connection) -> R:
            with connection.transaction():
                return task(connection)

        return self.call(whole, timeout_s)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        connection: psycopg.Connection[tuple[Any, ...]] = driver().connect(**self._options(), autocommit=True)
        # Set in the session, because connection poolers refuse startup options.
        connection.execute(
            "SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false), "
            "set_config('idle_in_transaction_session_timeout', %s, false), "
            "set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
            "ELSE current_setting('synchronous_commit') END, false), set_config('search_path', 'procguard', false)",
            (f"{LOAD_TIMEOUT_S * 1000:.0f}", f"{CALL_TIMEOUT_S * 1000:.0f}", f"{CALL_TIMEOUT_S * 1000:.0f}"),
        )
        return connection

    def _options(self) -> Json:
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - only with a shared database

        psycopg = driver()
        try:
            given = dict(conninfo_to_dict(self.place.url))
        except psycopg.Error:
            raise ProcGuardError(
                "state.database: not a connection URL of PostgreSQL",
                "e.g. postgresql://procguard@db1,db2/procguard?target_session_attrs=read-write",
            ) from None  # the driver's message would repeat the password
        options = {
            "target_session_attrs": "read-write",
            "connect_timeout": f"{CONNECT_TIMEOUT_S:.0f}",
            "keepalives_idle": "1",
            "keepalives_interval": "1",
            "keepalives_count": "2",
            "tcp_user_timeout": "3000",
            "application_name": f"procguard {self._purpose}",
            **{name: value for name, value in given.items() if value is not None},
        }
        password = self.place.password()
        if password is not None:
            options["password"] = password
        if "host" in options and "hostaddr" not in options:
            options.update(_resolved(str(options["host"]), str(options.get("port", ""))))
        return options


def _resolved(hosts: str, ports: str) -> dict[str, str]:
    """Resolve `hosts`, because libpq's own resolver would block the event loop. Hosts that cannot be resolved are left
    out if another can."""
    names, numbers = hosts.split(","), ports.split(",") if ports else []
    found: list[tuple[str, str, str]] = []
    for position, name in enumerate(names):
        port = numbers[position] if len(numbers) == len(names) else (numbers[0] if numbers else "")
        if name.startswith("/") or not name:
            found.append((name, "", port))
            continue
        with contextlib.suppress(OSError, UnicodeError):
            address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
            found.append((name, str(address), port))
    if not found:
        raise OSError(errno.EHOSTUNREACH, f"the name of the database's host is not known ({hosts})")
    joined = [",".join(part) for part in zip(*found, strict=True)]
    options = {"host": joined[0], "hostaddr": joined[1], "port": joined[2]}
    return {name: value for name, value in options.items() if value.strip(",")}


def driver() -> Any:
    """The module psycopg. Raises ProcGuardError if it is not installed."""
    try:
        import psycopg  # noqa: PLC0415 - 60 ms and 12 MB that a single manager does not need
    except ImportError as exc:
        raise ProcGuardError("state.database needs psycopg, which is not installed", _EXTRA) from exc
    return psycopg


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise _TimedOut in the body after `timeout_s`. Without gevent's patches only the server's timeouts apply."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("select"):
        yield
        return
    import gevent  # noqa: PLC0415 - already imported here

    with gevent.Timeout(seconds, _TimedOut()):
        yield


def words_of(exc: Exception) -> str:
    """The server's or the driver's reason on one line; neither repeats a password. Of a refused statement only the
    problem, not the SQL around it."""
    problem = getattr(getattr(exc, "diag", None), "message_primary", None)
    text = " ".join((problem or str(exc)).split()) or type(exc).__name__
    return text[:300]


def name_of_this_machine() -> str:
    return socket.gethostname() or os.uname().nodename
