"""docs/glossary.md is followed: no identifier has a replaced name, and no text has one of the phrases below."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
GLOSSARY = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
ROOTS = ("procguard", "remote_agent", "scripts", "tests", "web/js")
SHELL = ("*.sh", "scripts/*.sh", "tests/fleet/*.sh")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Whatever source defines is followed by one of these, and most words of prose are not: few files have to be parsed.
PERHAPS_DEFINED = re.compile(r"\b[A-Za-z_]\w*(?=\s*(?:[-+*/|&^%@<>]{0,3}=(?!=)|:=|[,:)\](]|in\b))")
DECLARED = re.compile(
    r"\b(?:const|let|var|function|class)\s+([A-Za-z_$][\w$]*)|[{,]\s*([a-z]\w*)\s*[,}]|\bthis\.(\w+)\s*=[^=]"
)
# A function, a variable that is set, or one that `read`, `for` or `local` names.
SET_IN_SHELL = re.compile(
    r"^\s*(\w+)\(\)|(?:^|[\s;&|({])(\w+)\+?=|\bfor (\w+) in|\b(?:local|read -r|export|unset)((?: \w+\b(?!=))+)",
    re.MULTILINE,
)


# Metaphors for mechanisms, and turns of phrase that are not those of reference documentation.
PHRASES = (
    "anew", "for ever", "so many", "all the same", "mend the", "for want of", "has not shown yet", "have not shown yet",
    "may look, not act", "goes its way", "has the floor", "waits patiently", "is to run, as it was", "two looks",
    "last heard –", "is brought back by the manager over SSH", "is fetched back",
)  # fmt: skip
QUOTED = ("docs/glossary.md", "CHANGELOG.md")  # the one names them, the other tells what was


def words_of(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in WORD.findall(name))


class Replaced:
    """The names of the last column of the glossary's second table."""

    def __init__(self, text: str) -> None:
        self.parts: set[tuple[str, ...]] = set()
        self.whole: set[str] = set()
        table = text.partition("## Names in code")[2]
        for row in re.findall(r"^\|(.+)\|$", table, re.MULTILINE)[2:]:
            parts, _, whole = row.split("|")[2].partition("alone:")
            self.parts |= {tuple(name.split()) for name in re.findall(r"`([^`]+)`", parts)}
            self.whole |= set(re.findall(r"`([^`]+)`", whole))
        self._first = {part[0] for part in self.parts}

    @functools.cache  # noqa: B019 - one object, and names are met hundreds of times
    def found_in(self, name: str) -> str:
        """The replaced name that `name` is or contains; "" where there is none."""
        if name in self.whole:
            return name
        words = words_of(name)
        if self._first.isdisjoint(words):
            return ""
        for part in self.parts:
            if any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1)):
                return " ".join(part)
        return ""


REPLACED = Replaced(GLOSSARY)


def defined_in(source: str) -> Iterator[str]:
    """Every name that Python source defines: classes, functions, parameters, variables, attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def may_define_a_replaced_name(source: str) -> bool:
    return any(map(REPLACED.found_in, set(PERHAPS_DEFINED.findall(source))))


def declared_in(source: str) -> Iterator[str]:
    """Every name that a module of the portal declares."""
    bare = re.sub(r"//[^\n]*|/\*[\s\S]*?\*/|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`", "''", source)
    for found in DECLARED.finditer(bare):
        yield next(name for name in found.groups() if name)


def set_in_shell(source: str) -> Iterator[str]:
    """Every function and variable that a shell script defines."""
    bare = re.sub(r"(?m)(?:^|\s)#.*$", "", source)
    for found in SET_IN_SHELL.finditer(bare):
        yield from next(names for names in found.groups() if names).split()


def replaced_in(path: Path) -> set[str]:
    source = path.read_text(encoding="utf-8")
    names = [path.stem]
    if path.suffix == ".sh":
        names += set_in_shell(source)
    elif path.suffix != ".py":
        names += declared_in(source)
    elif may_define_a_replaced_name(source):
        names += defined_in(source)
    return {
        f"{path.relative_to(REPOSITORY)}: {name} has {found}" for name in names if (found := REPLACED.found_in(name))
    }


@pytest.mark.parametrize("root", ROOTS)
def test_no_identifier_has_a_replaced_name(root: str) -> None:
    paths = [path for path in (REPOSITORY / root).rglob("*") if path.suffix in (".py", ".js")]
    assert paths
    assert sorted(set().union(*map(replaced_in, paths))) == []


def test_no_shell_script_has_a_replaced_name() -> None:
    paths = [path for pattern in SHELL for path in REPOSITORY.glob(pattern)]
    assert len(paths) > 6
    assert sorted(set().union(*map(replaced_in, paths))) == []


def test_the_names_of_a_shell_script_are_found() -> None:
    source = (
        "desk() { # ticket=1\n    local told lean heard=2\n}\nfor brake in 1; do read -r one two; done; a=1 fine+=(x)"
    )
    assert sorted(set_in_shell(source)) == ["a", "brake", "desk", "fine", "heard", "lean", "one", "told", "two"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("class Desk: ...", "desk"),
        ("def is_told(self): ...", "told"),
        ("self.surely_gone_at = 1", "surely gone"),
        ("def f(told): ...", "told"),
        ("for desk in ():\n    ...", "desk"),
        ("desk: int", "desk"),
        ("desk |= 1", "desk"),
        ("[desk, *told] = 1, 2", "desk"),
        ("if (desk := 1): ...", "desk"),
        ("def f(heardNothing): ...", "heard"),
        ("class Look: ...", ""),  # alone, and as it is written: `look`
        ("look = 1", "look"),
        ("outlook = 1", ""),
    ],
)
def test_a_replaced_name_is_found(source: str, found: str) -> None:
    assert next((hit for name in defined_in(source) if (hit := REPLACED.found_in(name))), "") == found
    assert may_define_a_replaced_name(source) == bool(found)


def test_a_replaced_name_is_found_in_a_page() -> None:
    source = "const told = 1; // const heard = 2\nconst { ticket, fine } = f('const brake');"
    assert [name for name in declared_in(source) if REPLACED.found_in(name)] == ["told", "ticket"]


def test_the_glossary_has_each_term_in_both_languages() -> None:
    rows = re.findall(r"^\|(.+)\|$", GLOSSARY.partition("## Names in code")[0], re.MULTILINE)[2:]
    assert len(rows) > 30
    assert [row for row in rows if any(not cell.strip() for cell in row.split("|"))] == []


# ------------------------------------------------------------------------------------------------ prose


def prose_of(path: Path) -> str:
    """Text for readers: whole documents; strings and comments of Python; whole modules of the portal."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return source
    kinds = (tokenize.STRING, tokenize.COMMENT)
    return "\n".join(
        token.string for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type in kinds
    )


def texts() -> Iterator[Path]:
    product = [path for root in ("procguard", "remote_agent") for path in (REPOSITORY / root).rglob("*.py")]
    documents = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    pages = [*(REPOSITORY / "web" / "js").rglob("*.js"), *(REPOSITORY / "web" / "locales").glob("*.json")]
    left_out = {REPOSITORY / name for name in QUOTED}
    yield from (path for path in [*product, *documents, *pages] if path not in left_out)


def phrases_in(text: str) -> list[str]:
    flat = re.sub(r"\s+(?:#\s+)?", " ", text)
    return [phrase for phrase in PHRASES if phrase in flat and re.search(rf"\b{re.escape(phrase)}(?!\w)", flat)]


def test_no_text_has_a_phrase_that_is_not_the_field_s() -> None:
    suspects = [path for path in texts() if phrases_in(path.read_text(encoding="utf-8"))]  # names count, too
    found = {str(path.relative_to(REPOSITORY)): phrases_in(prose_of(path)) for path in suspects}
    assert {name: phrases for name, phrases in found.items() if phrases} == {}


def test_a_phrase_is_found_across_lines() -> None:
    assert phrases_in("# It is started\n    # anew.") == ["anew"]
    assert phrases_in("mend\nthe inventory") == ["mend the"]
    assert phrases_in("renewal") == []
