"""Keys of a specification besides its command, with real children: environment, setup, user, limits, hooks."""

from __future__ import annotations

import json
import os
import pwd
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent import spec_file
from remote_agent.protocol.messages import Assignment, Hook, Limits, RestartPolicy, WorkerSpec
from remote_agent.system import group_limits, paths
from tests.unit.runner_rig import Rig, alive, make_rig, remove
from tests.waiting import wait_until

QUICK = {"start_secs": 0.05, "backoff_s": [0.0, 0.1], "jitter": 0.0, "max_attempts": 1}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run as another user")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made, directory = make_rig()
    os.makedirs(os.path.join(directory, "home"))
    paths.write_json(
        paths.base_env_file(made.worker_dir), {"PATH": os.environ["PATH"], "HOME": os.path.join(directory, "home")}
    )
    yield made
    made.clean_up()
    remove(directory)


def home(rig: Rig) -> Path:
    return Path(rig.worker_dir).parent / "home"


def given(rig: Rig, command: str = "env; sleep 1000", **fields: Any) -> Rig:
    """The worker as its agent would write it into spec.json."""
    restart = RestartPolicy(**{**QUICK, **fields.pop("restart", {})})
    whole = WorkerSpec(command, shell=fields.pop("shell", True), restart=restart, stop_grace_s=2.0, **fields)
    rig.assignment.update(spec_file.resolve(Assignment("w1", whole), os.path.dirname(rig.worker_dir)))
    return rig


def reason_of_failure(rig: Rig) -> str:
    rig.run()
    return str(rig.until("failed")["reason"])


def variables(rig: Rig, attempt: int = 1) -> dict[str, str]:
    wait_until(lambda: "PROCGUARD_COOKIE=" in rig.log(attempt), 10, "the child's environment")
    return dict(line.partition("=")[::2] for line in rig.log(attempt).splitlines())


def stop(rig: Rig) -> dict[str, Any]:
    rig.write_spec(desired="stopped", generation=rig.assignment["generation"] + 1)
    assert rig.link
    rig.link.assign()
    return rig.until("stopped")


# --------------------------------------------------------------------------------------------- environment


def test_env_wins_over_env_file_and_that_over_the_host(rig: Rig) -> None:
    (home(rig) / "a.env").write_text("A=file\nB=file\nC='file c'\n")
    (home(rig) / "b.env").write_text("C=later\n")
    given(rig, env_file=["a.env", "~/b.env"], env={"B": "own"}, working_dir=str(home(rig)))
    rig.assignment["start"]["env_files"][1] = str(home(rig) / "b.env")  # ~ was this user's, not the rig's
    base = {"PATH": os.environ["PATH"], "HOME": str(home(rig)), "A": "host", "D": "host"}
    paths.write_json(paths.base_env_file(rig.worker_dir), base)
    rig.run()
    found = variables(rig)
    assert [found[name] for name in "ABCD"] == ["file", "own", "later", "host"]


def test_edited_env_file_is_in_force_after_a_restart(rig: Rig) -> None:
    file = home(rig) / ".env"
    file.write_text("A=1")
    given(rig, env_file=str(file)).run()
    rig.until("running")
    file.write_text("A=2")
    assert rig.link
    rig.link.restart(1, "c-1")
    rig.until("running", 2)
    assert (variables(rig, 1)["A"], variables(rig, 2)["A"]) == ("1", "2")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"env_file": "{home}/none.env"}, "env_file does not exist: {home}/none.env"),
        ({"env_file": "{home}/bad.env"}, "env_file {home}/bad.env:2: this line has no =; expected NAME=VALUE"),
        ({"venv": "{home}/none"}, "venv {home}/none does not exist; make it: python3 -m venv {home}/none"),
        ({"venv": "{home}"}, "venv {home} has no bin/python; make it: python3 -m venv {home}"),
        ({"conda": "torch"}, "conda environment not found: torch ("),
        ({"working_dir": "{home}/gone", "venv": ".venv"}, "working directory does not exist: {home}/gone"),
        ({"user": "nobody-of-that-name"}, "user nobody-of-that-name does not exist on this host"),
        ({"limits": Limits(memory="lots")}, "limits.memory 'lots': expected bytes, a size like 64G, or unlimited"),
        ({"umask": "99"}, "umask '99': expected octal digits in quotes, like \"027\""),
        ({"setup": ["true"], "command": "no-such x", "shell": False}, "command not found: no-such (looked in PATH="),
        ({"setup": ["true"], "command": "{home}/bad.env", "shell": False}, "{home}/bad.env may not be executed; chmod"),
    ],
)  # fmt: skip
def test_what_only_a_person_can_fix_is_one_failed_reason(rig: Rig, fields: dict[str, Any], reason: str) -> None:
    (home(rig) / "bad.env").write_text("A=1\nnonsense\n")
    there = {name: v.format(home=home(rig)) if isinstance(v, str) else v for name, v in fields.items()}
    reported = reason_of_failure(given(rig, **there))
    assert reported.startswith(reason.format(home=home(rig)))
    assert rig.passed_through() == ["starting", "failed"]
    assert rig.exit_record(1)["reason"] == reported


def test_venv_is_entered_as_activate_does(rig: Rig) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home(rig) / ".venv")], check=True)
    base = {"PATH": f"/old/bin:{os.environ['PATH']}", "VIRTUAL_ENV": "/old", "PYTHONHOME": "/x", "HOME": str(home(rig))}
    paths.write_json(paths.base_env_file(rig.worker_dir), base)
    script = "env; python -c 'import sys; print(\"PREFIX=\" + sys.prefix)'; sleep 1000"
    given(rig, script, venv=".venv", working_dir=str(home(rig))).run()
    rig.until("running")
    wait_until(lambda: "PREFIX=" in rig.log(), 10, "python's word")
    found = variables(rig)
    assert found["VIRTUAL_ENV"] == found["PREFIX"] == str(home(rig) / ".venv")
    assert found["PATH"] == f"{home(rig)}/.venv/bin:{os.environ['PATH']}" and "PYTHONHOME" not in found


def test_venv_whose_python_was_removed_is_named(rig: Rig) -> None:
    (home(rig) / ".venv/bin").mkdir(parents=True)
    (home(rig) / ".venv/bin/python").symlink_to("/usr/bin/python2.9")
    assert "python /usr/bin/python2.9 is gone" in reason_of_failure(given(rig, venv=str(home(rig) / ".venv")))


def conda(prefix: Path) -> Path:
    """The files of `conda create` that activation reads."""
    for name in ("bin", "conda-meta", "etc/conda/activate.d"):
        (prefix / name).mkdir(parents=True)
    (prefix / "conda-meta/state").write_text(json.dumps({"env_vars": {"FROM_STATE": "yes"}}))
    return prefix


@pytest.mark.parametrize("root", ["miniconda3", "anaconda3", "miniforge3", "mambaforge", "elsewhere"])
def test_conda_environment_is_found_by_name_wherever_conda_lives(rig: Rig, root: str) -> None:
    prefix = conda(home(rig) / root / "envs/torch")
    if root == "elsewhere":
        exe = home(rig) / root / "bin/conda"
        exe.parent.mkdir()
        base = {"PATH": os.environ["PATH"], "HOME": str(home(rig)), "CONDA_EXE": str(exe)}
        paths.write_json(paths.base_env_file(rig.worker_dir), base)
    given(rig, conda="torch").run()
    found = variables(rig)
    assert found["CONDA_PREFIX"] == str(prefix) and found["CONDA_DEFAULT_ENV"] == "torch"
    assert found["PATH"].startswith(f"{prefix}/bin:") and found["FROM_STATE"] == "yes"


def test_conda_environment_by_path_runs_its_activation_scripts_in_bash(rig: Rig) -> None:
    prefix = conda(home(rig) / "env with space")
    (prefix / "etc/conda/activate.d/a.sh").write_text('source /dev/null\nexport ACTIVATED="$CONDA_PREFIX"\nfalse\n')
    given(rig, conda=str(prefix)).run()
    assert rig.until("running") and variables(rig)["ACTIVATED"] == str(prefix)


def test_a_conda_that_exists_names_where_it_searched(rig: Rig) -> None:
    conda(home(rig) / "miniconda3/envs/other")
    reported = reason_of_failure(given(rig, conda="torch"))
    assert reported.startswith(f"conda environment not found: torch (looked in {home(rig)}/miniconda3/envs")


# --------------------------------------------------------------------------------------------------- setup


def test_setup_lines_run_in_the_command_s_own_shell_which_becomes_the_command(rig: Rig) -> None:
    lines = ["cd /usr", "export A='x y'", "umask 077", "if true; then\n  B=1; export B\nfi"]
    script = ["/bin/sh", "-c", 'echo "pid $$"; pwd; umask; env; exec sleep 1000', "with 'quotes'"]
    given(rig, setup=lines)
    rig.assignment["argv"] = script
    rig.run()
    status = rig.until("running")
    log = rig.logged(3)
    assert log[:3] == [f"pid {status['pid']}", "/usr", "0077"]
    found = variables(rig)
    assert (found["A"], found["B"]) == ("x y", "1") and "procguard_step" not in found
    descriptors = os.listdir(f"/proc/{status['pid']}/fd")
    assert sorted(descriptors) == ["0", "1", "2"]


def test_failing_setup_line_is_a_failed_attempt_that_names_it(rig: Rig) -> None:
    reported = reason_of_failure(given(rig, "echo never", setup=["echo first", "cd /nowhere-at-all", "echo third"]))
    assert "setup line 2 failed with exit code 1: cd /nowhere-at-all" in reported
    assert rig.state()["attempt"] == 2  # what failed may be there the next time: the policy decides
    assert "first" in rig.log() and "nowhere-at-all" in rig.log()
    assert "third" not in rig.log() and "never" not in rig.log()


def test_setup_with_a_syntax_error_is_a_failed_attempt(rig: Rig) -> None:
    reported = reason_of_failure(given(rig, "echo never", setup=["if then"]))
    assert "setup" in reported and "never" not in rig.log() and "syntax error" in rig.log()


def test_process_started_in_the_background_by_setup_holds_nothing_up_and_is_swept(rig: Rig) -> None:
    given(rig, "exec sleep 1000", setup=["sleep 999 & echo background $!"]).run()
    rig.until("running")
    background = int(rig.logged(1)[0].split()[1])
    assert alive(background)
    stop(rig)
    assert not alive(background)


def test_setup_that_takes_too_long_is_ended(rig: Rig) -> None:
    reported = reason_of_failure(
        given(rig, "echo never", setup=["sleep 1000"], restart={"start_timeout_s": 0.2, "max_attempts": 0})
    )
    assert "its setup lines are not done" in reported


# ---------------------------------------------------------------------------------------------- user, limits


@needs_root
def test_worker_runs_as_another_user_with_its_groups_and_home(rig: Rig) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chmod(os.path.dirname(rig.worker_dir), 0o755)
    given(rig, "id -u; id -g; id -G; pwd; env; sleep 1000", user="nobody", working_dir="/")
    rig.run()
    rig.until("running")
    lines = rig.logged(4)
    groups = sorted(os.getgrouplist("nobody", nobody.pw_gid))
    assert lines[:2] == [str(nobody.pw_uid), str(nobody.pw_gid)]
    assert sorted(int(group) for group in lines[2].split()) == groups and lines[3] == "/"
    found = variables(rig)
    assert (found["HOME"], found["USER"], found["LOGNAME"]) == (nobody.pw_dir, "nobody", "nobody")
    assert stop(rig)["state"] == "stopped" and not rig.survivors()


@needs_root
def test_directory_that_the_other_user_may_not_enter_is_named(rig: Rig) -> None:
    os.chmod(home(rig), 0o700)
    reported = reason_of_failure(given(rig, user="nobody", working_dir=str(home(rig))))
    assert reported == f"no permission to enter the working directory: {home(rig)}"


def test_umask_and_limits_are_those_of_the_specification_and_not_the_runner_s(rig: Rig) -> None:
    script = "umask; ulimit -n; ulimit -c; ulimit -v; touch made; sleep 1000"
    given(rig, script, umask="027", limits=Limits(nofile=123, core=0, memory="8G"), working_dir=str(home(rig))).run()
    rig.until("running")
    assert rig.logged(4)[:4] == ["0027", "123", "0", str(8 * 1024 * 1024)]
    wait_until((home(rig) / "made").exists, 5, "the file")
    assert (home(rig) / "made").stat().st_mode & 0o777 == 0o640
    runner = rig.runner_identity().pid
    assert resource.prlimit(runner, resource.RLIMIT_NOFILE)[0] != 123


def test_umask_alone_needs_no_fork_and_stays_the_child_s(rig: Rig) -> None:
    given(rig, "umask; sleep 1000", umask="0o077").run()
    rig.until("running")
    assert rig.logged(1) == ["0077"]
    assert "Umask:\t0077" not in Path(f"/proc/{rig.runner_identity().pid}/status").read_text()


# ---------------------------------------------------------------------------------------------------- hooks


def test_pre_start_hooks_run_in_order_before_the_command_in_its_log(rig: Rig) -> None:
    hooks = [Hook("echo one $A; sleep 0.1"), Hook(["/bin/echo", "two  words"])]
    given(rig, "echo command; exec sleep 1000", pre_start=hooks, env={"A": "1"}).run()
    status = rig.until("running")
    assert rig.logged(3) == ["one 1", "two  words", "command"] and status["attempt"] == 1
    assert rig.passed_through() == ["starting", "running"] and alive(status["pid"])


def test_pre_start_may_make_what_the_command_needs(rig: Rig) -> None:
    venv = home(rig) / ".venv"
    make = f"{sys.executable} -m venv --without-pip {venv}"
    given(rig, pre_start=[Hook(make, 30)], venv=str(venv)).run()
    assert rig.until("running") and variables(rig)["VIRTUAL_ENV"] == str(venv)


def test_failing_pre_start_is_a_failed_attempt_with_its_reason(rig: Rig) -> None:
    reported = reason_of_failure(given(rig, "echo never", pre_start=[Hook("echo bad >&2; exit 3"), Hook("echo never")]))
    assert "pre_start failed with exit code 3: echo bad >&2; exit 3" in reported
    assert rig.log() == "bad\n" and rig.state()["attempt"] == 2
    assert rig.exit_record(1)["code"] == 3


def test_pre_start_beyond_its_time_is_ended_with_its_tree(rig: Rig) -> None:
    hook = Hook("setsid sleep 999 & echo $!; sleep 1000", 0.3)
    reported = reason_of_failure(given(rig, "echo never", pre_start=[hook], restart={"max_attempts": 0}))
    assert "pre_start took longer than 0.3 s" in reported
    assert not alive(int(rig.log().split()[0])) and not rig.survivors() and "never" not in rig.log()


def test_stop_during_pre_start_starts_nothing(rig: Rig) -> None:
    given(rig, "echo never", pre_start=[Hook("echo up; exec sleep 1000", 100)]).run()
    rig.logged(1)
    stop(rig)
    assert rig.log() == "up\n" and not rig.survivors()


def test_post_stop_runs_after_a_crash_and_before_the_next_start(rig: Rig) -> None:
    after = Hook("echo after $PROCGUARD_ATTEMPT $PROCGUARD_EXIT_CODE; sleep 0.2; echo done")
    given(rig, "echo run; exit 4", post_stop=[after]).run()
    assert "exit code 4" in rig.until("failed")["reason"]
    assert rig.log(1) == "run\nafter 1 4\ndone\n" and rig.log(2) == "run\nafter 2 4\ndone\n"


def test_post_stop_runs_after_a_stop_and_is_waited_for(rig: Rig) -> None:
    after = Hook("echo after signal $PROCGUARD_EXIT_SIGNAL; sleep 0.3; echo done")
    given(rig, "echo up; exec sleep 1000", post_stop=[after]).run()
    rig.until("running")
    stop(rig)
    assert rig.log() == "up\nafter signal 15\ndone\n" and not rig.survivors()


def test_post_stop_that_fails_or_hangs_is_reported_and_changes_nothing_else(rig: Rig) -> None:
    hooks = [Hook("exit 7"), Hook("setsid sleep 999 & sleep 1000", 0.3), Hook("echo last")]
    given(rig, "exit 0", post_stop=hooks).run()
    reported = rig.until("exited")["reason"]
    assert "post_stop failed with exit code 7: exit 7" in reported and "post_stop took longer than 0.3 s" in reported
    assert rig.log() == "last\n" and not rig.survivors()


def test_kill_ends_post_stop_too(rig: Rig) -> None:
    given(rig, "exit 1", post_stop=[Hook("echo up; exec sleep 1000", 1000)]).run()
    rig.logged(1)
    assert rig.link
    rig.link.kill(1, "c-1")
    assert rig.result("c-1")["status"] == "done"
    assert rig.until("stopped") and not rig.survivors()


def test_stop_during_post_stop_lets_it_finish(rig: Rig) -> None:
    given(rig, "exit 1", post_stop=[Hook("echo up; sleep 0.5; echo done", 10)]).run()
    rig.logged(1)
    stop(rig)
    assert rig.log() == "up\ndone\n" and rig.state()["attempt"] == 1


def test_waiting_for_post_stop_costs_nothing(rig: Rig) -> None:
    given(rig, "exit 1", post_stop=[Hook("echo up; exec sleep 1000", 1000)]).run()
    rig.logged(1)
    runner = rig.runner_identity().pid

    def ticks() -> int:
        fields = Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(0.5)
    assert ticks() - before <= 2


def test_post_stop_runs_for_an_attempt_whose_runner_was_killed(rig: Rig) -> None:
    given(rig, "echo up; exec sleep 1000", post_stop=[Hook("echo after")]).run()
    rig.until("running")
    rig.kill_runner()
    rig.run()
    rig.until("running", 2)
    assert rig.log(1) == "up\nafter\n"


# -------------------------------------------------------------------------------------------------- oneshot


def test_oneshot_that_succeeded_is_done_whatever_the_policy_says(rig: Rig) -> None:
    given(rig, "echo once", oneshot=True, restart={"policy": "always"}).run()
    assert rig.until("exited")["attempt"] == 1
    assert rig.run() == 0  # a runner started again finds nothing to do
    rig.runner_gone()
    assert rig.state()["state"] == "exited" and rig.state()["attempt"] == 1


def test_oneshot_that_failed_is_tried_again(rig: Rig) -> None:
    marker = home(rig) / "tried"
    given(rig, f"test -e {marker} || {{ touch {marker}; exit 1; }}", oneshot=True).run()
    assert rig.until("exited")["attempt"] == 2


# ------------------------------------------------------------------------------------------------ the runner


def test_runner_stays_small_whatever_the_specification_says(rig: Rig) -> None:
    """12 MB resident, and none of the modules that would make it more."""
    (home(rig) / "e").write_text("A=1")
    conda(home(rig) / "miniconda3/envs/torch")
    given(
        rig, "exec sleep 1000", env_file=str(home(rig) / "e"), conda="torch", setup=["true"],
        limits=Limits(nofile=100), pre_start=[Hook("true")],
    ).run()  # fmt: skip
    rig.until("running")
    status = Path(f"/proc/{rig.runner_identity().pid}/status").read_text()
    resident_kb = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert resident_kb < 12 * 1024


# ----------------------------------------------------------------------------------- limits of the whole tree


def kernel_group(directory: Path, controllers: str) -> Path:
    """The files of a control group and its parent, as far as limits touch them."""
    group = directory / "procguard-1"
    group.mkdir()
    (directory / "cgroup.controllers").write_text(controllers)
    for name in ("memory.max", "cpu.max"):
        (group / name).write_text("")
    (directory / "cgroup.subtree_control").write_text("memory cpu")
    return group


def test_limits_of_the_tree_are_written_and_lifted_again(tmp_path: Path) -> None:
    group = kernel_group(tmp_path, "memory cpu")
    assert group_limits.enforce(str(group), {"memory_max": 2.0**30, "cpu_max": 2.5}) == ""
    assert (group / "memory.max").read_text() == str(2**30) and (group / "cpu.max").read_text() == "250000 100000"
    (group / "cpu.max").write_text("")
    assert group_limits.enforce(str(group), {"cpu_max": None}) == ""
    assert (group / "cpu.max").read_text() == "max 100000"


def test_limit_that_the_kernel_cannot_enforce_is_said_in_the_worker_s_reason(rig: Rig, tmp_path: Path) -> None:
    assert "cannot create a control group" in group_limits.enforce("", {"memory_max": 1.0})
    group = kernel_group(tmp_path, "pids")
    (tmp_path / "cgroup.subtree_control").write_text("")
    reported = group_limits.enforce(str(group), {"memory_max": 1.0, "cpu_max": 1.0})
    assert (
        f"limits.memory_max is not enforced: the memory controller of cgroup v2 is not available in {tmp_path}"
        in reported
    )
    assert "limits.cpu_max is not enforced" in reported
    given(rig, limits=Limits(memory_max="1G")).run()
    reason = rig.until("running")["reason"]
    path = rig.state()["cgroup"]
    if not path or "memory" not in Path(os.path.dirname(path), "cgroup.controllers").read_text():
        assert "; limits.memory_max is not enforced: " in reason
    else:
        assert Path(path, "memory.max").read_text().strip() == str(2**30)
