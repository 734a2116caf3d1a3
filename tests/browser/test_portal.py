"""The portal in real Chromium on a real manager: view, act, read logs, lose the connection, log in."""

from __future__ import annotations

import hashlib
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.axe import violations
from tests.browser.conftest import ManagerRig, Visitor
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

WORDS = {
    "en": {"running": "running", "restart": "Restart", "stop": "Stop", "cancel": "Cancel", "live": "Live"},
    "zh-CN": {"running": "运行中", "restart": "重启", "stop": "停止", "cancel": "取消", "live": "实时"},
}


def settled(page: Page) -> None:
    """The page has its data and its connection."""
    expect(page.locator(".badge.is-live")).to_be_visible()
    expect(page.locator("h1")).to_be_visible()


def log_lines(page: Page) -> list[str]:
    return page.locator(".log-line .log-text").all_text_contents()


@pytest.mark.parametrize("locale", ["en", "zh-CN"])
def test_a_click_on_restart_shows_the_next_attempt_and_its_log_without_reload(
    rig: ManagerRig, visitor: Visitor, locale: str
) -> None:
    """The main use in the browser: a running worker, restarted by a click, running again, and its output."""
    words = WORDS[locale]
    page = visitor.open(f"{rig.url}/#/workers?cols=host,attempt,since", locale=locale)
    row = page.get_by_role("row").filter(has_text="worker1")
    expect(row.locator(".chip")).to_have_text(re.compile(words["running"]))
    page.evaluate("window.stillTheSamePage = true")
    before = rig.worker("worker1")["attempt"]

    row.get_by_role("button", name=f"{words['restart']} worker1").click()
    page.get_by_role("dialog").get_by_role("button", name=words["restart"]).click()

    expect(row.locator(".col-attempt")).to_have_text(str(before + 1))
    expect(row.locator(".chip")).to_have_text(re.compile(words["running"]))
    row.get_by_role("link", name="worker1").click()
    expect(page.locator("h1")).to_have_text("worker1")
    wait_until(lambda: any(re.fullmatch(r"line \d+", line) for line in log_lines(page)), 15, "lines of the log")
    assert page.evaluate("window.stillTheSamePage") is True
    assert rig.worker("worker1")["attempt"] == before + 1


def test_the_log_moves_on_by_itself_and_shows_output_as_text(rig: ManagerRig, visitor: Visitor) -> None:
    """Live lines come without a click; a worker's markup and escapes are text; a progress bar is its last state."""
    page = visitor.open(f"{rig.url}/#/worker/worker1")
    page.get_by_label("Attempt", exact=True).select_option(str(rig.worker("worker1")["attempt"]))
    wait_until(lambda: log_lines(page)[-1:] != [], 15, "lines of the log")
    newest = last_number(page)
    wait_until(lambda: last_number(page) > newest + 20, 15, "newer lines")

    page.locator(".log-scroll").evaluate("node => { node.scrollTop = 0; }")
    first = page.locator(".log-line .log-text", has_text="attempt begins")
    expect(first).to_have_text("attempt begins <b>not bold</b> red 训练开始")
    expect(page.locator(".log-text", has_text="loading")).to_have_text("loading 100%")
    assert page.locator(".log-text b").count() == 0


def last_number(page: Page) -> int:
    return max((int(line.split()[1]) for line in log_lines(page) if line.startswith("line ")), default=0)


def test_last_seen_follows_the_agent_though_its_worker_does_not_change(rig: ManagerRig, visitor: Visitor) -> None:
    """A stopped worker is unchanged for hours, while its agent sends heartbeats."""
    rig.ask("POST", "/api/workers/worker1/command", {"command": "stop"})
    try:
        wait_until(lambda: rig.worker("worker1")["state"] == "stopped", 15, "stopped")
        page = visitor.open(f"{rig.url}/#/worker/worker1")
        expect(page.locator(".page-head .chip.is-stopped")).to_be_visible()
        seen = page.locator(".fact-seen span")
        for what in ("when it was heard", "a later sign of it", "one later still"):
            before = seen.get_attribute("title")
            wait_until(lambda before=before: seen.get_attribute("title") not in (None, "", before), 20, what)
    finally:
        rig.ask("POST", "/api/workers/worker1/command", {"command": "start"})
        wait_until(lambda: rig.worker("worker1")["state"] == "running", 15, "running again")


def test_scrolling_up_pauses_the_log_and_says_how_much_is_new(rig: ManagerRig, visitor: Visitor) -> None:
    """A reader's position is kept, the paused log is visible, and one click returns to the end."""
    page = visitor.open(f"{rig.url}/#/worker/worker1")
    wait_until(lambda: last_number(page) > 60, 30, "more lines than fit")
    page.locator(".log-scroll").hover()
    page.mouse.wheel(0, -400)
    paused = page.get_by_role("button", name=re.compile(r"paused – \d+ new"))
    expect(paused).to_be_visible()
    top = page.locator(".log-scroll").evaluate("node => node.scrollTop")
    expect(paused).to_have_text(re.compile(r"paused – \d\d+ new"))  # ten and more came, and nothing moved
    assert page.locator(".log-scroll").evaluate("node => node.scrollTop") == top
    paused.click()
    expect(paused).to_be_hidden()


def test_every_line_of_an_attempt_is_there_once(rig: ManagerRig, visitor: Visitor) -> None:
    """Stored lines and live pieces join without gaps and duplicates, on both streams."""
    page = visitor.open(f"{rig.url}/#/worker/worker1")
    page.get_by_label("Attempt", exact=True).select_option(str(rig.worker("worker1")["attempt"]))
    wait_until(lambda: last_number(page) > 40, 30, "lines")
    assert_every_line_once(page)


def assert_every_line_once(page: Page) -> set[str]:
    """Returns the texts of all that is shown."""
    texts: set[str] = set()
    page.get_by_role("button", name="Follow").click()  # pause: what is read stays where it is
    locations: dict[int, set[str]] = {}
    scroller = page.locator(".log-scroll")
    for top in range(0, int(scroller.evaluate("node => node.scrollHeight")), 300):
        for place, text in scroller.evaluate(LINES_AT, top):
            texts.add(text)
            if found := re.fullmatch(r"line (\d+)", text):
                locations.setdefault(int(found[1]), set()).add(place)
    assert sorted(locations) == list(range(1, max(locations) + 1))
    assert [number for number, where in locations.items() if len(where) > 1] == []
    return texts


LINES_AT = """async (scroller, top) => {
  scroller.scrollTop = top;
  for (let frames = 0; frames < 3; frames += 1) await new Promise((done) => requestAnimationFrame(done));
  return [...scroller.querySelectorAll('.log-line')].map((line) => [
    line.style.transform,
    line.querySelector('.log-text').textContent,
  ]);
}"""


def test_stop_asks_first_and_cancel_changes_nothing(rig: ManagerRig, visitor: Visitor) -> None:
    """Protection against a wrong click: the dialog names worker and host, and Cancel has the focus."""
    page = visitor.open(f"{rig.url}/#/worker/worker1")
    settled(page)
    before = rig.worker("worker1")
    page.get_by_role("button", name="Stop").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text("Stop worker1?")
    expect(dialog).to_contain_text(before["host"])
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    after = rig.worker("worker1")
    assert (after["state"], after["desired"], after["pid"]) == ("running", "running", before["pid"])


def test_stopped_and_started_again_from_the_page(rig: ManagerRig, visitor: Visitor) -> None:
    """Stop and start converge; the page offers exactly the valid actions of each state."""
    page = visitor.open(f"{rig.url}/#/worker/worker1")
    settled(page)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    expect(page.locator(".page-head .chip.is-stopped")).to_be_visible()
    expect(page.get_by_role("button", name="Restart")).to_be_enabled()  # of one that has ended it means start
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_role("dialog").get_by_label("Reason").fill("the data set is complete")
    page.get_by_role("dialog").get_by_role("button", name="Start").click()
    expect(page.locator(".page-head .chip.is-running")).to_be_visible()
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    asked = rig.ask("GET", "/api/events?worker=worker1&kind=command")["events"]
    assert any("the data set is complete" in str(event["reason"]) for event in asked)


def test_filters_live_in_the_address(rig: ManagerRig, visitor: Visitor) -> None:
    """A filtered view has a shareable URL; an empty result is stated, with a way to clear the filter."""
    page = visitor.open(f"{rig.url}/#/workers?state=failed&q=train")
    expect(page.get_by_text("0 of 1 match")).to_be_visible()
    page.get_by_role("button", name="Clear filters").first.click()
    expect(page.get_by_role("link", name="worker1")).to_be_visible()
    assert page.evaluate("location.hash") == "#/workers"
    page.keyboard.press("Escape")
    page.get_by_label("Filter workers").fill("nothing like it")
    wait_until(lambda: "q=nothing" in page.evaluate("location.hash"), 5, "the filter in the address")
    expect(page.get_by_text("0 of 1 match")).to_be_visible()


def test_the_language_can_be_changed_and_stays(rig: ManagerRig, visitor: Visitor) -> None:
    """?lang takes precedence over the browser's language; the switch takes precedence over both, and is stored."""
    page = visitor.open(f"{rig.url}/?lang=zh-CN#/overview", locale="en-GB")
    expect(page.locator("h1")).to_have_text("总览")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.get_by_label("语言").select_option("en")
    expect(page.locator("h1")).to_have_text("Overview")
    page.goto(f"{rig.url}/#/overview")
    expect(page.locator("h1")).to_have_text("Overview")


@pytest.mark.parametrize(("locale", "words"), [("en", "has been running on"), ("zh-CN", "上运行")])
def test_the_worker_s_page_says_why_in_its_own_language(
    rig: ManagerRig, visitor: Visitor, locale: str, words: str
) -> None:
    page = visitor.open(rig.url + "/#/worker/worker1", locale=locale)
    why = page.locator("section.why")
    expect(why.locator(".why-headline")).to_contain_text(words)
    expect(why.locator(".why-list li").first).not_to_be_empty()


# When the state on the page changed, and when its explanation was requested, in ms.
TIMES = """() => {
  window.times = { changed: [], asked: [] };
  const real = window.fetch;
  window.fetch = (path, options) => {
    if (String(path).includes('/explain')) window.times.asked.push(performance.now());
    return real(path, options);
  };
  new MutationObserver(() => window.times.changed.push(performance.now()))
    .observe(document.querySelector('.page-head .chip'), { attributeFilter: ['class'] });
}"""


def test_the_explanation_follows_a_change_of_state_at_once(rig: ManagerRig, visitor: Visitor) -> None:
    """It is requested with the change, not after a delay."""
    page = visitor.open(f"{rig.url}/#/worker/worker1")
    expect(page.locator(".why-headline")).to_contain_text("has been running")
    page.wait_for_load_state("networkidle")
    page.evaluate(TIMES)
    attempt = rig.worker("worker1")["attempt"]
    rig.ask("POST", "/api/workers/worker1/command", {"command": "restart"})
    again = lambda: (now := rig.worker("worker1"))["attempt"] > attempt and now["state"] == "running"  # noqa: E731
    wait_until(again, 30, "it runs again")
    wait_until(lambda: page.evaluate("window.times.asked.length > 0"), 10, "the explanation was requested")
    times = page.evaluate("window.times")
    assert min(times["asked"]) - min(times["changed"]) < 200, times


TOO_WIDE = """() => {
  const boxes = [document.documentElement, ...document.querySelectorAll('main, .table, .tab-panel')];
  return boxes.filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.className || box.tagName);
}"""


def test_an_empty_fleet_says_what_to_type(empty_rig: ManagerRig, visitor: Visitor) -> None:
    """A new user first sees the next command to run."""
    empty_rig.start_manager()
    page = visitor.open(f"{empty_rig.url}/")
    expect(page.get_by_text("invoke init ml@gpu01 ml@gpu02")).to_be_visible()
    expect(page.get_by_text("invoke deploy --hosts inventory.yaml")).to_be_visible()
    expect(page.get_by_text(f"--manager-url {empty_rig.url}")).to_be_visible()
    assert violations(page) == ""


def test_data_stay_while_the_manager_is_away_and_are_live_again_when_it_returns(
    empty_rig: ManagerRig, visitor: Visitor
) -> None:
    """A restart of the manager with an open page: data stays, the badge shows its age, no reload is needed."""
    empty_rig.start_manager()
    empty_rig.start_worker("worker1")
    page = visitor.open(f"{empty_rig.url}/#/workers")
    settled(page)
    row = page.get_by_role("row").filter(has_text="worker1")
    expect(row).to_be_visible()
    page.evaluate("window.stillTheSamePage = true")

    assert empty_rig.manager is not None
    empty_rig.manager.end(signal.SIGKILL)
    expect(page.locator(".badge.is-reconnecting")).to_contain_text("stale")
    expect(row).to_be_visible()

    empty_rig.start_manager()
    returned = time.monotonic()
    expect(page.locator(".badge.is-live")).to_be_visible()
    assert time.monotonic() - returned < 3.0
    expect(row.locator(".chip.is-running")).to_be_visible()
    assert page.evaluate("window.stillTheSamePage") is True
    visitor.forgive_an_absent_manager()


def test_the_log_goes_on_across_a_restart_of_the_manager(empty_rig: ManagerRig, visitor: Visitor) -> None:
    """Output during the manager's absence appears on its return: no line lost or duplicated, no reload."""
    empty_rig.start_manager()
    empty_rig.start_worker("worker1")
    page = visitor.open(f"{empty_rig.url}/#/worker/worker1")
    wait_until(lambda: last_number(page) > 10, 30, "lines")
    assert empty_rig.manager is not None
    empty_rig.manager.end(signal.SIGKILL)
    expect(page.locator(".badge.is-reconnecting")).to_be_visible()
    kept = last_number(page)
    assert kept > 10
    lost = page.locator(".log-line.is-marker", has_text="connection lost at")
    expect(lost).to_be_visible()
    empty_rig.start_manager()
    returned = time.monotonic()
    wait_until(lambda: last_number(page) > kept, 10, "newer lines")
    assert time.monotonic() - returned < 3.0
    wait_until(lambda: last_number(page) > kept + 40, 30, "lines written meanwhile and after")
    shown = assert_every_line_once(page)
    assert any("connection lost at" in text and "restored after" in text for text in shown)
    visitor.forgive_an_absent_manager()


def test_a_load_that_fails_leaves_no_hole_in_the_log(rig: ManagerRig, visitor: Visitor) -> None:
    """Live pieces wait for the stored lines before them, which are requested again."""
    page = visitor.open(f"{rig.url}/#/worker/worker1")
    wait_until(lambda: last_number(page) > 0, 30, "lines")
    refused: list[str] = []

    def refuse_twice(route: Route) -> None:
        if len(refused) < 2:
            refused.append(route.request.url)
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/api/remote-workers/worker1/logs?*", refuse_twice)
    page.get_by_label("Attempt", exact=True).select_option(str(rig.worker("worker1")["attempt"]))
    wait_until(lambda: last_number(page) > 40 and len(refused) == 2, 30, "lines after two failures")
    assert_every_line_once(page)
    visitor.forgive("ERR_CONNECTION_RESET")


def test_the_log_can_be_downloaded(rig: ManagerRig, visitor: Visitor, tmp_path: Path) -> None:
    """The whole attempt as a file, byte-identical to the worker's output."""
    page = visitor.open(f"{rig.url}/#/worker/worker1")
    settled(page)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download").click()
    assert waiting.value.suggested_filename == "worker1.log"
    waiting.value.save_as(tmp_path / "worker1.log")
    text = (tmp_path / "worker1.log").read_bytes()
    assert b"attempt begins <b>not bold</b> \x1b[31mred\x1b[0m" in text
    assert b"\rloading 100%\n" in text


def test_from_elsewhere_one_logs_in_with_a_token(empty_rig: ManagerRig, visitor: Visitor) -> None:
    """Without the rights of the manager's user: a token is required, a wrong one is refused with a message, log-out
    ends the session."""
    empty_rig.start_manager()
    token: dict[str, Any] = empty_rig.ask("POST", "/api/tokens", {"scope": "operator", "name": "browser"})
    assert empty_rig.manager is not None
    empty_rig.manager.end()
    empty_rig.start_manager("web.trust_local=false")

    page = visitor.open(f"{empty_rig.url}/")
    field = page.get_by_label("Token")
    expect(field).to_be_focused()
    assert page.locator("#token-hint code").inner_text() == "invoke token.create --name browser"  # `invoke token` lists
    assert violations(page) == ""
    expect(page.locator(".login-card")).to_contain_text("web.trust_local is false")
    page.get_by_label("Language").select_option("zh-CN")
    expect(page.locator(".login-card")).to_contain_text("web.trust_local 为 false")
    page.get_by_label("语言").select_option("en")
    field.fill("pg-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This token is not accepted.")
    expect(page.get_by_role("alert")).to_contain_text("request ")
    visitor.forgive("401")

    field.fill(token["token"])
    page.keyboard.press("Enter")
    settled(page)
    expect(page.get_by_text("No hosts yet")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(field).to_be_visible()


def test_an_empty_portal_says_what_to_type_and_where_others_reach_it(empty_rig: ManagerRig, visitor: Visitor) -> None:
    empty_rig.start_manager("web.advertise=[http://10.9.8.7:5000]")
    page = visitor.open(f"{empty_rig.url}/")
    settled(page)
    typed = page.locator(".command-box code")
    expect(typed).to_have_count(4)
    assert typed.all_inner_texts()[:3] == [
        "invoke init ml@gpu01 ml@gpu02", "invoke trust --hosts inventory.yaml", "invoke deploy --hosts inventory.yaml",
    ]  # fmt: skip
    expect(typed.last).to_contain_text("--manager-url http://10.9.8.7:5000 ")
    expect(page.get_by_text("Other machines reach this portal")).to_contain_text("http://10.9.8.7:5000")
    expect(page.get_by_text("log in with a token")).to_contain_text("invoke token.create --name laptop")
    assert violations(page) == ""


def test_a_manager_for_this_machine_alone_says_so_where_nothing_runs_yet(
    empty_rig: ManagerRig, visitor: Visitor
) -> None:
    empty_rig.start_manager()
    page = visitor.open(f"{empty_rig.url}/")
    settled(page)
    expect(page.get_by_text("accepts local connections only")).to_contain_text("web.host: 0.0.0.0")


def test_too_many_wrong_tokens_lock_the_page_for_a_time_that_it_shows(empty_rig: ManagerRig, visitor: Visitor) -> None:
    """The reason, and the duration. An unreachable manager is reported, and its return is detected."""
    empty_rig.start_manager("web.trust_local=false")
    page = visitor.open(f"{empty_rig.url}/")
    page.clock.install()
    field, button = page.get_by_label("Token"), page.get_by_role("button", name="Log in")
    waiting = page.get_by_role("timer")

    def try_wrong() -> bool:
        field.fill("pg-wrong")
        button.click()
        expect(page.get_by_role("alert")).to_be_visible()
        return waiting.is_visible()

    def check(where: str) -> None:
        for theme in ("dark", "light"):
            page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            assert violations(page) == "", f"{where}, {theme}"

    for locale, title in (("zh-CN", "登录"), ("en", "Log in")):
        page.goto(f"{empty_rig.url}/?lang={locale}")
        expect(page.locator("h1")).to_have_text(title)
        check(locale)
    wait_until(try_wrong, 30, "it is locked")
    expect(page.get_by_role("alert")).to_contain_text("Too many")
    expect(waiting).to_have_text(re.compile(r"Too many wrong tokens. Wrong tokens are refused for \d+ s"))
    check("locked")
    before = waiting.inner_text()
    wait_until(lambda: waiting.inner_text() != before, 10, "the time runs")
    page.clock.fast_forward("02:00")
    expect(waiting).to_be_hidden()
    expect(page.get_by_role("alert")).to_have_count(0)

    assert empty_rig.manager is not None
    empty_rig.manager.end(signal.SIGKILL)
    button.click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(waiting).to_contain_text("reconnects when the manager is back")
    empty_rig.start_manager("web.trust_local=false")
    expect(page.get_by_role("alert")).to_have_count(0)
    visitor.forgive("401")
    visitor.forgive("429")
    visitor.forgive_an_absent_manager()


def test_a_waiting_launcher_is_shown_with_its_fingerprint_and_approved(empty_rig: ManagerRig, visitor: Visitor) -> None:
    """Started by hand on another machine: the page shows origin and fingerprint; one click approves it."""
    empty_rig.start_manager()
    page = visitor.open(f"{empty_rig.url}/#/hosts")
    settled(page)
    secret = hashlib.sha256(b"a launcher's own").hexdigest()
    request = {"worker_id": "worker9", "command": "python train.py", "host": "gpu9", "secret_sha256": secret}
    # a request that was forwarded does not come from this machine, whatever its address says
    answer = empty_rig.ask("POST", "/api/workers/register", request, X_Forwarded_For="192.0.2.7")
    assert answer["status"] == "pending"

    asking = page.get_by_role("listitem").filter(has_text="worker9")
    expect(asking).to_contain_text(answer["fingerprint"])
    expect(asking).to_contain_text("python train.py")
    assert violations(page) == ""
    asking.get_by_role("button", name="Approve worker9").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(answer["fingerprint"])
    dialog.get_by_role("button", name="Approve").click()
    expect(asking).to_have_count(0)
    again = empty_rig.ask("POST", "/api/workers/register", request, X_Forwarded_For="192.0.2.7")
    assert again["status"] == "registered"


LOG_MODEL = """async (steps) => {
  const { LogModel } = await import('/static/js/logmodel.js');
  const { printable } = await import('/static/js/ansi.js');
  const model = new LogModel({ maxLines: 6 });
  for (const [method, argument] of steps) model[method](argument);
  return { lines: model.lines.map((line) => line.marker || printable(line.text)), dropped: model.dropped };
}"""


def line(offset: int, text: str, end: int | None = None, **more: object) -> dict[str, object]:
    behind = end if end is not None else offset + len(text.encode()) + 1
    return {"attempt": 1, "stream": "out", "offset": offset, "end": behind, "at": 1, "text": text, **more}


def piece(offset: int, text: str, **more: object) -> dict[str, object]:
    return line(offset, text, offset + len(text.encode()), **more)


@pytest.mark.parametrize(
    ("steps", "lines"),
    [
        pytest.param(
            [("addLines", [line(0, "a"), line(2, "b")]), ("addPiece", piece(2, "b\nc")), ("addPiece", piece(5, "d\n"))],
            ["a", "b", "cd"],
            id="a piece that overlaps what is stored adds only what is new",
        ),
        pytest.param(
            [("addPiece", piece(0, "ab")), ("addLines", [line(0, "abc"), line(4, "d", 5, partial=True)])],
            ["abc", "d"],
            id="an unfinished line is completed in place",
        ),
        pytest.param(
            [("addPiece", piece(0, "10%\r")), ("addPiece", piece(4, "20%\r")), ("addPiece", piece(8, "done\r\nx"))],
            ["done", "x"],
            id="a progress bar is its last state",
        ),
        pytest.param(
            [
                ("addLines", [line(0, "20%\r", 8, partial=True)]),
                ("addPiece", piece(8, "30%\r")),
                ("addPiece", piece(12, "40%")),
            ],
            ["40%"],
            id="a progress bar goes on where the store left it",
        ),
        pytest.param(
            [("addPiece", piece(0, "a\n")), ("addPiece", piece(50, "b\n"))],
            ["a", "gap", "b"],
            id="what never came is marked",
        ),
        pytest.param(
            [("addPiece", piece(0, "a\n")), ("addPiece", piece(0, "b\n", attempt=2))],
            ["a", "attempt", "b"],
            id="a new attempt is marked",
        ),
        pytest.param(
            [("addPiece", piece(0, "".join(f"{n}\n" for n in range(10))))],
            ["4", "5", "6", "7", "8", "9"],
            id="the ring keeps the newest lines",
        ),
        pytest.param(
            [("addPiece", piece(0, "\x1b[1mbold\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07 \x00\n"))],
            ["bold link ␀"],
            id="escape sequences are taken out, other control characters shown",
        ),
    ],
)
def test_the_log_model(rig: ManagerRig, visitor: Visitor, steps: list[Any], lines: list[str]) -> None:
    """Every byte once, in its place, in any order of stored and live pieces."""
    page = visitor.open(f"{rig.url}/#/overview")
    assert page.evaluate(LOG_MODEL, steps)["lines"] == lines
