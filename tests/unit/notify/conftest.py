"""An HTTP server that keeps what it is sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import sinks
from tests.sinks import HttpSink


@pytest.fixture
def sink() -> Iterator[HttpSink]:
    with sinks.http_sink() as one:
        yield one
