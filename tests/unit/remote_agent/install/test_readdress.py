"""The manager's addresses change: a running agent gets them over SSH if they prove themselves, and nothing else
changes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.install import helper
from procguard.deploy.session import bundle
from remote_agent.install import __main__ as install
from remote_agent.install import maintenance, readdress
from remote_agent.install.installer import Installer
from remote_agent.system import paths
from remote_agent.transport.address_file import AddressFile
from remote_agent.transport.addresses import Addresses
from tests import fake_manager
from tests.fake_manager import FakeManager
from tests.unit.remote_agent.install.test_install import installer, manager, put
from tests.waiting import wait_until

__all__ = ["installer", "manager"]  # fixtures


@pytest.fixture
def moved() -> Iterator[FakeManager]:
    """The same manager at another address."""
    with fake_manager.running() as one:
        yield one


def record(installer: Installer) -> dict[str, Any]:
    return dict(json.loads(Path(paths.agent_file(installer.dir)).read_text()))


def away(manager: FakeManager) -> None:
    """The manager no longer responds at its address."""
    for path in ("GET /api/hello", "POST /api/agents/host1/heartbeat", "GET /api/agents/host1/commands"):
        manager.routes[path] = lambda body: (404, {})


def given(*managers: FakeManager, **more: Any) -> dict[str, Any]:
    return {"manager_urls": [one.url for one in managers], "manager_port": 0, **more}


def test_a_running_agent_takes_the_new_address_without_a_restart(
    installer: Installer, manager: FakeManager, moved: FakeManager
) -> None:
    pid = put(installer, manager, secret="s3cret")["pid"]
    wait_until(lambda: manager.received, what="a heartbeat")
    before = record(installer)
    away(manager)
    answer = readdress.update_addresses(installer, given(moved))
    assert answer == {"new": [moved.url], "before": [manager.url]}
    wait_until(lambda: moved.received, 10, what="a heartbeat at the new address")
    assert installer.status()["pid"] == pid
    after = record(installer)
    assert after == {**before, "manager_urls": [moved.url], "manager_tried": []}
    assert os.stat(paths.agent_file(installer.dir)).st_mode & 0o777 == 0o600


def test_nothing_is_written_while_one_of_its_own_addresses_works(
    installer: Installer, manager: FakeManager, moved: FakeManager
) -> None:
    put(installer, manager, secret="s3cret")
    before = os.stat(paths.agent_file(installer.dir)).st_mtime_ns
    assert readdress.update_addresses(installer, given(moved)) == {}
    assert os.stat(paths.agent_file(installer.dir)).st_mtime_ns == before


def test_an_address_without_the_fleets_proof_is_not_given(
    installer: Installer, manager: FakeManager, moved: FakeManager
) -> None:
    """Also a manager with the right fleet id: its key decides. The tried addresses are reported."""
    put(installer, manager, secret="s3cret")
    away(manager)
    moved.routes["GET /api/hello"] = lambda body: (200, {"fleet_id": fake_manager.FLEET, "proof": "guessed"})
    answer = readdress.update_addresses(installer, given(moved))
    assert "can't prove" in answer["unreached"][moved.url] and manager.url in answer["unreached"]
    assert record(installer)["manager_urls"] == [manager.url]
    said = helper._of_addresses("host1", answer)
    assert moved.url in said and "web.advertise" in said and "web.host" in said


def test_of_several_only_those_that_prove_themselves_or_are_configured_are_given(
    installer: Installer, manager: FakeManager, moved: FakeManager
) -> None:
    put(installer, manager, secret="s3cret")
    away(manager)
    urls = ["http://127.0.0.1:9", "http://127.0.0.1:7", moved.url]
    wanted = {"manager_urls": urls, "manager_configured": ["http://127.0.0.1:7"], "manager_port": 0}
    assert readdress.update_addresses(installer, wanted)["new"] == [moved.url, "http://127.0.0.1:7"]
    assert record(installer)["manager_tried"] == ["http://127.0.0.1:9"]


def test_an_address_that_the_inventory_sets_is_left_alone_also_after_an_upgrade(
    installer: Installer, manager: FakeManager, moved: FakeManager
) -> None:
    put(installer, manager, secret="s3cret", manager_url_fixed=True, manager_fixed=manager.url)
    release = bundle.build()
    asked = {"release": release.sha256, "unpacked_bytes": release.unpacked_bytes}
    assert maintenance.upgrade(installer, asked, lambda: release.data, bytes)["changes"] == []
    away(manager)
    answer = readdress.update_addresses(installer, given(moved))
    assert list(answer["unreached"]) == [manager.url]
    assert "procguard_manager_url" in helper._of_addresses("host1", answer)
    assert record(installer)["manager_urls"] == [manager.url]


def test_a_pinned_ca_stays(installer: Installer, manager: FakeManager, moved: FakeManager) -> None:
    put(installer, manager, secret="s3cret", manager_ca="the pinned one")
    away(manager)
    assert readdress.update_addresses(installer, given(moved, manager_ca="another"))["new"]
    assert record(installer)["manager_ca"] == "the pinned one"


def test_the_session_hands_over_only_where_a_manager_asks(
    installer: Installer, manager: FakeManager, moved: FakeManager
) -> None:
    """cron's `ensure` says nothing of a manager."""
    put(installer, manager, secret="s3cret")
    away(manager)
    where = {"op": "ensure", "fleet_id": installer.fleet_id, "host": "host1", "home": installer.home}
    assert "addresses" not in install.InstallerSession()._do(where)["report"]
    report = install.InstallerSession()._do({**where, "manager": given(moved)})["report"]
    assert report["running"] and report["addresses"]["new"] == [moved.url]


# ------------------------------------------------------------------------------------------------ in the agent


def agent_json(directory: Path, **values: Any) -> None:
    known = {"agent_id": "h1", "proof_key": "key", "manager_urls": ["http://new"]}
    paths.write_json(paths.agent_file(str(directory)), {**known, **values})


def test_what_the_file_says_now_takes_the_place_of_the_addresses(tmp_path: Path) -> None:
    addresses = Addresses(["http://old"], file=AddressFile(str(tmp_path), "h1", "key"))
    assert (addresses.read_again(), addresses.current()) == ([], "http://old")
    agent_json(tmp_path, manager_urls=["http://new/", "http://newer"], tunnel_url="http://newer")
    assert addresses.read_again() == ["http://new", "http://newer"]
    assert (addresses.current(), addresses.tunnel_url) == ("http://new", "http://newer")
    assert addresses.read_again() == []


@pytest.mark.parametrize(
    "wrong",
    [{"proof_key": "another"}, {"agent_id": "h2"}, {"manager_urls": []}, {"manager_urls": [7]}, {"manager_urls": "x"}],
)
def test_a_file_that_is_not_this_agents_changes_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    agent_json(tmp_path, **wrong)
    addresses = Addresses(["http://old"], file=AddressFile(str(tmp_path), "h1", "key"))
    assert (addresses.read_again(), addresses.current()) == ([], "http://old")


def test_a_torn_or_missing_file_changes_nothing(tmp_path: Path) -> None:
    file = AddressFile(str(tmp_path), "h1", "key")
    assert file.news() is None
    Path(paths.agent_file(str(tmp_path))).write_text("{")
    assert file.news() is None


def test_the_helper_says_what_the_agent_had_and_has() -> None:
    said = helper._of_addresses("h1", {"new": ["http://b"], "before": ["http://a"]})
    assert "http://a" in said and "http://b" in said
    assert helper._of_addresses("h1", {}) == ""
