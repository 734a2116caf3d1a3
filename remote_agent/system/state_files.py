"""Stores a runner's latest state so that it is not lost when a disk rejects writes.

    state.json       replaced by rename; needs a block and an inode
    state.reserve    two slots of SLOT_BYTES, allocated in advance and overwritten in turn: needs neither
    <runtime>/*.state   if this fails too (read-only, I/O errors): on a host-local file system

Readers use the newest one, with the highest (event_seq, writes). Does not interpret the state; kept small because the
runner imports it.
"""

from __future__ import annotations

import os

from remote_agent.system import lean_json, paths

SLOT_BYTES = 4096
_HEADER = b"%010d %010d "  # length, checksum
_HEADER_BYTES = 22
_MODULUS = 4294967291  # the largest prime below 2**32
_SHORT = 300  # length of a reason that does not fit completely

State = dict[str, object]


def newest_first(state: State) -> tuple[int, int]:
    """The sort key of copies: event_seq rises with every change of state, `writes` with every write."""
    seq, writes = state.get("event_seq"), state.get("writes")
    return (seq if isinstance(seq, int) else 0, writes if isinstance(writes, int) else 0)


def read(worker_dir: str, runtime_dir: str = "") -> State | None:
    """The newest copy; None if there is none. Raises ValueError or OSError if state.json is the only copy and
    unreadable."""
    found = _read_reserve(paths.state_reserve(worker_dir))
    if runtime_dir:
        found += _read_quietly(paths.runtime_state(runtime_dir, worker_dir))
    try:
        state = paths.read_json(paths.state_file(worker_dir))
    except (ValueError, OSError):
        if not found:
            raise
    else:
        found += [state] if isinstance(state, dict) else []
    return max(found, key=newest_first, default=None)


def make_reserve(worker_dir: str) -> bool:
    """Create the reserve file, once per worker, while there is space. It is written and synced, so that its blocks are
    allocated. Returns whether it exists."""
    path = paths.state_reserve(worker_dir)
    try:
        if os.stat(path).st_size == 2 * SLOT_BYTES:
            return True
    except OSError:
        pass
    try:
        paths.write_atomic(path, bytes(2 * SLOT_BYTES))
        paths.sync_file(path)
    except OSError:
        return False
    return True


def keep_in_reserve(worker_dir: str, state: State) -> bool:
    """Overwrite the older slot. Returns False without a reserve, or if the disk refuses even that."""
    data = _fitting(state)
    try:
        descriptor = os.open(paths.state_reserve(worker_dir), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if os.fstat(descriptor).st_size < 2 * SLOT_BYTES:
            return False
        slots = [_parse(os.pread(descriptor, SLOT_BYTES, place)) for place in (0, SLOT_BYTES)]
        ages = [newest_first(slot) if slot else (-1, -1) for slot in slots]
        place = SLOT_BYTES if ages[1] < ages[0] else 0
        header = _HEADER % (len(data), int.from_bytes(data, "big") % _MODULUS)
        content = header + data
        if os.pwrite(descriptor, content, place) != len(content):
            return False
        os.fsync(descriptor)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def keep_in_runtime(runtime_dir: str, worker_dir: str, state: State) -> bool:
    """Write to the runtime directory, the last resort; lost at the next boot."""
    if not runtime_dir:
        return False
    try:
        paths.write_json(paths.runtime_state(runtime_dir, worker_dir), state)
    except OSError:
        return False
    return True


def forget_runtime(runtime_dir: str, worker_dir: str) -> None:
    """Delete the copy in the runtime directory: state.json is newer, or the worker was removed."""
    try:
        os.unlink(paths.runtime_state(runtime_dir, worker_dir))
    except OSError:
        pass


def _fitting(state: State) -> bytes:
    """The state as JSON that fits into a slot: long texts are truncated, but no value that decisions depend on."""
    data = lean_json.dumps(state).encode()
    if len(data) <= SLOT_BYTES - _HEADER_BYTES:
        return data
    last = state.get("last_exit")
    if isinstance(last, dict):
        last = {key: value[:_SHORT] if isinstance(value, str) else value for key, value in last.items()}
        last = {**last, "reason_code": "", "reason_params": {}, "detail_code": "", "detail_params": {}}
    cut = {"reason": str(state.get("reason"))[:_SHORT], "reason_code": "", "reason_params": {}}
    short = {**state, **cut, "last_exit": last}
    data = lean_json.dumps(short).encode()
    if len(data) > SLOT_BYTES - _HEADER_BYTES:
        data = lean_json.dumps({**short, "last_exit": None}).encode()
    return data[: SLOT_BYTES - _HEADER_BYTES]


def _read_reserve(path: str) -> list[State]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        slots = [_parse(os.pread(descriptor, SLOT_BYTES, place)) for place in (0, SLOT_BYTES)]
    except OSError:
        return []
    finally:
        os.close(descriptor)
    return [slot for slot in slots if slot]


def _parse(slot: bytes) -> State | None:
    """None: empty, or torn by a power cut."""
    try:
        size, checksum = int(slot[:10]), int(slot[11:21])
        data = slot[_HEADER_BYTES : _HEADER_BYTES + size]
        if len(data) != size or int.from_bytes(data, "big") % _MODULUS != checksum:
            return None
        value = lean_json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read_quietly(path: str) -> list[State]:
    try:
        value = paths.read_json(path)
    except (ValueError, OSError):
        return []
    return [value] if isinstance(value, dict) else []
