"""Workers in containers, as declared in an inventory: requirements of their hosts. Pure."""

from __future__ import annotations

from typing import Any

from procguard.deploy.inventory.model import Host

NEXT = "install it there: apt-get install podman, or dnf install podman"


def asked_of(host: Host) -> dict[str, Any]:
    """For the first message to the host: whether podman has to be there."""
    return {"podman": True} if any(one.spec.get("container") for one in host.workers) else {}


def problem(host: Host, found: dict[str, Any]) -> str:
    """ "no podman on this host, …" after it was asked; "" = none."""
    if not asked_of(host) or found.get("podman"):
        return ""
    names = [one.worker_id for one in host.workers if one.spec.get("container")]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"no podman on this host, which {shown} need{'s' if len(names) == 1 else ''}"
