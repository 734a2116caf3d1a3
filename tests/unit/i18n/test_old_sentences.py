"""Sentences stored by earlier releases are loaded and shown unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from procguard.fleet.gangs.decider import GangRecord
from procguard.fleet.model.records import AgentRecord, CommandRecord, FleetRecord, WorkerRecord
from procguard.fleet.operations.model import Operation
from procguard.i18n import reasons
from procguard.i18n.words import Words

WORKER = {"worker_id": "w1", "agent_id": "h1", "host": "h1", "spec": {"command": "x"}}
AGENT = {"agent_id": "h1", "host": "h1", "kind": "deployed"}
COMMAND = {
    "command_id": "c-1", "seq": 1, "worker_id": "w1", "agent_id": "h1", "command": "kill", "attempt": 1,
    "generation": 1, "actor": "olga", "accepted_wall": 1.0, "status": "failed",
}  # fmt: skip
OPERATION = {"operation_id": "o-1", "command": "stop", "selector": "", "actor": "olga", "created_wall": 1.0}


def read(record: Any, *names: str) -> Any:
    for name in names:
        record = getattr(record, name)
    return record


@pytest.mark.parametrize(
    ("cls", "data", "names"),
    [
        (WorkerRecord, WORKER | {"last_reason": "OLD"}, ("last_reason",)),
        (AgentRecord, AGENT | {"cordon": {"reason": "OLD", "actor": "olga", "at": None}}, ("cordon", "reason")),
        (AgentRecord, AGENT | {"incident": {"starts": 1, "outcome": "open", "reason": "OLD"}}, ("incident", "reason")),
        (CommandRecord, COMMAND | {"message": "OLD"}, ("message",)),
        (FleetRecord, {"fleet_id": "f-1", "fleet_key": "k", "stopped_by": "OLD"}, ("stopped_by",)),
        (GangRecord, {"group": "g", "incident": {"member": "w1", "reason": "OLD"}}, ("incident", "reason")),
    ],
)
def test_a_record_with_a_sentence_loads_and_is_stored_with_a_code(cls: Any, data: Any, names: tuple[str, ...]) -> None:
    old = "it failed on its host; restarts are off"
    filled = {key: old if value == "OLD" else value for key, value in data.items()}
    for key, value in filled.items():
        if isinstance(value, dict):
            filled[key] = {name: old if one == "OLD" else one for name, one in value.items()}
    reason = read(cls.restored(filled), *names)
    assert isinstance(reason, reasons.Reason) and (reason, reason.code) == (old, "text")
    again = read(cls.restored(cls.restored(filled).stored()), *names)
    assert (again, again.code, again.params) == (old, "text", {"text": old})
    assert reasons.written(again, "zh") == old


def test_an_operation_of_before_loads_with_its_items() -> None:
    chunk = {"items": '["w0",["w1","failed","","cannot start: no space","stop","c-1",2,1,5.0]]'}
    operation = Operation.restored(OPERATION | {"items": 2, "note": "2 failed; at most 1 may"}, [chunk])
    view = operation.view()
    assert (view["note"], view["note_code"]) == ("2 failed; at most 1 may", "text")
    assert operation.items[1].view()["message"] == "cannot start: no space"
    assert (
        Operation.restored(operation.stored(), [operation.stored_chunk(0)]).items[1].message == "cannot start: no space"
    )


def test_an_event_of_before_keeps_its_words_in_both_languages() -> None:
    event = {"kind": "recovery", "host": "gpu01", "reason": "SSH: no answer", "actor": "failure handler", "at": "x"}
    assert "SSH: no answer" in Words("en").event(event) and "SSH: no answer" in Words("zh").event(event)
