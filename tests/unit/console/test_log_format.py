"""One record, one line: no caller can inject lines or terminal sequences into the manager's log."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import gevent
import pytest

from procguard.config.schema import Config
from procguard.console import log_format
from remote_agent.protocol import messages
from tests.server_process import RunningManager

FORGED = "evil\n2026-11-30 06:00:00 INFO procguard.manager.app: running\r\x1b[2J\u202e\x9b31m\u2028x"


def logged(*arguments: object, named: str = "%(levelname)s %(message)s", **options: object) -> list[str]:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(log_format.Formatter(named))
    log = logging.Logger("tried")
    log.addHandler(handler)
    log.error(*arguments, **options)  # type: ignore[arg-type]
    return out.getvalue().splitlines()


def test_text_of_strangers_stays_on_its_line_and_is_readable() -> None:
    lines = logged("host=%s", FORGED)
    assert len(lines) == 1 and lines[0].isprintable()
    assert lines[0].startswith("ERROR host=evil\\n2026-11-30 06:00:00 INFO") and "\\x1b[2J" in lines[0]
    assert logged("größe=%s 主机", "ü") == ["ERROR größe=ü 主机"]


def test_a_traceback_can_not_hold_a_record() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        lines = logged("failed", exc_info=True)
    assert lines[0] == "ERROR failed" and len(lines) > 3
    assert all(line.startswith(log_format.INDENT) and line.isprintable() for line in lines[1:])


def test_a_record_has_a_bound() -> None:
    (line,) = logged("x" * 1_000_000)
    assert len(line) < log_format.MAX_MESSAGE_CHARS + 100 and line.endswith("(1000000 characters)")


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores what `look_up_only` changes in the whole process."""
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile"):
        monkeypatch.setattr(logging, name, getattr(logging, name))


@pytest.mark.usefixtures("look_ups")
def test_a_line_contains_what_its_format_names() -> None:
    thread, process = threading.current_thread().name, multiprocessing.current_process().name
    for named, expected in (
        ("%(message)s", "hi"),
        ("%(threadName)s %(message)s", f"{thread} hi"),
        ("%(process)d %(processName)s %(message)s", f"{os.getpid()} {process} hi"),
        ("%(filename)s %(funcName)s %(message)s", "test_log_format.py logged hi"),
    ):
        log_format.look_up_only(named)
        assert logged("hi", named=named) == [expected]


@pytest.mark.usefixtures("look_ups")
def test_a_line_of_the_usual_format_creates_no_object_for_its_greenlet(monkeypatch: pytest.MonkeyPatch) -> None:
    log_format.look_up_only(Config().logging.format)
    monkeypatch.setattr(threading, "current_thread", lambda: pytest.fail("the thread was looked up"))
    assert logged("hi") == ["ERROR hi"]


def test_a_greenlet_that_fails_is_a_record(capfd: pytest.CaptureFixture[str]) -> None:
    hub: Any = gevent.get_hub()
    records: list[logging.LogRecord] = []
    log = logging.Logger("tried")
    log.addHandler(type("Kept", (logging.Handler,), {"emit": lambda _self, record: records.append(record)})())
    before = hub.print_exception
    log_format.report_greenlets_to(log, hub)
    try:
        gevent.spawn(lambda: 1 / 0).join()
    finally:
        hub.print_exception = before
    assert len(records) == 1 and records[0].exc_info and capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_stranger_forges_no_line_of_the_managers_log(tmp_path: Path) -> None:
    """The host name of an unknown launcher, a path and a header; an agent's report on its worker."""
    manager = RunningManager(tmp_path)
    try:
        body = {"worker_id": "w1", "command": "true", "host": FORGED, "secret_sha256": "a" * 64}
        assert manager.ask("POST", "/api/workers/register", body, {"Host": "elsewhere"}).status in (202, 400)
        manager.ask("GET", "/api/%0a2026-11-30%20forged")
        hosts = [{"host": "h1", "workers": [{"worker_id": "w2", "spec": {"command": "true"}}]}]
        assert manager.ask("POST", "/api/deployments", {"hosts": hosts}).status == 200
        digest = {"secret_sha256": messages.secret_sha256("of h1")}
        assert manager.ask("PUT", "/api/agents/h1/credentials", digest).status == 200
        event = messages.WorkerEvent("w2", 1, 1_790_000_000.0, 1, "starting", "running", FORGED)
        beat = messages.encode(messages.AgentHeartbeat("h1", events=[event]))
        answer = manager.ask("POST", "/api/agents/h1/heartbeat", beat, {"Authorization": "Bearer of h1"})
        assert answer.status == 200, answer.body
        manager.ask("POST", "/api/login", {"token": FORGED}, {"Host": "elsewhere", "User-Agent": "\x1b[2J"})
    finally:
        manager.close()
    text = (tmp_path / "manager.log").read_bytes().decode()
    assert "\x1b" not in text + manager.log() and "\u202e" not in text
    assert "evil\\n2026" in text, "the name is not in the log at all"
    assert not [line for line in text.split("\n") if line.startswith(FORGED.split("\n", 1)[1].split("\r", 1)[0])]
