"""The inventory is read as Ansible reads it: the same hosts, groups and variables as in `ansible-inventory --list`,
and the same values of expressions as its templates have.

A new shape is a new entry in shapes.py; what differs stands in DIFFERENT, and in docs/inventory.md with its reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.inventory import model, names, source
from procguard.deploy.inventory.groups import Groups
from procguard.deploy.inventory.positions import Unsafe
from procguard.deploy.inventory.templates.renderer import Renderer
from procguard.deploy.inventory.vault import Encrypted, Vault
from tests import ansible_truth
from tests.rows import each
from tests.unit.deploy.inventory.expressions import EXPRESSIONS, VARIABLES
from tests.unit.deploy.inventory.shapes import PASSWORD, SHAPES, SOURCES

# The first of them waits for all answers of Ansible.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(ansible_truth.WITHIN_S)]

# Shapes that Ansible reads with a warning and incompletely: ProcGuard's messages.
STRICTER = {
    "yaml: an unknown key of a group": "unknown key host in group g",
    "yaml: a group that is text": "group k must be a mapping",
}
# Shapes of whose file Ansible drops hosts; here they are kept, with a warning.
KEPT = {
    "ini: an undefined group in [x:children]": {"h0", "h1"},
    "ini: [x:vars] of an undefined group": {"h1"},
    "yaml: names that are numbers": {"1", "2"},
}
RANGES = ["gpu[01:16].lan", "n[0:9:3]", "rack[a:f]", "r[1:2]n[08:11]", "x[c:c]y", "m[:3]", "n[098:101]"]


def planted(name: str, folder: Path) -> list[str]:
    """The shape's files; the paths passed to Ansible and to ProcGuard."""
    if not SHAPES[name]:
        return [str(Path(__file__).parents[4] / "inventory" / "prod.yaml")]
    for path, text in SHAPES[name].items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="")
        file.chmod(0o755 if text.startswith("#!") else 0o600)
    if name in SOURCES:
        return [one.replace("{}", str(folder)) for one in SOURCES[name]]
    first = folder / next(iter(SHAPES[name]))
    return [str(first if first.parent == folder else first.parent)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], Any]]:
    """Shape -> its paths and Ansible's result; all shapes in one run."""
    home = tmp_path_factory.mktemp("ansible")
    (home / "password").write_text(PASSWORD)
    (home / "password").chmod(0o600)
    sources = {}
    for number, name in enumerate(SHAPES):
        (home / str(number)).mkdir()
        sources[name] = planted(name, home / str(number))
    for number, pattern in enumerate(RANGES):
        (home / f"range{number}").write_text(pattern + "\n")
        sources[pattern] = [str(home / f"range{number}")]
    questions = []
    for name, paths in sources.items():
        words = [word for path in paths for word in ("-i", path)]
        words += ["--vault-password-file", str(home / "password")] if name.startswith("vault") else []
        questions.append({"list": words})
    for text in EXPRESSIONS:
        questions.append({"render": {"text": text, "variables": VARIABLES}})
    answers = ansible_truth.ask(questions, home)
    found: dict[str, tuple[list[str], Any]] = {}
    for (name, paths), answer in zip(sources.items(), answers, strict=False):
        assert answer["rc"] == 0, (name, answer["err"])
        found[name] = (paths, json.loads(answer["out"]))
    for text, answer in zip(EXPRESSIONS, answers[len(sources) :], strict=True):
        found[text] = ([], json.loads(answer["out"]) if answer["rc"] == 0 else answer["err"])
    found["password"] = ([str(home / "password")], None)
    return found


def members(listed: dict[str, Any], group: str) -> set[str]:
    body = listed.get(group, {})
    below = [members(listed, child) for child in body.get("children", [])]
    return set(body.get("hosts", [])).union(*below)


def read(paths: list[str], password_file: str = "") -> tuple[Groups, list[str], list[str]]:
    """(what was read, mistakes, warnings)"""
    mistakes: list[str] = []
    warnings: list[str] = []
    groups = source.read(
        paths,
        lambda *one: mistakes.append(": ".join(one)),
        lambda *one: warnings.append(": ".join(one)),
        Vault(password_file),
    )
    return groups, mistakes, warnings


@each("name", SHAPES)
def test_hosts_groups_and_variables_are_those_of_ansible(world: dict[str, Any], name: str) -> None:
    paths, theirs = world[name]
    ours, mistakes, _ = read(paths, world["password"][0][0] if name.startswith("vault") else "")
    if name in STRICTER:
        assert any(STRICTER[name] in one for one in mistakes)
        return
    assert mistakes == []
    if name in KEPT:
        assert members(theirs, "all") < set(ours.host_variables) == KEPT[name]
        return
    assert set(ours.host_variables) == members(theirs, "all")
    groups = {group: set(hosts) for group, hosts in ours.members().items() if hosts}
    named = {group for group in theirs if group != "_meta"} | {"all"}
    assert groups == {group: members(theirs, group) for group in named if members(theirs, group)}
    for host in ours.host_variables:
        assert as_json(ours.variables(host)) == theirs["_meta"]["hostvars"].get(host, {}), host


def as_json(value: Any) -> Any:
    """As `ansible-inventory --list` writes it."""
    if isinstance(value, Unsafe):
        return {"__ansible_unsafe": str(value)}
    if isinstance(value, Encrypted):
        return value.text if value.plain else {"__ansible_vault": value.text}
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in value.items()}
    return [as_json(one) for one in value] if isinstance(value, list) else value


@each("pattern", RANGES)
def test_ranges_are_those_of_ansible(world: dict[str, Any], pattern: str) -> None:
    assert set(names.expand_range(pattern)) == members(world[pattern][1], "all")


@each("text", EXPRESSIONS)
def test_expressions_have_the_value_that_they_have_in_ansible(world: dict[str, Any], text: str) -> None:
    assert json.loads(json.dumps(Renderer(VARIABLES).render(text))) == world[text][1]


def test_there_are_as_many_shapes_as_promised() -> None:
    """At least 60 beside ansible-core."""
    assert len(SHAPES) - len(STRICTER) - len(KEPT) >= 60


@each("name", [name for name in SHAPES if not name.startswith("vault")])
def test_every_shape_can_be_deployed_or_says_why_not(world: dict[str, Any], name: str) -> None:
    """Read completely: every host has a valid id and an address."""
    if name in STRICTER:
        return
    for host in model.load(world[name][0]).hosts.values():
        assert names.fleet_id(host.inventory_name) == host.name and host.target.address
