"""Turns an Assignment into spec.json: the words to execute, the directory, the digest a running child depends on, and
under `start` whatever else belongs to a start, with users, sizes and paths resolved on this host.

Owns the reading of a specification on this host. Knows neither the manager nor processes: the runner only executes
what stands in spec.json.
"""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Callable

from remote_agent.agent import rlimits as limits_module
from remote_agent.health import schedule
from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.messages import Assignment, Hook, WorkerSpec, encode, launch_digest
from remote_agent.system.paths import absolute

LONGEST_HOOK_S = 7 * 86400.0


def resolve(assignment: Assignment, default_dir: str) -> dict[str, Any]:
    """spec.json's content: the assignment's fields and `argv`, `cwd`, `launch_digest`, `error`, `start`.

    `default_dir`: where a worker without a working_dir runs, and what a relative one is relative to.
    `error`: why it cannot be run at all ("" if it can). `start`: only where the specification says more than a command.
    """
    spec = assignment.spec
    argv, error = command_words(spec)
    run_as: Optional[dict[str, Any]] = None
    try:
        run_as = user(spec.user)
    except ValueError as exc:
        error = error or str(exc)
    home = run_as["home"] if run_as else ""
    cwd = working_directory(spec.working_dir, home or default_dir, home)
    content = encode(assignment)
    content.update(argv=argv, cwd=cwd, launch_digest=launch_digest(spec), error=error)
    try:
        start = beyond_the_command(spec, cwd, home)
    except ValueError as exc:
        content["error"], start = error or str(exc), {}
    if run_as:
        start["run_as"] = run_as
    if start:
        content["start"] = start
    return content


def command_words(spec: WorkerSpec) -> tuple[list[str], str]:
    """(argv, error): one of them is empty."""
    command = spec.command
    if isinstance(command, list):
        words = [str(word) for word in command]
    elif spec.shell:
        words = ["/bin/sh", "-c", command] if command.strip() else []
    else:
        try:
            words = shlex.split(command)
        except ValueError as exc:
            return [], f"command cannot be split into words ({exc}): {command}"
    if not words or not words[0]:
        return [], "no command given"
    return words, ""


def working_directory(text: str, default_dir: str, home: str = "") -> str:
    return absolute(text, default_dir, home) if text else default_dir


def beyond_the_command(spec: WorkerSpec, cwd: str, home: str = "") -> dict[str, Any]:
    """`start` of spec.json, without the user. Raises ValueError naming the key that is wrong."""
    files = [spec.env_file] if isinstance(spec.env_file, str) else spec.env_file
    found: dict[str, Any] = {
        "env_files": [absolute(path, cwd, home) for path in files if path],
        "venv": absolute(spec.venv, cwd, home) if spec.venv else "",
        "conda": absolute(spec.conda, cwd, home) if "/" in spec.conda else spec.conda,
        "setup": list(spec.setup),
        "rlimits": limits_module.rlimits(spec.limits),
        "group_limits": limits_module.group_limits(spec.limits),
        "pre_start": [hook_words(hook, "pre_start") for hook in spec.pre_start],
        "post_stop": [hook_words(hook, "post_stop") for hook in spec.post_stop],
    }
    found = {name: value for name, value in found.items() if value}
    if spec.umask:
        found["umask"] = limits_module.umask(spec.umask)
    return found


def mistakes_in(spec: WorkerSpec) -> list[str]:
    """What is wrong with it on whatever host: "limits.memory 'lots': expected bytes, …"."""
    found = []
    checks: list[Callable[[], object]] = [
        lambda: limits_module.rlimits(spec.limits),
        lambda: limits_module.group_limits(spec.limits),
        lambda: limits_module.umask(spec.umask),
    ]
    checks += [lambda hook=hook: hook_words(hook, "pre_start") for hook in spec.pre_start]  # type: ignore[misc]
    checks += [lambda hook=hook: hook_words(hook, "post_stop") for hook in spec.post_stop]  # type: ignore[misc]
    for check in checks:
        try:
            check()
        except ValueError as exc:
            found.append(str(exc))
    texts = [spec.venv, spec.conda, spec.user, *spec.setup]
    texts += [spec.env_file] if isinstance(spec.env_file, str) else spec.env_file
    if any("\0" in text for text in texts):
        found.append("env_file, venv, conda, setup, user: a NUL character cannot be part of them")
    return found + schedule.mistakes(spec)


def hook_words(hook: Hook, kind: str) -> dict[str, Any]:
    """A hook as the runner executes it; `shown` is for messages."""
    words = hook.command if isinstance(hook.command, list) else ["/bin/sh", "-c", hook.command]
    if not words or not any(word.strip() for word in words[-1:]):
        raise ValueError(f"a {kind} hook has no command")
    if isinstance(hook.timeout_s, bool) or not isinstance(hook.timeout_s, (int, float)) or not hook.timeout_s > 0:
        raise ValueError(f"{kind}: timeout_s {hook.timeout_s!r}: expected seconds above 0")
    return {"argv": words, "shown": shown(hook.command)[:200], "timeout_s": min(hook.timeout_s, LONGEST_HOOK_S)}


def user(name: str) -> Optional[dict[str, Any]]:
    """Whom to become: ids, groups, home and shell. None: stay who we are. Raises ValueError."""
    if not name:
        return None
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise ValueError(f"user {name} does not exist on this host") from None
    if os.geteuid() != 0:
        if found.pw_uid == os.geteuid():
            return None
        own = pwd.getpwuid(os.geteuid()).pw_name
        raise ValueError(f"cannot run as user {name}: the agent runs as {own}, and only root may become somebody else")
    return {
        "name": name,
        "uid": found.pw_uid,
        "gid": found.pw_gid,
        "groups": sorted(os.getgrouplist(name, found.pw_gid)),
        "home": found.pw_dir,
        "shell": found.pw_shell or "/bin/sh",
    }


def shown(command: object) -> str:
    """A command as a person would type it."""
    return shlex.join(str(word) for word in command) if isinstance(command, list) else str(command)
