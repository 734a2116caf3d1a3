"""Inventories that are not YAML: mistakes have file, line and next step; nothing else is executed."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.cli import deploy
from procguard.deploy.inventory import model as inventory
from procguard.errors import InventoryError, UsageError


def mistake(path: Path) -> str:
    with pytest.raises(InventoryError) as caught:
        inventory.load(path)
    return str(caught.value)


def written(tmp_path: Path, name: str, text: str, mode: int = 0o644) -> Path:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_workers_of_an_ini_inventory_come_from_group_vars(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    written(tmp_path / "group_vars", "trainers.yml", 'procguard_workers: {"w-{{ inventory_hostname }}": run me}')
    path = written(tmp_path, "hosts", "[trainers]\ngpu[01:02] ansible_host=10.0.0.7 ansible_port=2222\n")
    hosts = inventory.load(path).hosts
    assert [host.workers[0].worker_id for host in hosts.values()] == ["w-gpu01", "w-gpu02"]
    assert (hosts["gpu01"].target.address, hosts["gpu01"].target.port) == ("10.0.0.7", 2222)


def test_workers_may_stand_in_one_line_of_an_ini_inventory(tmp_path: Path) -> None:
    path = written(tmp_path, "hosts.ini", "h1 procguard_workers=\"[{'id': 'w1', 'command': 'sleep 9'}]\"\n")
    assert inventory.load(path).hosts["h1"].workers[0].spec["command"] == "sleep 9"


def test_all_mistakes_of_an_ini_inventory_are_reported_with_their_lines(tmp_path: Path) -> None:
    lines = (
        "[web]", "w1 port", "w2 a='x", "[web:vars]", "no equals sign", "[gone:vars]", "a=1", "[web:kids]", "x",
        "[top:children]", "nobody", "[a b]",
    )  # fmt: skip
    reported = mistake(written(tmp_path, "hosts.ini", "\n".join(lines))).splitlines()
    expected = {
        2: "port is not a variable",
        3: "No closing quotation",
        5: "no equals sign",
        8: "[web:kids]",
        12: "[a b] is not a section",
    }
    for line, words in expected.items():
        assert any(f"hosts.ini:{line}:" in one and words in one for one in reported), (line, reported)
    assert len(reported) == len(expected)


def test_yaml_read_as_ini_says_how_to_name_it(tmp_path: Path) -> None:
    reported = mistake(written(tmp_path, "hosts.ini", "all:\n  hosts:\n"))
    assert "hosts.ini:1: all: is not a host" in reported and "name the file *.yaml" in reported


def test_the_settings_of_a_plugin_are_no_inventory(tmp_path: Path) -> None:
    reported = mistake(written(tmp_path, "aws.yaml", "plugin: amazon.aws.aws_ec2\n"))
    assert "aws.yaml:1" in reported and "ansible-inventory -i" in reported


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\necho cannot log in >&2\nexit 3\n", "failed with exit code 3: cannot log in"),
        ("#!/bin/sh\necho nonsense\n", "is not JSON"),
        ("#!/bin/sh\necho '[]'\n", "is not JSON object"),
        ("#!/nowhere/python\n", "cannot be started"),
        ('#!/bin/sh\necho \'{"g": {"hosts": "h1"}}\'\n', "hosts of g must be a list"),
    ],
)
def test_a_script_that_gives_no_inventory_is_reported_in_a_line(tmp_path: Path, script: str, words: str) -> None:
    reported = mistake(written(tmp_path, "dynamic", script, 0o755))
    assert words in reported and "dynamic" in reported and "Traceback" not in reported


def test_a_script_that_may_not_be_executed_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = written(tmp_path, "dynamic", f"#!/bin/sh\ntouch {mark}\n", 0o644)
    assert "dynamic" in mistake(path)
    assert not mark.exists()


def test_hosts_may_be_named_instead_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(inventory.load("h1,h2:2222,").hosts) == ["h1", "h2"]
    assert inventory.load("h1,h2:2222,").hosts["h2"].target.port == 2222


@pytest.mark.parametrize("variable", inventory.PROCGUARD_VARIABLES)
def test_every_variable_of_procguard_is_documented(variable: str) -> None:
    page = Path(__file__).parents[4] / "docs" / "inventory.md"
    assert f"| `{variable}` |" in page.read_text(encoding="utf-8")


def test_an_undefined_group_is_a_warning(tmp_path: Path) -> None:
    text = "[web]\nw1\n[gone:vars]\na=1\n[top:children]\nnobody\nweb\n"
    host = inventory.load(written(tmp_path, "hosts.ini", text)).hosts["w1"]
    assert host.groups == ("top", "web")
    for words in ("hosts.ini:3: [gone:vars] is for an undefined", "hosts.ini:6: [top:children] names nobody"):
        assert any(words in one for one in host.warnings)


@pytest.mark.parametrize("bad", ["a: [unclosed\n", "[g]\nh9 a='x\n", "#!/bin/sh\nexit 3\n", ""])
def test_a_file_of_a_folder_that_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path, bad: str) -> None:
    for name, text in (("10", "h1\n"), ("20.yml" if not bad.startswith("#!") else "20", bad), ("30", "[g]\nh2\n")):
        written(tmp_path, name, text, 0o755 if text.startswith("#!") else 0o644)
    found = inventory.load(tmp_path)
    assert list(found.hosts) == ["h1", "h2"] and found.incomplete
    assert all(any("20" in one and "left out" in one for one in host.warnings) for host in found.hosts.values())
    assert len(inventory.load([str(tmp_path / "10"), str(tmp_path / "30")]).hosts) == 2


def test_a_folder_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    written(tmp_path, "10.yml", "a: [unclosed\n")
    written(tmp_path, "20.yml", "plugin: amazon.aws.aws_ec2\n")
    reported = mistake(tmp_path)
    assert "10.yml:2: not valid YAML" in reported and "20.yml:1" in reported


def test_what_is_missing_in_an_inventory_that_could_not_be_read_is_never_pruned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "inv").mkdir()
    written(tmp_path / "inv", "10", "h1\n")
    written(tmp_path / "inv", "20.yml", "a: [unclosed\n")
    with pytest.raises(UsageError, match="need not be gone"):
        deploy.deploy.run({"hosts": [str(tmp_path / "inv")], "prune": True})
    assert "20.yml:2: not valid YAML" in capsys.readouterr().err.replace("\n", "")


def test_several_inventories_are_one_and_each_has_its_own_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder, "hosts", f"[g]\n{folder}1 ansible_user='{{{{ inventory_dir | basename }}}}'\n")
    found = inventory.load([str(tmp_path / "a/hosts"), str(tmp_path / "b/hosts"), "c1,"])
    assert {name: host.target.user for name, host in found.hosts.items()} == {"a1": "a", "b1": "b", "c1": ""}
    assert found.groups["g"] == ["a1", "b1"] and found.identity == ""
    assert inventory.load([str(tmp_path / "a/hosts"), str(tmp_path / "b/hosts")]).identity.endswith("/b/hosts")


def test_an_empty_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    assert "contains no inventory" in mistake(tmp_path)
    assert "there is no file" in mistake(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("variables", "meant"),
    [
        ("workers: [{id: w, command: x}]", "workers is not a variable of ProcGuard; did you mean procguard_workers?"),
        ("workers: {w: {command: x}}", "did you mean procguard_workers?"),
        ("procgaurd_workers: []", "did you mean procguard_workers?"),
        ("Procguard_Home: /x", "did you mean procguard_home?"),
        ("procguard-workers: []", "did you mean procguard_workers?"),
        ("procguard_worker: []", "procguard_worker is not a variable ProcGuard knows"),
        ("workers: 8", ""),
        ("workers: [a, b]", ""),
        ("workers: [{id: w, command: x}], procguard_workers: '{{ workers }}'", ""),
        ("home: /x, labels: {a: b}, safeguard_level: 3", ""),
    ],
)
def test_a_variable_that_is_probably_meant_for_procguard_is_noted(tmp_path: Path, variables: str, meant: str):
    path = tmp_path / "hosts.yaml"
    path.write_text(f"all:\n  hosts:\n    a: {{{variables}}}\n")
    warnings = inventory.load(str(path)).hosts["a"].warnings
    assert [meant in one for one in warnings] == ([True] if meant else []), warnings


@pytest.mark.parametrize(
    ("written", "size"),
    [("true", (24, 80)), ("false", None), ("{rows: 50}", (50, 80)), ("{columns: 132}", (24, 132))],
)
def test_a_terminal_is_declared_by_true_or_by_its_size(tmp_path: Path, written: str, size: tuple[int, int] | None):
    path = tmp_path / "hosts.yaml"
    path.write_text(f"all:\n  hosts:\n    a:\n      procguard_workers: [{{id: w, command: x, tty: {written}}}]\n")
    [worker] = inventory.load(str(path)).hosts["a"].workers
    found = worker.spec["tty"]
    assert (found and (found["rows"], found["columns"])) == size


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("tty: {colums: 132}", "unknown key tty.colums; did you mean tty.columns?"),
        ("tty: 80x24", "worker w: tty: "),
        ("tty: true, stderr: separate", "a terminal has one stream"),
        ("tty: true, container: i", "tty is not supported beside container"),
        ("tty: {rows: 0}", "tty.rows 0: expected a number from 1 to 1000"),
    ],
)
def test_a_mistake_in_a_terminal_is_one_line(tmp_path: Path, written: str, said: str):
    path = tmp_path / "hosts.yaml"
    path.write_text(f"all:\n  hosts:\n    a:\n      procguard_workers: [{{id: w, command: x, {written}}}]\n")
    with pytest.raises(InventoryError) as caught:
        inventory.load(str(path))
    assert said in str(caught.value), str(caught.value)
