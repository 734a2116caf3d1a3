"""start_worker.sh's rules, with real launchers against a small manager."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import UsageError
from procguard.worker_launcher import parse
from remote_agent.agent import settings
from tests.agent_host import alive, end_runners
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

ROOT = str(Path(__file__).resolve().parents[4])
SLEEP = "sleep 600"


class AccessRig:
    """A directory from which launchers are started."""

    def __init__(self, tmp_path: Path, manager: FakeManager) -> None:
        self.home = str(tmp_path / "home")
        self.cwd = tmp_path / "desk"
        self.cwd.mkdir()
        self.manager = manager
        self.env = {**os.environ, "PROCGUARD_HOME": self.home, "PYTHONPATH": ROOT, "CALLERS": "mark"}
        self.launchers: list[subprocess.Popen[str]] = []

    def start(self, command: str = SLEEP, *more: str, **env: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "procguard.worker_launcher"]
        if command:
            words += ["--worker-id", "w1", "--manager-url", self.manager.url, "--command", command]
        launcher = subprocess.Popen(
            [*words, *more],
            cwd=self.cwd,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.launchers.append(launcher)
        return launcher

    def ends(self, launcher: subprocess.Popen[str], timeout_s: float = 20.0) -> tuple[int, str]:
        said = launcher.communicate(timeout=timeout_s)[0]
        assert "Traceback" not in said, said
        return launcher.returncode, said

    def running(self, attempt: int = 1) -> int:
        wait_until(
            lambda: self.manager.state("w1") == "running" and self.manager.report("w1")["attempt"] == attempt,
            what=f"attempt {attempt} running",
        )
        return int(self.manager.report("w1")["pid"])

    def end(self) -> None:
        for launcher in self.launchers:
            if launcher.poll() is None:
                launcher.kill()
            launcher.wait()
            if launcher.stdout is not None:
                launcher.stdout.close()
        for directory, _, files in os.walk(self.home):
            if "agent.json" in files:
                runtime_dir = settings.load(directory).runtime_dir
                end_runners(directory, runtime_dir)
                shutil.rmtree(runtime_dir, ignore_errors=True)


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    fake = FakeManager()
    yield fake
    fake.close()


@pytest.fixture
def rig(tmp_path: Path, manager: FakeManager) -> Iterator[AccessRig]:
    one = AccessRig(tmp_path, manager)
    yield one
    one.end()


def test_child_gets_the_callers_environment_and_directory(rig: AccessRig, manager: FakeManager) -> None:
    """And --env on top; the token does not reach it; the launcher's log lies in logs/ of the caller's directory."""
    script = "import os; print(os.getcwd(), os.environ['CALLERS'], os.environ['K'], os.environ.get('PROCGUARD_TOKEN'))"
    manager.tokens = ["enrol-me"]
    launcher = rig.start(f'{sys.executable} -c "{script}"', "--env", "K=v=1", PROCGUARD_TOKEN="enrol-me")
    wait_until(lambda: manager.log("w1").endswith(b"\n"), what="its output")
    assert manager.log("w1").decode() == f"{rig.cwd} mark v=1 None\n"
    wait_until(lambda: manager.state("w1") == "exited", what="exited")
    assert launcher.poll() is None  # it stays, so that an operator can start the worker again
    manager.set_desired("w1", "running")
    wait_until(lambda: manager.report("w1")["attempt"] == 2, what="started by the operator")
    launcher.send_signal(signal.SIGINT)
    code, said = rig.ends(launcher)
    assert code == 0 and "registered with" in said and "exited" in said
    assert (rig.cwd / "logs" / "launcher-w1.log").exists()
    assert "enrol-me" not in (rig.cwd / "logs" / "launcher-w1.log").read_text() + said
    assert manager.of_tokens == ["enrol-me"]
    assert not any("enrol-me" in one.path + one.authorization for one in manager.requests)


@pytest.mark.slow
def test_interrupt_stops_the_child_too_and_the_next_start_runs_it_again(rig: AccessRig, manager: FakeManager) -> None:
    """SIGINT: child gone, exit code 0; the manager saw it stop."""
    launcher = rig.start()
    pid = rig.running()
    launcher.send_signal(signal.SIGINT)
    assert rig.ends(launcher)[0] == 0
    assert not alive(pid) and manager.state("w1") == "stopped"
    assert manager.beats[-1]["ends"] is True
    rig.start()
    assert rig.running(2) != pid
    assert manager.beats[-1]["ends"] is False


@pytest.mark.slow
def test_hangup_detaches_and_the_next_launcher_adopts(rig: AccessRig, manager: FakeManager) -> None:
    """The terminal closes, the job lives; likewise after SIGKILL of the launcher."""
    launcher = rig.start()
    pid = rig.running()
    launcher.send_signal(signal.SIGHUP)
    code, said = rig.ends(launcher)
    assert code == 0 and "detached" in said and alive(pid)
    for _ in range(2):
        beats = len(manager.beats)
        launcher = rig.start()
        wait_until(lambda beats=beats: len(manager.beats) > beats, what="the next launcher")
        assert rig.running() == pid
        assert manager.registrations[-1]["attempt"] == 1 and manager.registrations[-1]["state"] == "running"
        launcher.kill()
        assert alive(pid)


@pytest.mark.slow
def test_second_launcher_and_another_command_are_refused(rig: AccessRig, manager: FakeManager) -> None:
    """One worker, one launcher, one command; --replace is the way to change it."""
    launcher = rig.start()
    pid = rig.running()
    code, said = rig.ends(rig.start())
    assert code == 1 and f"another launcher runs w1 on this host (pid {launcher.pid})" in said
    launcher.kill()
    launcher.wait()
    code, said = rig.ends(rig.start("sleep 601"))
    assert code == 1 and f"already running: sleep 600 (pid {pid}, attempt 1); stop it first or --replace" in said
    assert alive(pid)
    rig.start("sleep 601", "--replace")
    assert rig.running(2) != pid
    assert not alive(pid)
    assert manager.assignments["w1"].spec.command == "sleep 601"


def test_id_held_elsewhere_is_refused_naming_the_holder(rig: AccessRig, manager: FakeManager) -> None:
    """409 from the manager: nothing is started."""
    error = {
        "code": "held_elsewhere",
        "message": "w1 is held by b on host b, where it is running",
        "next": "stop it there",
    }
    manager.register_answer = (409, {"error": error})
    code, said = rig.ends(rig.start())
    assert code == 1 and "w1 is held by b on host b, where it is running; stop it there" in said
    assert manager.beats == []


@pytest.mark.slow
def test_pending_launcher_shows_its_fingerprint_and_runs_nothing_until_approved(
    rig: AccessRig, manager: FakeManager
) -> None:
    """The line to type is printed."""
    answer = {"status": "pending", "worker_id": "w1", "agent_id": "launcher:w1", "fingerprint": "3f2a-91bc-77d0"}
    manager.register_answer = (202, answer)
    launcher = rig.start()
    assert launcher.stdout is not None
    line = launcher.stdout.readline()
    assert "3f2a-91bc-77d0" in line and "invoke agents approve launcher:w1" in line
    assert manager.beats == []
    manager.register_answer = None
    rig.running()
    assert len({one["secret_sha256"] for one in manager.registrations}) == 1
    launcher.terminate()
    assert rig.ends(launcher)[0] == 0


@pytest.mark.slow
def test_without_a_manager_it_says_so_and_starts_what_it_had(rig: AccessRig, manager: FakeManager) -> None:
    """A known manager that is unreachable: the same command starts; one that an operator stopped does not."""
    first = rig.start()
    pid = rig.running()
    first.send_signal(signal.SIGINT)
    rig.ends(first)
    manager.close()
    again = rig.start()
    assert again.stdout is not None
    said = again.stdout.readline()
    assert "not reachable" in said and manager.url in said
    wait_until(lambda: "running" in again.stdout.readline(), what="running without a manager")  # type: ignore[union-attr]
    assert not alive(pid)
    again.terminate()
    assert rig.ends(again)[0] == 0


def test_manager_never_reached_is_one_line_and_ctrl_c_ends_it(rig: AccessRig, manager: FakeManager) -> None:
    """It keeps retrying without output."""
    manager.close()
    launcher = rig.start()
    assert launcher.stdout is not None
    assert "not reachable" in launcher.stdout.readline()
    launcher.send_signal(signal.SIGINT)
    code, rest = rig.ends(launcher)
    assert code == 0 and rest == ""


def test_operators_stop_keeps_the_launcher_waiting(rig: AccessRig, manager: FakeManager) -> None:
    """Stopped through the API, started through the API, the same launcher."""
    launcher = rig.start()
    rig.running()
    manager.set_desired("w1", "stopped")
    wait_until(lambda: manager.state("w1") == "stopped", what="stopped")
    assert launcher.poll() is None
    manager.set_desired("w1", "running")
    rig.running(2)


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("sh -c 'exit 7'", 7)])
def test_exit_when_done_passes_the_childs_exit_code_on(
    rig: AccessRig, manager: FakeManager, command: str, code: int
) -> None:
    """For scripts; the last log bytes are at the manager by then."""
    manager.restart_policy = "never"
    assert rig.ends(rig.start(command, "--exit-when-done"))[0] == code
    assert manager.state("w1") in ("exited", "failed")


@pytest.mark.slow
def test_an_ended_worker_runs_again_when_its_launcher_is_started_again(rig: AccessRig, manager: FakeManager) -> None:
    """As a user who repeats the command expects."""
    rig.ends(rig.start("true", "--exit-when-done"))
    rig.start("true")
    wait_until(lambda: manager.report("w1").get("attempt") == 2, what="a second run")


@pytest.mark.slow
def test_fenced_worker_of_a_launcher_lives_by_the_manager_s_leases(rig: AccessRig, manager: FakeManager) -> None:
    """Stopped when they end though the launcher lives, started again when there are any, also by the next launcher."""
    manager.registered_lease_s = 4.0
    launcher = rig.start(SLEEP, "--on-partition", "fence")
    pid = rig.running()
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not alive(pid), 10, "its end without a launcher")
    launcher = rig.start(SLEEP, "--on-partition", "fence")
    pid = rig.running(attempt=2)
    manager.withheld.add("w1")
    wait_until(lambda: not alive(pid), 10, "its end without leases")
    wait_until(lambda: manager.state("w1") == "stopped", what="its state told")
    manager.withheld.clear()
    rig.running(attempt=3)
    launcher.send_signal(signal.SIGINT)
    said = rig.ends(launcher)[1]
    assert "its lease ended" in said and "stopped; the launcher ends" in said


def test_environment_variables_do_as_well_and_flags_win() -> None:
    """WORKER_ID, MANAGER_URL, COMMAND, WORKING_DIR."""
    environ = {"WORKER_ID": "a", "MANAGER_URL": "http://m:5000/", "COMMAND": "run me", "WORKING_DIR": "sub"}
    options = parse([], environ, "/base")
    assert (options.worker_id, options.manager_url, options.command) == ("a", "http://m:5000", "run me")
    assert options.working_dir == "/base/sub"
    options = parse(["--worker-id", "b", "--working-dir", "/x", "--env", "A=1", "--env", "B="], environ, "/base")
    assert (options.worker_id, options.working_dir, options.env) == ("b", "/x", {"A": "1", "B": ""})


@pytest.mark.parametrize(
    ("argv", "reported"),
    [
        ([], ["--worker-id (or WORKER_ID) is missing", "--manager-url (or MANAGER_URL)", "--command (or COMMAND)"]),
        (["--worker-id", "../x", "--manager-url", "m:5000", "--command", "a 'b"], ["'../x'", "'m:5000'", "split"]),
        (["--worker-id", "a", "--manager-url", "http://m", "--command", "x", "--env", "novalue"], ["--env 'novalue'"]),
    ],
)
def test_all_mistakes_are_reported_at_once(argv: list[str], reported: list[str]) -> None:
    """One message, each mistake with what was expected."""
    with pytest.raises(UsageError) as caught:
        parse(argv, {}, "/")
    assert all(text in str(caught.value) for text in reported)


@pytest.mark.slow
def test_the_shell_script_runs_the_launcher(rig: AccessRig) -> None:
    """./start_worker.sh from any directory; a wrong call is one line."""
    env: dict[str, Any] = {**rig.env, "PYTHONPATH": "/nonexistent"}
    script = os.path.join(ROOT, "start_worker.sh")
    found = subprocess.run([script], cwd=rig.cwd, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert found.stderr.startswith("procguard: --worker-id") and "Traceback" not in found.stderr


def test_environment_flags_become_the_worker_s_specification() -> None:
    """Paths are the caller's, whatever the worker's directory; a conda name stays a name."""
    argv = ["--worker-id", "a", "--manager-url", "http://m:1", "--command", "x", "--working-dir", "/else"]
    options = parse([*argv, "--env-file", ".env", "--venv", ".venv", "--conda", "torch"], {}, "/base")
    spec = options.spec()
    assert (spec.env_file, spec.venv, spec.conda) == ("/base/.env", "/base/.venv", "torch")
    assert parse([*argv, "--env-file", "/a", "--env-file", "b"], {}, "/base").spec().env_file == ["/a", "/base/b"]
    plain = parse(argv, {}, "/base").spec()
    assert (plain.env_file, plain.venv, plain.conda) == ("", "", "")


def test_the_key_by_which_a_launcher_knows_its_manager_is_not_replaced_by_an_unsigned_answer(
    rig: AccessRig, manager: FakeManager
) -> None:
    """A relay can omit the manager's proof, make the launcher register as unknown and hand it a key of
    his own. The launcher accepts the first key only, and sends the relay nothing."""
    launcher = rig.start()
    rig.running()
    launcher.send_signal(signal.SIGHUP)
    rig.ends(launcher)
    [file] = list(Path(rig.home).rglob("agent.json"))
    key = json.loads(file.read_text())["proof_key"]
    del manager.proof_keys["launcher:w1"]  # no proof: "I do not know you"; the next registration brings another key
    manager.requests.clear()
    manager.offered_key = "a key of his own"
    again = rig.start()
    wait_until(lambda: len(manager.registrations) > 1, what="a registration without a secret")
    wait_until(lambda: sum("/api/hello?agent" in one.path for one in manager.requests) > 2, what="further tries")
    again.send_signal(signal.SIGHUP)
    rig.ends(again)
    assert json.loads(file.read_text())["proof_key"] == key
    assert not any(one.authorization for one in manager.requests)
