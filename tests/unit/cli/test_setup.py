"""init writes files that validate and deploy read; playbooks contain the paths of this installation."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from procguard import resources
from procguard.cli import app
from procguard.cli.program import process
from procguard.config import schema
from procguard.deploy.inventory import model


def run(*words: str) -> int:
    return process.guarded(lambda: app.run(words))


def test_init_writes_what_deploy_and_the_manager_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", "ml@gpu01", "ml@10.0.0.12:2222", "ml@[2001:db8::7]") == 0
    said = capsys.readouterr().out
    found = model.load("inventory.yaml")
    assert {(host.name, host.target.user, host.target.port) for host in found.hosts.values()} == {
        ("gpu01", "ml", 0),
        ("host-10-0-0-12", "ml", 2222),
        ("host-2001-db8-7", "ml", 0),
    }
    assert [worker.worker_id for worker in found.hosts["gpu01"].workers] == ["hello-gpu01"]
    assert schema.load("procguard.yaml", []).state_directory == str(tmp_path / "state")
    assert run("validate", "--hosts", "inventory.yaml", "--config", "procguard.yaml") == 0
    assert "3 hosts, 3 workers" in capsys.readouterr().out
    for line in said.splitlines()[3:]:  # the commands that it names next
        words = shlex.split(line)
        assert words[0] in ("invoke", "./start_manager.sh"), line
    assert run("init", "gpu01") == 1 and "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["gpu 01", "a@b@c", "gpu01:0", "gpu01:99999", "-oProxyCommand=x", "gpu01;id", "{{x}}"])
def test_init_takes_no_word_that_is_no_host(tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "--folder", str(tmp_path), "gpu01", host) == 1
    assert list(tmp_path.iterdir()) == []
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_init_for_this_machine_needs_no_ssh(tmp_path: Path) -> None:
    assert run("init", "localhost", "--folder", str(tmp_path / "new")) == 0
    (host,) = model.load(tmp_path / "new" / "inventory.yaml").hosts.values()
    assert host.name == "this-machine"


def test_validate_says_every_mistake_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inventory, config = tmp_path / "i.yaml", tmp_path / "c.yaml"
    inventory.write_text("all: {hosts: {a: , b: }, vars: {procguard_workers: [{id: same, command: x}]}}")
    config.write_text("web: {port: 99999999}\nrecovery: {max_recovery_attempts: many}\n")
    assert run("validate", "--hosts", str(inventory), "--config", str(config)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "worker same is declared on a and on b" in said and "web.port" in said and "max_recovery_attempts" in said
    assert run("validate") == 1


@pytest.mark.parametrize(
    "text",
    [
        "logs: {retention: [{select: 'state=quick', days: 1}]}",
        "notify: [{select: 'state=quick', to: x, on: [finished]}]",
    ],
)
def test_validate_reads_the_selectors_of_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """The manager would not start with them."""
    config = tmp_path / "c.yaml"
    config.write_text(text + "\nnotifications: [{name: x, type: webhook, url: 'http://127.0.0.1:9/'}]\n")
    assert run("validate", "--config", str(config)) == 1
    assert "entry 1: select: " in " ".join(capsys.readouterr().err.split())


def test_validate_describes_where_logs_are_kept_and_for_how_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "logs:\n  archive: s3://bucket/prefix\n  archive_credentials_file: ~/.secret\n  retention:\n"
        "  - {select: group=trainers, days: 30, max: 20 GiB}\n  - {select: 'state=failed', days: 90}\n"
        "  - {select: '*', max: 1 GiB}\n"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert run("validate", "--config", str(config)) == 0
    out, err = capsys.readouterr()
    said = " ".join(out.split())
    assert "logs.archive: s3://bucket/prefix; new log bytes are uploaded within 10 s" in said
    assert "group=trainers: deleted 30 days after the last write; at most 20.0 GiB together" in said
    assert "state=failed: deleted 90 days after the last write" in said and "*: at most 1.0 GiB together" in said
    assert ".secret" not in out + err
    assert "pip install 'procguard[s3]'" in err and len(out.splitlines()) == 5


def test_playbooks_name_the_python_that_wrote_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "my plays"
    assert run("playbooks", str(target)) == 0
    variables = yaml.safe_load((target / "vars.yaml").read_text())
    assert variables["procguard_controller"] == sys.executable
    assert variables["procguard_import_from"] == resources.import_root()
    assert {path.name for path in target.iterdir()} == {
        path.name for path in Path(resources.path("playbooks")).iterdir()
    }
    assert run("playbooks", str(target)) == 1 and "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    assert "__complete" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=10)
    assert run("completion", "csh") == 1
