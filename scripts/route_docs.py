"""Generates the table of routes in docs/protocol.md from the declarations at the handlers (procguard/portal/api,
procguard/agent_api/handlers.py).

python scripts/route_docs.py      writes it; tests/unit/portal/api/test_protocol_doc.py fails if it is out of date
"""

from __future__ import annotations

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from procguard.agent_api.declaration import Route  # noqa: E402
from procguard.portal.api.resource import all_routes  # noqa: E402

PATH = os.path.join(ROOT, "docs", "protocol.md")
BEGIN = "<!-- the table is written by scripts/route_docs.py -->\n"
END = "<!-- end of the table -->\n"


def table() -> str:
    head = "| method and path | who | what |\n|---|---|---|\n"
    return head + "".join(_row(route) for route in all_routes()) + "\n"


def _row(route: Route) -> str:
    path = re.sub(r"<([a-z_]+)>", lambda name: name[1].removesuffix("_id").upper(), route.path)
    path = re.sub(r"\b(WORKER|AGENT|OPERATION|COMMAND|TOKEN)\b", "ID", path)
    query = ", ".join(f"`{name}`" for name in route.parameters)
    says = [route.summary.removesuffix("?") + ("?" if route.summary.endswith("?") else ".")]
    says += [" ".join(route.description.split("\n\n"))] if route.description else []
    says += [f"Query: {query}."] if query else []
    return f"| {route.method} `{path}` | {route.who} | {' '.join(says).replace('|', chr(92) + '|')} |\n"


def with_table(text: str) -> str:
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return head + BEGIN + table() + END + tail


def main() -> None:
    with open(PATH, encoding="utf-8") as file:
        text = file.read()
    with open(PATH, "w", encoding="utf-8") as file:
        file.write(with_table(text))


if __name__ == "__main__":
    main()
