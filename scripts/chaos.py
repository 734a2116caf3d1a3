"""`invoke chaos`: runs scenarios of the chaos suite and prints their measurements beside their pass criteria.

    python -m scripts.chaos [NUMBERS …] [--rounds N] [--short]

docs/reliability.md lists the scenarios and their pass criteria; the tests marked `chaos(number)` implement them. The
measurements of each test are written to build/chaos/NN.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "build" / "chaos"


@dataclass(frozen=True)
class Scenario:
    """One row of the table in docs/reliability.md."""

    number: int
    title: str
    passes: str
    tests: tuple[str, ...]  # files, relative to the repository


def scenarios(text: str) -> dict[int, Scenario]:
    """The rows `| number | scenario | passes when | short form | long form | measured | test |`."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) == 7 and cells[0].isdigit():
            tests = tuple(re.findall(r"\]\(\.\./([^)]+)\)", cells[6]))
            found[int(cells[0])] = Scenario(int(cells[0]), cells[1], cells[2], tests)
    return found


def main(arguments: list[str] | None = None) -> int:
    known = scenarios(DOCUMENT.read_text(encoding="utf-8"))
    asked = _parse(arguments, known)
    numbers = asked.numbers or sorted(known)
    files = sorted({path for number in numbers for path in known[number].tests})
    with tempfile.TemporaryDirectory(prefix="pgc") as folder:
        (Path(folder) / "out").mkdir()
        words = [sys.executable, "-m", "pytest", "-v", "--basetemp", f"{folder}/p", *files]
        words += [f"--chaos-out={folder}/out", f"--chaos-only={','.join(map(str, numbers))}"]
        words += [f"--chaos-rounds={asked.rounds}", *([] if asked.short else ["--chaos-long"])]
        print(f"chaos: {'short' if asked.short else 'long'} forms of {len(numbers)} scenarios", flush=True)
        status = subprocess.run(words, cwd=ROOT, check=False).returncode
        results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder, "out").iterdir())]
    for number in numbers:
        _write(known[number], [one for one in results if one["scenario"] == number], "short" if asked.short else "long")
    print("\n" + table(known, numbers, results))
    ran = {one["scenario"] for one in results}
    return status or (0 if ran == set(numbers) else 1)


def table(known: dict[int, Scenario], numbers: list[int], results: list[dict[str, Any]]) -> str:
    """One block per test: its scenario and result, followed by the measured value and the pass criterion."""
    lines = []
    for number in numbers:
        for one in [one for one in results if one["scenario"] == number] or [None]:
            if one is None:
                result, rounds, measured = "NOT RUN", "", "no test of it ran"
            else:
                result = {"passed": "ok", "skipped": "skipped"}.get(one["outcome"], "FAILED")
                rounds = f"{one['rounds']} round{'s' if one['rounds'] != 1 else ''}, {one['took_s']:.0f} s"
                measured = one["measured"] or one["trouble"]
            lines.append(
                f"{number:>3}  {result:8} {known[number].title}  ({rounds})"
                if rounds
                else f"{number:>3}  {result:8} {known[number].title}"
            )
            lines += textwrap.wrap(f"measured: {measured}", 110, initial_indent=" " * 14, subsequent_indent=" " * 24)
            passes = f"passes:   {known[number].passes}"
            lines += textwrap.wrap(passes, 110, initial_indent=" " * 14, subsequent_indent=" " * 24)
    return "\n".join(lines)


def _parse(arguments: list[str] | None, known: dict[int, Scenario]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description="scenarios of the chaos suite (docs/reliability.md)")
    parser.add_argument("numbers", nargs="*", type=int, help=f"of {', '.join(map(str, sorted(known)))}; default: all")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each scenario, instead of its own number")
    parser.add_argument("--short", action="store_true", help="the short forms, as ./run_tests.sh runs them")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.numbers) - set(known))
    if unknown:
        parser.error(f"no scenario {', '.join(map(str, unknown))}; there are {', '.join(map(str, sorted(known)))}")
    return asked


def _write(scenario: Scenario, results: list[dict[str, Any]], form: str) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {
        "scenario": scenario.number,
        "title": scenario.title,
        "passes": scenario.passes,
        "form": form,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "tests": results,
    }
    path = RESULTS / f"{scenario.number:02}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
