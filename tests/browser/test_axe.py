"""Nothing for axe to find on any page, in either theme and language: what a theme changes (contrast) and a language
(names) do not act on each other, two looks see all four. A file of its own: it takes as long as the other
looks at all pages (test_appearance.py), and files run side by side."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.axe import violations
from tests.browser.conftest import Visitor
from tests.browser.pages import PORTAL_PAGES
from tests.browser.test_portal import TOO_WIDE
from tests.browser.world import World, small_world, visit

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with small_world(tmp_path_factory.mktemp("axe")) as made:
        yield made


@pytest.mark.parametrize(("locale", "theme"), [("en", "light"), ("zh-CN", "dark")])
def test_axe_finds_nothing_on_any_page(world: World, guest: Visitor, locale: str, theme: str) -> None:
    """Names, roles, contrast, order of headings; and nothing is wider than a desk's screen."""
    page = guest.open(world.rig.url, locale=locale, theme=theme)
    found = []
    for place in PORTAL_PAGES:
        visit(page, world, place)
        assert page.evaluate(TOO_WIDE) == [], place.name
        if report := violations(page):
            found.append(f"{place.name}: {report}")
    assert found == [], "\n".join(found)
