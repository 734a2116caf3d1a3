"""invoke bench portal: the portal's budgets, in a real Chromium against 1,000 and 10,000 simulated workers.

The goals are absolute, so each figure is the best of three, because the machine may be shared. Actions within the page
(filter, sort, lines of a log) are timed in the page, including the layout; scrolling by the processor time of each
frame in the page's thread (portal_frames.py); transferred bytes as sent. If esbuild is installed
(scripts/setup_web.sh), the manager runs from a wheel built for this, and requests, bytes and a distant browser are
measured as well.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import shutil
import signal
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from procguard.errors import ProcGuardError
from scripts import chromium, portal_wheel
from scripts.bench import common, portal_day, portal_frames
from scripts.bench.portal_traffic import Traffic
from scripts.bench.server import Manager
from scripts.swarm import Behaviour, Swarm

EACH = 10  # workers on a host
FAR_MS = 200.0  # a round trip to a browser far away
UP_WITHIN_S = 400.0
MB = 1024 * 1024

# The time when the first row of the list is in the page, in ms since the navigation began.
FIRST_ROW = """() => {
  const look = () => {
    const row = document.querySelector('.workers-table .table-body .table-row a');
    if (row && row.textContent) window.firstRowMs = performance.now();
    else requestAnimationFrame(look);
  };
  look();
}"""
SORT = """(name) => {
  const grid = document.querySelector('.workers-table');
  const button = grid.querySelector(`.col-${name} .sort`);
  const began = performance.now();
  button.click();
  grid.getBoundingClientRect();
  return performance.now() - began;
}"""
FILTER = """(query) => new Promise((done) => {
  const began = performance.now();
  addEventListener('hashchange', () => {
    document.querySelector('.workers-table').getBoundingClientRect();
    done(performance.now() - began);
  }, { once: true });
  location.hash = `#/workers?q=${query}`;
})"""
LOG_LINES = """async () => {
  const { LogView } = await import('/static/js/logview.js');
  const live = { subscribe: () => () => {}, send: () => {} };
  const view = new LogView({ live, workers: ['w1'] });
  const main = document.querySelector('main');
  const before = [...main.childNodes];
  main.replaceChildren(view.node);
  view.node.style.height = '700px';
  const lines = [];
  let offset = 0;
  for (let number = 0; number < 50000; number += 1) {
    const text = `12:00:00 step ${number} of w1: loss ${(2 / (number + 1)).toFixed(4)}, 942.1 samples/s`;
    const end = offset + text.length + 1;
    lines.push({ attempt: 1, stream: 'out', offset, end, at: 1790000000 + number / 100, text });
    offset = end;
  }
  const began = performance.now();
  view.model.addLines(lines, 'w1');
  view.render();
  view.node.getBoundingClientRect();
  const took = performance.now() - began;
  const drawn = view.node.querySelectorAll('.log-line').length;
  view.destroy();
  main.replaceChildren(...before);
  return { took, drawn };
}"""
SHOWN_CORDON = """(host) => {
  window.seenMs = 0;
  const grid = document.querySelector('.hosts-table');
  const look = () => {
    const row = [...grid.querySelectorAll('.table-body .table-row')].find((one) => one.textContent.includes(host));
    if (row && row.textContent.includes('bench')) window.seenMs = Date.now();
    else requestAnimationFrame(look);
  };
  look();
}"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench portal")
    parser.add_argument("--workers", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument(
        "--day", type=int, default=0, metavar="FRAMES", help="feed a tab so many seconds (86400: a day)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts (default 3)")
    options = parser.parse_args(arguments)
    program = chromium.path()
    if program is None:
        sys.exit(f"bench: {chromium.HOW_TO_HAVE_IT}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = common.Report("portal")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=chromium.ARGUMENTS)
        for workers in options.workers:
            _with_fleet(browser, workers, lambda bench: bench.measure(report, options.rounds, options.day))
        if reason := portal_wheel.missing():
            print(f"bench: the bundled portal is not measured: {reason}", file=sys.stderr)
        else:
            _delivery(browser, report, min(options.workers), options.rounds)
        browser.close()
    return report.finish()


def _delivery(browser: Browser, report: common.Report, workers: int, rounds: int) -> None:
    """With the wheel: the network traffic of the list of workers, and its load time in a distant browser."""
    folder = Path(common.short_folder())
    try:
        root = str(portal_wheel.unpacked(folder))
        _with_fleet(browser, workers, lambda bench: bench.deliver(report, rounds), root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _with_fleet(browser: Browser, workers: int, measure: Callable[[Bench], None], root: str = common.ROOT) -> None:
    folder = common.short_folder()
    manager = Manager(folder)
    manager.root = root
    try:
        manager.start()
        behaviour = Behaviour(gpus=True)
        with Swarm(manager.url, max(1, workers // EACH), EACH, seed=6, behaviour=behaviour, keep=True) as swarm:
            swarm.wait_running(UP_WITHIN_S)
            measure(Bench(browser, manager, workers, swarm))
    except ProcGuardError as exc:
        sys.exit(f"bench: {exc}")
    finally:
        manager.end()
        shutil.rmtree(folder, ignore_errors=True)


class Bench:
    """The measurements of one fleet. Times are in ms."""

    def __init__(self, browser: Browser, manager: Manager, workers: int, swarm: Swarm) -> None:
        self._browser, self._manager, self._workers, self._swarm = browser, manager, workers, swarm
        self._complaints: list[str] = []
        self._network_changed = False

    def measure(self, report: common.Report, rounds: int, day: int) -> None:
        large = self._workers > 5_000
        name = f"{self._workers:,} workers"
        raw: dict[str, Any] = {"first_row_ms": [], "measures": []}
        report.raw[str(self._workers)] = raw
        for _ in range(rounds):
            raw["first_row_ms"].append(self._first_row(raw["measures"]))
        gate = 1_000 if large else 600
        report.add(f"{name}: navigation to the first rows", min(raw["first_row_ms"]), "ms", goal=gate)
        raw["snapshot_bytes"] = self._snapshot_bytes()
        if large:
            report.add(f"{name}: snapshot, compressed", raw["snapshot_bytes"] / 1000, "KB", goal=250)
            self._in_page(report, name, raw, rounds)
        else:
            self._update(report, name, raw)
            if day:
                self._day(report, name, raw, day)
        if self._complaints:
            sys.exit(f"bench: the page complained: {self._complaints[0]}")

    def deliver(self, report: common.Report, rounds: int) -> None:
        name = f"{self._workers:,} workers, bundled"
        raw: dict[str, list[Any]] = {"near": [], "far": []}
        report.raw[name] = raw
        for _ in range(rounds):
            for where, round_trip_ms in (("near", 0.0), ("far", FAR_MS)):
                raw[where].append(self._cold_and_warm(round_trip_ms))
        for number, kind, most, most_kb, most_ms in ((0, "cold", 12, 160, 1_500), (1, "warm", 3, None, 700)):
            near, far = ([one[number] for one in raw[where]] for where in ("near", "far"))
            report.add(f"{name}: requests, {kind}", min(one["requests"] for one in near), "", goal=most)
            report.add(f"{name}: bytes, {kind}", min(one["bytes"] for one in near) / 1000, "KB", goal=most_kb)
            words = f"{name}: first rows at {FAR_MS:.0f} ms round trip, {kind}"
            report.add(words, min(one["first_row_ms"] for one in far), "ms", goal=most_ms)

    def _cold_and_warm(self, round_trip_ms: float) -> list[dict[str, Any]]:
        """Load the page with an empty cache, then reload it. Requests served by the browser's cache are not counted."""
        page = self._open()
        traffic = Traffic(page)
        if round_trip_ms:
            traffic.slow(round_trip_ms)
        found = []
        for again in (False, True):
            traffic.begin()
            if again:
                page.reload()
            else:
                self._goto(page, "#/workers")
            self._until(page, "window.firstRowMs")
            first_row_ms = float(page.evaluate("window.firstRowMs"))
            page.wait_for_timeout(1_000)
            found.append({"requests": len(traffic.sent), "bytes": traffic.bytes, "first_row_ms": first_row_ms})
        page.context.close()
        return found

    def _open(self) -> Page:
        context = self._browser.new_context(locale="en", viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.on("pageerror", lambda error: self._complaints.append(str(error)))
        page.on("console", lambda said: self._hear(said.type, said.text))
        page.add_init_script(f"({FIRST_ROW})()")
        page.set_default_timeout(60_000)
        return page

    def _hear(self, kind: str, text: str) -> None:
        # a network interface was added or removed, upon which Chromium aborts pending requests
        if "ERR_NETWORK_CHANGED" in text:
            self._network_changed = True
        elif kind == "error":
            self._complaints.append(text)

    def _goto(self, page: Page, place: str) -> None:
        self._network_changed = False
        page.goto(f"{self._manager.url}/{place}")
        if self._network_changed:
            page.reload()

    def _until(self, page: Page, expression: str, timeout_s: float = 60.0) -> None:
        """Wait for a condition. Playwright's own function evaluates text in the page, which the page's
        Content-Security-Policy forbids."""
        deadline = time.monotonic() + timeout_s
        while not page.evaluate(expression):
            if time.monotonic() > deadline:
                said = "; ".join(self._complaints[:3])
                sys.exit(f"bench: the page did not come so far within {timeout_s:g} s: {expression} {said}")
            if self._network_changed:
                self._network_changed = False
                page.reload()
            page.wait_for_timeout(20)

    def _first_row(self, measures: list[list[int]]) -> float:
        """The time until the first row with an empty browser cache. The first frame with measurements of all workers is
        stored in `measures`."""
        page = self._open()
        frames: list[bytes] = []
        keep = lambda payload: frames.append(payload) if isinstance(payload, bytes) else None  # noqa: E731
        page.on("websocket", lambda socket: socket.on("framereceived", keep))
        self._goto(page, "#/workers")
        self._until(page, "window.firstRowMs")
        found = float(page.evaluate("window.firstRowMs"))
        self._until(page, "document.querySelector('.table-body .col-cpu')?.textContent.includes('%')")
        page.wait_for_timeout(300)
        for frame in frames:
            message = json.loads(zlib.decompress(frame))
            if message["t"] == "measures" and message["topic"] == "rows:workers":
                measures.append([len(frame), len(message["slots"]), len(message["columns"])])
        page.context.close()
        return found

    def _snapshot_bytes(self) -> int:
        """The size of a snapshot as sent; also checks its content."""
        connection = http.client.HTTPConnection("127.0.0.1", self._manager.port, timeout=60)
        connection.request("GET", "/api/live/workers", headers={"Accept-Encoding": "gzip"})
        body = connection.getresponse().read()
        connection.close()
        assert len(json.loads(gzip.decompress(body))["slots"]) == self._workers
        return len(body)

    def _update(self, report: common.Report, name: str, raw: dict[str, Any]) -> None:
        """Report the compressed size of a frame with at least three measurements of each of 1,000 workers."""
        whole = [size for size, rows, columns in raw["measures"] if rows >= 1_000 and columns >= 3]
        value = min(whole) / 1000 if whole else None
        report.add(f"{name}: update of 1,000 rows × 3 measures, compressed", value, "KB", goal=10)

    def _day(self, report: common.Report, name: str, raw: dict[str, Any], seconds: int) -> None:
        """Feed a tab this many seconds of frames, as fast as it processes them, and report its heap."""
        page = self._open()
        portal_day.prepare(page)
        self._goto(page, "#/workers")
        self._until(page, "window.firstRowMs && window.fed?.seq")
        raw["day_heap_before"] = heap_bytes(page)
        portal_day.feed(page, self._workers, seconds)
        self._until(page, portal_day.SHOWN)  # the frames were processed: their content is on the screen
        page.wait_for_timeout(3_000)
        raw["day_heap"] = heap_bytes(page)
        raw["day_seconds"] = seconds
        page.context.close()
        report.add(f"{name}: heap after {seconds:,} s of frames", raw["day_heap"] / MB, "MB", goal=60)

    def _in_page(self, report: common.Report, name: str, raw: dict[str, Any], rounds: int) -> None:
        page = self._open()
        self._goto(page, "#/workers")
        self._until(page, "window.firstRowMs")
        page.wait_for_timeout(2_000)
        raw["filter_ms"] = [page.evaluate(FILTER, f"w{number}%20rack") for number in range(rounds)]
        page.evaluate("() => { location.hash = '#/workers'; }")
        page.wait_for_timeout(300)
        raw["sort_ms"] = [page.evaluate(SORT, one) for _ in range(rounds) for one in ("cpu", "host")]
        page.evaluate(SORT, "worker")
        portal_frames.scroll(page)  # the first one runs code that is not compiled yet
        scrolls = [portal_frames.scroll(page) for _ in range(rounds)]
        raw["scroll_worst_ms"] = [max(one.processor_ms for one in scroll) for scroll in scrolls]
        raw["scroll_middle_clock_ms"] = [statistics.median(one.clock_ms for one in scroll) for scroll in scrolls]
        raw["scroll_worst_clock_ms"] = [max(one.clock_ms for one in scroll) for scroll in scrolls]
        raw["dom_nodes"] = page.evaluate("document.querySelectorAll('*').length")
        raw["heap_bytes"] = heap_bytes(page)
        report.add(f"{name}: filter", min(raw["filter_ms"]), "ms", goal=50)
        report.add(
            f"{name}: sort", min(max(raw["sort_ms"][at : at + 2]) for at in range(0, 2 * rounds, 2)), "ms", goal=50
        )
        report.add(f"{name}: scroll, worst of 200 frames, processor time", min(raw["scroll_worst_ms"]), "ms", goal=16)
        report.add(
            f"{name}: scroll, half of the frames, by the clock", min(raw["scroll_middle_clock_ms"]), "ms", goal=16
        )
        report.add(f"{name}: DOM nodes", raw["dom_nodes"], "", goal=1_500)
        report.add(f"{name}: JavaScript heap", raw["heap_bytes"] / MB, "MB", goal=60)
        lines = [page.evaluate(LOG_LINES) for _ in range(rounds)]
        raw["log_lines"] = lines
        report.add("50,000 log lines into the view", min(one["took"] for one in lines), "ms", goal=1_500)
        try:
            raw["state_ms"] = [self._state(page, number) for number in range(rounds)]
            delay, note = min(raw["state_ms"]), ""
        except OSError as exc:
            delay, note = None, f"the manager took no request in time: {exc}"
        report.add(f"{name}: a change of state, from the request to the page", delay, "ms", goal=250, note=note)
        page.context.close()

    def _state(self, page: Page, number: int) -> float:
        """The time from before the request that cordons a host until its row shows it."""
        host = self._swarm.agent_ids[number]
        self._goto(page, f"#/hosts?q={host}")
        self._until(page, f"document.querySelector('.hosts-table')?.textContent.includes('{host}')")
        page.evaluate(SHOWN_CORDON, host)
        began = time.time()
        self._manager.ask("POST", f"/api/hosts/{host}/cordon", {"reason": "bench"})
        self._until(page, "window.seenMs")
        return float(page.evaluate("window.seenMs")) - 1000 * began


def heap_bytes(page: Page) -> int:
    """The size of the page's JavaScript heap after a garbage collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    session.detach()
    return int(metrics["JSHeapUsedSize"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
