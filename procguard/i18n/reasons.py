"""Reasons in English and Chinese: creates the manager's reasons from codes, and renders all reasons. Pure.

`because("agent.removed", agent="gpu01")` creates one; tests/unit/i18n/test_reasons.py compares each call with the
parameters of its template. The texts are in reason_texts.py; remote_agent/protocol/reasons.py defines reasons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from procguard.i18n import en, zh
from procguard.i18n.reason_texts import CHINESE_OF_HOSTS, MANAGER
from remote_agent.protocol import reasons
from remote_agent.protocol.host_reasons import HOST
from remote_agent.protocol.reasons import NONE, Reason, reason_of

__all__ = [
    "NONE",
    "Reason",
    "because",
    "for_portal",
    "of_message",
    "reason_of",
    "rendered",
    "texts",
    "translated",
    "with_head",
    "written",
]

_TEXTS: dict[str, dict[str, str]] = {
    "en": {**HOST, **{code: english for code, (english, _) in MANAGER.items()}},
    "zh": {**CHINESE_OF_HOSTS, **{code: chinese for code, (_, chinese) in MANAGER.items()}},
}
_WORDS = {"en": en.TEXTS, "zh": zh.TEXTS}
_NAMED = ("state", "verb", "status", "agent", "opstatus")  # forms whose values are words of i18n: state.running
_UNITS = {"s": "秒", "min": "分钟", "h": "小时", "d": "天"}
_NESTED = 12  # maximum nesting of objects in a response
_IN_TURN = 8  # maximum nesting of reasons; ProcGuard's own are less deep


def because(code: str, /, **params: Any) -> Reason:
    """The reason with a code and its parameters. Raises KeyError for an unknown code."""
    plain = {name: reasons.plain_value(value) for name, value in params.items()}
    return Reason(reasons.render(_TEXTS["en"][code], params, _english), code, plain)


def of_message(text: str) -> Reason:
    """A message of ProcGuard without a code, such as that of an error, as a reason that contains its Chinese text."""
    from procguard.i18n.messages.catalogue import localized  # noqa: PLC0415 - 1,400 texts that few commands need

    return text if isinstance(text, Reason) else because("message", en=text, zh=localized(text, "zh"))


def with_head(reason: Reason, head: Reason) -> Reason:
    """`reason` with `head` instead of its first part."""
    rest = reasons.also_of(reason.params)
    return head.then(*(Reason(rendered(one["code"], one["params"], "en"), one["code"], one["params"]) for one in rest))


def rendered(code: str, params: Mapping[str, Any], language: str, depth: int = 0) -> str:
    """The text of a code in a language. A code without a template is shown as it is, with its parameters."""
    texts = _TEXTS[language]

    def form(name: str, value: Any) -> str:
        return _form(name, value, language, depth)

    text = reasons.render(texts[code], params, form) if code in texts else reasons.unknown(code, params, form)
    if depth < _IN_TURN:
        also = (rendered(one["code"], one["params"], language, depth + 1) for one in reasons.also_of(params))
        text = _WORDS[language]["joint"].join([text, *also])
    return text


def written(value: Mapping[str, Any] | str, language: str, name: str = "reason") -> str:
    """The text of a Reason, or of the reason `name` of a view of the API, in a language."""
    if isinstance(value, str):
        reason = reason_of(value)
        return rendered(reason.code, reason.params, language) if reason else ""
    text, code, params = value.get(name) or "", value.get(f"{name}_code"), value.get(f"{name}_params")
    if language == "en" or not code or not isinstance(params, dict):
        return str(text)
    return rendered(str(code), params, language)


def translated(value: Any, language: str, depth: int = 0) -> Any:
    """A response of the API, with every reason and every actor of ProcGuard in a language."""
    if depth > _NESTED or not isinstance(value, (dict, list)):
        return value
    if isinstance(value, list):
        return [translated(one, language, depth + 1) for one in value]
    made = {
        name: one if name.endswith("_params") else translated(one, language, depth + 1) for name, one in value.items()
    }
    for name in value:
        if f"{name}_code" in value and f"{name}_params" in value:
            made[name] = written(value, language, name)
    if isinstance(value.get("actor"), str):
        made["actor"] = actor(value["actor"], language)
    return made


def texts(language: str) -> dict[str, str]:
    """The templates of a language, by code."""
    return _TEXTS[language]


def for_portal(language: str) -> dict[str, str]:
    """The templates for web/js/reasons.js: reason.CODE, and the words of forms, such as word.state.running."""
    words = {
        f"word.{name}": text
        for name, text in _WORDS[language].items()
        if name in ("joint", "comma", "and_more", "now", "in", "count")
        or name.split(".")[0] in (*_NAMED, "result", "actor")
    }
    return {f"reason.{code}": text for code, text in _TEXTS[language].items()} | words


def actor(name: str, language: str) -> str:
    """The name of an actor of ProcGuard in a language; other names, such as those of tokens, are unchanged."""
    return _WORDS[language].get(f"actor.{name}", name)


def _english(form: str, value: Any) -> str:
    return _form(form, value, "en", 0)


def _form(form: str, value: Any, language: str, depth: int) -> str:
    words = _WORDS[language]
    if reasons.is_plain(value):
        return rendered(value["code"], value["params"], language, depth + 1) if depth < _IN_TURN else "…"
    if isinstance(value, Reason) and language != "en":
        return rendered(value.code, value.params, language, depth + 1)
    if isinstance(value, (list, tuple)):
        items = [_form(form if form == "counts" else "", one, language, depth) for one in value]
        if form == "joined":
            return words["joint"].join(items)
        more = len(items) - 10
        text = words["comma"].join(items[:10])
        return words["and_more"].format(names=text, n=more) if more > 0 else text
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if form in ("duration", "in"):
            return _time(form, float(value), language)
        return reasons.english("", value)
    text = str(value)
    if form == "state" and language == "en":
        return text  # as the API and the command line name it
    if form in _NAMED:
        return words.get(f"{form}.{text}", text)
    if form == "actor":
        return actor(text, language)
    if form == "counts" and language != "en":
        number, _, state = text.partition(" ")
        return words["count"].format(n=number, what=words.get(f"result.{state}", state))
    return text


def _time(form: str, seconds: float, language: str) -> str:
    if language == "en":
        return reasons.english(form, seconds)
    words = _WORDS[language]
    if form == "in" and seconds < 0.05:
        return words["now"]
    text = re.sub(r"[a-z]+", lambda unit: _UNITS[unit.group()], reasons.duration_in_words(seconds))
    return words["in"].format(d=text) if form == "in" else text
