"""Keys of groups in the configuration and in an inventory; every mistake with its position."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.config import schema
from procguard.config.groups import GroupPolicy
from procguard.deploy.inventory import model
from procguard.errors import ConfigError, InventoryError
from procguard.fleet.gangs.decider import GangRecord

INVENTORY = """\
all:
  vars:
    gang: gang
    procguard_groups:
      trainers: {restart: "{{ gang }}", rendezvous: torch, nproc_per_node: 4}
  hosts:
    h1: {procguard_workers: [{id: w1, command: a, group: trainers}]}
    h2: {procguard_workers: [{id: w2, command: a, group: trainers, on_partition: keep}]}
"""


def written(tmp_path: Path, text: str, name: str = "c.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def config_mistake(path: str | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        schema.load(path, overrides)
    return str(caught.value)


def inventory_mistake(tmp_path: Path, before: str, after: str) -> str:
    assert before in INVENTORY
    with pytest.raises(InventoryError) as caught:
        model.load(written(tmp_path, INVENTORY.replace(before, after), "prod.yaml"))
    return str(caught.value)


def test_the_configuration_says_which_groups_are_gangs(tmp_path: Path) -> None:
    path = written(tmp_path, "groups:\n  trainers: {restart: gang, max_attempts: 5}\n  crawlers:\n    restart: alone\n")
    assert schema.load(path).groups["trainers"] == GroupPolicy(restart="gang", max_attempts=5)
    assert schema.load(None, ["groups={trainers: {restart: gang}}"]).groups["trainers"].restart == "gang"
    assert schema.load(written(tmp_path, "groups:\n")).groups == {}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("{restart: gnag}", 2, "expected one of alone, gang"),
        ("{restart: gang, max_attempts: -1}", 2, "expected at least 0"),
        ("{restrat: gang}", 2, "did you mean groups.trainers.restart?"),
        ("{restart: gang, master_addr: a b}", 2, "an IP address or a host name"),
        ("{rendezvous: torch}", 2, "restart: gang beside rendezvous: torch"),
        ("gang", 2, "a section with keys: restart, rendezvous"),
    ],
)
def test_a_mistake_in_the_configuration_names_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = written(tmp_path, f"groups:\n  trainers: {text}\n")
    reported = config_mistake(path)
    assert f"{path}:{line}: groups.trainers" in reported and words in reported


def test_an_inventory_says_it_for_all_its_hosts_and_warns_who_asks_to_be_kept(tmp_path: Path) -> None:
    found = model.load(written(tmp_path, INVENTORY, "prod.yaml"))
    policy = GroupPolicy(restart="gang", rendezvous="torch", nproc_per_node=4)
    assert [host.policies for host in found.hosts.values()] == [{"trainers": policy}, {"trainers": policy}]
    assert found.hosts["h1"].warnings == ()
    (warning,) = found.hosts["h2"].warnings
    assert "w2" in warning and "fenced" in warning


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("rendezvous: torch", "rendezvous: slurm", "prod.yaml:5: group trainers: rendezvous"),
        ("nproc_per_node", "nproc_per_nod", "prod.yaml:5: unknown key nproc_per_nod of group trainers; did you mean"),
        ('restart: "{{ gang }}", ', "", "prod.yaml:5: group trainers: restart: gang beside rendezvous: torch"),
        ("{{ gang }}", "{{ gnag }}", "group trainers: "),
        ('{restart: "{{ gang }}", rendezvous: torch, nproc_per_node: 4}', "gang", "group trainers must be a mapping"),
        ("h1: {", "h1: {procguard_groups: {trainers: {restart: alone}}, ", "h2 sets other values for group trainers"),
    ],
)
def test_a_mistake_in_an_inventory_names_its_line(tmp_path: Path, before: str, after: str, words: str) -> None:
    assert words in inventory_mistake(tmp_path, before, after)


def test_every_key_of_a_group_is_documented_as_it_is() -> None:
    page = (Path(__file__).parents[3] / "docs" / "groups.md").read_text(encoding="utf-8")
    for name, info in GroupPolicy.model_fields.items():
        assert f"| `{name}` |" in page
        assert f"| {str(info.description).removesuffix('.')} |" in page, name


def test_phases_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
    for phase in ("restarting", "running", "stopped", "failed", "finished"):
        assert f"`{phase}`" in page, phase
    assert GangRecord("g").phase == "restarting"
