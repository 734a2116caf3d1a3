"""The only names for JSON whose shape is not declared; tests/unit/test_tree.py lists the modules that may use them.

`Json`: an object as parsed or as it will be written: the body of a request before its validation, YAML, a message to
another process, a stored record, a foreign document. `ReasonParams`: the parameters of a reason, which every code has
its own of (remote_agent/protocol/reasons.py). Inside, data has a declared type. Imports nothing of procguard.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
ReasonParams = dict[str, Any]
