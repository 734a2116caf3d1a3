"""spec.json: what the agent resolves on its host, so that the runner only executes; and what counts as a change."""

from __future__ import annotations

import os
import pwd
from typing import Any

import pytest

from remote_agent.agent import rlimits as limits
from remote_agent.agent import spec_file
from remote_agent.protocol.messages import (
    Assignment,
    ContainerSpec,
    HealthCheck,
    Hook,
    Limits,
    RestartPolicy,
    TerminalSpec,
    WorkerSpec,
    launch_digest,
)

FULL = {
    "env_file": "x", "venv": "x", "conda": "x", "setup": ["x"], "user": "root", "umask": "027",
    "limits": Limits(nofile=9), "pre_start": [Hook("x")], "gpus": 1, "container": ContainerSpec("x"),
    "tty": TerminalSpec(),
}  # fmt: skip


def resolved(**fields: Any) -> dict[str, Any]:
    return spec_file.resolve(Assignment("w1", WorkerSpec("python train.py", **fields)), "/home/a")


def test_plain_command_needs_nothing_beyond_itself() -> None:
    """No `start`: the runner's fast path, and the format that older runners read."""
    content = resolved()
    assert (content["argv"], content["cwd"], content["error"]) == (["python", "train.py"], "/home/a", "")
    assert "start" not in content


def test_paths_are_relative_to_the_working_directory() -> None:
    start = resolved(working_dir="p", env_file=[".env", "/etc/x"], venv="../v", conda="./c")["start"]
    assert start == {"env_files": ["/home/a/p/.env", "/etc/x"], "venv": "/home/a/v", "conda": "/home/a/p/c"}
    assert resolved(conda="torch")["start"] == {"conda": "torch"}
    assert resolved(venv="~/v")["start"] == {"venv": os.path.expanduser("~/v")}


def test_hooks_are_lines_for_the_shell_or_words() -> None:
    start = resolved(pre_start=[Hook("a && b")], post_stop=[Hook(["c", "d e"], 5)])["start"]
    assert start["pre_start"] == [{"argv": ["/bin/sh", "-c", "a && b"], "shown": "a && b", "timeout_s": 30.0}]
    assert start["post_stop"] == [{"argv": ["c", "d e"], "shown": "c 'd e'", "timeout_s": 5}]


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        (65536, "limits.nofile", 65536), ("4096", "limits.nproc", 4096), ("unlimited", "limits.core", -1),
        (0, "limits.core", 0), ("8G", "limits.memory", 8 * 2**30),
        ("1.5GiB", "limits.memory", 3 * 2**29),
        ("500MB", "limits.fsize", 500 * 2**20), ("64k", "limits.stack", 65536), ("100", "limits.stack", 100),
    ],
)  # fmt: skip
def test_sizes_and_counts(text: Any, where: str, expected: int) -> None:
    assert limits.amount(text, where) == expected


@pytest.mark.parametrize(
    ("text", "where"),
    [("8G", "limits.nofile"), ("-1", "limits.core"), ("", "limits.memory"), ("G", "limits.memory"),
     (True, "limits.core"), ("inf", "limits.memory"),
     ("nan", "limits.memory"), ("8X", "limits.memory"), ("9" * 30, "limits.nofile")],
)  # fmt: skip
def test_what_is_no_size_is_refused_by_name(text: Any, where: str) -> None:
    with pytest.raises(ValueError, match=f"^{where} "):
        limits.amount(text, where)


def test_user_is_resolved_with_groups_and_home_and_its_directory_is_the_default() -> None:
    if os.geteuid() != 0:
        with pytest.raises(ValueError, match="only root can run as another user"):
            spec_file.user("root")
        assert spec_file.user(pwd.getpwuid(os.geteuid()).pw_name) is None
        return
    found = pwd.getpwnam("nobody")
    content = resolved(user="nobody", venv="~/v")
    assert content["cwd"] == found.pw_dir and content["start"]["venv"] == os.path.join(found.pw_dir, "v")
    assert content["start"]["run_as"]["uid"] == found.pw_uid
    assert found.pw_gid in content["start"]["run_as"]["groups"] and 0 not in content["start"]["run_as"]["groups"]


def test_agent_that_is_not_root_cannot_become_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)
    assert resolved(user="root")["error"].startswith("cannot run as user root: the agent runs as nobody")
    assert resolved(user="nobody")["error"] == ""


@pytest.mark.parametrize("name", sorted(FULL))
def test_what_belongs_to_a_start_makes_a_restart_pending(name: str) -> None:
    assert launch_digest(WorkerSpec("x", **{name: FULL[name]})) != launch_digest(WorkerSpec("x"))


@pytest.mark.parametrize(
    "fields",
    [
        {"restart": RestartPolicy("always")}, {"health": [HealthCheck()]}, {"labels": {"a": "b"}}, {"group": "g"},
        {"oneshot": True}, {"post_stop": [Hook("x")]}, {"stop_grace_s": 1.0}, {"evidence_signal": "USR1"},
    ],
)  # fmt: skip
def test_what_applies_at_once_makes_none(fields: dict[str, Any]) -> None:
    assert launch_digest(WorkerSpec("x", **fields)) == launch_digest(WorkerSpec("x"))


def test_digest_of_a_specification_without_the_later_keys_is_as_it_was() -> None:
    """An upgrade of agent or manager makes nothing "restart pending"."""
    assert launch_digest(WorkerSpec("x")) == "ad955ce802c41cfd"
