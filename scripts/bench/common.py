"""Common code of the benchmarks: a table with anchor, ratio and goal, its JSON file, and external programs.

The result is the ratio within one run: because machines are noisy, every benchmark runs its anchor beside ProcGuard.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RESULTS = os.path.join(ROOT, "build", "bench")
# Unset, as for users: if it is set, every start of a tool or an agent compiles the modules that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@dataclass
class Figure:
    """One line of the table. `goal`: the upper bound of `value`, or of its ratio to `anchor` if there is one."""

    name: str
    value: float | None  # None: not measured, `note` says why
    unit: str
    anchor: float | None = None
    anchor_name: str = ""
    goal: float | None = None
    note: str = ""
    at_least: bool = False  # the goal is a lower bound

    @property
    def ratio(self) -> float | None:
        return self.value / self.anchor if self.value is not None and self.anchor else None

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None if there is no goal or no value."""
        measured = self.ratio if self.anchor_name else self.value
        if self.goal is None or measured is None:
            return None
        return measured >= self.goal if self.at_least else measured <= self.goal


def processor_times() -> tuple[float, float]:
    """Seconds since boot that this machine's processors worked, and that the hypervisor withheld from them."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq, steal = (int(one) for one in file.readline().split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


@dataclass
class Report:
    name: str
    figures: list[Figure] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    _times: tuple[float, float] = field(default_factory=processor_times)

    def add(self, name: str, value: float | None, unit: str, **more: Any) -> None:
        self.figures.append(Figure(name, value, unit, **more))

    def finish(self) -> int:
        """Print the table and write build/bench/<name>.json. Returns 1 if a goal was missed, else 0."""
        print(f"\n{'':44} {'measured':>12} {'anchor':>22} {'ratio':>6}  goal")
        for one in self.figures:
            value = "–" if one.value is None else f"{one.value:.2f} {one.unit}"
            anchor = f"{one.anchor:.2f} {one.unit} {one.anchor_name}" if one.anchor is not None else ""
            ratio = f"{one.ratio:.2f}" if one.ratio is not None else ""
            sign = ">=" if one.at_least else "<="
            goal = "" if one.goal is None else f"{sign} {one.goal:g}"
            word = {True: "ok", False: "MISSED", None: ""}[one.met]
            print(f"{one.name:44} {value:>12} {anchor:>22} {ratio:>6}  {goal:8} {word} {one.note}".rstrip())
        used_s, stolen_s = (now - before for now, before in zip(processor_times(), self._times, strict=True))
        stolen = stolen_s / max(used_s + stolen_s, 0.01)
        load = os.getloadavg()
        print(f"\nload {load[0]:.1f}; withheld by the hypervisor: {100 * stolen:.0f} % of the processor time")
        os.makedirs(RESULTS, exist_ok=True)
        path = os.path.join(RESULTS, f"{self.name}.json")
        content = {
            "bench": self.name,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
            "load": load,
            "stolen": stolen,
            "figures": [{**vars(one), "ratio": one.ratio, "met": one.met} for one in self.figures],
            "raw": self.raw,
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        print(f"\n{os.path.relpath(path, ROOT)} written")
        return 1 if any(one.met is False for one in self.figures) else 0


def program(name: str, package: str) -> tuple[str, str]:
    """(path of a Debian program, ""); installs it if this user is root. ("", reason) if it is unavailable."""
    found = shutil.which(name)
    if found:
        return found, ""
    if os.getuid() != 0 or not shutil.which("apt-get"):
        return "", f"{name} is not here: apt-get install {package} (this user may not)"
    command = ["apt-get", "install", "-y", "--no-install-recommends", package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    found = shutil.which(name)
    return (found, "") if found else ("", f"apt-get install {package} failed: {done.stderr.strip()[-200:]}")


def python_program(package: str, name: str) -> tuple[str, str]:
    """(path of a program of a PyPI package, ""), in a separate virtual environment; or ("", reason)."""
    python, missing = python_with(package.partition("==")[0], [package])
    return (os.path.join(os.path.dirname(python), name), "") if python else ("", missing)


def python_with(name: str, packages: Sequence[str]) -> tuple[str, str]:
    """(path of a Python with these PyPI packages, ""), in build/bench/venv-<name>; or ("", reason)."""
    folder = os.path.join(RESULTS, f"venv-{name}")
    python = os.path.join(folder, "bin", "python")
    if os.path.exists(os.path.join(folder, "complete")):
        return python, ""
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, timeout=120)
        command = [python, "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(command, check=True, capture_output=True, timeout=180)
    except (OSError, subprocess.SubprocessError) as exc:
        shutil.rmtree(folder, ignore_errors=True)
        return "", f"pip install {' '.join(packages)} failed: {exc}"
    with open(os.path.join(folder, "complete"), "w", encoding="ascii"):
        pass
    return python, ""


def resident_kb(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0


def cpu_s(pid: int) -> float:
    """Processor seconds that `pid` has used so far, with its reaped children."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    return sum(int(one) for one in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def short_folder() -> str:
    """A folder whose path leaves room for unix sockets."""
    return tempfile.mkdtemp(prefix="pgb")
