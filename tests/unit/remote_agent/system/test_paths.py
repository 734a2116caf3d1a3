"""The on-host layout, the choice of a runtime directory, and files that are never torn."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys

import pytest

from remote_agent.protocol.messages import directory_name
from remote_agent.system import paths


def test_ids_never_become_paths():
    """A worker's directory is its readable name and a digest, below the agent's directory."""
    directory = paths.worker_dir("/home/u/.procguard/f1/gpu01", "..")
    assert os.path.dirname(directory) == "/home/u/.procguard/f1/gpu01/workers"
    assert "/.." not in directory and paths.worker_dir("/a", "A") != paths.worker_dir("/a", "a")


def test_home_follows_the_environment(monkeypatch):
    """PROCGUARD_HOME, or ~/.procguard; always absolute."""
    monkeypatch.setenv("PROCGUARD_HOME", "~/elsewhere")
    assert paths.procguard_home() == os.path.expanduser("~/elsewhere")
    monkeypatch.delenv("PROCGUARD_HOME")
    assert paths.procguard_home() == os.path.expanduser("~/.procguard")


def test_launchers_of_one_host_are_apart():
    """Each hand-started launcher is an agent with a directory and a runtime directory of its own."""
    assert paths.launcher_dir("/h", "f", "host", "w1") == "/h/f/host/launchers/" + directory_name("w1")
    names = {paths.runtime_name("/h", "f", "host"), paths.runtime_name("/h", "f", "host", "w1")}
    names |= {paths.runtime_name("/h", "f", "other"), paths.runtime_name("/h2", "f", "host")}
    assert len(names) == 4 and all(len(name) == 12 for name in names)


def test_locks_and_sockets_of_a_worker(tmp_path):
    """Named by the digest that ends the directory's name, within 107 bytes."""
    worker = paths.worker_dir(str(tmp_path), "w1")
    digest = worker.rpartition("-")[2]
    assert paths.runner_lock("/run/p", worker) == f"/run/p/{digest}.lock"
    assert paths.runner_socket("/run/p", worker + "/") == f"/run/p/{digest}.sock"
    with pytest.raises(ValueError, match="longer than 107 bytes"):
        paths.runner_socket("/run/" + "x" * 100, worker)


def test_attempts_on_disk(tmp_path):
    """Ascending, each once, whatever else lies there."""
    assert paths.attempts_on_disk(str(tmp_path)) == []
    os.mkdir(paths.attempts_dir(str(tmp_path)))
    for name in ("10.log", "2.log", "2.exit", "2.exit.99.tmp", "3.err", "notes.txt"):
        (tmp_path / "attempts" / name).touch()
    assert paths.attempts_on_disk(str(tmp_path)) == [2, 3, 10]


# ------------------------------------------------------------------------------------------- runtime directory


@pytest.fixture
def candidates(tmp_path, monkeypatch):
    bases = [str(tmp_path / "first"), str(tmp_path / "second")]
    monkeypatch.setattr(paths, "_runtime_candidates", lambda uid: bases)
    return bases


def test_runtime_dir_is_private_and_stable(candidates):
    """0700, and the same answer every time."""
    first = paths.choose_runtime_dir("/h", "f", "host")
    assert first == paths.choose_runtime_dir("/h", "f", "host")
    assert first == os.path.join(candidates[0], paths.runtime_name("/h", "f", "host"))
    assert stat.S_IMODE(os.stat(first).st_mode) == stat.S_IMODE(os.stat(candidates[0]).st_mode) == 0o700


def test_a_link_in_the_way_is_refused_and_the_next_candidate_taken(candidates, tmp_path):
    """Another user's link in /tmp must not determine the location of the sockets."""
    (tmp_path / "trap").mkdir()
    os.symlink(tmp_path / "trap", candidates[0])
    assert paths.choose_runtime_dir("/h", "f", "host").startswith(candidates[1])
    assert os.listdir(tmp_path / "trap") == []


def test_somebody_elses_directory_is_refused(candidates, monkeypatch):
    """Another owner: an error that names both and what to do, when no candidate is left."""
    for base in candidates:
        os.mkdir(base, 0o700)
    owner = os.getuid()
    monkeypatch.setattr(paths, "SHARED", ())
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(
        paths.UnsafeDirectory, match=f"belongs to uid {owner}, not to uid {owner + 1}; remove or rename"
    ):
        paths.choose_runtime_dir("/h", "f", "host")


def test_where_every_known_name_is_taken_it_gets_one_that_nobody_can_know(candidates, tmp_path, monkeypatch):
    """Squatting stops no agent: the directory is recorded, and kept as long as this user owns it."""
    for base in candidates:
        open(base, "w").close()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr(paths, "SHARED", (str(shared),))
    first = paths.choose_runtime_dir("/h", "f", "host")
    assert re.fullmatch(rf"{shared}/procguard-{os.getuid()}-[0-9a-f]{{16}}/[0-9a-f]{{12}}", first)
    assert paths.keep_runtime_dir(first, "/h", "f", "host") == first
    os.rmdir(first)
    assert paths.keep_runtime_dir(first, "/h", "f", "host") == first, "cleaned away, it is made again"
    os.rmdir(first)
    os.rmdir(os.path.dirname(first))
    open(os.path.dirname(first), "w").close()
    assert paths.keep_runtime_dir(first, "/h", "f", "host") != first
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777


def test_a_place_that_is_there_already_is_not_left_for_a_better_one(candidates):
    """Runners of an earlier release depend on its locks."""
    name = paths.runtime_name("/h", "f", "host")
    os.mkdir(candidates[1], 0o700)
    os.mkdir(os.path.join(candidates[1], name), 0o700)
    assert paths.choose_runtime_dir("/h", "f", "host") == os.path.join(candidates[1], name)


def test_a_directory_of_everybody_s_is_neither_used_nor_closed(tmp_path):
    tmp_path.chmod(0o1777)
    with pytest.raises(paths.UnsafeDirectory, match="is writable by every user"):
        paths.ensure_private_dir(str(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777
    tmp_path.chmod(0o700)


def test_open_modes_are_closed(candidates):
    """A directory of this user that is too open gets strict permissions instead of being trusted as it is."""
    os.mkdir(candidates[0])
    os.chmod(candidates[0], 0o777)
    paths.choose_runtime_dir("/h", "f", "host")
    assert stat.S_IMODE(os.stat(candidates[0]).st_mode) == 0o700


def test_run_user_only_for_who_lingers(monkeypatch):
    """Without linger, /run/user/<uid> and every lock in it vanish at log-out."""
    monkeypatch.setattr(paths, "_lingers", lambda uid: False)
    assert paths._runtime_candidates(1000)[0] == "/tmp/procguard-1000"
    assert paths._runtime_candidates(0)[0] == "/run/procguard", "nobody else can take a name there first"
    monkeypatch.setattr(paths, "_lingers", lambda uid: True)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert paths._runtime_candidates(1000)[0] == "/run/user/1000/procguard"


# -------------------------------------------------------------------------------------------------------- files


def test_write_is_whole_private_and_leaves_nothing_else(tmp_path):
    """Replaced by rename; 0600; no temporary file stays."""
    path = str(tmp_path / "f.json")
    paths.write_json(path, {"a": 1})
    paths.write_json(path, {"a": "ü"}, durable=True)
    assert paths.read_json(path) == {"a": "ü"}
    assert os.listdir(tmp_path) == ["f.json"] and stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    """A full disk leaves no partial file."""
    path = str(tmp_path / "f.json")
    paths.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        paths.write_json(path, {"a": 2})
    monkeypatch.undo()
    assert paths.read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["f.json"]


def test_missing_and_damaged_files(tmp_path):
    """A missing file is None; invalid JSON is an error that names the file."""
    assert paths.read_json(str(tmp_path / "none")) is None
    (tmp_path / "torn").write_text('{"a"')
    with pytest.raises(ValueError, match="torn is not JSON"):
        paths.read_json(str(tmp_path / "torn"))


def test_the_runner_needs_no_heavy_module():
    """Memory and processor time of each start: what the runner imports must not grow by accident."""
    heavy = {"dataclasses", "typing", "hashlib", "subprocess", "shlex", "random", "tempfile", "threading", "logging",
             "inspect", "http", "asyncio", "pathlib", "traceback", "datetime", "argparse", "socket",
             "selectors", "re", "enum", "functools", "collections", "json", "ctypes", "signal", "types"}  # fmt: skip
    script = "import sys; sys.path.insert(0, '.'); import remote_agent.runner.start; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()
