"""The key pages compared with tests/golden/pictures, and texts that are cut off on any page with a list.

Of a fleet with names of 20 and more letters, with failures and with numbers from logs. `PROCGUARD_WRITE_PICTURES=1`
writes the pictures; look at them before they are committed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from scripts.swarm import Behaviour, Swarm, default_spec
from tests.browser.conftest import ManagerRig, Visitor
from tests.browser.pixels import difference, dress, hold_still
from tests.browser.test_appearance import LAID_OUT
from tests.browser.test_portal import settled
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "tests" / "golden" / "pictures"
DIFFERENCES = ROOT / "build" / "pictures-differ"
TOLERATED = 0.0003  # of a picture's pixels
HOST = "gpu-a100-train"
FAILED, WAITING, STOPPED, LOGS = f"{HOST}-00001-w1", f"{HOST}-00001-w2", f"{HOST}-00000-w2", f"{HOST}-00000-w0"

KEY_PAGES = {
    "overview": ("#/overview", ".problem-list li"),
    "workers": ("#/workers", ".workers-table .table-body .col-metrics"),
    "worker": (f"#/worker/{LOGS}", ".log-line"),
    "hosts": ("#/hosts", ".hosts-table .table-body .table-row"),
    "gpus": ("#/gpus", ".gpus-table .table-body .table-row"),
    "events": (f"#/events?worker={FAILED}", ".events-table .table-body .table-row"),
    "logs": (f"#/logs?w={LOGS}", ".log-line"),
}
# name of the picture -> page, width, theme, language
VIEWS = {
    **{f"1440-{name}": (name, 1440, "light", "en") for name in KEY_PAGES},
    **{f"390-{name}": (name, 390, "dark", "en") for name in KEY_PAGES},
    **{f"1440-{name}-zh": (name, 1440, "light", "zh-CN") for name in ("overview", "workers", "hosts")},
}
HEIGHTS = {1440: 900, 390: 844}


def spec(host: int, number: int) -> dict[str, Any]:
    restart = {1: {"policy": "never"}, 2: {"policy": "on-failure", "backoff_s": [900]}}.get(number, {})
    metrics = {"metrics": {"loss": r"loss=(\S+)", "step": r"step (\d+)/(\d+)"}} if number == 0 else {}
    return {**default_spec(host, number), **metrics, **({"restart": restart} if restart else {})}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerRig]:
    made = ManagerRig(tmp_path_factory.mktemp("pictures"))
    try:
        made.start_manager()
        behaviour = Behaviour(gpus=True, gpus_per_host=4, log_lines_per_s=10.0)
        with Swarm(made.url, 3, 4, seed=3, behaviour=behaviour, prefix=HOST, spec=spec) as swarm:
            swarm.wait_running(60)
            stop = {"command": "stop", "reason": "the data set is wrong"}
            made.ask("POST", f"/api/workers/{STOPPED}/command", stop)
            wait_until(lambda: made.worker(STOPPED)["state"] == "stopped", 30, "one is stopped")
            for worker, state in ((FAILED, "failed"), (WAITING, "backoff")):
                swarm.crash([worker])
                wait_until(lambda one=worker, to=state: made.worker(one)["state"] == to, 30, f"{worker} is {state}")
            workers = [{"worker_id": f"{HOST}-00002-w{number}", "spec": spec(2, number)} for number in range(4)]
            declared = {"host": f"{HOST}-00002", "ssh": {"hostname": "10.20.30.40"}, "workers": workers}
            made.ask("POST", "/api/deployments", {"hosts": [declared]})  # its address is beside its name
            made.ask("POST", "/api/tokens", {"scope": "viewer", "name": "wall-screen-of-the-lab"})
            made.ask("POST", "/api/mutes", {"select": f"host={HOST}*", "for_s": 7200, "note": "a new data set"})
            yield made
    finally:
        made.end()


FULL = "(({ scrollHeight, clientHeight }) => scrollHeight > clientHeight + 400)(document.querySelector('.log-scroll'))"


class Photographer:
    """Takes pictures of the fleet's pages."""

    def __init__(self, browser: Browser, fleet: ManagerRig) -> None:
        self._browser, self._fleet = browser, fleet

    def open(self, view: str) -> Page:
        """The page of a view, without animation."""
        name, width, theme, locale = VIEWS[view]
        address, ready = KEY_PAGES[name]
        context = self._browser.new_context(
            locale=locale,
            color_scheme="dark" if theme == "dark" else "light",
            viewport={"width": width, "height": HEIGHTS[width]},
            reduced_motion="reduce",
            timezone_id="UTC",
        )
        dress(context)
        page = context.new_page()
        page.goto(f"{self._fleet.url}/{address}")
        settled(page)
        page.locator(ready).first.wait_for(state="attached")
        page.wait_for_load_state("networkidle")
        if ready == ".log-line":  # enough of them to fill the view
            wait_until(lambda: page.evaluate(FULL) or page.wait_for_timeout(50), 30, "a full view of log lines")
        hold_still(page)
        return page


@pytest.fixture
def photographer(chromium: Browser, fleet: ManagerRig) -> Iterator[Photographer]:
    known = list(chromium.contexts)
    yield Photographer(chromium, fleet)
    for context in chromium.contexts:
        if context not in known:
            context.close()


def test_the_key_pages_look_as_they_did(photographer: Photographer, chromium: Browser) -> None:
    canvas = chromium.new_page()
    changed = []
    for view in VIEWS:
        page = photographer.open(view)
        actual = page.screenshot()
        page.context.close()
        golden = PICTURES / f"{view}.png"
        if os.environ.get("PROCGUARD_WRITE_PICTURES") == "1":
            golden.write_bytes(actual)
        found = difference(canvas, golden.read_bytes(), actual)
        if found.share > TOLERATED:
            changed.append(f"{view}: {found.share:.2%} of the picture, {found.where}")
            DIFFERENCES.mkdir(parents=True, exist_ok=True)
            for kind, picture in (("is", actual), ("was", golden.read_bytes()), ("differs", found.picture)):
                (DIFFERENCES / f"{view}-{kind}.png").write_bytes(picture)
    canvas.close()
    how = f"look at {DIFFERENCES}/*-differs.png; if the pages are right: PROCGUARD_WRITE_PICTURES=1"
    assert changed == [], "\n".join([*changed, how])


def test_a_reason_and_the_state_beside_it_name_the_same_time_until_a_restart(
    fleet: ManagerRig, visitor: Visitor
) -> None:
    """Not "14 min" beside "restart 1 of 3 in 15 min", the delay from when the reason was written."""
    page = visitor.open(f"{fleet.url}/#/workers?q={WAITING}")
    row = page.locator(".workers-table .table-body .table-row")
    expect(row.locator(".chip .extra")).to_have_text(re.compile(r"^\d+ min$"))
    left, reason = row.evaluate("(row) => ['.extra', '.col-reason'].map((part) => row.querySelector(part).textContent)")
    assert reason.endswith(f" in {left}"), (left, reason)
    page.goto(f"{fleet.url}/#/worker/{WAITING}")
    expect(page.locator(".fact-reason dd")).to_have_text(re.compile(rf" in ({left}|{int(left[:-4]) - 1} min)$"))


# The sentence that announces a restart, at each of its changes.
ANNOUNCED = """() => {
  window.announced = [];
  const list = document.querySelector('.why-list');
  const texts = () => [...list.children].map((item) => item.textContent);
  const note = () => window.announced.push(texts().find((text) => text.includes('restarted in')));
  new MutationObserver(note).observe(list, { childList: true, characterData: true, subtree: true });
}"""


def test_the_time_until_a_restart_is_counted_in_its_explanation(fleet: ManagerRig, visitor: Visitor) -> None:
    """Not only every 15 seconds."""
    page = visitor.open(f"{fleet.url}/#/worker/{WAITING}")
    expect(page.locator(".why-list")).to_contain_text("It is restarted in")
    page.evaluate(ANNOUNCED)
    wait_until(lambda: len(set(page.evaluate("window.announced"))) >= 4, 14, "the time is counted")


MISTAKES = (
    ".workers-table .col-cpu { transform: translateX(10px); }",
    ".chip.is-failed { background: var(--amber-soft) !important; }",
    ".workers-table .table-body .table-row { font-size: 15px; }",
    ".side { padding-top: 3px; }",
)
WITH_RULE = """(rule) => {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(rule);
  document.adoptedStyleSheets = [document.adoptedStyleSheets[0], sheet];
}"""


def test_a_mistake_in_a_style_is_a_difference(photographer: Photographer, chromium: Browser) -> None:
    """A column that moved by 10 px, the colour of one chip, letters of another size."""
    page, canvas = photographer.open("1440-workers"), chromium.new_page()
    right = page.screenshot()
    for mistake, seen in (("", False), *((one, True) for one in MISTAKES)):
        page.evaluate(WITH_RULE, mistake)
        assert ((found := difference(canvas, right, page.screenshot()).share) > TOLERATED) == seen, (mistake, found)
    canvas.close()


LISTS = {
    **{name: KEY_PAGES[name] for name in ("overview", "workers", "hosts", "gpus", "events")},
    "host": (f"#/host/{HOST}-00001", ".host-workers li"),
    "attempts": (f"#/worker/{FAILED}?tab=attempts", ".attempts-table .table-body .table-row"),
    "groups": ("#/groups?group=group0", ".members-table .table-body .table-row"),
    "recovery": ("#/recovery", ".restart-list li"),
    "compare": (f"#/compare?w={LOGS},{HOST}-00001-w0&m=memory", ".chart-legend li"),
    "tokens": ("#/admin/tokens", ".tokens-table .table-body .table-row"),
    "notifications": ("#/admin/notifications", ".mutes-table .table-body .table-row"),
    "audit": ("#/admin/audit", ".audit-table .table-body .table-row"),
}
# Whose end may be left out, if its title has the whole: sentences, commands and labels, and what stands beside a name.
SHORTENED = (
    ".col-reason, .reason, .col-command, .col-labels, .col-host .muted, .marks, .operation-selector, .gpu-users, .muted"
)
OUT_OF_SIGHT = "option, .hidden-text, .log-line, pre"  # or scrolled
CUT = """([shortened, hidden]) => {
  const cut = new Set();
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    const box = text.parentElement;
    if (!text.data.trim() || !box.checkVisibility({ visibilityProperty: true }) || box.closest(hidden)) continue;
    if (box.closest(shortened) && box.closest('[title]')) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    const rects = [...range.getClientRects()];
    for (let outer = box; outer && outer.tagName !== 'MAIN'; outer = outer.parentElement) {
      const { overflowX, textOverflow } = getComputedStyle(outer);
      if (['auto', 'scroll'].includes(overflowX)) break;
      if (overflowX === 'visible') continue;
      const frame = outer.getBoundingClientRect();
      const dots = textOverflow === 'ellipsis' && outer.scrollWidth > outer.clientWidth ? 12 : 0; // hide letters too
      const over = Math.max(...rects.map((rect) => Math.max(rect.right + dots - frame.right, frame.left - rect.left)));
      if (over > 1) cut.add(`${text.data.trim()} in ${outer.className}: by ${Math.round(over)} px`);
    }
  }
  return [...cut];
}"""


@pytest.mark.parametrize("locale", ["en", "zh-CN"])
def test_no_name_number_or_state_is_cut_in_a_list(fleet: ManagerRig, visitor: Visitor, locale: str) -> None:
    """At desktop width and at a smaller one: a reason is shortened, names of more than 20 letters are not."""
    page = visitor.open(fleet.url, locale=locale)
    cut = {}
    for width in (1440, 1024):
        page.set_viewport_size({"width": width, "height": 900})
        for name, (address, ready) in LISTS.items():
            page.goto(f"{fleet.url}/{address}")
            settled(page)
            page.locator(ready).first.wait_for(state="attached")
            page.evaluate(LAID_OUT)
            if found := page.evaluate(CUT, [SHORTENED, OUT_OF_SIGHT]):
                cut[f"{name} at {width} px"] = found
    assert cut == {}, "\n".join(f"{where}: {one}" for where, found in cut.items() for one in found)


# How far a text reaches out of the first cell of a column.
TOO_LONG = """([column, text]) => {
  const cell = document.querySelector(`.workers-table .table-body .col-${column}`);
  cell.textContent = text;
  return cell.scrollWidth - cell.clientWidth;
}"""


@pytest.mark.parametrize(
    ("locale", "longest"),
    [("en", "59 min 59 s"), ("en", "23 h 59 min"), ("zh-CN", "59 分钟 59 秒"), ("zh-CN", "23 小时 59 分钟")],
)
def test_the_time_in_a_state_fits_its_column(fleet: ManagerRig, visitor: Visitor, locale: str, longest: str) -> None:
    page = visitor.open(f"{fleet.url}/#/workers", locale=locale)
    settled(page)
    page.evaluate(LAID_OUT)
    for width in (1440, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(LAID_OUT)
        assert page.evaluate(TOO_LONG, ["since", longest]) <= 0


# Times whose zone is on the next line.
APART = """() => {
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  const apart = [];
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    for (const { index } of text.data.matchAll(/\\d\\sUTC/g)) {
      const range = document.createRange();
      range.setStart(text, index);
      range.setEnd(text, index + 5);
      const [first, ...others] = range.getClientRects();
      if (others.some((one) => one.top > first.top + 2)) apart.push(text.data);
    }
  }
  return apart;
}"""


def test_a_zone_is_on_the_line_of_its_time(fleet: ManagerRig, chromium: Browser) -> None:
    """On a phone in Chinese, "UTC" alone was on a second line."""
    context = chromium.new_context(locale="zh-CN", viewport={"width": 390, "height": 844}, timezone_id="UTC")
    page = context.new_page()
    apart = {}
    for name in ("attempts", "audit", "tokens", "notifications", "recovery", "events"):
        address, ready = LISTS[name]
        page.goto(f"{fleet.url}/{address}")
        settled(page)
        page.locator(ready).first.wait_for(state="attached")
        if found := page.evaluate(APART):
            apart[name] = found
    context.close()
    assert apart == {}
