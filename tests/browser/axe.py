"""Runs axe on a page."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page


def violations(page: Page) -> str:
    """A report; empty if axe finds no violations. Its script is loaded into a document only once, because that takes
    longer than most checks."""
    axe = Axe("true") if page.evaluate("Boolean(window.axe)") else Axe()
    found = axe.run(page)
    return str(found.generate_report()) if found.violations_count else ""
