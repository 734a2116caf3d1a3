"""Generates the key tables of docs/configuration.md from the descriptions in procguard/config/schema.py.

python scripts/config_docs.py      writes the tables; tests/unit/scripts/test_docs.py fails if they are out of date
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from procguard.config.schema import Config, keys  # noqa: E402

PATH = os.path.join(ROOT, "docs", "configuration.md")
BEGIN = "<!-- the tables are written by scripts/config_docs.py -->\n"
END = "<!-- end of the tables -->\n"


def tables() -> str:
    """One table per section, in file order."""
    parts: list[str] = []
    section = ""
    for key in keys():
        if key.path.split(".")[0] != section:
            section = key.path.split(".")[0]
            about = Config.model_fields[section].description
            parts.append(f"\n## {section}\n\n{about}\n\n| key | value | default | what it does |\n|---|---|---|---|\n")
        parts.append(f"| `{key.path}` | {key.kind} | `{key.default}` | {key.description} |\n")
    return "".join(parts) + "\n"


def with_tables(text: str) -> str:
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return head + BEGIN + tables() + END + tail


def main() -> None:
    with open(PATH, encoding="utf-8") as file:
        text = file.read()
    with open(PATH, "w", encoding="utf-8") as file:
        file.write(with_tables(text))


if __name__ == "__main__":
    main()
