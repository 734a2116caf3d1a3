"""The agent's durable memory: the commands that it has executed, and the events that the manager has stored.

Owns journal.jsonl: appended line by line, compacted when it grows. A torn last line (power cut) is skipped. Space is
reserved in the file, so that lines can be appended on a full disk; lines that cannot be written wait in memory. Knows
neither the manager nor the runners. Only the agent's main loop calls it.

  {"t":"begin","id":"c-7f"}                                  before this command is executed: never execute it again
  {"t":"end","id":"c-7f","status":"done","message":"…"}      its result
  {"t":"ack","w":"worker1","s":1790000000123}                the manager stored this worker's events up to s
  {"t":"forget","w":"worker1"}
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import OrderedDict

from remote_agent.protocol import reasons
from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.messages import CommandResult, WireError, WorkerEvent, decode
from remote_agent.system import disk_space

MAX_COMMANDS = 1000
MAX_LINES = 5000
MAX_PENDING_EVENTS = 500  # events of one worker that wait in memory
AHEAD_BYTES = 256 * 1024  # set aside


class AgentJournal:
    """Call `acted(id)` to check for duplicates, `begin(id)` just before a command is executed, and `end(...)`
    afterwards."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._commands: OrderedDict[str, Optional[CommandResult]] = OrderedDict()
        self._acked: dict[str, int] = {}
        self._lines = 0
        self._fd = -1
        self._unwritten: list[bytes] = []  # a full disk: oldest first
        self._torn = False  # the file does not end with a newline
        self._size = self._allocated = 0
        self._load()
        self._open()

    def acted(self, command_id: str) -> bool:
        return command_id in self._commands

    def result(self, command_id: str) -> Optional[CommandResult]:
        """The command's result; None while it is in progress, or if the agent died before the result was known."""
        return self._commands.get(command_id)

    def begin(self, command_id: str) -> None:
        self._remember(command_id, None)
        self._append({"t": "begin", "id": command_id})

    def end(self, result: CommandResult) -> None:
        self._remember(result.command_id, result)
        record = {"t": "end", "id": result.command_id, "status": result.status, "message": result.message[:500]}
        self._append(record)

    def acked(self, worker_id: str) -> int:
        return self._acked.get(worker_id, 0)

    def ack(self, worker_id: str, seq: int) -> bool:
        """Record an acknowledgement; it never decreases. Returns whether it increased."""
        if seq <= self.acked(worker_id):
            return False
        self._acked[worker_id] = seq
        self._append({"t": "ack", "w": worker_id, "s": seq})
        return True

    def forget(self, worker_id: str) -> None:
        if self._acked.pop(worker_id, None) is not None:
            self._append({"t": "forget", "w": worker_id})

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ------------------------------------------------------------------------------------------------- the file

    def _remember(self, command_id: str, result: Optional[CommandResult]) -> None:
        self._commands[command_id] = result
        self._commands.move_to_end(command_id)
        while len(self._commands) > MAX_COMMANDS:
            self._commands.popitem(last=False)

    def _load(self) -> None:
        try:
            with open(self._path, "rb") as file:
                for line in file:
                    self._lines += 1
                    self._replay(line)
        except FileNotFoundError:
            pass

    def _replay(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            kind = record["t"]
            if kind == "begin":
                self._remember(record["id"], None)
            elif kind == "end":
                self._remember(
                    record["id"], CommandResult(record["id"], record["status"], reasons.read(record, "message"))
                )
            elif kind == "ack":
                self._acked[record["w"]] = max(int(record["s"]), self.acked(record["w"]))
            elif kind == "forget":
                self._acked.pop(record["w"], None)
        except (ValueError, KeyError, TypeError):
            pass  # torn by a power cut, or of a later release

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.lseek(self._fd, 0, os.SEEK_END)
        # A line torn by a power cut, or a full disk, must not swallow the next one.
        if self._size > 0:
            with open(self._path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                self._torn = file.read(1) != b"\n"
        self._set_aside()

    def _set_aside(self) -> None:
        little = self._allocated - self._size < AHEAD_BYTES // 2
        if little and disk_space.allocate(self._fd, self._size, AHEAD_BYTES) == 0:
            self._allocated = self._size + AHEAD_BYTES

    @property
    def behind(self) -> bool:
        """Whether entries exist only in memory, because the disk refused them."""
        return bool(self._unwritten)

    def write_again(self) -> None:
        while self._unwritten:
            if not self._write(self._unwritten[0]):
                return
            self._unwritten.pop(0)

    def _append(self, record: dict[str, Any]) -> None:
        if self._lines >= MAX_LINES:
            self._compact()
        self._unwritten.append(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        del self._unwritten[:-MAX_LINES]
        self.write_again()

    def _write(self, line: bytes) -> bool:
        data = b"\n" + line if self._torn else line
        self._set_aside()
        try:
            written = os.write(self._fd, data)
        except OSError:
            return False
        self._size += written
        self._torn = written < len(data)
        self._lines += 1
        return not self._torn

    def _compact(self) -> None:
        records: list[dict[str, Any]] = []
        for command_id, result in self._commands.items():
            if result is None:
                records.append({"t": "begin", "id": command_id})
            else:
                records.append({"t": "end", "id": command_id, "status": result.status, "message": result.message})
        records += [{"t": "ack", "w": worker_id, "s": seq} for worker_id, seq in self._acked.items()]
        temporary = self._path + ".new"
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o600)
                file.writelines(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError:  # a full disk: the file keeps growing
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            return
        os.close(self._fd)
        self._lines, self._unwritten = len(records), []
        self._torn, self._allocated = False, 0
        self._open()


class EventTail:
    """Events after the acknowledged sequence number: those in events.jsonl, which the runner may rewrite at any time,
    and those that the runner sent but could not write to a full disk."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: Optional[tuple[int, int, int]] = None  # (inode, size, acked) with nothing pending
        self._pending: dict[int, WorkerEvent] = {}

    def take(self, message: dict[str, Any]) -> None:
        """Add an event received from the runner."""
        try:
            event = decode(WorkerEvent, message)
        except WireError:
            return
        self._pending[event.seq] = event
        for oldest in sorted(self._pending)[:-MAX_PENDING_EVENTS]:
            del self._pending[oldest]
        self._seen = None

    def pending(self, acked: int, limit: int) -> list[WorkerEvent]:
        for seq in [seq for seq in self._pending if seq <= acked]:
            del self._pending[seq]
        try:
            found = os.stat(self._path)
            mark = (found.st_ino, found.st_size, acked)
        except OSError:
            mark = (0, 0, acked)
        if mark == self._seen:
            return []
        events = {**self._pending, **{event.seq: event for event in self._read(acked)}}
        if not events:
            self._seen = mark
        return [events[seq] for seq in sorted(events)[:limit]]

    def _read(self, acked: int) -> list[WorkerEvent]:
        events = []
        try:
            with open(self._path, "rb") as file:
                for line in file:
                    try:
                        value = json.loads(line)
                        if int(value["seq"]) > acked:
                            events.append(decode(WorkerEvent, value))
                    except (ValueError, KeyError, TypeError, WireError):
                        continue  # torn or incomplete: read again when the file has grown
        except OSError:
            pass
        return events
