"""A worker in a container as its agent resolves it, and one that an agent with a real podman runs, loses and adopts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent import settings, spec_file
from remote_agent.protocol.messages import Assignment, ContainerSpec, Limits, RestartPolicy, WorkerSpec, launch_digest
from tests.agent_host import Host, alive, running
from tests.fake_manager import FakeManager
from tests.unit.podman_host import IMAGE, PodmanHost
from tests.waiting import wait_until


def resolved(container: ContainerSpec, command: Any = "python train.py", **fields: Any) -> dict[str, Any]:
    lease_s = fields.pop("lease_s", None)
    spec = WorkerSpec(command, container=container, **fields)
    return spec_file.resolve(Assignment("w1", spec, lease_s=lease_s), "/home/a")


def test_an_older_runner_is_given_no_command_that_it_could_start_without_owning_the_container() -> None:
    content = resolved(ContainerSpec("nginx"))
    assert content["argv"] == [] and content["error"] == ""


def test_directories_limits_and_gpus_are_words_of_podman() -> None:
    content = resolved(
        ContainerSpec(
            "img", mounts=["/data:/data:ro", "out:/out"], user="1000:1000", shm_size="8g", options=["--ipc=host"]
        ),
        working_dir="p",
        umask="027",
        limits=Limits(nofile=4096, memory="8G", memory_max="32G", cpu_max=2.5),
    )
    assert content["start"]["container"] == {
        "image": "img", "command": ["python", "train.py"], "pull": "missing", "worker": "w1",
        "options": [
            "--network=host", "--volume=/data:/data:ro", "--volume=/home/a/p/out:/out", "--volume=/home/a/p:/home/a/p",
            "--workdir=/home/a/p", "--user=1000:1000", "--shm-size=8g", "--umask=027", "--ulimit=nofile=4096:4096",
            f"--ulimit=as={8 << 30}:{8 << 30}", f"--memory={32 << 30}", "--cpus=2.5", "--ipc=host",
        ],
    }  # fmt: skip


def test_without_a_command_the_image_s_own_is_run() -> None:
    content = resolved(ContainerSpec("nginx"), "")
    assert content["error"] == "" and content["start"]["container"]["command"] == []


@pytest.mark.parametrize(
    ("container", "fields", "said"),
    [
        (ContainerSpec(), {}, "container.image ''"),
        (ContainerSpec("--privileged"), {}, "container.image '--privileged'"),
        (ContainerSpec("i"), {"venv": "v"}, "venv has no meaning beside container"),
        (ContainerSpec("i"), {"user": "root"}, "container.user is the user inside"),
        (ContainerSpec("i"), {"stderr": "separate"}, "stderr: separate is not supported"),
        (ContainerSpec("i", mounts=["/data"]), {}, "container.mounts '/data'"),
        (ContainerSpec("i", options=["-it"]), {}, "container.options '-it'"),
        (ContainerSpec("i", options=["--tty"]), {}, "podman refuses a tty"),
        (ContainerSpec("i", options=["--name=mine"]), {}, "--name is the runner's own"),
        (ContainerSpec("i", options=["--rm"]), {}, "--rm is the runner's own"),
    ],
)
def test_what_would_break_the_promise_or_means_nothing_is_refused_in_words(
    container: ContainerSpec, fields: dict[str, Any], said: str
) -> None:
    assert any(said in mistake for mistake in spec_file.mistakes_in(WorkerSpec("x", container=container, **fields)))
    assert said in resolved(container, **fields)["error"]


def test_a_lease_is_kept_by_an_agent_that_runs_as_root_and_refused_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert resolved(ContainerSpec("i"), on_partition="fence", lease_s=60.0)["error"] == ""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "need an agent that runs as root" in resolved(ContainerSpec("i"), lease_s=60.0)["error"]
    assert resolved(ContainerSpec("i"))["error"] == ""


def test_another_image_is_another_launch() -> None:
    assert launch_digest(WorkerSpec("x", container=ContainerSpec("a"))) != launch_digest(
        WorkerSpec("x", container=ContainerSpec("b"))
    )


@pytest.fixture
def boxed(tmp_path: Path, manager: FakeManager, podman_host: PodmanHost) -> Iterator[Host]:
    made = Host(tmp_path, manager)
    own = settings.load(made.directory)
    own.base_env = {**os.environ, **podman_host.env}
    settings.save(made.directory, own)
    yield made
    made.end()
    podman_host.remove_all()


def test_an_agent_runs_a_container_is_killed_adopts_it_and_stops_it(
    boxed: Host, manager: FakeManager, podman_host: PodmanHost
) -> None:
    script = 'trap "exit 0" TERM; echo up; while :; do sleep 0.05; done'
    manager.assign(
        "w1", ["/bin/sh", "-c", script], container=ContainerSpec(IMAGE, network="none", pull="never"),
        restart=RestartPolicy(start_secs=0.2),
    )  # fmt: skip
    boxed.start()
    pid = running(manager)
    assert boxed.agent is not None and len(podman_host.names()) == 1
    os.kill(boxed.agent.pid, signal.SIGKILL)
    boxed.agent.wait()
    assert alive(pid)
    boxed.start()
    wait_until(lambda: (manager.report("w1") or {}).get("usage"), 30.0, "its usage")
    assert running(manager) == pid and manager.report("w1")["attempt"] == 1
    assert manager.report("w1")["usage"]["processes"] >= 2, "conmon and the job at least"
    manager.set_desired("w1", "stopped")
    wait_until(lambda: manager.report("w1")["state"] == "stopped", 30.0, "its stop")
    assert not alive(pid)
    wait_until(lambda: not podman_host.names(), 10.0, "its removal")
