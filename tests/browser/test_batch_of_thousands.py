"""Nine tenths of a fleet are stopped through the page: preview, both numbers in the dialog, progress, workers that do
not stop, and a retry of these. Failing workers are selected by name. Stopping 9,000 takes minutes: pytest -m long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from scripts.swarm import Behaviour, Swarm, default_spec
from tests.browser.conftest import ManagerRig, Visitor
from tests.browser.test_portal import settled

pytestmark = pytest.mark.browser


def spec(host: int, number: int) -> dict[str, Any]:
    """Every tenth worker of a host stays running."""
    made = default_spec(host, number)
    return {**made, "labels": {**made["labels"], "spared": "no" if number % 10 else "yes"}}


@contextmanager
def fleet(directory: Path, hosts: int, each: int, planted: list[str]) -> Iterator[ManagerRig]:
    made = ManagerRig(directory)
    try:
        made.start_manager()
        behaviour = Behaviour(deaf_once=tuple(planted), usage_every_s=5.0)
        with Swarm(made.url, hosts, each, seed=11, behaviour=behaviour, prefix="gpu", spec=spec, keep=True) as swarm:
            swarm.wait_running(600)
            yield made
    finally:
        made.end()


def end_nine_tenths(verb: str, hosts: int, each: int, planted: list[str], directory: Path, visitor: Visitor) -> None:
    action, everybody = verb.capitalize(), hosts * each
    wanted = everybody * 9 // 10
    with fleet(directory, hosts, each, planted) as rig:
        page = visitor.open(f"{rig.url}/#/workers?label=spared%3Dno")
        settled(page)
        expect(page.locator(".page-head .count")).to_contain_text(f"{wanted:,} of {everybody:,}", timeout=60_000)
        page.get_by_label("Select all matches").click()
        page.locator(f".batch-bar [data-verb={verb}]").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text(re.compile(rf"All {wanted:,} matching, \d+ visible"), timeout=60_000)
        expect(dialog.get_by_label("By state")).to_contain_text(f"{wanted:,}")
        go = dialog.get_by_role("button", name=f"{action} {wanted:,}")
        expect(go).to_be_disabled()
        dialog.get_by_label("Concurrency").fill("2000")
        dialog.get_by_label(re.compile("^Type ")).fill(str(wanted))
        go.click()
        expect(page.locator("h1")).to_have_text(f"{action}: {wanted:,} workers", timeout=60_000)
        expect(page.locator(".progress").first).to_be_visible()
        chip = page.locator(".page-head .chip")
        expect(chip).to_have_text(re.compile("partly failed"), timeout=900_000)
        expect(page.locator(".operation-done")).to_contain_text(f"{wanted:,} of {wanted:,}")

        states = {one["worker_id"]: one["state"] for one in rig.ask("GET", "/api/remote-workers")["workers"]}
        ended = {worker_id for worker_id, state in states.items() if state == "stopped"}
        assert len(ended) == wanted - len(planted) and not ended & set(planted)
        assert (
            sum(worker_id.endswith("0") and state == "running" for worker_id, state in states.items())
            == everybody // 10
        )
        page.locator(".facets").get_by_role("button", name=re.compile("^(failed|expired)")).first.click()
        rows = page.locator(".items-table .table-body .table-row a")
        expect(rows).to_have_count(len(planted))
        assert sorted(rows.all_inner_texts()) == sorted(planted)

        page.get_by_role("button", name=f"Retry {len(planted)} failed").click()
        page.get_by_role("dialog").get_by_role("button", name=f"{action} {len(planted)}").click()
        expect(page.locator("h1")).to_have_text(f"{action}: {len(planted)} workers")
        expect(page.locator(".fact-retry_of a")).to_be_visible()
        expect(chip).to_have_text(re.compile("done"), timeout=60_000)
        stopped = rig.ask("GET", "/api/remote-workers?state=stopped&limit=1")
        assert stopped["total"] == wanted

        # more happened than a page holds of itself: what is older is still on record
        page.goto(f"{rig.url}/#/worker/gpu-00000-w0")
        expect(page.locator(".event-list li").filter(has_text="starting → ● running")).to_be_visible()
        begun = rig.ask("GET", "/api/events?limit=10000")["events"]
        page.goto(f"{rig.url}/#/events")
        expect(page.locator(".page-head .count")).to_have_text(re.compile("^newest .*, loaded back to"))
        load = page.get_by_role("button", name=re.compile("Load older events|Show more"))
        while load.is_visible():
            load.click()
            page.wait_for_timeout(200)
        expect(page.get_by_text("Nothing older is on record.")).to_be_visible()
        expect(page.locator(".page-head .count")).to_have_text(re.compile(rf"^{len(begun):,} events$"))
        page.close()  # before its manager ends


def test_nine_tenths_of_a_fleet_are_killed_through_the_page(tmp_path: Path, visitor: Visitor) -> None:
    """The short form: a refused kill fails at once, a stop without effect only after its timeout."""
    planted = [f"gpu-{host:05d}-w{1 + host % 9}" for host in (3, 17, 29)]
    end_nine_tenths("kill", 30, 10, planted, tmp_path, visitor)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_nine_thousand_of_ten_thousand_are_stopped_through_the_page(tmp_path: Path, visitor: Visitor) -> None:
    planted = [f"gpu-{host:05d}-w{1 + host % 9}" for host in range(7, 200, 10)]
    assert len(planted) == 20
    end_nine_tenths("stop", 200, 50, planted, tmp_path, visitor)
