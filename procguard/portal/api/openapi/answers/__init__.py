"""What the manager answers, as types, a module a resource. Fields are only ever added; a client ignores those that it
does not know.

An answer's fields are named here one by one: a test fails where the manager says something that is not.
"""

from __future__ import annotations

Moment = str | None  # ISO 8601 in UTC; null: never, or not yet
