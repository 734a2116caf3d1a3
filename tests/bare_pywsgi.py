"""gevent's pywsgi with an empty application, on a free port that it prints: a measure of what the machine can do
now."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gevent import monkey

monkey.patch_all()

from gevent.pywsgi import WSGIServer  # noqa: E402


def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\n"]


if __name__ == "__main__":
    server = WSGIServer(("127.0.0.1", 0), application, log=None)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()
