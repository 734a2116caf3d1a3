"""A server with a small part of S3's interface that fails in the ways that object storage does: for tests.

Knows PUT (with If-None-Match), GET of a range, DELETE and the list; signatures are not checked.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OK = "ok"
AWAY = "away"  # nobody listens
# Answers of a server in trouble; late ones; stored, but the answer is lost; the server dies in mid-upload.
FAULTS = ("500", "503", "slow", "unanswered", "torn")
SLOW_S = 1.5
CODES = {"500": "InternalError", "503": "SlowDown"}


class FaultyS3:
    """`objects`: key -> bytes. `mode`: what a PUT meets. `met`: how many have met what."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.mode = OK
        self.met: Counter[str] = Counter()
        self._server = self._listen(0)
        self.port = int(self._server.server_address[1])

    def stop(self) -> None:
        self.mode = AWAY
        self._server.shutdown()
        self._server.server_close()

    def start(self) -> None:
        self._server, self.mode = self._listen(self.port), OK

    def _listen(self, port: int) -> ThreadingHTTPServer:
        class Listening(ThreadingHTTPServer):
            daemon_threads, allow_reuse_address, outer = True, True, self

            def handle_error(self, *_: object) -> None:
                """Broken connections are what is tested."""

        server = Listening(("127.0.0.1", port), _Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self._s3().mode == AWAY:  # a connection kept from before; a server that has ended has none
            self._break_off()
            return False
        return True

    def do_PUT(self) -> None:
        s3, size = self._s3(), int(self.headers["Content-Length"])
        mode = s3.mode
        s3.met[mode] += 1
        if mode == "torn":
            self.rfile.read(size // 2)
            self._break_off()
            return
        data, key = self.rfile.read(size), self._key()
        if mode in CODES:
            self._answer(int(mode), f"<Error><Code>{CODES[mode]}</Code></Error>".encode())
            return
        if mode == "slow":
            time.sleep(SLOW_S)
        if self.headers.get("If-None-Match") == "*" and key in s3.objects:
            s3.met["412"] += 1
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        s3.objects[key] = data
        if mode == "unanswered":
            self._break_off()
        else:
            self._answer(200, b"", ETag='"0"')

    def do_GET(self) -> None:
        s3, asked = self._s3(), parse_qs(urlsplit(self.path).query)
        if "list-type" in asked:
            prefix = asked.get("prefix", [""])[0]
            keys = sorted(one.partition("/")[2] for one in s3.objects)
            listed = "".join(f"<Contents><Key>{one}</Key></Contents>" for one in keys if one.startswith(prefix))
            self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode())
            return
        data = s3.objects.get(self._key())
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(len(data), int(last or len(data)) + 1)
        if start >= len(data):
            self._answer(416, b"<Error><Code>InvalidRange</Code></Error>")
            return
        said = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        self._answer(206, data[start:end], **said)

    def do_DELETE(self) -> None:
        self._s3().objects.pop(self._key(), None)
        self._answer(204, b"")

    def _s3(self) -> FaultyS3:
        found: FaultyS3 = self.server.outer  # type: ignore[attr-defined]
        return found

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path.lstrip("/"))

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _break_off(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass
