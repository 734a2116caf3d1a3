"""remote_agent.install on this machine: a real install into a temporary home, a real agent, a fake manager."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.session import bundle
from procguard.deploy.session.local import LocalPipe
from procguard.deploy.session.session import HostSession
from procguard.deploy.ssh.target import Target
from remote_agent.install import keepalive, maintenance, process, release, removal
from remote_agent.install.installer import Installer, recorded_environment
from remote_agent.install.release import InstallError
from remote_agent.protocol import messages
from remote_agent.system import paths
from remote_agent.tunnel import port_owner
from tests import fake_manager
from tests.fake_manager import FLEET, KEY, FakeManager
from tests.waiting import wait_until


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    with fake_manager.running() as one:
        yield one


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    monkeypatch.setattr(keepalive.KeepAlive, "choose", lambda self, wanted: ("none", "test"))
    monkeypatch.setenv("SSH_CONNECTION", "")
    one = Installer(str(tmp_path / "home"), FLEET, "host1")
    yield one
    runtime_dir = one.config().get("runtime_dir")
    if runtime_dir:
        process.stop(runtime_dir, one.dir)
        shutil.rmtree(runtime_dir, ignore_errors=True)


def request(manager: FakeManager, one: bundle.Bundle, **changes: Any) -> dict[str, Any]:
    return {
        "agent_id": "host1",
        "proof_key": KEY,
        "secret": "",
        "release": one.sha256,
        "unpacked_bytes": one.unpacked_bytes,
        "manager_urls": [manager.url],
        "manager_port": manager.port,
        "service": "auto",
        **changes,
    }


def put(installer: Installer, manager: FakeManager, **changes: Any) -> dict[str, Any]:
    one = bundle.build()
    return installer.install(request(manager, one, **changes), lambda: one.data, bundle.byte_code)


def no_bundle() -> bytes:
    raise AssertionError("the bundle was asked for again")


def test_first_install_unpacks_configures_and_starts_an_agent_the_manager_sees(
    installer: Installer, manager: FakeManager
) -> None:
    report = put(installer, manager, secret="s3cret")
    assert report["changed"] and report["running"] and "started" in report["changes"]
    assert os.stat(paths.agent_file(installer.dir)).st_mode & 0o777 == 0o600
    config = json.loads(Path(paths.agent_file(installer.dir)).read_text())
    assert config["secret"] == "s3cret" and config["manager_urls"] == [manager.url] and config["host"] == "host1"
    wait_until(lambda: manager.received, what="a heartbeat")
    assert os.getsid(report["pid"]) == report["pid"]  # a session of its own: the end of ours does not reach it


def test_unchanged_install_reports_ok_and_touches_nothing(installer: Installer, manager: FakeManager) -> None:
    first = put(installer, manager, secret="s3cret")
    before = {path: path.stat().st_mtime_ns for path in Path(installer.dir).glob("*.json")}
    again = installer.install(request(manager, bundle.build()), no_bundle)
    assert again["changes"] == [] and again["changed"] is False and again["pid"] == first["pid"]
    assert before == {path: path.stat().st_mtime_ns for path in Path(installer.dir).glob("*.json")}


def test_ensure_starts_a_killed_agent_and_leaves_a_live_one_alone(installer: Installer, manager: FakeManager) -> None:
    first = put(installer, manager, secret="s3cret")
    assert installer.ensure()["changes"] == []
    os.kill(first["pid"], 9)
    wait_until(lambda: not installer.running(), what="the agent's end")
    again = installer.ensure()
    assert again["changes"] == ["started"] and again["pid"] != first["pid"]


def other_release(line: str) -> bundle.Bundle:
    """The agent of today with one more line at its beginning."""
    with tarfile.open(fileobj=io.BytesIO(bundle.build().data)) as archive:
        files = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    files["remote_agent/__main__.py"] = line.encode() + files["remote_agent/__main__.py"]
    data = bundle.pack(files)
    return bundle.Bundle(data, hashlib.sha256(data).hexdigest(), 100)


@pytest.mark.slow
def test_a_restart_replaces_an_agent_that_runs_and_starts_one_that_was_stopped(
    installer: Installer, manager: FakeManager
) -> None:
    first = put(installer, manager, secret="s3cret")
    again = installer.restart()
    assert again["changes"] == ["restarted"] and again["running"] and again["pid"] != first["pid"]
    installer.stop()
    assert installer.restart()["changes"] == ["started"] and installer.running()


@pytest.mark.slow
def test_an_upgrade_changes_the_release_and_nothing_else_and_goes_back_where_that_does_not_start(
    installer: Installer, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(installer, manager, secret="s3cret")
    before = json.loads(Path(paths.agent_file(installer.dir)).read_text())
    other = other_release("# another release\n")
    monkeypatch.setenv("OF_WHOEVER_UPGRADES", "1")
    report = maintenance.upgrade(installer, {"release": other.sha256}, lambda: other.data, bytes)
    assert report["changes"] == ["unpacked", "configured", "upgraded", "restarted"]
    after = json.loads(Path(paths.agent_file(installer.dir)).read_text())
    assert after == {**before, "release": other.sha256[:16]}
    broken = other_release("raise SystemExit('broken on purpose')\n")
    with pytest.raises(InstallError, match="rolled back"):
        maintenance.upgrade(installer, {"release": broken.sha256}, lambda: broken.data, bytes)
    assert installer.running() and installer.status()["release"] == other.sha256[:16]


def test_the_end_of_the_agents_log_is_read_in_whole_lines(installer: Installer, manager: FakeManager) -> None:
    with pytest.raises(InstallError, match="no agent is installed"):
        maintenance.log(installer, 1000)
    put(installer, manager, secret="s3cret")
    installer.stop()
    Path(paths.agent_log(installer.dir)).write_bytes(b"first line\n\xff second\n" + "训练\n".encode())
    found = maintenance.log(installer, 1000)
    assert (found["text"], found["bytes"], found["running"]) == ("first line\n\ufffd second\n训练\n", 27, False)
    assert maintenance.log(installer, 18)["text"] == "\ufffd second\n训练\n"


@pytest.mark.slow
def test_ensure_replaces_a_frozen_agent_only_when_asked(installer: Installer, manager: FakeManager) -> None:
    first = put(installer, manager, secret="s3cret")
    os.kill(first["pid"], 19)
    wait_until(lambda: process.is_frozen(first["pid"]), what="the freeze")
    assert (installer.ensure()["pid"], installer.ensure()["frozen"]) == (first["pid"], True)
    assert installer.ensure(replace_frozen=True)["pid"] != first["pid"]


def test_an_agent_stopped_by_hand_stays_stopped_until_started(installer: Installer, manager: FakeManager) -> None:
    put(installer, manager, secret="s3cret")
    assert installer.stop()["running"] is False
    refused = installer.ensure()
    assert refused["running"] is False and "stopped by hand" in refused["reason"]
    assert installer.start()["running"] is True


def test_manager_that_cannot_prove_itself_is_not_believed(installer: Installer, manager: FakeManager) -> None:
    with pytest.raises(InstallError) as caught:
        put(installer, manager, secret="s3cret", proof_key="another")
    assert caught.value.code == "manager_out_of_reach" and "can't prove" in caught.value.message
    assert not os.path.exists(paths.agent_file(installer.dir))  # and no secret was left behind


def test_only_addresses_that_prove_themselves_are_kept_beside_configured_ones(
    installer: Installer, manager: FakeManager
) -> None:
    """The first address that proves itself is used; an address without a response could belong to another user
    later."""
    dead, configured = "http://127.0.0.1:9", "http://127.0.0.1:10"
    urls = [dead, configured, manager.url]
    put(installer, manager, secret="s", manager_urls=urls, manager_configured=[configured])
    assert installer.config()["manager_urls"] == [manager.url, configured]
    assert installer.config()["manager_tried"] == [dead]


def test_an_address_of_this_host_counts_only_where_the_manager_listens(
    installer: Installer, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof was valid, but another user of this host relayed it: the address is not used."""
    monkeypatch.setattr(port_owner, "owners_of", lambda _address, _port: {os.getuid() + 1})
    with pytest.raises(InstallError, match="another user listens there"):
        put(installer, manager, secret="s3cret")


def test_further_addresses_of_the_manager_restart_no_agent(installer: Installer, manager: FakeManager) -> None:
    """A VPN or container network of the manager that comes or goes causes no restart; the agent gets new addresses at
    its next start."""
    first = put(installer, manager, secret="s", manager_urls=[manager.url, "http://127.0.0.1:9"])
    again = put(installer, manager, manager_urls=[manager.url])
    assert again["changes"] == [] and again["pid"] == first["pid"]
    more = put(installer, manager, manager_urls=["http://127.0.0.1:11", manager.url])
    assert more["changes"] == [] and more["pid"] == first["pid"]
    assert installer.config()["manager_urls"] == [manager.url]
    third = put(
        installer,
        manager,
        manager_urls=["http://127.0.0.1:11", manager.url],
        manager_configured=["http://127.0.0.1:11"],
    )
    assert third["changes"] == [] and installer.config()["manager_tried"] == ["http://127.0.0.1:11"]


def test_a_second_rollback_does_not_go_forward(tmp_path: Path) -> None:
    home, directory = str(tmp_path), str(tmp_path / "f-1" / "h")
    os.makedirs(directory)
    for digest in ("a" * 16, "b" * 16, "c" * 16):
        package = tmp_path / "releases" / digest / "remote_agent"
        package.mkdir(parents=True)
        (package / "__main__.py").write_text("")
        release.switch(directory, home, digest)
    assert (release.current(directory)[0], release.previous(directory)[0]) == ("c", "b")
    release.switch(directory, home, release.previous(directory))
    release.forget_previous(directory)  # as Installer.rollback does
    assert (release.current(directory)[0], release.previous(directory)) == ("b", "")
    release.switch(directory, home, "c" * 16)  # deployed again, and it does not start: back to b, and a is before that
    release.switch(directory, home, "b" * 16)
    release.forget_previous(directory, "a" * 16, home)
    assert (release.current(directory)[0], release.previous(directory)[0]) == ("b", "a")


def test_release_that_does_not_start_is_rolled_back(installer: Installer, manager: FakeManager) -> None:
    good = put(installer, manager, secret="s3cret")
    files = {"remote_agent/__main__.py": b"raise SystemExit('broken on purpose')\n", "remote_agent/__init__.py": b""}
    data = bundle.pack(files)
    broken = bundle.Bundle(data, hashlib.sha256(data).hexdigest(), 100)
    with pytest.raises(InstallError, match=f"broken on purpose.*rolled back to release {good['release']}"):
        installer.install(request(manager, broken), lambda: broken.data)
    assert installer.status()["running"] and installer.status()["release"] == good["release"]


def test_uninstall_leaves_nothing(installer: Installer, manager: FakeManager) -> None:
    report = put(installer, manager, secret="s3cret")
    runtime_dir = installer.config()["runtime_dir"]
    assert removal.uninstall(installer)["home_gone"] is True
    assert not os.path.exists(installer.home) and not os.path.exists(runtime_dir)
    assert Path(f"/proc/{report['pid']}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # ended; ours to reap
    assert removal.uninstall(installer)["changed"] is False


@pytest.mark.slow
def test_an_agents_end_and_upgrade_leave_the_child_alone_and_uninstall_stops_it(
    installer: Installer, manager: FakeManager
) -> None:
    manager.assignments["w1"] = messages.Assignment("w1", messages.WorkerSpec(command="sleep 600", stop_grace_s=2.0))
    put(installer, manager, secret="s3cret")

    def child() -> int:
        reports = manager.beats[-1]["workers"] if manager.beats else []
        return next((one["pid"] or 0 for one in reports if one["state"] in ("starting", "running")), 0)

    first = wait_until(child, what="the child")
    manager.beats.clear()
    assert installer.restart()["changes"] == ["restarted"] and wait_until(child, what="the child again") == first
    installer.stop()
    manager.beats.clear()
    put(installer, manager, secret="another")  # a redeploy that restarts the agent
    assert wait_until(child, what="the adopted child") == first
    removal.uninstall(installer)
    assert not os.path.exists(f"/proc/{first}") and not os.path.exists(installer.home)


def test_an_ensure_that_waited_for_an_uninstall_brings_nothing_back(
    installer: Installer, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(installer, manager, secret="s3cret")
    removal.uninstall(installer)
    with pytest.raises(InstallError, match="no agent is installed"):
        installer.ensure()
    assert not os.path.exists(installer.home)


def test_uninstall_keeps_releases_that_another_host_of_a_shared_home_uses(
    installer: Installer, manager: FakeManager
) -> None:
    put(installer, manager, secret="s3cret")
    other = Path(paths.agent_dir(installer.home, FLEET, "host2"))
    other.mkdir()
    (other / "agent.json").write_text("{}")
    assert removal.uninstall(installer)["home_gone"] is False
    assert release.present(installer.home, bundle.build().sha256)


def test_two_installs_at_once_make_one_agent(installer: Installer, manager: FakeManager) -> None:
    reports: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: reports.append(put(installer, manager, secret="same"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 4 and len({report["pid"] for report in reports}) == 1
    assert sum(report["changed"] for report in reports) == 1


def test_installs_at_once_keep_the_secret_that_the_manager_sent_last(
    installer: Installer, manager: FakeManager
) -> None:
    reported: list[str] = []
    one = bundle.build()

    def fetch_secret(current_sha256: str) -> str:
        reported.append(f"secret-{len(reported)}")
        return reported[-1]

    def install() -> None:
        installer.install(request(manager, one, new_secret=True), lambda: one.data, fetch_secret=fetch_secret)

    threads = [threading.Thread(target=install) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reported) == 4 and installer.config()["secret"] == reported[-1]


@pytest.mark.slow
def test_a_deployment_that_ends_where_a_secret_is_asked_for_leaves_the_host_as_it_was(
    installer: Installer, manager: FakeManager
) -> None:
    """The manager may have ended meanwhile. The next deployment starts at once."""
    put(installer, manager, secret="first")
    one, deadline = bundle.build(), time.monotonic() + 20
    pipe = LocalPipe("host1")
    session = HostSession(pipe, Target("host1", local=True, python=sys.executable), bundle.bootstrap())

    def unreachable(current_sha256: str) -> str:
        raise ConnectionError(current_sha256)

    where = {"fleet_id": FLEET, "host": "host1", "home": installer.home}
    try:
        session.open(deadline)
        with pytest.raises(ConnectionError, match=messages.secret_sha256("first")):
            session.install({**where, **request(manager, one, new_secret=True)}, one.data, deadline, secret=unreachable)
    finally:
        pipe.close()
    assert installer.config()["secret"] == "first"
    assert put(installer, manager, secret="second")["changed"] and installer.config()["secret"] == "second"


def test_a_secret_is_asked_for_only_by_a_request_that_wants_one(installer: Installer, manager: FakeManager) -> None:
    asked: list[str] = []
    put(installer, manager, secret="first")
    one = bundle.build()

    def keep(current_sha256: str) -> str:
        asked.append(current_sha256)
        return ""  # the one that is there is good

    def install(new_secret: bool) -> Any:
        wanted = request(manager, one, new_secret=new_secret)
        return installer.install(wanted, no_bundle, fetch_secret=keep)["changes"]

    assert (install(False), asked) == ([], [])
    assert (install(True), asked) == ([], [messages.secret_sha256("first")])
    assert installer.config()["secret"] == "first"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a//b"])
def test_a_path_that_leaves_the_release_is_refused(tmp_path: Path, name: str) -> None:
    data = _archive(tarfile.TarInfo(name))
    with pytest.raises(InstallError, match="unsafe path"):
        release.unpack(str(tmp_path), hashlib.sha256(data).hexdigest(), data, 0)
    assert os.listdir(tmp_path / "releases") == []


def test_a_link_in_the_bundle_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("remote_agent/link")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    data = _archive(member)
    with pytest.raises(InstallError, match="not a file"):
        release.unpack(str(tmp_path), hashlib.sha256(data).hexdigest(), data, 0)


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="damaged"):
        release.unpack(str(tmp_path), "0" * 64, b"something else", 0)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data: b"no gzip at all", "no gzip file"),
        (lambda data: data[: len(data) // 2], "ends too early"),
    ],
    ids=["not packed", "half of it"],
)
def test_a_bundle_that_was_made_wrong_is_refused_and_leaves_nothing(
    tmp_path: Path, spoil: Callable[[bytes], bytes], why: str
) -> None:
    data = spoil(bundle.build().data)
    with pytest.raises(InstallError, match=why):
        release.unpack(str(tmp_path), hashlib.sha256(data).hexdigest(), data, 0)
    assert os.listdir(tmp_path / "releases") == []


def test_a_bundle_larger_than_any_agent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bundle.build()
    monkeypatch.setattr(release, "MAX_UNPACKED_BYTES", one.unpacked_bytes // 2)
    with pytest.raises(InstallError, match="larger than any agent"):
        release.unpack(str(tmp_path), one.sha256, one.data, one.unpacked_bytes)
    assert os.listdir(tmp_path / "releases") == []


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="no space"):
        release.check_space(str(tmp_path), 2**60)


def test_the_recorded_environment_leaves_out_the_deploying_session() -> None:
    seen = {"PATH": "/bin", "CUDA_HOME": "/opt/cuda", "SSH_CONNECTION": "x", "PROCGUARD_TOKEN": "t", "VIRTUAL_ENV": "v"}
    assert recorded_environment(seen) == {"CUDA_HOME": "/opt/cuda", "PATH": "/bin"}


def test_the_installed_file_runs_by_itself_and_prints_one_json_report(
    installer: Installer, manager: FakeManager
) -> None:
    put(installer, manager, secret="s3cret")
    script = os.path.join(installer.dir, "current", "remote_agent", "install", "__main__.py")
    argv = [sys.executable, "-I", "-S", script, "status", "--dir", installer.dir]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["running"] is True
    assert "s3cret" not in done.stdout


def test_cron_lines_are_written_once_and_removed_without_touching_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table"
    table.write_text("0 4 * * * backup\n")
    _program(tmp_path, "crontab", f"case $1 in -l) cat {table};; -r) rm {table};; -) cat > {table};; esac")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    keeper = keepalive.KeepAlive("/home/a b/%x", "/usr/bin/python3", "fleet/host1")
    assert keeper.install("cron") is True and keeper.install("cron") is False
    lines = table.read_text().splitlines()
    assert lines[0] == "0 4 * * * backup" and len(lines) == 3 and lines[1].startswith("@reboot ")
    assert r"'/home/a b/\%x'" in lines[2] and keeper.installed() == "cron"
    assert keeper.remove() is True and table.read_text() == "0 4 * * * backup\n"


def test_a_systemd_unit_never_kills_a_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    _program(tmp_path, "systemctl", f'echo "$@" >> {calls}')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    keeper = keepalive.KeepAlive("/home/u/.procguard/f/h", "/usr/bin/python3", "f/h")
    assert keeper.install("systemd") is True and keeper.install("systemd") is False
    unit = next((tmp_path / "config").rglob("*.service")).read_text()
    for line in ("KillMode=process", "Delegate=yes", "OOMPolicy=continue", "TasksMax=infinity", "Restart=always"):
        assert line in unit
    assert "daemon-reload" in calls.read_text() and keeper.installed() == "systemd"
    assert keeper.remove() is True and not list((tmp_path / "config").rglob("*.service"))


def test_without_systemd_and_cron_the_reason_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    kind, reason = keepalive.KeepAlive("/d", "/usr/bin/python3", "f/h").choose("auto")
    assert kind == "none" and "systemd: not here" in reason and "no crontab" in reason


@pytest.mark.parametrize("runs", [True, False], ids=["systemd runs", "only its programs are here"])
def test_systemd_is_asked_only_where_it_runs(runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    _program(tmp_path, "systemctl", f'echo "$@" >> {calls}; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(keepalive, "SYSTEMD_RUNS", str(tmp_path if runs else tmp_path / "nowhere"))
    _, reason = keepalive.KeepAlive("/d", "/usr/bin/python3", "f/h").choose("systemd")
    assert calls.exists() is runs and ("no user manager answers" if runs else "systemd: not here") in reason


def _archive(member: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.addfile(member)
    return out.getvalue()


def _program(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
