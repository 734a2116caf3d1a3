"""A follower sees each byte once, complete lines, and the last line as it grows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bottle
import pytest

from procguard import expression
from procguard.config import schema as configuration
from procguard.portal.api.logs import LogQuery
from procguard.portal.logs import follow
from procguard.portal.logs.follow import Follower
from procguard.portal.logs.store import LogStore
from procguard.portal.web_monitor import WebMonitor
from tests.unit.fleet_world import World


def here(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


class Reader:
    """A follower of a store, and all that it was sent."""

    def __init__(self, store: LogStore, **query: Any) -> None:
        self.store = store
        self.follower = Follower("w1", LogQuery(**query), None)
        self.follower.poll.wake = lambda: None  # type: ignore[method-assign]
        store.on_append(lambda worker, *run: self.follower.take(*run))
        self.said = self.follower.begin(store.tail("w1", keep_partial=True), store).decode()

    def write(self, data: bytes, stream: str = "out", attempt: int = 1, at: float = 1.0) -> str:
        """The bytes sent to the reader for it."""
        self.store.append("w1", attempt, stream, self.store.lengths("w1").get(f"{attempt}.{stream}", 0), data, at)
        said = self.follower.next_chunk().decode()
        self.said += said
        return said

    @property
    def screen(self) -> list[str]:
        """What a terminal shows of it."""
        return [line.split("\r")[-1].rstrip() for line in self.said.split("\n")]


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    return LogStore(str(tmp_path), sync=lambda paths: None, in_thread=here)


def test_a_line_grows_on_the_readers_screen(store: LogStore) -> None:
    reader = Reader(store)
    assert reader.write(b"wait") == "wait"
    assert reader.write(b"ing") == "ing"
    assert reader.write(b" done\nnext\n") == " done\nnext\n"
    assert reader.said == "waiting done\nnext\n"


def test_a_progress_bar_is_rewritten_in_place(store: LogStore) -> None:
    reader = Reader(store)
    for part in (b"\r 10%", b"\r 20%", b"\r100% long", b"\r short", b"\nafter\n"):
        reader.write(part)
    assert reader.screen == [" short", "after", ""]
    assert "\n" not in reader.said.split(" short")[0]


def test_a_bar_that_ends_in_carriage_returns_is_rewritten_too(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"before\n10%\r", 1.0)
    reader = Reader(store)
    assert reader.screen == ["before", "10%"]
    reader.write(b"20%\r")
    assert reader.screen == ["before", "20%"]
    reader.write(b"done\n")
    assert reader.screen == ["before", "done", ""]


def test_the_other_stream_does_not_mix_into_a_growing_line(store: LogStore) -> None:
    reader = Reader(store)
    reader.write(b"out be")
    reader.write(b"error\n", stream="err")
    reader.write(b"gins\n")
    assert reader.said == "out be\nerror\nout begins\n"


def test_what_the_tail_showed_comes_only_once(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"one\ntw", 1.0)
    reader = Reader(store)
    assert reader.said == "one\ntw"
    assert reader.write(b"o\nthree\n") == "o\nthree\n"


def test_lines_that_are_searched_for_come_whole(store: LogStore) -> None:
    reader = Reader(store, expression=expression.read("^ERROR"))
    assert reader.write(b"ERR") == ""
    assert reader.write(b"OR here\ninfo\n") == "ERROR here\n"


def test_as_json_a_growing_line_is_partial_and_named_by_its_offset(store: LogStore) -> None:
    reader = Reader(store, as_json=True)
    states = [json.loads(reader.write(part)) for part in (b"\r10%", b"\r20%", b"\r30%\n")]
    assert [(one["offset"], one["text"], one.get("partial", False)) for one in states] == [
        (0, "10%", True),
        (0, "20%", True),
        (0, "30%", False),
    ]


def test_offsets_stay_right_behind_a_collapsed_bar(store: LogStore) -> None:
    reader = Reader(store, as_json=True)
    whole = b"\r1%\r2%\r3%\nnext\n"
    for number in range(len(whole)):
        reader.write(whole[number : number + 1])
    last = json.loads(reader.said.splitlines()[-1])
    assert last["text"] == "next" and whole[last["offset"] :] == b"next\n"


def test_an_endless_bar_costs_no_memory(store: LogStore) -> None:
    reader = Reader(store)
    for number in range(2000):
        reader.write(b"\r" + b"x" * 500 + b"%d" % number)
    (begun,) = reader.follower._partial.values()
    assert len(begun.data) < 600 and begun.offset == 0


def test_a_reader_that_is_too_slow_learns_what_it_missed(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "MAX_FOLLOWER_BYTES", 10)
    reader = Reader(store)
    store.append("w1", 1, "out", 0, b"0123456\n", 1.0)
    assert reader.write(b"89abcdef\n") == "0123456\n[procguard: 9 bytes not shown, this reader is too slow]\n"


def test_a_line_stored_after_the_headers_is_shown_even_if_the_tail_has_no_room_for_it(
    store: LogStore, tmp_path: Path
) -> None:
    settings = configuration.load(None, [f"state.state_file={tmp_path}/state.yaml"])
    api = WebMonitor(settings, World(tmp_path).fleet, store)._logs_api
    bottle.request.bind({})
    store.append("w1", 1, "out", 0, b"before\nunfin", 1.0)
    response = api._follow("w1", LogQuery(lines=1, expression=expression.read("e|u")))
    store.append("w1", 1, "out", 12, b"ished\nno match\nnext\n", 2.0)
    assert response.body.read() == b"unfinished\nnext\n"
    response.body.close()
    assert api.follower_count == 0
