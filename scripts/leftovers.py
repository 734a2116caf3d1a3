"""Checks that a test run left nothing behind: processes, namespaces, links, mounts, control groups and files.

    leftovers.py snapshot FILE     before the run
    leftovers.py compare FILE [S]  after it: prints one line for everything that did not exist before, and then exits
                                   with code 1; waits up to S seconds (10) for processes that are ending

A process counts if its environment contains this run's mark (PROCGUARD_CI_MARK), if its command line names this
checkout, or if it is in a process namespace that did not exist before. Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

MARK = "PROCGUARD_CI_MARK"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SETTLE_S = 10.0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _ancestors() -> set[int]:
    found, pid = set(), os.getpid()
    while pid > 1:
        found.add(pid)
        stat = _read(f"/proc/{pid}/stat")
        pid = int(stat.rpartition(b")")[2].split()[1]) if stat else 0
    return found


def processes() -> dict[str, dict[str, str]]:
    """Every process except the ancestors of this one: "pid start" -> command line, process namespace, and whether it
    has the mark."""
    found = {}
    own = _ancestors()
    mark = f"{MARK}={os.environ.get(MARK, 'no mark')}".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in own:
            continue
        stat = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
        if len(stat) < 20:
            continue
        command = _read(f"/proc/{name}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
        if not command and stat[0] != b"Z":
            continue  # a kernel thread
        found[f"{name} {stat[19].decode()}"] = {
            "command": command or "(zombie)",
            "namespace": _link(f"/proc/{name}/ns/pid"),
            "marked": "yes" if mark in _read(f"/proc/{name}/environ").split(b"\0") else "",
        }
    return found


def lines_of(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()


def control_groups() -> list[str]:
    """The control groups of runners, in every mount of cgroup v2."""
    mounts = [line.split() for line in _read("/proc/self/mountinfo").decode().splitlines()]
    roots = [words[4] for words in mounts if "cgroup2" in words]
    return sorted(
        os.path.join(folder, name)
        for root in roots
        for folder, names, _ in os.walk(root)
        for name in names
        if name.startswith("procguard-")
    )


def snapshot() -> dict[str, object]:
    home = os.path.expanduser("~")
    shared = [path for path in ("/tmp", home, os.path.join(home, ".cache")) if os.path.isdir(path)]  # noqa: S108
    return {
        "processes": processes(),
        "network namespace": sorted(line.split()[0] for line in lines_of("ip", "netns", "list") if line),
        "network link": sorted(
            line.split(":")[1].strip().split("@")[0] for line in lines_of("ip", "-o", "link", "show")
        ),
        "mount": sorted(line.split()[4] for line in _read("/proc/self/mountinfo").decode().splitlines()),
        "control group": control_groups(),
        "file": sorted(os.path.join(folder, name) for folder in shared for name in os.listdir(folder)),
        "changed file of the checkout": sorted(lines_of("git", "-C", ROOT, "status", "--porcelain")),
    }


def compare(before: dict[str, dict[str, dict[str, str]]]) -> list[str]:
    after = snapshot()
    known = {process["namespace"] for process in before["processes"].values()} | {_link("/proc/self/ns/pid")}
    left = []
    for key, process in after["processes"].items():  # type: ignore[attr-defined]
        ours = process["marked"] or ROOT in process["command"] or (process["namespace"] or _any(known)) not in known
        if key not in before["processes"] and ours:
            left.append(f"process {key.split()[0]}: {process['command'][:200]}")
    for kind, values in after.items():
        if kind != "processes":
            left += [f"{kind}: {value}" for value in values if value not in before[kind]]  # type: ignore[attr-defined]
    return left


def _any(values: set[str]) -> str:
    return next(iter(values))


def main() -> int:
    action, path = sys.argv[1:3]
    settle_s = float(sys.argv[3]) if len(sys.argv) > 3 else SETTLE_S
    if action == "snapshot":
        with open(path, "w", encoding="utf-8") as file:
            json.dump(snapshot(), file)
        return 0
    with open(path, encoding="utf-8") as file:
        before = json.load(file)
    deadline = time.monotonic() + settle_s
    left = compare(before)
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        left = compare(before)
    for line in left:
        print(f"left behind: {line}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
