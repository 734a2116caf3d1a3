"""Section `logs`: how much of the workers' logs is kept, where and for how long."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from procguard.config.types import Section, size_in_bytes


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
    retention: list[RetentionRule] = Field(
        default_factory=list,
        max_length=100,
        description=(
            "Rules by age and size, each for the workers that it selects: a list of `{select, days, max}`. A worker may"
            " be in several; each rule applies. Whole attempts are deleted, never the newest one of a worker that is"
            " not settled, and the newest one of a failed worker only by age. On the manager; `keep_local` bounds"
            " hosts."
        ),
    )
