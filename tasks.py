"""The invoke collection: the operator's commands (procguard/cli/app.py), the developer's tasks (scripts/dev_tasks.py).

`invoke deploy …` is `procguard deploy …`: the arguments of a single operator's command are passed to that program
unchanged. invoke itself runs the developer's tasks, lists all of them, and runs lines of several.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
for folder in (ROOT / "scripts", ROOT):  # also when the package is not installed, and from any working directory
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from procguard.cli.program import process  # noqa: E402

process.begin()

from procguard.cli import app  # noqa: E402

WORDS = sys.argv[1:] if Path(sys.argv[0]).stem in ("invoke", "inv") or "/invoke/" in sys.argv[0] else []
ASKED = WORDS[1] if len(WORDS) > 1 and WORDS[0] in ("-h", "--help") else WORDS[0] if WORDS else ""

if app.is_ours(ASKED) or WORDS[:1] == ["--context"]:
    app.main(["invoke", *WORDS])
    sys.exit(0)

from invoke import Collection  # noqa: E402

from procguard.cli.program import invoke_form, parser  # noqa: E402
from procguard.console.language import of_environment, sentence, shown  # noqa: E402

namespace = invoke_form.collection(app.commands(), {name: app.group(name).values() for name in app.GROUPS})
try:
    import dev_tasks  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # a release without the developer's scripts
    pass
else:
    for one in dev_tasks.namespace.tasks.values():
        namespace.add_task(one)


def translate(collection: Collection) -> None:
    """Show tasks and their options in the language of the command: `invoke --list`, `invoke --help TASK`."""
    for task in collection.tasks.values():
        head, _, example = (task.__doc__ or "").partition("Example: ")
        example = example.partition("\n")[0]
        task.__doc__ = shown(" ".join(head.split())) + (shown("example:") + example if example else "")
        task.help = {name: shown(text) for name, text in task.help.items()}
    for part in collection.collections.values():
        translate(part)


if WORDS and WORDS[0].startswith("-") and of_environment() != "en":
    translate(namespace)

if (
    WORDS
    and not ASKED.startswith("-")
    and ASKED not in namespace.task_names
    and os.path.basename(sys.argv[0]) != "pytest"
):
    near = parser.did_you_mean(ASKED, [*namespace.task_names, *app.GROUPS])
    sys.exit(sentence(f"invoke: unknown command {ASKED}{near}", "all commands: invoke --list"))
