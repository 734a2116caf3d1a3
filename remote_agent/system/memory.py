"""Reduces the memory of long-lived processes by settings of the C library. Independent of the process's task.

Environment variables such as MALLOC_ARENA_MAX are not used, because runners and jobs would inherit them.
"""

from __future__ import annotations

import gc

# mallopt(3), the same numbers on every glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 256 * 1024
_USUAL = gc.get_threshold() if hasattr(gc, "get_threshold") else ()
_SELDOM = 50_000  # objects created between two collections


def begin_small() -> None:
    """Call before the first thread and most imports. Uses one heap for all threads, and returns large blocks (logs,
    responses) to the kernel when they are freed; no effect without glibc. Garbage collection is rare until `settle`,
    because imports create little garbage and collections would take a tenth of the start-up time."""
    if hasattr(gc, "set_threshold"):  # PyPy has no such function
        gc.set_threshold(_SELDOM, *_USUAL[1:])
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


def settle() -> None:
    """Call after start-up: returns unused memory to the kernel and exempts the remaining objects from collections."""
    if hasattr(gc, "freeze"):  # PyPy has no such function
        gc.freeze()
    if hasattr(gc, "set_threshold"):
        gc.set_threshold(*_USUAL)
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _libc() -> object:
    try:
        import ctypes

        return ctypes.CDLL(None)
    except (ImportError, OSError):
        return None
