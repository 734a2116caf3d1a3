"""No English sentence of ProcGuard on any page in Chinese: reasons, actors and all texts are in the page's language."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.browser.conftest import Visitor
from tests.browser.pages import PORTAL_PAGES
from tests.browser.world import World, small_world, visit

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

# Three words in a row of Latin letters, at least; a name, a key or a command alone is none.
SENTENCE = re.compile(r"(?<![\w./:=-])[A-Za-z']{2,}(?: [a-z']{2,}){2,}")
# What others wrote: commands, logs, and an operator's own words; what says of itself that it is English, such as the
# reference of the API.
OF_OTHERS = "[lang=en], code, pre, .log, .log-line, option, kbd"
TEXTS = """(others) => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (parent && !parent.closest(others) && parent.checkVisibility()) found.push(node.textContent);
  }
  return found;
}"""
# Of this world's operator, its command, and a simulated worker that refuses.
OWN_WORDS = re.compile("a new data set|python train.py|this worker refuses restarts and kills")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with small_world(tmp_path_factory.mktemp("chinese"), bundled=False) as made:
        yield made


def test_no_page_in_chinese_holds_an_english_sentence(world: World, guest: Visitor) -> None:
    page = guest.open(world.rig.url, locale="zh-CN")
    found: list[str] = []
    for place in PORTAL_PAGES:
        visit(page, world, place)
        assert page.locator("html").get_attribute("lang") == "zh-CN"
        for text in page.evaluate(TEXTS, OF_OTHERS):
            found += [f"{place.name}: {one}" for one in SENTENCE.findall(OWN_WORDS.sub("", text))]
    assert found == [], "\n".join(found)


def test_an_english_sentence_that_is_planted_in_a_page_is_found(world: World, guest: Visitor) -> None:
    page = guest.open(world.rig.url, locale="zh-CN")
    visit(page, world, PORTAL_PAGES[0])
    page.evaluate("document.body.append('nobody has translated this sentence')")
    assert any(SENTENCE.search(text) for text in page.evaluate(TEXTS, OF_OTHERS))


def test_an_error_of_the_api_is_shown_in_the_page_s_language(world: World, guest: Visitor) -> None:
    page = guest.open(world.rig.url, locale="zh-CN")
    visit(page, world, PORTAL_PAGES[0])
    asked = """async () => {
      const api = await import('/static/js/api.js');
      try { await api.get('/api/workers/nowhere/explain'); } catch (error) { return [error.message, error.language]; }
    }"""
    assert page.evaluate(asked) == ["没有 worker 'nowhere'", "zh"]
