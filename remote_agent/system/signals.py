"""`signal` without its enumerations: signals are plain numbers. Loading `enum` would cost 4 ms of processor time per
runner."""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

__all__ = ["signal"]
