"""Leader election on a real PostgreSQL: takeovers, fencing of a former leader, knowledge of a standby."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from procguard.config import schema
from procguard.errors import ProcGuardError
from procguard.fleet.store import leader_row, postgresql
from procguard.fleet.store.interface import Fenced, NotDurable
from procguard.fleet.store.postgres_link import DatabaseLink, DatabasePlace
from procguard.fleet.store.postgresql import PostgresqlStore, WarmCopy
from procguard.manager import seat as seats
from procguard.manager import several
from procguard.manager.peers import in_words
from procguard.manager.seat import Seat
from tests import postgres_server
from tests.postgres_server import PASSWORD, Postgres
from tests.waiting import wait_until

TAKEOVER_S = 0.4


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server.cluster(fsync="off") as started:
        yield started


@pytest.fixture
def place(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> DatabasePlace:
    """A new database; a standby waits for a tenth of the real time."""
    monkeypatch.setattr(seats, "TAKEOVER_S", TAKEOVER_S)
    monkeypatch.setattr(seats, "FOLLOW_S", 0.0)
    monkeypatch.setattr(seats, "REGISTER_S", 0.0)
    return DatabasePlace(server.url(server.database()), str(server.password))


@pytest.fixture
def seat_of(place: DatabasePlace) -> Iterator[dict[str, Seat]]:
    """m1, m2, m3; m1 leads."""
    found = {
        name: Seat(place, name, 20.0, urls=lambda name=name: [f"http://{name}:5000"]) for name in ("m1", "m2", "m3")
    }
    found["m1"].prepare()
    assert found["m1"].poll(), "on a new database the first one leads at once"
    yield found
    for one in found.values():
        one.close()


def leads_within(seat: Seat, seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if seat.poll():
            return True
        time.sleep(0.02)
    return False


def store_of(seat: Seat) -> PostgresqlStore:
    assert seat.taken is not None
    store = PostgresqlStore(seat.place, seat.name)
    store.took(seat.taken, seat.warm)
    store.load()
    return store


def test_a_standby_waits_while_the_beat_changes_and_leads_once_it_does_not(seat_of: dict[str, Seat]) -> None:
    m1, m2 = seat_of["m1"], seat_of["m2"]
    ends = time.monotonic() + 3 * TAKEOVER_S
    while time.monotonic() < ends:
        began = time.monotonic()
        assert m1.beat_once()
        assert not m2.poll()
        time.sleep(TAKEOVER_S / 5)
    assert (m2.leader, m2.term) == ("m1", m1.term)
    assert leads_within(m2, 5.0)
    assert time.monotonic() - began >= TAKEOVER_S
    assert m2.term > m1.term


def test_beats_go_on_while_the_event_loop_is_held(seat_of: dict[str, Seat], monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the state of ten thousand agents is read."""
    monkeypatch.setattr(seats, "BEAT_S", TAKEOVER_S / 4)
    m1, m2 = seat_of["m1"], seat_of["m2"]
    m2.poll()
    with m1.beating_beside():
        ends = time.monotonic() + 3 * TAKEOVER_S
        while time.monotonic() < ends:  # no greenlet has a turn
            assert not m2.poll()
            sum(range(20_000))
    assert m1.may_direct()
    assert m1.beat_once()


def test_a_leader_whose_event_loop_hangs_stops_its_beats(
    seat_of: dict[str, Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "BEAT_S", TAKEOVER_S / 4)
    monkeypatch.setattr(seats, "LOOP_HANGS_S", TAKEOVER_S)
    m1, m2 = seat_of["m1"], seat_of["m2"]
    beats = gevent.spawn(m1.beat_forever)
    ends = time.monotonic() + 3 * TAKEOVER_S
    while time.monotonic() < ends:  # the loop continues
        assert not m2.poll()
        gevent.sleep(0.01)
    assert leads_within(m2, 6 * TAKEOVER_S), "no greenlet has a turn in here"
    with gevent.Timeout(5):
        m1.fenced.wait()
    beats.join()


def test_a_former_leader_is_fenced_and_nothing_that_it_commits_counts(seat_of: dict[str, Seat]) -> None:
    m1, m2 = seat_of["m1"], seat_of["m2"]
    old = store_of(m1)
    old.commit([("workers", "w1", {"n": 1})])
    assert leads_within(m2, 5.0)
    new = store_of(m2)
    with pytest.raises(Fenced, match="another manager leads"):
        old.commit([("workers", "w1", {"n": 2})], [("events", {"seq": 1, "at": "x", "kind": "k", "reason": "r"})])
    m1.beat_once()
    assert m1.ended
    assert not m1.may_direct() and not m1.may_renew()
    assert PostgresqlStore(m1.place).read().tables["workers"] == {"w1": {"n": 1}}
    assert PostgresqlStore(m1.place).find("events", seats_query(), 9) == []
    for one in (old, new):
        one.close()


def seats_query() -> postgresql.EventQuery:
    return postgresql.EventQuery()


def test_of_two_standbys_one_leads(seat_of: dict[str, Seat]) -> None:
    m2, m3 = seat_of["m2"], seat_of["m3"]
    won: list[str] = []
    ends = time.monotonic() + 3 * TAKEOVER_S
    while time.monotonic() < ends:
        for one in (m2, m3):
            if one.name in won:
                one.beat_once()
            elif one.poll():
                won.append(one.name)
        time.sleep(0.02)
    assert len(won) == 1
    assert {m2.leader, m3.leader} == set(won)


def test_after_a_transfer_the_one_that_was_named_leads_at_once_and_the_others_wait(seat_of: dict[str, Seat]) -> None:
    m1, m2, m3 = seat_of.values()
    assert not m2.poll() and not m3.poll()
    m1.release("m3")
    assert not m1.may_direct()
    assert not m2.poll()
    assert m3.poll()
    m3.release()
    assert m2.poll()


def test_where_the_named_one_does_not_come_another_leads_after_the_usual_time(seat_of: dict[str, Seat]) -> None:
    seat_of["m1"].release("m3")
    assert leads_within(seat_of["m2"], 5.0)


def test_trust_ends_by_the_clock_that_counts_sleep_and_the_grace_renews_leases_longer(
    seat_of: dict[str, Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    m1, now = seat_of["m1"], seats.boottime()
    m1.beat_once()
    for later_s, directs, renews in ((2.0, True, True), (3.5, False, True), (19.0, False, True), (21.5, False, False)):
        monkeypatch.setattr(seats, "boottime", lambda later_s=later_s: now + later_s)
        assert (m1.may_direct(), m1.may_renew()) == (directs, renews), later_s


def test_the_grace_of_every_leader_that_may_still_renew_leases_is_carried_on(
    place: DatabasePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    m1, m2, m3 = Seat(place, "m1", 100.0), Seat(place, "m2", 0.0), Seat(place, "m3", 7.0)
    m1.prepare()
    assert m1.poll()
    assert m1.grace_s == 0.0
    assert leads_within(m2, 5.0)
    assert m2.grace_s == 100.0, "m1 was lost without a word"
    m2.release()
    assert m3.poll()
    assert m3.grace_s == 100.0, "m2 handed over, but m1 may still renew"
    now = seats.boottime()
    monkeypatch.setattr(seats, "boottime", lambda: now + 150.0)
    m3.release()
    assert Seat(place, "m4").poll()
    row = m3.ask(leader_row.read)
    assert (row.carried_s, row.grace_s) == (0.0, 0.0), "m3 led for longer than m1 may have renewed"
    for one in (m1, m2, m3):
        one.close()


def test_a_standby_that_lost_the_database_gives_the_leader_its_time_again(
    seat_of: dict[str, Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    m2 = seat_of["m2"]
    assert not m2.poll()
    time.sleep(TAKEOVER_S * 0.8)
    with monkeypatch.context() as patched:
        patched.setattr(leader_row, "read", lambda _connection: (_ for _ in ()).throw(OSError(5, "no connection")))
        assert not m2.poll()
        assert m2.unreachable == "no connection"
    time.sleep(TAKEOVER_S * 0.5)
    assert not m2.poll(), "the time before the failure does not count"
    assert leads_within(m2, 5.0)


def test_urls_have_the_leader_first_and_are_bounded(seat_of: dict[str, Seat]) -> None:
    for one in seat_of.values():
        one.poll()
    m2, m3 = seat_of["m2"], seat_of["m3"]
    assert m3.manager_urls() == ["http://m1:5000", "http://m2:5000", "http://m3:5000"]
    assert leads_within(m2, 5.0)
    m3.poll()
    assert m3.manager_urls()[0] == "http://m2:5000"
    m2.urls = lambda: [f"http://m2:{port}" for port in range(100)]
    m2.beat_once()
    assert len(m2.manager_urls()) <= seats.MAX_URLS


# ------------------------------------------------------------------------------------------------ the warm copy


def followed(warm: WarmCopy, place: DatabasePlace) -> dict[str, int]:
    link = DatabaseLink(place, "test")
    link.transaction(warm.follow)
    link.close()
    return {key: one["n"] for key, one in warm.tables["workers"].items()}


def test_the_warm_copy_follows_changes_and_deletions_and_reads_all_again_where_it_is_too_far_behind(
    seat_of: dict[str, Seat], place: DatabasePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, warm = store_of(seat_of["m1"]), WarmCopy()
    store.commit([("workers", f"w{n}", {"n": n}) for n in range(5)])
    assert set(followed(warm, place)) == {f"w{n}" for n in range(5)}
    store.commit([("workers", "w1", None), ("workers", "w2", {"n": 20})])
    assert followed(warm, place) == {"w0": 0, "w2": 20, "w3": 3, "w4": 4}
    monkeypatch.setattr(postgresql, "LISTED_COMMITS", 0)
    store.commit([("workers", "w3", None)])
    store._purge_due = 0.0
    store.save()
    assert set(followed(warm, place)) == {"w0", "w2", "w4"}
    assert followed(WarmCopy(), place) == followed(warm, place)
    store.close()


def test_commits_that_the_database_lost_are_noticed_and_written_again(
    seat_of: dict[str, Seat], server: Postgres
) -> None:
    """As after a failover to a replica that lacked them: the row is there, the last commits are not."""
    m1, store = seat_of["m1"], store_of(seat_of["m1"])
    m1.acknowledged, m1.on_beat = lambda: store.acknowledged, store.compare
    for n in range(3):
        store.commit([("workers", "w1", {"n": n})])
    database = m1.place.url.rpartition("/")[2]
    server.sql("UPDATE procguard.leader SET commits = commits - 2; DELETE FROM procguard.records", database)
    m1.beat_once()
    assert not store.in_place()
    with pytest.raises(NotDurable, match="lost its last commits"):
        store.commit([("workers", "w2", {"n": 7})])
    store.write_again({"workers": {"w1": {"n": 2}, "w2": {"n": 7}}})
    assert store.in_place()
    store.commit([("workers", "w3", {"n": 8})])
    assert PostgresqlStore(m1.place).read().tables["workers"] == {"w1": {"n": 2}, "w2": {"n": 7}, "w3": {"n": 8}}
    store.close()


def test_another_history_of_the_database_makes_the_next_leader_ask_every_agent(
    seat_of: dict[str, Seat], server: Postgres
) -> None:
    m1 = seat_of["m1"]
    server.sql("UPDATE procguard.leader SET identity = 'another/00000001'", m1.place.url.rpartition("/")[2])
    store = PostgresqlStore(m1.place, "m2")
    found = store.load()
    assert not found.intact
    assert "every agent is asked first" in found.notes[0]
    store.close()


# ------------------------------------------------------------------------------------------------ the connection


def test_a_password_comes_from_its_file_and_is_shown_nowhere(
    place: DatabasePlace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wr0ng-secret\n")
    for given in (str(wrong), str(tmp_path / "missing")):
        other = DatabasePlace(place.url, given)
        with pytest.raises(ProcGuardError) as refused:
            PostgresqlStore(other).load()
        said = (
            f"{refused.value} {refused.value.__cause__!r} {refused.value.__context__!r} {other!r} {other} {caplog.text}"
        )
        assert "wr0ng-secret" not in said
        assert PASSWORD not in said
    assert "password" in str(refused.value)


def test_the_password_may_come_from_the_environment(place: DatabasePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    store = PostgresqlStore(DatabasePlace(place.url))
    assert store.load().tables == {}
    store.close()


def test_a_manager_takes_the_password_out_of_its_environment(
    place: DatabasePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of an agent on the manager's own machine could read it there."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    found = several.place_of(schema.load(None, [f"state.database={place.url}"]))
    assert "PGPASSWORD" not in os.environ
    assert PASSWORD not in f"{found!r} {found}"
    store = PostgresqlStore(found)
    store.load()
    store.close()


def test_of_several_hosts_the_one_that_takes_changes_is_used(server: Postgres) -> None:
    name = server.database()
    with postgres_server.replica(server) as standby:
        hosts = f"127.0.0.1:{standby.port},127.0.0.1:{server.port}"
        url = f"postgresql://procguard@{hosts}/{name}?target_session_attrs=read-write"
        store = PostgresqlStore(DatabasePlace(url, str(server.password)))
        store.load()
        store.commit([("workers", "w1", {"n": 1})])
        wait_until(lambda: standby.sql("SELECT to_regclass('procguard.records')", name), 30, "the table is replicated")
        wait_until(
            lambda: standby.sql("SELECT id FROM procguard.records", name) == "w1", 30, "the record is replicated"
        )
        store.close()


def test_a_database_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ProcGuardError, match=r"cannot use postgresql://nobody@127\.0\.0\.1:1/x .*refused"):
        PostgresqlStore(DatabasePlace("postgresql://nobody@127.0.0.1:1/x")).load()


def test_a_full_disk_of_the_database_is_one_clear_line_and_costs_no_new_connection(server: Postgres) -> None:
    link = DatabaseLink(DatabasePlace(server.url(server.database()), str(server.password)), "test")
    problem = "could not extend file: No space left on device"
    full = f"DO $$ BEGIN RAISE EXCEPTION '{problem}' USING ERRCODE = 'disk_full', HINT = 'Check free space.'; END $$"
    process = link.call(lambda it: it.execute("SELECT pg_backend_pid()").fetchone())
    for call in (link.call, link.transaction):
        tries: list[bool] = []
        with pytest.raises(OSError, match=problem) as caught:
            call(lambda it, tries=tries: (tries.append(True), it.execute(full)))  # type: ignore[misc]
        assert caught.value.strerror == problem
        assert len(tries) == 1
        assert link.call(lambda it: it.execute("SELECT pg_backend_pid()").fetchone()) == process
    link.close()


@pytest.mark.parametrize(
    ("found", "said", "warns"),
    [
        (leader_row.Replication(1, "FIRST 1 (replica1)", "on"), "synchronous", ""),
        (leader_row.Replication(1, "", "on"), "asynchronous", "may lose the last acknowledged changes"),
        (leader_row.Replication(0, "", "on"), "no replica", "if its machine is lost"),
        (leader_row.Replication(1, "FIRST 1 (r)", "local"), "do not wait", "may lose acknowledged changes"),
    ],
)
def test_replication_is_said_in_words_with_what_it_endangers(
    found: leader_row.Replication, said: str, warns: str
) -> None:
    words, warnings = in_words(found)
    assert said in words
    assert warns in " ".join(warnings)
    assert bool(warns) == bool(warnings)


def test_one_manager_alone_loads_no_driver_of_postgresql() -> None:
    script = (
        "import sys, procguard.main, procguard.manager.app, procguard.cli.state; sys.exit('psycopg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


@pytest.mark.slow
def test_a_server_that_is_frozen_ends_a_call_in_time_and_a_new_connection_works_afterwards(server: Postgres) -> None:
    """It still acknowledges TCP, so only a client-side timeout ends the call: in a process patched by gevent."""
    place = DatabasePlace(server.url(server.database()), str(server.password))
    script = """
from gevent import monkey; monkey.patch_all()
import sys, time
from procguard.fleet.store.postgres_link import DatabaseLink, DatabasePlace
link, other = (DatabaseLink(DatabasePlace(sys.argv[1], sys.argv[2]), "test") for _ in range(2))
other.call(lambda c: None)
print(link.call(lambda c: c.execute("SELECT 1").fetchone()), flush=True)
sys.stdin.readline()
began = time.monotonic()
for call in (link.call, other.transaction):  # a transaction that is cut tries no ROLLBACK
    try:
        call(lambda c: c.execute("SELECT 2").fetchone(), 1.0)
    except OSError as exc:
        print(exc.strerror, time.monotonic() - began < 4.0, flush=True)
sys.stdin.readline()
print(link.call(lambda c: c.execute("SELECT 3").fetchone()), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, place.url, place.password_file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "PYTHONPATH": "."},
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "(1,)\n"
        server.signal_all(signal.SIGSTOP)
        try:
            child.stdin.write("\n")
            child.stdin.flush()
            assert [child.stdout.readline() for _ in range(2)] == ["no answer within 1 s True\n"] * 2
        finally:
            server.signal_all(signal.SIGCONT)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "(3,)\n"
