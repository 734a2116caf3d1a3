"""Batch operations in the browser: select, preview, confirm, inspect causes, retry; with mouse and keys.

The manager is real, the hosts are simulated: 3 hosts with 12 workers each, some of which refuse a restart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from playwright.sync_api import Locator, Page, Route, expect

from scripts.swarm import Behaviour, Swarm, default_spec
from tests.browser.axe import violations
from tests.browser.conftest import ManagerRig, Visitor
from tests.browser.test_portal import TOO_WIDE, settled
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

HOSTS, EACH = 3, 12
ALL = HOSTS * EACH


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerRig]:
    made = ManagerRig(tmp_path_factory.mktemp("operations"))
    try:
        made.start_manager()
        behaviour = Behaviour(refuse=0.1, gpus=True, gpus_per_host=8)
        with Swarm(made.url, HOSTS, EACH, seed=3, behaviour=behaviour, prefix="gpu", spec=spec) as swarm:
            swarm.wait_running(60)
            made.swarm = swarm
            yield made
    finally:
        made.end()


def spec(host: int, number: int) -> dict[str, Any]:
    """Each fails for good at its first crash."""
    made = default_spec(host, number)
    return {**made, "group": "finetune", "restart": {"policy": "never"}}


# Texts that YAML would read as something else if they were written as they are.
TRICKY = [
    "no", "1e3", "012", "1:30", "~", "- a", "a: b", "a #b", "", " x", "\u202e", "\x7f", "'", "&a", "!b", "0x1f", "=",
    "2026-11-30", "null", "plain", "/srv/data", "{a}", "[b]", "@y", "`z`", "|", ">", "\n", "训练", "<<", ".5", "1_000",
]  # fmt: skip


def workers_page(fleet: ManagerRig, visitor: Visitor, **options: object) -> Page:
    page = visitor.open(f"{fleet.url}/#/workers", **options)  # type: ignore[arg-type]
    settled(page)
    expect(page.locator(".page-head .count")).to_contain_text(str(ALL))
    return page


def wanted(fleet: ManagerRig) -> list[str]:
    return [view["desired"] for view in fleet.ask("GET", "/api/remote-workers")["workers"]]


def test_a_range_is_picked_with_shift_and_all_that_match_with_one_box(fleet: ManagerRig, visitor: Visitor) -> None:
    page = workers_page(fleet, visitor)
    boxes = page.locator(".table-body .pick")
    boxes.nth(1).click()
    boxes.nth(4).click(modifiers=["Shift"])
    bar = page.locator(".batch-bar")
    expect(bar).to_contain_text("4 selected")
    boxes.nth(2).click()
    expect(bar).to_contain_text("3 selected")
    bar.get_by_role("button", name=f"Select all {ALL} matching").click()
    expect(bar).to_contain_text(f"all {ALL} matching selected")
    page.get_by_label("Filter workers").fill("host!=gpu-00001")
    expect(bar).to_be_hidden()  # "all that match" were others
    expect(page.locator(".page-head .count")).to_contain_text(f"{ALL - EACH} of {ALL}")
    page.get_by_label("Select all matches").click()
    expect(bar).to_contain_text(f"all {ALL - EACH} matching selected")
    bar.get_by_role("button", name="Restart").click()
    expect(page.get_by_role("dialog")).to_contain_text(f"Restart {ALL - EACH} workers?")
    expect(page.get_by_role("dialog").get_by_label("By host")).not_to_contain_text("gpu-00001")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()


def test_stopping_many_asks_for_the_number_and_cancel_is_the_default(fleet: ManagerRig, visitor: Visitor) -> None:
    page = workers_page(fleet, visitor)
    page.get_by_label("Select all matches").click()
    page.locator(".batch-bar").get_by_role("button", name="Stop").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(re.compile(rf"All {ALL} matching, \d+ visible"))
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    go = dialog.get_by_role("button", name=f"Stop {ALL}")
    expect(go).to_be_disabled()
    dialog.get_by_label(f"Type {ALL} to confirm").fill(str(ALL - 1))
    expect(go).to_be_disabled()
    dialog.get_by_label(f"Type {ALL} to confirm").fill(str(ALL))
    expect(go).to_be_enabled()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert set(wanted(fleet)) == {"running"}


def test_a_restart_is_followed_to_its_causes_and_its_failures_are_retried(fleet: ManagerRig, visitor: Visitor) -> None:
    page = workers_page(fleet, visitor)
    page.get_by_label("Select all matches").click()
    page.locator(".batch-bar").get_by_role("button", name="Restart").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Concurrency").fill("10")
    dialog.get_by_label("Reason").fill("new data set")
    dialog.get_by_role("button", name=f"Restart {ALL}").click()
    expect(page.locator("h1")).to_have_text(f"Restart: {ALL} workers")
    expect(page.locator(".page-head .chip")).to_have_text(re.compile("partly failed"), timeout=60_000)
    causes = page.locator(".cause-list")
    expect(causes).to_contain_text("planted: this worker refuses restarts and kills")
    page.locator(".facets").get_by_role("button", name=re.compile("^failed")).click()
    rows = page.locator(".items-table .table-body .table-row")
    wait_until(lambda: rows.count() > 0 and "done" not in rows.first.inner_text(), 10, "only the failed")
    failed = rows.count()
    assert 0 < failed < ALL
    first = rows.first.get_by_role("link").inner_text()
    page.get_by_role("button", name=f"Retry {failed} failed").click()
    page.get_by_role("dialog").get_by_role("button", name=f"Restart {failed}").click()
    expect(page.locator("h1")).to_have_text(re.compile(rf"Restart: {failed} workers?"))
    expect(page.locator(".fact-retry_of a")).to_be_visible()
    expect(page.locator(".cause-list").get_by_role("link", name=first)).to_be_visible(timeout=30_000)
    page.get_by_role("link", name="All operations").click()
    expect(page.locator(".operations-table .table-body .table-row")).not_to_have_count(0)
    expect(page.locator(".operations-table")).to_contain_text("new data set")
    page.goto(f"{fleet.url}/#/events")
    of_all = page.locator(".events-table .table-row", has=page.get_by_role("link", name=f"Restart: {ALL} workers"))
    expect(of_all.locator(".col-change")).to_contain_text("partly failed: ")


def test_a_filter_chosen_while_results_load_is_applied(fleet: ManagerRig, visitor: Visitor) -> None:
    preview = fleet.ask("POST", "/api/operations/preview", {"command": "restart", "selector": "*"})
    begun = fleet.ask("POST", "/api/operations", {"token": preview["token"], "concurrency": 50})
    path = f"/api/operations/{begun['operation_id']}"
    wait_until(lambda: fleet.ask("GET", path)["status"] != "running", 60, "the restart to end")
    failed = fleet.ask("GET", path)["counts"]["failed"]
    page = workers_page(fleet, visitor)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(re.compile(re.escape(path) + r"\?.*result=(&|$)"), hold)
    page.goto(f"{fleet.url}/#/operation/{begun['operation_id']}")
    wait_until(lambda: page.wait_for_timeout(20) or held, 20, "the page to ask for all results")
    page.locator(".facets").get_by_role("button", name=re.compile("^failed")).click()
    for route in held:
        route.continue_()
    expect(page.locator(".items-table .table-body .table-row")).to_have_count(failed)


def test_what_has_not_begun_is_cancelled_by_a_click(fleet: ManagerRig, visitor: Visitor) -> None:
    page = workers_page(fleet, visitor)
    page.get_by_label("Select all matches").click()
    page.locator(".batch-bar").get_by_role("button", name="Restart").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Concurrency").fill("1")
    dialog.get_by_role("button", name=f"Restart {ALL}").click()
    page.get_by_role("button", name="Cancel remaining").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel remaining").click()
    expect(page.locator(".page-head .chip")).to_have_text(re.compile("cancelled"), timeout=60_000)
    expect(page.get_by_role("button", name="Retry with the rest")).to_be_visible()


# A second of the page's patience passes in a twentieth of one.
IMPATIENT = """(() => {
  const usual = AbortSignal.timeout.bind(AbortSignal);
  AbortSignal.timeout = (ms) => usual(ms / 20);
})()"""


def test_a_batch_that_takes_long_to_begin_is_waited_for(fleet: ManagerRig, visitor: Visitor) -> None:
    """Nine thousand workers on a busy machine: longer than the 15 s timeout of other requests."""
    page = workers_page(fleet, visitor)
    page.add_init_script(IMPATIENT)
    page.reload()
    settled(page)

    def slowly(route: Route) -> None:
        page.wait_for_timeout(1_500)  # 30 s of the page's patience
        route.continue_()

    page.route("**/api/operations", slowly)
    page.get_by_label("Select all matches").click()
    page.locator(".batch-bar").get_by_role("button", name="Restart").click()
    page.get_by_role("dialog").get_by_role("button", name=f"Restart {ALL}").click()
    expect(page.locator(".page-head .chip")).to_have_text(re.compile("done|partly failed"), timeout=60_000)
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_what_is_gone_is_taken_out_by_one_confirmed_request(empty_rig: ManagerRig, visitor: Visitor) -> None:
    """Undeclared and finished: 24 workers, so that the dialog asks for the number."""
    empty_rig.start_manager()
    with Swarm(empty_rig.url, 1, 24, seed=3, prefix="old", keep=True) as swarm:
        swarm.wait_running(60)
        [host] = swarm.agent_ids
        declared = [{"host": host, "ssh": {"hostname": host}, "workers": []}]
        empty_rig.ask("POST", "/api/deployments", {"hosts": declared})
        token = empty_rig.ask("POST", "/api/operations/preview", {"command": "stop", "selector": "*"})["token"]
        empty_rig.ask("POST", "/api/operations", {"token": token})
        page = visitor.open(f"{empty_rig.url}/#/workers")
        page.get_by_role("button", name="24 to remove").click(timeout=30_000)
        dialog = page.get_by_role("dialog")
        go = dialog.get_by_role("button", name="Remove 24")
        expect(go).to_be_disabled()
        assert violations(page) == ""
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.method + " " + request.url))
        dialog.get_by_label("Type 24 to confirm").fill("24")
        go.click()
        expect(page.locator(".notice")).to_contain_text("24 workers removed")
        assert [one for one in asked if "/api/" in one] == [f"POST {empty_rig.url}/api/purge"]
        assert empty_rig.ask("GET", "/api/remote-workers")["total"] == 0


def test_it_goes_with_the_keyboard_alone(fleet: ManagerRig, visitor: Visitor) -> None:
    page = workers_page(fleet, visitor)
    first = page.locator(".table-body .pick").first
    first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+Space")
    expect(page.locator(".batch-bar")).to_contain_text("3 selected")
    page.keyboard.press("Control+a")
    expect(page.locator(".batch-bar")).to_contain_text(f"all {ALL} matching")
    page.keyboard.press("Escape")
    expect(page.locator(".batch-bar")).to_be_hidden()


@pytest.mark.parametrize(("locale", "theme"), [("en", "light"), ("zh-CN", "dark")])
def test_axe_finds_nothing_and_nothing_is_too_wide(
    fleet: ManagerRig, visitor: Visitor, locale: str, theme: str
) -> None:
    """The list with a selection, and the dialog; test_appearance.py has the operations' own pages."""
    for width in (1440, 390):
        page = workers_page(fleet, visitor, locale=locale, theme=theme, width=width)
        page.locator(".table-body .pick").first.click()
        page.locator(".batch-bar .button.subtle").first.click()
        check(page, f"picked at {width}")
        page.locator(".batch-bar [data-verb=stop]").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        check(page, f"dialog at {width}")


def check(page: Page, where: str) -> None:
    assert page.evaluate(TOO_WIDE) == [], where
    assert violations(page) == "", where


def test_an_operation_is_one_row_of_the_events_which_unfolds(fleet: ManagerRig, visitor: Visitor) -> None:
    """Events that it causes are part of it; filters by operation and worker query the manager."""
    token = fleet.ask("POST", "/api/operations/preview", {"command": "restart", "selector": "host=gpu-00002"})["token"]
    begun = fleet.ask("POST", "/api/operations", {"token": token, "reason": "one row"})
    name = str(begun["operation_id"])
    wait_until(lambda: fleet.ask("GET", f"/api/operations/{name}")["status"] == "done", 60, "it has ended")
    page = visitor.open(f"{fleet.url}/#/events")
    row = page.locator(".events-table .table-body .table-row").filter(has_text="one row")
    expect(row).to_have_count(1)
    expect(row).to_contain_text(f"Restart: {EACH} workers")
    unfold = row.get_by_role("button", name=re.compile(r"\d+ events"))
    events = fleet.ask("GET", f"/api/events?operation={name}&limit=1000")["events"]
    assert len(events) >= 2 + 2 * EACH
    wait_until(lambda: int(unfold.inner_text().split()[0]) >= len(events), 10, "all of them are counted")
    rows = page.locator(".events-table .table-body .table-row")
    before = rows.count()
    unfold.press("Enter")
    expect(unfold).to_have_attribute("aria-expanded", "true")
    assert rows.count() > before + EACH
    row.get_by_role("link").first.click()
    expect(page.locator("h1")).to_have_text(f"Restart: {EACH} workers")

    page.goto(f"{fleet.url}/#/events?operation={name}")
    expect(page.locator(".page-head .count")).to_have_text(f"{len(events)} events")
    expect(page.get_by_text("Nothing older is on record.")).to_be_visible()
    page.goto(f"{fleet.url}/#/events?worker=gpu-00002-w0")
    of_it = fleet.ask("GET", "/api/events?worker=gpu-00002-w0&limit=1000")["events"]
    expect(page.locator(".page-head .count")).to_have_text(f"{len(of_it)} events")
    page.get_by_role("button", name="Worker: gpu-00002-w0").click()
    assert "worker=" not in page.url


def test_what_failed_is_grouped_by_its_cause_and_restarted_at_once(fleet: ManagerRig, visitor: Visitor) -> None:
    """From Overview: the cause is shown there; all workers with one cause are acknowledged and restarted together."""
    failing = [f"gpu-0000{host}-w{number}" for host in range(HOSTS) for number in (1, 4)]
    fleet.swarm.crash(failing)
    wait_until(
        lambda: fleet.ask("GET", "/api/remote-workers?state=failed&limit=1")["total"] == len(failing),
        20,
        "all have failed",
    )
    page = visitor.open(f"{fleet.url}/#/overview")
    group = page.locator(".problem-group")
    expect(group).to_contain_text("killed by signal 9 (SIGKILL)")
    expect(group).to_contain_text(f"{len(failing)} workers on {HOSTS} hosts")
    expect(group.locator(".problem-members > li")).to_have_count(3)
    group.get_by_role("button", name=f"Show all {len(failing)}").click()
    expect(group.locator(".problem-members > li")).to_have_count(len(failing))

    group.get_by_role("button", name="Acknowledge", exact=True).click()
    page.get_by_role("dialog").get_by_label("Reason").fill("more memory is ordered")
    page.get_by_role("dialog").get_by_role("button", name="Acknowledge").click()
    expect(group.get_by_text(re.compile("^Acknowledged by .*: more memory is ordered$"))).to_have_count(len(failing))
    expect(group.get_by_role("button", name=re.compile("^Acknowledge"))).to_have_count(0)
    acknowledged = fleet.ask("GET", "/api/events?kind=acknowledged")["events"]
    assert {event["worker_id"] for event in acknowledged} == set(failing)
    group.get_by_role("button", name=f"Mute {failing[0]}", exact=True).click()
    expect(page.get_by_role("form", name="Mute").get_by_label("Selector")).to_have_value(failing[0])
    page.go_back()

    page.goto(f"{fleet.url}/#/worker/{failing[0]}?tab=attempts")
    expect(page.locator(".why-headline")).to_contain_text("failed")
    expect(page.locator(".attempts-table .table-body .table-row").first).to_contain_text("killed by signal 9")
    page.get_by_role("tab", name="Configuration").click()
    expect(page.locator(".specification")).to_contain_text("policy: never")
    expect(page.locator(".fact-host a")).to_have_attribute("href", "#/host/gpu-00000")

    page.get_by_role("button", name="Restart").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("is not running. Restart starts it.")
    dialog.get_by_label("Reason").fill("looked at it")
    dialog.get_by_role("button", name="Restart").click()
    wait_until(lambda: fleet.worker(failing[0])["state"] == "running", 20, "it runs again")
    asked = fleet.ask("GET", f"/api/events?worker={failing[0]}&kind=command")["events"]
    assert any("looked at it" in str(event["reason"]) for event in asked)

    page.goto(f"{fleet.url}/#/overview")
    page.get_by_role("button", name=f"Restart these {len(failing) - 1}").click()
    page.get_by_role("dialog").get_by_role("button", name=f"Restart {len(failing) - 1}").click()
    expect(page.locator("h1")).to_have_text(f"Restart: {len(failing) - 1} workers")
    wait_until(lambda: fleet.ask("GET", "/api/remote-workers?state=failed&limit=1")["total"] == 0, 30, "all run again")


def test_the_lines_for_another_value_are_quoted_and_nothing_is_sent(fleet: ManagerRig, visitor: Visitor) -> None:
    """Input is quoted for YAML and templates, the command for a shell."""
    inventory = "/home/ml/it's mine/prod.yaml"
    changed = {**spec(2, 3), "env": {"LR": "0.1", "SEED": "3"}}
    specs = {f"gpu-00002-w{n}": changed if n == 3 else spec(2, n) for n in range(EACH)}
    workers = [{"worker_id": one, "spec": it, "source": f"{inventory}:{7}"} for one, it in specs.items()]
    declared = {"host": "gpu-00002", "ssh": {"hostname": "gpu-00002"}, "workers": workers}
    fleet.ask("POST", "/api/deployments", {"hosts": [declared], "inventory": {"name": f"head:{inventory}"}})
    page = visitor.open(f"{fleet.url}/#/worker/gpu-00002-w3?tab=config")
    asked: list[str] = []
    change = page.get_by_role("region", name="Change it in the inventory")
    expect(change).to_contain_text(f"{inventory}:7")
    expect(change).to_contain_text(f"This entry declares {EACH} workers")
    expect(page.get_by_role("region", name="A restart would change")).to_contain_text("env.LR: added")
    page.on("request", lambda request: asked.append(f"{request.method} {request.url} {request.post_data}"))
    change.get_by_label("New value").fill('{{ 7 * 7 }} "x"')
    change.get_by_role("button", name="Copy").first.click()
    expect(change.get_by_role("button", name="Copied")).to_be_visible()
    lines, command = change.locator("pre").all()
    # a variable beside others is a line below their env:, or it would replace them
    assert lines.inner_text() == '  LR: !unsafe "{{ 7 * 7 }} \\"x\\""' and "SEED" in change.inner_text()
    quoted = "'/home/ml/it'\\''s mine/prod.yaml'"
    assert command.inner_text() == f"invoke deploy --hosts {quoted} --limit gpu-00002"
    change.get_by_label("Restart what changed").check()
    change.get_by_label("Key").select_option("restart")
    assert lines.inner_text().startswith("restart:\n  policy: never\n")
    assert command.inner_text().endswith(" --limit gpu-00002 --restart-changed")
    assert not [one for one in asked if not one.startswith("GET ") or "7*7" in one.replace("%20", "").replace("+", "")]
    shown = page.evaluate(
        "(values) => import('/static/js/yaml.js').then((yaml) => values.map((one) => yaml.yamlScalar(one)))", TRICKY
    )
    assert [yaml.safe_load(one) for one in shown] == TRICKY


def test_gpus_are_filtered_by_state_and_by_worker(fleet: ManagerRig, visitor: Visitor) -> None:
    gpus = fleet.ask("GET", "/api/gpus")["gpus"]
    assert len(gpus) == 8 * HOSTS and "busy" in {gpu["state"] for gpu in gpus}
    page = visitor.open(f"{fleet.url}/#/gpus?state=free")
    page.get_by_role("group", name="GPUs by state").get_by_role("button", name=re.compile("^free")).click()
    rows = page.locator(".gpus-table .table-body .table-row:visible")
    expect(rows.first).to_contain_text(re.compile(r"busy.*gpu-0000\d-w"))  # every one is held
    page.get_by_label("Filter GPUs").fill("gpu-00001-w5")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("busy")


def test_the_filter_understands_selectors_completes_them_and_says_what_is_impossible(
    fleet: ManagerRig, visitor: Visitor
) -> None:
    page = workers_page(fleet, visitor)
    box, count = page.get_by_label("Filter workers"), page.locator(".page-head .count")
    for text, n in (
        ("state=running,host=gpu-00001", EACH),
        ("host=gpu-00001|gpu-00002, state!=failed", 2 * EACH),
        ("gpu-00001-*", EACH),
        ("gpu-00001-w1,gpu-00002-w1", 2),
        ("running", ALL),
        ("failed", 0),
    ):
        box.fill(text)
        expect(count).to_have_text(f"{n} of {ALL}")
        selected = fleet.ask("GET", f"/api/remote-workers?limit=1&select={quote(text.replace(', ', ','))}")
        if "=" in text or "*" in text:
            assert selected["total"] == n, "the same as the manager means by it"
    box.fill("state=faild")
    expect(page.get_by_text("There is no state “faild”")).to_be_visible()
    box.fill("")
    box.press_sequentially("gro")
    box.press("ArrowDown")
    box.press("Enter")
    expect(box).to_have_value("group=")
    box.press_sequentially("fi")
    expect(page.get_by_role("option", name="finetune")).to_contain_text(f"{ALL} workers")
    box.press("ArrowDown")
    box.press("Tab")
    expect(box).to_have_value("group=finetune")
    expect(count).to_have_text(f"{ALL} of {ALL}")

    page.keyboard.press("Control+k")
    page.get_by_role("combobox", name="Go to").fill("restart gpu-00002-w5")
    page.get_by_role("option", name="Restart gpu-00002-w5").click()
    expect(page.get_by_role("dialog")).to_contain_text("gpu-00002-w5")
    page.get_by_role("button", name="Cancel").click()


def test_old_agents_are_upgraded_together_until_one_fails(fleet: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open(f"{fleet.url}/#/hosts?old=1")
    page.get_by_text("Command that upgrades them").click()
    expect(page.get_by_text("invoke upgrade --hosts")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    page.get_by_role("button", name=f"Upgrade these {HOSTS}").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("gpu-00000 first")
    dialog.get_by_role("button", name=f"Upgrade these {HOSTS}").click()
    notice = page.locator(".notice.is-error")  # simulated hosts accept no log-in
    expect(notice).to_contain_text(f"Stopped at gpu-00000: 0 of {HOSTS} agents upgraded", timeout=60_000)
    assert [one.rpartition("/api/")[2] for one in asked] == ["hosts/gpu-00000/upgrade-agent"]
    visitor.forgive("409")


def test_a_worker_is_moved_to_a_host_that_is_named(fleet: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open(f"{fleet.url}/#/worker/gpu-00001-w4")
    page.get_by_role("button", name="Move…").click()
    dialog = page.get_by_role("dialog")
    offered = dialog.locator("option").evaluate_all("(options) => options.map((option) => option.value)")
    assert offered == ["gpu-00000", "gpu-00002"]
    dialog.get_by_label("To host").fill("nowhere")
    dialog.get_by_role("button", name="Move").click()
    expect(dialog.get_by_role("alert")).to_be_visible()
    dialog.get_by_label("To host").fill("gpu-00002")
    dialog.get_by_role("button", name="Move").click()
    wait_until(lambda: fleet.worker("gpu-00001-w4")["host"] == "gpu-00002", 40, "it lives on the other host")
    expect(page.locator(".fact-host a")).to_have_text("gpu-00002")
    visitor.forgive("404")


def test_no_page_states_a_total_or_an_absence_that_the_api_contradicts(fleet: ManagerRig, visitor: Visitor) -> None:
    """After the actions of the other tests on this fleet."""

    def total(query: str) -> int:
        return int(fleet.ask("GET", f"/api/remote-workers?limit=1&{query}")["total"])

    def shows(place: Locator, query: str) -> None:
        """Both are read again until they agree: a worker may still be changing after the last test."""
        wait_until(lambda: place.inner_text() == str(total(query)), 15.0, f"the page's and the API's total of {query}")

    settled_states = ("running", "failed", "stopped", "exited", "unknown")
    page = visitor.open(f"{fleet.url}/#/overview")
    for state in settled_states:
        shows(page.locator(f".tile.is-{state} .tile-count"), f"state={state}")
    hosts = fleet.ask("GET", "/api/hosts")["hosts"]
    connected = sum(host["agent_state"] == "connected" for host in hosts)
    figures = page.locator(".figures div")
    expect(figures.first).to_contain_text(f"{connected} of {len(hosts)}")
    expect(figures.nth(1)).to_contain_text(str(total("")))
    gpus = fleet.ask("GET", "/api/gpus")["gpus"]
    used = sum(bool(gpu["workers"] or gpu["others"]) for gpu in gpus)
    expect(figures.filter(has_text="Fleet GPUs")).to_contain_text(f"{used} of {len(gpus)} in use")
    failing = total("state=failed")
    badge = page.locator(".nav-workers .nav-count")
    expect(badge).to_be_visible(visible=failing > 0)
    if failing:
        expect(badge).to_have_text(str(failing))
    no_recoveries = page.get_by_text("No automatic restarts yet.")
    causes = "signal,agent_lost,lost,exit_code,reassigned"  # a move is among the latest, from any actor
    recoveries = fleet.ask("GET", f"/api/events?cause={causes}&limit=1")["events"]
    expect(no_recoveries).to_be_visible(visible=not recoveries)

    count = page.locator(".page-head .count")
    page.goto(f"{fleet.url}/#/workers")
    expect(count).to_have_text(f"{total('')} of {total('')}")
    for state in settled_states:
        shows(page.locator(f".facet[data-state={state}] .facet-count"), f"state={state}")
    page.goto(f"{fleet.url}/#/hosts")
    expect(count).to_have_text(f"{connected} of {len(hosts)} connected")
    rows = page.locator(".hosts-table .table-body .table-row:visible")
    expect(rows).to_have_count(len(hosts))
    for host in hosts:
        row = rows.filter(has=page.get_by_role("link", name=host["host"], exact=True))
        expect(row.locator(".col-workers")).to_have_text(str(total(f"host={host['host']}")))
    page.goto(f"{fleet.url}/#/operations")
    operations = fleet.ask("GET", "/api/operations")["operations"]
    expect(page.locator(".operations-table .table-body .table-row")).to_have_count(len(operations))
    running = sum(one["status"] in ("running", "cancelling") for one in operations)
    expect(count).to_have_text(f"{running} running, {len(operations)} in total")
    page.goto(f"{fleet.url}/#/events")
    events = fleet.ask("GET", "/api/events?limit=10000")["events"]
    shown = f"{len(events):,} events" if len(events) < 1000 else "newest 1,0"
    expect(count).to_contain_text(shown)
    code = events[-1]["reason_code"]
    page.get_by_label("Reason code").select_option(code)
    expect(page).to_have_url(re.compile(rf"reason_code={re.escape(code)}"))
    coded = fleet.ask("GET", f"/api/events?limit=10000&reason_code={code}")["events"]
    expect(count).to_contain_text(f"{len(coded):,} events" if len(coded) < 1000 else "newest 1,0")
    for worker in ("gpu-00000-w0", "gpu-00002-w11"):
        page.goto(f"{fleet.url}/#/worker/{worker}?tab=attempts")
        newest = fleet.worker(worker)["attempt"]
        rows = page.locator(".attempts-table .table-body .table-row")
        expect(rows.first).to_contain_text(str(newest))
        expect(rows).to_have_count(newest)
        expect(page.get_by_text("No events on record.")).to_be_hidden()
    pages_of_others(fleet, page, count)


def pages_of_others(fleet: ManagerRig, page: Page, count: Locator) -> None:
    """GPUs, groups, a host, operations, recovery and administration, compared with the API."""
    gpus = fleet.ask("GET", "/api/gpus")["gpus"]
    page.goto(f"{fleet.url}/#/gpus")
    free = sum(gpu["state"] == "free" for gpu in gpus)
    expect(count).to_have_text(f"{free} free of {len(gpus)}")
    for state in {gpu["state"] for gpu in gpus}:
        number = sum(gpu["state"] == state for gpu in gpus)
        expect(page.locator(f".facet[data-state={state}] .facet-count")).to_have_text(str(number))
    groups = fleet.ask("GET", "/api/groups")["groups"]
    page.goto(f"{fleet.url}/#/groups")
    expect(count).to_have_text(f"{len(groups)} of {len(groups)}")
    for group in groups:
        panel = page.get_by_role("region", name=group["group"], exact=True)
        expect(panel.locator("summary")).to_have_text(re.compile(f"^{len(group['members'])} members?$"))
        states = Counter(member["state"] for member in group["members"])
        shown = panel.locator(".split li").evaluate_all("(all) => all.map((one) => Number(one.lastChild.data))")
        assert sorted(shown) == sorted(states.values()), group["group"]
    page.goto(f"{fleet.url}/#/host/gpu-00000")
    here = fleet.ask("GET", "/api/remote-workers?limit=100&host=gpu-00000")["workers"]
    expect(page.locator(".host-workers li")).to_have_count(len(here))
    for operation in fleet.ask("GET", "/api/operations")["operations"][:3]:
        page.goto(f"{fleet.url}/#/operation/{operation['operation_id']}")
        for result, number in operation["counts"].items():
            expect(page.locator(f".facet[data-result={result}] .facet-count")).to_have_text(str(number))
    for tab, path, rows in (
        ("tokens", "/api/tokens", ".tokens-table"),
        ("notifications", "/api/mutes", ".mutes-table"),
        ("notifications", "/api/notifications", ".targets-table"),
        ("audit", "/api/audit?limit=200", ".audit-table"),
    ):
        listed = next(iter(fleet.ask("GET", path).values()))
        page.goto(f"{fleet.url}/#/admin/{tab}")
        settled(page)
        expect(page.locator(f"{rows} .table-body .table-row")).to_have_count(len(listed))
    page.goto(f"{fleet.url}/#/recovery?since=all")
    settled(page)
    expect(count).to_have_text(re.compile(r"^[\d,]+ in "))
    number = int(count.inner_text().split()[0].replace(",", ""))
    expect(page.locator(".restart-list > li")).to_have_count(min(number, 100))
    expect(page.locator(".recovery .empty")).to_be_visible(visible=number == 0)
