"""`signal` without its enumerations: signals are plain numbers. Loading `enum` would cost 4 ms of processor time per
runner."""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, which a runner does without
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

__all__ = ["signal"]
