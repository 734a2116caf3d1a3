"""The output of `doctor` about the log archive and GPUs, from the manager's reports."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from procguard.client.api import ManagerClient
from procguard.deploy.install.doctor import Doctor, DoctorStep, _gpus
from procguard.errors import NotFound

WORKS = {"place": "s3://logs/p", "problem": "", "uploaded_at": 0.0, "waiting_bytes": 4096, "conditional": True}


class Answering:
    def __init__(self, view: dict[str, Any]) -> None:
        self._view = view

    def call(self, method: str, path: str) -> dict[str, Any]:
        assert (method, path) == ("GET", "/api/logs/archive")
        if not self._view:
            raise NotFound("no such route", "a manager of an earlier release")
        return {**self._view, "uploaded_at": time.time() - 4.0 if self._view["uploaded_at"] == 0.0 else None}


@pytest.mark.parametrize(
    ("view", "status", "said"),
    [
        ({**WORKS, "place": ""}, "", ""),
        (WORKS, "ok", "s3://logs/p: last upload 4 s ago, 4 KB wait, conditional uploads: yes"),
        ({**WORKS, "conditional": None, "uploaded_at": None}, "ok", "s3://logs/p: nothing was uploaded yet, 4 KB wait"),
        ({**WORKS, "problem": "s3://logs/p: cannot connect"}, "bad",
         "s3://logs/p: cannot connect; 4 KB wait on the manager's disk"),
        ({}, "warn", "no such route"),
    ],
)  # fmt: skip
def test_a_line_says_whether_logs_are_archived(view: dict[str, Any], status: str, said: str) -> None:
    doctor = Doctor(cast(ManagerClient, Answering(view)), cast(Any, None))
    found: list[DoctorStep] = list(doctor._archive())
    assert [(one.name, one.status, one.detail) for one in found] == ([("log archive", status, said)] if status else [])
    assert all(one.next_step for one in found if one.status != "ok")


@pytest.mark.parametrize(
    ("usage", "steps"),
    [
        ({}, []),
        ({"gpus": [{}, {}]}, [("GPUs", "ok", "2, read by the agent")]),
        ({"gpu_trouble": "the GPU driver does not answer within 10 s"},
         [("GPUs", "warn", "the GPU driver does not answer within 10 s")]),
        ({"gpus": [{}], "kernel_log_trouble": "Operation not permitted"},
         [("GPUs", "ok", "1, read by the agent"),
          ("kernel log", "warn",
           "/dev/kmsg cannot be read (Operation not permitted): Xid errors of its GPUs are not detected")]),
    ],
)  # fmt: skip
def test_a_line_says_whether_faults_of_gpus_are_noticed(
    usage: dict[str, Any], steps: list[tuple[str, str, str]]
) -> None:
    found = list(_gpus(usage))
    assert [(one.name, one.status, one.detail) for one in found] == steps
    assert all(one.next_step for one in found if one.status != "ok")
