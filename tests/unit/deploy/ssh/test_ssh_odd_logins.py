"""Hosts whose log-in does not reach a shell, or stalls: the message quotes their output and names the step."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fabric
import pytest

from procguard.deploy.session.connector import Connector
from procguard.deploy.ssh import connection
from procguard.errors import HostError, HostUnreachable
from tests.unit.one_sshd import Server
from tests.waiting import wait_until

WHERE = {"fleet_id": "f", "host": "host1"}


@pytest.fixture
def log_in(server: Server) -> Iterator[Any]:
    """`log_in(command)`: every log-in runs this command, as with a ForceCommand or a start-up file."""
    keys = server.authorized_keys
    own = keys.read_text()

    def set_command(command: str) -> None:
        escaped = command.replace('"', '\\"')
        keys.write_text(f'command="{escaped}" {own}')

    yield set_command
    keys.write_text(own)


def hello(
    server: Server, tmp_path: Path, within_s: float = 60, connected: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """`within_s`: limit for the response, from the successful log-in and the end of `connected` on."""
    with Connector().session(server.target, time.monotonic() + 60) as session:
        connected()
        return session.hello({**WHERE, "home": str(tmp_path)}, time.monotonic() + within_s)


def test_start_up_files_that_print_without_a_newline_are_no_obstacle(
    server: Server, log_in: Any, tmp_path: Path
) -> None:
    log_in('printf "welcome, and no newline"; eval "$SSH_ORIGINAL_COMMAND"')
    assert hello(server, tmp_path)["installed"] is False


@pytest.mark.parametrize(
    ("command", "quoted"),
    [
        (
            "echo This account is currently not available.; exit 1",
            "it printed “This account is currently not available.”",
        ),
        ("exit 0", "it printed nothing"),
        ("echo backups only >&2; exit 3", "it printed “backups only”"),
    ],
)
def test_a_log_in_without_a_shell_is_quoted(
    server: Server, log_in: Any, tmp_path: Path, command: str, quoted: str
) -> None:
    """nologin, ForceCommand, `exit` in .bashrc."""
    log_in(command)
    with pytest.raises(HostError) as caught:
        hello(server, tmp_path)
    reported = str(caught.value)
    assert "host1: logged in, but" in reported and quoted in reported, reported
    assert "ForceCommand" in reported and f"ssh -p {server.target.port}" in reported, reported


@pytest.mark.slow
def test_a_log_in_that_waits_for_something_is_quoted_too(server: Server, log_in: Any, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    log_in(f"echo choose a menu entry:; touch {asked}; sleep 20")
    with pytest.raises(HostError) as caught:
        hello(server, tmp_path, 1, lambda: wait_until(asked.exists, 60, "the menu"))
    reported = str(caught.value)
    assert caught.value.code == "timeout"
    assert "no answer from the installer in time; it printed “choose a menu entry:”" in reported, reported


@pytest.mark.slow
@pytest.mark.parametrize(
    ("greeting", "what", "next_step"),
    [
        (b"", "the port accepts connections, but sent no SSH banner", "is sshd listening there?"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "sshd sent its banner, but the key exchange stalls", "MTU"),
    ],
)
def test_a_connection_that_stalls_says_at_which_step(greeting: bytes, what: str, next_step: str) -> None:
    from procguard.deploy.ssh.target import Target

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        taken: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                    taken[-1].sendall(greeting)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        target = Target("host1", "127.0.0.1", listener.getsockname()[1], "me")
        with pytest.raises(HostUnreachable) as caught:
            connection.connect(target, fabric.Config(), time.monotonic() + 20, timeout_s=2.0)
        for one in taken:
            one.close()
    assert what in caught.value.message, caught.value.message
    assert next_step in caught.value.next_step and caught.value.code == "timeout"
