"""Containers in an inventory: keys, prerequisites of the host, and a note for a bare docker run."""

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


def said(host: model.Host, **found: object) -> str:
    return "\n".join(f"{one.problem}; {one.next_step}" for one in containers.findings(host, found))


def test_a_host_of_container_workers_is_asked_for_podman(tmp_path: Path) -> None:
    host = load(tmp_path, "          container: nginx\n")
    assert containers.asked_of(host) == {"podman": True}
    assert "no podman on this host, which w1 needs" in said(host, podman="")
    assert said(host, podman="4.3.1") == ""
    assert "podman 3.4.4 is too old for containers; install 4.3" in said(host, podman="3.4.4")
    plain = load(tmp_path, "          command: sleep 1\n")
    assert containers.asked_of(plain) == {} and said(plain) == ""


def test_what_a_user_who_is_not_root_lacks_is_named_with_the_command_that_helps(tmp_path: Path) -> None:
    host = load(tmp_path, "          container: nginx\n          on_partition: fence\n")
    text = said(host, podman="4.3.1", podman_user="ml", podman_lacks=["uidmap", "subuid", "runtime_dir"])
    for part in (
        "apt-get install uidmap",
        "usermod --add-subuids",
        "enable-linger ml",
        "w1: on_partition: fence and gangs",
    ):
        assert part in text
    text = said(host, podman="4.3.1", podman_user="ml", podman_lacks=["user_namespace"])
    assert "podman of user ml cannot make a user namespace on this host; see why as ml there: podman info" in text
    assert said(host, podman="4.3.1", podman_user="", podman_lacks=[]) == ""


def test_gpus_need_a_cdi_specification_of_the_host(tmp_path: Path) -> None:
    host = load(tmp_path, "          container: {image: i, gpus: 2}\n")
    assert "no CDI specification of nvidia.com/gpu on this host, which w1 needs" in said(
        host, podman="4.3.1", podman_gpus=[]
    )
    assert said(host, podman="4.3.1", podman_gpus=["0"]) == "" == said(host, podman="4.3.1")


@pytest.mark.parametrize(
    ("command", "instead"),
    [
        ("docker run --rm nginx:1", "container: {image: docker.io/library/nginx:1}"),
        ("sudo docker run -it nvidia/cuda:12 smi -L", "{image: docker.io/nvidia/cuda:12}, command: [smi, -L]"),
        ("/usr/bin/podman run -d --name=x --net=host quay.io/a/b", "container: {image: quay.io/a/b, network: host}"),
        (["podman", "run", "-v", "/d:/d:ro", "--privileged", "i:1", "run"],
         "{image: i:1, mounts: [/d:/d:ro], options: [--privileged]}, command: [run]"),
        ("docker container run --gpus all --shm-size 8g -e TOKEN=s3cret -w /src reg.io/x python a.py",
         "{image: reg.io/x, shm_size: 8g}, command: [python, a.py], env: {TOKEN: …}, gpus: N, working_dir: /src"),
        ("A=1 docker run -p 80:80 -m 2g --ipc=host redis",
         "network: bridge, options: [--publish=80:80, --memory=2g, --ipc=host]"),
        ("docker start box", "container: {image: IMAGE}"),
        ("docker run", "container: {image: IMAGE}"),
    ],
)  # fmt: skip
def test_a_bare_docker_run_is_noted_with_the_keys_to_write_instead(command: str | list[str], instead: str) -> None:
    note = engine_started(WorkerSpec(command))
    assert instead in note.partition("write instead: ")[2] and "s3cret" not in note


def test_what_is_to_be_written_instead_is_an_inventory_that_says_the_same(tmp_path: Path) -> None:
    command = "docker run -v /d:/d -e A=b --user 1000 --ipc=host -p 80:80 --shm-size=1g img:1 sh -c 'echo a: b # c'"
    keys = engine_started(WorkerSpec(command)).partition("write instead: ")[2]
    [worker] = load(tmp_path, f"          {'{'}{keys}{'}'}\n".replace("          {", "          <<: {")).workers
    assert worker.spec["command"] == ["sh", "-c", "echo a: b # c"] and worker.spec["env"] == {"A": "…"}
    assert worker.spec["container"]["image"] == "docker.io/library/img:1"
    assert worker.spec["container"]["options"] == ["--ipc=host", "--publish=80:80"]


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
