"""GPU failures as reported by the kernel log and the driver. Both are fakes: a FIFO with lines as the kernel writes
them, and an NVML library of our own; forging is tried on the real log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_agent.protocol.messages import GpuFault, GpuUsage
from remote_agent.telemetry import gpus
from remote_agent.telemetry.gpu_allocator import GpuAllocator, choose
from remote_agent.telemetry.gpus import Reading
from remote_agent.telemetry.kernel_log import MAX_FAULTS, KernelLog, parsed
from tests.fake_gpus import FakeGpus, gpu
from tests.unit.remote_agent.telemetry.test_gpu_allocator import Readings
from tests.unit.remote_agent.telemetry.test_gpus import fake, library

__all__ = ["fake", "library"]  # fixtures

LOST = "3,1001,5000000,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
OF_JOB = "3,1002,6000000,-;NVRM: Xid (PCI:0000:3C:00): 31, pid=4242, name=python, Ch 00000008, intr 00000000. MMU Fault"
SWITCH = "4,1003,7000000,-;nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"


@pytest.mark.parametrize(
    "line, key",
    [
        (LOST, ("0:3b:0", "xid", 79)),
        (OF_JOB, ("0:3c:0", "xid", 31)),
        (SWITCH, ("0:c1:0", "sxid", 20034)),
        ("6,1,2,c;NVRM: Xid (PCI:00000000:3B:00): 154, GPU recovery action changed", ("0:3b:0", "xid", 154)),
    ],
)
def test_a_line_of_the_driver_is_understood(line: str, key: tuple[str, str, int]) -> None:
    found = parsed(line)
    assert found is not None and found[0] == key and found[2]


@pytest.mark.parametrize(
    "line",
    [
        LOST.replace("3,1001", "11,1001"),  # facility user: what processes write into /dev/kmsg
        LOST.replace("3,1001", "30,1001"),  # daemon
        "6,1,2,-;NVRM: Xid (PCI:[4242]: segfault at 0 ip 0 sp 0 error 4 in a",  # a process of that name
        "6,1,2,-;traps: NVRM: Xid (PCI:0000:3b:00): 79, GPU",
        "6,1,2,-;x\\x0aNVRM: Xid (PCI:0000:3b:00): 79, a line end in a message, as the kernel writes it",
        " NVRM: Xid (PCI:0000:3b:00): 79, a dictionary line",
        "NVRM: Xid (PCI:0000:3b:00): 79, no record at all",
        "3,1,2,-;NVRM: Xid (PCI:zz:3b:00): 79, no bus",
        "3,x,y,-;NVRM: Xid (PCI:0000:3b:00): 79, no time",
        ";NVRM: Xid (PCI:0000:3b:00): 79,",
        "",
    ],
)
def test_what_is_not_of_the_driver_is_no_fault(line: str) -> None:
    assert parsed(line) is None


class FifoLog:
    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "kmsg")
        os.mkfifo(self.path)
        self.log = KernelLog(self.path)
        self.log.read()
        self._fd = os.open(self.path, os.O_WRONLY)

    def write(self, *lines: str) -> None:
        for line in lines:
            os.write(self._fd, line.encode() + b"\n SUBSYSTEM=pci\n")
        self.log.read()

    def close(self) -> None:
        self.log.close()
        os.close(self._fd)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FifoLog]:
    made = FifoLog(tmp_path)
    yield made
    made.close()


def test_faults_are_counted_and_bounded(kernel: FifoLog) -> None:
    kernel.write(LOST, LOST.replace("5000000", "9000000"), OF_JOB, LOST.replace("3,1001", "11,1001"))
    assert sorted(kernel.log.faults) == [("0:3b:0", "xid", 79), ("0:3c:0", "xid", 31)]
    lost = kernel.log.faults["0:3b:0", "xid", 79]
    assert lost.count == 2 and lost.detail.endswith("GPU has fallen off the bus.")
    assert lost.at - kernel.log.faults["0:3c:0", "xid", 31].at == pytest.approx(3.0, abs=0.5)
    kernel.write(
        *(OF_JOB.replace(": 31,", f": {number},").replace("6000000", str(10**7 + number)) for number in range(500))
    )
    assert len(kernel.log.faults) == MAX_FAULTS and ("0:3c:0", "xid", 499) in kernel.log.faults


def test_a_log_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    log = KernelLog(str(tmp_path / "missing"))
    log.read()
    assert log.trouble == "No such file or directory" and log.faults == {}


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK | os.W_OK), reason="needs the right to write the kernel's log")
def test_not_even_root_makes_one_up_in_the_real_log() -> None:
    """The kernel turns the facility of what is written into "user"."""
    log, marker = KernelLog(), f"{os.getpid()}"
    with open("/dev/kmsg", "w") as file:
        file.write(f"<3>NVRM: Xid (PCI:0000:3b:00): 79, pid={marker}, made up")
    log.read()
    assert log.trouble == "" and not any(marker in one.detail for one in log.faults.values())
    log.close()


def test_what_the_driver_says_of_a_gpu_and_what_the_log_says_become_one_list(
    library: FakeGpus, kernel: FifoLog
) -> None:
    reader = gpus.GpuReader(sys.executable, kernel_log=kernel.log)
    library.say(gpu(), gpu(), gpu())
    library.ail("0 0 0 0", "3 1 0 0x48", "0 0 1 0x4")
    kernel.write(OF_JOB, SWITCH)
    try:
        reading = reader.read(0.0)
        found = {(one.kind, one.code, one.gpu, one.uuid, one.count) for one in reading.faults}
        assert found == {
            ("ecc", 0, 1, "GPU-fake-1", 3), ("row_remap_pending", 0, 1, "GPU-fake-1", 1),
            ("row_remap_failed", 0, 2, "GPU-fake-2", 1), ("xid", 31, 1, "GPU-fake-1", 1), ("sxid", 20034, None, "", 1),
        }  # fmt: skip
        assert [one.throttled for one in reading.gpus] == [[], ["hw_slowdown", "hw_thermal"], []]
        library.say("lost", gpu())
        kernel.write(LOST)
        (lost,) = [one for one in reader.read(5.0).faults if one.code == 79]
        assert (lost.gpu, lost.uuid) == (0, "GPU-fake-0"), "as it was before it was lost"
    finally:
        reader.end()


def test_nvidia_smi_says_the_same_and_an_older_one_nothing(fake: FakeGpus) -> None:
    fake.with_smi().say(gpu(), gpu())
    fake.ail("0 0 0 0x0", "[N/A] 1 0 0x20")
    for ails in (True, False):
        reader = gpus.GpuReader(sys.executable, kernel_log=KernelLog(str(fake.directory / "none")))
        reading = reader.read(0.0)
        reader.end()
        assert reading.source == "nvidia-smi" and len(reading.gpus) == 2
        assert [one.kind for one in reading.faults] == (["row_remap_pending"] if ails else [])
        assert reading.gpus[1].throttled == (["sw_thermal"] if ails else [])
        os.unlink(f"{fake.state}.health") if ails else None  # then the stand-in fails, as an older nvidia-smi does


def test_cordoned_gpus_are_given_to_nobody_also_after_a_restart(tmp_path: Path) -> None:
    four = Reading(True, [GpuUsage(index, f"GPU-{index}") for index in range(4)], {}, "", "nvml", 0.0)
    allocator = GpuAllocator(str(tmp_path), Readings(), {})
    allocator.cordon(["GPU-0", "#2"])
    for _ in range(2):
        assert allocator.take("w1", 2, four, None) == "" and allocator.of("w1") == [1, 3]
        assert allocator.take("w2", 1, four, None).startswith("waits for 1 GPU: GPU 0 is cordoned; GPU 1 is allocated")
        allocator.release("w1")
        allocator.cordon(None)  # of a manager that knows of no cordons
        allocator = GpuAllocator(str(tmp_path), Readings(), {})
    allocator.cordon([])
    assert allocator.take("w2", 3, four, None) == "" and allocator.of("w2") == [0, 1, 2]
    assert choose("w3", 1, four, {}, [3], frozenset({"GPU-3"}))[1] == "waits for 1 GPU: GPU 3 is cordoned"


def test_a_fault_without_a_gpu_is_sent_as_such() -> None:
    assert GpuFault("sxid").gpu is None
