"""A control group (v2) per worker, if this user may create one: the kernel tracks the tree and can kill it atomically.

The runner joins the group before the first start, so that every child is created inside it without a race and
without cost at a restart. Moving a process takes about 15 ms, in which the kernel waits for all CPUs: a podman client,
which takes longer than that until it starts a process, is started first and moved with the runner. To kill the tree,
the runner leaves the group, kills the whole group (`cgroup.kill`, atomic: no fork escapes), and joins it again before
the next start. If a runner died, its tree remains in the group; the next runner, still outside, finds and kills it
there, regardless of changes to environment, session or parents. If a prerequisite is missing (v1 only, no permission, a
kernel before 5.14), all calls do nothing, and only the other methods of process_tree apply. Knows no states, and no
files but the kernel's.
"""

from __future__ import annotations

import os

MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")  # a pure v2 host, and one that has both
PREFIX = "procguard-"


def own_group() -> str:
    """The directory of this process's v2 group; "" if there is none or it is not visible."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            paths_found = [line.rstrip("\n")[3:] for line in file if line.startswith("0::")]
    except OSError:
        return ""
    if not paths_found or "/.." in paths_found[0]:
        return ""
    for mount in MOUNTS:
        if os.path.exists(os.path.join(mount, "cgroup.controllers")):
            return os.path.normpath(mount + paths_found[0])
    return ""


def directories_of(pid: int) -> list[str]:
    """The directories of all visible control groups, of either version, that contain the process."""
    found = []
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                number, controllers, path = line.rstrip("\n").split(":", 2)
                names = [controllers.replace("name=", "")] if number != "0" else ["unified", ""]
                paths = [os.path.normpath(f"{MOUNTS[0]}/{name}/{path}") for name in names]
                found += [one for one in paths if "/.." not in path and os.path.isdir(one)][:1]
    except (OSError, ValueError):
        pass
    return found


class WorkerGroup:
    """One worker's group. `path`: "" if there is none; the cookie in its name makes it unique."""

    def __init__(self, cookie: str = "", former_path: str = "") -> None:
        """Create the group below this process's own group; without a cookie, none is created. `former_path`: the group
        of a previous runner."""
        self._name = PREFIX + cookie[:16]
        self._home = own_group()
        self._inside = False
        self.path = self._make() if cookie else ""
        self._former = former_path if former_path != self.path and self._is_ours(former_path) else ""

    def _is_ours(self, path: str) -> bool:
        return os.path.basename(path) == self._name and path.startswith(MOUNTS)

    def _make(self) -> str:
        if not self._home or os.path.basename(self._home) == self._name:
            return ""
        path = os.path.join(self._home, self._name)
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            pass
        except OSError:
            return ""
        usable = all(
            os.access(file, os.W_OK)
            for file in (_procs(path), os.path.join(path, "cgroup.kill"), _procs(self._home))
        )  # fmt: skip
        if not usable:
            _remove(path)
            return ""
        return path

    def members(self) -> list[int]:
        """The pids inside, without this process. Zombies are included until they are reaped."""
        found: set[int] = set()
        for path in (self.path, self._former):
            found.update(_read_pids(path) if path else ())
        return sorted(found - {0, os.getpid()})  # 0: of another pid namespace

    def join(self) -> None:
        """Join the group, so that new children are created inside. If this fails, `members` does not include them."""
        if self.path and not self._inside:
            self._inside = _write(_procs(self.path), b"0")

    def join_with_descendants(self) -> None:
        """Join the group with the processes that have already been started. Repeated until no further one is found,
        because one outside may start another until it is moved."""
        if self._inside:
            return
        self.join()
        moved: set[int] = set()
        while self._inside and (outside := set(_descendants(os.getpid())) - moved):
            for pid in outside:
                _write(_procs(self.path), b"%d" % pid)
            moved |= outside

    def kill(self) -> None:
        """SIGKILL to everything inside, at one instant. This process leaves the group first."""
        if self._inside and not self._step_out():
            return
        for path in (self.path, self._former):
            if path and path != own_group():
                _write(os.path.join(path, "cgroup.kill"), b"1")

    def remove(self) -> None:
        """Leave the group and remove its directory; if processes remain inside, it is kept for the next runner."""
        if self._inside and not self._step_out():
            return
        for path in (self.path, self._former):
            if path:
                _remove(path)

    def _step_out(self) -> bool:
        self._inside = not _write(_procs(self._home), b"0")
        return not self._inside


def _procs(path: str) -> str:
    return os.path.join(path, "cgroup.procs")


def _read_pids(path: str) -> list[int]:
    try:
        with open(_procs(path), "rb") as file:
            return [int(line) for line in file]
    except (OSError, ValueError):
        return []


def _descendants(pid: int) -> list[int]:
    """The pids below a process, without a scan of all processes of the host."""
    found = [pid]
    for one in found:
        try:
            for thread in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{thread}/children", "rb") as file:
                    found += [int(word) for word in file.read().split()]
        except OSError:  # it has ended
            pass
    return found[1:]


def _write(path: str, data: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True


def _remove(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass
