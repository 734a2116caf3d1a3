"""Detects signs that a worker hangs. The result is evidence only; no process is ended because of it.

Pure: `observe` receives readings and `now` (monotonic seconds), and keeps only the state that the next call needs.
Signs: processes that are stopped, zombies, or in uninterruptible sleep; a busy GPU that draws the power of an idle one;
a pause in the output that is much longer than any before.
"""

from __future__ import annotations

from collections import namedtuple

from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.messages import GpuUsage
from remote_agent.protocol.reasons import NONE, Reason, because
from remote_agent.telemetry.procfs import Proc

ZOMBIE_AFTER_S = 30.0
STOPPED_AFTER_S = 10.0
KERNEL_AFTER_S = 60.0
SILENCE_FACTOR = 3.0
SILENCE_AT_LEAST_S = 60.0
KNOWN_AFTER_WRITES = 10  # number of scans with new output before the rhythm counts as known
GPU_BUSY_PERCENT = 90.0
GPU_AFTER_S = 120.0
GPU_FALL = 0.6  # suspicious below this share of the usual power when busy
GPU_LOW = 0.5  # share of the power limit above which nothing is suspicious
GPU_KNOWN_AFTER = 12  # number of busy readings after which the usual power is known
GPU_NEVER_BUSY_LOW, GPU_NEVER_BUSY_AFTER_S = 0.2, 600.0  # if it never drew more power
MAX_NAMED = 3

# A suspicious process: since when, and its CPU time at that point.
_Case = namedtuple("_Case", ["since", "ticks"])


class Rhythm:
    """The usual pauses in this job's output. Kept across attempts and, by `stored`, across restarts of the agent."""

    def __init__(self, stored: Any = None) -> None:
        values = stored if isinstance(stored, dict) else {}
        self.longest_s = _number(values.get("longest_s"))
        self.writes = int(_number(values.get("writes")))
        self._mark: Any = None
        self._since = 0.0

    def observe_mark(self, mark: Any, now: float) -> float:
        """`mark` changes with every output. Returns the time since its last change, in seconds."""
        if mark != self._mark:
            if self._mark is not None:
                self.longest_s = max(self.longest_s, now - self._since)
                self.writes += 1
            self._mark, self._since = mark, now
        return now - self._since

    def begin(self, now: float) -> None:
        """Restart the measurement of silence, for a new attempt or a new agent."""
        self._mark, self._since = None, now

    @property
    def limit_s(self) -> Optional[float]:
        """Silence beyond this is suspicious; None if there was too little output to tell."""
        if self.writes < KNOWN_AFTER_WRITES:
            return None
        return max(SILENCE_AT_LEAST_S, SILENCE_FACTOR * self.longest_s)

    def stored(self) -> dict[str, Any]:
        return {"v": 1, "longest_s": round(self.longest_s, 1), "writes": min(self.writes, KNOWN_AFTER_WRITES)}


class Suspicion:
    """The suspicion of one worker. Call `observe` at every measurement while it runs; `evidence` is the last result."""

    def __init__(self, rhythm: Optional[Rhythm] = None) -> None:
        self.rhythm = rhythm or Rhythm()
        self.silent_s = 0.0
        self.evidence: Reason = NONE
        self.idle_because = ""  # why an idle CPU is no sign of a hang: "output" or "listening" (see `waiting`)
        self._attempt = 0
        self._cases: dict[tuple[int, int, str], _Case] = {}
        self._gpus: dict[int, _GpuHistory] = {}

    def observe(
        self, attempt: int, tree: list[Proc], log_mark: Any, gpus: list[GpuUsage], now: float, waiting: bool = False
    ) -> Reason:
        """Process one measurement and return the evidence, or "".

        `tree`: all processes; `gpus`: the GPUs in use; `waiting`: the worker listens without connections
        (telemetry/listening.py), so that neither silence nor idleness is a sign.
        """
        if attempt != self._attempt:
            self._attempt, self._cases, self._gpus = attempt, {}, {}
            self.rhythm.begin(now)
        found = self._processes(tree, now) + self._busy_at_idle_power(gpus, now)
        self.silent_s = self.rhythm.observe_mark(log_mark, now)
        limit_s = self.rhythm.limit_s
        printed = self.rhythm.writes > 0 and self.silent_s < SILENCE_AT_LEAST_S
        self.idle_because = "output" if printed else "listening" if waiting else ""
        if limit_s is not None and self.silent_s > limit_s and not waiting:
            found.append(because("hang.silent", silent_s=self.silent_s, longest_s=self.rhythm.longest_s))
        self.evidence = NONE.then(*found)
        return self.evidence

    def stopped(self) -> None:
        self._attempt, self.evidence, self.idle_because = 0, NONE, ""

    def _processes(self, tree: list[Proc], now: float) -> list[Reason]:
        cases: dict[tuple[int, int, str], _Case] = {}
        signs: dict[str, list[Reason]] = {"Z": [], "T": [], "t": [], "D": []}
        for process in tree:
            if process.state not in signs:
                continue
            key = (process.pid, process.start, process.state)
            case = self._cases.get(key)
            if case is None or case.ticks != process.ticks:  # it used CPU meanwhile: begin again
                case = _Case(now, process.ticks)
            cases[key] = case
            sign = _sign(process, now - case.since)
            if sign:
                signs[process.state].append(sign)
        self._cases = cases
        found = []
        for some in signs.values():
            found += some[:MAX_NAMED]
            if len(some) > MAX_NAMED:
                found.append(because("hang.more", n=len(some) - MAX_NAMED))
        return found

    def _busy_at_idle_power(self, gpus: list[GpuUsage], now: float) -> list[Reason]:
        found = []
        for gpu in gpus:
            sign = self._gpus.setdefault(gpu.index, _GpuHistory()).observe_mark(gpu, now)
            if sign:
                found.append(sign)
        return found


class _GpuHistory:
    """The power of one GPU while it was busy during this attempt."""

    def __init__(self) -> None:
        self._usual_w = 0.0  # running mean of the readings that were not suspicious
        self._readings = 0
        self._since: Optional[float] = None

    def observe_mark(self, gpu: GpuUsage, now: float) -> Reason:
        power_w, limit_w = gpu.power_w, gpu.power_limit_w
        if not limit_w or power_w is None or (gpu.utilization_percent or 0.0) < GPU_BUSY_PERCENT:
            self._since = None
            return NONE
        known = self._readings >= GPU_KNOWN_AFTER
        if known:
            low, threshold_s = power_w < GPU_FALL * self._usual_w and power_w <= GPU_LOW * limit_w, GPU_AFTER_S
        else:
            low, threshold_s = power_w <= GPU_NEVER_BUSY_LOW * limit_w, GPU_NEVER_BUSY_AFTER_S
        if not low:
            self._since = None
            self._readings += 1
            self._usual_w += (power_w - self._usual_w) / min(self._readings, 100)
            return NONE
        if self._since is None:
            self._since = now
        if now - self._since < threshold_s:
            return NONE
        facts = {
            "index": gpu.index,
            "percent": round(gpu.utilization_percent or 0.0),
            "power_w": round(power_w),
            "limit_w": round(limit_w),
            "for_s": now - self._since,
        }
        return (
            because("hang.gpu_fell", usual_w=round(self._usual_w), **facts) if known else because("hang.gpu", **facts)
        )


def _sign(process: Proc, for_s: float) -> Reason:
    who = {"pid": process.pid, "name": process.name, "for_s": for_s}
    if process.state == "Z" and for_s >= ZOMBIE_AFTER_S:
        return because("hang.zombie", parent=process.ppid, **who)
    if process.state == "T" and for_s >= STOPPED_AFTER_S:
        return because("hang.stopped", **who)
    if process.state == "t" and for_s >= STOPPED_AFTER_S:
        return because("hang.debugged", **who)
    if process.state == "D" and for_s >= KERNEL_AFTER_S:
        return because("hang.kernel", **who)
    return NONE


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and value >= 0 else 0.0
