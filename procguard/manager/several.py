"""The life of one of several managers: standby, then leader, until it hands over, is fenced, or is stopped.

    serve ── stands by (standby.py) ── leads (app.py) ──┬── 0  stopped by a signal: hands over to the first standby
                                                        ├── 4  fenced: another manager leads
                                                        └── executes itself again as a standby: handed over (promote)

Owns the order of these phases and the data that managers exchange. seat.py decides which one leads.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import gevent
import gevent.event

from procguard import __version__
from procguard.config.schema import Config
from procguard.console.language import shown
from procguard.deploy.install.helper_client import SshHelper
from procguard.errors import ProcGuardError
from procguard.fleet.store.interface import Fenced
from procguard.fleet.store.postgres_link import Connection, DatabasePlace, name_of_this_machine
from procguard.fleet.store.postgresql import PostgresqlStore, cannot_use
from procguard.manager import daemon, log_archive, shared_files
from procguard.manager.app import Manager
from procguard.manager.peers import ManagerPeers
from procguard.manager.seat import Seat
from procguard.manager.ssh_checks import StandbyChecks
from procguard.manager.standby import StandbyServer

EXIT_FENCED = 4
PASSWORD_VARIABLE = "PGPASSWORD"  # noqa: S105 - a name
SYNC_EVERY_S = 30.0

log = logging.getLogger(__name__)


def place_of(config: Config) -> DatabasePlace:
    """The database's location. PGPASSWORD is removed from the environment, because programs started by this manager,
    and jobs of agents on its machine, would inherit it."""
    given = os.environ.pop(PASSWORD_VARIABLE, "")
    return DatabasePlace(config.state.database, config.state.database_password_file, given)


def serve(config: Config, lock: daemon.StateLock, argv: Sequence[str]) -> int:
    """Stand by and lead until the end. Returns the exit code. Raises ProcGuardError if it cannot start."""
    name = config.state.manager_name or name_of_this_machine()
    given = log_archive.secrets_of(config)
    seat = Seat(place_of(config), name, config.state.database_grace_s)
    ending = gevent.event.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        gevent.signal_handler(number, ending.set)
    try:
        seat.prepare()
        if config.web.tls.mode == "auto":
            _share_ca(seat, config)
    except OSError as exc:
        raise cannot_use(str(seat.place), exc) from exc
    listener = _stand_by(config, lock, seat, ending)
    if listener is None:
        seat.close()
        lock.release()
        return 0
    return _lead(config, lock, seat, listener, argv, ending, given)


def _stand_by(config: Config, lock: daemon.StateLock, seat: Seat, ending: gevent.event.Event) -> Any:
    """Stand by. Returns the listening socket once this manager leads; None if it was stopped before."""
    server = StandbyServer(config, seat)
    checks, keys = StandbyChecks(SshHelper(), seat.warm), shared_files.HostKeys()
    seat.urls, seat.about = (
        lambda: server.urls,
        lambda: {
            "ssh": asdict(found) if (found := checks.view()) is not None else None,
            "asked": server.asked_by(),
        },
    )
    url = daemon.address(config) if config.web.port else f"{daemon.address(config).rpartition(':')[0]}:{server.port}"
    said, synced = "", float("-inf")
    checking = gevent.spawn(checks.run)
    try:
        won = seat.poll()
        if not won:
            server.start()
            lock.announce(url)
        while not won and not ending.is_set():
            leader = seat.leader or (
                "there is no leader" if not seat.unreachable else "unknown: the database does not answer"
            )
            if leader != said:
                said = leader
                _say(f"ProcGuard {__version__} stands by (pid {os.getpid()}, manager {seat.name}); leader: {leader}")
            if time.monotonic() - synced > SYNC_EVERY_S and not seat.unreachable:
                synced = time.monotonic()
                _sync(seat, keys)
            ending.wait(seat.wait_s())
            won = not ending.is_set() and seat.poll()
    finally:
        checking.kill()
        checks.close()
        server.stop()
    if not won:
        server.listener.close()
        return None
    return server.listener


def _sync(seat: Seat, keys: shared_files.HostKeys) -> None:
    try:
        seat.ask(keys.sync)
    except OSError as exc:
        log.warning("host keys were not shared: %s", exc.strerror or exc)


def _lead(
    config: Config,
    lock: daemon.StateLock,
    seat: Seat,
    listener: Any,
    argv: Sequence[str],
    ending: gevent.event.Event,
    given: dict[str, str],
) -> int:
    """`ending`: set by a signal, also during the takeover; `given`: the archive's secrets."""
    assert seat.taken is not None
    store = PostgresqlStore(seat.place, seat.name)
    store.took(seat.taken, seat.warm)
    peers = ManagerPeers(seat, store, listener)
    with seat.beating_beside():
        manager = Manager(config, lock, peers, ending, given)
    beats = gevent.spawn(seat.beat_forever)
    seat.urls = manager.web.manager_urls
    keys = shared_files.HostKeys()
    syncing = gevent.spawn(_sync_forever, seat, keys)
    try:
        manager.run()
    except Fenced:
        seat.ended = True
    finally:
        gevent.killall([beats, syncing])
        seat.release(peers.successor)
        seat.close(leave=not peers.handed_over.is_set())
    if seat.ended:
        raise _FencedEnd(seat.name)
    if peers.handed_over.is_set():
        _say(f"handed over to {peers.successor}; this manager stands by from now on")
        command = [*daemon.module_command("procguard.main"), *argv]
        password = {PASSWORD_VARIABLE: seat.place.given} if seat.place.given else {}
        os.execve(command[0], command, {**os.environ, **given, **password})  # noqa: S606 - restarts this program
    return 0


def _sync_forever(seat: Seat, keys: shared_files.HostKeys) -> None:
    while True:
        gevent.sleep(SYNC_EVERY_S)
        if seat.may_direct():
            _sync(seat, keys)


def _share_ca(seat: Seat, config: Config) -> None:
    """Share the CA of `web.tls: auto`: the first manager creates it for all."""
    from procguard.tls.authority import Authority  # noqa: PLC0415 - 10 MB that others do not need

    directory = os.path.join(config.state_directory, "tls")

    def sync(connection: Connection) -> None:
        shared_files.sync_ca(connection, directory)
        Authority(directory, datetime.now(timezone.utc))
        shared_files.sync_ca(connection, directory)

    seat.ask(sync)


class _FencedEnd(ProcGuardError):
    exit_code = EXIT_FENCED
    default_code = "fenced"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"manager {name} was fenced: another manager leads; no change was lost",
            "this process exits, and its service restarts it as a standby; if it was started by hand, start it again",
        )


def _say(text: str) -> None:
    print(shown(text), flush=True)  # noqa: T201 - a manager's first and last messages go to its terminal
    log.info("%s", text)
