"""The portal over https, and for a viewer: everything is visible, actions are disabled, with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Route, expect

from tests.browser.axe import violations
from tests.browser.conftest import ManagerRig, Visitor, one_worker
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]
ACTING = re.compile("^(Start|Stop|Restart|Kill|Approve|Deny|Check|Cordon|Purge)( |$)")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerRig]:
    """The modules, each of which may be missing."""
    with one_worker(tmp_path_factory.mktemp("modules"), bundled=False) as made:
        yield made


def test_the_lists_are_requested_before_all_modules_of_the_page_have_arrived(rig: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open("about:blank")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/static/js/shell.js", hold)
    with page.expect_request("**/api/live*", timeout=15_000):
        page.goto(f"{rig.url}/#/workers", wait_until="commit")
    wait_until(lambda: page.evaluate("1") and held, 15, "the request of a module")
    assert page.locator("#app > *").count() == 0
    for one in held:
        one.continue_()
    page.unroute("**/static/js/shell.js")
    expect(page.get_by_role("row").filter(has_text="worker1")).to_be_visible()


def test_over_https_the_page_is_live_acts_and_keeps_its_session_to_https(
    empty_rig: ManagerRig, visitor: Visitor
) -> None:
    """The launcher finds the CA of this machine's manager; the browser's WebSocket is one of wss."""
    empty_rig.start_manager("web.tls=auto")
    empty_rig.start_worker("worker1")
    token = empty_rig.ask("POST", "/api/tokens", {"scope": "operator", "name": "browser"})["token"]
    page = visitor.open(f"{empty_rig.url}/#/worker/worker1")
    expect(page.locator(".badge.is-live")).to_be_visible()
    expect(page.locator(".log-line").first).to_be_visible()
    assert page.context.request.post(f"{empty_rig.url}/api/login", data={"token": token}).ok
    [cookie] = page.context.cookies()
    assert cookie["secure"] and cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    page.reload()
    page.get_by_role("button", name="Restart", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Restart").click()
    wait_until(lambda: empty_rig.worker("worker1").get("attempt") == 2, 20, "restarted by a click over https")
    expect(page.locator(".log-line").filter(has_text="attempt begins").last).to_be_visible()


def test_a_viewer_sees_all_and_is_offered_nothing_to_change(rig: ManagerRig, visitor: Visitor) -> None:
    token = rig.ask("POST", "/api/tokens", {"scope": "viewer", "name": "wall screen"})["token"]
    pending = {"worker_id": "stranger", "command": "id", "host": "far", "secret_sha256": "0" * 64}
    assert rig.ask("POST", "/api/workers/register", pending, X_Forwarded_For="192.0.2.7")["status"] == "pending"
    page = visitor.open(f"{rig.url}/")
    answer = page.context.request.post(f"{rig.url}/api/login", data={"token": token})
    assert answer.ok  # its cookie is the page's from now on
    for address, seen in (
        ("#/overview", ".tile"),
        ("#/workers", ".workers-table .table-body .table-row"),
        ("#/worker/worker1", ".log-line"),
        ("#/hosts", ".pending-list li"),
        ("#/host/launcher:worker1", ".host-workers li"),
        ("#/operations", "h1"),
    ):
        page.goto(f"{rig.url}/{address}")
        page.reload()
        expect(page.locator(seen).first).to_be_visible()
        expect(page.locator(".badge.is-live")).to_be_visible()
        assert page.evaluate("document.documentElement.dataset.role") == "viewer"
        expect(page.get_by_role("button", name=ACTING)).to_have_count(0)
        expect(page.get_by_role("checkbox")).to_have_count(0)
    expect(page.get_by_text("Your token is read-only")).to_be_visible()
    page.get_by_text("Your token is read-only").click()
    expect(page.get_by_text("invoke token.create")).to_be_visible()
    assert violations(page) == ""
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Log out").click()
    page.goto(f"{rig.url}/#/worker/worker1")  # on the manager's own machine: its user again, who may act
    page.reload()
    expect(page.get_by_role("button", name=re.compile("^Restart")).first).to_be_visible()


def test_a_module_that_did_not_come_is_fetched_again_and_if_that_fails_the_page_says_so(
    rig: ManagerRig, visitor: Visitor
) -> None:
    page = visitor.open("about:blank")
    page.route("**/js/store.js", lambda route: route.abort("failed"), times=1)
    page.goto(f"{rig.url}/#/overview")
    expect(page.locator(".badge.is-live")).to_be_visible()
    page.evaluate("sessionStorage.clear()")
    page.route("**/css/pages.css", lambda route: route.abort("failed"), times=1)
    page.reload()
    expect(page.locator(".tiles")).to_have_css("display", "grid")
    page.route("**/js/store.js", lambda route: route.abort("failed"))
    page.reload()
    said = page.locator("main.not-loaded")
    expect(said).to_contain_text("could not be loaded completely")
    assert violations(page) == ""
    page.unroute("**/js/store.js")
    said.get_by_role("link", name="Load it again").click()
    expect(page.locator(".badge.is-live")).to_be_visible()
    expect(said).to_have_count(0)
    visitor.forgive("ERR_FAILED")


def test_a_page_whose_module_fails_to_load_says_so_and_is_loaded_again(rig: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open("about:blank")
    page.route("**/js/pages/groups.js", lambda route: route.abort("failed"))
    page.goto(f"{rig.url}/#/workers")
    expect(page.get_by_role("grid", name="Workers")).to_be_visible()
    page.goto(f"{rig.url}/#/groups")
    said = page.get_by_role("alert")
    expect(said).to_contain_text("The manager cannot be reached")
    page.go_back()
    expect(page.get_by_role("grid", name="Workers")).to_be_visible()
    page.go_forward()
    expect(said).to_be_visible()
    assert violations(page) == ""
    page.unroute("**/js/pages/groups.js")
    said.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("searchbox", name="Filter groups")).to_be_visible()
    visitor.forgive("ERR_FAILED")


def test_the_modules_of_other_pages_are_loaded_after_the_first_page(rig: ManagerRig, visitor: Visitor) -> None:
    """So that they open although the manager has ended."""
    page = visitor.open("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_request("**/js/pages/admin.js", timeout=60_000):
        page.goto(f"{rig.url}/#/workers")
        expect(page.get_by_role("link", name="worker1")).to_be_visible()
        assert not [one for one in asked if one.endswith(("/pages/gpus.js", "/pages/admin.js"))]
