"""`python3 -m remote_agent status | tail` as a user on the host runs them, with everything that can be wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_agent.agent import settings
from remote_agent.system import paths
from tests.agent_host import ROOT
from tests.waiting import wait_until


class AccessRig:
    """A home with one agent's directory and two workers in it, none of them running."""

    def __init__(self, tmp_path: Path) -> None:
        self.home = tmp_path / "home"
        self.directory = paths.agent_dir(str(self.home), "fleet-1", "gpu01")
        self.runtime_dir = str(tmp_path / "r")
        os.makedirs(self.directory)
        os.mkdir(self.runtime_dir, 0o700)
        urls = ["http://10.0.0.5:5000"]
        settings.save(
            self.directory, settings.AgentSettings("fleet-1", "gpu01", "gpu01", urls, self.runtime_dir, "s3cret", "key")
        )
        self.worker("train-1", "running", "", b"".join(b"line %d\n" % number for number in range(200)))
        self.worker("train-2", "failed", "command not found: trian.py", None)

    def worker(self, worker_id: str, state: str, reason: str, log: bytes | None) -> str:
        directory = paths.worker_dir(self.directory, worker_id)
        os.makedirs(paths.attempts_dir(directory))
        Path(paths.worker_id_file(directory)).write_text(worker_id)
        paths.write_json(paths.state_file(directory), {"state": state, "attempt": 3, "reason": reason})
        if log is not None:
            Path(paths.log_file(directory, 2)).write_bytes(b"of the second attempt\n")
            Path(paths.log_file(directory, 3)).write_bytes(log)
        return directory

    def say(self, *words: str, python: str = sys.executable, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-m", "remote_agent", *words],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PROCGUARD_HOME": str(self.home), "HOME": str(self.home), **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def rig(tmp_path: Path) -> AccessRig:
    return AccessRig(tmp_path)


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[list[str]]:
    """A prefix that runs a command as an unprivileged user."""
    setpriv = shutil.which("setpriv")
    if os.getuid() != 0 or setpriv is None:
        pytest.skip("needs root, to become somebody else")
    yield [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]


def test_status_shows_agent_workers_and_reasons(rig: AccessRig) -> None:
    """What runs, what does not and why; how to start the agent; never a secret."""
    done = rig.say("status")
    assert done.returncode == 0 and done.stderr == ""
    assert "gpu01 (fleet fleet-1): agent does not run" in done.stdout
    assert f"install/__main__.py start --dir {rig.directory}" in done.stdout
    assert "http://10.0.0.5:5000" in done.stdout
    assert "train-1  running   attempt 3  (no runner!)" in done.stdout
    assert "train-2  failed    attempt 3  command not found: trian.py" in done.stdout
    assert "s3cret" not in done.stdout


def test_status_names_the_running_agent(rig: AccessRig) -> None:
    """It holds its lock; the pid is for display."""
    lock = settings.AgentLock(rig.runtime_dir)
    assert lock.take() is None
    try:
        assert f"agent runs (pid {os.getpid()})" in rig.say("status").stdout
    finally:
        lock.release()


def test_tail_prints_the_newest_attempts_end(rig: AccessRig) -> None:
    """-n lines of it, or of an earlier attempt."""
    assert rig.say("tail", "train-1", "-n", "2").stdout == "line 198\nline 199\n"
    assert len(rig.say("tail", "train-1").stdout.splitlines()) == 50
    assert rig.say("tail", "train-1", "--attempt", "2").stdout == "of the second attempt\n"
    assert rig.say("tail", "train-1", "-n", "0").stdout == ""


def test_tail_follows_across_a_restart_and_loses_nothing(rig: AccessRig, tmp_path: Path) -> None:
    """Bytes that arrive while it follows, then those of the next attempt, until Ctrl-C."""
    directory = paths.worker_dir(rig.directory, "train-1")
    out = tmp_path / "out"
    with open(out, "wb") as file:
        words = [sys.executable, "-m", "remote_agent", "tail", "train-1", "-n", "1", "-f"]
        process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PROCGUARD_HOME": str(rig.home)}, stdout=file)
    try:
        wait_until(lambda: out.read_bytes() == b"line 199\n", what="the last line")
        with open(paths.log_file(directory, 3), "ab") as log:
            log.write(b"more\n")
        Path(paths.log_file(directory, 4)).write_bytes(b"again\n")
        whole = b"line 199\nmore\n--- attempt 4 ---\nagain\n"
        wait_until(lambda: out.read_bytes() == whole, what="the next attempt")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tail", "train-3"), "no worker train-3 on this host; did you mean train-"),
        (("tail", "zzz"), "Its workers: train-1, train-2"),
        (("tail", "train-2"), "train-2 has no log yet: failed, command not found: trian.py"),
        (("tail", "train-1", "--attempt", "9"), "attempt 9 of train-1 is not on this host (kept: 2, 3)"),
        (("tail", "train-1", "--err"), "no separate error log (stderr: merge); leave --err out"),
        (("tail", "../../etc", "-n", "1"), "no worker ../../etc on this host"),
        (("status", "--dir", "/nonexistent"), "there is no directory /nonexistent"),
        (("status", "--dir", "/tmp"), "no agent.json in /tmp; an agent's directory is PROCGUARD_HOME/FLEET/HOST"),
        (("run", "--dir", "/tmp"), "no agent.json in /tmp"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_next_step(rig: AccessRig, words: tuple[str, ...], message: str) -> None:
    """Wrong names, nothing there, nothing written yet: never a traceback, nothing on stdout, exit code 1."""
    done = rig.say(*words)
    assert done.returncode == 1 and done.stdout == ""
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_nothing_installed_says_so(rig: AccessRig, tmp_path: Path) -> None:
    """The user that it was deployed for may be another one."""
    done = rig.say("status", PROCGUARD_HOME=str(tmp_path / "none"))
    assert done.returncode == 1 and "no agent is installed below" in done.stderr and "invoke deploy" in done.stderr


def test_a_broken_agent_json_hides_no_other_agent(rig: AccessRig) -> None:
    """Exit code 2: some could not be shown."""
    other = paths.agent_dir(str(rig.home), "fleet-1", "broken")
    os.makedirs(other)
    Path(paths.agent_file(other)).write_text("{")
    done = rig.say("status")
    assert done.returncode == 2 and "gpu01 (fleet fleet-1)" in done.stdout
    assert "cannot be read" in done.stderr and "deploy this host again" in done.stderr


def test_somebody_elses_agent_is_named(rig: AccessRig, nobody: list[str], tmp_path: Path) -> None:
    """Only the owner can read home and agent.json: the error names the owner and the next step."""
    for directory in (tmp_path, *tmp_path.parents):
        if not os.stat(directory).st_mode & 0o001:
            os.chmod(directory, 0o755)
    command = [*nobody, shutil.which("python3", path="/usr/bin") or "python3", "-m", "remote_agent"]
    environ = {"PATH": os.environ["PATH"], "PROCGUARD_HOME": str(rig.home)}
    os.chmod(rig.home, 0o700)
    for words in (["status"], ["tail", "train-1"], ["status", "--dir", rig.directory]):
        done = subprocess.run(
            [*command, *words], cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    os.chmod(rig.home, 0o755)
    done = subprocess.run(
        [*command, "status"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert "run this as its owner (root)" in done.stderr


def test_output_that_nobody_reads_is_no_error(rig: AccessRig) -> None:
    """`… | head -1`."""
    command = f"{sys.executable} -m remote_agent tail train-1 -n 200 | head -1"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PROCGUARD_HOME": str(rig.home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "line 0\n" and done.stderr == ""


def test_help_says_where_to_type_it(rig: AccessRig) -> None:
    """The package lies in the release, not on sys.path."""
    done = rig.say("--help")
    assert done.returncode == 0 and "/current && python3 -m remote_agent status" in done.stdout
    assert rig.say().returncode == 1


def test_a_reason_that_quotes_a_job_does_not_steer_the_terminal(rig: AccessRig) -> None:
    rig.worker("evil", "failed", "check said \x1b[2J\x1b]0;x\x07\u202e\x9b1m\nforged", None)
    said = rig.say("status", PYTHONIOENCODING="utf-8").stdout
    assert "check said ?[2J?]0;x???1m?forged" in said and "\x1b" not in said
