"""Functions of the C library that Python does not provide, called without the package `ctypes`, whose import costs 4 ms
of processor time per runner. Its C module is sufficient for numbers and arrays of numbers.

An interpreter that has this part in another form (PyPy) uses `ctypes`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING or sys.implementation.name != "cpython":
    import ctypes
    from ctypes import c_long, c_uint64, get_errno, sizeof

    Library = ctypes.CDLL

    def load() -> Library:
        """The C library, whose functions return int."""
        return ctypes.CDLL(None, use_errno=True)

else:
    import _ctypes
    from _ctypes import get_errno, sizeof

    class _Int(_ctypes._SimpleCData):
        _type_ = "i"

    class c_long(_ctypes._SimpleCData):
        _type_ = "l"

    class c_uint64(_ctypes._SimpleCData):
        _type_ = "L" if sizeof(c_long) == 8 else "Q"

    class _Function(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
        _restype_ = _Int

    class Library:
        def __init__(self) -> None:
            self._handle = _ctypes.dlopen(None, 0)

        def __getattr__(self, name: str) -> _Function:
            """Raises AttributeError if the library has no such function."""
            if name.startswith("__"):
                raise AttributeError(name)
            function = _Function((name, self))
            setattr(self, name, function)
            return function

    def load() -> Library:
        return Library()


__all__ = ["Library", "c_long", "c_uint64", "get_errno", "load", "sizeof"]
