"""Workers in containers, as declared in an inventory: requirements of their hosts. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from procguard.deploy.inventory.model import Host
from procguard.json_types import Json

OLDEST = (4, 0)  # the first version with --log-driver=passthrough
NEXT = "install it there: apt-get install podman, or dnf install podman"


class HostLack(NamedTuple):
    """A requirement of its containers that a host does not meet, and the next step."""

    problem: str
    next_step: str


def asked_of(host: Host) -> Json:
    """The part of the first message to the host that asks for podman, if podman is required."""
    return {"podman": True} if _workers(host) else {}


def used_by(host: Host) -> str:
    """The workers with a container: "w1, w2, w3 and 4 more"; "" if there are none."""
    return _listed([one.worker_id for one in _workers(host)])


def findings(host: Host, found: Mapping[str, Any]) -> list[HostLack]:
    """The requirements that the host does not meet according to its report; empty if it meets all."""
    if not asked_of(host):
        return []
    version, user = str(found.get("podman") or ""), str(found.get("podman_user") or "")
    if not version:
        one = len(_workers(host)) == 1
        return [HostLack(f"no podman on this host, which {used_by(host)} need{'s' if one else ''}", NEXT)]
    wrong = []
    if _number(version) < OLDEST:
        wrong.append(
            HostLack(
                f"podman {version} is too old for containers", "install 4.3 or newer, of the distribution's backports"
            )
        )
    lacks = found.get("podman_lacks") or []
    if "uidmap" in lacks:
        wrong.append(
            HostLack(
                f"podman of user {user} needs newuidmap and newgidmap",
                "install them there: apt-get install uidmap, or dnf install shadow-utils; or deploy as root",
            )
        )
    if "subuid" in lacks:
        wrong.append(
            HostLack(
                f"user {user} has no subordinate ids for podman (/etc/subuid, /etc/subgid)",
                f"as root there: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )
        )
    if "runtime_dir" in lacks:
        wrong.append(
            HostLack(
                f"user {user} has no directory /run/user/… once it has logged out, and podman needs it",
                f"as root there: loginctl enable-linger {user}",
            )
        )
    if "user_namespace" in lacks:
        wrong.append(
            HostLack(
                f"podman of user {user} cannot make a user namespace on this host",
                f"see why as {user} there: podman info; or deploy as root",
            )
        )
    fenced = [one.worker_id for one in _workers(host) if _is_fenced(host, one.spec)]
    if user and fenced:
        wrong.append(
            HostLack(
                f"{_listed(fenced)}: on_partition: fence and gangs need an agent that runs as root, and this is {user}",
                "deploy as root (ansible_become), or use on_partition: keep and no gang",
            )
        )
    with_gpus = [one.worker_id for one in _workers(host) if one.spec.get("gpus")]
    if with_gpus and "podman_gpus" in found and not found["podman_gpus"]:
        wrong.append(
            HostLack(
                f"no CDI specification of nvidia.com/gpu on this host, which {_listed(with_gpus)} "
                f"need{'s' if len(with_gpus) == 1 else ''}",
                "as root there: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
            )
        )
    return wrong


def _workers(host: Host) -> list[Any]:
    return [one for one in host.workers if one.spec.get("container")]


def _is_fenced(host: Host, spec: Json) -> bool:
    policy = host.policies.get(str(spec.get("group") or ""))
    return spec.get("on_partition") == "fence" or (policy is not None and policy.restart == "gang")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
