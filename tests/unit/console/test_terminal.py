"""No untrusted text controls the operator's terminal: every field of every response, error, banner and log line."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import socket
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from procguard import main, worker_launcher
from procguard.cli import app
from procguard.cli.output import deployment
from procguard.console import terminal
from procguard.deploy.install.doctor import DoctorStep
from procguard.deploy.install.rollout import HostResult
from procguard.deploy.ssh.known_hosts import ShownKey
from procguard.deploy.sync.transfer import Brought
from procguard.errors import HostUnreachable
from procguard.portal.api.openapi.document import document
from remote_agent.agent.launcher import LauncherOutput
from tests import fake_manager
from tests.fake_manager import FakeManager

# Clear, title, C1, a colour that hides, bells; our console's markup; a line that looks like ours; reordered, invisible,
# half a character; the clipboard; a link.
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07\x9b2J\x1b[8;38;5;201mEVIL[bold]x[/bold][/][link=http://e.example]y[/link]\\\r\n"
    "forged: all is well\u202e\u200b\u2066\ud800\x08\x7f\x1b]52;c;ZXZpbA==\x1b\\\x1b]8;;http://e.example\x1b\\:bomb:"
)
OURS = re.compile(r"\x1b\[(?!8;)[0-9;]*m|\x1b\[\?25[lh]|\r?\x1b\[2K|\x1b\[1A|\r(?=\x1b)")


class Terminal:
    """A pseudo-terminal that is stdout and stderr, and the bytes that reached it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.stream = open(slave, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._data = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self._data += data

    def text(self) -> str:
        """All that was printed, once everything has been."""
        self.stream.close()
        self._reader.join(10)
        os.close(self._master)
        return self._data.decode()  # strict: no half characters


def shown(action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """The output to a terminal while `action` runs; the exit of a program is not a failure."""
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "3000")
    monkeypatch.setattr(sys, "stdout", screen.stream)
    monkeypatch.setattr(sys, "stderr", screen.stream)
    try:
        with contextlib.suppress(SystemExit):
            action()
    finally:
        monkeypatch.undo()
    return screen.text()


def check(text: str, evil: bool = True) -> None:
    """Only ProcGuard's styles control the terminal, nothing is markup, and no line begins with untrusted text."""
    left = OURS.sub("", text)
    bad = [one for one in left if one != "\n" and (not one.isprintable() and one not in "\u3000\u00a0")]
    assert not bad, (sorted(set(bad)), left[:2000])
    assert "8;38;5;201" not in OURS.sub(lambda found: found[0] if "201" in found[0] else "", text).replace(left, "")
    assert not re.search(r"^forged", left, re.MULTILINE), left
    if evil:
        assert "EVIL[bold]x[" in left, left[:3000]


# ------------------------------------------------------------------------------------- every answer of a manager


def sample(schema: dict[str, Any], hostile_enums: bool, depth: int = 0) -> Any:
    """A value of the described shape, with HOSTILE for each text."""
    if "$ref" in schema:
        return sample(document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]], hostile_enums, depth + 1)
    if "anyOf" in schema:
        kinds = [one for one in schema["anyOf"] if one.get("type") != "null"]
        return sample(next((one for one in kinds if one.get("type") == "string"), kinds[0]), hostile_enums, depth)
    if "const" in schema:
        return HOSTILE if hostile_enums and isinstance(schema["const"], str) else schema["const"]
    if "enum" in schema:
        return HOSTILE if hostile_enums else schema["enum"][-1]
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        made = {name: sample(one, hostile_enums, depth + 1) for name, one in schema.get("properties", {}).items()}
        more = schema.get("additionalProperties")
        if isinstance(more, dict) and depth < 12:
            made[HOSTILE] = sample(more, hostile_enums, depth + 1)
        return made
    if kind == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return [] if depth > 12 else [sample(items, hostile_enums, depth + 1) for _ in range(2)]
    return {"integer": 3, "number": 3.0, "boolean": False, "null": None}.get(str(kind), HOSTILE)


class HostileManager(FakeManager):
    """Responses of the described shape; `wrong`: every response is an error."""

    wrong = hostile_enums = False

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self.wrong:
            return 400, {"error": {"code": HOSTILE, "message": HOSTILE, "next": HOSTILE}}
        plain = path.partition("?")[0]
        if "format=jsonl" in path and "log-search" in path:
            return 200, self._search()
        if "format=jsonl" in path:
            return 200, json.dumps({"kind": HOSTILE}, ensure_ascii=False).replace("\ud800", "") + "\n"
        if plain.endswith("/logs"):
            return 200, "log line " + HOSTILE.replace("\ud800", "").replace("\r\n", " ") + "\nnext\n"
        for template, operations in document()["paths"].items():
            pattern = re.sub(r"\\{[a-z_]+\\}", "[^/]+", re.escape(template))
            if re.fullmatch(pattern, plain) and method.lower() in operations:
                responses = operations[method.lower()]["responses"]
                good = next(one for status, one in sorted(responses.items()) if status.startswith("2"))
                made = sample(good["content"]["application/json"]["schema"], self.hostile_enums)
                return 200, self._sensible(made, plain)
        return 404, {"error": {"code": "x", "message": HOSTILE, "next": HOSTILE}}

    def _sensible(self, made: Any, path: str) -> Any:
        if "operation" in path and isinstance(made, dict) and "status" in made:
            made["status"] = HOSTILE if self.hostile_enums else "halted"
        return made

    @staticmethod
    def _search() -> str:
        line = {"at": 3.0, "worker_id": HOSTILE, "text": HOSTILE, "host": HOSTILE}
        host = {"t": "host", "status": HOSTILE, "host": HOSTILE, "reason": HOSTILE, "lines": [line]}
        numbers = ("found", "hosts_answered", "hosts_asked", "workers", "bytes", "elapsed_s")
        end = {"t": "end", **dict.fromkeys(numbers, 1)}
        return "".join(json.dumps(one) + "\n" for one in ({"t": "begin"}, host, end))


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileManager]:
    monkeypatch.setattr(fake_manager, "FakeManager", HostileManager)
    with fake_manager.running() as one:
        yield one  # type: ignore[misc]


COMMANDS = [
    "status", "status --json", "hosts", "hosts --json", "groups", "groups --json", "agents", "agents --json",
    "agents --skew", "token", "token --json", "token.create --name x", "token.revoke t-1", "audit", "audit --json",
    "events", "events --json", "events --json --limit 2", "search x", "search x --json", "explain w1",
    "explain w1 --json", "explain w1 --lang zh", "notify", "notify --json", "notify.test", "operations",
    "operations --json", "operations.show o-1", "operations.show o-1 --json", "operations.cancel o-1",
    "operations.retry o-1", "operations.retry o-1 --json", "operations.retry o-1 --no-wait", "start w1",
    "start w1 --json", "stop w* --yes", "restart w* --json --yes", "kill w* --yes", "logs w1", "logs w1 --follow",
    "approve w1", "deny w1", "agents.revoke gpu01", "cordon gpu01", "uncordon gpu01", "move w1 gpu02",
]  # fmt: skip
SAY_NOTHING_OF_IT = (
    "approve", "deny", "agents.revoke", "token.revoke", "cordon", "uncordon", "move", "start w1", "operations.cancel",
    "agents --skew",
)  # fmt: skip


ERRORS = ["status", "explain w1", "logs w1", "search x", "stop w* --yes"]


@pytest.mark.parametrize(
    ("mode", "command"),
    [*(("as described", one) for one in COMMANDS), *(("enums too", one) for one in COMMANDS if "json" not in one)]
    + [("errors", one) for one in ERRORS],
)
def test_no_answer_of_a_manager_steers_the_terminal(
    manager: HostileManager, monkeypatch: pytest.MonkeyPatch, command: str, mode: str
) -> None:
    manager.wrong, manager.hostile_enums = mode == "errors", mode == "enums too"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROCGUARD_MANAGER_URL", manager.url)
        patch.setenv("PROCGUARD_TOKEN", "x")
        text = shown(lambda: app.main(["procguard", *command.split()]), patch)
    check(text, evil=mode == "errors" or ("json" not in command and not command.startswith(SAY_NOTHING_OF_IT)))
    if "--json" in command and mode == "as described" and "search" not in command and "retry" not in command:
        assert "\\u202e" in text, "the value itself arrives, escaped"


def test_the_logs_keep_their_colours_on_a_terminal_and_their_bytes_in_a_pipe(
    manager: HostileManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = "\x1b[31mred\nplain\x1b[2J \x1b[38;5;8mgrey\n"
    manager.answer = lambda method, path, body: (200, written)  # type: ignore[method-assign]
    monkeypatch.setenv("PROCGUARD_MANAGER_URL", manager.url)

    def printed(*words: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            return shown(lambda: app.main(["procguard", "logs", "w1", *words]), patch)

    assert printed() == "\x1b[31mred\x1b[0m\nplain \x1b[38;5;8mgrey\x1b[0m\n" == printed("--follow")
    assert printed("--raw") == written == printed("--raw", "--follow")
    with open(tmp_path / "out", "w+", encoding="utf-8") as pipe, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        app.main(["procguard", "logs", "w1"])
        pipe.seek(0)
        assert pipe.read() == written


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_log_s_colours_are_the_same_however_it_arrives(size: int) -> None:
    text = f"a\x1b[1;31mb\x1b[0m\x1b]0;t\x07c\x1b[5md\x1b[48;2;1;2;3me\n损{HOSTILE}\x1b[2Kf\rg\x1bMh\x1b"
    data = text.encode("utf-8", "replace")
    whole = terminal.Colours().feed(data, final=True)
    parts = terminal.Colours()
    fed = "".join(parts.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert fed + parts.feed(b"", True) == whole
    assert whole.startswith("a\x1b[1;31mb\x1b[0mcd\x1b[48;2;1;2;3me\x1b[0m\n损") and "\x1b[8" not in whole
    assert not terminal._UNSAFE.search(re.sub(r"\x1b\[[0-9;]*m|\r", "", whole))


# ------------------------------------------------------------------------------------------------ deployments


def test_no_field_of_a_deployment_s_results_steers_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    error = HostUnreachable(HOSTILE, HOSTILE, code=HOSTILE)
    brought = Brought(HOSTILE, "in_use", HOSTILE, names=(HOSTILE,))
    result = HostResult(HOSTILE, "failed", changes=[f"restarted {HOSTILE}", HOSTILE], error=error, seconds=1.0)
    result.report = {"keep_alive": HOSTILE, "keep_alive_reason": HOSTILE, "files": 1, "bytes": 2, "folder": HOSTILE}
    result.recovery_ssh = {"ok": False, "reason": HOSTILE}
    result.workers = {HOSTILE: {"result": HOSTILE, "message": HOSTILE, "differences": [HOSTILE]}}
    result.code = [brought]
    well = HostResult(HOSTILE, "changed", changes=[HOSTILE], seconds=1.0)

    def printing() -> None:
        out = deployment.console()
        with deployment.Progress(out, 2) as progress:
            progress.stage(HOSTILE, HOSTILE)
            progress.done(result)
            progress.done(well)
        deployment.recap(out, [result, well], diff=True)
        deployment.fetched(out, [result])
        deployment.keys(out, [ShownKey(HOSTILE, "new", HOSTILE, HOSTILE, HOSTILE, HOSTILE, error)])
        deployment.step(out, DoctorStep(HOSTILE, "bad", HOSTILE, HOSTILE))
        terminal.say_json(deployment.as_json([result]))
        terminal.say_block(f"procguard: {deployment.failure([result])}", err=True)

    check(shown(printing, monkeypatch))


class RudeServer:
    """Listens at sshd's port, and sends other data before the key exchange."""

    def __init__(self, banner: bytes) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._banner = banner
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    connection.sendall(self._banner)
                    connection.settimeout(0.2)
                    with contextlib.suppress(OSError):
                        connection.recv(1000)

    def close(self) -> None:
        self._socket.close()


EVIL = HOSTILE.encode("utf-8", "replace").replace(b"\r\n", b" ")


BANNERS = [EVIL + b"\r\n", b"SSH-1.0-" + EVIL + b"\r\n", b"SSH-2.0-x" + EVIL + b"\r\n" + EVIL * 20]
OVER_SSH = ["trust --hosts {0} --yes", "doctor gpu01 --hosts {0}", "fetch {0} /x", "deploy --hosts {0}"]


@pytest.mark.parametrize("banner", BANNERS)
@pytest.mark.parametrize("command", OVER_SSH)
def test_no_ssh_server_steers_the_terminal_before_its_key_is_known(
    manager: HostileManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, banner: bytes, command: str
) -> None:
    monkeypatch.setattr("procguard.deploy.ssh.connection.CONNECT_ATTEMPTS", 1)
    server = RudeServer(banner)
    inventory = tmp_path / "hosts.yaml"
    host = {"ansible_host": "127.0.0.1", "ansible_port": server.port}
    inventory.write_text(json.dumps({"all": {"hosts": {"gpu01": host}}}))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PROCGUARD_MANAGER_URL", manager.url)
            text = shown(lambda: app.main(["procguard", *command.format(inventory).split()]), patch)
    finally:
        server.close()
    check(text, evil=False)
    assert "gpu01" in text or "forged" in text


def test_an_inventory_s_own_texts_do_not_steer_it_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yaml"
    text = HOSTILE.replace("\ud800", "")
    host = {"ansible_host": text, "procguard_x": text, "ansible_port": text}
    inventory.write_text(json.dumps({"all": {"hosts": {"a" + text: host}}}))
    check(shown(lambda: app.main(["procguard", "deploy", "--hosts", str(inventory)]), monkeypatch), evil=False)


# -------------------------------------------------------------------------------------- other programs of ours


def test_the_manager_s_own_start_and_the_launcher_s_messages_are_clean_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({HOSTILE.replace("\ud800", ""): 1, "web": {"port": HOSTILE.replace("\ud800", "")}}))
    with pytest.MonkeyPatch.context() as patch:
        check(shown(lambda: main.main(["--config", str(config), "--status"]), patch), evil=False)
    with pytest.MonkeyPatch.context() as patch:
        launcher_output = LauncherOutput("w1", str(tmp_path), worker_launcher.say)
        check(shown(lambda: launcher_output.say(f"the manager refuses: {HOSTILE}"), patch))


def test_what_is_printed_unescaped_is_clean_in_a_task() -> None:
    """Unwrapped output: print() in a task, and the traceback of a bug."""
    with pytest.MonkeyPatch.context() as patch:

        def careless() -> None:
            with terminal.cleaned():
                print(HOSTILE.replace("\n", " "))
                sys.stdout.buffer.write(HOSTILE.replace("\n", " ").encode("utf-8", "replace"))
                print(datetime.now(timezone.utc).year, file=sys.stderr)

        check(shown(careless, patch))
