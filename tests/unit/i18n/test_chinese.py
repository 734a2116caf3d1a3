"""Consistency of Chinese texts: terms of docs/glossary.md, one form of address, full-width punctuation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.i18n import reason_texts, zh
from procguard.i18n.messages import catalogue, libraries
from procguard.portal.api.resource import all_routes
from tests.rows import each

REPOSITORY = Path(__file__).parents[3]
DOCUMENTS = (REPOSITORY / "README.zh-CN.md", *sorted((REPOSITORY / "docs").glob("*.zh-CN.md")))
HAN = "[\u4e00-\u9fff]"
# Terms that no Chinese text may contain: the reason, or the replacement.
REPLACED = {
    "您": "你",
    "集群": "机群",
    "失联": "失去联系",
    "查看者": "只读用户",
    "文件夹": "目录",
    "度量数据": "指标数据",
    "进程号": "PID",
    "(?<!反向)代理(?!服务器|对)": "Agent；代理服务器是 proxy",
    "运行者": "Runner",
    "Launcher": "启动器",
    rf"{HAN} Workers?\b": "worker",
    rf"(?<![\w./`])agents?(?![\w.:/`-])(?= ?{HAN})": "Agent",
}
MARKS = {
    "half-width mark between Chinese": rf"{HAN}[,;!?]|{HAN}:(?!//)|{HAN} ?\([^()]*{HAN}|\){HAN}",
    "three dots": r"\.\.\.",
    "blank beside a full-width mark": r"[，。；：、）（“”] (?![/（`*|])|(?<![|*]) [，。；：、）”]",
    "Chinese beside a Latin letter or digit": rf"{HAN}[A-Za-z0-9]|[A-Za-z0-9]{HAN}",
}
PROXIES = {"the request comes through a trusted proxy"}


def texts() -> Iterator[tuple[str, str]]:
    """Each Chinese text of the product, with its key."""
    for table in (catalogue.OURS, libraries.CHINESE, zh.TEXTS, reason_texts.CHINESE_OF_HOSTS):
        yield from table.items()
    yield from ((code, chinese) for code, (_, chinese) in reason_texts.MANAGER.items())
    yield from ((route.path, route.zh) for route in all_routes())
    portal = REPOSITORY / "web" / "locales" / "zh-CN.json"
    yield from json.loads(portal.read_text("utf-8")).items()


def prose(document: str) -> Iterator[tuple[int, str]]:
    """The lines of a document without code, link targets and markup."""
    is_code = False
    for number, line in enumerate(document.split("\n"), 1):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>|\*+|[\[\]]", "", line)


@each("replaced", sorted(REPLACED))
def test_no_chinese_text_has_a_replaced_term(replaced: str) -> None:
    found = [f"{key}: {text}" for key, text in texts() if key not in PROXIES and re.search(replaced, text)]
    for path in DOCUMENTS:
        lines = prose(path.read_text("utf-8"))
        found += [f"{path.name}:{at}: {line}" for at, line in lines if re.search(replaced, line) and line[:1] != "#"]
    assert found == [], f"write {REPLACED[replaced]}"


@each("mark", sorted(MARKS))
def test_marks_are_full_width_and_latin_words_are_set_off(mark: str) -> None:
    shown = ((key, re.sub(r"'[^']*'|`[^`]*`|\"[^\"]*\"", "·", text)) for key, text in texts())
    assert [f"{key}: {text}" for key, text in shown if re.search(MARKS[mark], text)] == []


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("请稍候, 再试", "half-width mark between Chinese"),
        ("主机 (已断开)", "half-width mark between Chinese"),
        ("正在加载...", "three dots"),
        ("状态： 失败", "blank beside a full-width mark"),
        ("启动worker", "Chinese beside a Latin letter or digit"),
    ],
)
def test_a_wrong_mark_is_found(text: str, mark: str) -> None:
    assert re.search(MARKS[mark], text)
