"""The lists of the portal: one snapshot in columns, then frames of changes, encoded once, and all consistent."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from procguard.portal.live.columns import HostColumns, WorkerColumns
from procguard.portal.live.tables import HISTORY_FRAMES, REST_EVERY, RowTopic, column_text, differences
from remote_agent.protocol import messages as protocol
from tests.unit.fleet_world import World


class FakeClient:
    """A page's state after its frames. `slow`: it refuses frames that may be dropped."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.slow = False

    def send_frame(self, frame: bytes) -> bool:
        self.frames.append(frame)
        return True

    def offer_frame(self, frame: bytes) -> bool:
        return not self.slow and self.send_frame(frame)

    @property
    def messages(self) -> list[Any]:
        return [unpacked(frame) for frame in self.frames]


def unpacked(frame: bytes) -> Any:
    """A frame's JSON; binary frames are deflated."""
    head = 2 if frame[1] < 126 else 4 if frame[1] == 126 else 10
    return json.loads(zlib.decompress(frame[head:]) if frame[0] & 0x0F == 2 else frame[head:])


class Shelf:
    """Rows of (id, state) with one measure."""

    columns = ("id", "state")
    measures = ("load",)
    key = "id"

    def __init__(self, count: int = 3) -> None:
        self.rows = {f"w{number}": "running" for number in range(count)}
        self.load: dict[str, int] = {}
        self.read = 0
        self.topic = RowTopic("rows:test", self, lambda: None)

    def ids(self) -> list[str]:
        return list(self.rows)

    def row(self, item_id: str, before: Any, wall: float) -> Any:
        self.read += 1
        return (item_id, self.rows[item_id]) if item_id in self.rows else None

    def measured(self, item_id: str) -> Any:
        return (self.load[item_id],) if item_id in self.load else None

    def put(self, item_id: str, state: str | None) -> None:
        if state is None:
            self.rows.pop(item_id, None)
        else:
            self.rows[item_id] = state
        self.topic.mark_changed(item_id)

    def measure(self, item_id: str, load: int) -> None:
        self.load[item_id] = load
        self.topic.mark_changed(item_id)


class Replica:
    """The page's side of the protocol, as web/js/rows.js has it."""

    def __init__(self, snapshot: Any, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self.seq = snapshot["seq"]
        self.rows: dict[int, dict[str, Any]] = {}
        values = {name: plain(column) for name, column in snapshot["columns"].items()}
        for place, slot in enumerate(summed(snapshot["slots"])):
            self.rows[slot] = {name: column[place] for name, column in values.items()}

    def take(self, message: Any) -> None:
        if message["t"] == "rows":
            assert message["prev"] == self.seq
            self.seq = message["seq"]
            for slot in message["gone"]:
                del self.rows[slot]
        assert message["seq"] == self.seq
        for place, slot in enumerate(summed(message["slots"])):
            row = self.rows.setdefault(slot, {})
            row.update({name: column[place] for name, column in message["columns"].items()})

    def by(self, key: str) -> dict[str, dict[str, Any]]:
        return {row[key]: row for row in self.rows.values()}


def summed(steps: list[int]) -> list[int]:
    at = 0
    return [at := at + step for step in steps]


def plain(column: Any) -> list[Any]:
    return column if isinstance(column, list) else [column["of"][place] for place in column["at"]]


def joined(shelf: Shelf) -> tuple[FakeClient, Replica]:
    """A client that took the snapshot and subscribed from there."""
    snapshot = json.loads(shelf.topic.snapshot("e1"))
    client = FakeClient()
    shelf.topic.subscribe(client, snapshot["seq"])
    return client, Replica(snapshot, shelf.columns)


def test_a_snapshot_and_the_frames_after_it_are_the_table() -> None:
    shelf = Shelf(5)
    client, page = joined(shelf)
    shelf.put("w1", "failed")
    shelf.topic.flush()
    shelf.put("w2", None)
    shelf.put("w9", "starting")
    shelf.topic.flush()
    shelf.put("w10", "starting")  # takes the place that w2 left, or a new one
    shelf.put("w1", "running")
    shelf.topic.flush()
    for message in client.messages:
        page.take(message)
    assert {key: row["state"] for key, row in page.by("id").items()} == shelf.rows


def test_only_columns_that_changed_are_reported_and_only_of_rows_that_did() -> None:
    shelf = Shelf(4)
    client, _ = joined(shelf)
    shelf.put("w2", "failed")
    shelf.put("w3", "running")  # touched, and as it was
    shelf.topic.flush()
    [message] = client.messages
    assert message["columns"] == {"state": ["failed"]} and summed(message["slots"]) == [2]


def test_a_frame_is_encoded_once_for_all_and_nothing_is_sent_where_nothing_changed() -> None:
    shelf = Shelf(300)
    clients = [joined(shelf)[0] for _ in range(3)]
    for number in range(300):
        shelf.put(f"w{number}", "stopped")
    shelf.topic.flush()
    assert clients[0].frames[-1] is clients[1].frames[-1] is clients[2].frames[-1]
    assert clients[0].frames[-1][0] & 0x0F == 2, "a large frame is deflated"
    shelf.topic.mark_changed("w1")
    shelf.topic.flush()
    assert len(clients[0].frames) == 1


def test_measures_are_sent_separately_and_whole_to_who_was_left_out() -> None:
    """A slow reader misses a frame of measures; its next frame contains all of them."""
    shelf = Shelf(3)
    client, page = joined(shelf)
    shelf.measure("w0", 5)
    shelf.topic.flush()
    shelf.topic.flush_measures()
    client.slow = True
    shelf.measure("w1", 7)
    shelf.topic.flush()
    shelf.topic.flush_measures()
    assert shelf.topic.moving, "somebody is owed measures"
    client.slow = False
    shelf.measure("w2", 9)
    shelf.topic.flush()
    shelf.topic.flush_measures()
    for message in client.messages:
        page.take(message)
    assert {key: row["load"] for key, row in page.by("id").items()} == {"w0": 5, "w1": 7, "w2": 9}
    assert not shelf.topic.moving


def test_measures_of_many_rows_come_in_parts_and_the_last_one_says_so() -> None:
    """A page applies a part between two frames of the screen; all of them at once would delay one."""
    shelf = Shelf(2_500)
    client, page = joined(shelf)
    shelf.topic.flush_measures()  # it is no newcomer any more
    client.frames.clear()
    for number in range(2_500):
        shelf.measure(f"w{number}", number)
    shelf.topic.flush()
    shelf.topic.flush_measures()
    assert shelf.topic.in_parts
    assert shelf.topic.moving
    shelf.put("w1500", None)  # removed before its part
    shelf.topic.flush()
    while shelf.topic.in_parts:
        shelf.topic.send_part()
    for message in client.messages:
        page.take(message)
    parts = [one for one in client.messages if one["t"] == "measures"]
    assert [(len(one["slots"]), one.get("more", False)) for one in parts] == [(1_000, True), (999, True), (500, False)]
    loads = {key: row["load"] for key, row in page.by("id").items()}
    assert loads == {f"w{number}": number for number in range(2_500) if number != 1_500}


def test_parts_that_were_not_sent_within_their_second_are_in_the_next() -> None:
    shelf = Shelf(1_500)
    client, page = joined(shelf)
    shelf.topic.flush_measures()
    for load, count in ((1, 1_500), (2, 1_200)):
        for number in range(count):
            shelf.measure(f"w{number}", load)
        shelf.topic.flush()
        shelf.topic.flush_measures()
    while shelf.topic.in_parts:
        shelf.topic.send_part()
    for message in client.messages:
        page.take(message)
    assert {key: row["load"] for key, row in page.by("id").items()} == {key: shelf.load[key] for key in shelf.rows}


def test_a_row_s_state_is_never_left_out_for_a_slow_reader() -> None:
    shelf = Shelf(2)
    client, page = joined(shelf)
    client.slow = True
    shelf.put("w1", "failed")
    shelf.topic.flush()
    page.take(client.messages[-1])
    assert page.by("id")["w1"]["state"] == "failed"


def test_who_missed_a_few_frames_gets_these_and_who_missed_too_many_starts_over() -> None:
    shelf = Shelf(2)
    _, page = joined(shelf)
    began = page.seq
    for number in range(3):
        shelf.put("w1", f"s{number}")
        shelf.topic.flush()
    back = FakeClient()
    shelf.topic.subscribe(back, began)
    assert [message["t"] for message in back.messages] == ["rows"] * 3
    for number in range(HISTORY_FRAMES + 1):
        shelf.put("w1", f"t{number}")
        shelf.topic.flush()
    for seq in (began, 10_000, 0):
        late = FakeClient()
        shelf.topic.subscribe(late, seq)
        assert [message["t"] for message in late.messages] == ["gap"]
        assert late not in shelf.topic.clients


def test_while_nobody_watches_nothing_is_read() -> None:
    shelf = Shelf(50)
    for number in range(50):
        shelf.put(f"w{number}", "failed")
        shelf.topic.flush()
    assert shelf.read == 0
    _, page = joined(shelf)
    assert {row["state"] for row in page.rows.values()} == {"failed"}


def test_a_column_of_few_values_names_each_once() -> None:
    few = json.loads(column_text(["running"] * 9 + ["failed"]))
    assert few == {"of": ["running", "failed"], "at": [0] * 9 + [1]}
    assert json.loads(column_text([{"a": "1"}, {"a": "1"}, {"a": "2"}, {"a": "1"}]))["of"] == [{"a": "1"}, {"a": "2"}]
    assert json.loads(column_text([1, True, "1", None])) == [1, True, "1", None]
    equal = json.loads(column_text([1, True, 1, True, 1]))  # equal in Python, but not the same
    assert equal["at"] == [0, 1, 0, 1, 0] and equal["of"][0] is not True and equal["of"][1] is True
    assert differences([3, 4, 9]) == [3, 1, 5]


def test_a_worker_s_row_says_what_its_view_says(tmp_path: Path) -> None:
    """The list and the worker's own page must not disagree: in every state, reachable or not."""
    world = World(tmp_path)
    spec = {"command": ["python", "a b.py"], "group": "g", "labels": {"rack": "r1"}}
    world.deploy({"h1": {"w1": spec, "w2": {"command": "x"}, "w3": {"command": "y"}}})
    usage = protocol.WorkerUsage(12.34, 5_368_709_120, 1, 1, gpus=[0, 2], gpu_percent=71.4, gpu_memory_bytes=999)
    health = protocol.Health("failing", "no answer")
    world.beat(
        "h1",
        world.report("w1", usage=usage, health=health, since=1_789_999_990.04, reason="runs", restarts_total=4),
        world.report("w2", state="backoff", next_start_in_s=30.0, reason="exit 1"),
    )
    world.fleet.workers.set_suspect("w1", "no CPU for 90 s", world.now)
    source = WorkerColumns(world.fleet)

    def compare() -> None:
        for worker_id in ("w1", "w2", "w3"):
            view = world.fleet.state.worker(worker_id)
            row = dict(zip(WorkerColumns.columns, source.row(worker_id, None, world.now.wall) or (), strict=True))
            for name in (
                "worker_id", "state", "last_known_state", "desired", "host", "agent", "group", "labels", "attempt",
                "restarts", "restarts_total", "command", "reason", "suspect", "restart_pending", "undeclared",
            ):  # fmt: skip
                shown = view[name]
                if name in ("reason", "suspect") and shown is not None:  # a row says it for any language
                    shown = {"code": view[f"{name}_code"], "params": view[f"{name}_params"]}
                assert row[name] == shown, (worker_id, name)

    compare()
    assert source.measured("w1") == (None, None, None, 12.3, 5_370_000_000, 71, 999) and source.measured("w3") is None
    row = dict(zip(WorkerColumns.columns, source.row("w2", None, world.now.wall) or (), strict=True))
    assert row["next_start_at"] == round(world.now.wall + 30)
    world.fleet.agents.mark("h1", "unreachable", "silent", world.now)
    compare()
    gone = dict(zip(WorkerColumns.columns, source.row("w1", None, world.now.wall) or (), strict=True))
    assert gone["state"] == "unknown" and gone["last_seen"] == round(world.now.wall, 1)
    assert source.row("no-such", None, 0.0) is None


def test_a_countdown_sent_again_with_each_heartbeat_is_no_change(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "x"}}})
    source = WorkerColumns(world.fleet)
    world.beat("h1", world.report("w1", state="backoff", next_start_in_s=30.0))
    first = source.row("w1", None, 1000.0)
    world.beat("h1", world.report("w1", state="backoff", next_start_in_s=28.4))
    assert source.row("w1", first, 1002.2) == first


def test_hosts_and_launchers_that_wait_are_rows_of_one_list(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "x"}}}, labels={"h1": {"gpu": "h100"}})
    gpu = protocol.GpuUsage(0, utilization_percent=80.0, memory_used_bytes=10, memory_total_bytes=100, worker_id="w1")
    idle = protocol.GpuUsage(1, utilization_percent=0.0, memory_used_bytes=0, memory_total_bytes=100)
    world.beat("h1", usage=protocol.HostUsage(7.04, 1.5, 1000, 1, 2, gpus=[gpu, idle]))
    waiting = world.register("w9", trusted=False, peer="192.0.2.7", secret_sha256=protocol.secret_sha256("x"))
    source = HostColumns(world.fleet)
    rows = [dict(zip(HostColumns.columns, source.row(one, None, 0.0) or (), strict=True)) for one in source.ids()]
    host, launcher = rows
    assert (host["host"], host["agent_state"], host["workers"], host["gpus"]) == ("h1", "connected", 1, 2)
    assert host["labels"] == {"gpu": "h100"}
    assert (launcher["agent_state"], launcher["worker_id"]) == ("pending", "w9")
    assert launcher["fingerprint"] == waiting.fingerprint
    measured = dict(zip(HostColumns.measures, source.measured("h1") or (), strict=True))
    assert (measured["cpu_percent"], measured["load1"], measured["memory_used_bytes"]) == (7.0, 1.5, 1000)
    gpus = ("gpu_percent", "gpu_memory_used_bytes", "gpu_memory_total_bytes", "gpus_used")
    assert [measured[name] for name in gpus] == [40, 10, 200, 1]


def test_an_ended_launchers_worker_is_listed_as_the_api_shows_it(tmp_path: Path) -> None:
    """The list called it unknown while the API said that it had stopped."""
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "x"}}})
    world.beat("h1", world.report("w1", state="stopped", reason="stopped by its user"))
    world.fleet.state.agent_status["h1"].state = "ended"
    row = dict(zip(WorkerColumns.columns, WorkerColumns(world.fleet).row("w1", None, 0.0) or (), strict=True))
    assert (row["state"], row["reason"]) == ("stopped", {"code": "text", "params": {"text": "stopped by its user"}})
    assert row["state"] == world.fleet.state.worker("w1")["state"]


def test_the_list_of_hosts_reports_that_a_disk_refuses_writes(tmp_path: Path) -> None:
    """The page showed it, but no row contained it."""
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "x"}}})
    world.beat("h1", disk_trouble="space", disk_path="/data")
    row = dict(zip(HostColumns.columns, HostColumns(world.fleet).row("h1", None, 0.0) or (), strict=True))
    assert row["disk_trouble"] == "space"


def test_others_run_while_thousands_of_rows_are_reported_and_what_is_reported_is_of_one_moment() -> None:
    shelf, rests, aside = Shelf(5_000), [], []

    def rest() -> None:
        rests.append(1)
        if meanwhile:
            shelf.topic._measured[0] = (999,)

    def deflate(work: Any, arguments: Any) -> bytes:
        aside.append(len(arguments[0]))
        return work(*arguments)

    meanwhile = False
    shelf.topic = RowTopic("rows:test", shelf, rest, aside=deflate)
    client = FakeClient()
    shelf.topic.subscribe(client, json.loads(shelf.topic.snapshot("e"))["seq"])
    shelf.topic.flush_measures()  # it is no newcomer any more
    for number in range(5_000):
        shelf.rows[f"w{number}"], shelf.load[f"w{number}"] = f"state {number % 7}", number * 1_000
        shelf.topic.mark_changed(f"w{number}")
    client.frames.clear()
    aside.clear()
    rests.clear()
    shelf.topic.flush()
    assert len(rests) > 5_000 // REST_EVERY + len(shelf.columns)
    rests.clear()
    meanwhile = True
    shelf.topic.flush_measures()
    assert len(rests) >= 2
    assert len(aside) == 1, "what is large is not deflated on the loop"
    rows, measures = client.messages
    assert rows["columns"] == {"state": [f"state {number % 7}" for number in range(5_000)]}
    assert measures["columns"]["load"][:3] == [0, 1_000, 2_000]
