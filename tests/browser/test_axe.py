"""axe finds nothing on any page, in both themes and languages: the effects of a theme (contrast) and a language
(names) are independent, so two runs cover all four. A separate file, because it takes as long as the other checks at
all pages (test_appearance.py), and files run side by side."""

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
    """Names, roles, contrast, order of headings; and nothing is wider than a desktop screen."""
    page = guest.open(world.rig.url, locale=locale, theme=theme)
    found = []
    for place in PORTAL_PAGES:
        visit(page, world, place)
        assert page.evaluate(TOO_WIDE) == [], place.name
        if report := violations(page):
            found.append(f"{place.name}: {report}")
    assert found == [], "\n".join(found)
