"""Connects a log store with the archive of `logs.archive`: its place, its index, the greenlet's reports.

Knows which of these the configuration names; decides nothing about logs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from procguard.config.schema import Config
from procguard.fleet.store.postgres_link import DatabasePlace
from procguard.portal.logs.archive.archive import LogArchive
from procguard.portal.logs.archive.index import ArchiveIndex, PostgresTables, SqliteTables, Tables
from procguard.portal.logs.archive.object_store import FolderStore, ObjectStore
from procguard.portal.logs.archive.reading import ArchiveReader
from procguard.portal.logs.archive.s3 import BucketOptions, BucketStore, split_url, taken_secrets
from procguard.portal.logs.disk import DiskThreads
from procguard.portal.logs.spool import SpooledLogStore

THREADS = 2


def secrets_of(config: Config) -> dict[str, str]:
    """The secrets, removed from the environment, so that programs started by this manager do not inherit them."""
    return taken_secrets() if config.logs.archive.startswith("s3://") else {}


def place_of(config: Config, fleet_id: str, given: Mapping[str, str]) -> ObjectStore:
    """Raises ConfigError."""
    logs = config.logs
    if logs.archive.startswith("file://"):
        return FolderStore(logs.archive.removeprefix("file://"), fleet_id, DiskThreads(THREADS))
    options = BucketOptions(
        logs.archive_endpoint, logs.archive_region, logs.archive_profile, logs.archive_credentials_file
    )
    return BucketStore(*split_url(logs.archive), fleet_id, options, dict(given))


def check(config: Config, given: Mapping[str, str]) -> None:
    """Raise ConfigError if the configured archive cannot be used: no boto3, no credentials."""
    if config.logs.archive:
        place_of(config, "check", given)


def index_path(config: Config) -> str:
    """The path of the index, beside the state: data/procguard_state.yaml -> data/procguard_state.archive.db."""
    return os.path.splitext(os.path.abspath(config.state.state_file))[0] + ".archive.db"


def tables_of(config: Config, database: DatabasePlace | None, term: int = 0) -> Tables:
    if database is not None:
        return PostgresTables(database, term)
    return SqliteTables(index_path(config), DiskThreads(1))


def attach(
    config: Config,
    store: SpooledLogStore,
    *,
    fleet_id: str,
    given: Mapping[str, str],
    database: DatabasePlace | None,
    term: int,
    said: Callable[[str], None],
    known: Callable[[], Mapping[str, str]],
) -> LogArchive:
    """The archive of this store. Raises ConfigError."""
    tables = tables_of(config, database, term)
    archive = LogArchive(
        place_of(config, fleet_id, given),
        ArchiveIndex(tables),
        store.directory,
        fleet_id=fleet_id,
        term=term,
        interval_s=config.logs.archive_interval,
        in_thread=DiskThreads(THREADS),
        said=said,
        known=known,
        index_is_new=tables.is_new,
    )
    store.attach(archive, ArchiveReader(archive, DiskThreads(THREADS)))
    return archive
