"""The swarm: simulated agents that behave as real ones towards a real server."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import UsageError
from remote_agent.protocol import messages, states
from scripts.swarm import Behaviour, Delays, Swarm
from scripts.swarm import __main__ as command_line
from scripts.swarm.behaviour import Step, read_script
from scripts.swarm.tally import Summary, Tally
from scripts.swarm.worker import SimulatedWorker
from tests.server_process import ROOT, RunningServer
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    yield running
    running.close()


def swarm_of(server: RunningServer, agents: int = 4, workers: int = 2, **options: Any) -> Swarm:
    return Swarm(f"http://127.0.0.1:{server.port}", agents, workers, **options)


def view(server: RunningServer, worker_id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.ask("GET", f"/api/remote-workers/{worker_id}").json
    return found


def order(server: RunningServer, worker_id: str, verb: str) -> dict[str, Any]:
    answer = server.ask("POST", f"/api/workers/{worker_id}/command", {"command": verb})
    assert answer.status == 202, answer.body
    reported: dict[str, Any] = answer.json
    return reported


def outcome(server: RunningServer, reported: dict[str, Any]) -> str:
    return str(server.ask("GET", f"/api/commands/{reported['command_id']}").json["status"])


@pytest.mark.slow
def test_it_comes_up_obeys_and_leaves_nothing_behind(server: RunningServer) -> None:
    with swarm_of(server, prefix="obeys") as swarm:
        swarm.wait_running(20)
        assert view(server, "obeys-00002-w1")["state"] == "running"
        stopped, restarted = order(server, "obeys-00000-w0", "stop"), order(server, "obeys-00001-w0", "restart")
        killed = order(server, "obeys-00001-w1", "kill")
        for reported in (stopped, restarted, killed):
            wait_until(lambda reported=reported: outcome(server, reported) == "done", 10, "the command is done")
        wait_until(lambda: view(server, "obeys-00001-w0")["state"] == "running", 10, "running again")
        assert view(server, "obeys-00001-w0")["attempt"] == 2
        wait_until(lambda: view(server, "obeys-00000-w0")["state"] == "stopped", 10, "stopped")
        wait_until(lambda: view(server, "obeys-00001-w1")["state"] == "stopped", 10, "killed")
        order(server, "obeys-00000-w0", "start")
        wait_until(lambda: view(server, "obeys-00000-w0")["state"] == "running", 10, "started")
        swarm.wait(lambda now: now.obeyed == 4, 10, "four commands counted")
    hosts = server.ask("GET", "/api/hosts").json["hosts"]
    assert [one for one in hosts if one["host"].startswith("obeys")] == []
    assert server.ask("GET", "/api/remote-workers?q=obeys").json["total"] == 0


@pytest.mark.slow
def test_a_killed_agent_is_missed_and_adopts_its_workers_when_it_is_back(server: RunningServer) -> None:
    with swarm_of(server, prefix="back") as swarm:
        swarm.wait_running(20)
        before = view(server, "back-00001-w0")
        assert swarm.kill(["back-00001"]) == ["back-00001"]
        swarm.wait(lambda now: now.states["off"] == 1, 10, "one is off")
        connects = swarm.summary().connects
        assert swarm.bring_back() == ["back-00001"]
        swarm.wait(lambda now: now.connects >= connects + 2, 10, "it has connected again")
        after = view(server, "back-00001-w0")
        assert (after["pid"], after["attempt"], after["state"]) == (before["pid"], 1, "running")


@pytest.mark.slow
def test_a_crashed_child_is_restarted_and_its_log_goes_on(server: RunningServer) -> None:
    with swarm_of(server, prefix="crash", agents=1, behaviour=Behaviour(log_lines_per_s=20.0)) as swarm:
        swarm.wait_running(20)
        swarm.crash(["crash-00000-w1"])
        wait_until(lambda: view(server, "crash-00000-w1")["attempt"] == 2, 10, "the second attempt")
        address = "/api/remote-workers/crash-00000-w1/logs?attempt=2"
        wait_until(lambda: b"step 000003 of crash-00000-w1" in server.ask("GET", address).body, 10, "lines of it")
        assert view(server, "crash-00000-w1")["last_exit"]["signal"] == 9


@pytest.mark.slow
def test_a_storm_breaks_every_connection_and_all_return(server: RunningServer) -> None:
    with swarm_of(server, prefix="storm") as swarm:
        before = swarm.wait_running(20)
        swarm.storm()
        after = swarm.wait(lambda now: now.losses >= before.losses + 4, 10, "connections lost")
        swarm.wait(lambda now: now.beats_answered >= after.beats_answered + 4, 15, "heartbeats go on")


@pytest.mark.slow
def test_planted_failures_are_answered_as_such(server: RunningServer) -> None:
    behaviour = Behaviour(refuse=1.0)
    with swarm_of(server, prefix="refuse", agents=1, workers=1, behaviour=behaviour) as swarm:
        swarm.wait_running(20)
        reported = order(server, "refuse-00000-w0", "restart")
        wait_until(lambda: outcome(server, reported) == "failed", 10, "refused")


@pytest.mark.parametrize("url", ["http://192.0.2.1:5000", "https://localhost:5000", "localhost:5000", "http://[::]:80"])
def test_only_a_manager_on_this_machine_is_flooded(url: str) -> None:
    with pytest.raises(UsageError, match=r"swarm: .*localhost"):
        Swarm(url)


@pytest.mark.slow
def test_on_termination_it_takes_its_hosts_out_again(server: RunningServer) -> None:
    words = ["--manager-url", f"http://127.0.0.1:{server.port}", "--agents=3", "--prefix=ended", "--for=1h"]
    running = subprocess.Popen([sys.executable, "-m", "scripts.swarm", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:

        def hosts() -> list[str]:
            found = server.ask("GET", "/api/hosts").json["hosts"]
            return [one["agent_state"] for one in found if one["host"].startswith("ended")]

        running_workers = "/api/remote-workers?q=ended&state=running"  # by then each holds its request open
        wait_until(lambda: server.ask("GET", running_workers).json["total"] == 3, 30, "three workers running")
        running.terminate()
        assert running.wait(60) == 143
        assert hosts() == []
    finally:
        running.kill()
        running.wait()


def test_what_a_person_gets_wrong_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("10s kill\n20s explode\n")
    for words in (
        ["--for", "soon"],
        ["--agents", "0"],
        ["--stubborn", "7"],
        ["--script", str(script)],
        ["--script=no"],
    ):
        assert command_line.main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith("swarm: ") and error.count("\n") == 1, error
    assert command_line.main(["--manager-url", "http://127.0.0.1:1"]) == 3


def test_a_script_is_read_in_the_order_of_its_times() -> None:
    text = "# a comment\n30s storm\n10s kill 10%   # some\n1.5m return all\n20 crash 3\n"
    expected = [Step(10, "kill", 0.1), Step(20, "crash", 3), Step(30, "storm", None), Step(90, "return", None)]
    assert read_script(text, "x") == expected


def test_the_same_seed_makes_the_same_workers_stubborn() -> None:
    def stubborn(seed: int) -> list[bool]:
        chance = random.Random(seed)
        return [SimulatedWorker(f"w{n}", Behaviour(stubborn=0.5), chance).stubborn for n in range(40)]

    assert stubborn(3) == stubborn(3)
    assert stubborn(3) != stubborn(4)


def fenced(**values: Any) -> messages.Assignment:
    spec = messages.WorkerSpec(command="train", restart=messages.RestartPolicy(start_secs=1.0, max_attempts=1))
    return messages.Assignment("w", spec, **{"lease_s": 10.0, "epoch": 5, **values})


def test_a_fenced_worker_runs_only_while_it_holds_a_lease_of_its_epoch() -> None:
    worker = SimulatedWorker("w", Behaviour(), random.Random(1))
    worker.assign(fenced(), 100.0)
    assert worker.report.state == states.STOPPED
    worker.grant(messages.Lease("w", 4, 10.0), 100.0)
    assert worker.report.state == states.STOPPED
    worker.grant(messages.Lease("w", 5, 10.0), 100.0)
    worker.step(101.5)
    assert worker.report.state == states.RUNNING
    worker.step(110.1)
    worker.step(111.0)
    assert worker.report.state == states.STOPPED
    worker.grant(messages.Lease("w", 5, 10.0), 112.0)
    assert (worker.report.state, worker.report.attempt) == (states.STARTING, 2)


def test_a_crash_loop_ends_as_the_policy_says() -> None:
    worker = SimulatedWorker("w", Behaviour(), random.Random(1))
    worker.assign(fenced(lease_s=None), 100.0)
    for now in (101.5, 103.0):
        worker.step(now)
        worker.crash(now + 0.1)
    assert worker.report.state == states.FAILED
    assert [event.after for event in worker.events] == ["starting", "running", "starting", "running", "failed"]


def test_quantiles_of_delays_are_right_within_their_steps() -> None:
    delays = Delays()
    for ms in range(1, 1001):
        delays.add(ms / 1000)
    assert delays.quantile(0.5) == pytest.approx(0.5, rel=0.05)
    assert delays.quantile(0.99) == pytest.approx(0.99, rel=0.05)
    assert delays.quantile(1.0) == delays.worst == 1.0


def test_why_requests_failed_is_counted() -> None:
    tally = Tally()
    tally.failed("heartbeat", "the connection was reset")
    tally.failed("heartbeat", "the connection was reset")
    summary = Summary()
    summary.add({**tally.as_json(), "cpu_s": 0.0, "linked": 0, "bytes_sent": 0, "bytes_received": 0, "worst_lag_s": 0.0,
                 "terms": {}, "states": {}, "workers": {}})  # fmt: skip
    assert summary.failures == 2
    assert summary.statuses == {"heartbeat: the connection was reset": 2}
