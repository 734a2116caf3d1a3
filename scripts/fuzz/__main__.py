"""`python -m scripts.fuzz [--only NAME…] [--seconds N] [--keep DIR] [--adopt]`: fuzzes one target after the other.

Each target runs in its own process with atheris (libFuzzer for Python), starting from the seeds in tests/corpus/. New
inputs are stored in DIR, by default a temporary folder; --adopt copies those that reach new code into the tree. Bytes
that break a target are printed and written to build/fuzz/<target>-<digest>, and the exit code is 1. At the end, a table
shows the number of inputs tried, of new ones kept, and of lines covered.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import re
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any

from scripts.fuzz import targets

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "build" / "fuzz"
MOST_ADOPTED = 60  # files of one target
LARGEST_ADOPTED = 2048  # bytes of one


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke fuzz", description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="*", default=[], choices=list(targets.TARGETS), metavar="NAME")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", default="", help="a folder for what is learnt, for the next run")
    parser.add_argument("--adopt", action="store_true", help="then copy what takes new steps into tests/corpus")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", default=targets.MEMORY, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        targets.MEMORY = given.scratch  # libFuzzer ends the process without an exception
        fuzz(given.one, given.seconds, Path(given.keep))
        return 0
    FOUND.mkdir(parents=True, exist_ok=True)
    broken = 0
    print(f"{'target':10} {'inputs':>9} {'corpus':>7} {'lines covered':>22}")
    for name in given.only or targets.TARGETS:
        with tempfile.TemporaryDirectory(prefix="pgfuzz-", dir=targets.MEMORY) as scratch:
            learnt = (Path(given.keep) if given.keep else Path(scratch)) / name
            learnt.mkdir(parents=True, exist_ok=True)
            if given.seconds:
                broken += not _one(name, given.seconds, learnt, scratch)
            if given.adopt:
                print(f"{name}: {adopt(name, learnt, targets.CORPUS / name)} files more in tests/corpus/{name}")
    return 1 if broken else 0


def _one(name: str, seconds: int, learnt: Path, scratch: str) -> bool:
    command = [sys.executable, "-m", "scripts.fuzz", "--one", name, "--seconds", str(seconds), "--keep", str(learnt)]
    command += ["--scratch", scratch]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=seconds * 2 + 300, check=False,
    )  # fmt: skip
    tried = re.search(r"stat::number_of_executed_units: (\d+)", done.stdout)
    hit, lines = covered(name, [path.read_bytes() for path in learnt.iterdir()] + targets.seeds(name))
    print(
        f"{name:10} {tried[1] if tried else '?':>9} {len(list(learnt.iterdir())):>7} "
        f"{hit:>8} of {lines} ({100 * hit / max(1, lines):.0f} %)",
        flush=True,
    )
    if done.returncode:
        print(done.stdout[-4000:])
        print(f"{name}: BROKEN; the bytes are in {FOUND}; put them into tests/corpus/{name}/ and mend what they break")
    return not done.returncode


def fuzz(name: str, seconds: int, learnt: Path) -> None:
    """Fuzz one target. Runs in a dedicated process and ends it."""
    import atheris

    target = targets.TARGETS[name]
    with atheris.instrument_imports(include=["procguard", "remote_agent"]):
        for module in target.modules:
            importlib.import_module(module)
        run = targets.checked(target.make())
    words = [
        "fuzz", f"-max_total_time={seconds}", f"-max_len={targets.MAX_BYTES}", "-print_final_stats=1", "-timeout=20",
        "-rss_limit_mb=4096", f"-artifact_prefix={FOUND}/{name}-", str(learnt), str(targets.CORPUS / name),
    ]  # fmt: skip
    atheris.Setup(words, run)
    atheris.Fuzz()


class Tracer:
    """Records the steps, from one line to the next, that an input takes through the target's functions."""

    def __init__(self, name: str) -> None:
        target = targets.TARGETS[name]
        self._run = target.make()
        self.codes: set[types.CodeType] = set()
        for module, names in target.modules.items():
            of_module = _codes(importlib.import_module(module))
            self.codes |= {one for one in of_module if not names or one.co_name in names.split()}

    def steps(self, data: bytes) -> set[tuple[types.CodeType, int, int]]:
        """(function, line, next line), 0 where it begins."""
        found: set[tuple[types.CodeType, int, int]] = set()

        def called(frame: Any, _event: str, _argument: Any) -> Any:
            if frame.f_code not in self.codes:
                return None
            before = 0

            def in_function(frame: Any, event: str, _argument: Any) -> Any:
                nonlocal before
                if event == "line":
                    found.add((frame.f_code, before, frame.f_lineno))
                    before = frame.f_lineno
                return in_function

            return in_function

        threading.settrace(called)
        sys.settrace(called)
        try:
            self._run(data)
        except Exception:  # noqa: S110 -- a finding, which was told already
            pass
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
        return found


def covered(name: str, inputs: list[bytes]) -> tuple[int, int]:
    """(number of lines that these inputs reach, total number of lines) of the target's functions."""
    tracer = Tracer(name)
    hit = {(code, line) for data in inputs for code, _, line in tracer.steps(data)}
    every = {
        (code, line) for code in tracer.codes for _, _, line in code.co_lines() if line and line != code.co_firstlineno
    }
    return len(hit & every), len(every)


def adopt(name: str, learnt: Path, folder: Path) -> int:
    """Copy new inputs into the tree's corpus, the smallest first, if they take a step that no input there takes.
    Returns the number of files."""
    tracer, known, adopted = Tracer(name), set(), 0
    for data in sorted((path.read_bytes() for path in folder.iterdir()), key=len):
        known |= tracer.steps(data)
    room = MOST_ADOPTED - len(list(folder.glob("learnt-*")))
    for data in sorted((path.read_bytes() for path in learnt.iterdir()), key=len):
        new = tracer.steps(data) - known if adopted < room and len(data) <= LARGEST_ADOPTED else None
        if new:
            (folder / f"learnt-{hashlib.sha256(data).hexdigest()[:8]}").write_bytes(data)
            known |= new
            adopted += 1
    return adopted


def _codes(module: types.ModuleType) -> set[types.CodeType]:
    """The code objects of all functions that the module's file defines."""
    assert module.__file__ is not None
    whole = compile(Path(module.__file__).read_text("utf-8"), module.__file__, "exec")
    found: set[types.CodeType] = set()
    left = [whole]
    while left:
        inner = [one for one in left.pop().co_consts if isinstance(one, types.CodeType)]
        found |= {one for one in inner if one.co_flags & 0x2}  # CO_NEWLOCALS: no class body
        left += inner
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
