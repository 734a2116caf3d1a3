"""`--lang zh` and LANG: output about the fleet is Chinese; names and commands are unchanged."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from procguard.cli.output import description, groups, language, operations
from procguard.console import grid, tables
from procguard.errors import UsageError
from procguard.fleet.shapes.hosts import HOST
from procguard.fleet.shapes.workers import WORKER
from procguard.i18n import zh
from procguard.i18n.reasons import because
from procguard.i18n.words import Words
from tests.unit.fleet.history.test_explain import SITUATIONS

ZH = Words("zh")
NOW = datetime(2026, 9, 21, 14, 0, tzinfo=timezone.utc)
# Two words of English in a row that are no name, path, option or key: a sentence that was not translated.
ENGLISH = re.compile(r"(?<![\w./:=-])[a-z]{2,} [a-z]{2,}(?: [a-z]{2,})*")
COMMANDS = re.compile(r"python train\.py[^,;]*|(?:invoke|procguard) [a-z. ]+")


def free_texts(value: Any) -> Iterator[str]:
    """Texts of users or older releases, shown unchanged; longest first."""
    if isinstance(value, list):
        for one in value:
            yield from free_texts(one)
    elif isinstance(value, dict):
        if value.get("code") == "text":
            yield str(value["params"].get("text"))
        for name, one in value.items():
            if value.get(f"{name}_code") in ("text", "") and isinstance(one, str):
                yield one
            elif name in ("error", "message", "detail", "command", "kind", "line"):
                yield str(one)
            yield from free_texts(one)


def english_in(text: str, *shown: Any) -> list[str]:
    for free in sorted({one for one in free_texts(list(shown)) if one}, key=len, reverse=True):
        text = text.replace(free, "")
    return ENGLISH.findall(COMMANDS.sub("", text))


def printed(columns: Any, views: list[dict[str, Any]]) -> list[str]:
    return grid.render(columns, ZH.translated(views), None, everything=True)


@pytest.mark.parametrize("situation", sorted(SITUATIONS))
def test_tables_events_and_descriptions_are_chinese(situation: str, tmp_path: Path) -> None:
    world = SITUATIONS[situation](tmp_path)
    world = world[0] if isinstance(world, tuple) else world
    workers, hosts = world.fleet.state.workers(), world.fleet.state.hosts()
    events = world.fleet.state.events(limit=50)
    lines = printed(tables.workers(NOW, WORKER, ZH), workers) + printed(tables.hosts(NOW, HOST, ZH), hosts)
    lines.append(tables.summary(workers, hosts, words=ZH))
    explained = {"sentences": [], "next_steps": []}
    declared = {"tty": {"rows": 24, "columns": 80}, "max_run_s": 5400.0}
    lines += description.lines(ZH.translated(workers[0]), explained, events, NOW, ZH, declared)
    lines += printed(groups.COLUMNS, groups.rows(ZH.translated(world.fleet.gangs.views()), NOW, ZH))
    shown = (workers, hosts, events, world.fleet.gangs.views())
    assert [found for line in lines for found in english_in(line, *shown)] == []


def test_an_operation_is_chinese() -> None:
    view = {
        "operation_id": "o-1", "command": "stop", "status": "halted", "counts": {"done": 2, "failed": 1}, "joined": 1,
        "note": "", "causes": [{"result": "failed", "cause": None, "count": 1, "examples": ["w1"]}], "total": 3,
    }  # fmt: skip
    why = because("command.late")
    view["causes"][0] |= {"message": str(why), "message_code": why.code, "message_params": why.params}  # type: ignore[index]
    text = operations.summary(ZH.translated(view), ZH).plain
    assert "已中止" in text and "已过时限" in text and english_in(text) == []


def test_the_preview_and_the_progress_of_an_operation_are_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCGUARD_LANG", "zh")
    why = because("cause.host_away")
    view = {
        "command": "stop", "selector": "*", "acts": 1, "matching": 9, "hosts": 8, "total": 9, "counts": {"done": 2},
        "by_state": [{"state": "running", "matching": 9}], "by_host": [{"host": "h1", "matching": 9}],
        "causes": [{"action": action, "count": 1, "examples": ["w1"], "message": str(why), "message_code": why.code,
                    "message_params": why.params} for action in ("pending", "skipped")],
    }  # fmt: skip
    text = operations.preview(ZH.translated(view), ZH).plain + operations.progress(view, ZH).plain
    assert "运行中 9" in text and re.findall("[a-z]{3,}", text) == ["worker"], text


def test_the_language_is_the_option_s_then_the_terminal_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert language.chosen("").language == "zh" and language.chosen("en").language == "en"
    monkeypatch.setenv("LANG", "C.UTF-8")
    assert language.chosen("").language == "en" and language.chosen("zh").language == "zh"
    with pytest.raises(UsageError, match="--lang fr"):
        language.chosen("fr")


def test_each_column_has_a_chinese_title() -> None:
    titles = set()
    for path in sorted((Path(__file__).parents[3] / "procguard").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if "Column(" in source else ():
            is_column = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Column"
            if is_column and node.args and isinstance(node.args[0], ast.Constant):  # type: ignore[attr-defined]
                titles.add(str(node.args[0].value))  # type: ignore[attr-defined]
    assert len(titles) > 40
    assert [title for title in sorted(titles) if f"column.{title}" not in zh.TEXTS] == []
