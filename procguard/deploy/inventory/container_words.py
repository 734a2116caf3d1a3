"""Translates `docker run` and `podman run` into the equivalent keys of a worker. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from procguard.json_types import Json

# Options without a value: ignored ones, which are the default or have no meaning for a worker; and kept ones.
_FLAGS = frozenset({"--detach", "--rm", "--interactive", "--tty", "--replace", "--quiet", "--publish-all"})
_SWITCHES = frozenset({"--privileged", "--init", "--read-only", "--no-healthcheck", "--oom-kill-disable"})
_SHORT_FLAGS = re.compile(r"-[ditPq]+$")
_LONG = {"-v": "--volume", "-e": "--env", "-p": "--publish", "-u": "--user", "-w": "--workdir", "-h": "--hostname",
         "-l": "--label", "-m": "--memory", "-c": "--cpu-shares", "--net": "--network"}  # fmt: skip
_KEYS = {"--network": "network", "--user": "user", "--shm-size": "shm_size", "--pull": "pull"}
_DROPPED = frozenset({"--name", "--restart", "--log-driver", "--log-opt", "--cidfile", "--pid", "--env-file"})
_PLAIN = re.compile(r"[A-Za-z0-9_./…-](?:[A-Za-z0-9_./:@=+…-]*[A-Za-z0-9_./@=+…-])?")
_NO_TEXT = re.compile(r"[\d.:]+|true|false|null|yes|no|on|off|~", re.IGNORECASE)


def declared_by(engine: str, words: Iterable[str]) -> str:
    """The arguments of `docker run` as keys of a worker: "container: {image: img, mounts: [/d:/d]}, command: [run]".

    Values of variables are omitted. An image of Docker's registry gets its full name, which podman requires."""
    rest, container, more = list(words), Json(), Json()
    mounts, options, env = list[str](), list[str](), dict[str, str]()
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).partition("=")
        name = _LONG.get(name, name)
        if name in _FLAGS or _SHORT_FLAGS.fullmatch(name):
            continue
        if name in _SWITCHES:
            options.append(name + equals + value)
            continue
        value = value if equals else rest.pop(0) if rest else ""
        if name in _KEYS:
            container[_KEYS[name]] = value
        elif name == "--volume":
            mounts.append(value)
        elif name == "--env":
            env[value.partition("=")[0]] = "…"
        elif name == "--workdir":
            more["working_dir"] = value
        elif name == "--gpus":
            more["gpus"] = value if value.isdecimal() else "N"
        elif name not in _DROPPED and name.startswith("--"):
            options.append(f"{name}={value}")
    image = rest.pop(0) if rest else "IMAGE"
    if any(option.startswith("--publish=") for option in options):
        container.setdefault("network", "bridge")  # on the host's own network no ports need to be published
    container = {"image": _whole_name(image) if engine == "docker" else image, **container}
    container.update({name: found for name, found in (("mounts", mounts), ("options", options)) if found})
    keys = {"container": container, "command": rest, "env": env, **more}
    return ", ".join(f"{name}: {_flow(value, name)}" for name, value in keys.items() if value)


def _whole_name(image: str) -> str:
    first, slash, _ = image.partition("/")
    if not slash:
        return image if image == "IMAGE" else f"docker.io/library/{image}"
    return image if "." in first or ":" in first or first == "localhost" else f"docker.io/{image}"


def _flow(value: Any, key: str = "") -> str:
    """The value in YAML's flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(one, name)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    if key == "gpus" or (_PLAIN.fullmatch(value) and not _NO_TEXT.fullmatch(value)):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
