"""The operator's commands as programs: exit codes, help, selectors, and protection against mistakes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from procguard.cli import app
from procguard.cli.program import invoke_form, parser, process
from procguard.cli.program.command import LETTERS, CliCommand, OptionGroup, operator_task, option
from procguard.console import tables
from tests import fake_manager, forked
from tests.fake_manager import FakeManager

ROOT = Path(app.__file__).parent.parent.parent
WORKERS: list[dict[str, Any]] = [
    {
        "worker_id": "train-1",
        "state": "running",
        "host": "a",
        "group": "trainers",
        "labels": {"team": "vision"},
        "pid": 7,
    },
    {
        "worker_id": "train-2",
        "state": "failed",
        "host": "b",
        "group": "trainers",
        "labels": {},
        "reason": "exit code 1",
    },
    {"worker_id": "api", "state": "running", "host": "a", "group": "", "labels": {"team": "web"}},
]


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    with fake_manager.running() as one:
        one.routes["GET /api/remote-workers"] = lambda body: (200, {"workers": WORKERS, "total": 3})
        one.routes["GET /api/hosts"] = lambda body: (200, {"hosts": [], "server_time": "2026-01-01T00:00:00Z"})
        for worker in WORKERS:
            name = worker["worker_id"]
            one.routes[f"POST /api/workers/{name}/command"] = lambda body: (202, {"status": "accepted"})
        yield one


def run(url: str, *words: str, module: str = "procguard") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PROCGUARD_MANAGER_URL": url, "PYTHONPATH": str(ROOT), "PROCGUARD_TOKEN": "t0ken"}
    if module == "procguard":
        return forked.run(list(words), env)
    argv = [sys.executable, "-m", module, *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "kill"])
@pytest.mark.parametrize("value", ["--help", "-h", "-x"])
def test_a_word_that_begins_with_a_dash_never_acts(
    manager: FakeManager, verb: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an option, or help; never the name of a worker."""
    monkeypatch.setenv("PROCGUARD_MANAGER_URL", manager.url)
    for words in ([verb, value], [verb, "train-1", value]):
        assert process.guarded(lambda words=words: app.run(words)) == (1 if value == "-x" else 0)  # type: ignore[misc]
    assert manager.requests == []


def test_help_as_a_program_acts_on_nothing(manager: FakeManager) -> None:
    done = run(manager.url, "stop", "--help")
    assert done.returncode == 0 and "usage: invoke stop TARGET" in done.stdout and manager.requests == []


def test_an_unknown_worker_is_exit_code_1(manager: FakeManager) -> None:
    manager.routes["POST /api/workers/nosuch/command"] = lambda body: (
        404,
        {"error": {"code": "unknown_worker", "message": "no worker", "next": "look"}},
    )
    done = run(manager.url, "kill", "nosuch")
    assert done.returncode == 1 and "no worker matches nosuch" in done.stderr and "Traceback" not in done.stderr


def test_no_manager_is_exit_code_3() -> None:
    done = run("http://127.0.0.1:9", "status")
    assert done.returncode == 3 and "cannot reach the manager" in done.stderr and "Traceback" not in done.stderr


def test_deploy_without_an_inventory_says_how_to_call_it(manager: FakeManager) -> None:
    done = run(manager.url, "deploy")
    assert done.returncode == 1 and "--hosts inventory.yaml" in done.stderr


def test_a_wrong_inventory_is_reported_before_the_manager_is_asked(manager: FakeManager, tmp_path: Path) -> None:
    path = tmp_path / "i.yaml"
    path.write_text("all: {hosts: {a: , b: }, vars: {procguard_workers: [{id: same, command: x}]}}")
    done = run(manager.url, "deploy", "--hosts", str(path))
    assert done.returncode == 1 and "worker same is declared on a and on b" in done.stderr
    assert manager.requests == []


def test_ps_shows_glyph_and_word_in_every_form(manager: FakeManager) -> None:
    done = run(manager.url, "ps")
    assert done.returncode == 0 and "● running" in done.stdout and "✖ failed" in done.stdout
    assert "exit code 1" in done.stdout
    names = [one["worker_id"] for one in WORKERS]
    assert run(manager.url, "status", "-o", "name").stdout.split() == names
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        parsed = read(run(manager.url, "ps", "--output", form).stdout)
        assert [one["worker_id"] for one in parsed["workers"]] == names, form
    assert "GROUP" in run(manager.url, "ps", "-o", "wide").stdout
    wrong = run(manager.url, "ps", "-o", "xml")
    assert wrong.returncode == 1 and "xml" in wrong.stderr and "Traceback" not in wrong.stderr


def test_ps_has_the_manager_choose(manager: FakeManager) -> None:
    assert run(manager.url, "ps", "--select", "team=web").returncode == 0
    ((_, path, *_),) = manager.asked("GET", "/api/remote-workers")
    assert path == "/api/remote-workers?select=team%3Dweb"


def test_token_create_is_two_words_and_prints_the_token_alone(manager: FakeManager) -> None:
    manager.routes["POST /api/tokens"] = lambda body: (200, {"token": f"pg-{body['scope']}", "id": "t-1"})
    done = run(manager.url, "token", "create", "--scope", "enroll", "--name", "lab")
    assert done.returncode == 0 and done.stdout == "pg-enroll\n"


def test_a_token_may_end_by_its_time_or_its_uses(manager: FakeManager) -> None:
    asked: list[dict[str, Any]] = []

    def make(body: Any) -> tuple[int, Any]:
        asked.append(body)
        return 201, {"token": "pg-x", "expires_at": "2026-12-01T00:00:00.000Z"}

    manager.routes["POST /api/tokens"] = make
    done = run(manager.url, "token.create", "--scope", "enroll", "--name", "lab", "--expires", "36h", "--uses", "8")
    assert done.returncode == 0 and "until 2026-12-01" in done.stderr, done.stderr
    assert asked == [{"scope": "enroll", "name": "lab", "expires_in_s": 129_600.0, "uses": 8}]
    # 0 made a token without a limit
    for wrong in (("--expires", "soon"), ("--expires", "0d"), ("--scope", "admin"), ("--uses", "0"), ("--uses", "x")):
        done = run(manager.url, "token.create", *wrong)
        assert done.returncode == 1 and wrong[0] in done.stderr and "Traceback" not in done.stderr
    assert len(asked) == 1


def test_a_stolen_secret_is_revoked_and_the_reply_says_how_to_get_another(manager: FakeManager) -> None:
    manager.routes["POST /api/agents/gpu01/revoke"] = lambda body: (200, {"agent_id": "gpu01", "status": "revoked"})
    done = run(manager.url, "agents", "revoke", "gpu01")
    assert done.returncode == 0 and "invoke deploy --hosts … --limit gpu01" in done.stdout, done.stderr


def test_the_audit_is_one_line_a_change(manager: FakeManager) -> None:
    change = {
        "seq": 1, "at": "2026-01-01T00:00:00.000Z", "kind": "change", "actor": "token laptop", "via": "token",
        "address": "10.0.0.9", "what": "POST /api/workers/w1/command: stop", "worker_id": "w1", "host": None,
        "status": 202, "request_id": "r",
    }  # fmt: skip
    manager.routes["GET /api/audit"] = lambda body: (200, {"audit": [change, {**change, "actor": None, "status": 401}]})
    done = run(manager.url, "audit", "--since", "1d")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.endswith("202 token laptop from 10.0.0.9: POST /api/workers/w1/command: stop")
    assert "401 somebody from" in second


def test_a_viewers_token_shows_as_read_only(manager: FakeManager) -> None:
    refusal = {"code": "viewer", "message": "token x is a viewer: it is read-only", "next": "an operator's can"}
    manager.routes["POST /api/workers/api/command"] = lambda body: (403, {"error": refusal})
    done = run(manager.url, "stop", "api")
    assert done.returncode == 1 and "it is read-only; an operator's can" in done.stderr
    assert "Traceback" not in done.stderr


def test_invoke_lists_every_command() -> None:
    done = run("http://127.0.0.1:9", "--list", module="invoke")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for name in app.commands():
        assert f" {app.command(name).name} " in text


def test_every_command_has_help_with_an_example_that_it_understands() -> None:
    every = dict(app.commands())
    for name in app.GROUPS:
        every |= {f"{name} {part}": one for part, one in app.group(name).items()}
    for path, command in every.items():
        shown = parser.help_text(command, path, 80)
        assert max(map(len, shown.splitlines())) <= 80 or "://" in shown or "python" in shown, shown
        assert all(one.help for one in (*command.positionals, *command.options)), path
        (line,) = [one for one in shown.splitlines() if one.startswith("example: ")]
        words = shlex.split(line.removeprefix("example: ").removeprefix("source <(").rstrip(")"))
        assert words[0] == "invoke", line
        found = app.find(words[1:])
        assert found.command is command or found.command.name == "deploy", line
        parser.parse(found.command, found.path, found.words)


@pytest.mark.parametrize("module", ["procguard", "invoke"])
@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["pss"], "unknown command pss; did you mean ps"),
        (["token", "creat"], "token: unknown command creat; did you mean create?"),
        (["stop", "w1", "--yess"], "stop: unknown option --yess; did you mean --yes"),
        (["stop"], "TARGET"),
        (["ps", "extra"], "ps: unknown argument extra"),
    ],
)
def test_a_mistyped_word_suggests_the_nearest(module: str, words: list[str], reported: str) -> None:
    done = run("http://127.0.0.1:9", *words, module=module)
    assert done.returncode == 1 and reported in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_developers_task_that_does_not_exist_suggests_the_nearest() -> None:
    done = run("http://127.0.0.1:9", "chekc", module="invoke")
    assert done.returncode == 1 and "unknown command chekc; did you mean check" in done.stderr, done.stderr


def test_the_operators_program_has_no_developers_task() -> None:
    done = run("http://127.0.0.1:9", "--help")
    assert done.returncode == 0 and "deploy" in done.stdout and "bench" not in done.stdout
    assert run("http://127.0.0.1:9", "check").returncode == 1


def test_ages_and_sizes_are_for_people() -> None:
    now = datetime(2026, 1, 2, tzinfo=timezone.utc)
    assert tables.age("2026-01-01T20:48:00.000Z", now) == "3 h 12 min"
    assert tables.age(None, now) == "" and tables.age(now.timestamp() - 5, now) == "5 s"
    assert tables.size(3 * 2**20) == "3.0 MiB"


def test_gpus_of_workers_and_hosts_fit_a_table_cell() -> None:
    """Which GPUs and how busy; how many of a host's GPUs are in use."""
    assert tables._gpus_of_worker({"gpus": [0, 3], "gpu_percent": 96.6}) == "0,3: 97 %"
    assert tables._gpus_of_worker({"gpus": [1], "gpu_percent": None}) == "1"
    assert tables._gpus_of_worker({}) == "" and tables._gpus_of_host({}) == ""
    gpus = [{"worker_id": "w1", "processes": []}, {"worker_id": "", "processes": [{}]}, {"worker_id": ""}]
    assert tables._gpus_of_host({"gpus": gpus}) == "2 of 3 in use"
    assert tables._gpus_of_host({"gpus": [], "gpu_trouble": "hangs"}) == "unreadable"


def test_events_pass_their_filters_on_and_export_what_is_on_disk(manager: FakeManager) -> None:
    event = {"seq": 3, "at": "2026-01-01T00:00:00Z", "kind": "command", "reason": "停止"}
    manager.routes["GET /api/events"] = lambda body: (200, {"events": [event]})
    done = run(
        manager.url, "events", "--since", "2h", "--kind", "command,deploy", "--cause", "operator", "--limit", "5"
    )
    assert done.returncode == 0 and "command" in done.stdout and "停止" in done.stdout
    (asked,) = manager.asked("GET", "/api/events")
    assert {"since=2h", "kind=command%2Cdeploy", "cause=operator", "limit=5"} <= set(asked[1].split("?")[1].split("&"))
    exported = run(manager.url, "events", "--json", "--since", "2h")
    assert exported.returncode == 0 and json.loads(exported.stdout)["events"] == [event]
    assert manager.asked("GET", "/api/events")[-1][1] == "/api/events?since=2h&format=jsonl"


def test_explain_uses_the_language_of_the_terminal(manager: FakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"headline": "w1 …", "sentences": [{"topic": "why", "text": "because"}], "next_steps": ["do this"]}
    said["timeline"] = [{"at": "2026-01-01T00:00:00.000Z", "text": "it began"}]
    manager.routes["GET /api/workers/w1/explain"] = lambda body: (200, said)
    for name in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    monkeypatch.setenv("PYTHONUTF8", "1")
    done = run(manager.url, "explain", "w1")
    assert done.returncode == 0 and "  because\n→ do this" in done.stdout and "经过" in done.stdout
    assert run(manager.url, "explain", "w1", "--lang", "en").returncode == 0
    asked = [one[1].split("=")[1] for one in manager.asked("GET", "/api/workers/w1/explain")]
    assert asked == ["zh", "en"]
    wrong = run(manager.url, "explain", "w1", "--lang", "fr")
    assert wrong.returncode == 1 and "可选值：en、zh" in wrong.stderr


def test_a_failed_test_message_is_exit_code_2(manager: FakeManager) -> None:
    results = [
        {"name": "chat", "type": "slack", "ok": True, "answer": "HTTP 200", "took_s": 0.1},
        {"name": "mail", "type": "email", "ok": False, "answer": "connection refused", "took_s": 0.0},
    ]
    manager.routes["POST /api/notifications/test"] = lambda body: (200, {"results": results})
    done = run(manager.url, "notify.test")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stdout == "chat: ok (HTTP 200, 0.1 s)\nmail: failed (connection refused, 0.0 s)\n"
    assert run(manager.url, "notify.test", "--name", "chat").returncode == 2
    assert manager.asked("POST", "/api/notifications/test")[1][2] == {"name": "chat"}


def test_agents_shows_which_are_of_another_release(manager: FakeManager) -> None:
    def view(name: str, release: str) -> dict[str, Any]:
        return {"agent": name, "host": name, "agent_state": "connected", "kind": "deployed", "release": release}

    views = [view("gpu01", "a" * 16), view("gpu02", "b" * 16), view("gpu03", "c" * 16), view("never", "")]
    answer = {"agents": views, "version": "0.1.0", "releases": ["a" * 16, "b" * 16]}
    manager.routes["GET /api/agents"] = lambda body: (200, answer)
    shown = run(manager.url, "agents").stdout
    assert "manager 0.1.0 (aaaaaaaa, bbbbbbbb): 2 agents of its release, 1 of another (cccccccc)" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.split()[-1:] == ["other"]] == ["gpu03"]
    only = json.loads(run(manager.url, "agents", "--skew", "--json").stdout)
    assert [(one["agent"], one["skew"]) for one in only] == [("gpu03", "other")]
    del answer["releases"], answer["version"]  # a manager of an earlier release says nothing of itself
    assert "the manager's release is not known" in run(manager.url, "agents").stdout


@dataclass(frozen=True)
class Colours(OptionGroup):
    ink: str = option("black", "what is written with")
    bright: bool = option(False, "more of it")


def test_a_command_has_the_options_of_a_group_in_the_group_s_place() -> None:
    """Their defaults depend on the group that the command names."""
    painted: list[tuple[Any, ...]] = []

    @operator_task(("what",), help={"twice": "once more"})
    def paint(what: str, colours: Colours = Colours(ink="red"), twice: bool = False) -> None:
        painted.append((what, colours, twice))

    assert [one.name for one in (*paint.positionals, *paint.options)] == ["what", "ink", "bright", "twice"]
    assert (paint.options[0].default, paint.options[0].help) == ("red", "what is written with")
    paint.run(parser.parse(paint, "paint", ["a house", "--bright"]))
    paint.run(parser.parse(paint, "paint", ["--twice", "--ink=green", "a tree"]))
    assert painted == [("a house", Colours("red", True), False), ("a tree", Colours("green"), True)]


def every_command() -> Iterator[tuple[str, CliCommand]]:
    yield from app.commands().items()
    for group in app.GROUPS:
        yield from ((f"{group} {part}", command) for part, command in app.group(group).items())


def test_a_letter_means_one_option_and_no_command_makes_up_its_own() -> None:
    """`deploy -o` was --rotate-secrets, although -o is --output in every other command."""
    used: dict[str, set[str]] = {}
    for path, command in every_command():
        letters = [one.letter for one in command.options if one.letter]
        assert len(letters) == len(set(letters)) and "h" not in letters, path
        for one in command.options:
            if one.letter:
                used.setdefault(one.letter, set()).add(one.flag)
    several = {letter: flags for letter, flags in used.items() if len(flags) > 1}
    assert several == {"f": {"--follow", "--forks"}, "i": {"--hosts", "--ignore-case"}}
    assert set(LETTERS.values()) == set(used)


def test_in_a_line_of_several_tasks_the_letters_are_the_same() -> None:
    made = invoke_form.as_task(app.commands()["deploy"])
    names = {argument.name: set(argument.names) for argument in made.get_arguments()}
    assert names["check"] == {"check", "C"} and names["hosts"] == {"hosts", "i"}
    assert names["rotate_secrets"] == {"rotate-secrets"}
