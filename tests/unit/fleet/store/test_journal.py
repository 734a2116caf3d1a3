"""The agent's journal, which survives its death."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remote_agent.agent import journal as journal_module
from remote_agent.agent.journal import AgentJournal
from remote_agent.protocol.messages import CommandResult


def test_executed_commands_and_acks_survive_without_a_clean_end(tmp_path: Path) -> None:
    """Nothing is closed or flushed: as after kill -9."""
    path = str(tmp_path / "journal.jsonl")
    first = AgentJournal(path)
    first.begin("c-1")
    first.end(CommandResult("c-1", "done", "attempt 2 started"))
    first.begin("c-2")
    first.ack("worker1", 17)
    again = AgentJournal(path)
    assert again.acted("c-1") and again.result("c-1") == CommandResult("c-1", "done", "attempt 2 started")
    assert again.acted("c-2") and again.result("c-2") is None
    assert not again.acted("c-3")
    assert again.acked("worker1") == 17


def test_torn_last_line_is_skipped_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    """A power cut tears the last line; what is written afterwards stands on a line of its own."""
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"t":"begin","id":"c-1"}\n{"t":"beg')
    journal = AgentJournal(str(path))
    journal.begin("c-2")
    again = AgentJournal(str(path))
    assert again.acted("c-1") and again.acted("c-2")


def test_acknowledgements_only_rise(tmp_path: Path) -> None:
    """A late answer never has events sent twice."""
    journal = AgentJournal(str(tmp_path / "j"))
    assert journal.ack("w", 5)
    assert not journal.ack("w", 4)
    assert journal.acked("w") == 5
    journal.forget("w")
    assert AgentJournal(str(tmp_path / "j")).acked("w") == 0


def test_the_file_and_the_memory_stay_bounded(tmp_path: Path) -> None:
    """Thousands of commands and acks: the file is compacted, the newest commands are kept."""
    path = tmp_path / "j"
    journal = AgentJournal(str(path))
    for number in range(4000):
        journal.begin(f"c-{number}")
        journal.end(CommandResult(f"c-{number}", "done", ""))
        journal.ack("w", number + 1)
    assert len(path.read_bytes().splitlines()) <= journal_module.MAX_LINES + 1
    again = AgentJournal(str(path))
    assert again.acted("c-3999") and not again.acted("c-0")
    assert again.acked("w") == 4000


def test_full_disk_keeps_working_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written is kept in memory and written once there is space."""
    journal = AgentJournal(str(tmp_path / "j"))

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("remote_agent.agent.journal.os.write", full)
        journal.begin("c-1")
    assert journal.behind and journal.acted("c-1")
    assert not AgentJournal(str(tmp_path / "j")).acted("c-1")
    journal.write_again()
    assert not journal.behind and AgentJournal(str(tmp_path / "j")).acted("c-1")


def test_a_line_that_a_full_disk_tore_swallows_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, write = AgentJournal(str(tmp_path / "j")), os.write
    with monkeypatch.context() as patch:
        patch.setattr("remote_agent.agent.journal.os.write", lambda fd, data: write(fd, data[:7]))
        journal.begin("c-1")
    journal.begin("c-2")
    again = AgentJournal(str(tmp_path / "j"))
    assert again.acted("c-1") and again.acted("c-2")
