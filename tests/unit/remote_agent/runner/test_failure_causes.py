"""Causes of failure by the last lines: tests/golden/last_lines/*.log, whose first line has the end of the program
and what is expected, e.g. `code 1 -> gpu_oom`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from procguard.fleet.history import causes
from remote_agent.protocol.host_reasons import HOST
from remote_agent.runner.failure_causes import own_patterns
from remote_agent.runner.failure_causes.decision import find
from remote_agent.runner.failure_causes.patterns import STRICT
from remote_agent.runner.failure_causes.proof import ProvenCause, of_attempt
from remote_agent.runner.failure_causes.tail import plain, read_tail
from tests.rows import each
from tests.unit.runner_rig import Rig
from tests.waiting import Stopwatch

ROOT = Path(__file__).parents[4]
CORPUS = sorted((ROOT / "tests" / "golden" / "last_lines").glob("*.log"))
NEVER_ON = sorted(STRICT)


def expected(path: Path) -> tuple[str, str, bytes]:
    """(how it ended, the cause, its last lines)."""
    head, _, text = path.read_bytes().partition(b"\n")
    ended, _, cause = head.decode().partition(" -> ")
    return ended, cause, text


def found_in(text: bytes, ended: str, log: Path, own: dict[str, str] | None = None) -> ProvenCause | None:
    log.write_bytes(text)
    code, signal = exits(ended)
    return of_attempt([("out", str(log))], code, signal, ended.endswith(" oom"), "oomlately" in ended, own)


def exits(ended: str) -> tuple[int | None, int | None]:
    """(code, signal)"""
    kind, number, *_ = ended.split()
    return (int(number), None) if kind == "code" else (None, int(number))


def lines_of(text: bytes, folder: Path) -> list[str]:
    (folder / "lines").write_bytes(text)
    return [line for _, line in read_tail(str(folder / "lines"))]


@each("path", CORPUS)
def test_the_cause_of_each_failure_is_found(path: Path, tmp_path: Path):
    ended, cause, text = expected(path)
    found = found_in(text, ended, tmp_path / "1.log")
    assert (found.word if found else "none") == cause
    if found is not None and found.line:
        line = text[found.offset :].partition(b"\n")[0]
        assert plain(line).strip().startswith(found.line), "the line begins elsewhere"


def test_the_corpus_holds_each_cause_that_a_host_may_name_and_ends_without_any():
    held = {expected(path)[1] for path in CORPUS}
    assert held - {"none"} <= set(causes.FOUND)
    rare = {"arithmetic_error", "file_size_limit", "exception"}
    assert set(causes.FOUND) - held <= rare
    assert len(CORPUS) >= 100 and sum(expected(path)[1] == "none" for path in CORPUS) >= 15


@each("path", CORPUS)
def test_what_goes_on_after_a_failure_is_no_lasting_cause(path: Path, tmp_path: Path):
    """The same lines from a program that then works: whatever ends it later, restarts are not disabled."""
    ended, _, text = expected(path)
    later = [*(f"epoch {n} loss 0.{99 - n}" for n in range(12)), "accuracy below the goal"]
    lines = [*lines_of(text, tmp_path), *later]
    for code, signal in (exits(ended), (1, None), (127, None), (None, 9), (None, 15)):
        found = find(lines, code, signal)
        assert found is None or found.word not in NEVER_ON, f"{code} {signal}: {found.word}"


@each("path", CORPUS)
def test_a_line_in_the_middle_of_chatter_is_no_lasting_cause(path: Path, tmp_path: Path):
    """Each line of a failure alone, quoted by a program that ends otherwise."""
    for line in lines_of(expected(path)[2], tmp_path)[-8:]:
        for quoted in (line, f"> {line}"):
            found = find(["reading the report", quoted, "14 reports read, 2 could not be parsed"], 1, None)
            assert found is None or found.word not in NEVER_ON, line


def test_signals_that_others_send_and_good_ends_have_no_cause(tmp_path: Path):
    text = b'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nImportError: no b\n'
    for ended in ("code 0", "signal 9", "signal 15", "signal 1", "code 143"):
        assert found_in(text, ended, tmp_path / "1.log") is None
    assert found_in(text, "code 1", tmp_path / "1.log") is not None


def test_only_the_end_of_a_large_log_is_read_within_five_milliseconds(tmp_path: Path):
    log = tmp_path / "1.log"
    with open(log, "wb") as file:
        file.truncate(10 * 2**30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"x" * 200_000 + b"\nstep\r" * 20_000)
        file.write(b'Traceback (most recent call last):\n  File "/a.py", line 7, in <module>\nMemoryError\n')
    best = 1.0
    for _ in range(5):
        began = time.thread_time()
        found = of_attempt([("out", str(log)), ("err", str(tmp_path / "none"))], 1, None)
        best = min(best, time.thread_time() - began)
    assert found is not None and (found.word, found.line, found.where) == ("out_of_memory", "MemoryError", "/a.py:7")
    assert found.offset == log.stat().st_size - len(b"MemoryError\n")
    assert best < 0.005


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\xfe\x00" * 9000, b"\r" * 70_000, b"\x1b[" * 40_000, os.urandom(70_000), b"[" * 70_000,
        b"Traceback (most recent call last):\n" * 2000, b'  File "' * 9000,
    ],
)  # fmt: skip
def test_whatever_a_job_prints_ends_soon_and_without_an_error(data: bytes, tmp_path: Path):
    watch = Stopwatch()
    for ended in ("code 1", "code 127", "signal 6", "code 2"):
        found_in(data, ended, tmp_path / "1.log")
    assert watch.seconds < 1.0


def test_titles_and_links_of_a_terminal_are_no_text(tmp_path: Path):
    """As rich prints a traceback at a terminal: each path is a link (OSC 8), ended by ST or by BEL."""
    assert plain(b"\x1b]0;train\x07step \x1b[1m7\x1b[0m") == "step 7"
    assert plain(b"in \x1b]8;id=7;file:///p/a.py\x1b\\a.py:3\x1b]8;;\x1b\\ now") == "in a.py:3 now"
    text = b'Traceback (most recent call last):\n  File "/p/a.py", line 3, in <module>\n'
    text += b"\x1b]0;failed\x07\x1b]8;;https://x/y\x07ModuleNotFoundError\x1b]8;;\x07: No module named 'b'\n"
    found = found_in(text, "code 1", tmp_path / "1.log")
    assert found is not None and (found.word, found.line) == (
        "import_error",
        "ModuleNotFoundError: No module named 'b'",
    )


def test_users_own_patterns_go_first_and_only_for_the_last_lines(tmp_path: Path):
    own = {"data_gone": r"(?:dataset) \S+ is not mounted", "bad_node": "nothing here"}
    text = b"dataset s3 is not mounted\n" + b"trying\n" * 3
    found = found_in(text, "code 1", tmp_path / "1.log", own)
    assert found is not None and (found.word, found.line, found.offset) == ("data_gone", "dataset s3 is not mounted", 0)
    assert found.reason == "data_gone: dataset s3 is not mounted"
    assert found.reason.params["cause"] == "data_gone"  # a word: no code of ours
    assert found_in(text + b"trying\n" * 30, "code 1", tmp_path / "1.log", own) is None


def test_an_expression_that_runs_away_is_killed_and_finds_nothing(tmp_path: Path):
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before, began = children.read_text(), time.monotonic()
    found = found_in(b"a" * 60 + b"!\n", "code 1", tmp_path / "1.log", {"slow": "(a+)+$", "bad": "("})
    assert found is None
    assert time.monotonic() - began < own_patterns.OWN_TIME_S + 2
    assert children.read_text() == before, "it still runs"


def test_each_cause_is_documented_and_a_lasting_one_is_the_same_on_both_sides():
    page = (ROOT / "docs" / "failure-causes.md").read_text()
    assert [word for word in causes.FOUND if f"| `{word}` |" not in page] == []
    assert set(causes.LASTING) == STRICT and all(f"failure.{word}" in HOST for word in STRICT)


# ------------------------------------------------------------------------------------------------ in the runner


def python_job(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_failed_attempt_says_why_and_where_in_its_log(rig: Rig):
    rig.shell("echo hello; echo 'sh: 1: nothing-like-it: not found' >&2; exit 127", restart={"max_attempts": 0}).run()
    status = rig.until("failed")
    record = rig.exit_record(1)
    assert record["cause"] == "command_not_found" and record["line"] == "sh: 1: nothing-like-it: not found"
    assert (record["line_stream"], record["line_offset"]) == ("out", 6)
    assert "exit code 127 after" in status["reason"]
    assert "; command not found: sh: 1: nothing-like-it: not found; no restarts allowed" in status["reason"]


def test_a_cause_of_never_on_is_not_restarted_and_any_other_is(rig: Rig):
    rig.assignment["argv"] = python_job("import nothing_like_it")
    rig.assignment["spec"]["restart"] = {"never_on": ["import_error"], "backoff_s": [0.0]}
    rig.run()
    status = rig.until("failed")
    assert status["attempt"] == 1 and status["reason"].endswith("not restarted: restart.never_on names import_error")
    assert status["last_exit"]["cause"] == "import_error"


def test_without_never_on_everything_is_restarted_as_before(rig: Rig):
    rig.assignment["argv"] = python_job("import nothing_like_it")
    rig.assignment["spec"]["restart"] = {"max_attempts": 2, "backoff_s": [0.0]}
    rig.run()
    status = rig.until("failed")
    assert status["attempt"] == 3 and "all 2 restarts are used up" in status["reason"]


def test_the_users_own_cause_comes_from_the_assignment(rig: Rig):
    rig.assignment["causes"] = {"data_gone": "is not mounted$"}
    rig.shell("echo dataset a is not mounted; exit 4", restart={"never_on": ["data_gone"]}).run()
    assert rig.until("failed")["last_exit"]["cause"] == "data_gone"


def test_a_stop_or_a_kill_has_no_cause(rig: Rig):
    rig.shell("trap 'echo bye: command not found; exit 127' TERM; echo up; while :; do sleep 0.05; done").run()
    rig.until("running")
    rig.connect()
    assert rig.link is not None
    rig.link.assign("stopped", 2, 1_000_001)
    rig.until("stopped")
    assert rig.exit_record(1)["cause"] == "" and "line" not in rig.exit_record(1)


def test_a_runner_does_not_load_the_table_before_an_attempt_has_failed():
    loaded = "import remote_agent.runner.loop; print([one for one in sys.modules if 'failure_causes' in one])"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {loaded}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
