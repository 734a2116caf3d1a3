"""Section `logs`: how much of the workers' logs is kept, where and for how long."""

from __future__ import annotations

import os
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from procguard.config.types import Section, size_in_bytes


def _archive_url(text: str) -> str:
    if not text:
        return ""
    if text.startswith("file://") and os.path.isabs(text.removeprefix("file://")) and not set(text) & _UNWANTED:
        return text.rstrip("/")
    if _BUCKET.fullmatch(text) and not {"", ".", ".."} & set(text.removeprefix("s3://").rstrip("/").split("/")):
        return text.rstrip("/")
    raise ValueError("s3://bucket/prefix, or file:///absolute/path of a folder")


def _endpoint(text: str) -> str:
    parts = urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query):
        raise ValueError("a URL without credentials, e.g. https://minio.example:9000")
    return text


_UNWANTED = set("?#\0\n\r")
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()/-]{0,500})?")


class RetentionRule(Section):
    """How long, and how much, of the logs of some workers is kept."""

    select: str = Field(
        min_length=1,
        max_length=10_000,
        description="Selector of the workers, e.g. `group=trainers`; `*`: all, and the logs of workers that are gone.",
    )
    days: float | None = Field(
        default=None,
        gt=0,
        le=36_500,
        description="Attempts whose log was last written more than this many days ago are deleted.",
    )
    max: Annotated[int | None, BeforeValidator(size_in_bytes)] = Field(
        default=None,
        ge=2**20,
        description=(
            "Maximum size of the logs of these workers together, in bytes; the oldest attempts are deleted first. Also"
            " as text: `20 GiB`."
        ),
    )

    @model_validator(mode="after")
    def _says_what(self) -> RetentionRule:
        if self.days is None and self.max is None:
            raise ValueError("days, max or both are expected")
        return self


class Logs(Section):
    """The workers' logs."""

    keep_attempts: int = Field(
        default=50,
        ge=1,
        le=1_000_000,
        description=(
            "Number of attempts per worker whose logs are kept, by the manager and, within `keep_local`, on the "
            "worker's host. Older logs are deleted."
        ),
    )
    keep_per_worker: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        default=4 * 2**30,
        ge=2**20,
        description=(
            "Maximum size of one worker's logs on the manager, in bytes. The oldest attempts are deleted first, "
            "then the beginning of the newest; the log shows how much. Also as text: `4 GiB`."
        ),
    )
    keep_in_all: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        default=64 * 2**30,
        ge=16 * 2**20,
        description=(
            "Maximum size of all logs on the manager, in bytes, and at most half of the disk. Workers with more "
            "than an equal share are trimmed first. Also as text: `64 GiB`."
        ),
    )
    keep_local: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        default=256 * 2**20,
        ge=2**20,
        description=(
            "Maximum size of each log on its host, in bytes, shipped or not. Bytes beyond it are dropped, and the"
            " log shows how many. If the file system cannot free parts of a file, the limit applies after the "
            "attempt has ended. Also as text: `256 MiB`."
        ),
    )
    archive: Annotated[str, AfterValidator(_archive_url)] = Field(
        default="",
        description=(
            "Archive of the logs: `s3://bucket/prefix` (extra `s3`; credentials as boto3 finds them) or "
            "`file:///mnt/shared`, an existing folder. `keep_per_worker` and `keep_in_all` then limit only the "
            "manager's disk: archived bytes are removed from it and read from the archive. Empty: no archive."
        ),
    )
    archive_interval: float = Field(
        default=10.0,
        ge=1,
        le=3600,
        description=(
            "Seconds after which new log bytes of all workers are uploaded as one object; earlier once 8 MiB are "
            "waiting. Each stream with new output adds an entry to the index, so that a longer interval results in a "
            "smaller index."
        ),
    )
    archive_endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        default="",
        description="Address of a server with S3's interface, e.g. `https://minio.example:9000`. Empty: that of AWS.",
    )
    archive_region: str = Field(
        default="", pattern=r"^[A-Za-z0-9-]{0,64}$", description="Region of the bucket. Empty: as boto3 finds it."
    )
    archive_profile: str = Field(
        default="", pattern=r"^[^\x00-\x1f]{0,128}$", description="Profile in `~/.aws`. Empty: as boto3 finds it."
    )
    archive_credentials_file: str = Field(
        default="",
        description="A file with credentials in the form of `~/.aws/credentials`. Empty: as boto3 finds them.",
    )
    retention: list[RetentionRule] = Field(
        default_factory=list,
        max_length=100,
        description=(
            "Rules by age and size, each for the workers that it selects: a list of `{select, days, max}`. If several"
            " rules select a worker, all of them apply. Whole attempts are deleted, but never the newest one of a"
            " worker that is not settled; the newest one of a failed worker is deleted only by age. Applies to the"
            " manager; `keep_local` limits the logs on hosts."
        ),
    )
