"""Local inspection of a host without the manager: `status` and `tail`. Reads files and locks only.

Owns the printed messages. Each error is one line: what, where, what to do next. Changes nothing.
"""

from __future__ import annotations

import os
import sys
import time

from remote_agent.protocol.hints import Any, Optional
from remote_agent.system import paths, state_files

READ_BYTES = 64 * 1024
LINE_BYTES = 512  # bytes of a log read per requested line
POLL_INTERVAL_S = 0.1


class Trouble(Exception):
    """A user error: the reason and the next step."""


def agent_dirs(given: Optional[str]) -> "list[str]":
    """The given directory, or those of all agents and launchers below the home. Raises Trouble if there is none."""
    if given:
        directory = os.path.abspath(given)
        read_agent(directory)
        return [directory]
    home = paths.procguard_home()
    if os.path.isdir(home) and not os.access(home, os.R_OK | os.X_OK):
        raise Trouble(f"{home} cannot be read as this user; run this as its owner ({_owner(home)})")
    found = []
    for directory, names, files in os.walk(home):
        if "agent.json" in files:
            found.append(directory)
        names[:] = sorted(name for name in names if name not in ("releases", "workers"))
    if not found:
        raise Trouble(
            f"no agent is installed below {home}; run this as the user that the host was deployed for, give --dir, "
            "or set PROCGUARD_HOME (`invoke deploy` on the managing machine installs one)"
        )
    return found


def read_agent(agent_dir: str) -> "dict[str, Any]":
    """The content of agent.json. Raises Trouble."""
    if not os.path.isdir(agent_dir):
        raise Trouble(f"there is no directory {agent_dir}; `python3 -m remote_agent status` without --dir finds agents")
    path = paths.agent_file(agent_dir)
    try:
        data = paths.read_json(path)
    except PermissionError:
        raise Trouble(f"{path} cannot be read as this user; run this as its owner ({_owner(agent_dir)})") from None
    except (OSError, ValueError) as exc:
        raise Trouble(f"{path} cannot be read: {exc}; deploy this host again") from exc
    if not isinstance(data, dict):
        raise Trouble(f"no agent.json in {agent_dir}; an agent's directory is PROCGUARD_HOME/FLEET/HOST")
    return data


def show_status(directories: "list[str]") -> int:
    """Print all agents. Returns the exit code: 2 if one could not be read; the others are still shown."""
    code = 0
    for number, agent_dir in enumerate(directories):
        if number:
            print()
        try:
            _show_agent(agent_dir, read_agent(agent_dir))
        except Trouble as exc:
            print(f"procguard: {exc}", file=sys.stderr)
            code = 2
    return code


def _show_agent(agent_dir: str, data: "dict[str, Any]") -> None:
    from remote_agent.agent.worker import load_workers
    from remote_agent.system.locks import lock_held

    runtime_dir = str(data.get("runtime_dir", ""))
    runs = "agent runs" if lock_held(paths.agent_lock(runtime_dir)) else "agent does not run"
    pid = _pid(runtime_dir) if runs == "agent runs" else ""
    print(f"{data.get('agent_id')} (fleet {data.get('fleet_id')}): {runs}{pid}")
    print(f"  directory {agent_dir}")
    print(f"  manager   {', '.join(str(url) for url in data.get('manager_urls') or [])}")
    if runs != "agent runs":
        print(f"  {_how_to_start(agent_dir, data)}")
    workers = load_workers(agent_dir, runtime_dir)
    if not workers:
        print("  no workers")
        return
    width = max(len(worker_id) for worker_id in workers)
    for worker_id, worker in sorted(workers.items()):
        child = worker.status.get("pid")
        words = [f"  {worker_id:{width}}  {worker.state:8}  attempt {worker.attempt}"]
        words += [f"pid {child}"] if child else []
        words += [] if worker.runner_alive() or worker.settled else ["(no runner!)"]
        words += [_printable(worker.reason)] if worker.reason else []
        print("  ".join(words))


def _printable(text: str) -> str:
    """The text without terminal control sequences: a reason may quote a job."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _how_to_start(agent_dir: str, data: "dict[str, Any]") -> str:
    """How to start the agent again. Its workers keep running without it."""
    if data.get("kind") == "launcher":
        return "its launcher has ended; what runs below is adopted when start_worker.sh is started again"
    installer = os.path.join(paths.current_release(agent_dir), "remote_agent", "install", "__main__.py")
    return f"to start it: {data.get('python') or 'python3'} {installer} start --dir {agent_dir}"


def show_tail(worker_id: str, directories: "list[str]", *, attempt: int, stream: str, lines: int, follow: bool) -> int:
    """Print the end of the log of the newest or the given attempt. Returns the exit code. Raises Trouble."""
    known: "list[str]" = []
    for agent_dir in directories:
        directory = paths.worker_dir(agent_dir, worker_id)
        if os.path.isdir(directory):
            return _tail_of(worker_id, directory, attempt, stream, lines, follow)
        known += _worker_ids(agent_dir)
    raise Trouble(f"no worker {worker_id} on this host; {_known(worker_id, known)}")


def _tail_of(worker_id: str, directory: str, attempt: int, stream: str, lines: int, follow: bool) -> int:
    try:
        os.listdir(paths.attempts_dir(directory))
    except PermissionError:
        raise Trouble(f"{directory} cannot be read as this user; run this as its owner ({_owner(directory)})") from None
    except OSError:
        pass  # no attempt yet
    attempts = paths.attempts_on_disk(directory)
    if not attempts:
        state = _state(directory)
        raise Trouble(f"{worker_id} has no log yet: {state}")
    if attempt and attempt not in attempts:
        kept = ", ".join(str(number) for number in attempts)
        raise Trouble(f"attempt {attempt} of {worker_id} is not on this host (kept: {kept}); the manager may have it")
    number = attempt or attempts[-1]
    if not os.path.exists(paths.log_file(directory, number, stream)):
        if stream == "err":
            raise Trouble(f"attempt {number} of {worker_id} has no separate error log (stderr: merge); leave --err out")
        raise Trouble(f"attempt {number} of {worker_id} wrote no log: {_state(directory)}")
    while True:
        _print_log(directory, number, stream, lines, follow)
        if not follow:
            return 0
        number, lines = paths.attempts_on_disk(directory)[-1], 10**6
        print(f"--- attempt {number} ---", flush=True)


def _print_log(directory: str, number: int, stream: str, lines: int, follow: bool) -> None:
    """Print the last `lines`; with `follow` also new output, until a newer attempt begins."""
    out = sys.stdout.buffer
    with open(paths.log_file(directory, number, stream), "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - READ_BYTES - LINE_BYTES * lines))
        parts = file.read(size).splitlines(keepends=True)
        out.write(b"".join(parts[-lines:] if lines else []))
        out.flush()
        while follow:
            newest = paths.attempts_on_disk(directory)[-1:]  # looked up before the last bytes are read
            data = file.read(READ_BYTES)
            out.write(data)
            out.flush()
            if data:
                continue
            if newest and newest[0] > number and os.path.exists(paths.log_file(directory, newest[0], stream)):
                return
            time.sleep(POLL_INTERVAL_S)


# ------------------------------------------------------------------------------------------------------- words


def _state(worker_directory: str) -> str:
    try:
        status = state_files.read(worker_directory)
    except (OSError, ValueError):
        status = None
    if status is None:
        return "it was never started; does its agent run? `python3 -m remote_agent status`"
    return ", ".join(str(part) for part in (status.get("state"), status.get("reason")) if part)


def _worker_ids(agent_dir: str) -> "list[str]":
    from remote_agent.agent.worker import load_workers

    try:
        return sorted(load_workers(agent_dir, ""))
    except OSError:
        return []


def _known(wanted: str, known: "list[str]") -> str:
    if not known:
        return "it has no workers at all; `python3 -m remote_agent status` shows its agents"
    import difflib

    near = difflib.get_close_matches(wanted, known, 1)
    some = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    return (f"did you mean {near[0]}? " if near else "") + f"Its workers: {some}"


def _pid(runtime_dir: str) -> str:
    try:
        with open(paths.agent_pid_file(runtime_dir), encoding="utf-8") as file:
            return f" (pid {int(file.read().split()[0])})"
    except (OSError, ValueError, IndexError):
        return ""


def _owner(path: str) -> str:
    import pwd

    try:
        uid = os.stat(path).st_uid
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
    except OSError:
        return "unknown"
