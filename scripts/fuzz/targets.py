"""The targets of fuzzing: each takes bytes and raises only for an error in ProcGuard.

A target names its functions, whose coverage is reported. It starts from the files in tests/corpus/<target>/, where
bytes that once broke it are kept; tests/unit/scripts/test_fuzz_targets.py runs all of them. No target opens a
connection or starts a process.
"""

from __future__ import annotations

import atexit
import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108 -- files that need no disk
MAX_BYTES = 4096  # of one input
MAX_CPU_S = 1.0  # with instrumentation; an input that takes longer is a finding, too


class Target(NamedTuple):
    make: Callable[[], Callable[[bytes], None]]  # imports what it needs, once
    modules: dict[str, str]  # module -> the functions that it reaches; "": all of them


class Pieces:
    """A socket whose peer sends these pieces and then closes the connection."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._left = [piece for piece in pieces if piece]
        self.sent = b""

    def recv(self, size: int) -> bytes:
        if not self._left:
            return b""
        piece = self._left.pop(0)
        if len(piece) > size:
            self._left.insert(0, piece[size:])
        return piece[:size]

    def sendall(self, data: bytes) -> None:
        self.sent += data


def scratch() -> str:
    """A folder that exists until this process ends."""
    folder = tempfile.mkdtemp(prefix="pgfuzz-", dir=MEMORY)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def cut(data: bytes, width: int) -> list[bytes]:
    """The data as a whole (`width` 0), or in pieces of `width` bytes."""
    return [data] if not width else [data[at : at + width] for at in range(0, len(data), width)]


# ------------------------------------------------------------------------------------------------------- the web


def http() -> Callable[[bytes], None]:
    """Heads and bodies of one connection: the same requests, independent of how their bytes arrive."""
    from procguard.config.limits import WebLimits
    from procguard.portal.http import parser, server
    from procguard.portal.http.body import BadBody, Body
    from procguard.portal.http.buffer import SocketReader

    class Stand:
        limits = WebLimits()

    class Connection(server.ConnectionHandler):
        def __init__(self, pieces: list[bytes]) -> None:
            self.server: Any = Stand
            self.rfile = SocketReader(Pieces(pieces))

    def requests(pieces: list[bytes]) -> list[Any]:
        connection, found = Connection(pieces), []
        for _ in range(8):
            try:
                raw = connection._read_head()
                if raw is None:
                    break
                head = parser.parse(raw)
            except parser.BadHead:
                found.append("refused")
                break
            assert all("\n" not in value and "\r" not in value and "\0" not in value for value in head.fields.values())
            assert not (head.chunked and "CONTENT_LENGTH" in head.fields)
            assert head.version == "HTTP/1.0" or "HTTP_HOST" in head.fields
            body = Body(connection.rfile, head.content_length, head.chunked)
            try:
                data = body.read(64 * 1024)
                whole = body.ended
            except BadBody:
                found.append((head, "broken"))
                break
            found.append((head, data))
            if not whole or head.close:
                break
        return found

    def run(data: bytes) -> None:
        width, sent = data[0] % 32 if data else 0, data[1:]
        assert requests([sent]) == requests(cut(sent, width or 1))

    return run


def websocket() -> Callable[[bytes], None]:
    """Frames of one client: the same messages, independent of how their bytes arrive; every close has a valid code."""
    from procguard.portal.http import frames
    from procguard.portal.http.buffer import SocketReader
    from procguard.portal.http.websocket import WebSocketConnection

    class Signal:
        def set(self) -> None:
            """Discards the data."""

    class Connection(WebSocketConnection):
        def __init__(self, pieces: list[bytes]) -> None:
            self._rfile = SocketReader(Pieces(pieces))
            self._pong = None
            self._signal: Any = Signal()
            self.peer_close_code = None
            self.ended: int | None = None

        def close(self, code: int = 1000, reason: str = "") -> None:
            frames.encode(frames.CLOSE, code.to_bytes(2, "big") + reason.encode()[:123])
            self.ended = code

        def shut_down(self) -> None:
            self.ended = 1006

    def messages(pieces: list[bytes]) -> list[Any]:
        connection, found = Connection(pieces), []
        while (message := connection.receive()) is not None:
            found.append(message)
        code = connection.ended
        assert code == 1006 or (code is not None and frames._may_be_sent(code))
        return [*found, code, connection._pong]

    def run(data: bytes) -> None:
        width, sent = data[0] % 32 if data else 0, data[1:]
        assert messages([sent]) == messages(cut(sent, width or 1))

    return run


# ------------------------------------------------------------------------------------------------------- messages


def heartbeat() -> Callable[[bytes], None]:
    """Heartbeats of agents and workers: accepted ones can be encoded and decoded again without a change."""
    from procguard.agent_api import decode
    from procguard.errors import ProcGuardError
    from remote_agent.protocol import messages

    def run(data: bytes) -> None:
        for cls in (messages.AgentHeartbeat, messages.WorkerHeartbeat, messages.Registration, messages.WorkerSpec):
            try:
                message: Any = decode.read(cls, data)
            except ProcGuardError as exc:
                assert str(exc)
                continue
            written = decode.dumps(message)
            assert decode.dumps(decode.read(cls, written)) == written

    return run


def zmq() -> Callable[[bytes], None]:
    """Requests on one zmq connection, separated by NUL NUL: each has one response with a status below 500."""
    from procguard.admission.memory import Bodies
    from procguard.agent_api.handlers import AgentRoute, Answer
    from procguard.agent_api.routes import RouteTable
    from procguard.agent_api.zmq.call import Rules, ZmqCall
    from procguard.agent_api.zmq.channel import ZmqChannel
    from procguard.agent_api.zmq.port import Peer

    def answered(call: ZmqCall, *names: str) -> Answer:
        call.identify()
        if call.declared_bytes == 0:
            return Answer(200, {"names": list(names)})
        return Answer(200, {"bytes": len(call.read(1024)) if call._body is not None else call.declared_bytes})

    class Access:
        def by_secret(self, secret_sha256: str, where: str) -> None:
            return None

    class Port:
        name = "requests"

        def __init__(self) -> None:
            self.answers: list[bytes] = []

        def send_soon(self, _peer: Any, data: bytes) -> None:
            self.answers.append(data)

        def flush(self) -> None:
            """Does nothing: all data has been sent."""

    class Channel(ZmqChannel):
        def __init__(self) -> None:
            self._rules = Rules(Access(), Bodies(1 << 20, 1 << 20), 1.0)  # type: ignore[arg-type]
            self._routes = RouteTable(
                [
                    AgentRoute("GET", "/api/hello", answered, "", "anyone"),
                    AgentRoute("POST", "/api/workers/register", answered, "", "anyone"),
                    AgentRoute("POST", "/api/agents/<agent_id>/heartbeat", answered, "agent_id", "agent", True),
                ]
            )
            self._port_base = 5100

    channel = Channel()

    def run(data: bytes) -> None:
        port = Port()
        peer = Peer(port, b"1", 0, "agent:h1", "10.0.0.1")  # type: ignore[arg-type]
        pieces = data.split(b"\0\0")[:16]
        for piece in pieces:
            channel._take(peer, piece if piece != b"\xff" else None)
        assert len(port.answers) == len(pieces)
        for answer in port.answers:
            head = json.loads(answer.partition(b"\n")[0])
            assert head["status"] < 500, answer

    return run


def times() -> Callable[[bytes], None]:
    """The times when the bytes of a log were written: as sent by an agent, as in its file, as in the manager's
    index."""
    from procguard.agent_api.handlers import _times
    from procguard.errors import UsageError
    from procguard.portal.logs import reader
    from procguard.portal.logs.index import LogIndex, runs_of
    from remote_agent.logs.time_index import MAX_POINTS, TimeIndex

    folder = scratch()
    log = os.path.join(folder, "1.log")

    def run(data: bytes) -> None:
        text, _, stored = data.partition(b"\0")
        try:
            found = _times(text.decode("latin-1"), 1e9, 100_000)
            assert all(0 < a < 100_000 and 0 <= at <= 4e9 for a, at in found)
            index = LogIndex()
            noted = index.write(log + ".i", 0, runs_of(0, len(stored) % 7, 1e9, found))
            assert [one for one, _ in noted] == sorted(one for one, _ in noted)
        except UsageError as exc:
            assert str(exc)
        for name in (".idx", ".i", ".gaps"):
            Path(log + name).write_bytes(stored)
        points = TimeIndex(log)
        points.saw_first(points.last + 10, 2e9)
        points.saw(points.last + 10, 2e9 + 1)
        assert len(points) <= MAX_POINTS
        runs, end = points.runs(0, points.last, 64)
        assert end <= points.last and len(runs) <= 64
        points.write(3e9, True)
        LogIndex().write(log + ".i", 4096, [(4096, 2e9)])
        known = reader.TimesOf(log + ".i")
        for offset in (0, 1, 4096, 2**62):
            known.at(offset)
        known.close()
        gaps = reader.read_gaps(log + ".gaps", 1 << 40)
        assert all(start < end for start, end, _ in gaps)
        for name in (".idx", ".i", ".gaps"):
            Path(log + name).unlink(missing_ok=True)

    return run


def mux() -> Callable[[bytes], None]:
    """Frames of a tunnel: the same frames, independent of how their bytes arrive; queues stay within their limits."""
    from remote_agent.tunnel import mux as tunnel

    class Wire(tunnel.Wire):
        def fileno(self) -> int:
            return -1

    def connect() -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    def run(data: bytes) -> None:
        width, sent = data[0] % 32 if data else 0, data[1:]
        whole, pieces = tunnel.Frames(), tunnel.Frames()
        found = list(whole.feed(sent))
        assert found == [one for piece in cut(sent, width or 1) for one in pieces.feed(piece)]
        assert b"".join(tunnel.frame(*one) for one in found) == sent[: len(sent) - len(whole._unread)]
        end = tunnel.Mux(Wire(), connect=connect)
        try:
            end._take(sent)
            assert end.connections <= tunnel.MAX_CONNECTIONS and 0 <= end._waiting_bytes <= tunnel.MAX_WAITING_BYTES
            for number in list(end._ends):
                end._serve(number, 3)
            end._watch_writing()
        finally:
            for one in end._ends.values():
                one.sock.close()
            end._selector.close()

    return run


# -------------------------------------------------------------------------------------------------------- files


def inventory() -> Callable[[bytes], None]:
    """An inventory file, YAML or INI by its first byte: it is read, or refused with a list of its errors."""
    from procguard.deploy.inventory import groups, model, names
    from procguard.errors import InventoryError

    folder = Path(scratch())
    locations = ("a.yaml", "b.ini", "c", "group_vars/all.yml")

    def load(source: Path) -> None:
        """Load an inventory with small limits, because the time for a large inventory is not a finding."""
        with mock.patch.object(names, "MAX_HOSTS", 100), mock.patch.object(groups, "MOST_HOSTS", 300):
            found = model.load(source, within_bounds=False)
            assert 0 < len(found.hosts) <= 300 and found.select("all")

    def run(data: bytes) -> None:
        path = folder / locations[data[0] % len(locations) if data else 0]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data[1:])
        source = path
        if path.parent != folder:
            source = folder / "d.ini"
            source.write_text("h1 ansible_host=10.0.0.1\n[g]\nh[1:2]\n")
        try:
            load(source)
        except InventoryError as exc:
            assert str(exc).strip()
        finally:
            path.unlink()

    return run


def release() -> Callable[[bytes], None]:
    """A release as received by a host: it writes nothing outside its folder, and only files and folders."""
    from remote_agent.install import release as unpacking

    folder = scratch()
    target = os.path.join(folder, "inner")

    def run(data: bytes) -> None:
        packed = data[1:] if data[:1] == b"\x1f" else gzip.compress(data[1:], 1)
        os.mkdir(target)
        try:
            unpacking._extract(packed, target)
        except (unpacking.InstallError, OSError) as exc:
            assert str(exc)
        finally:
            for above, _, files in os.walk(target):
                for name in files:
                    path = os.path.join(above, name)
                    assert not os.path.islink(path) and os.path.isfile(path)
            assert os.listdir(folder) == ["inner"]
            shutil.rmtree(target)

    return run


def archive() -> Callable[[bytes], None]:
    """The header of an object in the log archive, as stored or as JSON, and a piece: each is read, or reported as
    damaged."""
    from procguard.portal.logs.archive import objects
    from procguard.portal.logs.archive.object_store import ObjectDamaged

    def wrapped(text: bytes) -> bytes:
        packed = zlib.compress(text, 1)
        start = struct.pack(">8sII32s", objects.MAGIC, len(packed), len(text), hashlib.sha256(packed).digest())
        return start + packed

    def run(data: bytes) -> None:
        stored = data if data.startswith(objects.MAGIC) else wrapped(data)
        start, head = stored[: objects.START_BYTES], stored[objects.START_BYTES :]
        try:
            about, pieces = objects.read_header(start, head)
            assert 0 <= about["at"] < 1e11
            for one in pieces:
                assert one.length > 0 and one.attempt >= 0 and one.start >= 0 and 0 <= one.at < 1e11
                assert one.position >= len(start) and len(one.digest) == objects.DIGEST_BYTES
        except ObjectDamaged as exc:
            assert str(exc)
        for packed in (data, zlib.compress(data, 1)):
            try:
                log, times = objects.unpack(packed, len(data) // 2, objects.digest_of(data))
                assert log + times == data
            except ObjectDamaged as exc:
                assert str(exc)

    return run


def numbers() -> Callable[[bytes], None]:
    """An expression of `metrics` and, after a NUL, lines that a job prints: the expression is refused, or Python's `re`
    matches the same lines as RE2, in bounded time, and their groups are read as numbers."""
    from procguard import expression, log_metrics
    from procguard.errors import UsageError
    from remote_agent.logs import number_reader

    def run(data: bytes) -> None:
        declared, _, printed = data.partition(b"\0")
        text = declared.decode("utf-8", "replace")
        try:
            for_hosts, needle = log_metrics.host_form(text)
        except UsageError as exc:
            assert str(exc)
            return
        search = re.compile(for_hosts).search
        read = expression.read(text, name="metrics", max_chars=log_metrics.MAX_CHARS, captures=True)
        for line in re.split(r"[\r\n]", printed.decode("utf-8", "replace")):
            match = search(line)
            assert (match is not None) == read.found_in(line), (for_hosts, line)
            if match is not None:
                assert needle in line and 1 <= match.re.groups <= 2
                for group in match.groups():
                    number = number_reader.as_number(group)
                    assert number is None or math.isfinite(number)

    return run


_INVENTORY = (
    "groups", "ini", "yaml", "source", "model", "names", "positions", "templates.renderer", "workers",
)  # fmt: skip
TARGETS = {
    "http": Target(
        http,
        {
            "procguard.portal.http.parser": "",
            "procguard.portal.http.body": "read _read_piece _read_chunks _next_chunk _skip_trailers",
            "procguard.portal.http.buffer": "wait head begins_with read readline _more _receive",
        },
    ),
    "websocket": Target(
        websocket,
        {
            "procguard.portal.http.frames": "",
            "procguard.portal.http.websocket": "receive _read_message _complete _answer_close",
        },
    ),
    "heartbeat": Target(heartbeat, {"procguard.agent_api.decode": ""}),
    "zmq": Target(
        zmq,
        {
            "procguard.agent_api.zmq.channel": "_take _found _header _request_id",
            "procguard.agent_api.zmq.session": "remember usual_id take_body",
            "procguard.agent_api.routes": "find _shape caller_by_secret refusal",
        },
    ),
    "times": Target(
        times,
        {
            "remote_agent.logs.time_index": "",
            "procguard.portal.logs.index": "",
            "procguard.portal.logs.reader": "read_gaps _gap at _look_up _record",
        },
    ),
    "mux": Target(
        mux,
        {"remote_agent.tunnel.mux": "frame feed _take _count _make_room _may_open _open _serve _drop _send"},
    ),
    "inventory": Target(inventory, {f"procguard.deploy.inventory.{name}": "" for name in _INVENTORY}),
    "archive": Target(
        archive, {"procguard.portal.logs.archive.objects": "header_length read_header _piece unpack _unpacked"}
    ),
    "numbers": Target(
        numbers,
        {
            "procguard.expression": "",
            "procguard.expression_cost": "",
            "procguard.log_metrics": "host_form _required",
            "remote_agent.logs.number_reader": "as_number",
        },
    ),
    "release": Target(
        release, {"remote_agent.install.release": "_extract _members _text _inflate _too_large _write_new"}
    ),
}


def checked(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The target with a limit on processor time, so that excessive time is also a finding."""

    def timed(data: bytes) -> None:
        began = time.process_time()
        run(data)
        took = time.process_time() - began
        assert took < MAX_CPU_S, f"took {took:.2f} s of processor time"

    return timed


def seeds(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def tar(members: dict[str, bytes]) -> bytes:
    """A tar archive for seeds, without times and owners."""
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()
