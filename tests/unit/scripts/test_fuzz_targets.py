"""The seeds and findings of fuzzing are replayed on each target, with some mutations: `invoke fuzz` runs as long
as it is told, guided by coverage."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.fuzz import __main__ as fuzz
from scripts.fuzz import targets
from tests.sizes import examples

MUTATED_S = examples(500, 30_000) / 1000


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    """One seed with some bytes changed, lost, doubled, or taken from another."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(data) + 1)
        other = chance.choice(seeds)
        begin = chance.randrange(len(other) + 1)
        piece = chance.choice(
            (chance.randbytes(3), other[begin : begin + 8], bytes(data[at : at + 9]) * 2, b"\xff" * 8)
        )
        data[at : at + chance.randrange(9)] = piece
    return bytes(data[: targets.MAX_BYTES])


@pytest.mark.parametrize("name", targets.TARGETS)
def test_what_was_found_once_breaks_nothing_now(name: str) -> None:
    run = targets.checked(targets.TARGETS[name].make())
    seeds = targets.seeds(name)
    assert seeds
    for data in [*seeds, b""]:
        run(data)
    ends, chance = time.process_time() + MUTATED_S, random.Random(name)
    while time.process_time() < ends:
        run(mutated(chance, seeds))


@pytest.mark.slow
def test_a_target_is_fuzzed_and_says_how_much_of_it_was_reached() -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "scripts.fuzz", "--only", "websocket", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    line = done.stdout.splitlines()[-1].split()
    assert line[0] == "websocket" and int(line[1]) > 100 and int(line[-2].lstrip("(")) > 60


def test_what_reaches_nothing_new_is_not_adopted(tmp_path: Path) -> None:
    learnt, folder = tmp_path / "learnt", tmp_path / "corpus"
    learnt.mkdir()
    folder.mkdir()
    (folder / "get").write_bytes(b"\0GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    chunks = b"\0POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n"
    for name, data in (("same", b"\0GET /a HTTP/1.1\r\nHost: h\r\n\r\n"), ("new", chunks % b"2\r\n[]\r\n")):
        (learnt / name).write_bytes(data)
    (learnt / "larger").write_bytes(chunks % (b"2\r\n[]\r\n" * 2))
    assert fuzz.adopt("http", learnt, folder) == 1
    assert sorted(path.read_bytes() for path in folder.glob("learnt-*")) == [(learnt / "new").read_bytes()]
    assert fuzz.adopt("http", learnt, folder) == 0
