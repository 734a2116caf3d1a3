"""Concurrent connections are bounded, more tightly through one jump host, and a hung one delays others only briefly."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from procguard.deploy.install.helper import Helper
from procguard.deploy.ssh.pool import ConnectionPool, PoolExhausted
from tests.waiting import wait_until

SOON_S = 10.0


def soon() -> float:
    return time.monotonic() + SOON_S


def test_no_more_than_the_bound_at_once_and_fewer_through_one_jump_host() -> None:
    pool = ConnectionPool(most=3, per_jump_host=2)
    at_work: list[str] = []
    most: dict[str, int] = {"all": 0, "jump": 0}
    lock = threading.Lock()

    def work(jump: str) -> None:
        with pool.connection(jump, soon()):
            with lock:
                at_work.append(jump)
                most["all"] = max(most["all"], len(at_work))
                most["jump"] = max(most["jump"], at_work.count("jump"))
            time.sleep(0.02)
            with lock:
                at_work.remove(jump)

    threads = [threading.Thread(target=work, args=("jump" if number % 2 else "",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert not any(thread.is_alive() for thread in threads)
    assert most == {"all": 3, "jump": 2}


def test_waiting_for_a_jump_host_holds_up_nobody_else() -> None:
    pool = ConnectionPool(most=3, per_jump_host=1)
    with pool.connection("jump", soon()):
        waiting = threading.Thread(target=lambda: pool.connection("jump", soon()).__enter__(), daemon=True)
        waiting.start()
        with pool.connection("other", soon()), pool.connection("", soon()):
            assert waiting.is_alive()


def test_without_a_turn_until_the_deadline_it_is_said() -> None:
    pool = ConnectionPool(most=1)
    with (
        pool.connection("", soon()),
        pytest.raises(PoolExhausted, match="1 connection attempts"),
        pool.connection("", time.monotonic() + 0.05),
    ):
        raise AssertionError("there was room")


def test_what_hangs_beyond_its_deadline_gives_its_turn_back_and_is_counted() -> None:
    pool, hangs = ConnectionPool(most=1), threading.Event()

    def hang() -> None:
        with pool.connection("", time.monotonic() + 0.05):
            hangs.wait(SOON_S)

    stuck = threading.Thread(target=hang)
    stuck.start()
    wait_until(lambda: pool.stuck == 1, SOON_S)
    with pool.connection("", soon()):
        assert pool.stuck == 1
    hangs.set()
    stuck.join(SOON_S)
    assert pool.stuck == 0


class Hanging:
    """A connector whose hosts named "mute" accept connections and stay silent beyond every deadline."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def check(self, target: Any, _deadline: float) -> None:
        if target.host.startswith("mute"):
            self.released.wait(SOON_S)


def test_more_silent_hosts_than_connections_cost_the_others_one_deadline_at_most_and_each_is_answered_once() -> None:
    out, connector = io.BytesIO(), Hanging()
    helper = Helper(connector, out, ConnectionPool(most=2))  # type: ignore[arg-type]
    for number in range(4):
        helper.take({"id": number, "op": "check", "host": f"mute{number}", "deadline_s": 0.3})
    helper.take({"id": 9, "op": "check", "host": "well", "deadline_s": 5.0})
    wait_until(lambda: out.getvalue().count(b"\n") == 5, SOON_S)
    connector.released.set()
    answers = {one["id"]: one for one in map(json.loads, out.getvalue().splitlines())}
    assert answers[9]["ok"] is True
    assert [answers[number]["ok"] for number in range(4)] == [False] * 4
    assert any("no answer over SSH" in answers[number]["message"] for number in range(4))


@pytest.mark.parametrize(
    ("report", "replace", "agent"),
    [
        ({"running": True, "pid": 7, "frozen": True}, False, "frozen"),
        ({"running": True, "pid": 7, "frozen": False}, False, "running"),
        ({"running": True, "pid": 8, "changes": ["started"]}, True, "started"),
        ({"running": False, "reason": "stopped by hand"}, True, "failed"),
    ],
)
def test_a_probe_distinguishes_running_started_frozen_and_failed(
    report: dict[str, Any], replace: bool, agent: str
) -> None:
    asked: list[dict[str, Any]] = []

    class Session:
        def perform(self, _op: str, where: dict[str, Any], _deadline: float) -> dict[str, Any]:
            asked.append(where)
            return report

    class OneSession:
        @contextlib.contextmanager
        def session(self, _target: Any, _deadline: float) -> Iterator[Session]:
            yield Session()

    out = io.BytesIO()
    helper = Helper(OneSession(), out)  # type: ignore[arg-type]
    helper.take({"id": 1, "op": "ensure", "host": "h", "fleet_id": "f", "replace_frozen": replace, "deadline_s": 5})
    wait_until(lambda: out.getvalue().endswith(b"\n"), SOON_S)
    answer = json.loads(out.getvalue())
    assert (answer["ok"], answer["agent"]) == (True, agent)
    assert asked[0]["replace_frozen"] is replace
