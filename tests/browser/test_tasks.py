"""Tasks of on-call users as clicks from Overview: each within its number of clicks.

Typing is none; a click, a choice in a list and a confirmation are one each. The manager is real, so is the job that
fails with a CUDA error; the hosts with GPUs are simulated.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from scripts.swarm import Behaviour, Swarm, default_spec
from tests.browser.conftest import ManagerRig, Program, Visitor
from tests.browser.test_appearance import measured
from tests.browser.test_portal import settled
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

HOSTS, EACH = 3, 6
LOSSES = [f"gpu-0000{host}-w{number}" for host, number in ((0, 0), (0, 1), (1, 0), (1, 1))]
INVENTORY = "/home/ml/prod.yaml"
FAILED = ["gpu-00001-w3", "gpu-00002-w4", "gpu-00002-w5"]
CAUSE = "out of GPU memory: RuntimeError: CUDA error: out of memory (train.py:88)"
CUDA_JOB = r"""
import sys, time
for number in range(40):
    print(f"step {number}", flush=True)
print("Traceback (most recent call last):\n  File \"train.py\", line 88, in step\n"
      "RuntimeError: CUDA error: out of memory", file=sys.stderr, flush=True)
sys.exit(1)
"""


def spec(host: int, number: int) -> dict[str, Any]:
    made = default_spec(host, number)
    metrics = {"loss": r"loss=(\S+)", "step": r"step (\d+)/(\d+)"} if number < 2 else {}
    labels = {**made["labels"], "sweep": "lr" if f"gpu-0000{host}-w{number}" in LOSSES else "none"}
    rest = {"group": "trainers", "restart": {"policy": "never"}, "metrics": metrics, "env": {"LR": "0.1"}}
    return {**made, **rest, "labels": labels}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerRig]:
    made = ManagerRig(tmp_path_factory.mktemp("tasks"))
    try:
        made.start_manager("recovery.max_recovery_attempts=1")
        job = made.directory / "train.py"
        job.write_text(CUDA_JOB, encoding="utf-8")
        launcher = Program.start(
            "procguard.worker_launcher", "--worker-id", "cuda1", "--manager-url", made.url,
            "--command", f"{sys.executable} {job}",
            directory=made.directory, name="cuda1", PROCGUARD_HOME=str(made.directory / "home"),
        )  # fmt: skip
        made.launchers.append(launcher)
        behaviour = Behaviour(gpus=True, gpus_per_host=8)
        with Swarm(made.url, HOSTS, EACH, seed=3, behaviour=behaviour, prefix="gpu", spec=spec) as swarm:
            swarm.wait_running(60)
            swarm.crash(FAILED)
            entries = [
                {"worker_id": f"gpu-00000-w{n}", "spec": spec(0, n), "source": f"{INVENTORY}:7"} for n in range(EACH)
            ]
            declared = {"host": "gpu-00000", "ssh": {"hostname": "gpu-00000"}, "workers": entries}
            made.ask("POST", "/api/deployments", {"hosts": [declared], "inventory": {"name": f"head:{INVENTORY}"}})
            stop = {"command": "stop", "reason": "the data set is wrong"}
            made.ask("POST", "/api/workers/gpu-00000-w5/command", stop)
            for worker, state in (("gpu-00000-w5", "stopped"), *((one, "failed") for one in FAILED)):
                wait_until(lambda one=worker, to=state: made.worker(one)["state"] == to, 30, f"{worker} is {state}")
            wait_until(lambda: made.worker("cuda1").get("state") in ("failed", "backoff"), 60, "cuda1 has failed")
            yield made
    finally:
        made.end()


class Task:
    """A page that is open at Overview, and the clicks that were made there."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.clicks = 0

    def click(self, target: Locator) -> None:
        target.click()
        self.clicks += 1

    def choose(self, target: Locator, label: str) -> None:
        target.select_option(label=label)
        self.clicks += 1


@pytest.fixture
def task(fleet: ManagerRig, visitor: Visitor) -> Task:
    page = visitor.open(f"{fleet.url}/#/overview")
    settled(page)
    return Task(page)


def test_why_did_it_stop_last_night(task: Task) -> None:
    page = task.page
    cause = page.locator(".problem-list > li").filter(has_text="cuda1")
    expect(cause).to_contain_text(CAUSE)  # named already on Overview
    task.click(cause.get_by_role("link", name="cuda1"))
    expect(page.locator(".worker-side")).to_contain_text(CAUSE)
    assert task.clicks <= 2


def test_all_failed_trainers_on_gpu_hosts_are_restarted(task: Task, fleet: ManagerRig) -> None:
    page = task.page
    task.click(page.locator(".tile.is-failed"))
    page.get_by_role("combobox", name="Filter workers").fill("group=trainers host=gpu-*")
    expect(page.locator(".page-head .count")).to_have_text(re.compile(rf"^{len(FAILED)} of"))
    task.click(page.get_by_label("Select all matches"))
    task.click(page.get_by_role("group", name="Selected workers").get_by_role("button", name="Restart"))
    task.click(page.get_by_role("dialog").get_by_role("button", name=f"Restart {len(FAILED)}"))
    expect(page.locator("h1")).to_have_text(f"Restart: {len(FAILED)} workers")
    assert task.clicks <= 5
    wait_until(lambda: all(fleet.worker(one)["state"] == "running" for one in FAILED), 30, "all run again")


def test_which_gpu_is_idle(task: Task, fleet: ManagerRig) -> None:
    page = task.page
    task.click(page.get_by_role("link", name="which are free?"))
    free = [gpu for gpu in fleet.ask("GET", "/api/gpus")["gpus"] if gpu["state"] == "free"]
    expect(page.locator(".page-head .count")).to_contain_text(f"{len(free)} free of")
    expect(page.locator(".gpus-table .table-body .table-row").first).to_contain_text("free")
    assert task.clicks == 1


def test_four_losses_are_compared(task: Task) -> None:
    page = task.page
    page.route("**/api/measurements/workers/*", measured)
    task.click(page.get_by_role("link", name=re.compile("^Workers")).first)
    page.get_by_role("combobox", name="Filter workers").fill("label.sweep=lr")
    task.click(page.get_by_role("button", name="Compare"))
    expect(page.locator(".chart-legend .chart-entry")).to_have_count(len(LOSSES))
    expect(page.get_by_role("img", name=re.compile("^loss; "))).to_be_visible()
    assert task.clicks <= 3


def test_which_hosts_have_old_agents(task: Task) -> None:
    page = task.page
    task.click(page.get_by_role("link", name=f"{HOSTS} old agents"))
    expect(page.locator(".hosts-table .table-body .table-row:visible")).to_have_count(HOSTS)
    group = page.get_by_role("list", name="Old agents by release").get_by_role("listitem")
    expect(group).to_contain_text([re.compile(f"{HOSTS} agents of release.*swarm.*gpu-00000, gpu-00001, gpu-00002")])
    expect(group.get_by_role("button", name=f"Upgrade these {HOSTS}")).to_be_visible()
    assert task.clicks == 1


def test_a_cuda_error_of_the_last_two_hours_to_its_line_and_a_link_to_it(task: Task, visitor: Visitor) -> None:
    page = task.page
    task.click(page.get_by_role("link", name="Logs"))
    task.click(page.get_by_role("link", name="Search all hosts"))
    page.locator(".search-pattern").fill("CUDA error")
    task.choose(page.get_by_label("Time range"), "last 2 h")
    page.locator(".search-pattern").press("Enter")
    task.click(page.locator(".found", has_text="CUDA error").first.get_by_role("link").first)
    line = page.locator(".log-line.is-current")
    expect(line).to_contain_text("RuntimeError: CUDA error: out of memory")
    assert task.clicks <= 4
    other = visitor.open(page.url)  # the address is the link
    expect(other.locator(".log-line.is-current")).to_contain_text("RuntimeError: CUDA error")


def test_who_stopped_it_and_why(task: Task) -> None:
    page = task.page
    task.click(page.locator(".tile.is-stopped"))
    task.click(page.get_by_role("link", name="gpu-00000-w5", exact=True))
    event = page.locator(".event-list li").filter(has_text="the data set is wrong").first
    expect(event).to_contain_text("by ")
    assert task.clicks <= 2


def test_the_lines_to_paste_for_a_changed_env(task: Task) -> None:
    page = task.page
    task.click(page.locator(".worker-progress").get_by_role("link", name=LOSSES[0], exact=True))
    task.click(page.get_by_role("tab", name="Configuration"))
    change = page.get_by_role("region", name="Change it in the inventory")
    expect(change).to_contain_text(f"{INVENTORY}:7")
    change.get_by_label("New value").fill("0.2")
    task.click(change.get_by_role("button", name="Copy").first)
    expect(change.locator("pre").first).to_have_text('  LR: "0.2"')
    expect(change.locator("pre").last).to_have_text(f"invoke deploy --hosts {INVENTORY} --limit gpu-00000")
    assert task.clicks <= 3


def test_yesterdays_attempts_log(task: Task, fleet: ManagerRig) -> None:
    page = task.page
    task.click(page.locator(".problem-list").get_by_role("link", name="cuda1"))
    task.click(page.get_by_role("tab", name="Attempts"))
    row = page.locator(".attempts-table .table-body .table-row").filter(has=page.locator(".col-number", has_text="1"))
    task.click(row.get_by_role("link", name="log", exact=True))
    expect(page.get_by_label("Attempt", exact=True)).to_have_value("1")
    expect(page.locator(".log-line").filter(has_text="step 39").first).to_be_visible()
    assert task.clicks <= 3


def test_progress_and_time_left(task: Task) -> None:
    rows = task.page.locator(".worker-progress li")
    expect(rows.first).to_contain_text(re.compile(r"gpu-0000\d-w[01].*\d %, \d+ min left.*loss [\d.]+, step [\d,]+"))
    assert task.clicks == 0
