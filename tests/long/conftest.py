"""Tests marked `long` run only when they are asked for (tests/conftest.py)."""

from tests.agent_host import host, manager  # noqa: F401 - known to pytest by being here
