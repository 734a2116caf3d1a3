"""A worker in a container, with a real podman: never more than one, ended completely, its output complete."""

from __future__ import annotations

import glob
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol.messages import WorkerUsage
from remote_agent.runner import control
from remote_agent.system import cgroup, paths, processes
from remote_agent.telemetry import container_group
from remote_agent.telemetry.procfs import ProcMeter
from tests.unit.podman_host import IMAGE, PodmanHost
from tests.unit.runner_rig import Rig, alive, make_rig, remove
from tests.waiting import wait_until

FOREVER = 'trap "exit 0" TERM; echo up; while :; do sleep 0.05; done'
IGNORES = (
    'trap "" TERM; setsid sh -c "trap \\"\\" TERM; while :; do sleep 0.1; done" & echo up; while :; do sleep 0.05; done'
)
# Each instance says every 50 ms that it lives: "attempt, own number".
STAMPS = (
    'trap "exit 0" TERM; echo up; while :; do echo "$PROCGUARD_ATTEMPT $(date +%s%N)" >> /stamps/all; sleep 0.05; done'
)


class Boxed(Rig):
    """A rig whose worker runs in a container."""

    podman: PodmanHost

    def box(self, script: str, *options: str, pull: str = "never", image: str = IMAGE, **spec: Any) -> Boxed:
        self.shell(script, **{"restart": {"start_timeout_s": 30.0}, **spec})
        self.assignment["argv"] = []
        self.assignment["start"] = {
            "container": {
                "image": image, "command": ["/bin/sh", "-c", script], "options": ["--network=none", *options],
                "pull": pull, "worker": "w1",
            }
        }  # fmt: skip
        return self

    def conmon(self) -> int:
        return int((Path(self.worker_dir) / "conmon.pid").read_text())

    def stop(self) -> dict[str, Any]:
        self.write_spec(desired="stopped", generation=int(self.assignment["generation"]) + 1)
        assert self.link
        self.link.assign()
        return self.until("stopped", timeout_s=40.0)

    def nothing_left(self) -> None:
        self.runner_gone()
        assert self.survivors() == [] and self.podman.names() == []


@pytest.fixture
def rig(podman_host: PodmanHost) -> Iterator[Boxed]:
    _, directory = make_rig()
    remove(directory)
    os.makedirs(directory)
    made = Boxed(directory)
    made.podman = podman_host
    paths.write_json(
        paths.base_env_file(made.worker_dir), {"PATH": os.environ["PATH"], "HOME": "/tmp", **podman_host.env}
    )
    yield made
    made.clean_up()
    podman_host.remove_all()
    remove(directory)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_runner_and_conmon_are_in_the_workers_control_group(rig: Boxed) -> None:
    """Although podman is started before the runner has joined. On a host with cgroup v2 alone, podman moves conmon; the
    job always has a group of its own."""
    rig.box(FOREVER).run()
    state = rig.until("running")
    if not state["cgroup"]:
        pytest.skip("no writable cgroup v2 with cgroup.kill here")
    inside = set(cgroup._read_pids(state["cgroup"]))
    assert state["runner_pid"] in inside
    if os.path.exists("/sys/fs/cgroup/unified"):
        assert rig.conmon() in inside
    rig.stop()
    rig.nothing_left()
    assert not os.path.exists(state["cgroup"])


def test_its_output_is_in_the_log_byte_for_byte_and_its_exit_code_counts(rig: Boxed) -> None:
    rig.box("seq 1 20000; printf 'a\\000b\\377no end of line'; exit 7", restart={"policy": "never"}).run()
    state = rig.until("failed")
    wanted = b"".join(b"%d\n" % number for number in range(1, 20001)) + b"a\0b\xffno end of line"
    assert Path(paths.log_file(rig.worker_dir, 1)).read_bytes() == wanted
    assert state["last_exit"]["code"] == 7
    rig.nothing_left()


def test_a_job_that_ends_at_once_shows_in_the_exit_code(rig: Boxed) -> None:
    """conmon may have ended before podman has: its exit code is not lost."""
    rig.box("exit 3", restart={"max_attempts": 2, "backoff_s": [0.0]}).run()
    state = rig.until("failed", timeout_s=40.0)
    assert (state["attempt"], state["last_exit"]["code"]) == (3, 3)
    rig.nothing_left()


def test_a_stop_reaches_the_job_once_and_leaves_nothing(rig: Boxed) -> None:
    rig.box('trap "echo term; sleep 0.3; exit 0" TERM; echo up; while :; do sleep 0.05; done').run()
    state = rig.until("running")
    rig.logged(1)
    assert alive(state["pid"]) and len(rig.podman.names()) == 1
    assert "exit code 0" in rig.stop()["reason"]
    assert rig.log().count("term\n") == 1
    rig.nothing_left()


def test_who_ignores_the_stop_signal_is_killed_with_all_that_it_put_into_sessions_of_their_own(rig: Boxed) -> None:
    rig.box(IGNORES, stop_grace_s=0.5).run()
    rig.until("running")
    rig.logged(1)
    assert "did not end within" in rig.stop()["reason"]
    rig.nothing_left()


def test_the_job_goes_on_where_conmon_is_killed_and_is_stopped_as_before(rig: Boxed) -> None:
    rig.box(FOREVER).run()
    state = rig.until("running")
    rig.logged(1)
    group = group_of(rig)
    os.kill(rig.conmon(), signal.SIGKILL)
    wait_until(lambda: not alive(rig.conmon()), 5.0, "conmon's end")
    assert rig.link
    rig.link.health("failing", "asks for a status", restart=False)
    rig.pump()
    assert alive(state["pid"]) and rig.state()["state"] == "running" and rig.state()["attempt"] == 1
    rig.stop()
    rig.nothing_left()
    assert group not in groups(), "podman leaves it where conmon was killed"


def test_a_kill_ends_it_at_once(rig: Boxed) -> None:
    rig.box(IGNORES, stop_grace_s=60.0).run()
    rig.until("running")
    rig.logged(1)
    assert rig.link
    rig.link.kill(1, "c-1")
    assert rig.result("c-1")["status"] == "done"
    rig.nothing_left()


def test_a_job_killed_by_a_signal_is_reported_as_such_and_restarted(rig: Boxed) -> None:
    rig.box(FOREVER).run()
    os.kill(rig.until("running")["pid"], signal.SIGKILL)
    state = rig.until("running", attempt=2)
    assert state["last_exit"]["signal"] == signal.SIGKILL and not state["last_exit"]["oom"]
    assert len(rig.podman.names()) == 1


@pytest.mark.parametrize("fenced", [False, True])
def test_whatever_is_killed_no_two_instances_ever_live(rig: Boxed, fenced: bool) -> None:
    """Runner, conmon and the job itself, in turn: each instance has stopped writing before the next one starts."""
    stamps = Path(rig.worker_dir).parent / "stamps"
    stamps.mkdir()
    rig.box(STAMPS, f"--volume={stamps}:/stamps", restart={"max_attempts": 100, "backoff_s": [0.0]})
    if fenced:
        rig.fence(600.0)
    rig.run()
    attempt = 1
    for turn in ("runner", "job", "conmon and job", "runner", "runner and conmon"):
        state = rig.until("running", attempt=attempt, timeout_s=40.0)
        rig.logged(1, attempt)
        if turn.startswith("runner"):
            rig.kill_runner()
            if "conmon" in turn:
                os.kill(rig.conmon(), signal.SIGKILL)
            assert rig.start() == control.EXIT_STARTED
        elif turn == "job":
            os.kill(state["pid"], signal.SIGKILL)
        else:
            os.kill(rig.conmon(), signal.SIGKILL)
            os.kill(state["pid"], signal.SIGKILL)
        attempt += 1
    rig.until("running", attempt=attempt, timeout_s=40.0)
    rig.logged(1, attempt)
    rig.stop()
    seen = [int(line.split()[0]) for line in (stamps / "all").read_text().splitlines()]
    assert seen == sorted(seen) and set(seen) == set(range(1, attempt + 1))
    rig.nothing_left()


@pytest.mark.parametrize("moment", ["recorded", "spawned"])
def test_a_runner_killed_while_podman_starts_it_leaves_no_second_one(rig: Boxed, moment: str) -> None:
    """Once the start is recorded, or earlier: podman is not in the worker's control group yet."""
    stamps = Path(rig.worker_dir).parent / "stamps"
    stamps.mkdir()
    rig.box(STAMPS, f"--volume={stamps}:/stamps", restart={"max_attempts": 100, "backoff_s": [0.0]}).run()
    killed = 0
    for _ in range(5):
        wait_until(lambda last=killed: rig.state().get("runner_pid", last) != last, 20.0, "the next runner")  # type: ignore[misc]
        killed = rig.state()["runner_pid"]
        if moment == "spawned":
            wait_until(lambda one=killed: cgroup._descendants(one), 20.0, "podman", 0.001)  # type: ignore[misc]
        else:
            wait_until(lambda: rig.state().get("state") == "starting", 20.0, "a start")
        rig.kill_runner()
        assert rig.start() == control.EXIT_STARTED
    state = rig.until("running", timeout_s=40.0)
    rig.logged(1, state["attempt"])
    assert len(rig.podman.names()) == 1
    rig.stop()
    seen = [int(line.split()[0]) for line in (stamps / "all").read_text().splitlines()]
    assert seen == sorted(seen)
    rig.nothing_left()


def test_a_killed_client_is_a_failed_start_and_the_next_one_is_alone(rig: Boxed) -> None:
    rig.box(FOREVER, restart={"max_attempts": 100, "backoff_s": [0.0]}).run()
    killed = 0
    while killed < 3:
        state = rig.state()
        pid = state.get("pid") or 0
        if state.get("state") == "starting" and command_of(pid).startswith(b"podman\0run"):
            os.kill(pid, signal.SIGKILL)
            killed += 1
            wait_until(lambda pid=pid: not alive(pid), 5.0, "the client's end")  # type: ignore[misc]
        elif state.get("state") == "running":
            rig.kill_runner()
            rig.start()
    rig.until("running", timeout_s=40.0)
    assert len(rig.podman.names()) == 1


def test_a_container_that_has_its_name_is_ended_first(rig: Boxed) -> None:
    from remote_agent.runner.task.container import name_of

    name = name_of(rig.worker_dir)
    rig.podman.podman("run", "--detach", f"--name={name}", "--network=none", IMAGE, "/bin/sh", "-c", FOREVER)
    other = int(rig.podman.podman("inspect", "--format", "{{.State.Pid}}", name))
    rig.box(FOREVER).run()
    rig.until("running", timeout_s=40.0)
    assert not alive(other) and rig.podman.names() == [name]


def test_an_image_that_is_missing_fails_the_start_in_words(rig: Boxed) -> None:
    rig.box(FOREVER, image="localhost/none:1", restart={"max_attempts": 0}).run()
    reason = rig.until("failed")["reason"]
    assert "podman run failed with exit code 125: image localhost/none:1" in reason
    assert "localhost/none:1" in rig.log() and "no restarts allowed" in reason


def test_a_gpu_that_no_cdi_specification_names_fails_the_start_in_words(rig: Boxed) -> None:
    rig.box(FOREVER, "--device=nvidia.com/gpu=none-of-these", restart={"max_attempts": 0}).run()
    assert (
        "no CDI specification in /etc/cdi or /var/run/cdi names nvidia.com/gpu=none-of-these"
        in rig.until("failed")["reason"]
    )


def test_its_variables_are_its_own_and_stand_in_no_command_line(rig: Boxed) -> None:
    (Path(rig.worker_dir).parent / "vars").write_text("FROM_FILE='two words'\n")
    env = {"SECRET": "s3cr=t; $HOME", "PATH": "/usr/bin:/bin"}
    rig.box('echo "$SECRET|$FROM_FILE|$PROCGUARD_WORKER_ID|$PROCGUARD_ATTEMPT|$HOME"; ' + FOREVER, env=env)
    rig.assignment["start"]["env_files"] = [str(Path(rig.worker_dir).parent / "vars")]
    rig.run()
    rig.until("running")
    first, up = rig.logged(2)
    assert up == "up" and first.startswith("s3cr=t; $HOME|two words|w1|1|") and not first.endswith("|/tmp")
    reported = [command_of(one.pid) for one in processes.members_below(rig.state()["runner_pid"])]
    assert reported and not any(b"s3cr" in one for one in reported)


@pytest.mark.parametrize("option", ["--env-host", "--env-host=true", "--network=none"])
def test_what_is_set_for_podman_itself_never_reaches_the_job(rig: Boxed, option: str) -> None:
    """--env-host passes podman's own environment on."""
    rig.box('echo "gogc=$GOGC"; ' + FOREVER, *([option] if "host" in option else [])).run()
    rig.until("running")
    assert rig.logged(2)[0] == "gogc="


def test_it_carries_labels_and_outlives_its_agent(rig: Boxed) -> None:
    rig.box(FOREVER).run()
    before = rig.until("running")
    [name] = rig.podman.names()
    labels = rig.podman.podman("inspect", "--format", "{{json .Config.Labels}}", name)
    for label in ('"procguard.worker":"w1"', '"procguard.attempt":"1"', '"procguard.epoch":"1000001"'):
        assert label in labels
    assert rig.link
    rig.link.close()
    rig.connect()
    assert rig.until("running")["pid"] == before["pid"] and alive(before["pid"])


@pytest.mark.parametrize("conmon_killed", [False, True])
def test_an_out_of_memory_kill_in_its_own_limit_is_reported_as_such(rig: Boxed, conmon_killed: bool) -> None:
    gate = Path(rig.worker_dir).parent / "gate"
    gate.mkdir()
    script = "echo up; until [ -e /gate/open ]; do sleep 0.05; done; x=a; while :; do x=$x$x; done"
    rig.box(script, f"--volume={gate}:/gate", "--memory=24m", restart={"policy": "never"}).run()
    rig.until("running")
    rig.logged(1)
    if conmon_killed:
        os.kill(rig.conmon(), signal.SIGKILL)
    (gate / "open").touch()
    state = rig.until("failed")
    assert state["last_exit"]["signal"] == 9 and state["last_exit"]["oom"]
    assert "out of memory" in state["reason"]
    rig.nothing_left()


def groups() -> set[str]:
    """Of all containers on this machine, whoever made them."""
    return {os.path.basename(found) for found in glob.glob("/sys/fs/cgroup/**/libpod-*", recursive=True)}


def group_of(rig: Boxed) -> str:
    return "libpod-" + rig.podman.podman("inspect", "--format", "{{.Id}}", *rig.podman.names())


def test_no_control_group_is_left_of_a_container_that_no_runner_took_over(rig: Boxed) -> None:
    """As when the runner is killed while podman starts it, and conmon too."""
    rig.box(FOREVER).run()
    rig.until("running")
    group = group_of(rig)
    assert group in groups()
    (Path(rig.worker_dir) / "container.groups").unlink()
    os.kill(rig.conmon(), signal.SIGKILL)
    wait_until(lambda: not alive(rig.conmon()), 5.0, "conmon's end")
    rig.stop()
    rig.nothing_left()
    assert group not in groups()


# ------------------------------------------------------------------------------------------------- fenced, by a lease

# Its processes: one in a session of its own, one whose parents have ended, both deaf to the stop signal.
DETACHED = (
    'deaf() { trap "" TERM; while :; do sleep 0.1; done; }\n'
    "setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' &\n(deaf &)\n" + FOREVER
)


def inside(rig: Boxed) -> list[int]:
    """What runs in the container's pid namespace, whoever is its parent."""
    namespace = os.readlink(f"/proc/{rig.state()['pid']}/ns/pid")
    assert namespace != os.readlink("/proc/self/ns/pid")
    found = []
    for pid in processes.all_processes():
        try:
            found += [pid] if os.readlink(f"/proc/{pid}/ns/pid") == namespace else []
        except OSError:
            continue
    return found


def test_a_fenced_one_is_ended_by_the_kernel_with_its_runner_whatever_detached_from_it(rig: Boxed) -> None:
    """Neither an agent nor another runner is there to do it."""
    rig.box(DETACHED).fence(600.0).run()
    state = rig.until("running")
    rig.logged(1)
    there = inside(rig)
    assert state["fenced"] and len([pid for pid in there if command_of(pid).startswith((b"/bin/sh", b"sh"))]) == 3
    rig.kill_runner()
    wait_until(lambda: not any(alive(pid) for pid in there), 5.0, "the end of all that ran inside")
    rig.fence(600.0)
    assert rig.start() == control.EXIT_STARTED
    rig.until("running", attempt=2, timeout_s=40.0)
    rig.stop()
    rig.nothing_left()


def test_a_fenced_one_runs_no_longer_than_its_lease_and_its_grace(rig: Boxed) -> None:
    rig.box(DETACHED, stop_grace_s=0.5).fence(5.0).run()
    rig.until("running")
    there = inside(rig)
    state = rig.until("stopped", timeout_s=40.0)
    assert "its lease ended" in state["reason"] and not any(alive(pid) for pid in there)
    rig.nothing_left()


def test_the_end_of_a_fenced_job_is_its_own_and_ends_what_it_left(rig: Boxed) -> None:
    script = "setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & echo up; sleep 0.5; exit 7"
    rig.box(script, restart={"policy": "never"}, stop_grace_s=60.0).fence(600.0).run()
    assert rig.until("failed")["last_exit"]["code"] == 7
    rig.nothing_left()


def test_the_stop_signal_reaches_what_detached_in_a_fenced_one(rig: Boxed) -> None:
    daemon = "(sh -c 'trap \"echo saved; exit\" TERM; while :; do sleep 0.1; done' &)\n"
    rig.box(daemon + 'trap "sleep 1; exit 0" TERM; echo up; while :; do sleep 0.05; done').fence(600.0).run()
    rig.until("running")
    rig.logged(1)
    rig.stop()
    assert rig.log().count("saved") == 1
    rig.nothing_left()


def test_what_runs_in_a_fenced_one_can_neither_end_nor_use_the_process_that_holds_its_namespace(rig: Boxed) -> None:
    script = "for n in TERM INT KILL STOP; do kill -$n 1; done; cat /proc/1/root/etc/passwd || echo locked; "
    rig.box(script + FOREVER, "--cap-add=SYS_PTRACE").fence(600.0).run()
    rig.until("running")
    rig.logged(2)
    assert "locked" in rig.log() and "root:" not in rig.log()
    rig.stop()
    rig.nothing_left()


def test_its_usage_is_what_its_control_group_counts(rig: Boxed) -> None:
    """Processes that end before a scan of the process tree sees them."""
    burst = "sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done'"
    rig.box(f'trap "exit 0" TERM; echo up; while :; do {burst}; done').run()
    runner = {"w1": rig.until("running")["runner_pid"]}
    rig.logged(1)
    tree, whole = ProcMeter(rig.worker_dir), ProcMeter(rig.worker_dir)

    def usages() -> tuple[WorkerUsage, WorkerUsage]:
        by_tree = tree.sample(runner).workers["w1"]
        return by_tree, whole.sample(runner, directories={"w1": rig.worker_dir}).workers["w1"]

    usages()

    def more_is_counted() -> bool:
        by_tree, by_group = usages()
        return by_group.cpu_percent > 2 * by_tree.cpu_percent > 0 and by_group.rss_bytes > 0

    wait_until(more_is_counted, 20.0, "more CPU time than the process tree shows", every_s=0.5)
    rig.stop()
    assert container_group.directories(rig.worker_dir) == []
    rig.nothing_left()
