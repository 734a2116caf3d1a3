"""The host's page maintains its agent: restart, upgrade, its own log. Manager, agent and jobs are real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from remote_agent.protocol.messages import GpuUsage, HostUsage
from tests.browser.axe import violations
from tests.browser.conftest import ROOT, ManagerRig, Visitor
from tests.browser.test_portal import TOO_WIDE, settled
from tests.server_process import RunningManager

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerRig]:
    home = tmp_path_factory.mktemp("demo")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "procguard.main", "--demo", "--port", "0"],
        env=environment | {"HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=home,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        url = next(line.split()[-1] for line in process.stdout if line.startswith("ProcGuard demo: "))
        yield ManagerRig(Path(home), port=int(url.rpartition(":")[2]))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def host_page(demo: ManagerRig, visitor: Visitor, **options: str) -> tuple[Page, str]:
    host = demo.ask("GET", "/api/hosts")["hosts"][0]["host"]
    page = visitor.open(f"{demo.url}/#/host/{host}", **options)  # type: ignore[arg-type]
    settled(page)
    return page, host


def pids(demo: ManagerRig) -> dict[str, int]:
    return {one["worker_id"]: one["pid"] for one in demo.ask("GET", "/api/remote-workers")["workers"]}


def test_an_agent_is_restarted_and_its_log_read_while_its_workers_run_on(demo: ManagerRig, visitor: Visitor) -> None:
    page, _ = host_page(demo, visitor)
    before, agent = pids(demo), demo.ask("GET", "/api/hosts")["hosts"][0]["agent_pid"]
    panel = page.get_by_role("region", name="Agent", exact=True)
    expect(panel).to_contain_text("the same as the manager's")
    expect(panel.get_by_role("button", name="Upgrade the agent")).to_be_hidden()
    panel.get_by_role("button", name="Restart the agent").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    dialog.get_by_role("button", name="Restart the agent").click()
    expect(page.locator(".notice")).to_contain_text("the agent was started (pid", timeout=40_000)
    expect(page.get_by_role("region", name="Events")).to_contain_text("agent restarted")
    assert demo.ask("GET", "/api/hosts")["hosts"][0]["agent_pid"] != agent and pids(demo) == before
    log = page.get_by_role("region", name="Agent log")
    log.get_by_text("Read the end of it over SSH").press("Enter")  # a click misses where a new event moves the page
    expect(log.locator("pre")).to_contain_text("runner adopted", timeout=40_000)
    expect(log).to_contain_text("agent.log")


@pytest.mark.parametrize(("locale", "theme"), [("en", "light"), ("zh-CN", "dark")])
def test_an_agent_of_another_release_is_shown_with_a_way_to_upgrade_it(
    demo: ManagerRig, visitor: Visitor, locale: str, theme: str
) -> None:
    """The page is served a different release of the manager first, and the real one afterwards."""

    def another(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        said = body["also"].get("/api/releases", {}).get("body", {}) if "also" in body else body  # with the lists
        said["releases"] = ["0123456789abcdef"]
        route.fulfill(response=answer, json=body)

    page, host = host_page(demo, visitor, locale=locale, theme=theme)
    page.route(re.compile(r"/api/(releases|live\?.*)$"), another)
    page.reload()
    settled(page)
    panel = page.locator("section", has=page.locator("#host-agent"))
    expect(panel.locator(".agent-version")).to_contain_text("0123456789ab")
    assert violations(page) == ""
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(TOO_WIDE) == [], width
    panel.locator("summary").click()
    expect(panel.locator("code")).to_have_text(f"invoke upgrade --hosts INVENTORY --limit {host}")
    panel.locator(".button.primary").click()
    page.get_by_role("dialog").locator(".button.primary").click()
    said = {"en": "it has this release already", "zh-CN": "已是此版本"}[locale]
    expect(page.locator(".notice")).to_contain_text(said, timeout=40_000)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[RunningManager]:
    made = RunningManager(tmp_path)
    try:
        yield made
    finally:
        made.close()


# The manager comes before the visitor: fixtures end in reverse order, and a page must leave before its manager ends.
def test_a_host_whose_kernel_log_cannot_be_read_says_so_beside_its_gpus(
    manager: RunningManager, visitor: Visitor
) -> None:
    usage = HostUsage(gpus=[GpuUsage(0, "GPU-a", "H100")], kernel_log_trouble="Operation not permitted")
    manager.beat("gpu01", manager.deploy("gpu01"), usage=usage)
    page = visitor.open(f"http://127.0.0.1:{manager.port}/#/host/gpu01")
    panel = page.get_by_role("region", name="GPUs")
    expect(panel).to_contain_text("The agent cannot read the kernel log (Operation not permitted), so Xid errors")
