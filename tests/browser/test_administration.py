"""Administration and groups: tokens, mutes, routes, the audit, groups and managers on pages, as in the API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import ManagerRig, Visitor
from tests.browser.world import SETTINGS
from tests.rows import each
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archive")


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Iterator[ManagerRig]:
    made = ManagerRig(tmp_path_factory.mktemp("admin"))
    try:
        alerts = "alerts=[{name: memory, measure: rss_bytes, above: 1, for: 0}]"
        made.start_manager(*SETTINGS, alerts, f"logs.archive=file://{archive}")
        made.start_worker("measured")
        workers = [{"worker_id": f"t{n}", "spec": {"command": "id", "group": "finetune"}} for n in range(3)]
        gang = {"finetune": {"restart": "gang", "rendezvous": "torch"}}
        declared = [{"host": "gpu01", "ssh": {"hostname": "gpu01"}, "workers": workers}]
        made.ask("POST", "/api/deployments", {"hosts": declared, "groups": gang})
        yield made
    finally:
        made.end()


def test_a_token_is_made_shown_once_and_revoked(manager: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open(f"{manager.url}/#/overview")
    expect(page.locator(".who")).to_contain_text("(operator)")
    page.get_by_role("link", name="Administration").click()
    page.get_by_role("link", name="Tokens").click()
    expect(page.get_by_text("No tokens yet")).to_be_visible()
    page.get_by_label("Scope").select_option("enroll")
    page.get_by_label("Name").fill("lab")
    page.get_by_label("Launchers it admits").fill("8")
    page.get_by_role("button", name="Create").click()
    shown = page.get_by_role("status").locator(".command-box code")
    expect(shown).to_have_text(re.compile("^pg-"))
    secret = shown.inner_text()
    [token] = manager.ask("GET", "/api/tokens")["tokens"]
    assert (token["name"], token["scope"], token["uses_left"]) == ("lab", "enroll", 8)
    row = page.locator(".tokens-table .table-body .table-row")
    expect(row).to_contain_text("8 uses left")
    page.reload()
    expect(row).to_have_count(1)
    assert secret not in page.content()
    row.get_by_role("button", name="Revoke lab").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("No tokens yet")).to_be_visible()
    assert manager.ask("GET", "/api/tokens")["tokens"] == []
    page.get_by_role("link", name="Audit").click()
    expect(page.locator(".audit-table")).to_contain_text("DELETE /api/tokens")
    page.get_by_label("Kind").select_option("refused")
    expect(page.get_by_text("Nothing matches in this range.")).to_be_visible()


def test_what_is_muted_is_listed_with_who_and_why_and_ended(manager: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open(f"{manager.url}/#/admin/notifications?mute=host%3Dgpu01")
    expect(page.locator(".targets-table")).to_contain_text("oncall (webhook)")
    expect(page.locator(".routes-table")).to_contain_text("label.owner=li")
    page.get_by_role("button", name="Send a test message to oncall").click()
    expect(page.locator(".notice.is-error")).to_contain_text("The test message to oncall failed")
    form = page.get_by_role("form", name="Mute")
    expect(form.get_by_label("Selector")).to_have_value("host=gpu01")
    form.get_by_label("Note").fill("new disks")
    form.get_by_role("button", name="Mute").click()
    row = page.locator(".mutes-table .table-body .table-row")
    expect(row).to_contain_text("new disks")
    [mute] = manager.ask("GET", "/api/mutes")["mutes"]
    assert (mute["select"], mute["note"]) == ("host=gpu01", "new disks")
    expect(row).to_contain_text(mute["by"])
    form.get_by_label("Selector").fill("host==")
    form.get_by_role("button", name="Mute").click()
    expect(form.get_by_role("alert")).to_be_visible()
    row.get_by_role("button", name="End the mute of host=gpu01").click()
    page.get_by_role("dialog").get_by_role("button", name="End").click()
    expect(page.get_by_text("Nothing is muted.")).to_be_visible()
    assert manager.ask("GET", "/api/mutes")["mutes"] == []
    visitor.forgive("400")


def test_what_fires_is_listed_and_acknowledged(manager: ManagerRig, visitor: Visitor) -> None:
    wait_until(lambda: manager.ask("GET", "/api/alerts")["total"] == 1, 60, "the alert")
    page = visitor.open(f"{manager.url}/#/overview")
    page.get_by_role("link", name="1 alert fires").click()
    row = page.locator(".firing-table .table-body .table-row")
    expect(row).to_contain_text(re.compile(r"memory.*measured.*rss_bytes: [0-9,]+ \(limit: at most 1\)", re.DOTALL))
    row.get_by_role("button", name="Acknowledge memory of measured").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill("a known leak")
    dialog.get_by_role("button", name="Acknowledge").click()
    expect(row).to_contain_text("a known leak")
    expect(row.get_by_role("button")).to_have_count(0)
    [alert] = manager.ask("GET", "/api/alerts")["alerts"]
    assert alert["acknowledged"]["note"] == "a known leak"


def test_a_gang_is_shown_with_its_phase_and_ranks(manager: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open(f"{manager.url}/#/workers")
    page.get_by_role("link", name="Groups").click()
    [group] = manager.ask("GET", "/api/groups")["groups"]
    panel = page.get_by_role("region", name="finetune")
    expect(panel).to_contain_text("gang · torch")
    panel.get_by_text("3 members").click()
    rows = panel.locator(".members-table .table-body .table-row")
    expect(rows).to_have_count(len(group["members"]))
    for row, member in zip(rows.all(), group["members"], strict=True):
        expect(row).to_contain_text(member["worker_id"])
    page.wait_for_timeout(6_000)  # asked again meanwhile: what was unfolded stays
    expect(rows).to_have_count(3)


@each("who", ["operator", "viewer"])
def test_a_session_is_offered_what_it_may(who: str, manager: ManagerRig, visitor: Visitor) -> None:
    token = manager.ask("POST", "/api/tokens", {"scope": who, "name": f"{who}-7"})["token"]
    page = visitor.open(f"{manager.url}/")
    assert page.context.request.post(f"{manager.url}/api/login", data={"token": token}).ok
    page.reload()
    expect(page.locator(".who")).to_contain_text(f"{who}-7")
    page.goto(f"{manager.url}/#/admin/tokens")
    if who == "operator":
        page.get_by_label("Scope").select_option("operator")
        expect(page.get_by_role("button", name="Create")).to_be_disabled()
        expect(page.get_by_text("invoke token.create --name")).to_be_visible()
        return
    expect(page.get_by_text("The list of tokens is shown to operators only.")).to_be_visible()
    for section in ("notifications", "audit", "system"):
        page.goto(f"{manager.url}/#/admin/{section}")
        expect(page.locator(".list-table").first).to_be_visible()
        expect(page.get_by_role("button", name=re.compile("^(Test|End|Mute|Hand over|Send)"))).to_have_count(0)


def test_operators_see_where_logs_are_archived_and_viewers_whether(
    manager: ManagerRig, visitor: Visitor, archive: Path
) -> None:
    page = visitor.open(f"{manager.url}/#/admin/system")
    panel = page.get_by_role("region", name="Log archive")
    expect(panel).to_contain_text(f"file://{archive}")
    expect(panel).to_contain_text("works")
    token = manager.ask("POST", "/api/tokens", {"scope": "viewer", "name": "viewer-9"})["token"]
    assert page.context.request.post(f"{manager.url}/api/login", data={"token": token}).ok
    page.reload()
    expect(page.locator(".who")).to_contain_text("viewer-9")
    expect(panel).to_contain_text("file://")
    expect(panel).not_to_contain_text(str(archive))
