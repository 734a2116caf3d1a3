"""Generates docs/cli.md from the declarations of the commands (procguard/cli): the help of each command, by topic.

python scripts/cli_docs.py      writes the page; tests/unit/scripts/test_docs.py fails if it is out of date
"""

from __future__ import annotations

import os
import sys
from unittest import mock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from procguard import resources  # noqa: E402
from procguard.cli import app  # noqa: E402
from procguard.cli.program import parser  # noqa: E402
from procguard.cli.program.command import CliCommand  # noqa: E402

PATH = os.path.join(ROOT, "docs", "cli.md")
COLUMNS = 100
HEAD = """\
# Commands

<!-- this page is written by scripts/cli_docs.py -->

Every command of `procguard`, as `procguard COMMAND -h` shows it. In a checkout that is not installed, type
`invoke X` for `procguard X`, `invoke group.command` for `procguard group command`, and `./start_manager.sh` and
`./start_worker.sh` for `procguard manager` and `procguard worker`.

- `PROCGUARD_MANAGER_URL` or `procguard --context NAME …` names the manager; without either it is the one on this
  machine, or the context in use.
- `--output` (`-o`) is `table`, `wide`, `json`, `yaml` or `name`; a pipe gets every column in full.
- Exit codes: 0 success, 1 wrong arguments or a refused request, 2 some hosts or workers failed, 3 the manager is
  unreachable, 130 Ctrl-C.
- Workers are selected by id, by glob (`'train-*'`) or by conditions ([selectors](operations.md#selectors)).

"""
LAUNCHER = "Its options: `procguard worker --help`; the example is in the [README](../README.md#control).\n\n"


def page() -> str:
    """The page, with commands in their installed form even in a checkout."""
    with mock.patch.object(resources, "is_installed", return_value=True):
        return HEAD + "\n".join([_contents(), *_sections()]).rstrip() + "\n"


def _contents() -> str:
    lines = ["| topic | commands |", "|---|---|"]
    for topic, modules in app.TOPICS.items():
        names = [name for some in modules.values() for name in some]
        lines.append(f"| {topic} | {', '.join(f'[{name}](#{name})' for name in names)} |")
    lines.append(f"| Groups | {', '.join(f'[{name}](#{name}-commands)' for name in app.GROUPS)} |")
    return "\n".join(lines) + "\n"


def _sections() -> list[str]:
    parts = []
    for topic, modules in app.TOPICS.items():
        parts.append(f"## {topic}\n")
        for name in (name for names in modules.values() for name in names):
            if name == app.LAUNCHER:
                parts.append(f"### {name}\n\nRun one worker by hand, on this machine. {LAUNCHER}".rstrip() + "\n")
            else:
                parts.append(_command(f"### {name}", name, app.command(name)))
    for group, (_, _, about) in app.GROUPS.items():
        parts.append(f"## {group} commands\n\n{about[0].upper()}{about[1:]}.\n")
        for name, command in app.group(group).items():
            parts.append(_command(f"### {group} {name}", f"{group} {name}", command))
    return parts


def _command(heading: str, path: str, command: CliCommand) -> str:
    return f"{heading}\n\n```text\n{parser.help_text(command, path, COLUMNS)}\n```\n"


def main() -> None:
    with open(PATH, "w", encoding="utf-8") as file:
        file.write(page())


if __name__ == "__main__":
    main()
