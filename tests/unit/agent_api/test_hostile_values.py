"""Any inventory: a value stays one word of a command, and a host never gets access to the operator's keys."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import fabric
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from procguard.deploy.session.session import SUDO_ASKS, remote_command
from procguard.deploy.ssh import connection as ssh
from procguard.deploy.ssh.target import USER_NAME, Target
from procguard.errors import HostError
from tests.sizes import examples

HOSTILE = [
    "a; touch broken",
    "$(touch broken)",
    "`id`",
    "a b",
    "-oProxyCommand=id",
    "a\nb",
    "'",
    '"',
    "a'b",
    "%h",
    "*",
    "~",
]
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=20)
BOUNDED = settings(
    max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def fake_sudo(tmp_path: Path) -> Path:
    """A sudo that prints its arguments, one per line."""
    program = tmp_path / "bin" / "sudo"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    program.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("user", HOSTILE)
def test_a_user_s_name_that_is_more_than_a_word_is_refused(user: str) -> None:
    with pytest.raises(HostError, match="names no user"):
        remote_command(Target("gpu01", become_user=user))


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(user=st.from_regex(USER_NAME, fullmatch=True))
@example(user="svc$")
def test_a_user_s_name_reaches_sudo_as_it_is(fake_sudo: Path, user: str) -> None:
    environment = {"PATH": f"{fake_sudo / 'bin'}:{os.environ['PATH']}"}
    command = remote_command(Target("gpu01", become_user=user))
    done = subprocess.run(
        ["sh", "-c", command], cwd=fake_sudo, env=environment, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    assert words[:7] == ["-k", "-S", "-p", SUDO_ASKS, "-H", "-u", user]
    assert sorted(os.listdir(fake_sudo)) == ["bin"]


@BOUNDED
@given(host=TEXT, user=TEXT)
@example(host="10.0.0.1 -o x", user="a b")
@example(host="'; touch broken; '", user="$(id)")
def test_a_proxy_command_has_each_value_as_one_word(host: str, user: str) -> None:
    connection = type("Connection", (), {"host": host, "port": 2222, "user": user})()
    reported = ssh._filled("nc -x proxy %h %p --user=%r --name %n 100%%", Target("gpu01"), connection)  # type: ignore[arg-type]
    assert shlex.split(reported.replace("%%", "%")) == [
        word for word in ("nc", "-x", "proxy", host.replace("%%", "%"), "2222", f"--user={user}".replace("%%", "%"))
    ] + ["--name", "gpu01", "100%"]


@BOUNDED
@given(address=TEXT, user=TEXT, key=TEXT, jump=TEXT)
def test_the_suggested_command_is_what_it_says(address: str, user: str, key: str, jump: str) -> None:
    line = ssh.ssh_command(Target("gpu01", address, 22, user, key_filename=key, proxy_jump=jump))
    assert shlex.split(line) == ["ssh", "-p", "22", "-i", key, "-J", jump, f"{user}@{address}"]


def test_no_agent_is_forwarded_whatever_the_configuration_of_ssh_says(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Host *\n  ForwardAgent yes\n")
    config = fabric.Config(runtime_ssh_path=str(tmp_path / "config"))
    connection = ssh.StrictConnection(Target("web", "10.255.255.1", 22, "root"), config, 5.0)
    assert connection.ssh_config["forwardagent"] == "yes"
    assert connection.forward_agent is False


# --------------------------------------------------------------------------------- what enters a ProxyCommand

RUNS = "x;touch${IFS}$MARK;"


@pytest.mark.parametrize("way", ["inventory", "ssh_config", "match_exec", "jump", "jump_in_ssh_config"])
@pytest.mark.parametrize("where", ["host", "user", "alias"])
def test_a_host_s_names_run_no_code_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, where: str) -> None:
    """A typical ProxyCommand with a shell in it: OpenSSH inserts %h, %r and %n unquoted."""
    monkeypatch.setenv("MARK", str(tmp_path / "ran"))
    shell = 'sh -c "echo %h %r %n >/dev/null; exit 1"'
    configs = {
        "ssh_config": f"Host *\n  ProxyCommand {shell.replace('%n', '')}\n",
        "match_exec": f"Match exec '{shell}'\n  Compression no\n",
        "jump_in_ssh_config": f"Host *\n  ProxyCommand {shell.replace('%n', '')}\n",
    }
    config_file = tmp_path / "config"
    config_file.write_text(configs.get(way, ""))
    values = {"host": "gpu01", "hostname": "127.0.0.1", "user": "me", "port": 1}
    values |= {"host": {"hostname": RUNS}, "user": {"user": RUNS}, "alias": {"host": RUNS}}[where]
    if way == "inventory":
        values["proxy_command"] = shell
    if way.startswith("jump"):
        hop = f"{values['user']}@{values['hostname']}:1"
        values |= {"hostname": "127.0.0.1", "user": "me", "proxy_jump": hop}
    config = fabric.Config(runtime_ssh_path=str(config_file))
    with pytest.raises(HostError) as refused:
        ssh.connect(Target(**values), config, time.monotonic() + 5, 2.0)  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()
    if where != "alias" or way == "inventory":
        assert refused.value.code == "bad_name", str(refused.value)


@pytest.mark.parametrize(
    ("hostname", "user"),
    [("10.0.0.7", "ml"), ("gpu-01.example.org", "svc$"), ("fe80::1%eth0", "first.last"), ("::1", "DOMAIN\\me"),
     ("büro", "me@realm"), ("gpu_1", "me%host%22"), ("", "")],
)  # fmt: skip
def test_names_that_people_have_are_taken(hostname: str, user: str) -> None:
    target = Target("gpu01", hostname=hostname, user=user)
    target.check_names()
    assert (target.hostname, target.user) == (hostname, user)


@pytest.mark.parametrize(
    "text",
    [one for one in HOSTILE if one not in ("%h",)] + [RUNS, "a\u202eb", "a\x1b[2J", "-J", "", "a|b", "a&b", "x" * 300],
)
def test_other_names_are_refused_in_one_line_without_what_steers_a_terminal(text: str) -> None:
    for target in (Target("gpu01", hostname=text or " "), Target("gpu01", user=text or " ")):
        with pytest.raises(HostError) as refused:
            target.check_names()
        assert refused.value.message.isprintable() and refused.value.next_step
