"""The GPUs of this host and the processes that use them, read by a helper process with a deadline.

Owns the helper (nvml_helper.py), which is started only if a driver is present. A helper that hangs is killed and
abandoned; no other is started while it exists. Knows neither workers' states nor allocations. Only one thread at a
time may call `read`.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import time
from collections import namedtuple

from remote_agent.protocol.hints import TYPE_CHECKING, Any, Optional
from remote_agent.protocol.messages import GpuFault, GpuProcess, GpuUsage, WorkerUsage
from remote_agent.telemetry import procfs

if TYPE_CHECKING:  # not loaded by an agent without GPUs
    from remote_agent.telemetry.kernel_log import KernelLog

READ_TIMEOUT_S = 10.0
FIRST_READ_TIMEOUT_S = 30.0  # without persistence mode the driver first initialises every GPU
AGAIN_AFTER_FAILURE_S = 60.0
MAX_ANSWER_BYTES = 1024 * 1024
CERTAINLY_USED_BYTES = 1 << 30  # the driver itself uses up to about 600 MB of an idle GPU
DRIVER_SIGNS = ("/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/dxg")
HELPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nvml_helper.py")

MAX_FAULTS = 64
OF_NVML = ("ecc", "row_remap_pending", "row_remap_failed")

# present: this host has a driver. minors: GPU index -> N of /dev/nvidiaN. faults: GPU faults since boot.
Reading = namedtuple(
    "Reading", ["present", "gpus", "minors", "trouble", "source", "at", "faults", "kernel_log"], defaults=[(), ""]
)
NO_GPUS = Reading(False, [], {}, "", "none", 0.0)


def driver_shows(signs: tuple[str, ...] = DRIVER_SIGNS) -> bool:
    """Whether this host seems to have NVIDIA GPUs. Cheap; does not call the driver."""
    if any(os.path.exists(path) for path in signs):
        return True
    directories = (os.environ.get("PATH") or os.defpath).split(os.pathsep)
    return any(os.access(os.path.join(directory, "nvidia-smi"), os.X_OK) for directory in directories)


class GpuReader:
    def __init__(
        self,
        python: str,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
        helper: str = HELPER,
        kernel_log: Optional[KernelLog] = None,
    ) -> None:
        self._argv = [python, "-I", "-S", helper]
        self._read_timeout_s = read_timeout_s
        self._helper: Any = None  # subprocess.Popen
        self._hanging: Any = None
        self._not_before = 0.0  # monotonic
        self._answered = False
        self._last = NO_GPUS
        if kernel_log is None:
            from remote_agent.telemetry.kernel_log import KernelLog

            kernel_log = KernelLog()
        self._kernel_log = kernel_log
        self._known: dict[str, tuple[int, str]] = {}  # PCI bus -> (index, UUID), also of lost GPUs
        self._broken: list[GpuFault] = []  # faults in the driver's last answer

    def read(self, now: float) -> Reading:
        """The newest reading; after a failure, the previous result for AGAIN_AFTER_FAILURE_S. Never raises."""
        reading = self._read(now)
        if not reading.present:
            return reading
        self._kernel_log.read()  # even if the driver does not answer
        logged = []
        for (bus, kind, code), one in self._kernel_log.faults.items():
            index, uuid = self._known.get(bus, (None, ""))
            logged.append(GpuFault(kind, code, index, uuid, one.at, one.count, one.detail))
        faults = (self._broken + sorted(logged, key=lambda one: -one.at))[:MAX_FAULTS]
        self._last = reading._replace(faults=faults, kernel_log=self._kernel_log.trouble)
        return self._last

    def _read(self, now: float) -> Reading:
        if self._hanging is not None and self._hanging.poll() is not None:
            self._hanging = None
        if self._hanging is not None or now < self._not_before:
            return self._last
        if not driver_shows():
            self._not_before = now + AGAIN_AFTER_FAILURE_S
            self._last = NO_GPUS._replace(at=now)
            return self._last
        try:
            data = self._ask()
            gpus = [_gpu(one) for one in data.get("gpus", []) if isinstance(one, dict)]
            self._note_faults([one for one in data.get("gpus", []) if isinstance(one, dict)])
            minors = {int(one["index"]): one.get("minor") for one in data.get("gpus", [])}
            self._last = Reading(True, gpus, minors, str(data.get("trouble", "")), str(data.get("source")), now)
            if data.get("source") == "none":
                self._fail(now)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            self._fail(now)
            self._last = Reading(True, [], {}, str(exc), "none", now)
        return self._last

    def _note_faults(self, gpus: list[dict[str, Any]]) -> None:
        from remote_agent.telemetry.kernel_log import bus_of

        for one in gpus:
            if one.get("bus"):
                self._known[bus_of(str(one["bus"]))] = int(one["index"]), str(one.get("uuid") or "")
        self._broken = [
            GpuFault(kind, 0, int(one["index"]), str(one.get("uuid") or ""), count=int(one[kind]))
            for one in gpus
            for kind in OF_NVML
            if one.get(kind)
        ]

    def end(self) -> None:
        self._kernel_log.close()
        if self._helper is not None:
            self._helper.kill()
            self._hanging, self._helper = self._helper, None

    def _fail(self, now: float) -> None:
        self._not_before = now + AGAIN_AFTER_FAILURE_S
        self._answered = False
        self.end()

    def _ask(self) -> dict[str, Any]:
        """Query the helper. Raises OSError or ValueError if it does not answer in time or its answer is invalid."""
        import subprocess  # only needed on hosts with GPUs

        if self._helper is None or self._helper.poll() is not None:
            self._helper = subprocess.Popen(
                self._argv,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )
        self._helper.stdin.write(b"\n")
        timeout_s = self._read_timeout_s if self._answered else max(self._read_timeout_s, FIRST_READ_TIMEOUT_S)
        line = _read_line(self._helper.stdout.fileno(), timeout_s)
        self._answered = True
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError("the GPU helper's answer cannot be read")
        return value


def _read_line(fd: int, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
            raise ValueError(f"the GPU driver does not answer within {timeout_s:g} s")
        data = os.read(fd, 65536)
        if not data:
            raise ValueError("the GPU helper ended without an answer")
        line += data
        if len(line) > MAX_ANSWER_BYTES:
            raise ValueError("the GPU helper's answer is too long")
    return line


def _gpu(data: dict[str, Any]) -> GpuUsage:
    processes = [GpuProcess(int(one["pid"]), one.get("memory_bytes")) for one in data.get("processes", [])]
    names = ("uuid", "name", "utilization_percent", "memory_used_bytes", "memory_total_bytes", "power_w",
             "power_limit_w", "temperature_c", "trouble", "throttled")  # fmt: skip
    return GpuUsage(
        int(data["index"]), processes=processes, **{name: data[name] for name in names if data.get(name) is not None}
    )


# ------------------------------------------------------------------------------------------------- attribution


def attribute(
    reading: Reading,
    runner_pids: dict[str, int],
    trees: dict[str, list[procfs.Proc]],
    held: Optional[dict[str, list[int]]] = None,
) -> None:
    """Fill in name, user and worker of each process on each GPU.

    In a container the driver reports pids of the host, which are invalid here, or none at all. In that case a process
    of a worker's tree that has the GPU's device open counts as using it (`memory_bytes` None). CUDA opens more devices
    than it uses, so this fallback applies only without usable pids, and for a worker with allocated GPUs (`held`) only
    to these.
    """
    workers = {pid: worker_id for worker_id, pid in runner_pids.items()}
    silent = not any(gpu.processes for gpu in reading.gpus)
    for gpu in reading.gpus:
        visible = [_describe(process, workers) for process in gpu.processes]
        foreign = bool(visible) and not any(visible)
        minor = reading.minors.get(gpu.index)
        if minor is not None and (foreign or (silent and (gpu.memory_used_bytes or 0) >= CERTAINLY_USED_BYTES)):
            candidates = {
                key: tree for key, tree in trees.items() if gpu.index in ((held or {}).get(key) or [gpu.index])
            }
            gpu.processes = _openers(f"/dev/nvidia{minor}", candidates) or gpu.processes


def _describe(process: GpuProcess, workers: dict[int, str]) -> bool:
    """Fill in the process's details. False if there is no such process in this pid namespace."""
    found = procfs.read(process.pid)
    if found is None:
        return False
    process.name = found.name
    process.user = owner(process.pid)
    ancestor: Optional[procfs.Proc] = found
    for _ in range(100):
        if ancestor is None or ancestor.ppid <= 1:
            break
        if ancestor.ppid in workers:
            process.worker_id = workers[ancestor.ppid]
            break
        ancestor = procfs.read(ancestor.ppid)
    return True


def _openers(device: str, trees: dict[str, list[procfs.Proc]]) -> list[GpuProcess]:
    found = []
    for worker_id, tree in trees.items():
        for process in tree:
            if _has_open(process.pid, device):
                found.append(GpuProcess(process.pid, None, process.name, owner(process.pid), worker_id))
    return found


def _has_open(pid: int, device: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(os.path.join(folder, name)) == device:
                return True
        except OSError:
            continue
    return False


def owner(pid: int) -> str:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def fill_usage(usage: WorkerUsage, worker_id: str, gpus: list[GpuUsage], held: list[int]) -> None:
    """Fill in a worker's GPU usage: of the GPUs allocated to it and those that its processes use."""
    own = [gpu for gpu in gpus if gpu.index in held or any(one.worker_id == worker_id for one in gpu.processes)]
    usage.gpus = sorted({gpu.index for gpu in own} | set(held))
    loads = [gpu.utilization_percent for gpu in own if gpu.utilization_percent is not None]
    usage.gpu_percent = round(sum(loads) / len(loads), 1) if loads else None
    memory = [
        one.memory_bytes
        for gpu in own
        for one in gpu.processes
        if one.worker_id == worker_id and one.memory_bytes is not None
    ]
    usage.gpu_memory_bytes = sum(memory) if memory else None
