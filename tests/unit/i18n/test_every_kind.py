"""Every kind of event, every cause, actor, state and reason that the code can write is shown in both languages.

`SAMPLES` has an event of every kind. A kind that the code writes and this list lacks fails here; one that any unit test
records fails in `languages.check`, which looks at each event as the manager really makes it.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from procguard.fleet.history import causes
from procguard.fleet.history.events import CAUSE_OF_KIND
from procguard.i18n import reasons
from procguard.i18n.words import Words
from remote_agent.protocol import reasons as protocol
from tests.unit import languages
from tests.unit.languages import EVERY_KIND, HAN

FLEET = Path(__file__).parents[3] / "procguard"
WRITERS = {"event": 0, "_emit_event": 0, "_event": 1}  # the function, and which of its arguments names the kind
# An English sentence: three words in a row that are no name, path or option.
SENTENCE = re.compile(r"(?<![\w./:=<'`-])[a-z]{3,} [a-z]{2,} [a-z]{2,}")
SAMPLE = {"duration": 3.0, "in": 5.0, "state": "running", "verb": "stop", "status": "done", "agent": "running"}
SAMPLE |= {"opstatus": "done", "actor": "monitor", "joined": ["a", "b"], "counts": ["a"], "": "X1"}


def literals(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may give; one with a computed part as a regular expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.escape(node.value)
    elif isinstance(node, ast.IfExp):
        yield from literals(node.body)
        yield from literals(node.orelse)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(re.escape(str(one.value)) if isinstance(one, ast.Constant) else r"\w+" for one in node.values)


@functools.cache
def written_kinds() -> frozenset[str]:
    found: set[str] = set()
    for folder in ("fleet", "manager", "portal", "agent_api"):
        for path in (FLEET / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
                    at = WRITERS.get(name)
                    if at is not None and len(node.args) > at:
                        found |= set(literals(node.args[at]))
    return frozenset(found)


def sample_of(code: str) -> reasons.Reason:
    """The reason of a code, with a value of each parameter's form."""
    text = reasons.texts("en")[code]
    slots = protocol.slots(text) | protocol.slots(reasons.texts("zh")[code])
    params: dict[str, Any] = {name: SAMPLE[form] for name, form in slots.items()}
    return reasons.Reason(code, code, {**params, "n": 2} if "|" in text else params)


def event_of(kind: str, reason: reasons.Reason, **more: Any) -> dict[str, Any]:
    base = {"kind": kind, "worker_id": "w1", "host": "gpu01", "before": "running", "after": "stopped", "attempt": 2}
    return {
        **base,
        "actor": "monitor",
        "cause": CAUSE_OF_KIND.get(kind),
        "evidence": None,
        **more,
        **protocol.fields("reason", reason),
    }


def untranslated(text: str) -> list[str]:
    return SENTENCE.findall(text)


def test_the_list_has_each_kind_that_the_code_writes_and_no_other() -> None:
    missing = [kind for kind in sorted(written_kinds()) if not any(re.fullmatch(kind, one) for one in EVERY_KIND)]
    assert missing == []
    assert sorted(CAUSE_OF_KIND.keys() - EVERY_KIND) == []
    written = [one for one in EVERY_KIND if any(re.fullmatch(kind, one) for kind in written_kinds())]
    assert len(written) > 30


def test_a_kind_that_the_list_lacks_is_found() -> None:
    node = ast.parse('tx.event("worker_melted" if hot else f"tunnel_{state}", reason=why)', mode="eval").body
    assert list(literals(node.args[0])) == ["worker_melted", r"tunnel_\w+"]  # type: ignore[attr-defined]
    assert not any(re.fullmatch("worker_melted", one) for one in EVERY_KIND)


def test_an_event_of_every_kind_is_shown_in_both_languages() -> None:
    reason = reasons.because("agent.removed", agent="gpu01")
    for kind in sorted(EVERY_KIND):
        chinese, english = Words("zh").event(event_of(kind, reason)), Words("en").event(event_of(kind, reason))
        assert HAN.search(chinese) and untranslated(chinese) == [], f"{kind}: {chinese}"
        assert english and not HAN.search(english), f"{kind}: {english}"


def test_a_change_of_state_is_shown_for_every_state_cause_and_ending() -> None:
    reason = reasons.because("agent.removed", agent="gpu01")
    endings: list[dict[str, Any] | None] = [None, {"code": 0}, {"code": 1}, {"code": 137}, {"signal": 9}, {"oom": True}]
    endings += [{"cause": one, "duration_s": 9} for one in ("lost", "unhealthy", "start_timeout", "not_started")]
    states = ("starting", "running", "stopping", "stopped", "backoff", "exited", "failed", "unknown")
    for cause in sorted(causes.WORDS):
        for state in states:
            for ending in endings:
                evidence = None if ending is None else {"exit": {"duration_s": 3.0, **ending}}
                event = event_of("worker_state", reason, after=state, cause=cause, evidence=evidence)
                chinese, english = Words("zh").event(event), Words("en").event(event)
                assert HAN.search(chinese) and untranslated(chinese) == [], f"{state} {cause}: {chinese}"
                assert not HAN.search(english)


def test_every_reason_is_shown_in_both_languages() -> None:
    for code in reasons.texts("en"):
        reason = sample_of(code)
        chinese, english = reasons.rendered(code, reason.params, "zh"), reasons.rendered(code, reason.params, "en")
        assert untranslated(re.sub(r"(invoke|procguard|docs/)[^；，。]*", "", chinese)) == [], f"{code}: {chinese}"
        assert not HAN.search(english), code
        assert "{" not in re.sub(r"\{(image|…)[^}]*\}|\{\{|\}\}", "", english) or code == "message", (
            f"{code}: {english}"
        )


def test_a_planted_english_sentence_is_found() -> None:
    assert untranslated("任务已停止：it was stopped by somebody") != []
    bad = reasons.Reason("x", "agent.removed", {"agent": "one that was not to be found"})
    assert list(languages.untranslated(bad.code, bad.params)) != []


def test_each_actor_of_ours_has_a_name_in_both_languages() -> None:
    found = set()
    for path in FLEET.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'\bACTOR = "([^"]+)"|actor="([a-z ]+)"', source))
    actors = {one for pair in found for one in pair if one}
    assert {"failure handler", "gang keeper", "monitor"} <= actors
    assert [actor for actor in sorted(actors) if not HAN.search(reasons.actor(actor, "zh")) and actor != "runner"] == []
