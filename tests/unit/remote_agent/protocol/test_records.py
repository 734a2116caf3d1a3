"""A record behaves like the dataclass of the same text, without `dataclasses` on a host."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from remote_agent.protocol import messages, records
from tests.agent_host import ROOT


def of(decorate: Callable[..., Any], field: Callable[..., Any]) -> Any:
    """The same class, made by either."""

    @decorate
    class Point:
        x: int
        y: int = 2
        tags: list[str] = field(default_factory=list)
        secret: str = field(default="", repr=False)
        about: int = field(default=5, metadata={"description": "words"})

        def total(self) -> int:
            return self.x + self.y

    return Point


BOTH = {
    "a dataclass": of(dataclasses.dataclass, dataclasses.field),
    "a record": of(records._record, records.Field),
}


@pytest.fixture(params=BOTH.values(), ids=BOTH)
def point(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_arguments_come_by_place_and_by_name(point: Any):
    one = point(1, tags=["a"])
    assert (one.x, one.y, one.tags, one.secret, one.about, one.total()) == (1, 2, ["a"], "", 5, 3)
    assert list(vars(one)) == ["x", "y", "tags", "secret", "about"]
    assert vars(point(1, 3, [], "s", 4)) == {"x": 1, "y": 3, "tags": [], "secret": "s", "about": 4}


def test_what_is_made_for_each_is_not_shared(point: Any):
    one, other = point(1), point(1)
    one.tags.append("a")
    assert other.tags == [] and point(1).tags == []


@pytest.mark.parametrize(
    ("arguments", "named", "said"),
    [((), {}, "missing 1 required positional argument: 'x'"), ((1,), {"z": 1}, "unexpected keyword argument 'z'")],
)
def test_wrong_arguments_are_named(point: Any, arguments: tuple[int, ...], named: dict[str, int], said: str):
    for _ in range(2):  # the first makes __init__
        with pytest.raises(TypeError, match=said) as error:
            point(*arguments, **named)
        assert "Point.__init__() " in str(error.value)


def test_equal_by_fields_and_not_hashable(point: Any):
    assert point(1) == point(1, 2)
    assert point(1) != point(2)
    assert point(1) != 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(point(1))


def test_a_secret_is_not_shown(point: Any):
    assert repr(point(1, secret="s3cret")).endswith("Point(x=1, y=2, tags=[], about=5)")


def test_records_of_two_classes_are_never_equal():
    assert BOTH["a record"](1) != of(records._record, records.Field)(1)


def test_dataclasses_answers_for_it(point: Any):
    assert dataclasses.is_dataclass(point)
    assert dataclasses.is_dataclass(point(1))
    assert [one.name for one in dataclasses.fields(point)] == ["x", "y", "tags", "secret", "about"]
    assert dataclasses.fields(point)[4].metadata["description"] == "words"
    assert dataclasses.asdict(point(1)) == {"x": 1, "y": 2, "tags": [], "secret": "", "about": 5}
    changed = dataclasses.replace(point(1, tags=["a"]), y=7)
    assert isinstance(changed, point)
    assert (changed.y, changed.tags) == (7, ["a"])


def test_pydantic_checks_it(point: Any):
    checked = TypeAdapter(point).validate_python({"x": "4", "tags": ["b"]})
    assert isinstance(checked, point)
    assert vars(checked) == {"x": 4, "y": 2, "tags": ["b"], "secret": "", "about": 5}
    with pytest.raises(ValidationError, match="x"):
        TypeAdapter(point).validate_python({"y": 1})


def test_every_message_has_the_fields_of_its_dataclass():
    found = [one for one in vars(messages).values() if isinstance(one, type) and hasattr(one, "__record_fields__")]
    assert len(found) > 20
    for one in found:
        assert tuple(field.name for field in dataclasses.fields(one)) == records.names(one), one


def test_no_process_of_a_host_loads_what_dataclasses_brings():
    """Importing it would add a quarter to the agent's start and 2 MB of memory (hints.py avoids `typing`)."""
    heavy = ("typing", "dataclasses", "inspect", "ast", "dis", "tokenize")
    code = f"""
import sys; sys.path.insert(0, {ROOT!r})
import remote_agent.agent.agent, remote_agent.runner.start, remote_agent.install.installer
from remote_agent.protocol.messages import AgentHeartbeat
assert AgentHeartbeat("a") != AgentHeartbeat("b")
print([one for one in {heavy!r} if one in sys.modules])
"""
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_pydantic_reads_messages_that_were_loaded_before_typing():
    code = f"""
import sys; sys.path.insert(0, {ROOT!r})
from remote_agent.protocol import messages
assert "typing" not in sys.modules
sys.path[1:1] = {sys.path!r}
from pydantic import TypeAdapter
beat = TypeAdapter(messages.AgentHeartbeat).validate_python({{"agent_id": "a", "workers": [{{"worker_id": "w"}}]}})
print(beat.workers[0].state, messages.State, messages.Desired)
TypeAdapter(messages.WorkerReport).validate_python({{"worker_id": "w", "state": "dancing"}})
"""
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "Input should be 'stopped', 'starting', 'running'" in done.stderr, done.stderr[-2000:]
    assert done.stdout.startswith("stopped typing.Literal['stopped', 'starting', 'running',"), done.stdout
