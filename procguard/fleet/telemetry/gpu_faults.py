"""GPU faults: their meaning, and which of them are fatal. Pure.

The numbers are those of NVIDIA's Xid catalogue (docs.nvidia.com/deploy/xid-errors). For an SXid, the driver itself logs
"Fatal" or "Non-fatal" (Fabric Manager's user guide). A number that is not in the table is never fatal.
"""

from __future__ import annotations

from procguard.i18n.reasons import Reason, because
from remote_agent.protocol.messages import GpuFault

ON_HOST = "host"  # a fault that belongs to no known GPU

# The GPU needs a reset, a reboot or a replacement before anything can run on it.
FATAL_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})
# Usually caused by the job: an out-of-bounds access, a hanging kernel, or termination by the driver after another
# error.
OF_JOBS = frozenset({13, 31, 32, 43, 45, 68, 69})
# Xids with a text of their own; all others are "not in the table".
KNOWN_XIDS = FATAL_XIDS | OF_JOBS | {63, 92, 94, 109, 154}
FATAL_KINDS = frozenset({"row_remap_failed"})


def is_fatal(fault: GpuFault) -> bool:
    if fault.kind == "xid":
        return fault.code in FATAL_XIDS
    if fault.kind == "sxid":
        return fault.detail.startswith("Fatal")
    return fault.kind in FATAL_KINDS


def meaning(fault: GpuFault) -> Reason:
    if fault.kind == "xid":
        means = because(f"xid.{fault.code}") if fault.code in KNOWN_XIDS else because("xid.unknown")
        return because("gpu.xid", code=fault.code, means=means)
    if fault.kind == "sxid":
        return because("gpu.sxid", code=fault.code, detail=fault.detail)
    if fault.kind == "ecc":
        return because("gpu.ecc", n=fault.count)
    if fault.kind == "row_remap_pending":
        return because("gpu.row_remap_pending")
    if fault.kind == "row_remap_failed":
        return because("gpu.row_remap_failed")
    return because("gpu.other_fault", kind=fault.kind)


def words(fault: GpuFault) -> Reason:
    """The text of a fault, including its GPU if there is one."""
    return meaning(fault) if fault.gpu is None else because("gpu.fault", index=fault.gpu, fault=meaning(fault))


def gpu_key(uuid: str, index: int | None) -> str:
    """The key of a cordoned GPU. Prefers the UUID, because indexes change when a GPU falls off the bus."""
    return uuid or (ON_HOST if index is None else f"#{index}")
