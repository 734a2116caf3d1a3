"""`loads` and `dumps` of JSON without the package `json`, which loads `re`, `enum` and `collections`: a fifth of the
processor time that the start of a runner takes.

Both use the C functions of `json`. Values that these do not accept are passed to `json`, which raises the error. `json`
is also used if the interpreter has no such functions.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Scan = Callable[[str, int], tuple[object, int]]
    Encode = Callable[[object, int], tuple[str, ...]]

_SPACES = " \t\n\r"
_NOT_A_NUMBER = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}


class _Context:
    """The attributes that the scanner reads; see json.decoder.JSONDecoder."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = staticmethod(_NOT_A_NUMBER.__getitem__)


def _refuse(value: object) -> object:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _of_c() -> tuple[Scan, Encode] | tuple[None, None]:
    try:
        import _json

        encode = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, True)
        scan = _json.make_scanner(_Context)  # type: ignore[arg-type]
        if scan('{"a":[1,-2.5,null,"\\u00e9"]}', 0)[0] == {"a": [1, -2.5, None, "\xe9"]} and encode("a", 0):
            return scan, encode
    except Exception:
        pass
    return None, None


_scan, _encode = _of_c()


def loads(data: str | bytes) -> Any:
    """Decode JSON. `data`: text, or bytes in UTF-8. Raises ValueError if it is not JSON."""
    if _scan is not None:
        try:
            text = data if isinstance(data, str) else data.decode("utf-8", "surrogatepass")
            text = text.strip(_SPACES)
            value, end = _scan(text, 0)
            if end == len(text):
                return value
        except (ValueError, StopIteration, SystemError):  # SystemError: json.decoder was not found
            pass
    import json

    return json.loads(data)


def dumps(value: object) -> str:
    """The shortest JSON of `value`, in ASCII. Raises TypeError for a part without a JSON form, RecursionError if it is
    nested too deeply."""
    if _encode is not None:
        return "".join(_encode(value, 0))
    import json

    return json.dumps(value, separators=(",", ":"))
