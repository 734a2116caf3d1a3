"""Messages: each visible sentence has a translation and vice versa; hostile text costs little."""

from __future__ import annotations

import re
import time

import pytest

from procguard.cli import app
from procguard.i18n.messages import catalogue, libraries
from procguard.i18n.messages.catalogue import OURS, localized
from tests import sizes
from tests.unit import message_sources

HAN = re.compile(r"[\u4e00-\u9fff]")
SLOT = re.compile(r"\{\d?\}")
# Sentences that are no messages: marks within a log, commands to type, statements of a program, what others wrote.
NOT_SHOWN = re.compile(
    r"^\[procguard: |IFS= |^(invoke|procguard|\./start_manager\.sh) "
    r"|^(SELECT|WITH|INSERT|UPDATE|AND|IFS|exec|import|from|if) |charset=|^(line|term), "
    r"|^# |^lambda |^<link |^tuple\[|filename=|^def |^print\("
)
DATA = {
    "Traceback (most recent call last):", "application/json, text/plain", "agents approve", "tag:procguard,name",
    "No authentication methods", "No existing session", "SQLite format 3",
    "RE2's dialect: docs/protocol.md#regular-expressions",
    "`failure`: each cause that a host finds in a log's last lines",  # of a parameter
    "agent or operator", "viewer or metrics",  # who may use a route, for its description
    "gang keeper", "failure handler", "stopped by an operator",  # names, which words.py translates
    "nginx -g 'daemon off;'", "redis-server --daemonize no", "valkey-server --daemonize no",
    "celery worker (without --detach)",
    "A host, or a launcher started by hand; one that waits for approval has `fingerprint`.",  # of a route
    "handing over",  # written into the audit
    "Description=ProcGuard manager ({})",
}  # fmt: skip


def help_texts() -> set[str]:
    found = set()
    commands = [*app.commands().values(), *(one for name in app.GROUPS for one in app.group(name).values())]
    for command in commands:
        head, _, example = command.doc.partition("Example: ")
        rest = example.partition("\n")[2]
        found |= {" ".join(one.split()) for one in (*head.split("\n\n"), *rest.split("\n\n")) if one.strip()}
        found |= {one.help for one in (*command.options, *command.positionals) if one.help}
    return found


def keys() -> set[str]:
    return {line.strip() for key in OURS for line in key.split("\n")}


def without_chinese(sentences: list[message_sources.Found]) -> list[str]:
    known = keys()
    return [
        f"{one.where}: {one.text}"
        for one in sentences
        if one.text not in known | DATA and not NOT_SHOWN.search(one.text)
    ]


def test_each_sentence_that_is_shown_has_its_chinese() -> None:
    assert without_chinese(list(message_sources.sentences_of(message_sources.texts()))) == []
    assert sorted(help_texts() - keys()) == []


def test_a_sentence_without_chinese_is_found() -> None:
    source = 'def f(name):\n    """It is."""\n    raise NotFound(f"no such thing {name}", "look again")\n'
    source += 'log.info("that is written to the log")\nbecause("worker.gone", why="not at all")\n'
    found = without_chinese(list(message_sources.sentences_of(message_sources.texts_of(source, "m.py"))))
    assert found == ["m.py:3: no such thing {}", "m.py:3: look again"]


def test_each_chinese_is_of_a_sentence_that_the_code_holds() -> None:
    held = {line.strip() for found, _ in message_sources.texts() for line in found.text.split("\n")}
    held |= help_texts() | set(message_sources.partly_shown()) | {"e.g. {}"}  # of many examples
    assert sorted(key for key in keys() if key not in held) == []


def filled(text: str, values: list[str]) -> str:
    following = iter(values)
    return SLOT.sub(lambda slot: values[int(slot[0][1])] if slot[0] != "{}" else next(following), text)


@pytest.mark.parametrize("language_of", ["ours", "libraries"])
def test_each_message_is_found_again_with_its_values(language_of: str) -> None:
    """With values of each kind of message: no other key matches it."""
    wrong = {}
    for key, chinese in (OURS if language_of == "ours" else libraries.CHINESE).items():
        values = [f"‹{number}›" for number in range(key.count("{}"))]
        assert len(SLOT.findall(chinese)) == len(values), key
        found = localized(filled(key, values), "zh")
        if found.strip() != catalogue.hints.commands(filled(chinese, values)).strip():
            wrong[key] = found
    assert wrong == {}


def test_each_message_is_found_again_between_a_place_and_a_next_step() -> None:
    wrong = {}
    step = len(OURS) // sizes.examples(600, len(OURS))
    for key in list(OURS)[:: max(1, step)]:
        if (
            "\n" in key or key != key.strip() or key.startswith(("{}: {}", "{}:{}"))
        ):  # the values cannot be assigned unambiguously
            continue
        chinese = OURS[key]
        values = [f"‹{number}›" for number in range(key.count("{}"))]
        found = localized(f"a.yaml:3: {filled(key, values)}; wait for its event", "zh")
        if found != f"a.yaml:3：{catalogue.hints.commands(filled(chinese, values))}；请等待其事件":
            wrong[key] = found
    assert wrong == {}


def test_chinese_is_chinese() -> None:
    sentence = re.compile(r"(?<![\w./:=<-])[a-z]{3,} [a-z]{3,} [a-z]{3,}")
    command = re.compile(
        r"(?:invoke|procguard|ssh-keygen|ping|pip|ls|ss|tail|curl|systemctl|python|apt-get|dnf) [^，；。）]*"
    )
    english = [text for text in OURS.values() if sentence.search(command.sub("", text))]
    assert english == []


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("no worker 'w9'", "没有 worker 'w9'"),
        ("web-01: cannot connect (refused, port 22)", "web-01：无法连接（被拒绝，port 22）"),
        ("it says: Permission denied (publickey)", "it says: Permission denied (publickey)"),  # SSH's own words
        ("cannot write /data: no worker 'w9'", "无法写入 /data：没有 worker 'w9'"),
        ("no worker 'a; b: c'; wait for its event", "没有 worker 'a; b: c'；请等待其事件"),  # a quoted joint is text
        ("there is no state in x; wait for its event", "x 中没有状态；请等待其事件"),  # not within the slot
        (
            "it says: Host is down: go away; no worker 'w9'",
            "it says: Host is down: go away；没有 worker 'w9'",
        ),
        ("gpu01: asked (no new secret in time)", "gpu01：asked（未在时限内更换密钥）"),
        ("there is no state 'x'; known are failed, stopped", "没有 state 'x'；已知的有 failed, stopped"),  # names
        ("no agent matches gpu01 and zz", "没有 Agent 匹配 gpu01 和 zz"),
        ("a.yaml:3: unknown key; did you mean web.port?", "a.yaml:3：未知的键；是否想写 web.port？"),
        ("was not restarted: Permission denied", "未能执行（restart）：权限不足"),
        ("a.yaml: 3expected 4", "a.yaml：3 应为 4"),  # a value right beside a word of the key
    ],
)
def test_a_message_is_translated_and_what_it_quotes_is_not(english: str, chinese: str) -> None:
    assert localized(english, "zh") == chinese
    assert localized(english, "en") == english


@pytest.mark.parametrize(
    "text",
    [
        "x; " * 5000,
        "a: " * 5000,
        "it: is; at, " * 500,
        "z" * 10_000,
        "in of on (" * 100,
        "{}" * 500,
        ("there is no: " * 15 + "\n") * 300,
    ],
)
def test_text_of_a_stranger_costs_little_time(text: str) -> None:
    localized("warm", "zh")
    before = time.process_time()
    localized(text, "zh")
    assert time.process_time() - before < 0.6


def test_a_short_template_does_not_swallow_the_message_in_front_of_another() -> None:
    said = "logs.retention, entry 1: select: selector, part 2 ('state=x'): there is no state 'x'; known are stopped"
    shown = localized(said, "zh")
    assert shown == "logs.retention 第 1 项：select：选择器第 2 部分（'state=x'）：没有 state 'x'；已知的有 stopped"
