"""Stands in for procguard.main where only its process counts: locks the state, answers /readyz, ends on SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from procguard.config import schema
from procguard.manager import daemon


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


def main() -> None:
    assert "--daemon" not in sys.argv
    if "--crash" in sys.argv:
        sys.exit("this manager cannot start: the disk is on holiday")
    settings = schema.load(None, [word for word in sys.argv[1:] if "=" in word])
    lock = daemon.lock_state(settings)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    lock.announce(f"http://127.0.0.1:{server.server_address[1]}")
    server.serve_forever()
    server.server_close()
    lock.release()


if __name__ == "__main__":
    main()
