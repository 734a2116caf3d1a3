"""The deployer's order and fairness, with a fake manager client and fake hosts."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from procguard.cli.output import deployment
from procguard.client.coming_up import WaitLimit
from procguard.deploy.install.deployer import Deployer, DeployOptions, manager_candidates
from procguard.deploy.install.rollout import HostResult, RolloutPlan
from procguard.deploy.install.verify import AgentVerifier, known_recovery
from procguard.deploy.inventory.model import Host, load
from procguard.deploy.session import bundle
from procguard.deploy.ssh.target import Target
from procguard.errors import Conflict, HostError, HostUnreachable, ProcGuardError, UsageError
from remote_agent.protocol.messages import secret_sha256


class FakeClient:
    """Responds as the manager; its clock advances with each request, so that `last_seen` advances."""

    url = "http://manager:5000"

    def __init__(self, hosts: list[str]) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.secrets: dict[str, str] = {name: "" for name in hosts}
        self.worker_results: dict[str, dict[str, Any]] = {name: {} for name in hosts}
        self.silent: set[str] = set()
        self.clock = datetime(2026, 1, 1, tzinfo=timezone.utc)
        self.pending: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}  # beside those of `pending`
        self.broken: set[str] = set()  # these fail once they are restarted
        self.forget_refusals = 0
        self.absent: dict[str, Any] = {}

    def deploy(self, request: dict[str, Any]) -> dict[str, Any]:
        self.log.append(("deploy", request))
        names = [one["host"] for one in request["hosts"]]
        return {
            "fleet_id": "f-1",
            "absent": self.absent,
            "manager_urls": ["http://10.0.0.1:5000"],
            "hosts": {
                name: {
                    "agent_id": name,
                    "proof_key": "k",
                    "secret_sha256": self.secrets[name],
                    "workers": self.worker_results[name],
                }
                for name in names
            },
        }

    def set_credentials(self, agent_id: str, digest: str) -> None:
        self.log.append(("credentials", agent_id))
        self.secrets[agent_id] = digest

    def hosts(self) -> dict[str, Any]:
        self.clock += timedelta(seconds=1)
        before = (self.clock - timedelta(milliseconds=1)).isoformat()
        views = [
            {
                "agent": name,
                "host": name,
                "agent_state": "connected",
                "last_seen": None if name in self.silent else before,
            }
            for name in self.secrets
        ]
        return {"hosts": views, "server_time": self.clock.isoformat()}

    def check_ssh(self, host: str) -> dict[str, Any]:
        self.log.append(("check-ssh", host))
        return {"ok": host != "b", "reason": "" if host != "b" else "auth"}

    def workers(self, **query: Any) -> list[dict[str, Any]]:
        pending = {name: {"worker_id": name, "restart_pending": True, "agent": "elsewhere"} for name in self.pending}
        return list({**pending, **self.views}.values())

    def command(self, worker_id: str, verb: str) -> None:
        self.log.append((verb, worker_id))
        if worker_id in self.views:
            state = "failed" if worker_id in self.broken else "running"
            known = self.views[worker_id]
            self.views[worker_id] = {
                **known, "state": state, "attempt": known["attempt"] + 1, "restart_pending": False, "reason": "typo"
            }  # fmt: skip

    def logs(self, worker_id: str, **_query: Any) -> str:
        return ""

    def forget_agent(self, agent_id: str, undeployed: bool = False) -> None:
        self.log.append(("retract" if undeployed else "forget", agent_id))
        if self.forget_refusals:
            self.forget_refusals -= 1
            raise Conflict("it is connected")


class FakeHosts:
    """Each host's response; an error is raised at the connection."""

    def __init__(self) -> None:
        self.installed: dict[str, dict[str, Any]] = {}
        self.errors: dict[str, ProcGuardError] = {}
        self.requests: dict[str, dict[str, Any]] = {}
        self.before_install: Callable[[], object] = bool
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def session(self, target: Target, deadline: float, on_connected: Callable[[], None] | None = None) -> Iterator[Any]:
        if target.host in self.errors:
            raise self.errors[target.host]
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        threading.Event().wait(0.01)
        if on_connected:
            on_connected()
        yield FakeSession(self, target.host)
        with self._lock:
            self.at_once -= 1


class FakeSession:
    def __init__(self, hosts: FakeHosts, host: str) -> None:
        self._hosts, self._host = hosts, host

    def hello(self, where: dict[str, str], deadline: float) -> dict[str, Any]:
        return self._hosts.installed.get(self._host, {"installed": False, "secret_sha256": "", "release": ""})

    def install(
        self,
        request: dict[str, Any],
        data: bytes,
        deadline: float,
        code: Callable[[], bytes] = bytes,
        secret: Callable[[str], str] = lambda current: "",
    ) -> dict[str, Any]:
        self._hosts.before_install()
        known = self._hosts.installed.get(self._host)
        given = secret((known or {"secret_sha256": ""})["secret_sha256"]) if request["new_secret"] else ""
        self._hosts.requests[self._host] = {**request, "secret": given}
        changes = [] if known and not given else ["installed", "started"]
        digest = secret_sha256(given) if given else (known or {})["secret_sha256"]
        self._hosts.installed[self._host] = {
            "installed": True,
            "running": True,
            "secret_sha256": digest,
            "release": request["release"][:16],
        }
        return {"changes": changes, "keep_alive": "cron", "pid": 7}

    def perform(self, op: str, where: dict[str, Any], deadline: float) -> dict[str, Any]:
        self._hosts.requests[self._host] = {"op": op, **where}
        return {"changes": ["removed"]}


class Recorder:
    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.finished: list[str] = []

    def stage(self, host: str, stage: str) -> None:
        self.stages.append((host, stage))

    def done(self, result: HostResult) -> None:
        self.finished.append(result.host)


def hosts(*names: str) -> list[Host]:
    return [Host(name, Target(name)) for name in names]


def deployer(client: Any, machines: FakeHosts, listener: Recorder | None = None, **options: Any) -> Deployer:
    return Deployer(client, machines, listener or Recorder(), DeployOptions(**options))


def test_a_first_deployment_goes_through_every_stage_in_order() -> None:
    client, machines, listener = FakeClient(["a"]), FakeHosts(), Recorder()
    (result,) = deployer(client, machines, listener).deploy(hosts("a"))
    assert result.status == "changed" and result.recovery_ssh["ok"] is True
    assert [stage for _, stage in listener.stages] == ["connect", "probe", "upload", "recovery", "verify"]
    assert [entry[0] for entry in client.log] == ["deploy", "credentials", "check-ssh"]


def test_an_unchanged_redeploy_is_ok_and_sends_no_secret() -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    one = deployer(client, machines)
    one.deploy(hosts("a"))
    assert machines.requests["a"]["secret"]
    (result,) = one.deploy(hosts("a"))
    assert result.status == "ok" and result.changes == [] and machines.requests["a"]["secret"] == ""
    assert [entry[0] for entry in client.log].count("credentials") == 1


def test_a_host_whose_secret_the_manager_forgot_gets_a_new_one() -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    deployer(client, machines).deploy(hosts("a"))
    client.secrets["a"] = "something else"
    deployer(client, machines).deploy(hosts("a"))
    assert client.secrets["a"] == machines.installed["a"]["secret_sha256"]


@pytest.mark.parametrize("rotate", [False, True])
def test_a_deployment_that_another_overtakes_leaves_the_host_the_secret_that_the_manager_knows(rotate: bool) -> None:
    """Both have asked manager and host before either of them installs."""
    client, machines = FakeClient(["a"]), FakeHosts()

    def overtake() -> None:
        machines.before_install = bool
        (quicker,) = deployer(client, machines).deploy(hosts("a"))
        assert quicker.status == "changed"

    machines.before_install = overtake
    (slower,) = deployer(client, machines, rotate_secrets=rotate).deploy(hosts("a"))
    assert slower.error is None
    assert client.secrets["a"] == machines.installed["a"]["secret_sha256"] != ""
    assert [entry[0] for entry in client.log].count("credentials") == (2 if rotate else 1)


def test_a_deployment_that_rotates_gives_each_host_another_secret_and_nothing_else_does() -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    deployer(client, machines).deploy(hosts("a"))
    first = machines.installed["a"]["secret_sha256"]
    deployer(client, machines).deploy(hosts("a"))
    assert machines.installed["a"]["secret_sha256"] == first
    deployer(client, machines, rotate_secrets=True).deploy(hosts("a"))
    assert machines.installed["a"]["secret_sha256"] == client.secrets["a"] != first


def test_one_sick_host_never_hides_the_others() -> None:
    client, machines = FakeClient(["a", "b", "c", "d"]), FakeHosts()
    machines.errors = {"b": HostUnreachable("b: refused"), "c": HostError("c: no space"), "d": RuntimeError("odd")}  # type: ignore[dict-item]
    results = deployer(client, machines).deploy(hosts("a", "b", "c", "d"))
    assert [result.status for result in results] == ["changed", "unreachable", "failed", "failed"]
    assert "RuntimeError: odd" in str(results[3].error)
    failure = deployment.failure(results)
    assert failure is not None and failure.exit_code == 2 and "b, c, d" in failure.message


def test_forks_bound_how_many_hosts_are_worked_on_at_once() -> None:
    names = [f"h{number}" for number in range(12)]
    client, machines = FakeClient(names), FakeHosts()
    assert len(deployer(client, machines, plan=RolloutPlan(forks=3)).deploy(hosts(*names))) == 12
    assert machines.most_at_once <= 3


def test_an_inventory_the_manager_refuses_reaches_no_host() -> None:
    client, machines, listener = FakeClient(["a"]), FakeHosts(), Recorder()
    client.deploy = lambda request: (_ for _ in ()).throw(UsageError("duplicate"))  # type: ignore[method-assign]
    with pytest.raises(UsageError):
        deployer(client, machines, listener).deploy(hosts("a"))
    assert listener.stages == []


def test_a_refused_worker_fails_its_host_after_the_rest_was_done() -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    client.worker_results["a"] = {"w": {"result": "refused", "message": "it is running on z; stop it there first"}}
    (result,) = deployer(client, machines).deploy(hosts("a"))
    assert result.status == "failed" and "worker w: it is running on z" in str(result.error)
    assert machines.installed["a"]["running"]


def test_check_changes_nothing_and_says_what_would() -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    (result,) = deployer(client, machines, check=True).deploy(hosts("a"))
    assert result.changes == ["would install the agent"] and machines.requests == {}
    assert [entry[0] for entry in client.log] == ["deploy"] and client.log[0][1]["check"] is True


def test_restart_changed_restarts_exactly_those_that_wait_for_it() -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    client.worker_results["a"] = {"w1": {"result": "changed"}, "w2": {"result": "unchanged"}, "w3": {"result": "new"}}
    client.pending = ["w1", "w2", "of-another-host"]  # w2 waits since an earlier deployment
    deployer(client, machines).deploy(hosts("a"))
    assert not [entry for entry in client.log if entry[0] == "restart"]  # nothing is restarted unasked
    (result,) = deployer(client, machines, restart_changed=True).deploy(hosts("a"))
    assert [entry for entry in client.log if entry[0] == "restart"] == [("restart", "w1"), ("restart", "w2")]
    assert result.status == "changed"


# ----------------------------------------------------------------------------- what became of the workers


def running(worker_id: str, host: str, **values: Any) -> dict[str, Any]:
    return {
        "worker_id": worker_id, "host": host, "state": "running", "desired": "running", "attempt": 1, "reason": "",
        **values,
    }  # fmt: skip


def with_workers(result: str, *names: str, starts: int | None = 1, **values: Any) -> FakeClient:
    """One worker on each host."""
    client = FakeClient(list(names))
    for name in names:
        client.worker_results[name] = {f"w-{name}": {"result": result, "message": "", "starts": starts}}
        client.views[f"w-{name}"] = running(f"w-{name}", name, **values)
    return client


def test_a_started_worker_that_fails_fails_its_host_alone() -> None:
    client = with_workers("new", "a", "b")
    client.views["w-b"].update(state="failed", reason="command not found: trian")
    listener = Recorder()
    results = deployer(client, FakeHosts(), listener, wait_limit=WaitLimit()).deploy(hosts("a", "b"))
    assert [result.status for result in results] == ["changed", "failed"]
    assert "worker w-b is failed: command not found: trian" in str(results[1].error)
    assert sorted(listener.finished) == ["a", "b"]
    out = Console(file=StringIO(), width=200)
    deployment.recap(out, results)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "w-b on b: failed: command not found: trian" in text and "workers: 1 new, 1 failed" in text
    assert sum(1 for line in text.splitlines() if line.startswith(("a ", "b "))) == 2
    assert deployment.as_json(results)["hosts"]["b"]["workers"]["w-b"]["state"] == "failed"


def test_an_unchanged_worker_that_failed_is_reported_without_waiting() -> None:
    client = with_workers("unchanged", "a", "b", starts=None)
    client.views["w-a"].update(state="backoff", attempt=7, current=True)
    client.views["w-b"].update(state="starting")
    machines = FakeHosts()
    deployer(client, machines).deploy(hosts("a", "b"))  # installed before
    results = deployer(client, machines, wait_limit=WaitLimit(60.0)).deploy(hosts("a", "b"))
    assert [result.status for result in results] == ["failed", "ok"]


@pytest.mark.parametrize("state", ["stopped", "exited", "starting", "unknown"])
def test_what_stands_still_for_another_reason_is_no_failure(state: str) -> None:
    client = with_workers("new", "a")
    client.views["w-a"].update(state=state)
    (result,) = deployer(client, FakeHosts(), wait_limit=WaitLimit(0.1)).deploy(hosts("a"))
    assert result.status == "changed" and result.workers["w-a"]["state"] == state


def test_an_upgrade_asks_nothing_of_the_workers() -> None:
    client = with_workers("unchanged", "a", starts=None)
    client.views["w-a"].update(state="failed")
    (result,) = deployer(client, FakeHosts()).deploy(hosts("a"))
    assert result.error is None


@pytest.mark.parametrize(
    ("options", "restarted", "statuses"),
    [
        ({}, ["w-a"], ["failed", "skipped", "skipped"]),  # one host first, then all others
        ({"plan": RolloutPlan(serial="1", max_fail="0")}, ["w-a"], ["failed", "skipped", "skipped"]),
        ({"plan": RolloutPlan(serial="1")}, ["w-a"], ["failed", "skipped", "skipped"]),
        ({"plan": RolloutPlan(serial="1", max_fail="1")}, ["w-a", "w-b"], ["failed", "failed", "skipped"]),
        ({"plan": RolloutPlan(max_fail="5")}, ["w-a", "w-b", "w-c"], ["failed", "failed", "failed"]),
    ],
)
def test_a_changed_worker_that_stays_down_ends_the_roll_out(
    options: dict[str, Any], restarted: list[str], statuses: list[str]
) -> None:
    client = with_workers("changed", "a", "b", "c", starts=None, restart_pending=True)
    client.broken = {"w-a", "w-b", "w-c"}
    one = deployer(client, FakeHosts(), wait_limit=WaitLimit(), restart_changed=True, **options)
    results = one.deploy(hosts("a", "b", "c"))
    assert [entry[1] for entry in client.log if entry[0] == "restart"] == restarted
    assert [result.status for result in results] == statuses


def test_one_that_failed_before_and_does_so_again_ends_it_before_any_restart() -> None:
    """On one host the worker is down, and its new specification is also wrong: no healthy worker is stopped for it."""
    client = with_workers("changed", "a", "b", starts=None, restart_pending=True)
    client.worker_results["b"]["w-b"]["starts"] = 3
    client.views["w-b"].update(state="failed", attempt=3, restart_pending=False)
    one = deployer(client, FakeHosts(), wait_limit=WaitLimit(), restart_changed=True)
    assert [result.status for result in one.deploy(hosts("a", "b"))] == ["skipped", "failed"]
    assert not [entry for entry in client.log if entry[0] == "restart"]


def test_an_unchanged_worker_that_is_down_holds_up_no_restarts() -> None:
    client = with_workers("changed", "a", starts=None, restart_pending=True)
    client.secrets["b"], client.worker_results["b"] = "", {"x": {"result": "unchanged", "message": "", "starts": None}}
    client.views["x"] = running("x", "b", state="failed")
    one = deployer(client, FakeHosts(), wait_limit=WaitLimit(), restart_changed=True)
    assert [result.status for result in one.deploy(hosts("a", "b"))] == ["changed", "failed"]
    assert [entry[1] for entry in client.log if entry[0] == "restart"] == ["w-a"]


def test_changed_workers_that_come_up_are_restarted_on_all_hosts() -> None:
    client = with_workers("changed", "a", "b", "c", starts=None, restart_pending=True)
    one = deployer(client, FakeHosts(), wait_limit=WaitLimit(), restart_changed=True)
    results = one.deploy(hosts("a", "b", "c"))
    assert [entry[1] for entry in client.log if entry[0] == "restart"] == ["w-a", "w-b", "w-c"]
    assert [result.status for result in results] == ["changed"] * 3


def test_undeploy_prunes_removes_and_forgets_even_if_the_manager_is_slow_to_notice() -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    client.forget_refusals = 2
    (result,) = deployer(client, machines).undeploy(hosts("a"))
    assert result.status == "changed" and machines.requests["a"]["op"] == "uninstall"
    assert client.log[0][1]["prune"] is True and client.log[0][1]["hosts"][0]["workers"] == []
    assert client.log.count(("forget", "a")) == 3


# ------------------------------------------------------------------------- hosts that are or were never there


def test_a_host_that_could_not_be_deployed_leaves_no_ghosts() -> None:
    """Only where nothing was installed: a host with a secret may have an agent, one with known workers had one."""
    client, machines = FakeClient(["a", "b", "c", "d"]), FakeHosts()
    machines.errors = {name: HostUnreachable(f"{name}: refused") for name in ("a", "b", "c")}
    client.secrets["b"] = "0" * 64
    client.worker_results["a"] = {"w": {"result": "new", "message": ""}}
    client.worker_results["c"] = {"v": {"result": "unchanged", "message": ""}}
    deployer(client, machines).deploy(hosts("a", "b", "c", "d"))
    assert [entry[1] for entry in client.log if entry[0] == "retract"] == ["a"]
    client.log.clear()
    deployer(client, machines, check=True).deploy(hosts("a"))
    assert not [entry for entry in client.log if entry[0] == "retract"]


def gone(*workers: str) -> dict[str, Any]:
    return {
        "agent_id": "old", "ssh": {"hostname": "10.0.0.9"}, "procguard_home": "/data/pg", "guests": [],
        "workers": {name: {"result": "removed", "message": ""} for name in workers},
    }  # fmt: skip


def test_a_host_gone_from_the_inventory_is_undeployed_by_prune() -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    client.absent = {"old": gone("w1")}
    kept, old = deployer(client, machines, prune=True).deploy(hosts("a"))
    assert (kept.host, old.host, old.status) == ("a", "old", "changed")
    assert machines.requests["old"] == {"op": "uninstall", "fleet_id": "f-1", "host": "old", "home": "/data/pg"}
    assert ("forget", "old") in client.log and old.workers["w1"]["result"] == "removed"


def test_without_prune_it_is_only_reported_and_with_check_nothing_happens() -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    client.absent = {"old": {**gone(), "workers": {"w1": {"result": "undeclared", "message": ""}}}}
    one = deployer(client, machines)
    assert [result.host for result in one.deploy(hosts("a"))] == ["a"]
    out = Console(file=StringIO(), width=200)
    deployment.absent(out, one.absent, {"lab1": "head:/lab.yaml"})
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "old: gone from the inventory; undeclared: w1; --prune" in text and "lab1 (head:/lab.yaml)" in text
    client.absent = {"old": gone("w1")}
    results = deployer(client, machines, check=True, prune=True).deploy(hosts("a"))
    assert results[1].changes == ["would stop and remove w1"] and "old" not in machines.requests


def test_prune_ends_no_host_where_the_roll_out_ended_early() -> None:
    client, machines = FakeClient(["a", "b"]), FakeHosts()
    client.absent = {"old": gone("w1")}
    machines.errors = {"a": HostUnreachable("a: refused")}
    one = deployer(client, machines, prune=True, plan=RolloutPlan(serial="1", max_fail="0"))
    assert [result.host for result in one.deploy(hosts("a", "b"))] == ["a", "b"]
    assert "old" not in machines.requests


@pytest.mark.parametrize("check", [False, True])
def test_undeploy_says_which_workers_go_and_nothing_of_the_inventory(check: bool) -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    client.worker_results["a"] = {
        "w": {"result": "removed", "message": "not in the inventory; stopped and removed"},
        "moved": {"result": "elsewhere", "message": "no longer declared here; it runs on b"},
    }
    machines.installed["a"] = {"installed": True}
    (result,) = deployer(client, machines, check=check).undeploy(hosts("a"))
    assert result.workers == {"w": {"result": "removed", "message": ""}}
    assert ("would stop and remove w" in result.changes) is check


@pytest.mark.parametrize("check", [False, True])
def test_undeploy_of_a_host_with_guests_is_refused_and_touches_nothing(check: bool) -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    client.views = {"roam": {"worker_id": "roam", "agent": "a", "home": "b"}}
    (result,) = deployer(client, machines, check=check).undeploy(hosts("a"))
    assert result.status == "failed" and "roam of b" in str(result.error)
    assert "invoke move roam b" in str(result.error) and machines.requests == {}
    assert all(entry[1]["check"] for entry in client.log if entry[0] == "deploy")  # its own workers run on, too


def test_rollback_reports_its_workers_as_they_are() -> None:
    client, machines = FakeClient(["a"]), FakeHosts()
    client.views = {"w": {"worker_id": "w", "agent": "a", "state": "running", "home": None}}
    (result,) = deployer(client, machines).rollback(hosts("a"))
    assert result.workers == {"w": {"result": "running", "message": ""}}


def test_an_agent_that_never_reconnects_is_an_error() -> None:
    client = FakeClient(["a"])
    client.silent = {"a"}
    with pytest.raises(HostError, match="never sent a heartbeat"):
        AgentVerifier(client).wait_for("a", 0.0)  # type: ignore[arg-type]


def test_a_heartbeat_before_the_close_is_not_enough() -> None:
    client = FakeClient(["a"])
    fixed = {"hosts": [{"agent": "a", "last_seen": "2026-01-01T00:00:00Z"}], "server_time": "2026-01-01T00:00:01Z"}
    client.hosts = lambda: fixed  # type: ignore[method-assign]
    with pytest.raises(HostError, match="no heartbeat since"):
        AgentVerifier(client).wait_for("a", 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("local", "fixed", "url", "expected"),
    [
        (False, "http://m:1", "http://localhost:5000", ["http://m:1"]),
        (False, "", "http://localhost:5000", ["http://10.0.0.1:5000"]),
        (True, "", "http://localhost:5055", ["http://127.0.0.1:5055", "http://10.0.0.1:5000"]),
        (False, "", "http://head:5000", ["http://head:5000", "http://10.0.0.1:5000"]),
    ],
)
def test_candidates_for_the_managers_address(local: bool, fixed: str, url: str, expected: list[str]) -> None:
    host = Host("h", Target("h", local=local), manager_url=fixed)
    assert manager_candidates(host, url, ["http://10.0.0.1:5000/"]) == expected


def test_the_request_is_what_the_inventory_says_and_json(tmp_path: Path) -> None:
    path = tmp_path / "i.yaml"
    path.write_text("all: {hosts: {h1: {ansible_host: 10.0.0.9, procguard_workers: {w: run}}}}")
    client, machines = FakeClient(["h1"]), FakeHosts()
    deployer(client, machines, prune=True).deploy(load(path).select(""))
    sent = json.loads(json.dumps(client.log[0][1]))
    assert sent["prune"] is True and sent["hosts"][0]["ssh"]["hostname"] == "10.0.0.9"
    assert sent["hosts"][0]["workers"][0]["worker_id"] == "w"
    assert machines.requests["h1"]["release"] == bundle.build().sha256


def test_the_recap_reports_recovery_and_totals() -> None:
    client, machines = FakeClient(["a", "b"]), FakeHosts()
    results = deployer(client, machines).deploy(hosts("a", "b"))
    out = Console(file=StringIO(), width=200)
    deployment.recap(out, results)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "recovery over SSH: yes" in text and "recovery over SSH: no (auth)" in text and "keep-alive: cron" in text
    assert "ok=0  changed=2  failed=0  unreachable=0" in text
    assert deployment.as_json(results)["hosts"]["b"]["recovery_ssh"]["ok"] is False


@pytest.mark.parametrize(
    ("recovery", "believed"),
    [
        ({"ok": True, "reason": "", "checked_at": "2026-01-01T11:50:00Z"}, True),
        ({"ok": True, "reason": "", "checked_at": "2026-01-01T11:30:00Z"}, False),  # too long ago
        ({"ok": False, "reason": "auth", "checked_at": "2026-01-01T11:59:00Z"}, False),  # it may be mended by now
        ({"ok": None, "reason": "not tried yet"}, False),
    ],
)
def test_that_the_manager_reached_a_host_lately_is_believed_where_nothing_changed(
    recovery: dict[str, Any], believed: bool
) -> None:
    seen = {"recovery_ssh": recovery, "server_time": "2026-01-01T12:00:00Z"}
    assert known_recovery(seen) == ({"ok": True, "reason": ""} if believed else {})


def test_after_a_rebuild_the_hosts_are_read_once_and_the_manager_learns_what_runs_where() -> None:
    """An unreadable host is skipped; the manager is then not told that all hosts were read."""
    client, machines = FakeClient(["a", "b", "c"]), FakeHosts()
    reported: list[dict[str, Any]] = []

    def deploy(request: dict[str, Any], answer: Any = client.deploy) -> dict[str, Any]:
        if not request["check"]:
            reported.append(request)
            if "found" not in request:
                raise Conflict("this state was rebuilt", code="records_needed")
        return dict(answer(request))

    client.deploy = deploy  # type: ignore[method-assign]
    machines.installed["a"] = {
        "installed": True, "secret_sha256": "", "release": "", "workers": [{"worker_id": "w", "alive": True}],
    }  # fmt: skip
    machines.installed["b"] = {"installed": False, "secret_sha256": "", "release": "", "workers": []}
    machines.errors["c"] = HostUnreachable("c: no route")
    deployer(client, machines, plan=RolloutPlan(serial="2")).deploy(hosts("a", "b", "c"))
    read = {"a": [{"worker_id": "w", "alive": True}], "b": []}
    assert [(one.get("found"), one.get("all_read")) for one in reported] == [
        (None, None), (read, False), (None, None), (read, False),
    ]  # fmt: skip
    reported.clear()
    del machines.errors["c"]
    for name in "abc":
        machines.installed[name] = {"installed": False, "secret_sha256": "", "release": "", "workers": []}
    deployer(client, machines, plan=RolloutPlan(serial="2")).deploy(hosts("a", "b", "c"))
    assert [one["all_read"] for one in reported if "found" in one] == [False, True]
    deployer(client, machines, limited=True).deploy(hosts("a", "b", "c"))
    assert reported[-1]["all_read"] is False
