"""Explanations of a worker's state in both languages, one file per situation: tests/golden/explain/SITUATION.txt.

After a change of texts, `python -m tests.unit.fleet.history.test_explain` rewrites the files; review the diff.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from procguard.config.groups import GroupPolicy
from procguard.fleet.gangs.decider import GangFailure
from procguard.fleet.history import explain
from procguard.fleet.leases import InstanceStatus
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import Move, RecoveryStatus
from procguard.fleet.recovery.incident import Incident, IncidentStep
from procguard.i18n import en, reasons, words, zh
from remote_agent.protocol import messages
from tests.unit.fleet_world import World
from tests.unit.gang_world import GROUP, GangWorld

GOLDEN = Path(__file__).parents[3] / "golden" / "explain"
CHINESE = re.compile(r"[\u4e00-\u9fff]")
SILENT_SINCE = 1_790_000_312.0
KILLED = {"signal": 9, "duration_s": 11_520.0}
OOM = {"signal": 9, "oom": True, "duration_s": 540.0}


def ran_for(world: World, state: str, seconds: float, **values: Any) -> None:
    """w1 has been in `state` for so long."""
    since = world.now.wall
    world.pass_time(seconds)
    world.beat("gpu01", world.report("w1", state=state, since=since, **values))


def exit_of(attempt: int, **values: Any) -> messages.ExitRecord:
    return messages.ExitRecord(attempt, at=1_790_000_000.0, **values)


def reported(world: World, before: str, after: str, **record: Any) -> messages.WorkerEvent:
    event = world.event("w1", before, after)
    event.exit = exit_of(1, **record) if record else None
    return event


def three_hosts(tmp_path: Path, spec: dict[str, Any] | None = None, **settings: Any) -> World:
    world = World(tmp_path, **settings)
    world.deploy({"gpu01": {"w1": {"command": "python train.py", **(spec or {})}}})
    return world


def running(path: Path) -> World:
    world = three_hosts(path)
    ran_for(world, "running", 11_520, pid=7)
    return world


def running_after_a_crash(path: Path) -> World:
    world = three_hosts(path)
    world.beat("gpu01", world.report("w1"), events=[reported(world, "running", "starting", **KILLED)])
    ran_for(world, "running", 65, attempt=2, restarts=1, restarts_total=4, last_exit=exit_of(1, **KILLED))
    return world


def backoff(path: Path) -> World:
    world = three_hosts(path)
    ended = {"code": 1, "duration_s": 42.0}
    world.beat("gpu01", world.report("w1"), events=[reported(world, "running", "backoff", **ended)])
    last = exit_of(2, **ended)
    ran_for(world, "backoff", 1, attempt=2, restarts=2, restarts_total=2, next_start_in_s=4.6, last_exit=last)
    return world


def waiting_for_gpus(path: Path) -> World:
    world = three_hosts(path, {"gpus": 4})
    ran_for(world, "backoff", 30, attempt=0, reason="waits for 4 GPUs: 0,1,2,3 are with w2")
    return world


def failed(path: Path) -> World:
    world = three_hosts(path)
    events = [reported(world, "running", "backoff", **OOM), reported(world, "starting", "failed", **OOM)]
    world.beat("gpu01", world.report("w1"), events=events)
    world.emit("worker_failed", reason="…", worker_id="w1", host="gpu01",
        evidence={"exit": messages.encode(exit_of(4, **OOM))}, cause="oom",
    )  # fmt: skip
    ran_for(world, "failed", 600, attempt=4, restarts=3, restarts_total=3, last_exit=exit_of(4, **OOM))
    return world


BROKEN = reasons.because("exit.code", code=1, ran_s=2.0).then(
    reasons.because(
        "exit.proof",
        cause=reasons.because("failure.import_error"),
        line="ModuleNotFoundError: No module named 'deepspeed' (/srv/train.py:3)",
    )
)
IMPORT_ERROR = {
    "code": 1, "duration_s": 2.0, "cause": "import_error", "line": "ModuleNotFoundError: No module named 'deepspeed'",
    "reason": str(BROKEN), "reason_code": BROKEN.code, "reason_params": BROKEN.params,
}  # fmt: skip


def failed_of_a_lasting_cause(path: Path) -> World:
    world = three_hosts(path, {"restart": {"max_attempts": 2}})
    events = [reported(world, "starting", after, **IMPORT_ERROR) for after in ("starting", "backoff", "failed")]
    for attempt, event in enumerate(events, 1):
        assert event.exit is not None
        event.attempt = event.exit.attempt = attempt
    world.beat("gpu01", world.report("w1"), events=events)
    ran_for(world, "failed", 5, attempt=3, restarts=2, restarts_total=2, last_exit=exit_of(3, **IMPORT_ERROR))
    return world


def stopped_at_its_time_limit(path: Path) -> World:
    world = three_hosts(path, {"max_run_s": 3600})
    over = {"signal": 15, "duration_s": 3_601.0, "cause": "time_limit", "detail": "evidence: /e/1.txt on the host"}
    ran_for(world, "failed", 5, last_exit=exit_of(1, **over))
    return world


def failed_and_acknowledged(path: Path) -> World:
    world = failed(path)
    world.fleet.workers.acknowledge("w1", "more memory is ordered", "anna", world.now)
    world.pass_time(60)
    return world


def failed_of_never_on(path: Path) -> World:
    world = three_hosts(path, {"restart": {"never_on": ["import_error"]}})
    ran_for(world, "failed", 5, last_exit=exit_of(1, **IMPORT_ERROR))
    return world


def failed_without_restarts(path: Path) -> World:
    world = three_hosts(path, {"restart": {"policy": "never"}})
    ran_for(world, "failed", 5, last_exit=exit_of(1, code=127, duration_s=0.2))
    return world


def failed_recovery_off(path: Path) -> World:
    world = three_hosts(path, enable_auto_recovery=False)
    ran_for(world, "failed", 5, last_exit=exit_of(1, code=3, duration_s=7.0))
    return world


def never_got_running(path: Path) -> World:
    world = three_hosts(path)
    last = exit_of(4, cause="start_timeout", detail="working_dir /data/run does not exist")
    ran_for(world, "failed", 5, attempt=4, restarts=3, restarts_total=3, last_exit=last)
    return world


def cannot_start(path: Path) -> World:
    world = three_hosts(path)
    missing = "command not found: pyton; correct it, or give its full path"
    record = {"cause": "not_started", "detail": missing, "reason": missing}
    world.beat("gpu01", world.report("w1"), events=[reported(world, "starting", "failed", **record)])
    ran_for(world, "failed", 5, attempt=1, reason=missing, last_exit=exit_of(1, **record))
    return world


def cannot_start_says_a_runner_of_before(path: Path) -> World:
    """It names no cause."""
    world = three_hosts(path)
    missing = "working_dir /data/run does not exist"
    world.beat("gpu01", world.report("w1"), events=[reported(world, "starting", "failed", reason=missing)])
    ran_for(world, "failed", 5, attempt=1, reason=missing, last_exit=exit_of(1, reason=missing))
    return world


def after_a_power_cut(path: Path) -> World:
    world = three_hosts(path)
    lost = exit_of(1, cause="lost", detail="the host went down while it ran")
    ran_for(world, "running", 20, attempt=2, restarts=1, restarts_total=1, last_exit=lost)
    return world


def two_launchers_on_one_host(path: Path) -> World:
    world = World(path)
    for worker_id in ("w1", "w2"):
        world.register(worker_id, host="laptop")
        world.beat(world.fleet.state.find(worker_id).agent_id, world.report(worker_id, since=world.now.wall))
    world.pass_time(30)
    world.fleet.agents.mark(world.fleet.state.find("w2").agent_id, "unreachable", "no heartbeat for 30 s", world.now)
    return world


def stopped_by_an_operator(path: Path) -> World:
    world = running(path)
    world.fleet.workers.command("w1", "stop", "anna", world.now, origin="192.0.2.7, token")
    world.beat("gpu01", events=[reported(world, "running", "stopping"), reported(world, "stopping", "stopped", code=0)])
    ran_for(world, "stopped", 120, last_exit=exit_of(1, code=0, duration_s=11_520.0))
    return world


def stopped_with_the_fleet(path: Path) -> World:
    world = running(path)
    with world.changing() as tx:
        world.fleet.workers.stop_all(tx, "recovery.stop_all_on_failure: w9 failed (exit code 1)")
    world.beat("gpu01", events=[reported(world, "stopping", "stopped", signal=15, duration_s=11_520.0)])
    ran_for(world, "stopped", 60, reason="stopped by an operator: killed by signal 15 (SIGTERM) after 3 h 12 min")
    return world


def a_stop_on_its_way(path: Path) -> World:
    world = running(path)
    world.fleet.workers.command("w1", "stop", "anna", world.now)
    world.pass_time(2)
    return world


def finished(path: Path) -> World:
    world = three_hosts(path)
    ran_for(world, "exited", 90_000, last_exit=exit_of(1, code=0, duration_s=200_000.0))
    return world


def went_into_the_background(path: Path) -> World:
    world = three_hosts(path)
    record: dict[str, Any] = {"code": 0, "duration_s": 0.2, "left": 3, "left_names": ["nginx"]}
    world.beat("gpu01", events=[reported(world, "running", "exited", **record)])
    ran_for(world, "exited", 60, last_exit=exit_of(1, **record))
    return world


def disk_of_its_host_full(path: Path) -> World:
    world = three_hosts(path)
    world.pass_time(60)
    values: dict[str, Any] = {"disk_trouble": "space", "disk_path": "/home/alice/.procguard/f-1/gpu01"}
    report = world.report("w1", state="backoff", since=world.now.wall, reason="cannot start: No space left on device")
    world.beat("gpu01", report, **values)
    return world


def not_started_yet(path: Path) -> World:
    return connected(three_hosts(path))


def connected(world: World) -> World:
    world.beat("gpu01", world.report("w1", state="stopped", attempt=0))
    world.pass_time(1)
    return world


def starting(path: Path) -> World:
    world = three_hosts(path)
    ran_for(world, "starting", 0.4, attempt=1)
    return world


def stopping(path: Path) -> World:
    world = running(path)
    world.fleet.workers.command("w1", "stop", "anna", world.now)
    ran_for(world, "stopping", 3)
    return world


def never_connected(path: Path) -> World:
    return three_hosts(path)


def cut_off(path: Path, spec: dict[str, Any] | None = None) -> World:
    world = three_hosts(path, spec)
    ran_for(world, "running", 300, lease_left_s=50.0 if spec else None)
    world.pass_time(12)
    world.fleet.agents.mark("gpu01", "unreachable", "no heartbeat for 12 s", world.now)
    world.fleet.agents.set_recovery_ssh("gpu01", False, "connection timed out", world.now)
    opened = Incident("gpu01", "gpu01", opened=Now(0.0, SILENT_SINCE), reachable_by_ssh=True)
    opened.steps.append(IncidentStep(SILENT_SINCE, reasons.Reason("SSH: connection timed out")))
    world.fleet.state.show_incidents(lambda: [opened])
    world.emit("recovery", host="gpu01", reason="SSH: connection timed out")
    return world


def host_out_of_reach(path: Path) -> World:
    return cut_off(path)


def tunnel_down(path: Path) -> World:
    """Its host has no other path to the manager; the tunnel broke before the host was suspect."""
    world = three_hosts(path)
    with world.changing() as tx:
        tx.edit(world.fleet.state.agents_by_id["gpu01"]).tunnel = True
    world.fleet.agents.tunnel_changed("gpu01", "up", 23456, "", "", world.now)
    ran_for(world, "running", 300)
    world.pass_time(12)
    world.fleet.agents.tunnel_changed("gpu01", "down", 0, "gpu01: the tunnel broke", "connection_lost", world.now)
    world.fleet.agents.mark("gpu01", "unreachable", "no heartbeat for 12 s", world.now)
    return world


def host_out_of_reach_fenced(path: Path) -> World:
    return cut_off(path, {"on_partition": "fence", "lease_s": 60.0})


def host_out_of_reach_lease_over(path: Path) -> World:
    world = cut_off(path, {"on_partition": "fence", "lease_s": 60.0})
    world.pass_time(120)
    return world


def launcher_out_of_reach(path: Path) -> World:
    world = World(path)
    world.register("w1", host="laptop")
    worker = world.fleet.state.find("w1")
    world.beat(worker.agent_id, world.report("w1", since=world.now.wall))
    world.pass_time(30)
    world.fleet.agents.mark(worker.agent_id, "unreachable", "no heartbeat for 30 s", world.now)
    return world


def connection_closed(path: Path) -> World:
    world = running(path)
    world.pass_time(0.4)
    world.fleet.agents.mark("gpu01", "suspect", "its connection closed", world.now)
    return world


def fenced(path: Path) -> World:
    world = three_hosts(path, {"on_partition": "fence", "lease_s": 60.0})
    ran_for(world, "running", 300, lease_left_s=58.7)
    return world


def lease_ended(path: Path) -> World:
    world = three_hosts(path, {"on_partition": "fence", "lease_s": 60.0})
    events = [
        reported(world, "running", "stopping"),
        reported(world, "stopping", "stopped", signal=15, duration_s=300.0),
    ]
    world.beat("gpu01", world.report("w1"), events=events)
    ran_for(world, "stopped", 8, last_exit=exit_of(1, signal=15, duration_s=300.0))
    return world


def hung(path: Path) -> World:
    world = running(path)
    evidence = "no output for 31 min; it used to pause 4 s at most"
    world.fleet.workers.set_suspect("w1", evidence, world.now)
    return world


def unhealthy(path: Path) -> World:
    world = three_hosts(path)
    health = messages.Health("failing", "http://127.0.0.1:8000/ answered 500")
    last = exit_of(1, signal=15, cause="unhealthy", detail="the same", duration_s=90.0)
    ran_for(world, "running", 60, attempt=2, restarts=1, restarts_total=1, health=health, last_exit=last)
    return world


def restart_pending(path: Path) -> World:
    world = three_hosts(path)
    ran_for(world, "running", 60, launch_digest="older")
    world.deploy({"gpu01": {"w1": {"command": "python train.py --epochs 9", "group": "trainers"}}})
    with world.changing() as tx:
        tx.edit(world.fleet.state.find("w1")).undeclared = True
    return world


def moved(path: Path) -> World:
    world = running(path)
    world.emit("reassigned", worker_id="w1", host="gpu01", reason="gpu09 is unreachable, its lease has ended")
    world.pass_time(30)
    return world


def being_moved(path: Path) -> World:
    world = running(path)
    world.deploy({"gpu01": {"w1": {"command": "python train.py"}}, "gpu02": {}})
    worker = world.fleet.state.find("w1")
    with world.changing() as tx:
        tx.edit(worker)
        worker.moving, worker.home = Move("gpu02", True, "anna"), "gpu07"
    return world


def no_spare_fits(path: Path) -> World:
    world = cut_off(path, {"on_partition": "fence", "lease_s": 60.0})
    reason = "its host is lost; no spare fits: gpu02 (it is no spare (procguard_spare))"
    world.fleet.state.worker_status["w1"].recovery_status = RecoveryStatus("no_spare", reason)
    world.emit("no_spare", reason=reason, worker_id="w1", host="gpu01")
    return world


def a_gpu_of_it_cordoned(path: Path) -> World:
    world = three_hosts(path, {"gpus": 1})
    gpus = [messages.GpuUsage(0, "GPU-a", worker_id="w1"), messages.GpuUsage(1, "GPU-b")]
    report = world.report("w1", since=world.now.wall - 600, usage=messages.WorkerUsage(gpus=[0]))
    world.beat("gpu01", report, usage=messages.HostUsage(gpus=gpus))
    for index, why in ((0, "a loud fan"), (1, "not one of its own")):
        world.fleet.placement.cordon_gpu("gpu01", index, why, "operator:anna", world.now)
    return world


def being_removed(path: Path) -> World:
    world = running(path)
    world.deploy({"gpu01": {}}, prune=True)
    return world


SITUATIONS: dict[str, Callable[[Path], World]] = {
    made.__name__: made
    for made in (
        running, running_after_a_crash, backoff, waiting_for_gpus, failed, failed_without_restarts,
        failed_of_a_lasting_cause, failed_of_never_on, stopped_at_its_time_limit, failed_and_acknowledged,
        failed_recovery_off, never_got_running, stopped_by_an_operator, stopped_with_the_fleet, a_stop_on_its_way,
        cannot_start, cannot_start_says_a_runner_of_before, after_a_power_cut, two_launchers_on_one_host,
        finished, not_started_yet, starting, stopping, never_connected, host_out_of_reach, host_out_of_reach_fenced,
        tunnel_down, host_out_of_reach_lease_over, launcher_out_of_reach, connection_closed, fenced, lease_ended,
        hung, went_into_the_background, disk_of_its_host_full,
        unhealthy, restart_pending, moved, being_moved, no_spare_fits, being_removed, a_gpu_of_it_cordoned,
    )
}  # fmt: skip


def rendered(world: World) -> str:
    """Both languages, one below the other."""
    facts = explain.gather(world.fleet, "w1", world.now)
    parts = []
    for language in words.LANGUAGES:
        said = explain.explain(facts, language)
        lines = [f"[{language}] {said.headline}"]
        lines += [f"  {one['topic']}: {one['text']}" for one in said.sentences]
        lines += [f"  > {step}" for step in said.next_steps]
        lines += [f"  - {moment['text']}" for moment in said.timeline]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_situation_is_explained_in_both_languages(situation: str, tmp_path: Path) -> None:
    expected = (GOLDEN / f"{situation}.txt").read_text(encoding="utf-8")
    assert rendered(SITUATIONS[situation](tmp_path)) == expected


def test_a_stop_of_the_whole_fleet_is_no_operators_stop(tmp_path: Path) -> None:
    world = stopped_with_the_fleet(tmp_path)
    reason = world.fleet.state.worker("w1")["reason"]
    assert reason.startswith("stopped with the whole fleet (recovery.stop_all_on_failure); killed by signal 15")


def test_no_golden_file_is_left_over() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(SITUATIONS)


def test_both_languages_say_the_same_with_the_same_values() -> None:
    names = re.compile(r"\{\w+\}")
    assert sorted(en.TEXTS) == sorted(zh.TEXTS)
    same = {"unit.d", "verb.start"}  # examples of what must differ in words, not in values
    for key, text in en.TEXTS.items():
        forms = text.split("|")
        assert len({frozenset(names.findall(form)) for form in forms}) == 1, key
        assert set(names.findall(forms[0])) == set(names.findall(zh.TEXTS[key])), key
    assert all(en.TEXTS[key] != zh.TEXTS[key] for key in same)


def test_chinese_sentences_use_chinese_punctuation() -> None:
    for key, text in zh.TEXTS.items():
        assert not re.search(r"[\u4e00-\u9fff][,;:?!.]|[,;:?!][\u4e00-\u9fff]", text), key
        if key.startswith(("is.", "why.", "host.", "desired.")) and CHINESE.search(text):
            assert text.endswith(("。", "：")), key


@pytest.mark.parametrize(
    ("wishes", "language"),
    [
        (("zh",), "zh"),
        (("", "zh_CN.UTF-8"), "zh"),
        (("fr", "en"), "en"),
        (("de,zh-CN;q=0.8,en;q=0.9",), "en"),
        (("de,zh-CN;q=0.9,en;q=0.8",), "zh"),
        (("zh;q=x,en;q=0.1",), "en"),
        ((None, "C", ""), "en"),
    ],
)
def test_the_language_is_the_first_supported_preference(wishes: tuple[str | None, ...], language: str) -> None:
    assert words.pick(*wishes) == language


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (0.42, "0.4 s", "0.4 秒"),
        (0, "0 s", "0 秒"),
        (59, "59 s", "59 秒"),
        (60, "1 min", "1 分钟"),
        (11_520, "3 h 12 min", "3 小时 12 分钟"),
        (86_400 * 9 + 3_600 * 4 + 59, "9 d 4 h", "9 天 4 小时"),
        (86_400 * 2 + 30, "2 d", "2 天"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float, english: str, chinese: str) -> None:
    assert words.Words("en").duration(seconds) == english
    assert words.Words("zh").duration(seconds) == chinese


def test_a_gang_is_explained_as_one(tmp_path: Path) -> None:
    import dataclasses

    facts = explain.gather(failed(tmp_path).fleet, "w1", Now(2_000.0, 1_790_001_000.0))
    incident = GangFailure("w7", reasons.Reason("exit code 1"))
    gang = explain.GangFacts("trainers", 8, "failed", attempts=3, allowed=3, incident=incident)
    said = explain.explain(dataclasses.replace(facts, gang=gang), "zh")
    texts = [one["text"] for one in said.sentences if one["topic"] == "gang"]
    assert "gang trainers（共 8 个成员）" in texts[0] and "w7" in texts[2]
    assert said.next_steps[-1].endswith("invoke start group=trainers")


def test_a_member_of_a_failed_gang_is_explained_with_its_gang(tmp_path: Path) -> None:
    world = GangWorld(tmp_path, groups={GROUP: GroupPolicy(restart="gang", max_attempts=0)})
    world.declare()
    world.go_on(1)
    world.hosts["h1"].fails("w1")
    world.go_on(5)
    said = explain.explain(explain.gather(world.fleet, "w2", world.now), "en")
    texts = {one["text"] for one in said.sentences if one["topic"] == "gang"}
    assert said.headline.startswith("w2 failed on ")
    assert "The gang has failed: its restarts are used up." in texts
    assert any(text.startswith("The last incident of the gang began with w1") for text in texts)
    assert not any("It may be restarted" in one["text"] for one in said.sentences)


def test_a_lease_that_is_no_proof_resolves_no_doubt(tmp_path: Path) -> None:
    import dataclasses

    facts = explain.gather(host_out_of_reach_fenced(tmp_path).fleet, "w1", Now(2_000.0, 1_790_001_000.0))
    doubt = dataclasses.replace(facts, gone=InstanceStatus(False, "not confirmed"))
    texts = [one["text"] for one in explain.explain(doubt, "en").sentences if one["topic"] == "fence"]
    assert texts == ["The job is most likely still running. Nothing is started elsewhere while that is uncertain."]


def test_the_time_until_a_restart_is_that_since_the_last_heartbeat(tmp_path: Path) -> None:
    world = three_hosts(tmp_path)
    last = exit_of(1, code=1, duration_s=42.0)
    ran_for(world, "backoff", 1, attempt=1, restarts=1, restarts_total=1, next_start_in_s=9.0, last_exit=last)
    texts = []
    for _ in range(3):
        world.pass_time(4)
        said = explain.explain(explain.gather(world.fleet, "w1", world.now), "en")
        texts.append(next(one["text"] for one in said.sentences if "restarted" in one["text"]))
    assert texts == [
        "It is restarted in 5 s (restart 1 of 3).",
        "It is restarted in 1 s (restart 1 of 3).",
        "It is restarted at once (restart 1 of 3).",
    ]


def main() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, situation in SITUATIONS.items():
        with tempfile.TemporaryDirectory() as directory:
            (GOLDEN / f"{name}.txt").write_text(rendered(situation(Path(directory))), encoding="utf-8")


if __name__ == "__main__":
    main()
