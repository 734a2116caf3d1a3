"""Tunnels: which hosts have one, their reports, and no operator rights at their end."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from procguard.agent_api.handlers import AgentApi
from procguard.deploy.tunnel.client import TunnelProcess
from procguard.deploy.tunnel.process import LAST_RETRY_S, retry_delay_s
from procguard.errors import Conflict, NotFound, Refused
from procguard.fleet.model.records import AgentRecord
from procguard.manager.tunnels import Tunnels
from procguard.portal.auth.sessions import COOKIE
from procguard.portal.http.agents_listener import AgentsOnly, application
from procguard.portal.logs.store import LogStore
from remote_agent.protocol.messages import secret_sha256
from tests.unit.fleet_world import World
from tests.unit.portal.auth.test_auth import AccessRig
from tests.waiting import wait_until

Json = dict[str, Any]


class FakeProcess:
    """Records its messages; `answer` simulates the real one's responses."""

    def __init__(self, on_news: Callable[[Json], None]) -> None:
        self.on_status = on_news
        self.said: list[tuple[str, Any]] = []
        self.on_keep: Callable[[Json], None] = lambda _spec: None
        self.on_kick: Callable[[str], None] = lambda _agent_id: None

    def keep(self, spec: Json) -> None:
        self.said.append(("keep", dict(spec)))
        self.on_keep(spec)

    def drop(self, agent_id: str) -> None:
        self.said.append(("drop", agent_id))

    def kick(self, agent_id: str) -> None:
        self.said.append(("kick", agent_id))
        self.on_kick(agent_id)

    def moved(self, agent_id: str, port: int) -> None:
        self.said.append(("moved", (agent_id, port)))

    def close(self) -> None:
        self.said.append(("close", None))


class Rig:
    def __init__(self, directory: Path) -> None:
        self.world = World(directory)
        self.begin()

    def begin(self) -> None:
        self.tunnels = Tunnels(self.world.fleet, self._made)
        self.tunnels.start(40_000)

    def _made(self, on_news: Callable[[Json], None]) -> FakeProcess:
        self.process = FakeProcess(on_news)
        return self.process

    def deploy(self, *hosts: Json) -> None:
        declared = [{"ssh": {"hostname": one["host"]}, "workers": [], **one} for one in hosts]
        self.world.fleet.workers.deploy({"hosts": declared}, "tester", self.world.now)

    def view(self, host: str) -> Json:
        return dict(next(one for one in self.world.fleet.state.hosts() if one["host"] == host))

    def sent(self, what: str) -> list[Any]:
        return [value for name, value in self.process.said if name == what]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_only_hosts_that_ask_for_it_and_are_elsewhere_get_one(rig: Rig) -> None:
    rig.deploy(
        {"host": "h1", "tunnel": True, "procguard_home": "/x"},
        {"host": "h2"},
        {"host": "h3", "tunnel": True, "ssh": {"local": True}},
    )
    [spec] = rig.sent("keep")
    assert (spec["agent_id"], spec["home"], spec["port"], spec["may_move"], spec["to"]) == ("h1", "/x", 0, True, 40_000)
    assert spec["ssh"] == {"hostname": "h1"} and spec["fleet_id"] == rig.world.fleet.state.fleet_id
    assert rig.view("h1")["tunnel"] == {"state": "opening", "port": 0} and rig.view("h2")["tunnel"] is None


def test_its_states_are_shown_and_noted_once_and_its_port_is_durable(rig: Rig) -> None:
    rig.deploy({"host": "h1", "tunnel": True})
    for _ in range(2):
        rig.process.on_status({"agent_id": "h1", "state": "down", "reason": "refused", "code": "refused"})
    rig.process.on_status({"agent_id": "h1", "state": "up", "port": 23_456})
    view = rig.view("h1")["tunnel"]
    assert (view["state"], view["port"], view["reason"]) == ("up", 23_456, "")
    rig.process.on_status({"agent_id": "h1", "state": "down", "reason": "cut", "code": "connection_lost"})
    kinds = [kind for kind in rig.world.kinds() if kind.startswith("tunnel")]
    assert kinds == ["tunnel_down", "tunnel_up", "tunnel_down"]
    rig.world.restart()
    rig.begin()
    [spec] = rig.sent("keep")
    assert (spec["agent_id"], spec["port"], spec["may_move"]) == ("h1", 23_456, False)  # opened again, where it was


def test_a_heartbeat_or_a_redeploy_without_changes_touches_no_tunnel(rig: Rig) -> None:
    rig.deploy({"host": "h1", "tunnel": True})
    rig.world.beat("h1")
    rig.deploy({"host": "h1", "tunnel": True})
    assert len(rig.process.said) == 1


def test_another_way_to_the_host_reopens_it_and_no_spec_closes_it(rig: Rig) -> None:
    rig.deploy({"host": "h1", "tunnel": True})
    rig.deploy({"host": "h1", "tunnel": True, "ssh": {"hostname": "elsewhere"}})
    assert [spec["ssh"]["hostname"] for spec in rig.sent("keep")] == ["h1", "elsewhere"]
    rig.deploy({"host": "h1"})
    assert rig.sent("drop") == ["h1"] and rig.view("h1")["tunnel"] is None


def test_a_host_that_is_forgotten_has_none(rig: Rig) -> None:
    rig.deploy({"host": "h1", "tunnel": True})
    rig.world.fleet.agents.forget("h1", "tester", rig.world.now)
    assert rig.sent("drop") == ["h1"]
    rig.process.on_status({"agent_id": "h1", "state": "up", "port": 1})  # sent before it received that


def test_who_deploys_waits_for_the_tunnel(rig: Rig) -> None:
    rig.deploy({"host": "h1", "tunnel": True})
    threading.Timer(0.05, rig.process.on_status, [{"agent_id": "h1", "state": "up", "port": 23_456}]).start()
    opened = rig.tunnels.open("h1", 10.0)
    assert (opened["state"], opened["port"]) == ("up", 23_456)


def test_the_deploy_output_says_why_there_is_none_also_the_second_time(rig: Rig) -> None:
    rig.deploy({"host": "h1", "tunnel": True})
    down = {"agent_id": "h1", "state": "down", "reason": "login refused", "code": "auth"}
    rig.process.on_status(down)
    rig.process.on_kick = lambda _agent_id: rig.process.on_status(down)
    opened = rig.tunnels.open("h1", 10.0)
    assert (opened["state"], opened["reason"]) == ("down", "login refused") and rig.sent("kick") == ["h1"]


def test_a_port_that_was_taken_is_left_by_the_next_deployment(rig: Rig) -> None:
    rig.deploy({"host": "h1", "tunnel": True})
    rig.process.on_status({"agent_id": "h1", "state": "up", "port": 23_456})
    rig.process.on_status({"agent_id": "h1", "state": "down", "reason": "taken", "code": "port_taken"})
    rig.process.on_keep = lambda spec: rig.process.on_status({"agent_id": "h1", "state": "up", "port": 24_000})
    assert rig.tunnels.open("h1", 10.0)["port"] == 24_000
    assert rig.sent("keep")[-1]["may_move"] is True


def test_waiting_for_a_tunnel_ends_and_unknown_hosts_are_refused(rig: Rig) -> None:
    rig.deploy({"host": "h1", "tunnel": True}, {"host": "h2"})
    assert rig.tunnels.open("h1", 0.05)["state"] == "opening"
    with pytest.raises(NotFound):
        rig.tunnels.open("nobody", 1.0)
    with pytest.raises(Conflict, match="procguard_tunnel") as caught:
        rig.tunnels.open("h2", 1.0)
    assert "procguard_tunnel: true" in caught.value.next_step


def test_a_host_just_reached_over_ssh_has_its_tunnel_tried_at_once(rig: Rig) -> None:
    rig.deploy({"host": "h1", "tunnel": True}, {"host": "h2"})
    rig.tunnels.kick("h1")
    rig.tunnels.kick("h2")
    assert rig.sent("kick") == ["h1"]


def test_an_older_managers_record_has_no_tunnel() -> None:
    assert AgentRecord("h", "h", "deployed").tunnel is False


def test_retries_grow_to_their_bound_and_spread() -> None:
    assert [retry_delay_s(number, lambda: 1.0) for number in (1, 2, 3, 9)] == [1.0, 2.0, 4.0, LAST_RETRY_S]
    assert 0.05 < retry_delay_s(1, lambda: 0.0) < 0.2


# ---------------------------------------------------------------------------------------- the process that keeps them

STAND_IN = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request.get("agent_id") == "die":
        sys.exit(1)
    print(json.dumps({"agent_id": request["agent_id"], "state": "up", "port": request["port"] or 9}), flush=True)
"""


def test_a_process_that_dies_is_restarted_and_receives_everything_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("procguard.deploy.tunnel.client.START_AGAIN_S", 0.01)
    news: list[Json] = []
    process = TunnelProcess(news.append, [sys.executable, "-c", STAND_IN])
    try:
        process.keep({"agent_id": "h1", "port": 0})
        wait_until(lambda: len(news) == 1, 10, "h1 up")
        process.moved("h1", 23_456)
        first = process._process
        first.kill()
        wait_until(lambda: len(news) >= 3, 10, "up again")
        assert news[1]["state"] == "down" and "started again" in news[1]["reason"]
        assert news[2] == {"agent_id": "h1", "state": "up", "port": 23_456}
        process.drop("h1")
        process._process.kill()
        wait_until(lambda: process._process is None, 10, "its end noticed")
        assert len(news) == 3  # nothing is wanted: nothing is started
    finally:
        process.close()


def test_closing_ends_the_process() -> None:
    process = TunnelProcess(lambda _news: None, [sys.executable, "-c", STAND_IN])
    process.keep({"agent_id": "h1", "port": 0})
    running = process._process
    process.close()
    assert running.poll() is not None


# ------------------------------------------------------------------------------------------------- where they end


@pytest.fixture
def access_rig(tmp_path: Path) -> AccessRig:
    return AccessRig(tmp_path)


@pytest.mark.parametrize("scope", ["operator", "viewer", "metrics"])
def test_an_operators_token_is_worth_nothing_there(access_rig: AccessRig, scope: str) -> None:
    token = access_rig.token(scope)
    caller = AgentsOnly(access_rig.auth).identify(access_rig.request(HTTP_AUTHORIZATION=f"Bearer {token}"))
    assert caller.kind == "anonymous" and "agents only" in caller.reason
    assert AgentsOnly(access_rig.auth).by_secret(secret_sha256(token)) is None


def test_the_managers_own_user_and_a_browsers_session_are_nobody_there(access_rig: AccessRig) -> None:
    access_rig.token()
    assert access_rig.auth.identify(access_rig.request()).kind == "operator"
    assert AgentsOnly(access_rig.auth).identify(access_rig.request()).kind == "anonymous"
    with_cookie = access_rig.request(HTTP_COOKIE=f"{COOKIE}=whatever")
    assert AgentsOnly(access_rig.auth).identify(with_cookie).kind == "anonymous"


def test_an_agents_secret_and_an_enrolment_token_count(access_rig: AccessRig) -> None:
    fleet, now = access_rig.world.fleet, access_rig.world.now
    access_rig.world.deploy({"h1": {"w1": {"command": "x"}}})
    fleet.agents.secrets.set("h1", secret_sha256("s3cret"), "tester", now)
    access = AgentsOnly(access_rig.auth)
    caller = access.identify(access_rig.request(HTTP_AUTHORIZATION="Bearer s3cret"))
    assert (caller.kind, caller.agent_id) == ("agent", "h1")
    assert access.check_worker_agent(caller, "w1") == caller
    assert (
        access.identify(access_rig.request(HTTP_AUTHORIZATION=f"Bearer {access_rig.token('enroll')}")).kind == "enroll"
    )
    with pytest.raises(Refused):
        access.identify(access_rig.request(HTTP_AUTHORIZATION="Bearer wrong"))


def test_an_operator_may_not_even_report_for_a_worker_there(access_rig: AccessRig) -> None:
    """On the manager's own port an operator may send a plain heartbeat by hand."""
    access_rig.world.deploy({"h1": {"w1": {"command": "x"}}})
    operator = access_rig.auth.identify(access_rig.request())
    assert access_rig.auth.check_worker_agent(operator, "w1", operator_too=True).kind == "operator"
    with pytest.raises(Exception, match=r"may not|only"):
        AgentsOnly(access_rig.auth).check_worker_agent(replace(operator), "w1", operator_too=True)


def test_only_agents_routes_are_there(access_rig: AccessRig, tmp_path: Path) -> None:
    agents = AgentApi(access_rig.world.fleet, access_rig.auth, LogStore(str(tmp_path / "logs")))
    app = application(agents, access_rig.auth, lambda _error: b"{}")
    assert {(route.method, route.rule) for route in app.routes} == {(one.method, one.path) for one in agents.routes()}
    assert all(
        rule.startswith(("/api/hello", "/api/workers/", "/api/agents/")) for rule in (r.rule for r in app.routes)
    )


def test_wishes_travel_as_json(rig: Rig) -> None:
    rig.deploy({"host": "h1", "tunnel": True})
    assert json.loads(json.dumps(rig.sent("keep")[0])) == rig.sent("keep")[0]
