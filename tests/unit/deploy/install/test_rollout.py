"""Waves, failure limits and rollback: which hosts a rollout changes and which it does not."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from procguard.cli.output import deployment
from procguard.deploy.install.rollout import HostResult, Rollout, RolloutPlan
from procguard.deploy.inventory.model import Host
from procguard.errors import HostError, HostUnreachable, ProcGuardError, UsageError
from procguard.fleet.workers.spec_diff import differences
from remote_agent.protocol.messages import RestartPolicy, WorkerSpec
from tests.unit.deploy.install.test_deployer import FakeClient, FakeHosts, Recorder, deployer, hosts


@pytest.mark.parametrize(
    ("serial", "sizes"),
    [
        ("", [20]),
        ("1,100%", [1, 19]),
        ("10%", [2] * 10),
        ("1,10%,50%", [1, 2, 10, 7]),
        ("7", [7, 7, 6]),
        ("1%", [1] * 20),
    ],
)
def test_waves_are_cut_as_ansible_cuts_them(serial: str, sizes: list[int]) -> None:
    fleet = hosts(*(f"h{number}" for number in range(20)))
    waves = list(RolloutPlan(serial=serial).waves(fleet))
    assert [len(wave) for wave in waves] == sizes
    assert [host for wave in waves for host in wave] == fleet


@pytest.mark.parametrize("plan", [RolloutPlan(serial="all"), RolloutPlan(serial="1,-2"), RolloutPlan(max_fail="few")])
def test_what_can_t_be_read_is_said_before_anything_is_done(plan: RolloutPlan) -> None:
    with pytest.raises(UsageError, match=r"--serial|--max-fail"):
        Rollout(plan, Recorder())


def run(
    plan: RolloutPlan, sick: dict[str, ProcGuardError], count: int = 10
) -> tuple[list[HostResult], list[str], list[int]]:
    last_change: list[str] = []
    waves: list[int] = []

    def prepare(wave: list[Host]) -> dict[str, Any]:
        waves.append(len(wave))
        return {}

    def action(host: Host, _prepared: dict[str, Any], _result: HostResult) -> None:
        last_change.append(host.name)
        if host.name in sick:
            raise sick[host.name]

    return Rollout(plan, Recorder()).run(hosts(*(f"h{n}" for n in range(count))), prepare, action), last_change, waves


def test_a_sick_canary_leaves_the_other_hosts_untouched_and_undeclared() -> None:
    results, last_change, waves = run(RolloutPlan(serial="1,100%", max_fail="0"), {"h0": HostError("h0: not heard")})
    assert last_change == ["h0"] and waves == [1]
    assert [result.status for result in results] == ["failed"] + ["skipped"] * 9
    assert "1 of 1 hosts before it failed" in str(results[1].error)
    assert "10 of 10" in deployment.failure(results).message  # type: ignore[union-attr]


def test_failures_within_the_limit_do_not_end_it() -> None:
    sick: dict[str, ProcGuardError] = {"h1": HostUnreachable("h1: off"), "h4": HostError("h4: full")}
    results, last_change, _ = run(RolloutPlan(serial="2", max_fail="1"), sick)
    assert sorted(last_change) == [f"h{n}" for n in range(6)]  # the second failure came in the third wave
    assert [result.status for result in results][6:] == ["skipped"] * 4
    assert len(run(RolloutPlan(serial="2", max_fail="20%"), sick)[1]) == 10
    assert len(run(RolloutPlan(serial="2"), sick)[1]) == 10


def test_a_deployment_in_waves_is_checked_as_a_whole_and_declared_wave_by_wave() -> None:
    names = ["a", "b", "c"]
    client, machines = FakeClient(names), FakeHosts()
    machines.errors = {"a": HostUnreachable("a: off")}
    results = deployer(client, machines, plan=RolloutPlan(serial="1", max_fail="0")).deploy(hosts(*names))
    asked = [
        (entry[1]["check"], [one["host"] for one in entry[1]["hosts"]]) for entry in client.log if entry[0] == "deploy"
    ]
    assert asked == [(True, names), (False, ["a"])]
    assert [result.status for result in results] == ["unreachable", "skipped", "skipped"]


class Upgraded(FakeHosts):
    """Each host's agent is upgraded; `heard_after_rollback`: heartbeats after the rollback."""

    def __init__(self, client: FakeClient) -> None:
        super().__init__()
        self._client = client
        self.operations: list[str] = []

    def session(self, *arguments: Any, **options: Any) -> Any:
        session_of = super().session
        outer = self

        class Wrapped:
            def __enter__(self) -> Any:
                self._context = session_of(*arguments, **options)
                session = self._context.__enter__()
                install = session.install

                def upgrading(*args: Any, **more: Any) -> dict[str, Any]:
                    return {**install(*args, **more), "changes": ["unpacked", "upgraded", "restarted"]}

                def performed(op: str, where: Any, deadline: float) -> dict[str, Any]:
                    outer.operations.append(op)
                    outer._client.silent.clear()
                    return {"changes": ["rolled back"], "release": "0123456789abcdef"}

                session.install, session.perform = upgrading, performed
                return session

            def __exit__(self, *exc: Any) -> Any:
                return self._context.__exit__(*exc)

        return Wrapped()


def test_an_upgraded_agent_that_does_not_reconnect_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("procguard.deploy.install.deployer.VERIFY_TIMEOUT_S", 0.3)
    client = FakeClient(["a"])
    client.silent = {"a"}
    machines = Upgraded(client)
    (result,) = deployer(client, machines).deploy(hosts("a"))
    assert machines.operations == ["rollback"]
    assert result.status == "failed" and result.error is not None and result.error.code == "rolled_back"
    assert (
        "never sent a heartbeat" in result.error.message
        and "rolled back to release 0123456789abcdef" in result.error.message
    )


def test_rollback_declares_nothing() -> None:
    client = FakeClient(["a"])
    machines = Upgraded(client)
    (result,) = deployer(client, machines).rollback(hosts("a"))
    assert result.changes == ["rolled back to 0123456789abcdef"]
    assert all(entry[1]["check"] for entry in client.log if entry[0] == "deploy")


def test_failures_are_summed_up_by_their_cause() -> None:
    results = [
        HostResult(f"h{n}", "unreachable", error=HostUnreachable(f"h{n}: off", "is it on?", code="timeout"))
        for n in range(3)
    ]
    results.append(HostResult("full", "failed", error=HostError("full: no space", "free some", code="no_space")))
    out = Console(width=200, record=True, file=None, quiet=False)
    with out.capture() as said:
        deployment.recap(out, results)
    assert "3 × timeout: h0, h1, h2" in said.get() and "1 × no space: full" in said.get() and "is it on?" in said.get()


def test_differences_name_what_changed_and_never_a_value_of_env() -> None:
    before = WorkerSpec(command="a", env={"SECRET": "old", "GONE": "x"}, restart=RestartPolicy(max_attempts=3))
    after = WorkerSpec(command="b", env={"SECRET": "new", "MORE": "y"}, restart=RestartPolicy(max_attempts=5))
    assert differences(before, after) == [
        'command: "a" -> "b"',
        "env.GONE: removed",
        "env.MORE: added",
        "env.SECRET: changed",
        "restart.max_attempts: 3 -> 5",
    ]
    assert differences(after, after) == []


def test_check_of_a_rollback_and_of_an_undeploy_says_what_would_be_and_does_nothing() -> None:
    client, machines = FakeClient(["a", "b", "c"]), FakeHosts()
    machines.installed = {
        "a": {"installed": True, "release": "new", "previous": "old", "secret_sha256": ""},
        "b": {"installed": True, "release": "new", "previous": "", "secret_sha256": ""},
    }
    a, b, c = deployer(client, machines, check=True).rollback(hosts("a", "b", "c"))
    assert a.changes == ["would roll back from new to old"] and a.status == "changed"
    assert [(one.status, one.error and one.error.code) for one in (b, c)] == [
        ("failed", "no_previous"),
        ("failed", "not_installed"),
    ]

    client.worker_results["a"] = {"w1": {"result": "removed"}}
    a, _, c = deployer(client, machines, check=True).undeploy(hosts("a", "b", "c"))
    assert a.changes == ["would stop and remove w1", "would remove the agent"]
    assert c.status == "ok" and c.changes == []
    assert machines.requests == {} and {entry[0] for entry in client.log} == {"deploy"}
    assert all(entry[1]["check"] for entry in client.log)
