"""Sentences for people, in English and Chinese: durations, endings, events. Pure; knows texts, decides nothing.

The texts of each language are in its own module (en.py, zh.py), with the same keys and the same {values}; reasons are
rendered by reasons.py. Free text of a job or a tool is never translated; it is quoted as evidence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from procguard.i18n import en, reasons, zh
from remote_agent.protocol.reasons import also_of
from remote_agent.runner.restart import signal_name

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
_TEXTS: dict[str, dict[str, str]] = {"en": en.TEXTS, "zh": zh.TEXTS}
_UNITS = (("unit.d", 86_400), ("unit.h", 3_600), ("unit.min", 60), ("unit.s", 1))


def pick(*preferences: str | None) -> Language:
    """The first language of LANGUAGES that a preference names, else "en". A preference is "zh", "zh_CN.UTF-8", or an
    Accept-Language header such as "de, zh-CN;q=0.8"."""
    for preference in preferences:
        for one in _by_preference(preference or ""):
            base = re.split(r"[-_.@]", one.strip().lower())[0]
            for language in LANGUAGES:
                if base == language:
                    return language
    return "en"


def _by_preference(preference: str) -> list[str]:
    rated = []
    for part in preference.split(",")[:20]:
        name, _, quality = part.partition(";q=")
        try:
            rated.append((-float(quality or 1), name))
        except ValueError:
            continue
    return [name for _, name in sorted(rated, key=lambda one: one[0])]


class Words:
    """The texts of one language."""

    def __init__(self, language: str) -> None:
        self.language = language if language in LANGUAGES else "en"
        self._texts = _TEXTS[self.language]

    def has(self, key: str) -> bool:
        return key in self._texts

    def say(self, key: str, **values: Any) -> str:
        """The text of `key` with {name} filled in; of "one form|other form", the form for values["n"]."""
        text = self._texts[key]
        if "|" in text and "n" in values:
            one, _, other = text.partition("|")
            text = one if values["n"] == 1 else other
        return text.format(**values)

    def translated(self, value: Any) -> Any:
        """A response of the API, with every reason and actor in this language."""
        return value if self.language == "en" else reasons.translated(value, self.language)

    def joined(self, sentences: list[str]) -> str:
        return self._texts["joint"].join(sentences)

    def listed(self, names: list[str], most: int = 5) -> str:
        """ "a, b, c and 4 more" """
        text = self._texts["comma"].join(names[:most])
        more = len(names) - most
        return self.say("and_more", names=text, n=more) if more > 0 else text

    def reason(self, shown: Mapping[str, Any] | str, name: str = "reason") -> str:
        """A Reason, or the reason `name` of a view of the API, in this language."""
        return reasons.written(shown, self.language, name)

    def actor(self, name: str) -> str:
        return reasons.actor(name, self.language)

    def named(self, kind: str, name: object) -> str:
        """The word for a name of the API, such as agent_state.connected; in English, the name itself."""
        return str(name) if self.language == "en" else self._texts.get(f"{kind}.{name}", str(name))

    def head(self, title: str) -> str:
        """The title of a column or of a line of facts."""
        return self._texts.get(f"column.{title}", title)

    def state(self, state: str) -> str:
        return self._texts.get(f"state.{state}", state)

    # ------------------------------------------------------------------------------------------ time

    def duration(self, seconds: float) -> str:
        """A duration in at most two units: "0.4 s", "42 s", "3 h 12 min", "9 d 4 h"."""
        whole = max(0, int(seconds))
        if whole < 1:
            return self.say("unit.s", n=f"{max(0.0, seconds):.1f}".rstrip("0").rstrip("."))
        parts: list[tuple[str, int]] = []
        for unit, size in _UNITS:
            number, whole = divmod(whole, size)
            if parts or number:
                parts.append((unit, number))
        return " ".join(self.say(unit, n=number) for unit, number in parts[:2] if number)

    def ago(self, at: float, now: float) -> str:
        if now - at < 1.0:
            return self.say("just_now")
        return self.say("ago", d=self.duration(now - at))

    # ------------------------------------------------------------------------------------------ endings

    def ending(self, record: Mapping[str, Any]) -> str:
        """How an attempt ended, from its exit record: "was killed by signal 9 (SIGKILL) after 3 h 12 min"."""
        text, left = self._ending(record), int(record.get("left") or 0)
        if not left:
            return text
        names = [str(name) for name in record.get("left_names") or ()]
        what = self.say("exit.left_named" if names else "exit.left", n=left, names=self.listed(names))
        return self.say("exit.and_left", text=text, left=what)

    def _ending(self, record: Mapping[str, Any]) -> str:
        after = self.duration(float(record.get("duration_s") or 0.0))
        detail, cause = reasons.written(record, self.language, "detail"), record.get("cause")
        if cause == "start_timeout" and float(record.get("duration_s") or 0.0) < 0.05:
            cause = "not_started"
        if not cause and record.get("code") is None and record.get("signal") is None:  # of a runner that names no cause
            cause, detail = "not_started", reasons.written(record, self.language)
        if cause == "lost" and not record.get("duration_s"):
            cause = "lost_unseen"
        if cause == "time_limit" and record.get("line"):  # a time limit of Slurm, which the line proves
            cause = ""
        if cause in ("not_started", "unhealthy", "start_timeout", "time_limit", "lost", "lost_unseen"):
            text = self.say(f"exit.{cause}", d=after)
            return self.say("with_detail", text=text, detail=detail) if detail else text
        number = record.get("signal")
        if record.get("oom"):
            return self.say("exit.oom", d=after)
        proof = self._proof(record)
        if number is not None:
            text = self.say("exit.signal", number=number, name=signal_name(int(number)), d=after)
            return self.say("with_detail", text=text, detail=proof) if proof else text
        code = record.get("code")
        text = self.say("exit.zero" if code == 0 else "exit.code", code=code, d=after)
        if proof:
            return self.say("with_detail", text=text, detail=proof)
        hint = f"exit.hint_{code}"
        return self.say("with_detail", text=text, detail=self._texts[hint]) if self.has(hint) else text

    def _proof(self, record: Mapping[str, Any]) -> str:
        """The cause of the failure, with the log line that proves it; "" if it is unknown."""
        params = record.get("reason_params")
        for one in also_of(params) if isinstance(params, dict) else ():
            if one["code"] == "exit.proof" or one["code"].startswith("failure."):
                return reasons.rendered(one["code"], one["params"], self.language)
        return ""

    # ------------------------------------------------------------------------------------------ events

    def event(self, event: Mapping[str, Any]) -> str:
        """An event as a sentence without the name of its subject; its reason, if its kind has no text here."""
        kind, reason = str(event.get("kind")), reasons.written(event, self.language)
        values = {"reason": reason, "actor": self.actor(event.get("actor") or "?"), "host": event.get("host") or "?"}
        values |= {"worker": event.get("worker_id") or "?", "attempt": event.get("attempt") or 0}
        if kind == "worker_state":
            return self._change(event, values)
        if kind == "worker_failed":
            record = self.exit_of(event)
            ended = self.say("event.ended", ending=self.ending(record)) if record else ""
            return self.joined([*([ended] if ended else []), self.say("event.gave_up")])
        if kind == "command":
            return self._command(event, values)
        if kind == "host_disk_full":
            return self._disk(event, values)
        key = f"event.{kind}"
        if not self.has(key):
            return reason
        return self.say(key, **values)

    def _change(self, event: Mapping[str, Any], values: Mapping[str, object]) -> str:
        after, cause = str(event.get("after")), str(event.get("cause") or "")
        record = self.exit_of(event)
        if after == "failed":
            what = self.say("event.gave_up")
        elif after == "starting" and record:
            what = self.say("event.restarted", **values)
        elif after in ("stopping", "stopped") and self.has(f"event.{after}_{cause}"):
            what = self.say(f"event.{after}_{cause}", **values)
        else:
            what = self.say(f"event.to_{after}", **values) if self.has(f"event.to_{after}") else self.state(after)
        if record is None:
            return what
        return self.joined([self.say("event.ended", ending=self.ending(record)), what])

    def _disk(self, event: Mapping[str, Any], values: Mapping[str, object]) -> str:
        evidence = event.get("evidence")
        evidence = evidence if isinstance(evidence, dict) else {}
        key = f"host.disk_{evidence.get('trouble')}"
        path = str(evidence.get("path") or "procguard_home")
        return self.say(key if self.has(key) else "event.host_disk_full", path=path, **values)

    def _command(self, event: Mapping[str, Any], values: Mapping[str, object]) -> str:
        evidence = event.get("evidence")
        evidence = evidence if isinstance(evidence, dict) else {}
        verb, status = str(evidence.get("command") or ""), str(event.get("after"))
        if not self.has(f"verb.{verb}") or not self.has(f"event.command_{status}"):
            return str(values["reason"])
        text = self.say(f"event.command_{status}", verb=self.say(f"verb.{verb}"), **values)
        origin = str(evidence.get("from") or "")
        if origin and status == "accepted":
            text += self.say("from", origin=origin)
        return text

    @staticmethod
    def exit_of(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
        evidence = event.get("evidence")
        record = evidence.get("exit") if isinstance(evidence, dict) else None
        return record if isinstance(record, dict) else None
