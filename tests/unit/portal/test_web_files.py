"""Checks of the portal's files without a browser: both languages complete, no text in code, nothing inline."""

from __future__ import annotations

import hashlib
import json
import os
import re
from html.parser import HTMLParser

import pytest

from procguard.i18n.reasons import for_portal
from remote_agent.protocol import states
from tests.rows import each

WEB = os.path.join(os.path.dirname(__file__), "..", "..", "..", "web")
LANGUAGES = ("en", "zh-CN")
NAMES = {"ProcGuard"}  # shown as they are in every language

COMMENT = re.compile(r"/\*.*?\*/|(?<![:'\"`\\])//[^\n]*", re.DOTALL)
STRING = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"|`(?:[^`\\]|\\.)*`")
# Keys as the code writes them: t('a.b') and t(`a.${x}`), and the tables and conditions that name keys.
CALL = re.compile(r"\b(?:t|hasText)\(\s*('[^']+'|`[^`]+`)")
CHINESE = re.compile(r"[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]")
SENTENCE = re.compile(r"[A-Za-z]{2,}[,;:]? [a-z]{2,}[,;:]? [a-z]+|[A-Z][a-z]+ [a-z]{2,}")
SHOWN = re.compile(
    r"(?:setText\([^,()]+,|'aria-label':|\btitle:|\bplaceholder:|\balt:|\.textContent =)\s*('[^']+'|`[^`]+`)"
)
# Class lists, selectors and commands have spaces too: `chip is-${state}`, 'input, textarea', 'invoke deploy …'.
MARKUP = re.compile(r".(?:[\w.-]+\.[\w.-]+|log-line|chip|tile|badge|invoke|\./start_worker\.sh|input, )\b")
TO_MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setTimeout\(\s*['\"`]|"
    r"\.cssText|'style'"
)


def read(*path: str) -> str:
    with open(os.path.join(WEB, *path), encoding="utf-8") as file:
        return file.read()


def locale(language: str) -> dict[str, str]:
    return dict(json.loads(read("locales", f"{language}.json")))


def served(language: str) -> dict[str, str]:
    """With the sentences of reasons, which the manager adds."""
    return locale(language) | for_portal("zh" if language == "zh-CN" else "en")


def modules() -> list[str]:
    found = []
    for folder, _, files in os.walk(os.path.join(WEB, "js")):
        found += [os.path.relpath(os.path.join(folder, name), WEB) for name in files if name.endswith(".js")]
    return sorted(found)


def code(module: str) -> str:
    """A module without its comments."""
    return COMMENT.sub(" ", read(module))


def literals(module: str) -> list[str]:
    return [match[0] for match in STRING.finditer(code(module))]


def family(template: str) -> re.Pattern[str]:
    """The keys that `event.${kind}` may name."""
    return re.compile(re.sub(r"\\\$\\\{.*?\\\}", ".+", re.escape(template)) + "$")


def test_every_key_stands_in_both_languages() -> None:
    """A language with missing texts shows keys instead."""
    english, chinese = (locale(language) for language in LANGUAGES)
    assert sorted(english) == sorted(chinese)
    assert not [key for key, text in {**english, **chinese}.items() if not text.strip()]


def test_both_languages_fill_in_the_same_values() -> None:
    """A {name} that one language lacks or misspells is shown literally."""
    english, chinese = (locale(language) for language in LANGUAGES)
    names = re.compile(r"\{\w+\}")
    different = [key for key in english if set(names.findall(english[key])) != set(names.findall(chinese[key]))]
    assert different == []


def test_no_key_is_given_twice() -> None:
    """JSON keeps the last of two silently."""
    for language in LANGUAGES:
        keys = json.loads(read("locales", f"{language}.json"), object_pairs_hook=lambda pairs: [k for k, _ in pairs])
        assert sorted(keys) == sorted(set(keys))


@each("module", modules())
def test_every_key_a_module_asks_for_exists(module: str) -> None:
    """t('key') and t(`family.${member}`): the key, or at least one of the family, has a text."""
    known = served("en")
    for written in CALL.findall(code(module)):
        key = written[1:-1]
        if "${" in key:
            assert any(family(key).match(one) for one in known), f"{module}: no text for {written}"
        else:
            assert key in known, f"{module}: no text for {key}"


def test_every_text_is_used() -> None:
    """An unused text is translated needlessly."""
    written = {literal[1:-1] for module in modules() for literal in literals(module)}
    families = [family(one) for one in written if re.match(r"[a-z]+\.\w*\$", one)]
    unused = [key for key in locale("en") if key not in written and not any(one.match(key) for one in families)]
    assert unused == []


def test_every_state_has_its_word_glyph_and_colour() -> None:
    """A new state must not appear as a bare key, a question mark or in no colour."""
    words, styles, status = locale("en"), read("css", "base.css"), read("js", "status.js")
    for state in states.ALL:
        assert f"state.{state}" in words
        assert re.search(rf"^  {state}: '.'", status, re.MULTILINE), f"no glyph for {state}"
        if state not in ("stopped", "exited"):  # settled as wished: neutral
            assert f".chip.is-{state}" in styles


@each("module", modules())
def test_no_text_stands_in_code(module: str) -> None:
    """All visible text comes from the locales, so that both languages are complete."""
    shown = [text for text in SHOWN.findall(code(module)) if re.search(r"[A-Za-z]{2}", re.sub(r"\$\{.*?\}", "", text))]
    assert [text for text in shown if text[1:-1] not in NAMES] == []
    suspicious = [
        one for one in literals(module) if CHINESE.search(one) or (SENTENCE.search(one) and not MARKUP.match(one))
    ]
    assert suspicious == []


@each("module", modules())
def test_data_enters_the_page_as_text_only(module: str) -> None:
    """Worker output, ids and reasons are data: no string becomes markup or code."""
    assert TO_MARKUP.findall(code(module)) == []


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.references: list[str] = []
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.inline.append(f"<{tag} {name}>")
            if name in ("src", "href") and value:
                self.references.append(value)

    def handle_data(self, data: str) -> None:
        if self._tag in ("script", "style") and data.strip():
            self.inline.append(f"<{self._tag}>{data.strip()[:40]}")


def test_the_page_has_nothing_inline_and_nothing_foreign() -> None:
    """The Content-Security-Policy allows neither; what the page names is in web/."""
    page = Page()
    page.feed(read("index.html"))
    assert page.inline == []
    for reference in page.references:
        assert reference.startswith("/static/"), reference
        assert os.path.exists(os.path.join(WEB, reference.removeprefix("/static/"))), reference


@each("module", modules())
def test_modules_import_only_their_own_kind(module: str) -> None:
    """No third-party or remote code; each import names an existing file."""
    for wanted in re.findall(r"^import .*?from '([^']+)'", code(module), re.MULTILINE | re.DOTALL):
        assert wanted.startswith("."), wanted
        assert os.path.exists(os.path.join(WEB, os.path.dirname(module), wanted)), f"{module}: {wanted}"


def test_what_is_of_others_is_what_was_pinned() -> None:
    """scripts/vendor_web.sh copies it: unmodified, with its licence, in the version of the lock file."""
    folder = os.path.join(WEB, "vendor", "uplot")
    said = dict(reversed(line.split()) for line in read("vendor", "uplot", "SHA256SUMS").splitlines())
    assert sorted([*said, "SHA256SUMS"]) == sorted(os.listdir(folder)) and "LICENSE" in said
    for name, digest in said.items():
        with open(os.path.join(folder, name), "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest, name
    with open(os.path.join(WEB, "..", "scripts", "web", "package-lock.json"), encoding="utf-8") as file:
        pinned = json.load(file)["packages"]["node_modules/uplot"]["version"]
    assert json.loads(read("vendor", "uplot", "package.json"))["version"] == pinned


def test_both_themes_define_the_same_colours() -> None:
    """A colour missing from the dark theme stays light; `auto` and `dark` must not diverge."""
    blocks = re.findall(r"\{([^{}]*--bg[^{}]*)\}", read("css", "tokens.css"))
    light, dark, automatic = (dict(re.findall(r"(--[\w-]+):\s*([^;]+);", block)) for block in blocks)
    assert sorted(light) == sorted(dark)
    assert dark == automatic


@pytest.mark.parametrize(
    "sheet", ["base.css", "shell.css", "pages.css", "logs.css", "operations.css", "history.css", "charts.css"]
)
def test_colours_come_from_the_themes(sheet: str) -> None:
    """A literal colour looks right in one theme only. The veil behind a dialog is the exception."""
    sheet_text = re.sub(r"\.dialog::backdrop \{[^}]*\}", "", read("css", sheet))
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|\brgb\(", sheet_text) == []
