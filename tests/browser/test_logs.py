"""Logs in the portal: several at once ordered by time, searches in the page and on all hosts; recoveries and
brought back and why; output that is not kind. In real Chromium on a real manager."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import ManagerRig, Program, Visitor
from tests.browser.test_portal import settled
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

FAILS = r"""
import sys, time
for number in range(60):
    print(f"page {number}", flush=True)
print("\x1b[31mConnectionResetError\x1b[0m: peer <i>gone</i>", file=sys.stderr, flush=True)
sys.exit(3)
"""
HOSTILE = r"""
import os, sys, time
out = sys.stdout.buffer
lines = [
    "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script> &lt;b&gt;".encode(),
    b"\x1b[1;31mred\x1b[0m \x1b]8;;javascript:hacked=1\x07a link\x1b]8;;\x07 \x1b[2J\x1b[Hcleared \x1b]0;title\x07",
    "right \u202etfel ot\u202c and \u2066isolated\u2069 \u200f\u05d0\u05d1".encode(),
    b"no text: \xff\xfe\xc3( \x00 \x07 end",
    b"tab\there" + b" " * 3 + b"spaces kept",
]
for line in lines:
    out.write(line + b"\n")
out.write(b"long " + b"x" * 19_000_000 + b"\n")
out.write(b"after it all\n")
out.flush()
time.sleep(600)
"""


def run_job(rig: ManagerRig, worker_id: str, code: str) -> None:
    job = rig.directory / f"{worker_id}.py"
    job.write_text(code, encoding="utf-8")
    launcher = Program.start(
        "procguard.worker_launcher", "--worker-id", worker_id, "--manager-url", rig.url,
        "--command", f"{sys.executable} {job}",
        directory=rig.directory, name=worker_id, PROCGUARD_HOME=str(rig.directory / "home"),
    )  # fmt: skip
    rig.launchers.append(launcher)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerRig]:
    """Two workers that print continuously, one that fails repeatedly, and one with hostile output."""
    made = ManagerRig(tmp_path_factory.mktemp("logs"))
    try:
        made.start_manager("recovery.max_recovery_attempts=1")
        run_job(made, "crawler", FAILS)
        run_job(made, "hostile", HOSTILE)
        made.start_worker("worker1")
        made.start_worker("worker2")
        wait_until(lambda: made.worker("crawler").get("state") in ("failed", "backoff"), 60, "it has failed")
        wait_until(lambda: "after it all" in tail(made, "hostile"), 60, "all of its output is here")
        yield made
    finally:
        made.end()


def tail(rig: ManagerRig, worker_id: str) -> str:
    lines = rig.ask("GET", f"/api/remote-workers/{worker_id}/logs?tail=1&format=json")["lines"]
    return "".join(str(line["text"]) for line in lines)


# What is in the view, in its order: [time, whose it is, text]; the lines outside of the window are not in the page.
ROWS = """(frame) => [...frame.querySelectorAll('.log-line')]
  .map((row) => [new DOMMatrix(getComputedStyle(row).transform).f, row.querySelector('.log-at').title,
    row.querySelector('.log-who').textContent, row.querySelector('.log-text').textContent])
  .sort((a, b) => a[0] - b[0]).map((row) => row.slice(1))"""


def rows(page: Page) -> list[list[str]]:
    found: list[list[str]] = page.locator(".log-space").evaluate(ROWS)
    return found


def test_two_logs_are_one_in_the_order_of_their_times(rig: ManagerRig, visitor: Visitor) -> None:
    """A job across hosts is one merged log; each line names its worker, and the order of its stream is kept."""
    page = visitor.open(f"{rig.url}/#/logs?w=worker1,worker2")
    wait_until(lambda: {row[1] for row in rows(page)} >= {"worker1", "worker2"}, 30, "lines of both")
    shown = rows(page)
    for worker in ("worker1", "worker2"):
        numbers = [int(row[2].split()[1]) for row in shown if row[1] == worker and re.fullmatch(r"line \d+", row[2])]
        assert numbers == sorted(numbers) and len(numbers) > 3
    newest = shown[-1]
    wait_until(lambda: newest not in rows(page)[-3:], 15, "it goes on by itself")


def test_workers_are_added_by_a_glob_and_removed_and_the_address_says_which(rig: ManagerRig, visitor: Visitor) -> None:
    """By the keyboard alone; a link to the page shows the same workers, filters and all."""
    page = visitor.open(f"{rig.url}/#/logs")
    settled(page)
    expect(page.get_by_text("Select workers to read their logs together")).to_be_visible()
    field = page.get_by_role("combobox", name="Add workers")
    field.focus()
    expect(page.locator(".picker-option").first).to_be_visible()
    field.fill("work")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".chosen-worker")).to_have_text([re.compile("worker1")])
    field.fill("*er?")
    page.keyboard.press("Enter")
    expect(page.locator(".chosen-worker")).to_have_count(2)
    assert page.url.endswith("#/logs?w=worker1%2Cworker2")
    page.get_by_label("Find in these lines").fill("line .*7$")
    page.get_by_role("button", name="Matching lines only").click()
    wait_until(lambda: "only=1" in page.url, 5, "the filter is in the address")
    page.get_by_role("button", name="Remove worker1").press("Enter")
    expect(page.get_by_role("button", name="Remove worker2")).to_be_focused()
    again = visitor.open(page.url)
    expect(again.locator(".chosen-worker")).to_have_text([re.compile("worker2")])
    wait_until(lambda: len(rows(again)) > 2, 30, "its lines")
    assert [row for row in rows(again) if not re.fullmatch(r"line \d*7", row[2])] == []


def test_the_logs_of_picked_workers_are_one_click_away(rig: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open(f"{rig.url}/#/workers?q=worker")
    for worker in ("worker1", "worker2"):
        page.get_by_role("checkbox", name=worker).check()
    page.get_by_role("group", name="Actions for the selected workers").get_by_role("button", name="Logs").click()
    expect(page.locator(".chosen-worker")).to_have_text([re.compile("worker1"), re.compile("worker2")])


def test_a_regular_expression_highlights_or_filters_and_enter_goes_from_match_to_match(
    rig: ManagerRig, visitor: Visitor
) -> None:
    page = visitor.open(f"{rig.url}/#/worker/worker1")
    find = page.get_by_label("Find in these lines")
    find.fill("complaint")
    expect(page.locator(".log-count")).to_have_text(re.compile(r"^\d+ of (the newest )?[\d,]+ lines match$"))
    expect(page.locator(".log-line mark").first).to_have_text("complaint")
    assert any(row[2].startswith("line") for row in rows(page)), "highlighting hides nothing"
    find.press("Enter")
    current = page.locator(".log-line.is-current .log-text")
    expect(current).to_have_text(re.compile(r"complaint \d+"))
    expect(page.get_by_role("button", name=re.compile("paused"))).to_be_visible()
    first = int(current.inner_text().split()[1])
    find.press("Enter")
    expect(current).to_have_text(f"complaint {first - 10}")
    page.get_by_role("button", name="Matching lines only").click()
    wait_until(lambda: all(row[2].startswith("complaint") for row in rows(page)), 10, "nothing else is shown")
    for wrong, why in (("(a", "invalid regular expression"), ("(a+)+", "nested repeats can take")):
        find.fill(wrong)
        expect(page.locator(".log-problem")).to_have_text(re.compile(why))
    find.press("Escape")
    expect(page.locator(".log-count")).to_have_text(re.compile(r"^(newest )?[\d,]+ lines$"))


def test_output_that_is_not_kind_shows_as_text(rig: ManagerRig, visitor: Visitor) -> None:
    """Markup, escape sequences, links, bidirectional marks, binary data, 19 MB on one line."""
    page = visitor.open(f"{rig.url}/#/worker/hostile")
    text = page.locator(".log-line .log-text")
    expect(text.filter(has_text="after it all")).to_be_visible()
    assert [shown for shown in text.all_inner_texts() if not shown.startswith("long ")] == [
        "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script> &lt;b&gt;",
        "red a link cleared ",
        "right ⟨U+202E⟩tfel ot⟨U+202C⟩ and ⟨U+2066⟩isolated⟨U+2069⟩ \u200f\u05d0\u05d1",
        "no text: \ufffd\ufffd\ufffd( ␀ ␇ end",
        "tab\there   spaces kept",
        "after it all",
    ]
    expect(page.locator(".log-text .ansi-red")).to_have_text("red")
    assert page.locator(".log-text :is(img, script, b, a, iframe)").count() == 0
    page.get_by_role("button", name=re.compile("show all")).click()
    whole = page.get_by_role("dialog").locator("pre")
    expect(whole).to_contain_text("long xxxx")
    expect(whole).to_contain_text("bytes more]")
    page.keyboard.press("Escape")

    page.goto(f"{rig.url}/#/search?find=x&select=hostile")
    expect(page.locator(".found").first).to_be_visible()
    expect(page.locator(".found").last).to_contain_text("<img src=x onerror='window.hacked=1'>")
    assert page.locator(".found-line :is(img, script, b, a)").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.title() == "Search logs · ProcGuard"


def test_what_strangers_say_of_themselves_shows_as_text(rig: ManagerRig, visitor: Visitor) -> None:
    """An unapproved launcher chooses its command; the manager accepts only valid ids."""
    page = visitor.open(f"{rig.url}/#/hosts")
    settled(page)
    asking = {"worker_id": "stranger", "command": "<img src=x onerror=window.hacked=1>\u202e", "host": "gpu9"}
    secret = "ab" * 32
    rig.ask("POST", "/api/workers/register", {**asking, "secret_sha256": secret}, X_Forwarded_For="192.0.2.9")
    item = page.get_by_role("listitem").filter(has_text="stranger")
    expect(item).to_contain_text("<img src=x onerror=window.hacked=1>")
    item.get_by_role("button", name="Deny stranger").click()
    page.get_by_role("dialog").get_by_role("button", name="Deny").click()
    expect(item).to_have_count(0)
    page.goto(f"{rig.url}/#/worker/<img src=x onerror=window.hacked=1>")
    expect(page.locator(".empty-title").first).to_contain_text("<img")
    assert page.evaluate("window.hacked") is None
    page.wait_for_load_state("networkidle")
    page.close()
    visitor.forgive("40")  # there is no such worker


def test_a_search_on_all_hosts_shows_what_was_found_and_leads_to_the_log(rig: ManagerRig, visitor: Visitor) -> None:
    """Entered, answered host by host, each line with its time and worker; one click opens the log."""
    page = visitor.open(f"{rig.url}/#/search")
    settled(page)
    field = page.get_by_label("Search for")
    expect(field).to_be_focused()
    field.fill("connectionreset")
    page.keyboard.press("Enter")
    expect(page.locator(".search-progress")).to_contain_text(re.compile(r"\d matching lines? on 4 of 4 hosts"))
    first = page.locator(".found").first
    expect(first.locator("mark")).to_have_text("ConnectionReset")
    expect(first).to_contain_text("Error: peer <i>gone</i>")
    assert "find=connectionreset" in page.url
    page.get_by_label("Match case").check()
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".search-progress")).to_contain_text("0 matching lines")
    page.get_by_label("Match case").uncheck()
    page.get_by_label("Search mode").select_option("regex")
    field.fill("connection(reset)error|page 5[89]")
    page.get_by_label("Workers to search").fill("crawl*")
    page.keyboard.press("Enter")
    expect(page.locator(".search-progress")).to_contain_text("1 of 1 hosts")
    expect(page.locator(".found mark").first).to_be_visible()
    field.fill("(")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("regex")
    field.fill("page 59")
    page.keyboard.press("Enter")
    page.locator(".found").first.get_by_role("link").click()
    expect(page.locator(".chosen-worker")).to_have_text([re.compile("crawler")])
    expect(page.locator(".log-text mark").first).to_have_text("page 59")
    visitor.forgive("400")


LOCAL_TIME = """(() => { const d = new Date();
d.setMinutes(d.getMinutes() - d.getTimezoneOffset()); return d.toISOString().slice(0, 19); })()"""
# What was copied, kept where a test can read it.
KEEP_COPIES = "navigator.clipboard.writeText = async (text) => { window.copied = text; };"
# Plain http off this machine: no clipboard for scripts, but the older way.
NO_CLIPBOARD = """Object.defineProperty(navigator, 'clipboard', { value: undefined });
document.addEventListener('copy', () => { window.copied = String(document.activeElement.value); });"""


@pytest.mark.parametrize("clipboard", [KEEP_COPIES, NO_CLIPBOARD], ids=["https", "http"])
def test_a_found_line_opens_in_its_place_and_has_a_link(rig: ManagerRig, visitor: Visitor, clipboard: str) -> None:
    page = visitor.open(f"{rig.url}/#/search?find=page+30&select=crawler&exact=1")
    page.add_init_script(clipboard)
    page.locator(".found").first.get_by_role("link").click()
    current = page.locator(".log-line.is-current")
    expect(current.locator(".log-text")).to_have_text("page 30")
    texts = [row[2] for row in rows(page)]
    at = texts.index("page 30")
    assert texts[at - 2 : at + 3] == [f"page {number}" for number in range(28, 33)]
    assert re.search(r"at=\d+\.out\.\d+", page.url)

    page.reload()  # the address is all it takes, and now the script above counts
    expect(current.locator(".log-text")).to_have_text("page 30")
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_text("Link to this line copied")).to_be_visible()
    from_middle = (
        "(line) => { const of = (one) => { const r = one.getBoundingClientRect(); return r.top + r.height / 2; };"
    )
    from_middle += " return Math.abs(of(line) - of(line.closest('.log-scroll'))); }"
    wait_until(lambda: current.evaluate(from_middle) < 20, 5, "the line to stand in the middle")
    address = page.evaluate("window.copied")
    other = visitor.open(address)
    expect(other.locator(".log-line.is-current .log-text")).to_have_text("page 30")

    page.get_by_role("searchbox").fill("page 42")
    page.keyboard.press("Enter")
    expect(current.locator(".log-text")).to_have_text("page 42")
    page.get_by_role("button", name="Copy link").press("Enter")
    page.wait_for_function("(before) => window.copied !== before", arg=address)

    page.get_by_role("button", name="Go to newest lines").click()
    expect(current).to_have_count(0)
    expect(page.get_by_role("button", name="Follow")).to_have_attribute("aria-pressed", "true")
    assert "at=" not in page.url


def test_a_line_that_is_not_here_and_a_time_say_what_they_lead_to(rig: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open(f"{rig.url}/#/logs?w=crawler&at=1.out.99999999")
    expect(page.locator(".log-empty")).to_contain_text("The manager does not have this line")
    page.get_by_role("button", name="Follow").click()
    expect(page.locator(".log-text").first).to_be_visible()
    moment = page.evaluate(LOCAL_TIME)
    page.get_by_role("button", name="Go to time").click()
    page.get_by_label("Moment").fill(moment)
    expect(page.locator(".log-line.is-current")).to_be_visible()


# Lines of the view as [px of its upper edge, px of its height], in their order.
BOXES = """(frame) => [...frame.querySelectorAll('.log-line')]
  .map((row) => [new DOMMatrix(getComputedStyle(row).transform).f, row.offsetHeight]).sort((a, b) => a[0] - b[0])"""


def test_a_level_a_range_and_wrapping_are_in_the_address(rig: ManagerRig, visitor: Visitor) -> None:
    """Errors only; two hours or any other range; long lines complete, without overlap."""
    page = visitor.open(f"{rig.url}/#/worker/crawler")
    page.get_by_label("Level").select_option("error")
    errors = page.locator(".log-line:not(.is-marker) .log-text")
    expect(errors.first).to_contain_text("ConnectionResetError")
    assert {text[:20] for text in errors.all_inner_texts()} == {"ConnectionResetError"}
    page.get_by_role("combobox", name="Time range").select_option("last 2 h")
    wait_until(lambda: "level=error" in page.url and "since=2h" in page.url, 5, "both are in the address")
    expect(errors.first).to_contain_text("ConnectionResetError")
    page.get_by_role("combobox", name="Time range").select_option("Other range…")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("From").fill("2020-01-01T00:00:00")
    dialog.get_by_label("To").fill("2019-01-01T00:00:00")
    dialog.get_by_role("button", name="Show").last.click()
    expect(dialog.get_by_role("alert")).to_contain_text("begins before it ends")
    dialog.get_by_label("To").fill("2020-01-02T00:00:00")
    dialog.get_by_role("button", name="Show").last.click()
    expect(page.locator(".log-empty")).to_have_text("No output in this time range.")
    page.reload()
    expect(page.locator(".log-empty")).to_have_text("No output in this time range.")
    page.get_by_role("button", name="Go to newest lines").click()
    expect(errors.first).to_contain_text("ConnectionResetError")

    page.goto(f"{rig.url}/#/worker/hostile?wrap=1")
    expect(page.locator(".log-text").filter(has_text="after it all")).to_be_in_viewport()
    boxes: list[list[float]] = page.locator(".log-space").evaluate(BOXES)
    assert boxes[0][0] == 0 and max(height for _, height in boxes) > 1000
    assert [top + height for top, height in boxes[:-1]] == [top for top, _ in boxes[1:]]
    page.get_by_role("button", name="Wrap").click()
    wait_until(lambda: "wrap=0" in page.url, 5, "it is in the address")
    assert {height for _, height in page.locator(".log-space").evaluate(BOXES)} == {19}


def test_back_returns_to_the_place_on_the_page(rig: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open(f"{rig.url}/#/logs?w=worker1")
    wait_until(lambda: len(rows(page)) > 40, 30, "its lines")
    page.get_by_label("Find in these lines").fill("line 5$")
    page.keyboard.press("Enter")
    current = page.locator(".log-line.is-current")
    expect(current).to_be_in_viewport()
    place = "(line) => line.getBoundingClientRect().top"
    top = current.evaluate(place)
    page.locator(".chosen-worker a").click()
    expect(page.locator("h1")).to_have_text("worker1")
    page.go_back()
    same = page.locator(".log-line").filter(has_text=re.compile("line 5$"))
    expect(same).to_be_in_viewport()
    wait_until(lambda: abs(same.evaluate(place) - top) < 2, 10, "it stands where it stood")

    page.goto(f"{rig.url}/#/events")
    link = page.locator(".events-table").get_by_role("link").last
    link.focus()
    link.scroll_into_view_if_needed()
    before = page.locator("main").evaluate("(main) => main.scrollTop")
    href = link.get_attribute("href")
    page.keyboard.press("Enter")
    expect(page.locator(".worker-page")).to_be_visible()
    page.go_back()
    expect(page.locator(".events-table")).to_be_visible()
    wait_until(lambda: page.locator("main").evaluate("(main) => main.scrollTop") == before, 10, "as far down as before")
    wait_until(
        lambda: page.evaluate("document.activeElement.getAttribute('href')") == href, 10, "the link has the focus"
    )


def test_an_automatic_restart_shows_its_reason_and_last_lines(rig: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open(f"{rig.url}/#/recovery")
    settled(page)
    newest = page.locator(".restart-list > li").first
    expect(newest).to_contain_text("crawler")
    expect(newest).to_contain_text("failed")
    expect(newest).to_contain_text("exited with code 3")
    restart = page.locator(".restart-list > li").last
    expect(restart).to_contain_text(re.compile("running → ▷ starting|restarted at once"))
    newest.get_by_text("Last 50 lines").click()
    words = newest.locator(".words-line")
    expect(words).to_have_count(50)
    expect(words.last).to_contain_text("ConnectionResetError: peer <i>gone</i>")
    expect(words.last).to_be_in_viewport()  # a box that scrolls begins at its end
    expect(words.last.locator(".ansi-red")).to_have_text("ConnectionResetError")

    page.goto(f"{rig.url}/#/recovery/worker1")
    expect(page.get_by_text(re.compile("No restarts since"))).to_be_visible()
    expect(page.locator(".why-headline")).to_contain_text("worker1")
    page.get_by_role("button", name="Show the last 7 d").click()
    expect(page.get_by_label("Time range")).to_have_value("7d")
    assert page.url.endswith("#/recovery/worker1?since=7d")


def test_events_of_a_range_are_exported_as_they_are_filtered(rig: ManagerRig, visitor: Visitor, tmp_path: Any) -> None:
    page = visitor.open(f"{rig.url}/#/events?kind=worker_failed")
    expect(page.locator(".events-table .table-body .table-row")).to_have_count(1)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="JSON lines").click()
    waiting.value.save_as(tmp_path / "events.jsonl")
    reported = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["kind"], event["worker_id"]) for event in reported] == [("worker_failed", "crawler")]
    page.get_by_role("searchbox").fill("nothing-like-it")
    page.get_by_label("Time range").select_option("1h")
    page.get_by_role("button", name="Show the last 2 h").click()
    expect(page.get_by_label("Time range")).to_have_value("2h")


# Not the link of each of thousands of lines: with the keys, a line is found and its link copied by the button for it.
CONTROLS = """() => {
  const found = document.querySelectorAll(
    'main :is(a[href]:not(.log-at), button, input, select, summary, [tabindex="0"])');
  const visible = [...found].filter((one) => !one.disabled && one.checkVisibility({ visibilityProperty: true }));
  visible.forEach((one, number) => { one.dataset.control = number; });
  return visible.map((one) => one.outerHTML.slice(0, 120));
}"""


@pytest.mark.parametrize(
    "address", ["logs?w=worker1", "search?find=page%2059", "recovery", "recovery/crawler", "events"]
)
def test_every_control_of_a_page_is_reached_by_tab(rig: ManagerRig, visitor: Visitor, address: str) -> None:
    page = visitor.open(f"{rig.url}/#/{address}")
    settled(page)
    page.wait_for_load_state("networkidle")
    if address.startswith("logs"):
        page.get_by_role("button", name="Follow").click()  # no line, and no link in one, comes or goes
    page.locator("h1").evaluate("(heading) => heading.focus()")
    controls: list[str] = page.evaluate(CONTROLS)
    reached = set()
    for _ in range(len(controls) + 20):
        page.keyboard.press("Tab")
        number = page.evaluate("document.activeElement.dataset.control")
        if number is not None:
            reached.add(int(number))
    assert [one for number, one in enumerate(controls) if number not in reached] == []


def test_a_log_that_lost_its_oldest_attempts_says_so(rig: ManagerRig, visitor: Visitor) -> None:
    """Rotated: a marker in place of the lines."""
    page = visitor.open(f"{rig.url}/#/overview")
    shown = page.evaluate("""async () => {
      const { LogModel } = await import('/static/js/logmodel.js');
      const { LogSource } = await import('/static/js/logsource.js');
      const answer = { lines: [{ attempt: 7, stream: 'out', offset: 0, end: 2, at: 1, text: 'a' }], attempts: [7, 8] };
      window.fetch = async () => new Response(JSON.stringify(answer));
      const model = new LogModel();
      const live = { subscribe: () => () => {}, send: () => {} };
      const chosen = () => ({ attempt: '', stream: '', tail: 10 });
      const source = new LogSource({ worker: 'w', live, model, chosen, changed: () => {}, onProblem: () => {} });
      await source.load();
      return model.lines.map((line) => line.marker || line.text);
    }""")
    assert shown == ["rotated", "a"]


MERGE = """async (steps) => {
  const { LogModel } = await import('/static/js/logmodel.js');
  const model = new LogModel({ merged: true, maxLines: 6 });
  for (const [method, ...given] of steps) model[method](...given);
  return model.lines.map((line) => line.marker || `${line.worker}:${line.text}`);
}"""


def line(at: float, offset: int, text: str, **more: Any) -> dict[str, Any]:
    end = offset + len(text) + (0 if text.endswith("\n") else 1)
    return {"attempt": 1, "stream": "out", "offset": offset, "end": end, "at": at, "text": text, **more}


@pytest.mark.parametrize(
    ("steps", "lines"),
    [
        pytest.param(
            [("addLines", [line(1, 0, "a"), line(3, 2, "c")], "x"), ("addLines", [line(2, 0, "b")], "y")],
            ["x:a", "y:b", "x:c"],
            id="stored lines of another worker are put between",
        ),
        pytest.param(
            [("addPiece", line(5, 0, "late\n"), "x"), ("addPiece", line(4, 0, "early\n"), "y")],
            ["y:early", "x:late"],
            id="a piece that comes late goes where its time belongs",
        ),
        pytest.param(
            [("addPiece", line(5, 0, "one\n"), "x"), ("addPiece", {**line(1, 4, "two\n")}, "x")],
            ["x:one", "x:two"],
            id="a clock that was set back turns no stream round",
        ),
        pytest.param(
            [
                ("addLines", [line(n, 2 * n, str(n)) for n in range(5)], "x"),
                ("addLines", [line(n + 0.5, 2 * n, str(n)) for n in range(5)], "y"),
            ],
            ["x:2", "y:2", "x:3", "y:3", "x:4", "y:4"],
            id="the ring keeps the newest of all",
        ),
        pytest.param(
            [("addLines", [line(1, 0, "a")], "x"), ("addLines", [line(2, 0, "b")], "y"), ("forget", "x")],
            ["y:b"],
            id="who is no longer shown takes its lines along",
        ),
    ],
)
def test_the_merged_model(rig: ManagerRig, visitor: Visitor, steps: list[Any], lines: list[str]) -> None:
    page = visitor.open(f"{rig.url}/#/overview")
    assert page.evaluate(MERGE, steps) == lines


def test_the_ring_holds_fifty_thousand_lines_and_32_megabytes(rig: ManagerRig, visitor: Visitor) -> None:
    """More than that would be an eleven-gigabyte tab one day."""
    page = visitor.open(f"{rig.url}/#/overview")
    found = page.evaluate("""async () => {
      const { LogModel } = await import('/static/js/logmodel.js');
      const feed = (model, lines, text) => {
        let offset = 0;
        for (let n = 0; n < lines; n += 500) {
          const piece = `${text}\\n`.repeat(500);
          model.addPiece({ attempt: 1, stream: 'out', offset, end: offset + piece.length, at: 1, text: piece });
          offset += piece.length;
        }
        return [model.lines.length, model.dropped, model.bytes];
      };
      return [feed(new LogModel(), 60000, 'short'), feed(new LogModel(), 20000, 'x'.repeat(4000))];
    }""")
    assert found[0] == [50_000, 10_000, 250_000]
    assert found[1][2] <= 32 * 1024 * 1024 and found[1][0] > 8_000


def test_an_expression_that_is_too_slow_for_the_page_is_given_up_and_said_so(rig: ManagerRig, visitor: Visitor) -> None:
    """It blocks only its author's page, and only once."""
    page = visitor.open(f"{rig.url}/#/logs?w=worker1")
    settled(page)
    wait_until(lambda: len(rows(page)) > 3, 30, "its lines")
    page.evaluate("""() => {
      const { test } = RegExp.prototype;
      RegExp.prototype.test = function slow(text) {
        if (this.source === 'l.*i.*n.*e') {
          const until = performance.now() + 600;
          while (performance.now() < until);
        }
        return test.call(this, text);
      };
    }""")
    page.get_by_label("Find in these lines").fill("l.*i.*n.*e")
    expect(page.get_by_text("too slow: one line took")).to_be_visible(timeout=10_000)
    page.get_by_label("Find in these lines").fill("line")
    expect(page.get_by_text("too slow: one line took")).to_be_hidden(timeout=10_000)
