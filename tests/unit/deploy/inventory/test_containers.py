"""Containers in an inventory: the keys, what has to be on the host, and a note at a bare docker run."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.deploy.inventory import containers, model
from procguard.deploy.inventory.command_words import engine_started
from procguard.errors import InventoryError
from remote_agent.protocol.messages import WorkerSpec


def load(tmp_path: Path, worker: str) -> model.Host:
    path = tmp_path / "hosts.yaml"
    path.write_text(f"all:\n  hosts:\n    gpu01:\n      procguard_workers:\n        - id: w1\n{worker}")
    return model.load(str(path)).hosts["gpu01"]


def test_a_container_is_declared_by_its_image_or_by_its_keys(tmp_path: Path) -> None:
    [short] = load(tmp_path, "          container: docker.io/library/nginx\n").workers
    assert short.spec["container"]["image"] == "docker.io/library/nginx" and short.spec["command"] == ""
    [full] = load(tmp_path, "          command: run\n          container: {image: i, gpus: 2}\n").workers
    assert full.spec["gpus"] == 2


@pytest.mark.parametrize(
    ("worker", "said"),
    [
        ("          container: {img: x}\n", "unknown key container.img"),
        ("          container: {image: x, options: [--tty]}\n", "tty"),
        ("          container: {image: x, gpus: 2}\n          gpus: 1\n", "gpus and container.gpus differ"),
    ],
)
def test_mistakes_in_a_container_are_reported(tmp_path: Path, worker: str, said: str) -> None:
    with pytest.raises(InventoryError, match=said):
        load(tmp_path, worker)


def test_a_host_of_container_workers_is_asked_for_podman(tmp_path: Path) -> None:
    host = load(tmp_path, "          container: nginx\n")
    assert containers.asked_of(host) == {"podman": True}
    assert "no podman on this host, which w1 needs" in containers.problem(host, {"podman": ""})
    assert containers.problem(host, {"podman": "4.3.1"}) == ""
    plain = load(tmp_path, "          command: sleep 1\n")
    assert containers.asked_of(plain) == {} and containers.problem(plain, {}) == ""


@pytest.mark.parametrize(
    "command",
    ["docker run --rm nginx:1", "sudo docker run nginx:1", "/usr/bin/podman run nginx:1", ["podman", "run", "nginx:1"],
     "A=1 docker container run nginx:1"],
)  # fmt: skip
def test_a_bare_docker_run_is_noted_with_what_to_write_instead(command: str | list[str]) -> None:
    assert "container: {image: nginx:1}" in engine_started(WorkerSpec(command))


@pytest.mark.parametrize(
    "command", ["python docker.py run", "docker ps", "podman-compose up", "echo 'docker run'", "'"]
)
def test_other_commands_are_not(command: str) -> None:
    assert engine_started(WorkerSpec(command)) == ""


def test_the_note_is_reported_where_the_inventory_is_read(tmp_path: Path) -> None:
    host = load(tmp_path, "          command: docker run nginx:1\n")
    assert any("starts a container by docker" in warning for warning in host.warnings)


def test_a_container_may_be_fenced_and_a_member_of_a_gang(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(
        "all:\n  vars:\n    procguard_groups: {train: {restart: gang}}\n  hosts:\n    gpu01:\n"
        "      procguard_workers:\n"
        "        - {id: w1, group: train, container: img}\n        - {id: w2, on_partition: fence, container: img}\n"
    )
    assert model.load(str(path)).hosts["gpu01"].warnings == ()
