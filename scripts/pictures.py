"""Takes pictures of every page of the portal for review: a busy fleet in both themes, both languages and three widths.

    .venv/bin/python -m scripts.pictures                          60 hosts with GPUs and failures, into build/pictures
    .venv/bin/python -m scripts.pictures --hosts 100 --each 10    1,000 workers
    .venv/bin/python -m scripts.pictures --only overview --width 390 --theme dark --language zh-CN

They are not committed; `scripts.screenshots` takes those of docs/product.md. Also writes sheets of several pictures
(sheet-*.png), and reports elements that are wider than the screen, which are easy to miss on a small picture. Needs
Chromium; ends everything it started.
"""

from __future__ import annotations

import argparse
import html
import os
import shutil
import signal
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, Page, sync_playwright

from procguard.errors import ProcGuardError
from scripts import chromium
from tests.browser.pages import PORTAL_PAGES
from tests.browser.test_portal import TOO_WIDE
from tests.browser.world import World, small_world, visit

ROOT = Path(__file__).resolve().parents[1]
SETTLES_MS = 600  # time for texts that are loaded after the first data: sentences, charts
HEIGHTS = {1440: 900, 1024: 768, 390: 844}
ON_A_SHEET = {1440: (2, 4, 780), 1024: (2, 4, 780), 390: (5, 5, 312)}  # columns, pictures, width of each in px


class View(NamedTuple):
    theme: str
    language: str
    width_px: int

    def file(self, number: int, name: str) -> str:
        words = "-".join(name.replace(",", "").split())
        return f"{self.width_px}-{self.theme}-{self.language}-{number:02d}-{words}.png"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="pictures", description="Pictures of every page, to be looked at.")
    parser.add_argument("--to", default=str(ROOT / "build" / "pictures"), metavar="FOLDER")
    parser.add_argument("--only", nargs="+", metavar="PAGE", help="pages whose names begin so (tests/browser/pages.py)")
    parser.add_argument("--theme", nargs="+", choices=["light", "dark"], default=["light", "dark"])
    parser.add_argument("--language", nargs="+", choices=["en", "zh-CN"], default=["en", "zh-CN"])
    parser.add_argument("--width", nargs="+", type=int, choices=sorted(HEIGHTS), default=sorted(HEIGHTS))
    parser.add_argument("--hosts", type=int, default=60, metavar="N", help="simulated hosts, 3 or more (default 60)")
    parser.add_argument("--each", type=int, default=4, metavar="N", help="workers of each, 4 or more (default 4)")
    options = parser.parse_args(words)
    program = chromium.path_for_tests()
    if program is None:
        sys.exit(f"pictures: {chromium.HOW_TO_HAVE_IT}")
    if options.hosts < 3 or options.each < 4:
        sys.exit("pictures: --hosts 3 and --each 4 are the least of a fleet in which something happens")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # The launcher ends upon Ctrl-C, which a shell lets the programs that it starts in the background ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(options.to)
    folder.mkdir(parents=True, exist_ok=True)
    state = Path(tempfile.mkdtemp(prefix="pgpic"))
    views = list(product(options.theme, options.language))
    try:
        with small_world(state, options.hosts, options.each) as world, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=chromium.ARGUMENTS)
            found = [
                problem
                for theme, language in views
                for problem in _take(browser, world, folder, theme, language, options.width, options.only)
            ]
            for view in [View(*one, width) for one in views for width in options.width]:
                _sheets(browser, folder, view)
            browser.close()
    except ProcGuardError as exc:
        sys.exit(f"pictures: {exc}")
    finally:
        shutil.rmtree(state, ignore_errors=True)
    for problem in found:
        print(problem)
    print(f"{folder}: {len(list(folder.glob('*.png')))} pictures")
    return 1 if found else 0


def _take(
    browser: Browser, world: World, folder: Path, theme: str, language: str, widths: list[int], only: list[str] | None
) -> list[str]:
    """Take the pictures of all pages for one theme and language. Returns the problems that a program can detect."""
    context = browser.new_context(
        locale=language,
        color_scheme="dark" if theme == "dark" else "light",
        reduced_motion="reduce",
        viewport={"width": widths[0], "height": HEIGHTS[widths[0]]},
    )
    wrong: list[str] = []
    page = context.new_page()
    page.set_default_timeout(60_000)
    unstyled: list[str] = []
    page.on("requestfailed", lambda request: unstyled.append(request.url))
    page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
    for number, place in enumerate(PORTAL_PAGES):
        if only and not place.name.startswith(tuple(only)):
            continue
        visit(page, world, place)
        if unstyled:  # a network interface was added or removed, upon which Chromium aborts pending requests
            unstyled.clear()
            page.reload()
            visit(page, world, place)
        for width in widths:
            view = View(theme, language, width)
            page.set_viewport_size({"width": width, "height": HEIGHTS[width]})
            page.wait_for_timeout(SETTLES_MS)
            page.screenshot(path=folder / view.file(number, place.name))
            wrong += [f"{place.name} at {width} px, {language}: {one}" for one in page.evaluate(TOO_WIDE)]
        print(f"{theme} {language} {place.name}", flush=True)
    context.close()
    return wrong


def _sheets(browser: Browser, folder: Path, view: View) -> None:
    """Write sheets with several pictures side by side, rendered by Chromium."""
    columns, most, width = ON_A_SHEET[view.width_px]
    pictures = sorted(folder.glob(f"{view.width_px}-{view.theme}-{view.language}-*.png"))
    page = browser.new_page(viewport={"width": columns * (width + 8) + 8, "height": 600})
    for first in range(0, len(pictures), most):
        page.goto("about:blank")
        sheet = folder / f"sheet-{view.width_px}-{view.theme}-{view.language}-{first // most:02d}.html"
        _write_sheet(sheet, pictures[first : first + most], width)
        _shoot(page, sheet)
    page.close()


def _write_sheet(sheet: Path, pictures: list[Path], width: int) -> None:
    figures = "".join(
        f'<div><p>{html.escape(one.stem)}</p><img src="{html.escape(one.name)}" width="{width}"></div>'
        for one in pictures
    )
    style = "body{margin:4px;display:flex;flex-wrap:wrap;gap:8px;font:11px sans-serif;background:#888}p{margin:0}"
    sheet.write_text(f"<!doctype html><meta charset=utf-8><style>{style}</style>{figures}", encoding="utf-8")


def _shoot(page: Page, sheet: Path) -> None:
    page.goto(sheet.as_uri(), wait_until="load")
    page.screenshot(path=sheet.with_suffix(".png"), full_page=True)
    os.unlink(sheet)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
