"""Starting the manager at boot, with fake cron and systemd; and the dead man's switch."""

from __future__ import annotations

import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard import main
from procguard.config import schema
from procguard.errors import Conflict
from procguard.manager import service
from procguard.manager.liveness import DeadMan
from remote_agent.install import keepalive


def program(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with only sh's programs and those of a test; a separate home."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cat", "rm", "grep"):
        (folder / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return folder


def test_cron_starts_exactly_this_manager_and_forgets_it_again(
    programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table"
    table.write_text("0 4 * * * backup\n")
    program(programs, "crontab", f"case $1 in -l) cat {table};; -r) rm {table};; -) cat > {table};; esac")
    arguments = ["--port", "5055", "--set", "web.host=127.0.0.1"]
    assert main.run([*arguments, "--install-service"]) == 0
    assert "cron starts it at boot" in capsys.readouterr().out
    first, reboot, minute = table.read_text().splitlines()
    assert first == "0 4 * * * backup" and reboot.startswith("@reboot ") and minute.startswith("* * * * * ")
    assert f"cd {tmp_path} && " in reboot and "--port 5055 --set web.host=127.0.0.1 --daemon" in reboot
    assert main.run([*arguments, "--install-service"]) == 0 and len(table.read_text().splitlines()) == 3
    assert main.run(["--remove-service"]) == 0
    assert table.read_text() == "0 4 * * * backup\n"


def test_a_systemd_unit_runs_it_in_the_foreground_from_here(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepalive, "SYSTEMD_RUNS", str(tmp_path))
    calls = tmp_path / "calls"
    program(programs, "systemctl", f'echo "$@" >> {calls}')
    program(programs, "loginctl", "echo Linger=yes")
    said = service.install(schema.load(None), ["--port", "5055"])
    unit = next((tmp_path / "config").rglob("procguard-manager-*.service"))
    text = unit.read_text()
    assert unit.name in said and '"--port" "5055"' in text and "--daemon" not in text
    assert f"WorkingDirectory={tmp_path}" in text and "Restart=always" in text
    assert f"--user restart {unit.name}" in calls.read_text()
    assert "removed (systemd)" in service.remove(schema.load(None)) and not unit.exists()


def test_without_both_it_is_said(programs: Path) -> None:
    with pytest.raises(Conflict, match="no service manager can start the manager"):
        service.install(schema.load(None), [])


# ------------------------------------------------------------------------------------------- dead man's switch


class Watcher(http.server.BaseHTTPRequestHandler):
    asked: list[str]
    status = 200

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        self.send_response(type(self).status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def watcher() -> Iterator[tuple[type[Watcher], str]]:
    handler = type("Handler", (Watcher,), {"asked": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}/ping/secret-uuid"
    server.shutdown()
    server.server_close()


def test_the_switch_asks_its_address_and_reports_once_when_nobody_answers(
    watcher: tuple[type[Watcher], str], caplog: pytest.LogCaptureFixture
) -> None:
    handler, url = watcher
    switch = DeadMan(url, 60, lambda: True)
    with caplog.at_level("INFO"):
        assert switch.ping() and handler.asked == ["/ping/secret-uuid"]
        handler.status = 500
        assert not switch.ping() and not switch.ping()
        handler.status = 200
        assert switch.ping()
    reported = [record.getMessage() for record in caplog.records]
    assert len(reported) == 2 and "does not answer (HTTP 500)" in reported[0] and "answers again" in reported[1]
    assert "secret-uuid" not in caplog.text


@pytest.mark.parametrize("bad", ["ping.example.org", "ftp://x/y", "file:///etc/passwd"])
def test_only_web_addresses_are_asked(bad: str) -> None:
    with pytest.raises(Exception, match="dead_man_url"):
        schema.load(None, [f"monitoring.dead_man_url={bad}"])
