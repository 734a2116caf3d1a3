"""Performs one task for a worker with the rights of the worker's user, in a separate process.

The agent runs this file as a script (`run`). It starts with the agent's rights, reads the agent's files about the
worker, becomes the worker's user, and only then accesses anything that a job can change. Processes started here end
with it, even if they changed their process group or session, because this process is their subreaper.

In: {"worker_dir": "…", "attempt": 3, "pid": 1234, "pid_start": 5678, "timeout_s": 3.0} and one of
    {"check": {"type": "exec", "command": "…", "argv": […]}}, or another check's fields   -> [healthy, reason]
    {"stat": "/path"}                                -> [mtime_ns, size, inode], or its error as text
    {"output": ["py-spy", …], "folders": "PATH", "max_bytes": n}                          -> its output
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import Any, Optional

if __name__ == "__main__":  # -I omits the script's directory from the path; this adds the release's
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from remote_agent.protocol import reasons
from remote_agent.protocol.reasons import because

SCRIPT = os.path.abspath(__file__)
STARTS_WITHIN_S = 10.0  # sufficient on a busy machine
ENDS_WITHIN_S = 1.0


class Failed(Exception):
    """There is no answer; the text gives the reason."""


def start(python: str, script: str) -> "subprocess.Popen[bytes]":
    """Start `script` in a process and session of its own, without the agent's environment; pipes are unbuffered."""
    import subprocess

    return subprocess.Popen(
        [python, "-I", "-S", script],
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    )


def run(python: str, request: "dict[str, Any]") -> "Any":
    """Perform the request; returns within timeout_s and a few seconds. Raises Failed."""
    import subprocess

    process = start(python, SCRIPT)
    try:
        limit_s = float(request["timeout_s"]) + STARTS_WITHIN_S + ENDS_WITHIN_S
        said, _ = process.communicate(json.dumps(request).encode(), limit_s)
        answer = json.loads(said)
        if isinstance(answer, list) and len(answer) == 2 and isinstance(answer[1], dict):
            answer[1] = reasons.read(answer[1])
        return answer
    except subprocess.TimeoutExpired:
        raise Failed("the process that does it for the worker's user does not answer; was it stopped?") from None
    except ValueError:
        raise Failed(f"the process that does it for the worker's user ended with {process.returncode}") from None
    finally:
        if process.poll() is None:
            _kill_group(process.pid)
            try:
                process.communicate(timeout=ENDS_WITHIN_S)
            except (subprocess.TimeoutExpired, ValueError):  # blocked in the kernel: reaped once it ends
                pass


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)  # not reaped yet, so that the pid cannot be reused
    except (ProcessLookupError, PermissionError):
        pass


# ---------------------------------------------------------------------------------------------- in the process


def main() -> int:
    request = json.loads(sys.stdin.buffer.read())
    task = _load(request)
    worker = _Worker(request)
    worker.become_its_user()
    from remote_agent.system import processes

    processes.become_subreaper()
    try:
        answer = task(request, worker)
    finally:
        end_descendants()
    if isinstance(answer, tuple):  # the result of a check
        answer = [answer[0], reasons.fields("reason", answer[1])]
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    return 0


def _load(request: "dict[str, Any]") -> "Any":
    """The task, with all its imports loaded, because the user may be unable to read the release or the interpreter."""
    from remote_agent.runner import environment  # noqa: F401
    from remote_agent.runner import launch as child  # noqa: F401
    from remote_agent.system import identity, paths, processes  # noqa: F401

    if "stat" in request:
        return lambda request, worker: _stat(request["stat"])
    if "output" in request:
        import select  # noqa: F401
        import subprocess  # noqa: F401

        return lambda request, worker: output(
            request["output"], request["folders"], request["timeout_s"], request["max_bytes"]
        )
    if request["check"]["type"] == "exec":
        return lambda request, worker: worker.run_command(request["check"], request["timeout_s"])
    from remote_agent.health import probes

    probes.load()
    return _probe


def _probe(request: "dict[str, Any]", _worker: "_Worker") -> "Any":
    from types import SimpleNamespace

    from remote_agent.health import probes

    try:
        return probes.probe(SimpleNamespace(**request["check"]), request["timeout_s"])
    except Exception as exc:  # any exception counts as a failed check
        return False, reasons.Reason(f"{type(exc).__name__}: {exc}")


class _Worker:
    """The agent's files about the worker, read before any right is given up."""

    def __init__(self, request: "dict[str, Any]") -> None:
        from remote_agent.system import paths

        self._request = request
        spec: "Any" = paths.read_json(paths.spec_file(request["worker_dir"])) if request.get("worker_dir") else None
        self._spec: "dict[str, Any]" = spec or {}
        self._start: "dict[str, Any]" = self._spec.get("start") or {}
        self._run_as: "Optional[dict[str, Any]]" = self._start.get("run_as")
        base: "Any" = paths.read_json(paths.base_env_file(request["worker_dir"])) if spec else None
        self._base: "dict[str, str]" = base or {}

    def become_its_user(self) -> None:
        from remote_agent.system import identity

        if self._run_as:
            self._base = identity.base_environment(self._run_as, self._base)
            identity.become(self._run_as)

    def run_command(self, check: "dict[str, Any]", timeout_s: float) -> "Any":
        """An exec check: exit code 0 within `timeout_s` is healthy."""
        from remote_agent.runner import launch as child

        command, deadline = check["command"], time.monotonic() + timeout_s
        try:
            environment = self._environment()
            launch = child.Launch(list(check["argv"]), str(self._spec.get("cwd") or "/"), environment, os.devnull)
            pid, word = child.start(launch)
        except (child.NotStarted, OSError) as exc:
            return False, because("health.command_not_run", command=command, why=reasons.of_exception(exc))
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                return False, because("health.command_slow", command=command, limit_s=timeout_s)
            time.sleep(0.005)
        outcome = child.word(word, launch) if word >= 0 else None
        if outcome is not None and outcome[0] != child.EXECUTED:
            return False, because("health.command_not_run", command=command, why=outcome[1])
        if os.WIFSIGNALED(status):
            return False, because("health.command_signal", command=command, signal=os.WTERMSIG(status))
        return os.WEXITSTATUS(status) == 0, because("health.command", command=command, code=os.WEXITSTATUS(status))

    def _environment(self) -> "dict[str, str]":
        """The environment of a check, which is that of a hook: the specification's, without its setup lines. These are
        not run again during a running job; the variables that they set are taken from the job's own initial
        environment, if its user may read it."""
        from remote_agent.runner import environment

        own = {str(name): str(value) for name, value in (self._spec["spec"].get("env") or {}).items()}
        base = {"PYTHONUNBUFFERED": "1", **self._base}
        env, scripts = environment.compose(base, self._start, own, str(self._spec.get("cwd") or ""), True)
        if self._start.get("setup") or scripts:
            env.update(environment_of(self._request.get("pid"), self._request.get("pid_start")))
        env.update({str(name): str(value) for name, value in (self._spec.get("env") or {}).items()})
        env.update(
            PROCGUARD_WORKER_ID=str(self._spec.get("worker_id", "")),
            PROCGUARD_ATTEMPT=str(self._request.get("attempt", "")),
            PROCGUARD_EPOCH=str(self._spec.get("epoch", 0)),
        )
        return env


def environment_of(pid: "Any", start: "Any") -> "dict[str, str]":
    """The initial environment of a process; {} if this user may not read it. Without ProcGuard's cookie, because a
    check does not belong to the process tree that is terminated."""
    from remote_agent.system import processes

    try:
        with open(f"/proc/{int(pid)}/environ", "rb") as file:
            entries = file.read(processes.MAX_ENVIRON_BYTES).split(b"\0")
        found = processes.read_process(int(pid))
    except (OSError, TypeError, ValueError):
        return {}
    if found is None or found.start != start:
        return {}
    pairs = (entry.partition(b"=") for entry in entries if b"=" in entry)
    values = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name}
    values.pop(processes.COOKIE_VARIABLE, None)
    return values


def _stat(path: str) -> "Any":
    try:
        found = os.stat(path)
    except (OSError, ValueError) as exc:
        return getattr(exc, "strerror", None) or str(exc)
    return [found.st_mtime_ns, found.st_size, found.st_ino]


def output(argv: "list[str]", folders: str, timeout_s: float, max_bytes: int) -> str:
    """The output of a program in one of these folders; "" if none has it."""
    import select
    import subprocess

    program = next((path for path in _candidates(argv[0], folders) if os.access(path, os.X_OK)), "")
    if not program:
        return ""
    deadline = time.monotonic() + timeout_s
    process = subprocess.Popen(
        [program, *argv[1:]],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = b""
    while len(said) < max_bytes:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
            return said.decode("utf-8", "replace") + f"no answer within {timeout_s:.0f} s"
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            break
        said += data
    return said[:max_bytes].decode("utf-8", "replace")


def _candidates(name: str, folders: str) -> "list[str]":
    return [os.path.join(one, name) for one in folders.split(os.pathsep) if one.startswith("/")]


def end_descendants() -> None:
    """Send SIGKILL to every descendant until none is left or the rest cannot be killed."""
    from remote_agent.system import processes

    deadline = time.monotonic() + ENDS_WITHIN_S
    while _reap() and time.monotonic() < deadline:
        processes.signal_all(processes.members_below(os.getpid()), signal.SIGKILL)
        time.sleep(0.005)


def _reap() -> bool:
    """Reap children. Returns whether any are left, including orphans, which this subreaper adopts."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return True
        except ChildProcessError:
            return False


if __name__ == "__main__":
    sys.exit(main())
