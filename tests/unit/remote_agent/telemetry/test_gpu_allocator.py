"""GPU allocation: never one to two workers, never one in use by others, with the reason for each wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from remote_agent.protocol.messages import GpuProcess, GpuUsage
from remote_agent.telemetry.gpu_allocator import GpuAllocator, allowed_by, choose, environment
from remote_agent.telemetry.gpus import NO_GPUS, Reading


def reading(*users: list[GpuProcess]) -> Reading:
    return Reading(
        True, [GpuUsage(index, processes=list(some)) for index, some in enumerate(users)], {}, "", "nvml", 0.0
    )


class Readings:
    """The sampler, before it has read anything."""

    reading = None

    def __init__(self) -> None:
        self.owner_of: Callable[[int], str] = lambda index: ""


def allocator(agent_dir: Path) -> GpuAllocator:
    return GpuAllocator(str(agent_dir), Readings(), {})


def somebody(pid: int = 0) -> GpuProcess:
    return GpuProcess(pid or os.getpid(), 1, "python", "alice")


def test_the_first_free_ones_are_handed_out_and_never_twice(tmp_path: Path) -> None:
    gpus = allocator(tmp_path)
    four = reading([], [], [], [])
    assert gpus.take("w1", 2, four, None) == ""
    assert gpus.take("w2", 1, four, None) == ""
    assert (gpus.of("w1"), gpus.of("w2"), gpus.owner_of(2)) == ([0, 1], [2], "w2")
    assert gpus.take("w3", 2, four, None).startswith("waits for 2 GPUs: GPU 0 is allocated to w1; ")
    assert gpus.release("w1") and not gpus.release("w1")
    assert gpus.take("w3", 2, four, None) == "" and gpus.of("w3") == [0, 1]


def test_a_gpu_that_somebody_uses_is_waited_for_by_name() -> None:
    chosen, reason = choose("w1", 1, reading([somebody()]), {}, None)
    assert chosen is None
    assert reason == f"waits for 1 GPU: GPU 0 is used by pid {os.getpid()} (alice, python)"
    chosen, _ = choose("w1", 1, reading([somebody()], []), {}, None)
    assert chosen == [1]


def test_another_worker_s_process_counts_like_anybody_s() -> None:
    """A worker that requests no GPU but uses one."""
    other = GpuProcess(os.getpid(), 1, "python", "alice", "w9")
    assert choose("w1", 1, reading([other]), {}, None)[1].endswith(f"used by w9 (pid {os.getpid()}, python)")
    own = GpuProcess(os.getpid(), 1, "python", "alice", "w1")
    assert choose("w1", 1, reading([own]), {}, None) == ([0], "")


def test_a_process_that_has_ended_since_holds_nothing() -> None:
    """Otherwise a worker restarted at once would wait for its own leftovers."""
    assert choose("w1", 1, reading([somebody(2**22 + 3)]), {}, None) == ([0], "")


def test_what_cannot_be_read_is_said() -> None:
    assert choose("w1", 1, None, {}, None)[1] == "waits for 1 GPU: reading the host's GPUs"
    assert choose("w1", 1, NO_GPUS, {}, None)[1] == "waits for 1 GPU: no NVIDIA driver on this host"
    broken = Reading(True, [], {}, "the GPU driver does not answer within 10 s", "none", 0.0)
    assert "does not answer within 10 s" in choose("w1", 1, broken, {}, None)[1]
    assert choose("w1", 4, reading([], []), {}, None)[1] == "waits for 4 GPUs: this host has 2"
    lost = reading([])
    lost.gpus[0].trouble = "GPU is lost"
    assert choose("w1", 1, lost, {}, None)[1] == "waits for 1 GPU: GPU 0 cannot be used: GPU is lost"


def test_cuda_visible_devices_of_the_environment_limits_the_choice() -> None:
    """A user limited to GPUs 2 and 3 stays within them."""
    four = reading([], [], [], [])
    assert choose("w1", 1, four, {}, allowed_by({"CUDA_VISIBLE_DEVICES": "2, 3"})) == ([2], "")
    assert "2 that CUDA_VISIBLE_DEVICES allows" in choose("w1", 3, four, {}, [2, 3])[1]
    assert allowed_by({}) is None and allowed_by({"CUDA_VISIBLE_DEVICES": "GPU-abc"}) is None
    assert allowed_by({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_the_job_gets_bus_order() -> None:
    """CUDA's own order may differ from nvidia-smi's."""
    assert environment([1, 3]) == {"CUDA_VISIBLE_DEVICES": "1,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert environment([]) == {}


def test_what_was_handed_out_survives_the_agent(tmp_path: Path) -> None:
    allocator(tmp_path).take("w1", 1, reading([], []), None)
    again = allocator(tmp_path)
    assert again.of("w1") == [0]
    assert again.take("w1", 1, None, None) == ""  # nothing need be read for what it has
    (tmp_path / "gpus.json").write_text("{torn")
    assert allocator(tmp_path).held == {}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=40))
def test_whatever_comes_no_gpu_has_two_owners(steps: list[tuple[int, int]]) -> None:
    """Takes and releases (0) in any order, on four GPUs."""
    held: dict[str, list[int]] = {}
    for worker, wanted in steps:
        name = f"w{worker}"
        chosen, reason = choose(name, wanted, reading([], [], [], []), held, None)
        assert (chosen is None) == bool(reason)
        if chosen is not None:
            assert len(chosen) == wanted
            held[name] = chosen
        handed_out = [index for some in held.values() for index in some]
        assert len(handed_out) == len(set(handed_out))
