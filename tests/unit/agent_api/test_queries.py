"""The query of a frequent request is read as any other."""

from __future__ import annotations

from urllib.parse import parse_qsl

from hypothesis import example, given
from hypothesis import strategies as st

from procguard.agent_api.http import parsed_query


@given(st.text(alphabet="ab1=&;%+ 2\xe9", max_size=30))
@example("agent=gpu01&nonce=session.00")
@example("a=1&a=2&b&c=&=d&e=f=g&&h=%41")
def test_a_query_without_escapes_is_read_as_by_the_standard_library(query: str) -> None:
    assert parsed_query(query) == dict(parse_qsl(query))
