"""Ways to log in, against a real sshd of the current user: encrypted keys, ssh-agent, IdentitiesOnly, jumps, sudo."""

from __future__ import annotations

import os
import pty
import select
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fabric
import pytest

from procguard.deploy.install.helper_client import SshHelper
from procguard.deploy.session.connector import Connector
from procguard.deploy.session.local import LocalPipe
from procguard.deploy.session.session import SUDO_DONE, become, remote_command
from procguard.deploy.ssh import connection as ssh
from procguard.deploy.ssh.credentials import HostSecrets, LoginCredentials
from procguard.deploy.ssh.target import Target, parse_ssh_args, to_dict
from procguard.errors import HostError, HostUnreachable, UsageError
from tests.unit.deploy.ssh.test_ssh import failure
from tests.unit.one_sshd import Server

PASSPHRASE = "correct horse"
REPOSITORY = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without keys and without ssh-agent."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for name in [*os.environ]:
        if name.startswith("PROCGUARD_"):
            monkeypatch.delenv(name)
    return tmp_path / "home"


@pytest.fixture
def locked(server: Server, tmp_path: Path) -> Target:
    """The same host; its key has a passphrase."""
    key = tmp_path / "locked_key"
    shutil.copy(server.target.key_filename, key)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", key], check=True, capture_output=True)
    return replace(server.target, key_filename=str(key))


@pytest.fixture
def ssh_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    socket = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        yield socket
    finally:
        process.terminate()
        process.wait()


def log_in(target: Target, credentials: LoginCredentials | None = None, config: Any = None) -> None:
    connection = ssh.connect(
        target,
        config or fabric.Config(),
        time.monotonic() + 15,
        credentials=credentials or LoginCredentials(environ={}),
    )
    assert connection.transport.is_authenticated()
    ssh.close(connection)


def test_a_key_with_a_passphrase_is_unlocked_once_for_all_hosts(locked: Target) -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return PASSPHRASE

    credentials = LoginCredentials(ask=ask, environ={})
    for name in ("one", "two"):
        log_in(replace(locked, host=name), credentials)
    assert len(asked) == 1 and locked.key_filename in asked[0]


def test_a_passphrase_from_the_inventory_or_a_file_needs_nobody(locked: Target, tmp_path: Path) -> None:
    log_in(locked, LoginCredentials({locked.host: HostSecrets(passphrase=PASSPHRASE)}, environ={}))
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE + "\n")
    file.chmod(0o600)
    log_in(locked, LoginCredentials(environ={"PROCGUARD_SSH_PASSPHRASE_FILE": str(file)}))


def test_a_locked_key_that_nobody_opens_is_named_with_what_to_do(locked: Target) -> None:
    for credentials in (LoginCredentials(environ={}), LoginCredentials(environ={"PROCGUARD_SSH_PASSPHRASE": "wrong"})):
        with pytest.raises(HostUnreachable) as caught:
            log_in(locked, credentials)
        assert caught.value.code == "auth"
        assert f"the key {locked.key_filename} needs a passphrase" in caught.value.message
        assert f"ssh-add {locked.key_filename}" in caught.value.next_step


def test_the_usual_key_is_unlocked_too(locked: Target, home: Path) -> None:
    (home / ".ssh").mkdir(mode=0o700)
    shutil.copy(locked.key_filename, home / ".ssh" / "id_ed25519")
    usual = replace(locked, key_filename="")
    log_in(usual, LoginCredentials(environ={"PROCGUARD_SSH_PASSPHRASE": PASSPHRASE}))


def test_ssh_agent_spares_the_question(locked: Target, ssh_agent: Path, server: Server) -> None:
    subprocess.run(["ssh-add", "-q", server.target.key_filename], check=True, capture_output=True)
    log_in(locked)
    log_in(replace(locked, key_filename=""))


def test_identities_only_takes_the_named_key_from_an_agent_that_holds_too_many(
    locked: Target, ssh_agent: Path, server: Server, tmp_path: Path
) -> None:
    """sshd closes the connection after six keys; the correct one would be the ninth."""
    for number in range(8):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / f"k{number}"], check=True)
        subprocess.run(["ssh-add", "-q", tmp_path / f"k{number}"], check=True, capture_output=True)
    subprocess.run(["ssh-add", "-q", server.target.key_filename], check=True, capture_output=True)
    with pytest.raises(HostUnreachable):
        log_in(locked)
    shutil.copy(server.target.key_filename + ".pub", locked.key_filename + ".pub")
    log_in(replace(locked, identities_only=True))
    config = tmp_path / "config"
    config.write_text("Host *\n  IdentitiesOnly yes\n")
    log_in(locked, config=fabric.Config(runtime_ssh_path=str(config)))


def test_a_configuration_of_its_own_says_how_a_host_is_reached(server: Server, tmp_path: Path) -> None:
    """ansible_ssh_common_args: -F FILE"""
    there = server.target
    config = tmp_path / "config"
    config.write_text(
        f"Host alias\n  HostName 127.0.0.1\n  Port {there.port}\n  User {there.user}\n"
        f"  IdentityFile {there.key_filename}\n  UserKnownHostsFile {there.known_hosts}\n"
    )
    Connector(LoginCredentials(environ={})).check(Target("alias", ssh_config=str(config)), time.monotonic() + 10)
    with pytest.raises(UsageError, match="there is no SSH configuration"):
        Connector(LoginCredentials(environ={})).check(Target("alias", ssh_config="/nowhere"), time.monotonic() + 10)


def with_key(there: Target, tmp_path: Path) -> fabric.Config:
    config = tmp_path / "jump_config"
    config.write_text(f"Host 127.0.0.1\n  IdentityFile {there.key_filename}\n")
    return fabric.Config(runtime_ssh_path=str(config))


@pytest.mark.parametrize("jumps", [1, 2])
def test_one_and_two_jumps_are_really_taken(server: Server, tmp_path: Path, jumps: int) -> None:
    there = server.target
    way = ",".join([f"{there.user}@127.0.0.1:{there.port}"] * jumps)
    before = server.log.read_text().count("Accepted publickey")
    log_in(replace(there, proxy_jump=way), config=with_key(there, tmp_path))
    assert server.log.read_text().count("Accepted publickey") == before + jumps + 1


def test_a_proxy_command_knows_the_port_and_the_user(server: Server, tmp_path: Path) -> None:
    there, note = server.target, tmp_path / "note"
    script = tmp_path / "through.py"
    script.write_text(
        "import os, socket, sys, threading\n"
        f"open({str(note)!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        "way = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def back():\n    while data := way.recv(65536): os.write(1, data)\n"
        "threading.Thread(target=back, daemon=True).start()\n"
        "while data := os.read(0, 65536): way.sendall(data)\n"
    )
    log_in(replace(there, proxy_command=f"python3 {script} %h %p %r"))
    assert note.read_text() == f"127.0.0.1 {there.port} {there.user}"


def test_a_jump_host_that_refuses_us_is_named_as_such(server: Server, tmp_path: Path) -> None:
    there = server.target
    way = f"nobody-there@127.0.0.1:{there.port}"
    error = failure(replace(there, proxy_jump=way), with_key(there, tmp_path))
    assert error.code == "jump_auth" and error.message.startswith(
        "host1: cannot connect through its jump host: 127.0.0.1:"
    )
    assert "login as nobody-there was refused" in error.message


def test_a_target_that_its_jump_host_cannot_reach_is_reported_as_that(server: Server, tmp_path: Path) -> None:
    there = server.target
    way = f"{there.user}@127.0.0.1:{there.port}"
    error = failure(replace(there, hostname="127.0.0.1", port=1, proxy_jump=way), with_key(there, tmp_path))
    assert error.code == "jump" and "can't connect to 127.0.0.1 port 1" in error.message


def test_the_managers_own_ssh_says_what_it_lacks(locked: Target) -> None:
    helper = SshHelper()
    try:
        result = helper.check(locked.host, to_dict(locked), 10.0)
        assert not result.ok and "needs a passphrase" in result.reason
    finally:
        helper.close()


def test_the_managers_own_ssh_opens_a_key_whose_passphrase_it_was_started_with(
    locked: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROCGUARD_SSH_PASSPHRASE", PASSPHRASE)
    helper = SshHelper()
    try:
        assert helper.check(locked.host, to_dict(locked), 10.0).ok
    finally:
        helper.close()


# ------------------------------------------------------------------------------------------------------------ sudo

SUDO = """#!/bin/sh
# A sudo that wants "right" unless told otherwise. argv: -k -S -p PROMPT -H -u USER -- command...
[ "$1 $2 $3" = "-k -S -p" ] || exit 9
prompt=$4; user=$7; shift 8
[ "$user" = {user} ] || {{ echo "sudo: unknown user $user" >&2; exit 1; }}
tries=0
while [ -n "{password}" ]; do
    printf %s "$prompt" >&2
    IFS= read -r given || {{ echo "sudo: no password was provided" >&2; exit 1; }}
    [ "$given" = "{password}" ] && break
    tries=$((tries + 1)); echo "Sorry, try again." >&2
    [ $tries -lt 3 ] || exit 1
done
exec "$@"
"""


def sudo_that(wants: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    program = folder / "bin" / "sudo"
    program.parent.mkdir()
    program.write_text(SUDO.format(user="builder", password=wants))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return Target("here", local=True, become_user="builder")


@pytest.mark.parametrize("wants", ["", "right", "ri ght'\"\\n$x"])
def test_sudo_gets_its_password_only_when_it_asks(wants: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = sudo_that(wants.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$"), tmp_path, monkeypatch)
    deadline = time.monotonic() + 20
    with Connector(LoginCredentials(become_password=wants or "unused", environ={})).session(
        target, deadline
    ) as session:
        where = {"fleet_id": "f", "host": "here", "home": str(tmp_path / "h o'me")}
        assert session.hello(where, deadline)["installed"] is False


@pytest.mark.parametrize(
    ("given", "said"), [("", "asks for a password"), ("wrong", "refused the password")]
)  # fmt: skip
def test_a_password_that_sudo_refuses_is_tried_once_and_reported(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = sudo_that("right", tmp_path, monkeypatch)
    deadline = time.monotonic() + 20
    with (
        pytest.raises(HostError, match=said) as caught,
        Connector(LoginCredentials(become_password=given, environ={})).session(target, deadline),
    ):
        pass
    assert caught.value.code == "become" and "--ask-become-pass" in caught.value.next_step
    assert time.monotonic() < deadline - 10


def test_what_sudo_says_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = replace(sudo_that("", tmp_path, monkeypatch), become_user="stranger")
    with pytest.raises(HostError, match=r"sudo to stranger failed .*unknown user stranger"):
        pipe = LocalPipe("here", remote_command(target))
        try:
            become(pipe, target, "x", time.monotonic() + 10)
        finally:
            pipe.close()
    assert SUDO_DONE in remote_command(target) and "'" not in remote_command(target)[12:-1]


# ------------------------------------------------------------------------------------------------ words of an inventory


def test_what_an_inventory_sets_for_ssh_is_followed_or_named() -> None:
    fields, ignored = parse_ssh_args(
        "-F ~/conf -o IdentitiesOnly=yes -o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=5 -4 "
        '-o ProxyCommand="ssh -W %h:%p -q me@bastion" -o StrictHostKeyChecking=yes -o BindAddress=10.0.0.1 -D 1080'
    )
    assert fields == {
        "ssh_config": "~/conf", "identities_only": True, "proxy_command": "ssh -W %h:%p -q me@bastion",
    }  # fmt: skip
    assert ignored[0] == "bindaddress=10.0.0.1" and "-D" in ignored


def test_a_sudo_that_wants_a_password_is_no_way_in_for_the_managers_own_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for a probe nor for a start: nothing is known about the agent there."""
    target = sudo_that("right", tmp_path, monkeypatch)
    helper = SshHelper()
    try:
        checked = helper.check("here", to_dict(target), 10.0)
        ensured = helper.ensure_agent("here", to_dict(target), fleet_id="f", deadline_s=10.0)
    finally:
        helper.close()
    for result in (checked, ensured):
        assert (result.ok, result.agent) == (False, "unknown") and "asks for a password" in result.reason


def test_a_password_file_that_others_can_read_is_reported_of_each_host_until_it_is_corrected(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager was started with it: its SSH helper continues, and every other log-in method works afterwards."""
    file = tmp_path / "password"
    file.write_text("x\n")
    file.chmod(0o644)
    monkeypatch.setenv("PROCGUARD_SSH_PASSWORD_FILE", str(file))
    helper = SshHelper()
    try:
        for _ in range(2):
            result = helper.check("host1", to_dict(server.target), 10.0)
            assert not result.ok and "other users can read" in result.reason and "UsageError" not in result.reason
        file.chmod(0o600)
        assert helper.check("host1", to_dict(server.target), 10.0).ok
    finally:
        helper.close()


@pytest.mark.slow
def test_passwords_and_passphrases_are_asked_for_on_a_terminal_and_never_shown(
    locked: Target, server: Server, home: Path, tmp_path: Path
) -> None:
    """`invoke doctor --ask-pass` at a terminal: prompts without echo."""
    inventory = tmp_path / "inventory.yaml"
    inventory.write_text(
        "all:\n  hosts:\n    h1:\n"
        f"      ansible_host: 127.0.0.1\n      ansible_port: {locked.port}\n      ansible_user: {locked.user}\n"
        f"      ansible_ssh_private_key_file: {locked.key_filename}\n"
        f"      ansible_ssh_common_args: -o UserKnownHostsFile={locked.known_hosts} -o IdentitiesOnly=yes\n"
    )
    words = [sys.executable, "-m", "invoke", "doctor", "h1", "--hosts", str(inventory), "--ask-pass"]
    environment = {**os.environ, "PROCGUARD_MANAGER_URL": "http://127.0.0.1:9", "COLUMNS": "200", "TERM": "dumb"}
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *words], stdin=terminal, stdout=terminal, stderr=terminal,
        env=environment, cwd=REPOSITORY,
    )  # fmt: skip
    os.close(terminal)
    said = ""

    def until(words: str) -> None:
        nonlocal said
        deadline = time.monotonic() + 30
        while words not in said:
            assert time.monotonic() < deadline and select.select([main], [], [], 30)[0], said
            try:
                said += os.read(main, 4096).decode(errors="replace")
            except OSError:  # the terminal has gone with its program
                break
        assert words in said, said

    try:
        until("SSH password: ")
        os.write(main, b"hunter2\n")
        until("Passphrase of the key")
        os.write(main, b"wrong-one\n")
        until("Wrong. Passphrase")
        os.write(main, PASSPHRASE.encode() + b"\n")
        until("✓ login")
        assert process.wait(30) == 2  # no manager answers there
    finally:
        process.kill()
        process.wait()
        os.close(main)
    assert "hunter2" not in said and "wrong-one" not in said and PASSPHRASE not in said
