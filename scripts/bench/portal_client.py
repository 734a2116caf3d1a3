"""A client that behaves like an open page of the portal while a benchmark runs: one WebSocket with the page's
subscriptions.

For the lists of workers and hosts it requests a snapshot and subscribes to the changes after it. If the manager no
longer has these changes (`gap`), it requests another snapshot.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from scripts.bench import common
from tests.raw_websocket import BINARY, CLOSE, PING, PONG, TEXT, RawWebSocket

WEB = Path(common.ROOT) / "web" / "js"
AGAIN_AFTER_S = 0.5  # delay after a gap, as in the page
_KIND = re.compile(rb'"t": ?"([a-z]+)"')  # near the beginning of a frame's text


def page_topics() -> tuple[list[str], list[str]]:
    """(lists, other topics) to which every page subscribes, read from the page's source to stay up to date."""
    source = (WEB / "main.js").read_text(encoding="utf-8")
    lists, others = (
        re.findall(r"'(\w+)'", re.findall(rf"^const {name} = \[(.*)\];", source, re.MULTILINE)[0])
        for name in ("LISTS", "TOPICS")
    )
    return lists, others


class PortalClient(threading.Thread):
    """Reads all frames and counts them."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._socket = RawWebSocket(port, timeout_s=60.0)
        self._over = False
        self._counts: Counter[str] = Counter()
        self.closed = ""
        lists, others = page_topics()
        for name in lists:
            self._begin(name)
        for topic in others:
            self._socket.say({"t": "sub", "topic": topic, "seq": 0})

    def counts(self) -> Counter[str]:
        """The counts so far: frames by kind, "snapshots", and "bytes" as sent."""
        return self._counts.copy()

    def _begin(self, name: str) -> None:
        """Request a list's snapshot, then subscribe to the changes after it."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request("GET", f"/api/live/{name}", headers={"Accept-Encoding": "gzip"})
            reply = connection.getresponse()
            data = reply.read()
        if reply.status != 200:
            raise OSError(f"GET /api/live/{name}: HTTP {reply.status}")
        self._counts.update(snapshots=1, bytes=len(data))
        text = gzip.decompress(data) if reply.headers.get("Content-Encoding") == "gzip" else data
        self._socket.say({"t": "sub", "topic": f"rows:{name}", "seq": json.loads(text)["seq"]})

    def run(self) -> None:
        try:
            while (frame := self._socket.frame()) is not None:
                self._counts["bytes"] += len(frame.payload)
                if frame.opcode == PING:
                    self._socket.send(PONG, frame.payload)
                elif frame.opcode == CLOSE:
                    self.closed = f"closed with {frame.close_code}"
                    return
                else:
                    self._take(frame.opcode, frame.payload)
        except (OSError, ValueError) as exc:
            self.closed = "" if self._over else str(exc)

    def _take(self, opcode: int, payload: bytes) -> None:
        head = zlib.decompressobj().decompress(payload, 200) if opcode == BINARY else payload[:200]
        found = _KIND.search(head)
        kind = found[1].decode() if found else "?"
        self._counts[kind] += 1
        if kind == "gap" and opcode == TEXT:
            message: dict[str, Any] = json.loads(payload)
            time.sleep(AGAIN_AFTER_S)
            self._begin(message["topic"].removeprefix("rows:"))

    def end(self) -> None:
        self._over = True
        self._socket.socket.shutdown(2)
        self.join(5)
        self._socket.close()
