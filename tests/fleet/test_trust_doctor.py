"""`invoke trust` and `invoke doctor` against a real sshd of the current user; no root needed."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.jobs import COUNT, write_inventory
from tests.fleet.manager import Manager, Operator
from tests.fleet.user_sshd import UserSshd, find_sshd
from tests.ports import free_port

pytestmark = pytest.mark.skipif(find_sshd() is None and os.environ.get("CI") != "true", reason="needs sshd")


@dataclass
class World:
    host: UserSshd
    operator: Operator
    manager: Manager
    folder: Path

    @property
    def known_hosts(self) -> Path:
        return self.operator.home / ".ssh" / "known_hosts"

    def inventory(self, **variables: Any) -> str:
        values = {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.host.port,
            "ansible_user": self.host.user,
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.known_hosts}",
            "procguard_service": "none",
            "procguard_workers": [{"worker_id": "solo", "command": f"python3 {self.folder}/count.py solo"}],
        }
        return str(write_inventory(self.folder / "inventory.yaml", {"here": values | variables}))

    def trust(self, *options: str, **variables: Any) -> tuple[int, str]:
        run = self.operator.invoke("trust", "--hosts", self.inventory(**variables), *options)
        assert "Traceback" not in run.stderr
        return run.returncode, run.stdout + run.stderr

    def doctor(self, **variables: Any) -> tuple[int, str]:
        run = self.operator.invoke("doctor", "here", "--hosts", self.inventory(**variables))
        assert "Traceback" not in run.stderr
        return run.returncode, run.stdout + run.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp_path = tmp_path_factory.mktemp("world")
    for name in ("sshd", "manager"):
        (tmp_path / name).mkdir()
    (tmp_path / "count.py").write_text(COUNT.replace("/var/tmp", str(tmp_path)))
    with UserSshd(tmp_path / "sshd") as host:
        operator = Operator.with_keys(tmp_path / "operator", host.private_key, None)
        with Manager(tmp_path / "manager", operator.environment) as manager:
            operator.manager_url = manager.url
            yield World(host, operator, manager, tmp_path)


@pytest.fixture
def world(running: World) -> World:
    """No host is trusted yet, and the manager is running."""
    running.known_hosts.unlink(missing_ok=True)
    if running.manager.process is None:
        running.manager.start()
    return running


def test_an_unknown_key_is_shown_and_only_added_when_asked_to(world: World) -> None:
    fingerprint = "SHA256:"
    code, text = world.trust()
    assert code == 1 and fingerprint in text and "no key was added" in text
    assert not world.known_hosts.exists()

    code, text = world.trust("--yes")
    assert code == 0 and "added to" in text
    assert world.known_hosts.read_text().startswith(f"[127.0.0.1]:{world.host.port} ssh-ed25519 ")
    assert stat.S_IMODE(world.known_hosts.stat().st_mode) == 0o600

    before = world.known_hosts.read_text()
    code, text = world.trust("--yes")
    assert code == 0 and "known" in text and world.known_hosts.read_text() == before


def test_a_key_that_changed_is_never_added(world: World) -> None:
    other = (world.host.directory / "authorized_keys").read_text().split()
    wrong = f"[127.0.0.1]:{world.host.port} {other[0]} {other[1]}\n"
    world.known_hosts.write_text(wrong)
    code, text = world.trust("--yes")
    assert code == 2 and "its host key has changed" in text
    assert world.known_hosts.read_text() == wrong


def test_the_doctor_names_the_first_thing_that_is_wrong(world: World) -> None:
    code, text = world.doctor()
    assert code == 2 and "✗ login" in text and "its host key is not known" in text

    world.trust("--yes")
    code, text = world.doctor(ansible_ssh_private_key_file="/nowhere/key")
    assert code == 2 and "there is no key /nowhere/key" in text
    code, text = world.doctor(ansible_user="nobody-there")
    assert code == 2 and "✓ port" in text and "login as nobody-there was refused" in text
    code, text = world.doctor(ansible_port=free_port())
    assert code == 2 and "✗ port" in text and "✓ name" in text
    code, text = world.doctor(ansible_python_interpreter="/nowhere/python3")
    assert code == 2 and "✗ installer" in text and "program /nowhere/python3 not found on this host" in text
    code, text = world.doctor(procguard_home="/dev/null/x")
    assert "✓ login" in text


def test_the_doctor_follows_a_host_from_nothing_to_well(world: World) -> None:
    world.trust("--yes")
    code, text = world.doctor()
    assert code == 2 and "✗ agent" in text and "not installed" in text and "✓ space" in text and "✓ clock" in text
    inventory = world.inventory()
    run = world.operator.invoke("deploy", "--hosts", inventory)
    assert run.returncode == 0, run.stdout + run.stderr
    try:
        code, text = world.doctor()
        assert code == 0, text
        for step in ("manager", "name", "port", "login", "python", "agent", "path to the manager", "heartbeat"):
            assert f"✓ {step}" in text, text
        with socket.socket() as deaf:  # accepts and says nothing
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(4)
            code, text = world.doctor(procguard_manager_url=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        assert code == 2 and "✗ path to the manager" in text and "timed out" in text
    finally:
        gone = world.operator.invoke("undeploy", "--hosts", inventory)
    assert gone.returncode == 0, gone.stdout + gone.stderr


def test_the_doctor_works_where_the_manager_does_not(world: World) -> None:
    world.trust("--yes")
    world.manager.stop()
    code, text = world.doctor()
    assert code == 2 and "✗ manager" in text and "✓ login" in text and "✓ python" in text
