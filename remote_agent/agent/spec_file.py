"""Turns an Assignment into spec.json: the command, the directory, the digest that a running process depends on, and
under `start` everything else for a start, with users, sizes and paths resolved on this host.

Owns the interpretation of a specification on this host. Knows neither the manager nor processes: the runner only
executes spec.json.
"""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Callable

from remote_agent.agent import rlimits as limits_module
from remote_agent.health import schedule
from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.messages import METRIC_PREFIX, Assignment, Hook, WorkerSpec, encode, launch_digest
from remote_agent.protocol.reasons import because, of_exception
from remote_agent.protocol.reasons import fields as reason_fields
from remote_agent.system.paths import absolute

MAX_CAUSES = 50
MAX_PATH_CHARS = 4096
LONGEST_HOOK_S = 7 * 86400.0
ROOT_FOR_LEASE = (
    "on_partition: fence and gangs need an agent that runs as root, for only root can have the kernel end a container "
    "together with its runner; deploy the agent as root, or use on_partition: keep and no gang"
)
LARGEST_TERMINAL = 1000
ULIMITS = {"memory": "as", "cpu_s": "cpu"}  # podman's names, where they differ
_OUTPUT = "output goes unbroken into the worker's log"
# Options that name, keep or hide a container would break the guarantee of a single instance.
OWN_OPTIONS = {
    "--name": "it is named after fleet and worker", "--replace": "it always is", "--detach": "it always is",
    "--rm": "it is removed after its end", "--restart": "write restart: beside container",
    "--log-driver": _OUTPUT, "--log-opt": _OUTPUT, "--tty": f"podman refuses a tty where {_OUTPUT}",
    "--interactive": "there is no input", "--attach": "nobody is attached", "--pidfile": "it reads them",
    "--conmon-pidfile": "it reads them", "--cidfile": "it finds it by its name", "--pod": "a worker is one container",
    "--pid": "its processes are ended with their namespace", "--env": "write env: beside container",
    "--env-file": "write env_file: beside container", "--env-host": "write env: beside container",
    "--workdir": "write working_dir: beside container", "--pull": "write pull: below container",
    "--sig-proxy": "signals are sent to the job itself", "--detach-keys": "nobody is attached",
    "--preserve-fds": "nothing is handed over", "--rootfs": "write image: below container",
}  # fmt: skip


def resolve(assignment: Assignment, default_dir: str) -> dict[str, Any]:
    """Returns the content of spec.json: the assignment's fields and `argv`, `cwd`, `launch_digest`, `error`, `start`.

    `default_dir`: where a worker without a working_dir runs, and what a relative one is relative to.
    `error`: why it cannot be run at all ("" if it can). `start`: present only if the specification contains more than a
    command.
    """
    spec = assignment.spec
    if spec.container is not None:
        return _in_container(assignment, default_dir)
    argv, error = command_words(spec)
    run_as: Optional[dict[str, Any]] = None
    try:
        run_as = user(spec.user)
    except ValueError as exc:
        error = error or of_exception(exc)
    home = run_as["home"] if run_as else ""
    cwd = working_directory(spec.working_dir, home or default_dir, home)
    content = encode(assignment)
    content.update(argv=argv, cwd=cwd, launch_digest=launch_digest(spec))
    try:
        start = beyond_the_command(spec, cwd, home)
    except ValueError as exc:
        error, start = error or of_exception(exc), {}
    content.update(reason_fields("error", error) if error else {"error": ""})
    if run_as:
        start["run_as"] = run_as
    if start:
        content["start"] = start
    return content


def _in_container(assignment: Assignment, default_dir: str) -> dict[str, Any]:
    """`resolve` for a worker with a container: `argv` stays empty, so that a runner without support for containers
    refuses it; runner/task/container.py builds podman's arguments from `start.container`."""
    spec, container = assignment.spec, assignment.spec.container
    assert container is not None
    words, error = command_words(spec) if spec.command else ([], "")
    cwd = working_directory(spec.working_dir, default_dir)
    try:
        start = beyond_the_command(spec, cwd)
    except ValueError as exc:
        error, start = error or str(exc), {}
    error = error or "; ".join(container_mistakes(spec))
    if assignment.lease_s is not None and os.geteuid() != 0 and not error:
        error = f"container: {ROOT_FOR_LEASE}"
    options = [f"--network={container.network or 'host'}"]
    options += [f"--volume={absolute(mount, cwd)}" for mount in container.mounts]
    options += [f"--volume={cwd}:{cwd}", f"--workdir={cwd}"] if spec.working_dir else []
    options += [f"--user={container.user}"] if container.user else []
    options += [f"--shm-size={container.shm_size}"] if container.shm_size else []
    options += [f"--umask={spec.umask}"] if spec.umask else []
    for name, _constant, value in start.pop("rlimits", []):
        options.append(f"--ulimit={ULIMITS.get(name, name)}={value}:{value}")
    limits = start.pop("group_limits", {})
    options += [f"--memory={int(limits['memory_max'])}"] if "memory_max" in limits else []
    options += [f"--cpus={limits['cpu_max']:g}"] if "cpu_max" in limits else []
    start.pop("umask", None)
    start["container"] = {
        "image": container.image,
        "command": words,
        "options": [*options, *container.options],
        "pull": container.pull,
        "worker": assignment.worker_id,
    }
    content = encode(assignment)
    content.update(argv=[], cwd=cwd, launch_digest=launch_digest(spec), error=error, start=start)
    return content


def container_mistakes(spec: WorkerSpec) -> list[str]:
    """The mistakes in `container` that do not depend on the host."""
    container = spec.container
    if container is None:
        return []
    found = []
    if not container.image.strip() or container.image.startswith("-"):
        found.append(
            f"container.image {container.image!r}: expected the name of an image, like docker.io/library/nginx"
        )
    for name in ("venv", "conda", "setup", "user"):
        if getattr(spec, name):
            hint = "container.user is the user inside" if name == "user" else "it belongs into the image"
            found.append(f"{name} has no meaning beside container: {hint}")
    if spec.stderr == "separate":
        found.append("stderr: separate is not supported beside container")
    if spec.tty is not None:
        found.append(
            "tty is not supported beside container: podman refuses a tty where output goes into the worker's log"
        )
    for mount in container.mounts:
        parts = mount.split(":")
        if len(parts) not in (2, 3) or not all(parts) or not parts[1].startswith("/"):
            found.append(f"container.mounts {mount!r}: expected HOST:CONTAINER or HOST:CONTAINER:ro")
    for option in container.options:
        name = option.partition("=")[0]
        if not option.startswith("--") or any(letter.isspace() for letter in name):
            found.append(f"container.options {option!r}: expected one word each, like --ipc=host")
        elif name in OWN_OPTIONS:
            found.append(f"container.options: {name} is the runner's own; {OWN_OPTIONS[name]}")
    if "\0" in "".join([container.image, container.network, container.user, container.shm_size, *container.options]):
        found.append("container: a NUL character cannot be part of it")
    return found


def command_words(spec: WorkerSpec) -> tuple[list[str], str]:
    """(argv, error message); one of them is empty."""
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
    """The mistakes that do not depend on the host: "limits.memory 'lots': expected bytes, …"."""
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
    limit = spec.max_run_s
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
        found.append(f"max_run_s {limit!r}: expected seconds above 0")
    never_on = spec.restart.never_on
    for word in never_on[: MAX_CAUSES + 1]:
        if not word.replace("_", "a").isalnum() or not word.isascii() or word != word.lower() or len(word) > 40:
            found.append(f"restart.never_on {word[:60]!r}: expected causes of failure, like import_error")
    if len(never_on) > MAX_CAUSES:
        found.append(f"restart.never_on: more than {MAX_CAUSES} causes")
    progress = spec.restart.progress
    if progress.startswith(METRIC_PREFIX) and progress[len(METRIC_PREFIX) :] not in spec.metrics:
        found.append(f"restart.progress {progress[:60]!r}: metrics declares no such name")
    if "\0" in progress or len(progress) > MAX_PATH_CHARS:
        found.append(f"restart.progress: expected metrics.NAME or a path of at most {MAX_PATH_CHARS} characters")
    texts = [spec.venv, spec.conda, spec.user, *spec.setup]
    texts += [spec.env_file] if isinstance(spec.env_file, str) else spec.env_file
    if any("\0" in text for text in texts):
        found.append("env_file, venv, conda, setup, user: a NUL character cannot be part of them")
    return found + container_mistakes(spec) + terminal_mistakes(spec) + schedule.mistakes(spec)


def terminal_mistakes(spec: WorkerSpec) -> list[str]:
    """The mistakes in `tty`."""
    if spec.tty is None:
        return []
    found = []
    for name in ("rows", "columns"):
        size = getattr(spec.tty, name)
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= LARGEST_TERMINAL:
            found.append(f"tty.{name} {size!r}: expected a number from 1 to {LARGEST_TERMINAL}")
    if spec.stderr == "separate":
        found.append("tty and stderr: separate: a terminal has one stream; remove one of them")
    return found


def hook_words(hook: Hook, kind: str) -> dict[str, Any]:
    """A hook in the form that the runner executes; `shown` is for messages."""
    words = hook.command if isinstance(hook.command, list) else ["/bin/sh", "-c", hook.command]
    if not words or not any(word.strip() for word in words[-1:]):
        raise ValueError(f"a {kind} hook has no command")
    if isinstance(hook.timeout_s, bool) or not isinstance(hook.timeout_s, (int, float)) or not hook.timeout_s > 0:
        raise ValueError(f"{kind}: timeout_s {hook.timeout_s!r}: expected seconds above 0")
    return {"argv": words, "shown": shown(hook.command)[:200], "timeout_s": min(hook.timeout_s, LONGEST_HOOK_S)}


def user(name: str) -> Optional[dict[str, Any]]:
    """The user to switch to: ids, groups, home and shell. None: no switch. Raises ValueError."""
    if not name:
        return None
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise ValueError(because("start.no_user", user=name)) from None
    if os.geteuid() != 0:
        if found.pw_uid == os.geteuid():
            return None
        own = pwd.getpwuid(os.geteuid()).pw_name
        raise ValueError(because("start.other_user", user=name, own=own))
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
