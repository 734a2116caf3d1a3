"""An example worker: a small web service with a /healthz that its health check asks. Standard library only."""

from __future__ import annotations

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BEGAN = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = {"/": f"up for {time.monotonic() - BEGAN:.0f} s, process {os.getpid()}\n", "/healthz": "ok\n"}
        body = known.get(self.path, "not found\n").encode()
        self.send_response(200 if self.path in known else 404)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.client_address[0]} {format % args}", flush=True)


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8077
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        print(f"listening on http://127.0.0.1:{port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
