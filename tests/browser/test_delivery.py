"""The portal of a wheel: bundled, few requests, none duplicated, and every page complete."""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from scripts import portal_wheel
from scripts.bench.portal_traffic import Traffic
from tests.browser.conftest import ManagerRig, Visitor
from tests.browser.test_portal import settled

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

COLD_REQUESTS, COLD_BYTES = 12, 160_000
WARM_REQUESTS = 3  # the page, what it reads first, the WebSocket
LOG_REQUESTS = 1  # for each log: read again once its lines come live, so that none is missing between
RELOADS = 3  # of which the best counts: the manager leaves out what a busy machine does not answer within a second
RELOADED = (
    "workers", "overview", "worker/worker1?tab=attempts", "worker/worker1?tab=charts", "worker/worker1?tab=config",
    "worker/worker1", "logs?w=worker1", "hosts", "host/launcher:worker1", "gpus", "groups", "operations", "events",
    "recovery", "recovery/worker1", "compare?w=worker1&m=cpu", "admin/notifications", "admin/tokens", "admin/audit",
    "admin/system",
)  # fmt: skip
PAGES = (
    "overview", "worker/worker1?tab=charts", "worker/worker1", "hosts", "gpus", "operations", "events",
    "logs?w=worker1", "search", "recovery", "api",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerRig]:
    """A manager that runs from the wheel's files, with one worker."""
    if reason := portal_wheel.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("wheel")
    made = ManagerRig(folder, root=portal_wheel.unpacked(folder))
    try:
        made.start_manager()
        made.start_worker("worker1")
        yield made
    finally:
        made.end()


@pytest.mark.parametrize("first", ["workers", "overview"])
def test_a_first_visit_costs_few_requests(wheel: ManagerRig, visitor: Visitor, first: str) -> None:
    page = visitor.open("about:blank")
    traffic = Traffic(page)
    page.goto(f"{wheel.url}/#/{first}")
    expect(page.get_by_role("link", name="worker1").or_(page.locator(".tile")).first).to_be_visible()
    settled(page)
    assert len(traffic.sent) <= COLD_REQUESTS, sorted(traffic.sent.values())
    assert not [
        one for one in traffic.sent.values() if "/api/events" in one or "/api/mutes" in one or "/api/alerts" in one
    ]
    assert traffic.bytes <= COLD_BYTES, sorted((size, traffic.sent.get(one)) for one, size in traffic.sizes.items())


def test_every_page_is_reloaded_by_three_requests(wheel: ManagerRig, visitor: Visitor) -> None:
    page = visitor.open("about:blank")
    traffic = Traffic(page)
    more = {}
    for name in RELOADED:
        allowed = WARM_REQUESTS + (LOG_REQUESTS if name in ("worker/worker1", "logs?w=worker1") else 0)
        page.goto(f"{wheel.url}/#/{name}")
        page.reload()
        opened(page)
        for _ in range(RELOADS):
            traffic.begin()
            page.reload()
            opened(page)
            if len(traffic.sent) <= allowed:
                break
        else:
            more[name] = sorted(traffic.sent.values())
    assert more == {}, json.dumps(more, indent=1)


def opened(page: Page) -> None:
    """With all of its first reads."""
    settled(page)
    page.wait_for_load_state("networkidle")


def test_every_page_works_from_the_bundle_in_both_languages(wheel: ManagerRig, visitor: Visitor) -> None:
    """Also lazily loaded parts; a missing chunk would be an error in the console, which fails the test."""
    for locale in ("en", "zh-CN"):
        page = visitor.open(f"{wheel.url}/#/workers", locale=locale)
        for name in PAGES:
            page.goto(f"{wheel.url}/#/{name}")
            settled(page)
            expect(page.locator("h1").first).to_be_visible()
            assert not page.locator(".error-box").is_visible(), name
    assert page.evaluate("document.documentElement.dataset.commands") == "procguard"
    assert not [
        one for one in page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)") if "/js/" in one
    ]


def ask(rig: ManagerRig, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=10)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    answer.content = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


def test_named_files_are_kept_and_everything_else_is_asked_for_again(wheel: ManagerRig) -> None:
    index = ask(wheel, "/")
    text = index.content.decode()  # type: ignore[attr-defined]
    names = re.findall(r'(?:src|href)="(/static/[^"]+)"', text)
    assert len(names) >= 4 and all(name.startswith("/static/dist/") for name in names), names
    assert index.headers["Cache-Control"] == "no-cache"
    assert ask(wheel, "/", If_None_Match=index.headers["ETag"]).status == 304
    version = re.findall(r'data-texts="(\w+)"', text)[0]
    for name in (*names, f"/static/fields.json?v={version}", f"/static/locales/en.json?v={version}"):
        sizes = {}
        for coding in ("gzip", "br", "identity", "gzip;q=0, br;q=0"):
            answer = ask(wheel, name, Accept_Encoding=coding)
            assert answer.status == 200 and answer.headers["Vary"] == "Accept-Encoding", name
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable", name
            assert answer.headers["Content-Encoding"] in (None, coding), name
            assert answer.headers["X-Content-Type-Options"] == "nosniff", name
            sizes[coding] = len(answer.content)  # type: ignore[attr-defined]
        assert sizes["gzip"] < sizes["identity"] == sizes["gzip;q=0, br;q=0"], (name, sizes)
    for name in ("fields.json", "fields.json?v=0123", "locales/en.json?v=", "js/main.js"):
        assert ask(wheel, f"/static/{name}").headers["Cache-Control"] == "no-cache", name
    for name in (
        "manifest.json",
        "main-00000000.js",
        names[0].rpartition("/")[2] + ".gz",
        "../index.html",
        "..%2findex.html",
        "",
    ):
        assert ask(wheel, f"/static/dist/{name}").status == 404, name
