"""Prerequisites of podman on this host: its version, those of unprivileged users, and GPUs by CDI.

Reads files of the host and runs `podman --version`; starts no container.
"""

from __future__ import annotations

import os

GPU_KIND = "nvidia.com/gpu"
CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")  # podman's own choice
MAX_CDI_BYTES = 1024 * 1024
ASK_S = 10.0
# What an unprivileged user may lack; the messages are in procguard/deploy/inventory/containers.py.
NO_IDS, NO_ID_TOOLS, NO_RUNTIME_DIR, NO_NAMESPACE = "subuid", "uidmap", "runtime_dir", "user_namespace"
_NAME = r"""(?m)^[\s-]*["']?name["']?\s*:\s*["']?([A-Za-z0-9_.:-]+)"""
_NAME_IN_JSON = r'"name"\s*:\s*"([A-Za-z0-9_.:-]+)"'
_KIND = rf"""(?m)["']?kind["']?\s*:\s*["']?{GPU_KIND}["']?\s*(,|$)"""


def version() -> str:
    """Podman's version, such as 4.3.1; "" if it is missing or does not answer."""
    import subprocess  # imported here, as below, because a runner needs only runtime_directory

    try:
        done = subprocess.run(["podman", "--version"], capture_output=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace").strip().rpartition(" ")[2][:40] if done.returncode == 0 else ""


def lacks(env: dict[str, str]) -> list[str]:
    """The prerequisites that this process's user lacks; empty for root. `env`: podman's environment."""
    if os.geteuid() == 0:
        return []
    import shutil

    found = []
    if not all(shutil.which(tool, path=env.get("PATH")) for tool in ("newuidmap", "newgidmap")):
        found.append(NO_ID_TOOLS)
    if not all(_has_range(path) for path in ("/etc/subuid", "/etc/subgid")):
        found.append(NO_IDS)
    if not runtime_directory(env):
        found.append(NO_RUNTIME_DIR)
    if not found and not _makes_namespaces(env):
        found.append(NO_NAMESPACE)
    return found


def _makes_namespaces(env: dict[str, str]) -> bool:
    """Whether podman can make the user namespace that it needs; kernels, chroots and containers may forbid it."""
    import subprocess

    words = ["podman", "unshare", "/bin/true"]
    given = {**env, "XDG_RUNTIME_DIR": runtime_directory(env)}
    try:
        return (
            subprocess.run(words, env=given, cwd="/", capture_output=True, timeout=ASK_S, check=False).returncode == 0
        )
    except (OSError, subprocess.SubprocessError):
        return True  # a missing podman, or one that does not answer, is not a missing namespace


def runtime_directory(env: dict[str, str]) -> str:
    """The value of XDG_RUNTIME_DIR for an unprivileged user; "" if there is no such directory. SSH sessions often lack
    the variable, and the directory is removed at the end of the last session."""
    for path in (env.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}"):
        if path and os.path.isdir(path) and os.access(path, os.W_OK):
            return path
    return ""


def gpus() -> list[str]:
    """Names of the GPUs available to containers: "0", "all", …; empty without a CDI specification."""
    found: dict[str, None] = {}
    for directory in CDI_DIRECTORIES:
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in names:
            if name.endswith((".json", ".yaml", ".yml")):
                found.update(dict.fromkeys(_devices(os.path.join(directory, name))))
    return list(found)


def _devices(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_CDI_BYTES)
    except OSError:
        return []
    import re

    if not re.search(_KIND, text):
        return []
    return re.findall(_NAME_IN_JSON if path.endswith(".json") else _NAME, text)


def _has_range(path: str) -> bool:
    """Whether the user has subordinate ids: a line "name:first:count", or with the uid in place of the name."""
    import pwd

    uid = os.geteuid()
    try:
        users = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        users = {str(uid)}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return any(line.split(":")[0] in users for line in file)
    except OSError:
        return False
