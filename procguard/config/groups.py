"""Keys of a group policy: `groups` in the configuration and `procguard_groups` in an inventory.

The one place for these keys, their bounds and descriptions; docs/groups.md documents them. Knows neither the source
of a policy nor its effects (fleet/gangs/decider.py). A group without a policy is only a name for selectors.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _address(text: str) -> str:
    if any(letter.isspace() or letter == "/" for letter in text):
        raise ValueError("an IP address or a host name that every member's host can reach")
    return text


class GroupPolicy(BaseModel):
    """The policy of one group."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    restart: Literal["alone", "gang"] = Field(
        default="alone",
        description=(
            "`alone`: each member restarts by its own policy. `gang`: the members are one job: when one fails, "
            "all are stopped and restarted together."
        ),
    )
    rendezvous: Literal["none", "torch"] = Field(
        default="none",
        description=(
            "`torch`: each member's environment contains its rank, the world size and the address of rank 0, as "
            "torch.distributed and torchrun read them. Requires `restart: gang`."
        ),
    )
    max_attempts: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Restarts of the gang before it is `failed`; unset: `recovery.max_recovery_attempts`.",
    )
    backoff_s: list[Annotated[float, Field(ge=0, le=86_400)]] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description=(
            "Delays before the gang's restarts, in seconds, each ±25 %; the last one repeats. Unset: the members'"
            " `restart.backoff_s`, if they are equal."
        ),
    )
    nproc_per_node: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Number of processes that each member starts (torchrun); WORLD_SIZE includes them.",
    )
    master_addr: Annotated[str, AfterValidator(_address)] = Field(
        default="", description="MASTER_ADDR; empty: the address of the host on which rank 0 runs."
    )
    master_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="MASTER_PORT; 0: a free port of the host of rank 0, chosen for each start.",
    )

    @model_validator(mode="after")
    def _rendezvous_needs_a_gang(self) -> GroupPolicy:
        if self.rendezvous != "none" and self.restart != "gang":
            raise ValueError(
                f"restart: gang beside rendezvous: {self.rendezvous}; ranks need members that start together"
            )
        return self


ALONE = GroupPolicy()  # the policy of a group without one
PolicySource = Literal["configuration", "inventory", ""]  # what declares it; "": nothing does
