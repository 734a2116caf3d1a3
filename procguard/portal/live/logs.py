"""The live topic of one worker's log: its last lines, then new output, limited by each client's credit.

A client grants credit and receives no more than that until it has read it. A client that falls behind is notified and
restarts from the store. Nothing is buffered in memory for a hidden page.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, Protocol

from procguard.agent_api import http_io
from procguard.json_types import Json
from procguard.portal.http import frames
from procguard.portal.logs.reader import Line

MAX_LOG_FRAME_CHARS = 256 * 1024
MAX_CREDIT_CHARS = 4 * 1024 * 1024
MAX_HELD_FRAMES = 256  # for a client whose first lines are being read


class LogClient(Protocol):
    """The interface of a connection that the topic needs."""

    def send_frame(self, frame: bytes) -> bool: ...


def encode(message: Json) -> bytes:
    return frames.encode(frames.TEXT, http_io.dumps(message))


class LogTopic:
    """The log of one worker, starting with its last lines. Decoding never splits a character."""

    def __init__(self, worker_id: str) -> None:
        self.name = f"logs:{worker_id}"
        self.seq = 1
        self.clients: set[LogClient] = set()
        self.starting: dict[LogClient, list[bytes]] = {}  # output that arrived while the first lines are being read
        # characters that may still be sent; clients that grant none get everything
        self._credit: dict[LogClient, int] = {}
        self._behind: set[LogClient] = set()  # clients without credit when output arrived
        self._decoders: dict[tuple[int, str], tuple[Any, int]] = {}  # decoder, offset of its next byte

    def snapshot(self, lines: list[Line], seq: int) -> bytes:
        return encode({"t": "snap", "topic": self.name, "seq": seq, "items": lines})

    def append(self, attempt: int, stream: str, offset: int, data: bytes, at: float) -> None:
        decoder, expected = self._decoders.get((attempt, stream), (None, -1))
        if decoder is None or expected != offset:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
        held_back = len(decoder.getstate()[0])
        text = decoder.decode(data)
        self._decoders[(attempt, stream)] = (decoder, offset + len(data))
        if len(self._decoders) > 8:
            del self._decoders[next(iter(self._decoders))]
        begin, end = offset - held_back, offset + len(data) - len(decoder.getstate()[0])
        for start in range(0, len(text), MAX_LOG_FRAME_CHARS):
            part = text[start : start + MAX_LOG_FRAME_CHARS]
            last = start + MAX_LOG_FRAME_CHARS >= len(text)
            part_end = end if last else min(end, begin + len(part.encode("utf-8", "replace")))
            self._send(attempt, stream, begin, part_end, part, at)
            begin = part_end

    def _send(self, attempt: int, stream: str, offset: int, end: int, text: str, at: float) -> None:
        self.seq += 1
        message = {
            "t": "log",
            "topic": self.name,
            "seq": self.seq,
            "prev": self.seq - 1,
            "attempt": attempt,
            "stream": stream,
            "offset": offset,
            "end": end,
            "at": at,
            "text": text,
        }
        encoded = encode(message)
        for client in list(self.clients):
            if client in self.starting:
                self._hold(client, encoded)
            else:
                self._give(client, encoded, len(text))

    def _hold(self, client: LogClient, encoded: bytes) -> None:
        held = self.starting[client]
        if len(held) < MAX_HELD_FRAMES:
            held.append(encoded)
        else:
            self._behind.add(client)

    def _give(self, client: LogClient, encoded: bytes, chars: int) -> None:
        left = self._credit.get(client)
        if client in self._behind:
            return
        if left is None:
            client.send_frame(encoded)
        elif left > 0:
            self._credit[client] = left - chars
            client.send_frame(encoded)
        else:
            self._behind.add(client)

    def grant(self, client: LogClient, chars: int) -> None:
        """Add credit for output that the client has read. Missed output is in the store: the client is notified of the
        gap and restarts."""
        self._credit[client] = min(MAX_CREDIT_CHARS, self._credit.get(client, 0) + chars)
        if client in self._behind and client not in self.starting and self._credit[client] > 0:
            self._behind.discard(client)
            client.send_frame(encode({"t": "behind", "topic": self.name, "seq": self.seq, "prev": None}))

    def leave(self, client: LogClient) -> None:
        self.clients.discard(client)
        self._credit.pop(client, None)
        self._behind.discard(client)

    def begin(self, client: LogClient, read: Callable[[], list[Line]]) -> None:
        """Send the lines that `read` finds (it may block), then the output that arrived meanwhile. Overlapping bytes
        are identified by their offsets."""
        self.clients.add(client)
        self.starting[client] = []
        self._behind.discard(client)
        seq = self.seq
        try:
            lines = read()
        finally:
            held_back = self.starting.pop(client, [])
        if client in self.clients:
            client.send_frame(self.snapshot(lines, seq))
            for encoded in held_back:
                client.send_frame(encoded)
            if client in self._behind:
                self._behind.discard(client)
                client.send_frame(encode({"t": "behind", "topic": self.name, "seq": self.seq, "prev": None}))
