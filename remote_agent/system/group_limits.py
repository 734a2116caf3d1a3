"""Enforces memory_max and cpu_max of a worker through its control group (v2), or reports why this is not possible.

Knows only the kernel's files. A group can be limited only if its parent delegates the controller, and such a parent
must not contain processes (except the root). No processes are moved for this: limits work where the host delegates
the controllers to the agent's parent, and are reported as unavailable elsewhere.
"""

from __future__ import annotations

import os

from remote_agent.protocol.reasons import NONE, Reason, because

CPU_PERIOD_US = 100_000


def enforce(path: str, limits: dict[str, float | None]) -> Reason:
    """Set the limits of the group at `path` ("": none); None removes a limit. Returns the limits that are not enforced,
    with reasons."""
    problems = []
    for name, controller, file, value in wanted(limits):
        if not path:
            problem: str = because("limit.no_group")
        else:
            problem = _hand_down(os.path.dirname(path), controller) or _write(os.path.join(path, file), value)
        if problem and value[:3] != "max":
            problems.append(because("limit.not_enforced", name=name, why=problem))
    return NONE.then(*problems)


def wanted(limits: dict[str, float | None]) -> list[tuple[str, str, str, str]]:
    """Returns (key, controller, file, value) for each limit."""
    found = []
    if "memory_max" in limits:
        memory = limits["memory_max"]
        found.append(("memory_max", "memory", "memory.max", f"{memory:.0f}" if memory is not None else "max"))
    if "cpu_max" in limits:
        cpus = limits["cpu_max"]
        share = "max" if cpus is None else max(1000, round(cpus * CPU_PERIOD_US))
        found.append(("cpu_max", "cpu", "cpu.max", f"{share} {CPU_PERIOD_US}"))
    return found


def _hand_down(parent: str, controller: str) -> str:
    """Enable the controller for the children of `parent`. Returns the error; "" on success."""
    control = os.path.join(parent, "cgroup.subtree_control")
    if controller in _words(control):
        return ""
    if controller not in _words(os.path.join(parent, "cgroup.controllers")):
        return because("limit.no_controller", controller=controller, path=parent)
    problem = _write(control, f"+{controller}")
    return because("limit.not_handed_down", path=parent, controller=controller, error=problem) if problem else ""


def _words(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except OSError:
        return []


def _write(path: str, text: str) -> str:
    """Write a value. Returns the error, or ""."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as exc:
        return f"{path}: {exc.strerror}"
    return ""
