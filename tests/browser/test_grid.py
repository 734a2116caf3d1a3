"""The list of workers with hundreds of rows: keyboard only, filters to include and exclude, columns, lost workers.

The manager is real, the hosts are simulated: 20 hosts with 15 workers each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from scripts.swarm import Swarm
from tests.browser.conftest import ManagerRig, Visitor
from tests.browser.test_portal import settled
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

HOSTS, EACH = 20, 15
ALL = HOSTS * EACH


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ManagerRig, Swarm]]:
    made = ManagerRig(tmp_path_factory.mktemp("grid"))
    try:
        made.start_manager()
        with Swarm(made.url, HOSTS, EACH, seed=3, prefix="gpu") as swarm:
            swarm.wait_running(60)
            yield made, swarm
    finally:
        made.end()


def workers_page(fleet: tuple[ManagerRig, Swarm], visitor: Visitor, query: str = "", **options: Any) -> Page:
    page = visitor.open(f"{fleet[0].url}/#/workers{query}", **options)
    settled(page)
    expect(page.locator(".page-head .count")).to_contain_text(str(ALL))
    return page


def active(page: Page) -> str:
    """The worker whose row has the focus."""
    return str(page.evaluate("() => document.activeElement.closest('.table-row')?.querySelector('a')?.textContent"))


def test_only_rows_in_sight_exist_and_all_are_counted(fleet: tuple[ManagerRig, Swarm], visitor: Visitor) -> None:
    page = workers_page(fleet, visitor)
    grid = page.get_by_role("grid", name="Workers")
    expect(grid).to_have_attribute("aria-rowcount", str(ALL + 1))
    assert grid.locator(".table-body .table-row:visible").count() < 60
    grid.evaluate("node => { node.scrollTop = node.scrollHeight; }")
    expect(grid.get_by_role("link", name=f"gpu-{HOSTS - 1:05d}-w14")).to_be_visible()
    last = grid.locator(".table-body .table-row", has_text=f"gpu-{HOSTS - 1:05d}-w14")
    expect(last).to_have_attribute("aria-rowindex", str(ALL + 1))


def test_scrolling_moves_the_rows_there_are_and_makes_none(fleet: tuple[ManagerRig, Swarm], visitor: Visitor) -> None:
    """Creating rows costs several times as much as filling them, so scrolling would stutter. Their order in the
    document is that on the screen, for screen readers, except while it scrolls."""
    page = workers_page(fleet, visitor)
    grid = page.get_by_role("grid", name="Workers")
    locations = """node => [...node.querySelectorAll('.table-body .table-row')].filter((row) => !row.hidden)
      .map((row) => Number(row.getAttribute('aria-rowindex')))"""
    wait_until(lambda: len(set(grid.evaluate(locations))) > 20, 5, "the list is drawn")
    made = """node => {
      let made = 0;
      window.watched = new MutationObserver((changes) => { for (const one of changes) made += one.addedNodes.length; });
      window.watched.observe(node.querySelector('.table-body'), { childList: true });
      for (let step = 1; step <= 10; step += 1) {
        node.scrollTop = 500 * step;
        node.dispatchEvent(new Event('scroll'));
      }
      for (const one of window.watched.takeRecords()) made += one.addedNodes.length;
      window.watched.disconnect();
      return made;
    }"""
    assert grid.evaluate(made) <= 1  # one for the row that has the keyboard's place, above
    expect(grid.get_by_role("link", name="gpu-00009-w13")).to_be_visible()
    wait_until(
        lambda: (found := grid.evaluate(locations)) == sorted(found), 5, "the document has the order of the screen"
    )
    expect(grid.get_by_role("button", name="Restart gpu-00009-w13", exact=True)).to_be_visible()
    expect(grid.get_by_role("link", name="gpu-00009-w13")).to_have_attribute("title", "gpu-00009-w13")


# A grid of 100 rows that scrolls by one row; what its cells showed before and after a row in sight changed.
CHANGED_WHILE_SCROLLING = """async () => {
  const { Grid } = await import('/static/js/grid.js');
  const filled = [];
  const make = () => {
    const cell = document.createElement('span');
    cell.update = (item) => { filled.push(item.id); cell.textContent = item.text; };
    return cell;
  };
  const columns = [{ name: 'worker', label: 'w', width: '100px', narrow: '100px', make }];
  const grid = new Grid({ label: 'x', kind: 'workers-table', columns, keyOf: (item) => item.id });
  document.querySelector('main').replaceChildren(grid.node);
  grid.node.style.height = '400px';
  const items = Array.from({ length: 100 }, (_, at) => ({ id: `w${at}`, text: `text ${at}` }));
  grid.setItems(items);
  grid.measure();
  const scroll = (rows) => {
    filled.length = 0;
    grid.node.scrollTop = rows * grid.rowHeight;
    grid.node.dispatchEvent(new Event('scroll'));
    return [...filled];
  };
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  scroll(10);
  const within = scroll(11);
  items[12].text = 'changed';
  grid.refresh();
  scroll(12);
  const shown = grid.nodes.get('w12').textContent;
  grid.destroy();
  return { within, shown };
}"""


def test_a_row_in_sight_is_filled_again_while_scrolling_only_if_it_changed(
    fleet: tuple[ManagerRig, Swarm], visitor: Visitor
) -> None:
    found = workers_page(fleet, visitor).evaluate(CHANGED_WHILE_SCROLLING)
    assert len(found["within"]) == 1
    assert found["shown"] == "changed"


def test_the_keyboard_reaches_every_row_and_every_control(fleet: tuple[ManagerRig, Swarm], visitor: Visitor) -> None:
    """One stop for Tab; inside, rows and controls by arrows, the ends and pages by their keys, Enter opens."""
    page = workers_page(fleet, visitor)
    page.get_by_role("grid").locator(".table-head button").last.focus()
    page.keyboard.press("Tab")
    assert active(page) == "gpu-00000-w0"
    page.keyboard.press("ArrowDown")
    assert active(page) == "gpu-00000-w1"
    page.keyboard.press("End")
    assert active(page) == f"gpu-{HOSTS - 1:05d}-w14"
    page.keyboard.press("PageUp")
    middle = active(page)
    assert middle != f"gpu-{HOSTS - 1:05d}-w14"
    page.keyboard.press("PageDown")
    assert active(page) == f"gpu-{HOSTS - 1:05d}-w14"
    page.keyboard.press("Home")
    assert active(page) == "gpu-00000-w0"
    reached = []
    for _ in range(5):
        page.keyboard.press("ArrowRight")
        reached.append(page.evaluate("() => document.activeElement.dataset.verb || document.activeElement.tagName"))
    assert reached == ["INPUT", "A", "stop", "restart", "kill"]  # it runs: there is nothing to start
    page.keyboard.press("ArrowDown")
    assert page.evaluate("() => document.activeElement.dataset.verb") == "kill" and active(page) == "gpu-00000-w1"
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("gpu-00000-w1")


def test_ranges_and_all_are_picked_with_keys(fleet: tuple[ManagerRig, Swarm], visitor: Visitor) -> None:
    page = workers_page(fleet, visitor)
    page.locator(".table-body .table-row").first.focus()
    bar = page.locator(".batch-bar")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowDown")
    expect(bar).to_contain_text("4 selected")
    assert page.locator(".table-row[aria-selected=true]").count() == 4
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    expect(bar).to_contain_text("5 selected")
    page.keyboard.press("Space")
    expect(bar).to_contain_text("4 selected")
    page.keyboard.press("Control+a")
    expect(bar).to_contain_text(f"all {ALL} matching")
    page.keyboard.press("Escape")
    expect(bar).to_be_hidden()


def test_the_focus_follows_the_worker_not_the_row(fleet: tuple[ManagerRig, Swarm], visitor: Visitor) -> None:
    """Sorted by state, a failing worker jumps to the top while it has the focus; an offset of one row would act on
    another worker."""
    rig, _ = fleet
    page = workers_page(fleet, visitor, "?sort=state")
    row = page.locator(".table-body .table-row", has_text="gpu-00001-w3")
    row.get_by_role("button", name="Restart").focus()
    place = row.get_attribute("aria-rowindex")
    rig.ask("POST", "/api/workers/gpu-00001-w3/command", {"command": "stop"})
    wait_until(lambda: row.get_attribute("aria-rowindex") != place, 15, "the row has moved")
    assert active(page) == "gpu-00001-w3"
    rig.ask("POST", "/api/workers/gpu-00001-w3/command", {"command": "start"})
    wait_until(lambda: rig.worker("gpu-00001-w3")["state"] == "running", 15, "running again")


def test_values_are_included_and_excluded_and_live_in_the_address(
    fleet: tuple[ManagerRig, Swarm], visitor: Visitor
) -> None:
    page = workers_page(fleet, visitor)
    count = page.locator(".page-head .count")
    page.locator(".popover-button", has_text="Host").click()
    page.get_by_role("button", name="Only gpu-00001").click()
    page.get_by_role("button", name="Only gpu-00002").click()
    expect(count).to_contain_text(f"{2 * EACH} of {ALL}")
    page.get_by_role("button", name="Exclude gpu-00002").click()
    expect(count).to_contain_text(f"{EACH} of {ALL}")
    page.keyboard.press("Escape")
    expect(page.locator(".popover-button", has_text="Host")).to_be_focused()
    page.locator(".popover-button", has_text="Label").click()
    page.get_by_label("Find a value of Label").fill("part=1")
    page.get_by_role("button", name="Exclude part=1", exact=True).click()
    expect(count).to_contain_text(f"{EACH - 1} of {ALL}")
    address = page.evaluate("location.hash")
    assert "host=gpu-00001%2C%21gpu-00002" in address and "label=%21part" in address
    again = workers_page(fleet, visitor, address.removeprefix("#/workers"))
    expect(again.locator(".page-head .count")).to_contain_text(f"{EACH - 1} of {ALL}")
    again.get_by_role("button", name="Remove the filter “Host: gpu-00001”").click()
    expect(again.locator(".page-head .count")).to_contain_text(f"{ALL - EACH - 19} of {ALL}")
    again.get_by_role("button", name="Clear filters").click()
    expect(again.locator(".page-head .count")).to_contain_text(f"{ALL} of {ALL}")


def test_a_state_is_shown_alone_then_left_out_then_neither(fleet: tuple[ManagerRig, Swarm], visitor: Visitor) -> None:
    page = workers_page(fleet, visitor)
    running = page.locator(".facets [data-state=running]")
    running.click()
    expect(running).to_have_attribute("aria-pressed", "true")
    running.click()
    expect(page.get_by_text(f"0 of {ALL} match")).to_be_visible()
    assert "state=%21running" in page.evaluate("location.hash")
    running.click()
    expect(page.locator(".page-head .count")).to_contain_text(f"{ALL} of {ALL}")


def test_what_is_acted_on_is_what_the_filters_show(fleet: tuple[ManagerRig, Swarm], visitor: Visitor) -> None:
    """The manager is asked by a selector: it must mean the same as the page's own filters."""
    page = workers_page(fleet, visitor, "?host=!gpu-00003&label=part%3D1,part%3D2&group=!group1")
    shown = int(re.findall(r"\d+", page.locator(".page-head .count").inner_text())[0])
    assert 0 < shown < ALL
    page.get_by_label("Select all matches").click()
    page.locator(".batch-bar [data-verb=restart]").click()
    expect(page.get_by_role("dialog")).to_contain_text(f"Restart {shown} workers?")


def test_columns_are_chosen_and_remembered(fleet: tuple[ManagerRig, Swarm], visitor: Visitor) -> None:
    page = workers_page(fleet, visitor)
    page.get_by_role("button", name="Columns").click()
    page.get_by_label("Labels").check()
    page.get_by_label("Restarts").uncheck()
    page.keyboard.press("Escape")
    expect(page.get_by_role("columnheader", name="Labels")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Restarts")).to_have_count(0)
    expect(page.locator(".table-body .col-labels").first).to_contain_text("rack=r0")
    expect(page.get_by_role("columnheader", name="Worker")).to_have_attribute("aria-sort", "ascending")
    page.set_viewport_size({"width": 1280, "height": 900})  # what was chosen stays
    for name in ("Group", "Command"):
        page.get_by_role("button", name="Columns").click()
        page.get_by_label(name, exact=True).check()
        page.keyboard.press("Escape")
    for name in ("Since", "CPU", "Memory", "Labels"):
        expect(page.get_by_role("columnheader", name=name, exact=True)).to_be_visible()
    page.goto(f"{fleet[0].url}/#/overview")
    page.goto(f"{fleet[0].url}/#/workers")
    expect(page.get_by_role("columnheader", name="Labels")).to_be_visible()


def test_anything_is_reached_by_typing_its_name(fleet: tuple[ManagerRig, Swarm], visitor: Visitor) -> None:
    page = workers_page(fleet, visitor)
    page.keyboard.press("Control+k")
    page.keyboard.type("00007-w3")
    expect(page.get_by_role("option", name="gpu-00007-w3")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("gpu-00007-w3")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Overview").click()
    expect(page.locator("h1")).to_have_text("Overview")
    page.keyboard.press("/")  # this page has no filter
    page.keyboard.type("hosts")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Hosts")


def test_an_agent_never_seen_is_not_gone_so_soon(fleet: tuple[ManagerRig, Swarm], visitor: Visitor) -> None:
    """No inventory declares them any more, but their host may have run them since before this manager's start."""
    rig, _ = fleet
    olds = [{"worker_id": f"old-{number}", "spec": {"command": "x"}} for number in range(3)]
    declared: dict[str, Any] = {"hosts": [{"host": "old", "ssh": {}, "workers": olds}]}
    rig.ask("POST", "/api/deployments", declared)
    declared["hosts"][0]["workers"] = []
    rig.ask("POST", "/api/deployments", declared)
    page = visitor.open(f"{rig.url}/#/workers?host=old")
    settled(page)
    expect(page.locator(".page-head .count")).to_contain_text(f"3 of {ALL + 3}")
    page.get_by_role("button", name=re.compile("3 to remove")).click()
    dialog = page.get_by_role("dialog", name="Remove workers that no longer exist")
    expect(dialog).to_contain_text("since the manager started")
    expect(dialog.get_by_role("button", name="Remove 0")).to_be_disabled()
    dialog.get_by_role("button", name="Cancel").click()
    for old in olds:
        rig.ask("DELETE", f"/api/workers/{old['worker_id']}")
    expect(page.locator(".page-head .count")).to_contain_text(f"0 of {ALL}")
