"""Reasons: each code has a sentence in both languages, and each call passes the parameters of its sentence."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from procguard.i18n import reasons
from procguard.i18n.reason_texts import CHINESE_OF_HOSTS, MANAGER
from remote_agent.protocol import messages
from remote_agent.protocol import reasons as protocol
from remote_agent.protocol.host_reasons import HOST

ROOT = Path(__file__).parents[3]
CODES = sorted(reasons.texts("en"))
FORMS = {"", "duration", "in", "joined", "state", "verb", "status", "agent", "opstatus", "actor", "counts"}


class Call(NamedTuple):
    where: str
    pattern: str  # a code, or a regular expression where a part of it is computed
    params: frozenset[str] | None  # None: some are given as **mapping


def nodes(folder: str, text: str) -> Iterator[tuple[Path, ast.AST]]:
    """Of the modules that this expression matches: reading all takes seconds."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if re.search(text, source):
            for node in ast.walk(ast.parse(source)):
                yield path, node


@functools.cache
def calls(folder: str) -> tuple[Call, ...]:
    """Each `because(code, name=…)`."""
    return tuple(_calls(folder))


def _calls(folder: str) -> Iterator[Call]:
    for path, node in nodes(folder, r"\bbecause\("):
        named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "because"
        if not named or not isinstance(node, ast.Call) or not node.args:
            continue
        given = frozenset(keyword.arg for keyword in node.keywords if keyword.arg is not None)
        partly = any(keyword.arg is None for keyword in node.keywords)
        yield Call(f"{path.name}:{node.lineno}", _pattern(node.args[0]), None if partly else given)


def _pattern(code: ast.expr) -> str:
    if isinstance(code, ast.Constant):
        return re.escape(str(code.value))
    if isinstance(code, ast.JoinedStr):
        return "".join(re.escape(str(one.value)) if isinstance(one, ast.Constant) else r"\w+" for one in code.values)
    return ".+"  # chosen among literals just before


def needed(code: str, language: str = "en") -> set[str]:
    text = reasons.texts(language)[code]
    return set(protocol.slots(text)) | ({"n"} if "|" in text else set())


def test_each_code_has_a_sentence_in_both_languages() -> None:
    for code in CODES:
        english, chinese = reasons.texts("en")[code], reasons.texts("zh").get(code, "")
        assert chinese, f"{code}: no Chinese"
        bare = re.sub(r"\{\w+(:\w+)?\}", "", english)
        if re.search(r"[a-z]{4,} [a-z]", bare):  # a sentence, not only a quotation
            assert re.search(r"[\u4e00-\u9fff]", chinese), f"{code}: not translated"
        assert not re.search(r"[\u4e00-\u9fff]", english), code
        for text in (english, chinese):
            assert set(protocol.slots(text).values()) <= FORMS, code
            assert text.count("|") <= 1 and text == text.strip(), code


def test_no_template_needs_what_the_other_language_does_not_name_but_ssh() -> None:
    """SSH's own message names ports and files; its Chinese names the host. A message without a code contains both."""
    for code in CODES:
        if not code.startswith("ssh") and code != "message":
            assert needed(code) - {"n"} == needed(code, "zh") - {"n"}, code


def test_each_code_is_of_the_manager_or_of_hosts_and_has_one_home() -> None:
    assert HOST.keys() == CHINESE_OF_HOSTS.keys()
    assert not (HOST.keys() & MANAGER.keys())


@pytest.mark.parametrize("folder", ["procguard", "remote_agent"])
def test_what_a_sentence_needs_is_given_where_it_is_made_and_nothing_else(folder: str) -> None:
    known = HOST if folder == "remote_agent" else reasons.texts("en")
    for call in calls(folder):
        found = [code for code in known if re.fullmatch(call.pattern, code)]
        assert found, f"{call.where}: no such code"
        if call.params is None or call.pattern == ".+":
            continue
        for code in found:
            wanted = needed(code) | needed(code, "zh") - {"n"}
            assert call.params == wanted or call.params - {"n"} == wanted - {"n"}, f"{call.where}: {code}"


@pytest.mark.parametrize(
    "folder", ["procguard/fleet", "procguard/manager", "procguard/deploy", "remote_agent/agent", "remote_agent/runner"]
)
def test_no_sentence_is_written_where_a_reason_is_recorded(folder: str) -> None:
    """`reason=`, `message=` and `suspect=` take what `because` makes; a literal would have no code."""
    found = []
    for path, node in nodes(folder, r"\b(reason|suspect|why|how)\s*="):
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            value = keyword.value
            written = isinstance(value, ast.JoinedStr) or (
                isinstance(value, ast.Constant) and isinstance(value.value, str) and " " in value.value
            )
            made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "because"
            if (keyword.arg in ("reason", "suspect") or (made and keyword.arg in ("why", "how"))) and written:
                found.append(f"{path.name}:{node.lineno}")  # type: ignore[attr-defined]
    assert found == []


def test_each_code_is_used() -> None:
    """An unused code of the manager may be removed; hosts of older releases still send theirs."""
    patterns = [call.pattern for call in calls("procguard") if call.pattern != ".+"]
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "procguard").rglob("*.py")
        if path.name != "reason_texts.py"
    )
    unused = [
        code for code in MANAGER if f'"{code}"' not in source and not any(re.fullmatch(one, code) for one in patterns)
    ]
    assert unused == []


def test_a_reason_keeps_what_it_is_made_of_through_json() -> None:
    exit_ = reasons.because("exit.code", code=1, ran_s=3.0)
    reason = exit_.then(reasons.because("restart.next", k=1, n=3, delay_s=5.0))
    assert reason == "exit code 1 after 3 s; restart 1 of 3 in 5 s"
    again = protocol.read(json.loads(json.dumps(protocol.fields("reason", reason))))
    assert (again, again.code, again.params) == (reason, "exit.code", reason.params)
    assert reasons.written(again, "zh") == "运行 3 秒后以退出码 1 结束；5 秒后进行第 1 次重启（最多 3 次）"


def test_a_reason_within_a_reason_is_rendered_in_the_same_language() -> None:
    why = reasons.because("lease.keep", host="gpu01")
    reason = reasons.because("task.alive", why=why)
    assert reason == "not reassigned: on_partition is keep: it may be running on gpu01"
    assert reasons.written(reason, "zh") == "不改派：on_partition 为 keep：它可能仍在 gpu01 上运行"


def test_a_sentence_of_an_older_release_is_shown_as_it_is() -> None:
    """States, histories and agents of releases without codes contain sentences."""
    old = protocol.read({"reason": "exit code 1 after 3 s; restarts are off"})
    assert (old, old.code) == ("exit code 1 after 3 s; restarts are off", "text")
    assert reasons.written({"reason": "exit code 1"}, "zh") == "exit code 1"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_code_of_a_newer_agent_is_shown_with_its_parameters(language: str) -> None:
    newer = protocol.accepted("", "disk.melted", {"path": "/data", "n": 3})
    assert reasons.rendered(newer.code, newer.params, language) == "disk.melted (path=/data, n=3)"


DEEP: dict[str, Any] = {}
for _ in range(40):
    DEEP = {"why": {"code": "exit.taken", "params": DEEP}}


@pytest.mark.parametrize(
    ("code", "params"),
    [
        ("exit.code", {"text": "x" * 10_000}),
        ("exit.code", {str(number): 1 for number in range(100)}),
        ("exit.code", DEEP),
        ("exit.code", {"names": ["x"] * 1000}),
        ("exit.code", {"ran_s": float("inf")}),
        ("exit.code", {"ran_s": 10**400}),
        ("x" * 100, {}),
        ("Exit Code<script>", {}),
        ("exit.code", "no object"),
        (7, {}),
    ],
)
def test_what_a_hostile_agent_sends_beyond_the_bounds_leaves_its_text(code: Any, params: Any) -> None:
    reason = protocol.accepted("said so", code, params)
    assert (reason, reason.code) == ("said so", "text")


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"ran_s": "{code.__class__}", "code": {"x": 1}},
        {"ran_s": None, "code": [1, [2, [3]]]},
        {"ran_s": True, "code": "\x1b[31m", "also": "no list"},
        {
            "ran_s": -1e15,
            "code": {"code": "no.such", "params": {}},
            "also": [1, {"code": 2}, {"code": "x", "params": {}}],
        },
    ],
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_parameters_are_data_of_any_kind(params: Any, language: str) -> None:
    reason = protocol.accepted("", "exit.code", params)
    assert reasons.rendered(reason.code, reason.params, language)


def test_an_agents_codes_are_read_with_its_heartbeat() -> None:
    data = {"worker_id": "w1", "reason": "running (pid 7)", "reason_code": "run.running", "reason_params": {"pid": 7}}
    report = messages.decode(messages.WorkerReport, data)
    assert isinstance(report.reason, protocol.Reason) and report.reason.code == "run.running"
    assert messages.encode(report)["reason_params"] == {"pid": 7}
    assert "reason_code" not in messages.encode(messages.WorkerReport("w1", reason="started"))
