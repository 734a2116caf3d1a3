"""Keeps the memory of long-lived processes low by settings of the C library. Independent of what the process does.

Environment variables such as MALLOC_ARENA_MAX are not used, because runners and jobs would inherit them.
"""

from __future__ import annotations

import gc

# mallopt(3), the same numbers on every glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 256 * 1024
_USUAL = gc.get_threshold() if hasattr(gc, "get_threshold") else ()
_SELDOM = 50_000  # objects more than there were


def begin_small() -> None:
    """Before the first thread, and before most is imported. One heap for all threads instead of one each; a large block
    (a piece of log, a long answer) goes back to the kernel when it is freed. Without glibc: nothing of this. Garbage
    is looked for seldom before `settle`, which may be long in coming: modules leave next to none, and looking takes a
    tenth of the start."""
    if hasattr(gc, "set_threshold"):  # not in PyPy
        gc.set_threshold(_SELDOM, *_USUAL[1:])
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


def settle() -> None:
    """After the start: what it took and no longer needs goes back; what stays is not looked at by each collection."""
    if hasattr(gc, "freeze"):  # not in PyPy
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
