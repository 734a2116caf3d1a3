"""Records the activity of a worker before a health check restarts it: bounded in time and size.

Owns the files evidence/<attempt>-<time>.txt in the worker's directory. Read-only, except for the signal that the
worker requested (evidence_signal). Each inspection of a process runs on a thread with a deadline, because reading the
memory map of a hung process can block. Called on a helper thread.
"""

from __future__ import annotations

import os
import time
from collections import deque, namedtuple
from itertools import islice

from remote_agent.health import user_process
from remote_agent.protocol.hints import Callable
from remote_agent.protocol.messages import GpuUsage
from remote_agent.protocol.reasons import Reason, because
from remote_agent.runner.restart import signal_number
from remote_agent.system import paths, processes
from remote_agent.system.bounded import Bounded, HangsError
from remote_agent.telemetry import procfs

WHOLE_S = 20.0  # time limit of the whole collection; the caller's own limit is a little longer
PROCESS_S = 2.0
PY_SPY_S = 5.0
PY_SPY_BYTES = 64 * 1024
SIGNAL_PAUSE_S = 1.0  # time for faulthandler to write its stacks to the log
MAX_BYTES = 512 * 1024
MAX_PROCESSES = 32
MAX_THREADS = 64
LOG_TAIL_BYTES = 16 * 1024
LOG_TAIL_LINES = 50
KERNEL_LINES = 40
MAX_KERNEL_RECORDS = 20_000
KEEP_FILES = 10
SUMMARY_CHARS = 240

Evidence = namedtuple("Evidence", ["path", "summary"])
# The subject of the collection. gpus: GpuUsage of the GPUs in use; path: the job's PATH, which may contain py-spy.
Scene = namedtuple(
    "Scene",
    [
        "worker_id", "directory", "attempt", "runner_pid", "pid", "pid_start", "reason", "gpus", "signal", "path",
        "python",
    ],
)  # fmt: skip


class _Pages:
    """Text of up to MAX_BYTES; the excess is dropped, with a note."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left = MAX_BYTES

    def add(self, heading: str, text: str) -> None:
        part = f"== {heading}\n{text.rstrip()}\n\n"
        if self._left <= 0:
            return
        if len(part) > self._left:
            part = part[: self._left] + "\n… (cut off)\n"
        self._parts.append(part)
        self._left -= len(part)

    def text(self) -> str:
        return "".join(self._parts)


def collect(scene: Scene) -> Evidence:
    """Collect the evidence into a file. Raises OSError if it cannot be written."""
    deadline = time.monotonic() + WHOLE_S
    pages = _Pages()
    pages.add("why", f"{scene.worker_id}, attempt {scene.attempt}: {scene.reason}\n{_clock()}")
    tree = procfs.trees_below({"": scene.runner_pid})[""] if scene.runner_pid else []
    bounded = Bounded()
    pages.add("processes", "\n".join(map(_line, tree[:MAX_PROCESSES])) or "none")
    for process in tree[:MAX_PROCESSES]:
        pages.add(f"process {process.pid} ({process.name})", _within(bounded, deadline, process.pid, _examine))
    if scene.gpus:
        pages.add("GPUs", "\n".join(map(_gpu_line, scene.gpus)))
    _python_stacks(pages, tree, scene, deadline)
    asked = _ask_for_stacks(scene)
    if asked:
        pages.add("signal", asked)
    kernel = _kernel_tail()
    if kernel:
        pages.add("kernel messages", kernel)
    last = _log_tail(scene.directory, scene.attempt)
    pages.add(f"last {LOG_TAIL_LINES} lines of the log", "\n".join(last))
    return Evidence(_write(scene, pages.text()), _summary(tree, last))


def _within(bounded: Bounded, deadline: float, pid: int, check: Callable[[int], str]) -> str:
    left_s = min(PROCESS_S, deadline - time.monotonic())
    if left_s <= 0:
        return "not looked at: no time left"
    try:
        return str(bounded.call(f"look {pid}", lambda: check(pid), left_s))
    except HangsError as exc:
        return f"cannot be looked at: {exc}"


def _line(process: procfs.Proc) -> str:
    return f"pid {process.pid} parent {process.ppid} state {process.state} threads {process.threads} {process.name}"


def _examine(pid: int) -> str:
    """The facts about a process in /proc. wchan, status and stack are read first: reading cmdline may block."""
    parts = []
    for thread in _threads(pid):
        folder = f"/proc/{pid}/task/{thread}"
        waits = " ".join(f"{name}={_first_line(f'{folder}/{name}')}" for name in ("comm", "wchan", "syscall"))
        found = procfs.read(int(thread)) if thread == str(pid) else None
        state = found.state if found else _field(f"{folder}/status", "State")
        parts.append(f"thread {thread} state={state} {waits}")
        stack = _content(f"{folder}/stack", 2000)
        if stack:
            parts.append(stack.rstrip())
    parts.append(_content(f"/proc/{pid}/status", 4000))
    parts.append("command: " + _content(f"/proc/{pid}/cmdline", 1000).replace("\0", " "))
    return "\n".join(parts)


def _threads(pid: int) -> list[str]:
    try:
        with os.scandir(f"/proc/{pid}/task") as entries:  # a job may have very many threads
            return sorted((one.name for one in islice(entries, MAX_THREADS)), key=int)
    except OSError:
        return []


def _content(path: str, limit: int) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


def _first_line(path: str) -> str:
    return _content(path, 200).split("\n", 1)[0] or "?"


def _field(path: str, name: str) -> str:
    for line in _content(path, 4000).splitlines():
        if line.startswith(name + ":"):
            return line.split(":", 1)[1].strip()
    return "?"


def _gpu_line(gpu: GpuUsage) -> str:
    pids = ", ".join(str(process.pid) for process in gpu.processes) or "none"
    return (
        f"GPU {gpu.index} {gpu.name}: {gpu.utilization_percent} % busy, memory {gpu.memory_used_bytes} of "
        f"{gpu.memory_total_bytes} B, {gpu.power_w} of {gpu.power_limit_w} W, {gpu.temperature_c} °C, processes {pids} "
        f"{gpu.trouble}"
    )


def _python_stacks(pages: _Pages, tree: list[procfs.Proc], scene: Scene, deadline: float) -> None:
    """Add stacks from py-spy, if the job's PATH has one; it requires no cooperation of the process. Runs with the
    rights of the worker's user, because the writers of that PATH are unknown."""
    for process in tree[:MAX_PROCESSES]:
        if "python" not in process.name and "pt_main" not in process.name:
            continue
        left_s = min(PY_SPY_S, deadline - time.monotonic())
        if left_s <= 0.2:
            return
        request = {
            "worker_dir": scene.directory,
            "output": ["py-spy", "dump", "--nonblocking", "--pid", str(process.pid)],
            "folders": scene.path,
            "timeout_s": left_s,
            "max_bytes": PY_SPY_BYTES,
        }
        try:
            said = str(user_process.run(scene.python, request))
        except (user_process.Failed, OSError) as exc:
            said = str(exc)
        if not said:
            return  # py-spy is not installed
        pages.add(f"py-spy of {process.pid}", said)


def _ask_for_stacks(scene: Scene) -> str:
    """Send the evidence_signal that the worker declares for printing its stacks; without it nothing is sent."""
    if not scene.signal or not scene.pid:
        return ""
    number = signal_number(scene.signal, default=0)
    if number == 0:
        return f"evidence_signal {scene.signal} is no signal"
    identity = processes.Identity(scene.pid, scene.pid_start, processes.boot_id())
    if not processes.send_signal(identity, number):
        return f"{scene.signal} could not be sent to {scene.pid}"
    time.sleep(SIGNAL_PAUSE_S)
    return f"{scene.signal} sent to {scene.pid}; what it printed is in the log below"


def _kernel_tail() -> str:
    """The newest kernel messages (out of memory, a lost disk, a GPU's Xid), if this user may read them."""
    records: deque[str] = deque(maxlen=KERNEL_LINES)
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        for _ in range(MAX_KERNEL_RECORDS):
            try:
                data = os.read(fd, 8192)
            except BrokenPipeError:
                continue  # overwritten while being read: continue with the next one
            prefix, _, text = data.decode("utf-8", "replace").partition(";")
            stamp = prefix.split(",")[2] if prefix.count(",") >= 2 else "?"
            seconds = f"{int(stamp) / 1e6:.3f}" if stamp.isdigit() else stamp
            records.append(f"[{seconds}] {text.splitlines()[0] if text else ''}")
    except OSError:
        pass  # EAGAIN: no more messages
    finally:
        os.close(fd)
    return "\n".join(records)


def _log_tail(directory: str, attempt: int) -> list[str]:
    lines: list[str] = []
    for stream in ("err", "out"):
        path = paths.log_file(directory, attempt, stream)
        try:
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
                data = file.read(LOG_TAIL_BYTES)
        except OSError:
            continue
        text = data.replace(b"\0", b"").decode("utf-8", "replace")
        lines += text.splitlines()[-LOG_TAIL_LINES:]
    return lines


def _summary(tree: list[procfs.Proc], last: list[str]) -> Reason:
    """A one-line summary for the event's reason."""
    if not tree:
        return because("evidence.no_process")
    main = tree[0]
    where = _first_line(f"/proc/{main.pid}/wchan")
    who = {"pid": main.pid, "name": main.name, "state": main.state}
    waits = where not in ("?", "0")
    process = because("evidence.process_in", place=where, **who) if waits else because("evidence.process", **who)
    said = next((line.strip() for line in reversed(last) if line.strip()), "")[:SUMMARY_CHARS]
    return process.then(
        because("evidence.others", n=len(tree) - 1) if len(tree) > 1 else None,
        because("evidence.last_line", text=said) if said else None,
    )


def _write(scene: Scene, text: str) -> str:
    folder = os.path.join(scene.directory, "evidence")
    os.makedirs(folder, mode=paths.PRIVATE_DIR, exist_ok=True)
    for name in sorted(os.listdir(folder), key=lambda name: os.stat(os.path.join(folder, name)).st_mtime)[
        : -KEEP_FILES + 1
    ]:
        os.unlink(os.path.join(folder, name))
    path = os.path.join(folder, f"{scene.attempt}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.txt")
    paths.write_atomic(path, text.encode("utf-8", "replace"))
    return path


def _clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
