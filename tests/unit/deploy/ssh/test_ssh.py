"""SSH against a real sshd of the current user on a high port: host keys, causes of failure, deadlines."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fabric
import paramiko
import pytest

from procguard.deploy.install.helper_client import SshHelper
from procguard.deploy.session import bundle
from procguard.deploy.session.connector import Connector
from procguard.deploy.session.session import REMOTE_COMMAND, HostSession
from procguard.deploy.ssh import connection as ssh
from procguard.deploy.ssh.target import Target, from_dict, parse_ssh_args, to_dict
from procguard.errors import HostError, HostUnreachable
from tests.ports import free_port
from tests.unit.one_sshd import Server
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def config() -> fabric.Config:
    return fabric.Config()


def failure(target: Target, config: fabric.Config, timeout_s: float = 5.0) -> HostUnreachable:
    with pytest.raises(HostUnreachable) as caught:
        ssh.connect(target, config, time.monotonic() + timeout_s, timeout_s)
    return caught.value


def test_a_session_reaches_the_installer_over_one_connection(server: Server, tmp_path: Path) -> None:
    before = server.log.read_text().count("Accepted publickey")
    deadline = time.monotonic() + 20
    with Connector().session(server.target, deadline) as session:
        where = {"fleet_id": "f", "host": "host1", "home": str(tmp_path / "h o'me")}
        found = session.hello(where, deadline)
        assert found["installed"] is False
        assert session.perform("status", where, deadline)["running"] is False
    assert server.log.read_text().count("Accepted publickey") == before + 1
    assert not (tmp_path / "h o'me").exists()  # looking changes nothing


def test_an_unknown_host_key_is_refused_with_the_command_that_shows_and_adds_it(
    server: Server, config: Any, tmp_path: Path
) -> None:
    error = failure(replace(server.target, known_hosts=str(tmp_path / "none")), config)
    assert error.code == "host_key_unknown" and "SHA256:" in error.message
    assert error.next_step.endswith("invoke trust --hosts INVENTORY")


def test_a_changed_host_key_is_refused(server: Server, config: Any, tmp_path: Path) -> None:
    other = paramiko.ECDSAKey.generate()
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.target.port} {other.get_name()} {other.get_base64()}\n")
    error = failure(replace(server.target, known_hosts=str(known)), config)
    assert error.code in ("host_key_changed", "host_key_unknown")
    key = paramiko.Ed25519Key.from_private_key_file(str(server.directory / "user_key"))
    known.write_text(f"[127.0.0.1]:{server.target.port} {key.get_name()} {key.get_base64()}\n")
    error = failure(replace(server.target, known_hosts=str(known)), config)
    assert error.code == "host_key_changed" and "ssh-keygen -R" in error.next_step


def test_a_refused_login_says_so(server: Server, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no keys of the person who runs this
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    error = failure(replace(server.target, key_filename=str(tmp_path / "other")), config)
    assert error.code == "auth" and "refused" in error.message and "ssh -p" in error.next_step


def test_a_missing_key_file_is_named_before_connecting(server: Server, config: Any) -> None:
    error = failure(replace(server.target, key_filename="/nowhere/key"), config)
    assert error.code == "key_missing" and "/nowhere/key" in error.message


def test_nobody_listening_is_refused(config: Any) -> None:
    error = failure(Target("gone", "127.0.0.1", free_port()), config)
    assert error.code == "refused" and "is sshd running" in error.next_step


def test_an_unknown_name_is_said(config: Any) -> None:
    assert failure(Target("gone", "no-such-host.invalid"), config).code == "name"


def test_a_host_that_accepts_and_says_nothing_ends_at_the_deadline(config: Any) -> None:
    with _mute_server() as port:
        began = time.monotonic()
        error = failure(Target("mute", "127.0.0.1", port), config, 1.5)
    assert error.code in ("timeout", "dropped") and time.monotonic() - began < 6


def test_a_silent_command_ends_at_its_deadline(server: Server, config: Any) -> None:
    connection = ssh.connect(server.target, config, time.monotonic() + 10)
    try:
        pipe = ssh.SshPipe(connection, "exec sleep 30", "host1", time.monotonic() + 5)
        with pytest.raises(HostError) as caught:
            pipe.receive(time.monotonic() + 0.3)
        assert caught.value.code == "timeout"
    finally:
        ssh.close(connection)


def test_a_chatty_login_and_a_missing_python_are_understood(server: Server, config: Any) -> None:
    connection = ssh.connect(server.target, config, time.monotonic() + 10)
    try:
        deadline = time.monotonic() + 20
        pipe = ssh.SshPipe(connection, f"echo welcome; {REMOTE_COMMAND}", "host1", deadline)
        session = HostSession(pipe, server.target, bundle.bootstrap())
        session.open(deadline)
        assert session.hello({"fleet_id": "f", "host": "host1", "home": "/no/where"}, deadline)["ok"]
        bare = "PATH=/nowhere; export PATH; HOME=/nowhere; exec /bin/sh -c " + REMOTE_COMMAND.partition("sh -c ")[2]
        bare = bare.replace("/usr/local/bin/python3 /usr/libexec/platform-python", "").replace(
            "/opt/conda/bin/python3", ""
        )
        session = HostSession(ssh.SshPipe(connection, bare, "host1", deadline), server.target, b"")
        with pytest.raises(HostError, match="no Python 3"):
            session.open(deadline)
            session.hello({"fleet_id": "f", "host": "host1", "home": ""}, deadline)
    finally:
        ssh.close(connection)


def test_a_jump_host_is_used_and_checked_too(server: Server, tmp_path: Path) -> None:
    jump = f"{server.target.user}@127.0.0.1:{server.target.port}"
    key = server.target.key_filename
    ssh_config = tmp_path / "config"
    ssh_config.write_text(f"Host 127.0.0.1\n  IdentityFile {key}\n")
    config = fabric.Config(runtime_ssh_path=str(ssh_config))
    connection = ssh.connect(replace(server.target, proxy_jump=jump), config, time.monotonic() + 20)
    ssh.close(connection)
    error = failure(replace(server.target, proxy_jump=jump, known_hosts=str(tmp_path / "none")), config)
    assert error.code == "host_key_unknown"


@pytest.mark.slow
def test_the_helper_checks_and_reports_and_a_hung_host_delays_nobody(server: Server) -> None:
    helper = SshHelper()
    try:
        with _mute_server() as port:
            hung = threading.Thread(
                target=lambda: slow.append(helper.check("mute", {"hostname": "127.0.0.1", "port": port}, 3.0))
            )
            slow: list[Any] = []
            hung.start()
            quick = helper.check("host1", to_dict(server.target), 10.0)
            assert quick.ok and quick.reason == "" and not slow
            hung.join(8)
        assert slow and slow[0].ok is False and "mute" in slow[0].reason
        absent = helper.ensure_agent("host1", to_dict(server.target), home="/no/where", fleet_id="f", deadline_s=10)
        assert absent.ok and absent.agent == "absent"
        assert not os.path.exists("/no")  # looking makes nothing
    finally:
        helper.close()


def test_a_helper_that_dies_is_started_again(server: Server) -> None:
    helper = SshHelper()
    try:
        assert helper.check("host1", to_dict(server.target), 10.0).ok
        helper._process.kill()
        assert helper.check("host1", to_dict(server.target), 10.0).ok
    finally:
        helper.close()


@pytest.mark.slow
def test_a_request_whose_helper_dies_is_asked_again_and_answered(server: Server) -> None:
    helper = SshHelper()
    try:
        with _mute_server() as port:
            answers: list[Any] = []
            mute = {"hostname": "127.0.0.1", "port": port}
            asking = threading.Thread(target=lambda: answers.append(helper.check("mute", mute, 8.0)))
            asking.start()
            wait_until(lambda: helper._waiting, 10)
            first = helper._process
            first.kill()
            wait_until(lambda: helper._process is not first, 10)
            assert helper.check("host1", to_dict(server.target), 10.0).ok
            asking.join(15)
        assert answers and "mute" in answers[0].reason  # the host's own answer, not the helper's end
    finally:
        helper.close()


def test_a_helper_that_cannot_start_is_an_answer_not_an_exception() -> None:
    helper = SshHelper([sys.executable, "-c", "raise SystemExit(1)"])
    result = helper.check("host1", {}, 1.0)
    assert not result.ok and "helper" in result.reason
    helper.close()


def test_a_target_survives_its_way_through_json() -> None:
    target = Target("h", "10.0.0.1", 22, "me", proxy_jump="a,b")
    assert from_dict("h", {**to_dict(target), "unknown": 1}) == target


def test_ssh_arguments_are_understood_or_named() -> None:
    fields, ignored = parse_ssh_args("-J me@jump:2222 -o UserKnownHostsFile=/k -oStrictHostKeyChecking=no -C")
    assert fields == {"proxy_jump": "me@jump:2222", "known_hosts": "/k"}
    assert any("stricthostkeychecking" in one.lower() for one in ignored)


@contextlib.contextmanager
def _mute_server() -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield int(one.getsockname()[1])


def test_making_a_connection_leaves_the_shared_configuration_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All connections of a deploy share it: a write by one would rebuild it while the others use it."""
    config = fabric.Config()
    assert config.base_ssh_config is not None
    merged: list[fabric.Config] = []
    monkeypatch.setattr(fabric.Config, "merge", merged.append)
    connection = ssh.StrictConnection(Target("web", "10.255.255.1", 22, "root"), config, 5.0)
    ssh.close(connection)
    assert merged == []
