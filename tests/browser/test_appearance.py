"""How every page (places.py) of a small fleet (world.py) looks: nothing wider than the screen, and no word cut off if
a language needs more room than English."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import Visitor
from tests.browser.pages import PORTAL_PAGES
from tests.browser.test_portal import TOO_WIDE
from tests.browser.world import World, small_world, visit

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

WEB = Path(__file__).resolve().parents[2] / "web"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with small_world(tmp_path_factory.mktemp("look")) as made:
        yield made


# The bar of pages scrolls on a phone; where one is must be in sight. Beside the page it never scrolls sideways.
NOT_IN_REACH = """() => [...document.querySelectorAll('.nav a[aria-current]')].filter((node) => {
  const range = document.createRange();
  range.selectNodeContents(node);
  const words = range.getBoundingClientRect();
  const box = node.getBoundingClientRect();
  return Math.min(box.left, words.left) < -1 || Math.max(box.right, words.right) > innerWidth + 1
    || document.querySelector('.side').scrollLeft > 0;
}).map((node) => node.textContent)"""
LAID_OUT = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.mark.parametrize("locale", ["en", "zh-CN"])
def test_no_page_is_wider_than_the_screen(world: World, guest: Visitor, locale: str) -> None:
    """From a phone to a desktop: a page never scrolls horizontally, and actions stay visible. Opened at phone width,
    then widened; test_axe.py opens pages at desktop width."""
    page = guest.open(world.rig.url, locale=locale, width=390, height=800)
    for place in PORTAL_PAGES:
        page.set_viewport_size({"width": 390, "height": 800})
        visit(page, world, place)
        assert page.evaluate(TOO_WIDE) == [], f"{place.name} at 390 px"
        assert page.evaluate(NOT_IN_REACH) == [], f"{place.name}: its tab is out of sight"
        for width in (1024, 1440):
            page.set_viewport_size({"width": width, "height": 800})
            page.evaluate(LAID_OUT)
            assert page.evaluate(TOO_WIDE) == [], f"{place.name} at {width} px"
            assert page.evaluate(NOT_IN_REACH) == [], f"{place.name}: the sidebar has scrolled at {width} px"


SHORTENED = "⟧"  # ends every text of the pseudo-locale: where it can't be seen, a text is cut
_ACCENTED = str.maketrans("aceinouyACEINOUY", "áçéíñóúýÁÇÉÍÑÓÚÝ")


def lengthened(text: str) -> str:
    """A third longer, with a visible end, and unchanged {names} and plural forms."""
    return "|".join(_longer(form) for form in text.split("|"))


def _longer(text: str) -> str:
    parts = text.replace("{", "\0{").replace("}", "}\0").split("\0")
    accented = "".join(part if part.startswith("{") else part.translate(_ACCENTED) for part in parts)
    return f"⟦{accented}{'~' * max(1, len(text) // 3)}{SHORTENED}"


# Texts that are not wholly in sight because something hides what overflows it. What can be scrolled to is in sight, and
# so is what a title tells in full: names and reasons of any length have one.
CUT = """() => {
  const cut = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    const box = text.parentElement;
    if (!text.data.includes('⟧') || !box.checkVisibility({ visibilityProperty: true })) continue;
    if (box.closest('option, [title], .skip, .hidden-text')) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    const rects = [...range.getClientRects()];
    for (let outer = box; outer && outer !== document.body; outer = outer.parentElement) {
      const style = getComputedStyle(outer);
      const hides = [['overflowX', 'left', 'right'], ['overflowY', 'top', 'bottom']];
      const frame = outer.getBoundingClientRect();
      for (const [axis, begin, end] of hides) {
        if (!['hidden', 'clip'].includes(style[axis])) continue;
        if (rects.some((rect) => rect[begin] < frame[begin] - 1.5 || rect[end] > frame[end] + 1.5)) {
          cut.push(`${text.data} in ${outer.tagName.toLowerCase()}.${outer.className}`);
        }
      }
      if (['auto', 'scroll'].includes(style.overflowX) || style.position === 'fixed') break;
    }
  }
  return [...new Set(cut)];
}"""


@pytest.mark.parametrize("width", [1440, 390])
def test_no_word_is_cut_in_a_language_that_needs_more_room(world: World, guest: Visitor, width: int) -> None:
    """With every text a third longer and its end marked, each end is still visible."""
    texts = json.loads((WEB / "locales" / "en.json").read_text(encoding="utf-8"))
    longer = {key: lengthened(text) for key, text in texts.items()}

    def pseudo(route: Route) -> None:
        route.fulfill(json=longer)

    page = guest.open("about:blank", width=width)
    page.route("**/static/locales/*.json*", pseudo)
    cut: dict[str, Any] = {}
    for place in PORTAL_PAGES:
        visit(page, world, place)
        expect(page.locator("h1")).to_be_visible()
        if found := page.evaluate(CUT):
            cut[place.name] = found
    assert cut == {}, json.dumps(cut, ensure_ascii=False, indent=1)


def test_a_chart_of_an_hour_shows_what_the_manager_keeps(world: World, visitor: Visitor) -> None:
    """Means and peaks of whole steps, also of steps that end while the page is open: no single samples."""
    answers: list[list[float]] = []
    late: list[Route] = []

    def hold(route: Route) -> None:
        late.append(route)

    def answer(route: Route) -> None:
        at = time.time() - 75 + 30 * len(answers)
        answers.append([*(answers[-1] if answers else []), at])
        series = {"cpu_percent": [10 * (one + 1) for one in range(len(answers))]}
        reported = {
            "worker_id": "worker1",
            "span": "1h",
            "step_s": 30,
            "points": 120,
            "at": answers[-1],
            "series": series,
        }
        route.fulfill(json=reported)

    page = visitor.open(f"{world.rig.url}/#/worker/worker1")
    page.route("**/api/measurements/workers/worker1?span=1h", answer)
    page.route("**/api/measurements/workers/worker1?span=15m", hold)
    page.get_by_role("tab", name="Charts").click()
    page.get_by_role("button", name="1 h", exact=True).click()
    page.get_by_role("button", name="Show as table").click()
    values = page.get_by_role("region", name="Chart data").locator("tbody tr td:first-of-type")
    expect(values).to_have_text(["10 %"])
    with page.expect_response("**/api/measurements/workers/worker1?span=15m"):
        late[0].continue_()  # answered after the range that was selected later
    expect(values).to_have_text(["20 %", "10 %"])  # that step was over already: asked for without a reload


# The labels that the edge of its canvas cuts of a chart whose range ends at a label, with and without a date.
CUT_LABELS = """async () => {
  const { Chart, loadPlots } = await import('/static/js/chart.js');
  await loadPlots();
  const drawn = [];
  const draw = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
    const half = this.textAlign === 'center' ? this.measureText(text).width / 2 : 0;
    const right = this.getTransform().transformPoint({ x, y }).x + half;
    drawn.push([text, right <= this.canvas.width]);
    draw.call(this, text, x, y);
  };
  const today = Math.floor(Date.now() / 60000) * 60;
  for (const to of [today, today - 86400 * 30]) {
    const chart = new Chart({ title: 'CPU', format: String });
    chart.node.style.width = '400px';
    document.body.append(chart.node);
    const before = drawn.length;
    chart.show([{ label: 'CPU', at: [to - 90, to], values: [1, 2] }], { from: to - 90, to, step: 10 });
    while (!drawn.slice(before).some(([text]) => text.includes(':'))) await new Promise(requestAnimationFrame);
    chart.destroy();
  }
  CanvasRenderingContext2D.prototype.fillText = draw;
  return drawn.filter(([, whole]) => !whole).map(([text]) => text);
}"""


def test_a_worker_started_by_hand_is_not_said_to_be_changed_by_a_deployment(world: World, visitor: Visitor) -> None:
    page = visitor.open(f"{world.rig.url}/#/worker/worker1?tab=config")
    settings = page.locator(".configuration")
    expect(settings).to_contain_text("End the launcher and start it with other options.")
    expect(settings).not_to_contain_text("inventory")
    expect(settings).not_to_contain_text("invoke deploy")


def test_the_last_label_of_a_chart_is_not_cut(world: World, visitor: Visitor) -> None:
    page = visitor.open(world.rig.url)
    assert page.evaluate(CUT_LABELS) == []


def test_charts_say_in_words_and_in_a_table_what_they_show(world: World, visitor: Visitor) -> None:
    page = visitor.open(f"{world.rig.url}/#/worker/worker1?tab=charts")
    cpu = page.get_by_role("img", name=re.compile("^CPU; CPU: now "))
    expect(cpu).to_be_visible()
    page.get_by_role("button", name="1 h", exact=True).click()
    expect(page.get_by_role("button", name="1 h", exact=True)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="15 min").click()
    page.get_by_role("button", name="Show as table").click()
    table = page.get_by_role("region", name="Chart data")
    expect(table.get_by_role("columnheader", name="Memory")).to_be_visible()
    expect(table.locator("tbody tr td").nth(1)).to_contain_text("iB")
    expect(cpu).to_be_hidden()
    page.get_by_role("tab", name="Charts").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Configuration")).to_be_focused()
    expect(page.locator(".config-command")).to_be_visible()
    assert "tab=config" in page.evaluate("location.hash")
    expect(page.get_by_role("button", name="Restart")).to_be_visible()  # actions stay, whichever tab is open
    page.goto(f"{world.rig.url}/#/host/gpu-00000")
    expect(page.get_by_role("img", name=re.compile("^Load; Load: now "))).to_be_visible()


def measured(route: Route) -> None:
    """Ten minutes of a worker that logs its loss and step."""
    worker = route.request.url.partition("/workers/")[2].partition("?")[0]
    at = [time.time() - 600 + 10 * number for number in range(60)]
    number = int(worker[-1])
    route.fulfill(
        json={
            "worker_id": worker,
            "span": "15m",
            "step_s": 10,
            "points": 90,
            "at": at,
            "series": {"cpu_percent": [50.0 + number] * 60, "rss_bytes": [2.0**30] * 60},
            "metrics": [
                {"name": "loss", "at": at, "series": {"value": [(number + 1) / (1 + place) for place in range(60)]}},
                {"name": "step", "at": at, "series": {"value": [100.0 * place for place in range(60)]}},
            ],
        }
    )


def test_four_losses_are_compared_over_time_and_over_steps(world: World, visitor: Visitor) -> None:
    """From the list of workers: all of a host, Compare, loss. By mouse and by keys."""
    page = visitor.open(f"{world.rig.url}/#/workers?q=gpu-00000")
    page.route("**/api/measurements/workers/*", measured)
    page.get_by_label("Select all matches").check()
    page.get_by_role("button", name="Compare").click()
    entries = page.locator(".chart-legend .chart-entry")
    expect(entries).to_have_count(4)
    page.get_by_label("What to compare").select_option(label="loss")
    chart = page.get_by_role("img", name=re.compile("^loss; gpu-00000-w0: now 0.01667, minimum 0.01667, maximum 1"))
    expect(chart).to_be_visible()
    assert "m=log%3Aloss" in page.evaluate("location.hash")
    drawn = page.evaluate(
        "[...document.querySelectorAll('.chart-swatch')].map((one) => getComputedStyle(one).color "
        "+ one.firstChild.getAttribute('stroke-dasharray'))"
    )
    assert len(set(drawn)) == 4
    whole = page.get_by_role("button", name="All of the range")
    expect(whole).to_be_hidden()
    chart.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".chart [role=status]")).to_contain_text("gpu-00000-w3 0.06667")
    page.keyboard.press("+")
    expect(whole).to_be_visible()
    page.keyboard.press("Escape")
    expect(whole).to_be_hidden()
    page.get_by_role("group", name="Over").get_by_role("button", name="step").click()
    chart.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".chart-readout")).to_have_text("5,900")
    entries.nth(1).click()
    expect(entries.nth(1)).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Show as table").click()
    expect(page.get_by_role("columnheader", name="loss gpu-00000-w1")).to_be_visible()
    page.get_by_role("button", name="Leave out gpu-00000-w3").click()
    expect(page.get_by_role("columnheader", name="loss gpu-00000-w3")).to_have_count(0)


def test_a_free_gpu_and_its_history_are_a_click_away(world: World, visitor: Visitor) -> None:
    page = visitor.open(f"{world.rig.url}/#/overview")
    page.get_by_role("link", name="GPUs", exact=True).click()
    rows = page.locator(".gpus-table .table-body .table-row")
    expect(rows.first).to_contain_text("free")
    with page.expect_response(lambda answer: answer.url.endswith("/api/gpus") and answer.status in (200, 304)) as again:
        pass
    assert again.value.request.headers["if-none-match"].startswith('W/"')
    page.get_by_role("button", name=re.compile(r"^History of GPU \d of gpu-0000\d$")).first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".chart-title")).to_have_text(["GPU", "GPU memory", "Power", "Temperature"])
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_have_count(0)


NUMBERS = """async () => {
  await (await import('/static/js/i18n.js')).loadLanguage('en');  // the page may have its modules in a bundle
  await (await import('/static/js/fields.js')).loadFields();
  const { gridColumns, ranges, readColumns } = await import('/static/js/workercolumns.js');
  const worker = { progress_percent: 62.4, eta_s: 200, metrics: { loss: 0.23104, step: 1200, oom: null } };
  const shown = gridColumns(readColumns(''), { pickCell: () => document.createElement('span'), numbers: true });
  const said = shown.filter(({ name }) => ['progress', 'metrics'].includes(name)).map(({ make }) => {
    const cell = make();
    cell.update(worker);
    return cell.textContent;
  });
  const without = gridColumns(readColumns(''), {}).map(({ name }) => name).includes('progress');
  return [...said, without, ranges([0, 1, 2, 3, 5, 6, 9])];
}"""


FORMATTED = """async () => {
  const { formatNumber, loadLanguage } = await import('/static/js/i18n.js');
  await loadLanguage('en');
  return [formatNumber(6.7, 2, 2), formatNumber(3, 2, 2), formatNumber(6.7, 2), formatNumber(3, 2)];
}"""
BEFORE = "node => getComputedStyle(node, '::before').content"


SHORT_TIMES = """async () => {
  await (await import('/static/js/i18n.js')).loadLanguage('en');
  const { formatDuration } = await import('/static/js/format.js');
  return [0, 0.04, 0.34, 0.99, 1.5, 90].map((seconds) => formatDuration(seconds));
}"""


def test_less_than_a_second_is_shown_in_tenths(world: World, visitor: Visitor) -> None:
    page = visitor.open(world.rig.url)
    assert page.evaluate(SHORT_TIMES) == ["0 s", "0 s", "0.3 s", "1 s", "1 s", "1 min 30 s"]


def test_the_numbers_of_a_column_are_aligned_and_named_where_it_has_no_head(world: World, visitor: Visitor) -> None:
    """Loads have the same number of decimals; on a phone the table of hosts has no head."""
    page = visitor.open(f"{world.rig.url}/#/hosts")
    assert page.evaluate(FORMATTED) == ["6.70", "3.00", "6.7", "3"]
    workers = page.locator(".hosts-table .table-body .col-workers a").first
    expect(workers).to_be_visible()
    assert workers.evaluate(BEFORE) == "none"
    page.set_viewport_size({"width": 390, "height": 800})
    expect(workers).to_be_visible()
    assert "Workers" in workers.evaluate(BEFORE)


def test_the_list_of_workers_says_progress_and_the_last_numbers_unasked(world: World, visitor: Visitor) -> None:
    """Their columns appear with the first worker that has any."""
    page = visitor.open(f"{world.rig.url}/#/workers")
    expect(page.locator(".workers-table .table-body .table-row").first).to_be_visible()
    expect(page.get_by_role("columnheader", name="Progress")).to_have_count(0)
    assert page.evaluate(NUMBERS) == ["loss 0.231, step 1,200", "62 %, 3 min left", False, "0–3,5,6,9"]


def test_the_charts_of_a_worker_are_pointed_at_and_zoomed_together(world: World, visitor: Visitor) -> None:
    page = visitor.open(f"{world.rig.url}/#/workers")
    page.route("**/api/measurements/workers/*", measured)
    page.goto(f"{world.rig.url}/#/worker/worker1?tab=charts")
    titles = page.locator(".chart-title")
    expect(titles).to_have_text(["loss", "step", "CPU", "Memory"])
    over = page.locator(".u-over").first.bounding_box()
    assert over is not None
    page.mouse.move(over["x"] + over["width"] * 0.5, over["y"] + 20)
    expect(page.locator(".chart-readout", has_text=re.compile(r"^\d\d:\d\d:\d\d · "))).to_have_count(4)
    page.mouse.down()
    page.mouse.move(over["x"] + over["width"] * 0.8, over["y"] + 30, steps=4)
    page.mouse.up()
    whole = page.get_by_role("button", name="All of the range")
    expect(whole).to_be_visible()
    page.locator(".u-over").nth(1).dblclick()
    expect(whole).to_be_hidden()


def test_times_are_shown_in_utc_where_that_is_chosen(world: World, visitor: Visitor) -> None:
    """Every time of a page names its zone, and the switch is remembered."""
    page = visitor.open(f"{world.rig.url}/#/events")
    time_of = page.locator(".events-table time").first
    expect(time_of).to_have_attribute("title", re.compile(r"\d\d:\d\d:\d\d\s(UTC|GMT|[A-Z]{3,4})"))
    page.context.new_cdp_session(page).send("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Shanghai"})
    page.reload()
    expect(time_of).to_have_attribute("title", re.compile(r"GMT\+8"))
    page.get_by_role("button", name=re.compile("Times in GMT")).click()
    expect(time_of).to_have_attribute("title", re.compile("UTC"))
    page.reload()
    expect(page.get_by_role("button", name=re.compile("Times in UTC"))).to_have_attribute("aria-pressed", "true")
    expect(time_of).to_have_attribute("title", re.compile("UTC"))


# The layout of the key pages. Boxes, not pixels: what a release of Chromium or a font changes in the shape of
# letters is no change of the layout, and a box that moved says which one did.
LAYOUT = Path(__file__).resolve().parents[1] / "golden" / "layout.json"
TOLERANCE_PX = 8
SHELL = [".side", ".nav li", ".page-head h1"]
KEY_PARTS = {
    "overview": [".tiles", ".tile", ".columns > .panel"],
    "workers": [".tabs", ".toolbar", ".workers-table", ".workers-table .table-head .cell"],
    "hosts": [".toolbar", ".hosts-table", ".hosts-table .table-head .cell"],
    "worker": [".worker-side", ".tabbed", ".tab-list", ".page-head .actions"],
    "worker, configuration": [".configuration"],
    "events": [".events-table", ".events-table .table-head .cell"],
    "notifications": [".tabs", ".admin-sections > *", ".mutes-table .table-head .cell"],
    "groups": [".tabs", ".toolbar"],
}
# Left edge and width of each in sight: its vertical position depends on the content above it.
BOXES = """(selectors) => Object.fromEntries(selectors.flatMap((selector) => {
  const shown = [...document.querySelectorAll(selector)].filter((node) => node.checkVisibility());
  return shown.slice(0, 14).map((node, at) => {
    const box = node.getBoundingClientRect();
    return [`${selector} #${at}`, [Math.round(box.left), Math.round(box.width)]];
  });
}))"""


def test_nothing_on_the_key_pages_has_moved(world: World, visitor: Visitor) -> None:
    """`PROCGUARD_WRITE_LAYOUT=1` records the current layout; check the pages first."""
    page = visitor.open(world.rig.url)
    found: dict[str, dict[str, list[int]]] = {}
    for width in (1440, 1024, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for place in (one for one in PORTAL_PAGES if one.name in KEY_PARTS):
            visit(page, world, place)
            found[f"{place.name} at {width}"] = page.evaluate(BOXES, SHELL + KEY_PARTS[place.name])
    if os.environ.get("PROCGUARD_WRITE_LAYOUT") == "1":
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(boxes)}" for name, boxes in found.items())
        LAYOUT.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    expected = json.loads(LAYOUT.read_text(encoding="utf-8"))
    assert moved(expected, found) == [], "look at the pages; if they are right: PROCGUARD_WRITE_LAYOUT=1"


def moved(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Elements with another position or width, and added or removed ones."""
    differences = []
    for name in sorted({*expected, *found}):
        before, now = expected.get(name, {}), found.get(name, {})
        for part in sorted({*before, *now}):
            was, is_ = before.get(part), now.get(part)
            if was is None or is_ is None or any(abs(a - b) > TOLERANCE_PX for a, b in zip(was, is_, strict=True)):
                differences.append(f"{name}: {part}: {was} -> {is_}")
    return differences


def test_a_box_that_moved_is_named() -> None:
    assert moved({"a": {".x #0": [0, 100]}}, {"a": {".x #0": [4, 104]}}) == []
    assert moved({"a": {".x #0": [0, 100]}}, {"a": {".x #0": [0, 120]}}) == ["a: .x #0: [0, 100] -> [0, 120]"]
    assert moved({"a": {".x #0": [0, 100]}}, {"a": {}}) == ["a: .x #0: [0, 100] -> None"]
