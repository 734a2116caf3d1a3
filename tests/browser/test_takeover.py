"""A page whose manager is lost, among several: it opens the next one with its view, or stays behind one name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Visitor
from tests.ports import free_port
from tests.server_process import RunningServer

VIEW = "#/workers?q=w1"


@pytest.fixture
def managers(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[RunningServer]]:
    """Two leaders, as a page sees them before and after a takeover."""
    ports = [free_port(), free_port()]
    named = request.param.format(*ports)
    made = []
    for number, port in enumerate(ports):
        (tmp_path / str(number)).mkdir()
        made.append(
            RunningServer(
                tmp_path / str(number), f"web.port={port}", f"test.managers={named}", f"test.term={28 + number}"
            )
        )
        made[number].deploy("h1", "w1", "w2")
    yield made
    for one in made:
        if one.process.poll() is None:
            one.close()


@pytest.mark.parametrize("managers", ["http://127.0.0.1:{0}+http://127.0.0.1:{1}"], indirect=True)
def test_with_two_names_the_page_goes_to_the_next_manager_and_keeps_its_view(
    managers: list[RunningServer], visitor: Visitor
) -> None:
    first, second = managers
    page = visitor.open(f"http://127.0.0.1:{first.port}/{VIEW}")
    expect(page.get_by_role("row").filter(has_text="w1")).to_be_visible()
    first.process.kill()
    first.process.wait()
    expect(page.locator(".badge.is-reconnecting")).to_contain_text("stale")
    page.wait_for_url(f"http://127.0.0.1:{second.port}/{VIEW}", timeout=30_000)
    expect(page.get_by_role("row").filter(has_text="w1")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="w2")).to_have_count(0)
    visitor.forgive_an_absent_manager()


@pytest.mark.parametrize("managers", ["http://10.255.0.1:{0}+http://10.255.0.2:{1}"], indirect=True)
def test_behind_one_name_the_page_stays_and_reconnects_to_the_new_leader(
    managers: list[RunningServer], visitor: Visitor, tmp_path: Path
) -> None:
    """The page's address is shared by the managers: the current leader responds there."""
    first, second = managers
    page = visitor.open(f"http://127.0.0.1:{first.port}/{VIEW}")
    row = page.get_by_role("row").filter(has_text="w1")
    expect(row).to_be_visible()
    page.evaluate("window.stillTheSamePage = true")
    first.process.kill()
    first.process.wait()
    expect(page.locator(".badge.is-reconnecting")).to_contain_text("stale 9 s", timeout=30_000)
    expect(row).to_be_visible()
    second.close()
    (tmp_path / "b").mkdir()
    new = RunningServer(
        tmp_path / "b",
        f"web.port={first.port}",
        "test.managers=http://10.255.0.2:1+http://10.255.0.1:1",
        "test.term=99",
    )
    try:
        new.deploy("h1", "w1")
        expect(page.locator(".badge.is-live")).to_be_visible()
        expect(row).to_be_visible()
        assert page.evaluate("window.stillTheSamePage") is True
        page.close()
    finally:
        new.close()
    visitor.forgive_an_absent_manager()
