"""Try the GPU reader on a machine with an NVIDIA GPU. Plain python3 ≥ 3.9, no packages; torch is used if it is there.

    python3 scripts/gpu_try.py [--seconds 10] [--no-load]

Prints what NVML and nvidia-smi report through remote_agent/telemetry/nvml_helper.py, puts a load on GPU 0 (with torch,
else with the CUDA driver library itself) below a fake runner, and checks that this load is measured and attributed to
its worker. Exits with 0 on success, with 1 on failure, and with 77 if there is no NVIDIA driver.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from remote_agent.protocol.messages import WorkerUsage, encode  # noqa: E402
from remote_agent.telemetry import gpu_allocator, gpus, nvml_helper, procfs  # noqa: E402
from remote_agent.telemetry.hang import Suspicion  # noqa: E402

HELD_BYTES = 1 << 30
READ_AT_MOST_S = 5.0
NO_DRIVER = 77

# Allocates 1 GiB of the first visible GPU and, if torch is available, multiplies matrices. Prints "up" once it does.
LOAD = """
import sys, time
until = time.time() + float(sys.argv[1])
try:
    import torch
    a = torch.randn(8192, 8192, device="cuda"); held = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize(); print("up torch", torch.__version__, flush=True)
    while time.time() < until:
        a = torch.nn.functional.normalize(a @ a); torch.cuda.synchronize()
except ImportError:
    import ctypes
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    for code in (cuda.cuInit(0), cuda.cuDeviceGet(ctypes.byref(device), 0),
                 cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device),
                 cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(1 << 30))):
        if code: print("CUDA error", code, flush=True); sys.exit(1)
    print("up libcuda", flush=True)
    while time.time() < until:
        cuda.cuMemsetD8_v2(memory, 0, ctypes.c_size_t(1 << 30)); cuda.cuCtxSynchronize()
"""
# Stands in for a runner, the parent of the job. The job is its grandchild here, as with a shell in between.
RUNNER = (
    "import subprocess,sys; sys.exit(subprocess.call(['/bin/sh','-c','\"$0\" -c \"$1\" \"$2\"; true',*sys.argv[1:]]))"
)

failures: list[str] = []


def check(holds: bool, what: str) -> None:
    print(f"{'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        failures.append(what)


def sources() -> dict[str, list[dict[str, Any]]]:
    """The report of each source separately."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, read in (("nvml", lambda: nvml_helper.Nvml().read()), ("nvidia-smi", nvml_helper.read_smi)):
        started = time.monotonic()
        try:
            found[name] = read()  # type: ignore[no-untyped-call]
            print(
                f"{name}: {(time.monotonic() - started) * 1000:.0f} ms", json.dumps(found[name], indent=1), flush=True
            )
        except (nvml_helper.NoNvml, OSError, ValueError) as exc:
            print(f"{name}: cannot be used: {exc}", flush=True)
    return found


def compare(found: dict[str, list[dict[str, Any]]]) -> None:
    check(bool(found), "NVML or nvidia-smi can be read")
    if len(found) < 2:
        return
    keys = ("index", "uuid", "name", "memory_total_bytes")
    nvml, smi = ([[gpu.get(key) for key in keys] for gpu in found[name]] for name in ("nvml", "nvidia-smi"))
    same = len(nvml) == len(smi) and all(
        one[:3] == other[:3] and abs(int(one[3] or 0) - int(other[3] or 0)) < 1 << 30 for one, other in zip(nvml, smi)
    )
    check(same, "NVML and nvidia-smi name the same GPUs in the same order")


def helper_reads(reader: gpus.GpuReader) -> gpus.Reading:
    first = time.monotonic()
    reading = reader.read(first)
    second = time.monotonic()
    reading = reader.read(second)
    took_s = time.monotonic() - second
    print(f"helper process: first reading {second - first:.2f} s, next {took_s * 1000:.0f} ms, source {reading.source}")
    print(f"helper process: {_resident_mib(reader)} MiB resident", flush=True)
    check(bool(reading.gpus), f"the agent's reader sees GPUs {reading.trouble}")
    check(took_s < READ_AT_MOST_S, f"a reading takes less than {READ_AT_MOST_S:g} s")
    for gpu in reading.gpus:
        whole = gpu.memory_total_bytes and gpu.power_w and gpu.temperature_c is not None
        check(bool(whole), f"GPU {gpu.index} tells memory, power and temperature")
    return reading


def _resident_mib(reader: gpus.GpuReader) -> float:
    found = procfs.read(reader._helper.pid) if reader._helper is not None else None
    return round(found.rss_pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1) if found else 0.0


def under_load(reader: gpus.GpuReader, before: gpus.Reading, seconds: float) -> None:
    chosen, reason = gpu_allocator.choose("try", 1, before, {}, None)
    print(f"allotment for one GPU: {chosen} {reason}", flush=True)
    check(chosen is not None, "a GPU can be handed out" + (f": {reason}" if reason else ""))
    index = chosen[0] if chosen else 0
    environment = {**os.environ, **gpu_allocator.environment([index])}
    argv = [sys.executable, "-c", RUNNER, sys.executable, LOAD, str(seconds + 60)]
    runner = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert runner.stdout is not None
        said = runner.stdout.readline().decode().strip()
        print("load:", said or "(nothing)", flush=True)
        if not said.startswith("up"):
            check(False, f"the load runs: {said}")
            return
        _watch_load(reader, before, runner.pid, index, seconds)
    finally:
        os.killpg(runner.pid, 9)
        runner.wait()


def _watch_load(reader: gpus.GpuReader, before: gpus.Reading, runner_pid: int, index: int, seconds: float) -> None:
    suspicion, until, reading, said = Suspicion(), time.monotonic() + seconds, before, ""
    while True:
        time.sleep(1.0)
        trees = procfs.trees_below({"try": runner_pid})
        reading = reader.read(time.monotonic())
        gpus.attribute(reading, {"try": runner_pid}, trees)
        said = suspicion.observe(
            1, trees["try"], 0, [one for one in reading.gpus if one.index == index], time.monotonic()
        )
        gpu = next(one for one in reading.gpus if one.index == index)
        users = encode(gpu)["processes"]
        print(f"GPU {index}: {gpu.utilization_percent} % {gpu.memory_used_bytes} B {gpu.power_w} W {users}")
        if time.monotonic() > until:
            break
    usage = WorkerUsage()
    gpus.fill_usage(usage, "try", reading.gpus, [])
    print("worker's usage:", usage, "suspect:", repr(said), flush=True)
    idle = next((one.memory_used_bytes or 0 for one in before.gpus if one.index == index), 0)
    check((gpu.memory_used_bytes or 0) - idle >= HELD_BYTES, "the load's memory is seen")
    check(bool(gpu.utilization_percent), "the load's utilisation is seen")
    tree = {process.pid for process in procfs.trees_below({"": runner_pid})[""]}
    ours = [one for one in gpu.processes if one.worker_id == "try"]
    check(bool(ours) and all(one.pid in tree for one in ours), "the load's process is attributed to its worker")
    named = any((one.memory_bytes or 0) >= HELD_BYTES for one in ours)
    how = "by the driver's pids, with its memory" if named else "by open devices (the driver's pids are not ours)"
    print(f"attributed {how}", flush=True)
    check(usage.gpus == [index], "the worker's usage names this GPU and no other")
    _, reason = gpu_allocator.choose("other", len(reading.gpus), reading, {}, None)
    check(f"GPU {index} is used by try" in reason, f"another worker would wait: {reason}")
    check(not said, f"a working job is not suspect {said}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the load is watched")
    parser.add_argument("--no-load", action="store_true", help="only read")
    options = parser.parse_args()
    if not gpus.driver_shows():
        print("no NVIDIA driver on this host")
        return NO_DRIVER
    compare(sources())
    reader = gpus.GpuReader(sys.executable)
    try:
        reading = helper_reads(reader)
        if reading.gpus and not options.no_load:
            under_load(reader, reading, options.seconds)
    finally:
        reader.end()
    print("all of it holds" if not failures else f"{len(failures)} failed: " + "; ".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
