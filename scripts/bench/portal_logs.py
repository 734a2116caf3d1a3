"""invoke bench portal_logs: displays 50,000 log lines in Chromium, from live pieces and from the manager's store.

Times are taken in the page: from the first frame (or the click on "Older lines") until the lines are painted. Filtering
is timed as well, from typing a regular expression until only matching lines are painted. Each figure is the best of
several rounds; `invoke bench portal` uses `measure`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from scripts.bench import common
from tests.browser.conftest import CHROMIUM_ARGUMENTS
from tests.server_process import RunningManager

LINES = 50_000
GOAL_MS = 1500.0
WORKER = "bench-w1"
LINE = "2026-01-01 00:00:00 INFO step {n:06d} loss={loss:.4f} \\x1b[32mok\\x1b[0m samples/s=931.4\\n"

PIECES = """async ([lines, text]) => {
  const { LogView } = await import('/static/js/logview.js');
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const live = { state: 'live', subscribe: () => () => {}, send: () => {} };
  const view = new LogView({ live, workers: ['bench'] });
  view.node.style.height = '800px';
  document.body.prepend(view.node);
  const [source] = view.sources.values();
  source.loaded = true;
  const pieces = [];
  let offset = 0;
  for (let n = 0; n < lines; n += 500) {
    const piece = text.repeat(500);
    pieces.push({ t: 'log', attempt: 1, stream: 'out', offset, end: offset + piece.length, at: 1e9 + n, text: piece });
    offset += piece.length;
  }
  await painted();
  const began = performance.now();
  for (const piece of pieces) source.receive(piece);
  await painted();
  await painted();
  const took = performance.now() - began;
  const here = view.model.lines.length;
  const filtering = performance.now();
  view.chooseGrep({ grep: 'step 0+123.*ok', only: true });
  await painted();
  await painted();
  const filtered = performance.now() - filtering;
  const rows = view.node.querySelectorAll('.log-line').length;
  view.destroy();
  view.node.remove();
  return { took, filtered, here, rows };
}"""
STORE = """async (lines) => {
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const button = document.querySelector('.log-bar [data-what=older]');
  const count = () => Number(document.querySelector('.log-count').textContent.replace(/[^0-9]/g, ''));
  const began = performance.now();
  button.click();
  while (count() < lines) await painted();
  await painted();
  return performance.now() - began;
}"""


def measure(page: Page, url: str, rounds: int = 3) -> dict[str, float]:
    """{"pieces_ms", "filter_ms"}: the best of `rounds`, on any page of the portal at `url`."""
    page.goto(f"{url}/#/events")
    page.wait_for_selector("h1")
    found: list[dict[str, Any]] = [
        page.evaluate(PIECES, [LINES, LINE.format(n=123, loss=0.5).encode().decode("unicode_escape")])
        for _ in range(rounds)
    ]
    assert all(one["here"] == LINES for one in found), found
    return {name: min(one[key] for one in found) for name, key in (("pieces_ms", "took"), ("filter_ms", "filtered"))}


def store_ms(page: Page, url: str, rounds: int) -> float:
    """The time of the whole path in ms: the manager reads its files and responds, the page shows the lines."""
    best = float("inf")
    for _ in range(rounds):
        page.goto("about:blank")
        page.goto(f"{url}/#/worker/{WORKER}")
        page.wait_for_selector(".log-line")
        best = min(best, page.evaluate(STORE, LINES))
    return best


def fill(manager: RunningManager) -> None:
    secret = manager.deploy("bench-h1", WORKER)
    text = LINE.encode().decode("unicode_escape")
    data = "".join(text.format(n=n, loss=2 / (1 + n)) for n in range(LINES)).encode()
    offset = 0
    while offset < len(data):
        path = f"/api/workers/{WORKER}/logs?attempt=1&offset={offset}"
        answer = manager.ask("POST", path, data[offset : offset + 1_000_000], secret=secret)
        offset = int(answer.json["acked"])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench portal_logs", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    report = common.Report("portal_logs")
    chromium, missing = common.program("chromium", "chromium")
    if missing:
        report.add(f"{LINES:,} log lines into the view", None, "ms", note=missing)
        return report.finish()
    with tempfile.TemporaryDirectory(prefix="pgb") as folder:
        manager = RunningManager(Path(folder))
        try:
            fill(manager)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                url = f"http://127.0.0.1:{manager.port}"
                found = measure(page, url, options.rounds)
                report.add(f"{LINES:,} log lines into the view, live", found["pieces_ms"], "ms", goal=GOAL_MS)
                stored = store_ms(page, url, options.rounds)
                report.add(f"{LINES:,} log lines into the view, stored", stored, "ms", goal=GOAL_MS)
                report.add("filtering them by an expression", found["filter_ms"], "ms")
                browser.close()
        finally:
            manager.close()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
