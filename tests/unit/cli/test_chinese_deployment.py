"""`--lang zh` of commands that need hosts: the recap of a deployment, the steps of `doctor`, mistakes in a
specification."""

from __future__ import annotations

import io
import re

import pytest

from procguard.cli.output import deployment
from procguard.console.styled import CleanConsole
from procguard.deploy.install.doctor import DoctorStep
from procguard.deploy.install.rollout import HostResult
from procguard.errors import HostError, HostUnreachable
from procguard.i18n import words
from procguard.i18n.messages.catalogue import localized
from remote_agent.agent.spec_file import OWN_OPTIONS, mistakes_in
from remote_agent.protocol.worker_spec import (
    ContainerSpec,
    HealthCheck,
    Hook,
    Limits,
    RestartPolicy,
    TerminalSpec,
    WorkerSpec,
)
from tests.rows import each
from tests.unit.cli.test_chinese_commands import english_in

HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> CleanConsole:
    monkeypatch.setenv("PROCGUARD_LANG", "zh")
    return CleanConsole(file=io.StringIO(), width=200)


def printed(out: CleanConsole) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def results() -> list[HostResult]:
    deployed = HostResult("gpu01", "changed", ["restarted w1"], seconds=1.0)
    deployed.workers = {
        "w1": {"result": "new", "message": "", "trouble": "in backoff: exit code 1", "state": "backoff"},
        "w2": {"result": "unchanged", "message": ""},
    }
    deployed.report = {"keep_alive": "cron", "python_skipped": ["python3=3.6.8"], "python": "/usr/bin/python3.11"}
    deployed.recovery_ssh = {"ok": False, "reason": "refused"}
    deployed.notes = ["procguard_groups differs"]
    away = HostResult("gpu02", "unreachable", seconds=0.2)
    away.error = HostUnreachable(
        "gpu02: cannot connect (refused, gpu02 port 22)", "is sshd running there?", code="refused"
    )
    broken = HostResult("gpu03", "failed", seconds=0.2)
    broken.error = HostError("gpu03: no agent is installed", "deploy it: invoke deploy --hosts …", code="no_agent")
    return [deployed, HostResult("gpu04", "ok"), away, broken, HostResult("gpu05", "skipped")]


def test_the_recap_of_a_deployment_is_chinese(out: CleanConsole) -> None:
    progress = deployment.Progress(out, 5)
    for one in results():
        progress.done(one)
    deployment.recap(out, results())
    deployment.absent(out, {"gpu09": {"workers": {"w9": {"result": "undeclared"}}}}, {"gpu10": ""})
    text = printed(out)
    for word in (
        "汇总",
        "无法连接",
        "失败",
        "正常",
        "已变更",
        "已跳过",
        "1 新建",
        "1 未变",
        "1 等待重启",
        "注意：",
        "worker：",
    ):
        assert word in text, (word, text)
    assert [word for word in ("RECAP", "note", "workers:", "unreachable ", "failed ") if word in text] == []
    assert english_in(text) == [] and "没有安装 Agent" in text, text


def test_a_host_key_and_each_step_of_doctor_have_chinese_names(out: CleanConsole) -> None:
    names = [key.partition(".")[2] for key in words.Words("zh")._texts if key.startswith("step.")]
    for name in names:
        deployment.step(out, DoctorStep(name, "ok", "X1"))
    lines = printed(out).splitlines()
    assert len(lines) == len(names) > 10
    assert [line for line in lines if not HAN.search(line) and not re.search("Agent|Python|podman", line)] == []


SPECIFICATIONS = [
    WorkerSpec(command="x", max_run_s=-1.0, restart=RestartPolicy(never_on=["A b"], progress="metrics.no"), venv="\0"),
    WorkerSpec(command="x", restart=RestartPolicy(never_on=[f"x{n}" for n in range(99)], progress="x" * 9999)),
    WorkerSpec(command="x", tty=TerminalSpec(rows=0), stderr="separate", limits=Limits(nofile="x")),
    WorkerSpec(command="x", pre_start=[Hook(command="")], post_stop=[Hook(command="y", timeout_s=0)]),
    WorkerSpec(command="x", limits=Limits(cpu_max=-1), umask="9", gpus=9999, evidence_signal="KILL"),
    WorkerSpec(command="x", health=[HealthCheck(type="http", max_age_s=-1), HealthCheck(type="tcp")]),
    WorkerSpec(
        command="x", stderr="separate", tty=TerminalSpec(), venv="v", conda="c", setup=["s"], user="u",
        container=ContainerSpec("-i", mounts=["a"], options=["a b", "\0", *(f"{one}=1" for one in OWN_OPTIONS)]),
    ),
]  # fmt: skip


@each("spec", SPECIFICATIONS)
def test_each_mistake_in_a_specification_is_chinese(spec: WorkerSpec) -> None:
    mistakes = mistakes_in(spec)
    assert mistakes
    for mistake in mistakes:
        text = localized(f"inv.yaml:3: worker a: {mistake}; see docs/worker.md", "zh")
        assert len(HAN.findall(text)) > 3 and english_in(text) == [], text
