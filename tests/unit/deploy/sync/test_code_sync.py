"""procguard_sync: local selection, remote result, and files that are never changed. Over real installer sessions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.inventory import model
from procguard.deploy.inventory.code import Sync
from procguard.deploy.session import bundle
from procguard.deploy.session.local import LocalPipe
from procguard.deploy.session.session import HostSession
from procguard.deploy.ssh.target import Target
from procguard.deploy.sync import source
from procguard.deploy.sync.transfer import Brought, CodeSync
from procguard.errors import HostError, InventoryError, UsageError
from tests.waiting import wait_until


class Host:
    """This machine as a host: each `bring` is a separate session, as in a deployment."""

    def __init__(self, home: Path) -> None:
        self.where = {"fleet_id": "f-1", "host": "h", "home": str(home)}

    @contextmanager
    def session(self, beside: bool = False) -> Iterator[HostSession]:
        pipe = LocalPipe("h")
        commands = (lambda command, _deadline: LocalPipe("h", command)) if beside else None
        try:
            session = HostSession(pipe, Target("h", local=True), bundle.bootstrap(), commands)
            session.open(time.monotonic() + 20)
            yield session
        finally:
            pipe.close()

    def bring(self, sync: Sync, *, check: bool = False, under: bool = False, rsync: bool = False) -> Brought:
        with self.session(rsync) as session:
            return CodeSync(check=check, under_running=under).bring(session, sync, self.where)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "home")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    (folder / "pkg").mkdir(parents=True)
    (folder / "train.py").write_text("print(1)\n")
    (folder / "pkg" / "it's 你好.py").write_text("x = 1\n" * 3)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o750)
    (folder / "data").symlink_to("/mnt/data")
    (folder / "empty").mkdir()
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / "model.ckpt").write_bytes(b"\0" * 1000)
    return folder


@pytest.fixture
def sync(project: Path, tmp_path: Path) -> Sync:
    return Sync(str(project), str(tmp_path / "there" / "a folder"), ("*.ckpt",))


def tree(folder: str) -> dict[str, Any]:
    """Everything below it except ProcGuard's record: path -> content, link target or None for a folder."""
    found: dict[str, Any] = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if not name.startswith(".procguard-sync"):
            text = path.read_bytes().decode(errors="replace") if path.is_file() else None
            found[name] = os.readlink(path) if path.is_symlink() else text
    return found


def test_the_folder_arrives_as_it_is_here_without_what_is_excluded(host: Host, project: Path, sync: Sync) -> None:
    brought = host.bring(sync)
    assert brought.status == "changed" and brought.way == "session", brought
    expected = {name: what for name, what in tree(str(project)).items() if ".git" not in name and "ckpt" not in name}
    assert tree(sync.dest) == expected
    assert os.stat(f"{sync.dest}/run.sh").st_mode & 0o777 == 0o750
    again = host.bring(sync)
    assert (again.status, again.text) == ("same", "nothing to do")


def test_only_what_changed_travels_and_what_the_job_wrote_stays(host: Host, project: Path, sync: Sync) -> None:
    host.bring(sync)
    before = os.stat(f"{sync.dest}/run.sh").st_ino
    (project / "train.py").write_text("print(2)\n")
    (project / "new.py").write_text("new\n")
    shutil.rmtree(project / "pkg")
    Path(sync.dest, "results").mkdir()
    Path(sync.dest, "results", "step-1").write_text("weeks of work")
    brought = host.bring(sync)
    assert brought.text == "1 new, 1 changed, 1 removed, 13 B"
    assert set(brought.names) == {"+ new.py", "~ train.py", "- pkg/it's 你好.py"}
    now = tree(sync.dest)
    assert now["train.py"] == "print(2)\n" and now["results/step-1"] == "weeks of work" and "pkg" not in now
    assert os.stat(f"{sync.dest}/run.sh").st_ino == before


def test_what_the_job_changed_is_not_removed_with_the_code(host: Host, project: Path, sync: Sync) -> None:
    (project / "progress.json").write_text("{}")
    host.bring(sync)
    Path(sync.dest, "progress.json").write_text('{"step": 100000}')
    (project / "progress.json").unlink()
    host.bring(sync)
    assert Path(sync.dest, "progress.json").read_text() == '{"step": 100000}'


def test_a_file_changed_there_by_hand_is_brought_back(host: Host, sync: Sync) -> None:
    host.bring(sync)
    Path(sync.dest, "train.py").write_text("print(9)\n")
    assert host.bring(sync).names == ("~ train.py",)
    assert Path(sync.dest, "train.py").read_text() == "print(1)\n"
    os.chmod(f"{sync.dest}/run.sh", 0o600)
    assert host.bring(sync).names == ("~ run.sh",)
    assert os.stat(f"{sync.dest}/run.sh").st_mode & 0o777 == 0o750


def test_check_says_what_it_would_bring_and_makes_nothing(host: Host, sync: Sync) -> None:
    would = host.bring(sync, check=True)
    assert would.status == "would_change" and "+ train.py" in would.names and "would copy" in would.text
    assert not Path(sync.dest).exists()


@pytest.fixture
def job(sync: Sync, host: Host) -> Iterator[subprocess.Popen[bytes]]:
    """A worker's process that runs in the folder."""
    host.bring(sync)
    environment = {**os.environ, "PROCGUARD_WORKER_ID": "train-1"}
    with subprocess.Popen(["sleep", "60"], cwd=sync.dest, env=environment) as process:
        wait_until(lambda: os.readlink(f"/proc/{process.pid}/cwd") == sync.dest, what="the job")
        yield process
        process.kill()


def test_a_folder_in_which_a_job_runs_is_left_alone_unless_asked(
    host: Host, project: Path, sync: Sync, job: subprocess.Popen[bytes]
) -> None:
    (project / "train.py").write_text("print(2)\n")
    held = host.bring(sync)
    assert held.status == "in_use" and held.users == ("train-1",)
    assert "1 changed" in held.text and "train-1 run there" in held.text
    assert Path(sync.dest, "train.py").read_text() == "print(1)\n"
    assert host.bring(sync, under=True).status == "changed"
    assert Path(sync.dest, "train.py").read_text() == "print(2)\n"
    assert host.bring(sync).status == "same"  # and a job in an up to date folder is no trouble


def test_nothing_is_written_through_a_link_that_stands_there(host: Host, sync: Sync, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Path(sync.dest).mkdir(parents=True)
    Path(sync.dest, "pkg").symlink_to(outside)
    with pytest.raises(HostError, match=r"another file is in the way: .*exclude"):
        host.bring(sync)
    assert list(outside.iterdir()) == []
    Path(sync.dest, "pkg").unlink()
    assert host.bring(sync).status == "changed"


def test_a_file_may_become_a_folder_and_a_folder_a_file(host: Host, project: Path, sync: Sync) -> None:
    host.bring(sync)
    shutil.rmtree(project / "pkg")
    (project / "pkg").write_text("a file now")
    (project / "train.py").unlink()
    (project / "train.py").mkdir()
    (project / "train.py" / "x").write_text("x")
    assert host.bring(sync).status == "changed"
    now = tree(sync.dest)
    assert now["pkg"] == "a file now" and now["train.py/x"] == "x"


@pytest.mark.parametrize("dest", ["/", "/etc", "~", "/root", "/home", "/tmp"])
def test_a_place_that_is_nobodys_project_is_refused(host: Host, project: Path, dest: str) -> None:
    with pytest.raises(HostError, match="no folder of a project's own"):
        host.bring(Sync(str(project), dest))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a//b", ".procguard-sync/record.json", ""])
def test_a_list_that_names_a_place_outside_is_refused(host: Host, tmp_path: Path, name: str) -> None:
    import zlib

    manifest = {"files": {name: [0o644, 1, "0" * 64]}, "links": {}, "folders": []}
    packed = zlib.compress(json.dumps(manifest).encode())
    deadline = time.monotonic() + 20
    with host.session() as session:
        session.ask({"op": "code", **host.where, "dest": str(tmp_path / "there"), "digest": "x"}, deadline)
        with pytest.raises(HostError, match="unsafe path"):
            session.ask({"op": "code_plan", **host.where, "bytes": len(packed)}, deadline, [packed])
    assert not (tmp_path / "there").exists()


def test_code_that_changes_while_it_travels_is_refused_and_nothing_is_changed(
    host: Host, project: Path, sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.bring(sync)
    before = tree(sync.dest)
    (project / "train.py").write_text("print(2)\n")
    pack = source.Pack.__init__

    def late(self: source.Pack, *arguments: Any) -> None:
        (project / "train.py").write_text("print(3)\n")
        pack(self, *arguments)

    monkeypatch.setattr(source.Pack, "__init__", late)
    with pytest.raises(HostError, match=r"train.py differs from the announced file.*deploy again"):
        host.bring(sync)
    assert tree(sync.dest) == before
    monkeypatch.undo()
    assert host.bring(sync).status == "changed"


def test_rsync_is_used_where_both_sides_have_it_and_it_pays(host: Host, project: Path, sync: Sync) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("no rsync here")
    body = os.urandom(200_000)
    (project / "big one.bin").write_bytes(body)
    brought = host.bring(sync, rsync=True)
    assert brought.status == "changed" and brought.way == "rsync", brought
    assert tree(sync.dest)["train.py"] == "print(1)\n"
    assert Path(sync.dest, "big one.bin").read_bytes() == body
    (project / "big one.bin").write_bytes(body + b"more")
    assert host.bring(sync, rsync=True).way == "rsync"
    assert Path(sync.dest, "big one.bin").read_bytes() == body + b"more"
    (project / "train.py").write_text("small")
    assert host.bring(sync, rsync=True).way == "session"


def test_where_rsync_fails_the_session_brings_it(
    host: Host, project: Path, sync: Sync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "big.bin").write_bytes(os.urandom(100_000))
    broken = tmp_path / "bin" / "rsync"
    broken.parent.mkdir()
    broken.write_text(f"#!{sys.executable}\nraise SystemExit('broken')\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    brought = host.bring(sync, rsync=True)
    assert brought.status == "changed" and brought.way == "session"
    assert Path(sync.dest, "big.bin").stat().st_size == 100_000


@pytest.mark.parametrize(
    ("name", "folder", "patterns", "expected"),
    [
        ("a/b.pt", False, ["*.pt"], True),
        ("data", True, ["data/"], True),
        ("data", False, ["data/"], False),
        ("x/out", True, ["/out"], False),
        ("out", True, ["/out"], True),
        ("a/b/c.py", False, ["a/b"], False),
        ("a/b", True, ["a/b"], True),
    ],
)
def test_exclude_is_written_as_for_rsync(name: str, folder: bool, patterns: list[str], expected: bool) -> None:
    assert source.excluded(name, folder, patterns) is expected


def test_the_inventory_says_what_goes_where(tmp_path: Path) -> None:
    path = tmp_path / "i.yaml"
    path.write_text(
        "all:\n  vars: {team: vision, procguard_sync: {src: code, dest: '~/{{ team }}', exclude: '*.pt'}}\n"
        "  hosts:\n    a:\n    b: {procguard_sync: [{src: /srv/x}, {src: /srv/y, dest: /data/y}]}\n"
    )
    hosts = model.load(path).hosts
    assert hosts["a"].syncs == (Sync(str(tmp_path / "code"), "~/vision", ("*.pt",)),)
    assert hosts["b"].syncs == (Sync("/srv/x", "~/x"), Sync("/srv/y", "/data/y"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("~/project", "not a mapping with src"),
        ("{src: a, dst: b}", "unknown key dst"),
        ("{src: a, dest: relative}", "an absolute path on the host"),
        ("{src: a, dest: ~/../x}", "an absolute path on the host"),
        ("{src: a, exclude: {a: b}}", "exclude"),
        ("[{src: a, dest: ~/x}, {src: b, dest: ~/x}]", "two entries go to ~/x"),
    ],
)
def test_mistakes_are_reported_before_any_connection(tmp_path: Path, value: str, said: str) -> None:
    path = tmp_path / "i.yaml"
    path.write_text(f"all: {{hosts: {{a: {{procguard_sync: {value}}}}}}}")
    with pytest.raises(InventoryError, match=said):
        model.load(path)


def test_a_source_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*nosuch; correct src"):
        source.scan(Sync(str(tmp_path / "nosuch"), "~/x"))


def test_a_file_that_somebody_else_brought_is_taken_as_the_session_takes_it(
    host: Host, project: Path, sync: Sync, tmp_path: Path, job: subprocess.Popen[bytes]
) -> None:
    """`remote_agent.install code`, as the playbooks call it: a check first; only differences, and not under a running
    job unless requested."""
    from procguard.deploy.install import ansible

    untouched = os.stat(f"{sync.dest}/run.sh").st_ino
    (project / "train.py").write_text("print(2)\n")
    inventory_file = tmp_path / "i.yaml"
    declared = {"src": sync.src, "dest": sync.dest, "exclude": list(sync.exclude)}
    inventory_file.write_text(json.dumps({"all": {"hosts": {"h": {"procguard_sync": declared}}}}))
    begun = {"inventory": str(inventory_file), "reply": {"hosts": {"h": {}}}}
    (tmp_path / "deployment.json").write_text(json.dumps(begun))
    (folder,) = ansible.code("h", tmp_path)["folders"]

    def code(*options: str) -> dict[str, Any]:
        words = ["--dest", folder["dest"], "--digest", folder["digest"], "--home", host.where["home"]]
        command = [
            sys.executable,
            "-m",
            "remote_agent.install.__main__",
            "code",
            *words,
            "--fleet",
            "f-1",
            "--host",
            "h",
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return dict(json.loads(done.stdout))

    archive = str(tmp_path / folder["archive"])
    described = code()
    assert (described["same"], described["wanted"], described["users"]) == (False, False, ["train-1"])
    assert code("--archive", archive)["changed"] is False
    assert Path(sync.dest, "train.py").read_text() == "print(1)\n"
    assert code("--archive", archive, "--under-running")["changed"] is True
    assert Path(sync.dest, "train.py").read_text() == "print(2)\n"
    assert os.stat(f"{sync.dest}/run.sh").st_ino == untouched
    assert code()["same"] is True and host.bring(sync).status == "same"
