"""Reading from a connection in arbitrary pieces returns the same bytes as from a file."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from procguard.portal.http.buffer import SocketReader


class Pieces:
    """A socket whose peer sent these and then ended."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def recv(self, size: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]


def test_a_head_that_is_here_as_a_whole_is_taken_at_once_and_the_rest_stays() -> None:
    reader = SocketReader(Pieces(b"GET / HTTP/1.1\r\n\r\nbody", b"more"))
    assert reader.wait() and reader.head() == b"GET / HTTP/1.1\r\n\r\n"
    assert reader.ready_bytes == 4 and reader.head() == b""
    assert reader.read(6) == b"bodymo" and not reader.closed
    assert reader.read(6) == b"re" and reader.closed and not reader.wait()


@given(
    st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"a", b"\n")), max_size=6),
    st.lists(st.tuples(st.sampled_from(["read", "readline"]), st.integers(-1, 12)), max_size=12),
)
def test_it_reads_as_a_file_does(pieces: list[bytes], asked: list[tuple[str, int]]) -> None:
    reader, file = SocketReader(Pieces(*pieces)), io.BytesIO(b"".join(pieces))
    for method, size in asked:
        assert getattr(reader, method)(size) == getattr(file, method)(size)
    assert reader.read() == file.read()
