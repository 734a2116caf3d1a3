"""The page of the HTTP API: generated from its OpenAPI description, in both languages, without remote content."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from procguard.portal.api.resource import all_routes
from tests.browser.conftest import ManagerRig, Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


def test_every_route_is_there_with_who_may_what_it_takes_and_answers(rig: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open(f"{rig.url}/#/api")
    expect(page.locator(".api-route")).to_have_count(len(all_routes()))
    page.get_by_role("searchbox").fill("restart command")
    route = page.locator(".api-route:visible")
    expect(route).to_have_count(1)
    route.locator("summary").first.click()
    for text in ("Access: operators", '"start" | "stop" | "restart" | "kill"', "command_id", "202", "409"):
        expect(route).to_contain_text(text)
    expect(page).to_have_url(re.compile(r"q=restart"))
    page.get_by_role("searchbox").fill("nothing like it")
    expect(page.get_by_text("No routes match.")).to_be_visible()
    page.get_by_role("searchbox").fill("register")
    page.get_by_role("combobox", name="Language").select_option("zh-CN")
    expect(page.get_by_text("注册一个手动启动的 worker")).to_be_visible()
