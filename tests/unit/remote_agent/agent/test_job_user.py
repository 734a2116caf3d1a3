"""Under a root agent a job with `user:` gains no rights: everything for it runs as its user."""
# ruff: noqa: F811 - fixtures are arguments of the same name

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.inventory.code import Sync
from procguard.errors import HostError
from remote_agent.install import files
from remote_agent.install.installer import Installer
from remote_agent.install.release import InstallError
from remote_agent.protocol.messages import HealthCheck
from remote_agent.runner import control
from remote_agent.runner.lock import listen, take_lock
from remote_agent.runner.loop import Runner
from remote_agent.system import identity, paths
from remote_agent.system.locks import lock_held
from tests.agent_host import Host, running
from tests.fake_manager import FakeManager
from tests.unit.deploy.sync.test_code_sync import Host as CodeHost
from tests.unit.job_user import JobUser, job_user, needs_root  # noqa: F401 - fixture
from tests.unit.runner_rig import Rig, alive, rig  # noqa: F401 - fixture
from tests.waiting import wait_until

pytestmark = needs_root
ROOTS_TOKEN = "roots-own-token"


def as_user(rig: Rig, user: JobUser, **start: Any) -> Rig:
    rig.assignment.update(start={"run_as": user.run_as, **start}, cwd=str(user.directory))
    return rig


# ---------------------------------------------------------------------------------------------- what a start reads


def test_env_file_is_read_as_the_worker_s_user(rig: Rig, job_user: JobUser) -> None:
    """A link to a file that only root can read returns nothing; the user's own file works."""
    link = job_user.link(".env", job_user.secret)
    as_user(rig.shell("env; exec sleep 100"), job_user, env_files=[str(link)]).run()
    reason = rig.until("failed")["reason"]
    assert "env_file" in reason and "cannot be read: Permission denied" in reason
    assert job_user.canary not in rig.log() + json.dumps(rig.said)
    link.unlink()
    job_user.write(".env", "OWN=mine\n", 0o600)
    rig.runner_gone()
    rig.write_spec(generation=2)
    rig.run()
    rig.until("running")
    wait_until(lambda: "OWN=mine" in rig.log(2), what="its own variable")


def test_env_file_that_never_opens_costs_the_worker_alone(rig: Rig, job_user: JobUser) -> None:
    """A pipe instead of the file, also one that would block a helper."""
    os.mkfifo(job_user.directory / ".env")
    os.chown(job_user.directory / ".env", job_user.uid, job_user.gid)
    as_user(rig.shell("env"), job_user, env_files=[str(job_user.directory / ".env")]).run()
    assert "is not a file" in rig.until("failed")["reason"]


def test_what_is_asked_as_a_user_ends_in_time_and_holds_nothing_of_who_asks(job_user: JobUser) -> None:
    """Whatever the user does with the helper process."""

    def question() -> object:
        own = os.listdir("/proc/self/fd")
        return [os.getresuid(), os.getgroups(), sorted(int(one) for one in own), os.stat("/proc/self/mem").st_uid]

    uid = job_user.uid
    found = identity.ask(job_user.run_as, question)
    assert found == [[uid, uid, uid], job_user.groups, [0, 1, 2, 3, 4], 0], "not the user's to look into"
    began = time.monotonic()
    with pytest.raises(OSError, match="no answer within 0"):
        identity.ask(job_user.run_as, lambda: os.kill(os.getpid(), signal.SIGSTOP), 0.3)
    with pytest.raises(OSError, match="the reading process was ended"):
        identity.ask(job_user.run_as, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(OSError, match="no answer within"):
        identity.ask(job_user.run_as, lambda: "x" * (identity.MAX_ANSWER_BYTES + 1))
    assert time.monotonic() - began < 5 and os.geteuid() == 0


def test_users_worker_gets_no_variable_of_roots_environment(rig: Rig, job_user: JobUser) -> None:
    """HOME, USER, LOGNAME, SHELL and PATH are that user's; language and time zone are the host's; no more."""
    recorded = {"API_TOKEN": ROOTS_TOKEN, "PATH": "/root/bin:/usr/bin:/bin", "HOME": "/root", "USER": "root",
                "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONPATH": "/root/lib", "LD_PRELOAD": ""}  # fmt: skip
    paths.write_json(paths.base_env_file(rig.worker_dir), recorded)
    rig.assignment["spec"]["env"] = {"MINE": "1"}
    as_user(rig.shell("env; echo done; exec sleep 100"), job_user).run()
    rig.until("running")
    wait_until(lambda: "done" in rig.log(), what="its environment")
    found = dict(line.partition("=")[::2] for line in rig.log().splitlines() if "=" in line)
    assert ROOTS_TOKEN not in rig.log()
    assert {name for name in found if not name.startswith("PROCGUARD_")} - {"PWD", "_", "SHLVL"} == {
        "HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "TZ", "MINE", "PYTHONUNBUFFERED"}  # fmt: skip
    assert found["HOME"] == str(job_user.directory) and found["USER"] == found["LOGNAME"] == job_user.name
    assert "/root" not in found["PATH"]
    os.unlink(paths.base_env_file(rig.worker_dir))  # then the runner's own environment is no stand-in
    assert rig.link
    rig.link.restart(1, "c-1", 0)
    rig.until("running", attempt=2)
    wait_until(lambda: "done" in rig.log(2), what="its environment")
    assert "LANG" not in rig.log(2).replace("LANGUAGE", "") or os.environ.get("LANG", "") in rig.log(2)
    assert not any(name in rig.log(2) for name in ("PYTEST", "PROCGUARD_TEST", "VIRTUAL_ENV"))


def test_explanation_of_a_failed_start_shows_nothing_the_user_can_t_read(rig: Rig, job_user: JobUser) -> None:
    """It may execute this file but not read it; its first line is not part of the reason."""
    program = job_user.write("program", f"#!/no/such/{job_user.canary}\n", 0o711)
    os.chown(program, 0, 0)
    as_user(rig, job_user).assignment["argv"] = [str(program)]
    rig.run()
    reason = rig.until("failed")["reason"]
    assert "interpreter in the first line" in reason and job_user.canary not in json.dumps(rig.said) + rig.log()


def test_its_setup_lines_find_out_nothing_through_their_report(rig: Rig, job_user: JobUser) -> None:
    """They share a descriptor with the runner: data written there is not used as a path by root, and causes no
    crash."""
    folder = job_user.root_only / "bin"
    folder.mkdir()
    (folder / "hidden").write_text("#!/bin/sh\n")
    for said in (f"path {folder}", "line \\302\\262 1", "path \\0", "exec 999999 x"):
        setup = f"printf '{said}' >&7; trap - EXIT; exit 3"
        generation = int(rig.assignment["generation"]) + 1
        as_user(rig, job_user, setup=[setup]).assignment.update(argv=["hidden"], generation=generation)
        rig.assignment["spec"]["restart"]["max_attempts"] = 0
        assert rig.run() == 0
        reason = rig.until("failed")["reason"]
        assert "may not be executed" not in reason, reason
        rig.runner_gone()


READ_KEY = """
import ctypes, sys
libc, text = ctypes.CDLL(None), ctypes.create_string_buffer(100)
print("read", libc.syscall(250, 11, int(sys.argv[1]), text, 100), text.value, flush=True)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls")
def test_a_user_s_job_holds_no_key_of_root_s_session(rig: Rig, job_user: JobUser) -> None:
    """The kernel's session key ring is inherited over setuid; its holder may read root's keys in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(250, 1, None) < 0:
        pytest.skip("this kernel has no key rings")
    key = libc.syscall(248, b"user", b"procguard-test", job_user.canary.encode(), len(job_user.canary), -3)
    assert key > 0
    job_user.write("read.py", READ_KEY)
    as_user(rig.shell(f"/usr/bin/python3 read.py {key}; exec sleep 100"), job_user).run()
    rig.until("running")
    wait_until(lambda: "read" in rig.log(), what="its attempt")
    assert "read -1" in rig.log() and job_user.canary not in rig.log()


# ------------------------------------------------------------------------------------------------- health checks


def assign_as(manager: FakeManager, user: JobUser, script: str, **spec: Any) -> None:
    manager.assign(
        "w1", ["/bin/sh", "-c", script], user=user.name, working_dir=str(user.directory), **spec
    )  # fmt: skip


def checked(manager: FakeManager) -> dict[str, Any]:
    """The worker's health, once it is known."""

    def known() -> dict[str, Any] | None:
        health = manager.report("w1").get("health") or {}
        return health if health.get("status") in ("ok", "failing") else None

    return wait_until(known, 20, "a verdict")


def exec_check(command: str, **more: Any) -> HealthCheck:
    return HealthCheck("exec", command=command, interval_s=0.5, start_grace_s=0.0, timeout_s=5.0, failures=1, **more)


def test_exec_check_with_a_library_of_the_job_s_runs_nothing_as_root(
    host: Host, manager: FakeManager, job_user: JobUser
) -> None:  # fmt: skip
    """The job puts LD_PRELOAD into its own environment; the check is /bin/true."""
    library = job_user.preload()
    assign_as(manager, job_user, f"exec env LD_PRELOAD={library} sleep 1000", health=[exec_check("/bin/true")])
    host.start()
    running(manager)
    assert checked(manager)["status"] == "ok"
    assert not job_user.mark.exists()


def test_exec_check_is_the_worker_s_user_in_its_directory_and_environment(
    host: Host, manager: FakeManager, job_user: JobUser
) -> None:  # fmt: skip
    job_user.write("bin/check", "#!/bin/sh\n(id -u; id -G; pwd; ls /proc/self/fd; env) > seen.tmp; mv seen.tmp seen\n")
    assign_as(
        manager, job_user, "exec sleep 1000", health=[exec_check("check")],
        env={"PATH": f"{job_user.directory}/bin:/usr/bin:/bin", "MINE": "1"},
    )  # fmt: skip
    host.start()
    running(manager)
    assert checked(manager)["status"] == "ok"
    lines = (job_user.directory / "seen").read_text().splitlines()
    assert lines[:3] == [str(job_user.uid), " ".join(map(str, job_user.groups)), str(job_user.directory)]
    assert lines[3:7][:3] == ["0", "1", "2"] and len([one for one in lines[3:8] if one.isdigit()]) <= 4  # ls's own
    env = dict(line.partition("=")[::2] for line in lines if "=" in line)
    assert env["MINE"] == "1" and env["USER"] == job_user.name and "VIRTUAL_ENV" not in env
    assert set(env) - {"PWD", "_", "SHLVL"} <= {
        "HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LC_ALL", "TZ", "MINE", "PYTHONUNBUFFERED",
        "PROCGUARD_WORKER_ID", "PROCGUARD_ATTEMPT", "PROCGUARD_EPOCH"}  # fmt: skip


@pytest.mark.parametrize("kind", ["hangs", "leaves a daemon"])
def test_nothing_of_an_exec_check_outlives_it(host: Host, manager: FakeManager, job_user: JobUser, kind: str) -> None:
    """Also not what left its process group and session."""
    job_user.write("check", f"#!/bin/sh\n(setsid sh -c 'echo $$ >> pids; sleep 1000' &) ; {'sleep 1000' if kind == 'hangs' else 'sleep 0.3'}\n")  # fmt: skip # noqa: E501
    check = exec_check("./check")
    check.timeout_s, check.interval_s = 1.0, 1000.0
    assign_as(manager, job_user, "exec sleep 1000", health=[check])
    host.start()
    running(manager)
    health = checked(manager)
    assert health["status"] == ("failing" if kind == "hangs" else "ok"), health
    pids = [int(one) for one in (job_user.directory / "pids").read_text().split()]
    assert pids and not any(alive(pid) for pid in pids)


def test_heartbeat_file_is_checked_as_the_worker_s_user(
    host: Host, manager: FakeManager, job_user: JobUser
) -> None:  # fmt: skip
    """A link reveals nothing about a file that the user cannot access."""
    job_user.link("beat", job_user.secret)
    check = HealthCheck("heartbeat_file", path="beat", max_age_s=0.3, interval_s=0.5, start_grace_s=0, failures=1)
    assign_as(manager, job_user, "exec sleep 1000", health=[check])
    host.start()
    running(manager)
    health = checked(manager)
    if health["status"] == "ok":  # its first look counts from the start
        health = wait_until(lambda: h if (h := checked(manager))["status"] == "failing" else None, 10, "failing")
    assert "Permission denied" in health["detail"]


def test_http_and_tcp_checks_connect_as_the_worker_s_user(
    host: Host, manager: FakeManager, job_user: JobUser
) -> None:  # fmt: skip
    """The kernel reports that user as the peer, not root."""
    import threading

    uids: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def serve() -> None:
        while True:
            try:
                peer, address = listener.accept()
            except OSError:
                return
            wanted = f"{address[1]:04X}"
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
                words = line.split()
                if words[1].endswith(f":{wanted}") and words[2].endswith(f":{port:04X}") and words[3] == "01":
                    uids.append(int(words[7]))
            peer.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            peer.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        common = {"interval_s": 0.5, "start_grace_s": 0.0, "failures": 1, "timeout_s": 5.0}
        checks = [HealthCheck("http", url=f"http://localhost:{port}/", **common), HealthCheck("tcp", port=port, **common)]  # type: ignore[arg-type] # fmt: skip # noqa: E501
        assign_as(manager, job_user, "exec sleep 1000", health=checks)
        host.start()
        running(manager)
        assert checked(manager)["status"] == "ok"
        wait_until(lambda: len(uids) >= 2, what="both checks")
        assert set(uids) == {job_user.uid}
    finally:
        listener.close()


@pytest.mark.slow
def test_a_check_whose_process_the_job_ends_is_no_result(
    host: Host, manager: FakeManager, job_user: JobUser
) -> None:  # fmt: skip
    """It may kill processes of its user; that is no result of its check, and other workers' checks continue."""
    script = "while :; do pkill -9 -U games -f [r]emote_agent/health/user_process.py; sleep 0.01; done"
    assign_as(manager, job_user, script, health=[exec_check("/bin/true", action="restart")])
    manager.assign("w2", "sleep 1000", health=[exec_check("/bin/true")])
    host.start()
    pid = running(manager)
    wait_until(lambda: (manager.report("w2").get("health") or {}).get("status") == "ok", 20, "the other's verdict")
    wait_until(lambda: len(manager.beats) > 20, 20, "some rounds")
    assert (manager.report("w1")["health"] or {})["status"] != "failing"
    assert manager.report("w1")["pid"] == pid


# ------------------------------------------------------------------------------------------------------ evidence


def test_py_spy_of_the_job_s_path_runs_as_the_worker_s_user(
    host: Host, manager: FakeManager, job_user: JobUser
) -> None:  # fmt: skip
    """The output is truncated to its bound."""
    job_user.write("bin/py-spy", f"#!/bin/sh\nid -u > {job_user.directory}/spied; touch {job_user.mark}; "
                   "head -c 3000000 /dev/zero | tr '\\0' x\n")  # fmt: skip
    job_user.write("bin/python3", '#!/bin/sh\nexec /usr/bin/python3 "$@"\n')
    check = exec_check("/bin/false", action="restart")
    assign_as(
        manager, job_user, "exec python3 -c 'import time; time.sleep(1000)'", health=[check],
        env={"PATH": f"{job_user.directory}/bin:/usr/bin:/bin"},
    )  # fmt: skip
    host.start()
    running(manager)
    wait_until(lambda: (job_user.directory / "spied").exists() or job_user.mark.exists(), 30, "py-spy")
    folder = Path(paths.worker_dir(host.directory, "w1")) / "evidence"
    wait_until(lambda: list(folder.glob("*.txt")) if folder.exists() else None, 30, "the evidence")
    assert not job_user.mark.exists()
    assert (job_user.directory / "spied").read_text().split() == [str(job_user.uid)]


# ---------------------------------------------------------------------------------------- what survives the job


@pytest.mark.slow
def test_agent_and_other_logs_go_on_while_a_job_makes_its_log_huge(
    host: Host, manager: FakeManager, job_user: JobUser
) -> None:  # fmt: skip
    """It holds its log's descriptor: it may extend it to 8 TiB of holes, truncate it to zero, and reserve blocks."""
    script = "import os,time\nos.ftruncate(1, 1 << 43)\nos.write(1, b'end\\n')\ntime.sleep(1000)"
    manager.assign("w1", ["/usr/bin/python3", "-c", script], user=job_user.name, working_dir="/")
    manager.assign("w2", ["/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.05; done"])
    host.start()
    running(manager, "w1")
    running(manager, "w2")
    log = Path(paths.log_file(paths.worker_dir(host.directory, "w1"), 1))
    wait_until(lambda: log.stat().st_size > 1 << 42, what="the huge log")
    began = time.monotonic()
    before = len(manager.logs.get(("w2", "1.out"), b""))
    wait_until(lambda: time.monotonic() - began > 2.5, 10, "the bounds' turn")
    wait_until(lambda: len(manager.logs.get(("w2", "1.out"), b"")) > before + 400, 5, "another worker's log goes on")
    assert host.agent is not None and host.agent.poll() is None
    os.kill(host.status("w1")["pid"], signal.SIGKILL)


# ------------------------------------------------------------------------------------------------ squatted places


def test_runner_whose_place_was_taken_goes_where_its_agent_went(tmp_path: Path, job_user: JobUser) -> None:
    """A cleaner of /tmp removed it, and another user recreated it before the runner."""
    worker_dir = tmp_path / "agent" / "workers" / "w1-0123456789"
    worker_dir.mkdir(parents=True)
    before, after = tmp_path / "b", tmp_path / "a"  # a socket's path is short
    after.mkdir()
    runner = Runner.__new__(Runner)
    runner._worker_dir = str(worker_dir)
    runner._lock_path = paths.runner_lock(str(before), str(worker_dir))
    runner._socket_path = paths.runner_socket(str(before), str(worker_dir))
    before.mkdir()
    runner._lock, runner._listener = take_lock(runner._lock_path), listen(runner._socket_path)
    shutil.rmtree(before)
    runner._check_runtime(0.0)
    assert lock_held(paths.runner_lock(str(before), str(worker_dir))), "made again where nobody has taken it"
    shutil.rmtree(before)
    before.mkdir()
    os.chown(before, job_user.uid, job_user.gid)
    runner._check_runtime(0.0)
    assert os.listdir(before) == [], "nothing of root's in somebody else's directory"
    paths.write_json(paths.agent_file(str(tmp_path / "agent")), {"runtime_dir": str(after)})
    runner._check_runtime(0.0)
    assert os.listdir(before) == [] and lock_held(paths.runner_lock(str(after), str(worker_dir)))
    link = control.RunnerLink.connect(paths.runner_socket(str(after), str(worker_dir)))
    link.close()
    runner._listener.close()
    os.close(runner._lock)


def test_agent_whose_place_was_taken_starts_in_another(tmp_path: Path, manager: FakeManager, job_user: JobUser) -> None:
    """As systemd starts it after a reboot: only agent.json contains the path."""
    host = Host(tmp_path, manager)
    squatted = tmp_path / "squatted"
    squatted.mkdir()
    os.chown(squatted, job_user.uid, job_user.gid)
    config = paths.read_json(paths.agent_file(host.directory))
    assert isinstance(config, dict)
    paths.write_json(paths.agent_file(host.directory), {**config, "runtime_dir": f"{squatted}/x", "later": 1})
    manager.assign("w1", "sleep 1000")
    try:
        host.start()
        running(manager)
        after = paths.read_json(paths.agent_file(host.directory))
        assert isinstance(after, dict) and after["runtime_dir"] == host.runtime_dir and after["later"] == 1
        assert os.listdir(squatted) == []
    finally:
        host.end()


def test_a_stranger_s_socket_is_no_runner_and_a_stranger_no_agent(tmp_path: Path, job_user: JobUser) -> None:
    """The kernel identifies the peer."""
    path = job_user.directory / "s"
    script = f"import socket,time; s=socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); time.sleep(100)"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o777)
        with subprocess.Popen(["/usr/bin/python3", "-c", script], user=job_user.uid, cwd="/") as stranger:
            peer, _ = listener.accept()
            assert not control.is_ours(peer)
            stranger.kill()
        with socket.socket(socket.AF_UNIX) as own:
            own.connect(str(path))
            assert control.is_ours(own)


@pytest.mark.parametrize("whose", ["the user's", "everybody's"])
def test_root_installs_nothing_where_another_user_could_replace_it(job_user: JobUser, whose: str) -> None:
    """A home created by another user first belongs to that user, who would choose what root runs."""
    home = job_user.directory / "home" if whose == "the user's" else job_user.root_only / "open" / "home"
    home.mkdir(parents=True)
    os.chown(home, job_user.uid if whose == "the user's" else 0, -1)
    if whose == "everybody's":
        home.parent.chmod(0o777)
    with pytest.raises(InstallError, match="could replace what root's agent runs"):
        Installer(str(home), "f-1", "h1").install({"release": "0" * 64}, lambda: b"")
    assert not list(home.iterdir())


# --------------------------------------------------------------------------------- folders of code, fetched files


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    (folder / "pkg").mkdir(parents=True)
    (folder / "train.py").write_text("print(1)\n")
    (folder / "pkg" / "a.py").write_text("x = 1\n")
    return folder


def brought(project: Path, dest: Path, tmp_path: Path, **more: Any) -> Any:
    return CodeHost(tmp_path / "home").bring(Sync(str(project), str(dest), ()), **more)


def test_code_of_a_user_s_folder_is_brought_as_that_user(project: Path, job_user: JobUser, tmp_path: Path) -> None:
    """Also if it was copied as root, before the folder was owned by its user."""
    dest = job_user.directory / "project"
    assert brought(project, dest, tmp_path, rsync=True).status == "changed"
    assert {path.stat().st_uid for path in dest.rglob("*")} == {job_user.uid}
    for path in (dest, *dest.rglob("*")):
        os.chown(path, 0, 0)
    (project / "pkg" / "a.py").write_text("x = 2\n")
    (project / "train.py").unlink()
    os.chown(dest, job_user.uid, job_user.gid)
    assert brought(project, dest, tmp_path).status == "changed"
    assert (dest / "pkg" / "a.py").read_text() == "x = 2\n" and not (dest / "train.py").exists()
    assert (dest / "pkg" / "a.py").stat().st_uid == job_user.uid


@pytest.mark.parametrize("swapped", [".procguard-sync", "the folder", "a folder above", "a file's mode", "the record"])
def test_what_a_job_puts_in_the_way_of_code_makes_root_write_and_delete_nothing(
    project: Path, job_user: JobUser, tmp_path: Path, swapped: str
) -> None:  # fmt: skip
    dest, outside = job_user.directory / "a" / "project", job_user.root_only / "outside"
    assert brought(project, dest, tmp_path).status == "changed"
    (outside / "incoming").mkdir(parents=True)
    (outside / "project").mkdir()
    (outside / "incoming" / "precious").write_text("1")
    before = sorted(str(path) for path in outside.rglob("*")), job_user.secret.stat().st_mode
    (project / "train.py").write_text("print(2)\n")
    if swapped == ".procguard-sync":
        job_user.run(f"rm -rf {dest}/.procguard-sync && ln -s {outside} {dest}/.procguard-sync")
    elif swapped == "the folder":
        job_user.run(f"rm -rf {dest} && ln -s {outside} {dest}")
    elif swapped == "a folder above":
        job_user.run(f"rm -rf a && ln -s {outside} a")
    elif swapped == "a file's mode":
        (project / "train.py").write_text("print(1)\n")
        (project / "train.py").chmod(0o755)
        job_user.run(f"rm {dest}/train.py && ln -s {job_user.secret} {dest}/train.py")
    else:
        job_user.run(f"rm {dest}/.procguard-sync/record.json && mkfifo {dest}/.procguard-sync/record.json")
    try:
        brought(project, dest, tmp_path)
    except HostError as exc:
        assert job_user.canary not in str(exc)
    assert (sorted(str(path) for path in outside.rglob("*")), job_user.secret.stat().st_mode) == before
    assert job_user.secret.read_text().strip().endswith(job_user.canary)


def test_code_goes_nowhere_that_others_than_root_can_turn_elsewhere(
    project: Path, job_user: JobUser, tmp_path: Path
) -> None:
    shared = job_user.root_only.parent / f"{job_user.root_only.name}-shared"
    shared.mkdir()
    shared.chmod(0o777)
    try:
        with pytest.raises(HostError, match="others than root can replace"):
            brought(project, shared / "project", tmp_path)
    finally:
        shutil.rmtree(shared)


def test_a_stranger_in_the_folder_holds_up_no_code(project: Path, job_user: JobUser, tmp_path: Path) -> None:
    """Its id is that of a worker, or is not a valid id."""
    place = Path(tempfile.mkdtemp(prefix="pg-place-"))  # `tmp_path` is below folders of root's alone
    dest = place / "dest"
    assert brought(project, dest, tmp_path).status == "changed"
    for folder in (dest, place):
        folder.chmod(0o755)
    (project / "train.py").write_text("print(3)\n")
    names = ("train-a", "\x1b[2J")
    strangers = [
        subprocess.Popen(["sleep", "100"], cwd=dest, user=job_user.uid, env={"PROCGUARD_WORKER_ID": one})
        for one in names
    ]
    try:
        assert brought(project, dest, tmp_path).status == "changed"
    finally:
        for one in strangers:
            one.kill()
            one.wait()
        shutil.rmtree(place)


def test_fetch_reads_through_a_user_s_link_what_that_user_may_read(job_user: JobUser, tmp_path: Path) -> None:
    out = job_user.directory / "out"
    job_user.write("out/good.csv", "1\n", 0o600)
    job_user.link("out/link.csv", job_user.secret)
    os.link(job_user.secret, out / "hard.csv")
    job_user.link("whole", job_user.root_only)
    found = {}
    for pattern in (f"{out}/*.csv", f"{job_user.directory}/whole/secret", str(out), f"{job_user.directory}/w*/s*"):
        reported: list[dict[str, Any]] = []
        data = io.BytesIO()
        try:
            files.send({"path": pattern, "max_files": 100, "max_bytes": 10**6}, reported.append, data)
        except InstallError as exc:
            assert job_user.canary not in str(exc)
        found[pattern] = data.getvalue()
    assert found[f"{out}/*.csv"].count(b"1\n") >= 1 and found[str(out)].count(b"1\n") >= 1
    assert not any(job_user.canary.encode() in one for one in found.values())
    assert os.geteuid() == 0


IN_A_CONTAINER = """
import ctypes, os
from remote_agent.system import owners
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):  # CLONE_NEWUSER
    raise SystemExit("no user namespaces here")
print(flush=True)
input()
os.setgid(0)
os.setuid(0)
found = owners.walk("/usr/bin")
print(os.geteuid(), os.stat("/usr").st_uid, found.actor, found.shared)
"""


def test_root_of_a_user_s_container_is_at_home_there() -> None:
    """Files of the machine's root appear to belong to `nobody` there, which is not a user of that container."""
    command = [sys.executable, "-c", IN_A_CONTAINER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "\n"
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{name}").write_text("0 1000 1")
            assert process.communicate("\n", timeout=30)[0] == "0 65534 None False\n"
        finally:
            process.kill()


def test_fetch_is_not_led_elsewhere_between_finding_and_reading(job_user: JobUser, tmp_path: Path) -> None:
    job_user.write("out/a.csv", "1\n", 0o644)
    reported: list[dict[str, Any]] = []
    data = io.BytesIO()

    def say(message: dict[str, Any]) -> None:
        reported.append(message)
        if "found" in message:
            job_user.run(f"rm out/a.csv && ln -s {job_user.secret} out/a.csv")

    files.send({"path": f"{job_user.directory}/out/a.csv", "max_files": 9, "max_bytes": 10**6}, say, data)
    assert job_user.canary.encode() not in data.getvalue() and data.getvalue().endswith(b"-1\n")
