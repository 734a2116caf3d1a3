"""The invoke collection: the operator's tasks (procguard/cli/app.py) and the developer's (scripts/dev_tasks.py)."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
for folder in (ROOT / "scripts", ROOT):  # also when the package is not installed, and from any working directory
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from procguard.cli import task  # noqa: E402

task.begin()

from procguard.cli import app  # noqa: E402

namespace = app.collection()

try:
    import dev_tasks  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # a release without the developer's scripts
    pass
else:
    for one in dev_tasks.namespace.tasks.values():
        namespace.add_task(one)
