"""Draws passages of documents and modules at random, to be read as reference documentation:

    python -m scripts.passages SEED [--count 10] [--at COMMIT]

The same seed, count and commit give the same passages. A passage is a paragraph of a document, a docstring, or a block
of comments. `--at` reads another commit's text of the same passages' files, for a comparison.
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LEAST_WORDS = 8


class Passage(NamedTuple):
    path: str
    line: int
    name: str  # of a class or function; "" for a module, a comment or a paragraph
    text: str


def passages_of(path: str, text: str) -> Iterator[Passage]:
    found = _of_module(path, text) if path.endswith(".py") else _of_document(path, text)
    return (one for one in found if len(one.text.split()) >= LEAST_WORDS)


def _of_document(path: str, text: str) -> Iterator[Passage]:
    line = 1
    for paragraph in re.split(
        r"(\n{2,})", re.sub(r"```.*?```", lambda code: "\n" * code[0].count("\n"), text, flags=re.S)
    ):
        if paragraph.strip():
            yield Passage(path, line, "", paragraph.strip())
        line += paragraph.count("\n")


def _of_module(path: str, text: str) -> Iterator[Passage]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield Passage(path, getattr(node, "lineno", 1), getattr(node, "name", ""), docstring)
    block: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and (not block or token.start[0] == block[-1].start[0] + 1):
            block.append(token)
        elif token.type not in (tokenize.NL, tokenize.COMMENT) and block:
            yield Passage(path, block[0].start[0], "", "\n".join(one.string for one in block))
            block = []


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def all_passages(commit: str = "") -> list[Passage]:
    """All passages of the product's modules and English documents, in a fixed order. `commit`: "" for the checkout."""
    listed = _git("ls-tree", "-r", "--name-only", commit) if commit else _git("ls-files")
    names = [
        name
        for name in sorted(listed.split("\n"))
        if re.match(r"(procguard|remote_agent)/.*\.py$|(docs/.*|[A-Z]+)\.md$", name) and "zh-CN" not in name
    ]
    read = (lambda name: _git("show", f"{commit}:{name}")) if commit else lambda name: (ROOT / name).read_text("utf-8")
    return [passage for name in names if name != "CHANGELOG.md" for passage in passages_of(name, read(name))]


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw passages of documents and modules at random.")
    parser.add_argument("seed")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--at", default="", metavar="COMMIT")
    given = parser.parse_args()
    for one in random.Random(given.seed).sample(all_passages(given.at), given.count):
        print(f"{one.path}:{one.line} {one.name}\n{one.text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
