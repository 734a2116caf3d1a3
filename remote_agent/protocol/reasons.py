"""Reasons: why something is as it is, as a code with parameters, and the English of the codes that hosts use.

A `Reason` is a str: its English sentence. It keeps the code and the parameters that the sentence was made of, so that a
program can compare them and another language can render them. In JSON (messages, files, the API), two keys accompany
the text:

    {"reason": "exit code 1 after 3 s; restart 1 of 3 in 5 s", "reason_code": "exit.code",
     "reason_params": {"code": 1, "ran_s": 3.0, "also": [{"code": "restart.next",
                                                          "params": {"k": 1, "n": 3, "delay_s": 5.0}}]}}

A parameter is a number, a text, a list of texts, or another reason as {"code", "params"}; `also` holds the reasons that
follow the first. Reasons from agents are untrusted data: `accepted` bounds them, and a code without a template is shown
unchanged.

A template is a text with {name} or {name:form}; "one form|other form" is chosen by the parameter `n`. The manager's own
codes, and Chinese for all of them, are in procguard/i18n/reasons.py.
"""

from __future__ import annotations

from remote_agent.protocol.host_reasons import HOST

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

TEXT = "text"  # a free text, or a sentence of a release without codes
MAX_CODE_CHARS = 64
MAX_PARAMS = 16
MAX_ITEMS = 16  # limit on the items of a list
MAX_PARAM_CHARS = 4096  # limit on the length of all texts together
MAX_DEPTH = 6
LARGEST = 1e15


class Reason(str):
    """An English sentence, with the code and the JSON-ready parameters from which it was rendered. "" is no reason."""

    __slots__ = ("code", "params")

    code: str
    params: dict[str, Any]

    def __new__(cls, text: str, code: str = TEXT, params: dict[str, Any] | None = None) -> Reason:
        made = super().__new__(cls, text)
        made.code = code if text else ""
        made.params = params if params is not None else {"text": text} if text else {}
        return made

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: Any) -> Any:
        return handler(str)  # in declared responses of the API, which contain the code as well

    def plain(self) -> dict[str, Any]:
        return {"code": self.code, "params": self.params}

    def then(self, *others: str | None) -> Reason:
        """This reason followed by others; empty ones are omitted."""
        made = self
        for other in others:
            if not other:
                continue
            if not made:
                made = reason_of(other)
                continue
            code, params = reason_of(other).code, reason_of(other).params
            head = {name: value for name, value in params.items() if name != "also"}
            also = [*also_of(made.params), {"code": code, "params": head}, *also_of(params)]
            made = Reason(f"{made}; {other}", made.code, {**made.params, "also": also})
        return made


NONE = Reason("", "", {})


def reason_of(text: str) -> Reason:
    """A reason as it is; any other text as a reason of code `text`."""
    return text if isinstance(text, Reason) else Reason(text)


def because(code: str, /, **params: Any) -> Reason:
    """The reason of a code of this table. Raises KeyError."""
    return Reason(
        render(HOST[code], params, english), code, {name: plain_value(value) for name, value in params.items()}
    )


def because_of(code: str, params: dict[str, Any]) -> Reason:
    """A stored reason, rendered with the current English template."""
    text = render(HOST[code], params, english) if code in HOST else unknown(code, params, english)
    for one in also_of(params):
        text += "; " + because_of(one["code"], one["params"])
    return Reason(text, code, params)


def also_of(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The reasons that follow the first."""
    also = params.get("also")
    return [one for one in also if is_plain(one)] if isinstance(also, list) else []


def of_exception(exc: BaseException) -> Reason:
    """The reason with which an exception was raised, or its text."""
    said = exc.args[0] if exc.args else ""
    return said if isinstance(said, Reason) else Reason(str(exc))


def plain_value(value: Any) -> Any:
    """A parameter as JSON."""
    if isinstance(value, Reason):
        return value.plain() if value else ""
    if isinstance(value, float):
        return round(value, 3)
    return [plain_value(one) for one in value] if isinstance(value, (list, tuple)) else value


# ---------------------------------------------------------------------------------------------------------- as JSON


def fields(name: str, text: str) -> dict[str, Any]:
    """{name, name_code, name_params} of a text; a text that is not a Reason gets the code `text`."""
    reason = reason_of(text)
    return {name: str(reason), f"{name}_code": reason.code, f"{name}_params": reason.params}


def values(text: str) -> tuple[str, str, dict[str, Any]]:
    """The reason as a tuple (text, code, parameters)."""
    reason = reason_of(text)
    return str(reason), reason.code, reason.params


def read(values: Mapping[str, Any], name: str = "reason") -> Reason:
    """The reverse of `fields`; without a code the text alone."""
    return accepted(values.get(name) or "", values.get(f"{name}_code"), values.get(f"{name}_params"))


def accepted(text: Any, code: Any, params: Any) -> Reason:
    """The Reason of a received or stored text. If the code or parameters are invalid or exceed the limits, only the
    text is used."""
    if not isinstance(text, str):
        text = ""
    if isinstance(text, Reason):
        return text
    if not isinstance(code, str) or not (code in HOST or _is_code(code)) or not isinstance(params, dict):
        return Reason(text)
    try:
        _check_bounds(params, MAX_DEPTH, MAX_PARAM_CHARS)
    except ValueError:
        return Reason(text)
    return Reason(text or code, code, params)


def _is_code(code: str) -> bool:
    """Words of lower-case letters, digits and _, joined by dots."""
    return (
        len(code) <= MAX_CODE_CHARS
        and code.isascii()
        and code[:1].isalpha()
        and code == code.lower()
        and code.replace(".", "a").replace("_", "a").isalnum()
    )


def _check_bounds(value: Any, depth: int, chars: int) -> int:
    """The characters that are left of `chars` after this value. Raises ValueError."""
    chars -= 1
    if value is None or isinstance(value, bool):
        return chars
    if isinstance(value, str):
        if len(value) > chars:
            raise ValueError("too long")
        return chars - len(value)
    if isinstance(value, (int, float)):
        if not abs(value) <= LARGEST:
            raise ValueError("too large")
        return chars
    if depth <= 0 or not isinstance(value, (dict, list)) or len(value) > MAX_PARAMS:
        raise ValueError("too deep or too many")
    if isinstance(value, list):
        for one in value:
            chars = _check_bounds(one, depth - 1, chars)
        return chars
    for name, one in value.items():
        if not isinstance(name, str) or len(name) > MAX_CODE_CHARS:
            raise ValueError("no name")
        chars = _check_bounds(one, depth if name == "params" else depth - 1, chars - len(name))
    return chars


# ------------------------------------------------------------------------------------------------------- rendering


def render(text: str, params: Mapping[str, Any], form: Callable[[str, Any], str]) -> str:
    """The template `text` with its slots filled by `form(name of the form or "", value)`. A slot without a value stays
    as it is written."""
    if "|" in text:
        one, _, other = text.partition("|")
        text = one if params.get("n") == 1 else other
    first, *rest = text.split("{")  # does not use re, which a runner does not load
    shown = [first]
    for part in rest:
        slot, end, after = part.partition("}")
        name, _, kind = slot.partition(":")
        shown += [form(kind, params[name]) if name in params else f"{{{slot}{end}", after]
    return "".join(shown)


def slots(text: str) -> dict[str, str]:
    """The parameters of a template, with the form of each."""
    found = (part.partition("}")[0].partition(":") for part in text.split("{")[1:])
    return {name: kind for name, _, kind in found}


def unknown(code: str, params: Mapping[str, Any], form: Callable[[str, Any], str]) -> str:
    """A code without a template: "disk.melted (path=/data, n=3)"."""
    shown = ", ".join(f"{name}={form('', value)}" for name, value in params.items() if name != "also")
    return f"{code} ({shown})" if shown else code


def is_plain(value: Any) -> bool:
    """Whether a parameter is another reason."""
    return isinstance(value, dict) and isinstance(value.get("code"), str) and isinstance(value.get("params"), dict)


def english(form: str, value: Any) -> str:
    """One parameter in English."""
    if isinstance(value, str):
        return value  # a reason, too
    if is_plain(value):
        return because_of(value["code"], value["params"])
    if isinstance(value, (list, tuple)):
        items = [english("", one) for one in value]
        return "; ".join(items) if form == "joined" else listed(items)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if form == "duration":
        return duration_in_words(value)
    if form == "in":
        return in_words(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def listed(names: list[str], most: int = 10) -> str:
    """'a, b, c and 4 more'"""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def in_words(delay_s: float) -> str:
    return "now" if delay_s < 0.05 else f"in {duration_in_words(delay_s)}"


def duration_in_words(seconds: float) -> str:
    """Two units at most, rounded down as the portal does: '0.2 s', '42 s', '5 min', '3 h 12 min', '9 d 4 h'."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}".rstrip("0").rstrip(".") + " s"
    if seconds < 60:
        return f"{int(seconds)} s"
    minutes = int(seconds // 60)
    if minutes < 10 and seconds % 60 >= 1:
        return f"{minutes} min {int(seconds % 60)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    if hours < 48:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"
