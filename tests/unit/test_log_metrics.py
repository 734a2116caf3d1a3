"""`metrics` of a worker: valid declarations, and errors of one line."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable
from random import Random

import re2

from procguard import expression, expression_cost, log_metrics
from procguard.errors import UsageError
from tests.rows import each
from tests.sizes import examples
from tests.unit.test_expression import TEXTS, UNDERSTOOD

TAKEN = [
    ("loss ([0-9.]+)", "loss 0.25", ("0.25",), "loss "),
    ("epoch ([0-9]+)/([0-9]+)", "x epoch 3/90", ("3", "90"), "epoch "),
    (r"\bval_loss[ =:]+([-+0-9.eE]+)", "val_loss = -1e-3", ("-1e-3",), "val_loss"),
    (r"(?i)Loss\s*[:=]\s*(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", "LOSS: 2.5e-3", ("2.5e-3",), ""),
    (r"([0-9]+)%\|", " 42%|####   |", ("42",), "%|"),
    ("epoch ([0-9]+)/([0-9]+).*loss [0-9.]+", "epoch 1/9 lr 1 loss 2", ("1", "9"), "epoch "),
    ("(?:train|valid)(?:[a-z]+,)* step ([0-9]+)", "valida,b, step 7", ("7",), " step "),
    (r"(?P<n>\d+) of (?P<total>\d+)", "7 of 9", ("7", "9"), " of "),
]


@each("case", TAKEN)
def test_a_declared_expression_finds_its_numbers_on_a_host(case: tuple[str, str, tuple[str, ...], str]) -> None:
    text, line, groups, needle = case
    assert log_metrics.mistakes({"n": text}) == []
    for_host, found_needle = log_metrics.for_hosts({"n": text})["n"]
    match = re.compile(for_host).search(line)
    assert match is not None and match.groups() == groups
    assert found_needle in line and (found_needle == needle or not needle)


REFUSED = [
    ("(a+)+b", "unbounded time"), ("(?:x+x+)+(y)", "unbounded time"), ("(?:a|a)*(b)", "unbounded time"),
    ("(?:a*)*(b)", "unbounded time"), (r"(?:\s*foo\s*)*(x)", "unbounded time"),
    ("(?:a|ab)(?:c|bcd)*(?:d*)*(x)", "unbounded time"),
    ("(?:[0-9a-f]+[0-9]+)*(x)", "unbounded time"), ("a.*b.*c([0-9])", "such as .*"),
    ("epoch.*loss.*acc ([0-9.]+)", "leave out what"), ("[0-9].*[0-9]+c(x)", "such as .*"),
    ("(?:a?){40}(b)", "unbounded time"),
    ("(?:a|a)" * 20 + "(b)", "ways"), ("a?" * 20 + "a" * 20 + "(b)", "ways"), ("(?:a{1,9}){1,9}(b)", "unbounded time"),
    ("loss [0-9.]+", "0 groups"), ("(a)(b)(c)", "3 groups"), ("loss (", "missing"), ("(?=a)(b)", "look-ahead"),
    ("(" + "a" * 300 + ")", "longer than 256"), ("(a){9999}", "repetition"),
]  # fmt: skip


@each("case", REFUSED)
def test_what_is_no_use_or_could_hold_a_host_up_is_refused_in_one_line(case: tuple[str, str]) -> None:
    text, said = case
    (mistake,) = log_metrics.mistakes({"loss": text})
    assert mistake.startswith("metrics.loss: ") and said in mistake and "\n" not in mistake and len(mistake) < 600


def test_groups_capture_the_same_in_both_engines() -> None:
    """Only of expressions that are not refused for their cost: `re` may not terminate on others."""
    for pattern in UNDERSTOOD:
        read = expression.read(pattern, captures=True)
        host, manager = re.compile(read.for_hosts), re2.compile(pattern)
        assert host.groups == read.groups == manager.groups, pattern
        for text in () if expression_cost.unbounded_because(read.tree) else TEXTS:
            found = [one and one.groups() for one in (host.search(text), manager.search(text))]
            assert found[0] == found[1], (pattern, text)


def made(random: Random, depth: int) -> str:
    """An expression of few characters, so that its parts overlap."""
    kind = random.random()
    if depth == 0 or kind < 0.3:
        return random.choice(["a", "b", "[ab]", ".", "[^a]", "ab", "c"])
    if kind < 0.6:
        return made(random, depth - 1) + made(random, depth - 1)
    if kind < 0.75:
        return f"(?:{made(random, depth - 1)}|{made(random, depth - 1)})"
    return f"(?:{made(random, depth - 1)})" + random.choice(["*", "+", "?", "{2,5}", "*?", "{3}"])


USUAL = [
    "loss ([0-9.]+)", "epoch ([0-9]+)/([0-9]+).*loss [0-9.]+", r"([0-9]+)%\|", r"\S+\s+([0-9.]+)", ".*loss ([0-9.]+)",
    r"(?i)Loss\s*[:=]\s*(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", r"loss\s*:?\s*([0-9.]+)", "loss=([0-9.]+).*lr=([0-9.e-]+)",
    r"\d{4}-\d{2}-\d{2} \d+:\d+:\d+.*loss[:= ]+([0-9.]+)", r"\[(\d+)/(\d+)\].*loss: \d+\.\d+", "(a*)b",
    r"\bval_loss[ =:]+([-+0-9.eE]+)", r"step=(\d+) .*tokens/s=([0-9.]+)", '"epoch": ([0-9]+).*"loss": [0-9.]+',
    "a.*b(c)",
]  # fmt: skip
CATASTROPHIC = [
    "a.*b.*c(d)", "[0-9].*[0-9]+c(x)", "[0-9]+.*[0-9]+c(x)", "a*a*a*(b)", ".*.*(x)", r"loss\s*:?\s*=?\s*([0-9.]+)",
    "epoch.*loss.*acc ([0-9.]+)", r"(\d+)\d*\d*x",
]  # fmt: skip
UNITS = [
    "a", "b", "ab", "aab", "abc", "c", "1", " ", "1.5 ", "loss ", "loss", "epoch loss acc ", "epoch 1/1", "=1",
    "1-1-1 1:1:1", "[1/1]", "step=1 tokens/s=", '"epoch": 1', '"loss": ', "loss: 1.1",
]  # fmt: skip


def steps(text: str, lines: Iterable[str]) -> int:
    """What a backtracking search costs on the worst of these lines if it does not match, counted: the number of ways in
    which a part of the expression matches a part of the line."""
    automaton = expression_cost.Automaton()
    first = automaton.add(expression.read(text, captures=True).tree, within=False).first

    @functools.cache
    def taking(code: int) -> set[int]:
        return {at for at, of in enumerate(automaton.ranges) if any(low <= code <= high for low, high in of)}

    most = 0
    for line in lines:
        reached: dict[int, int] = {}
        total = 0
        for code in map(ord, line):
            takes = taking(code)
            following = dict.fromkeys(takes.intersection(first), 1)
            for at, ways in reached.items():
                for to in automaton.follow[at]:
                    if to in takes:
                        following[to] = following.get(to, 0) + ways
            reached = following
            total += sum(reached.values()) + 1
        most = max(most, total)
    return most


def worst(text: str, length: int) -> int:
    """The steps on the worst of these lines, each with a beginning of its own and a unit repeated."""
    return steps(
        text, {(begin + unit * length)[:length] for begin in ("", "epoch 1/1 ", "a", "loss") for unit in UNITS}
    )


@each("text", USUAL)
def test_a_usual_expression_costs_at_most_the_square_of_the_line(text: str) -> None:
    """Half the square is 0.03 s for the longest line that a host examines (4,096 characters)."""
    assert log_metrics.mistakes({"n": text if "(" in text else f"({text})"}) == []
    assert worst(text, 128) <= 2 * 128**2


@each("text", CATASTROPHIC)
def test_an_expression_that_costs_the_cube_of_the_line_is_refused(text: str) -> None:
    assert "unbounded time" in log_metrics.mistakes({"n": text})[0]
    assert worst(text, 256) > 6 * worst(text, 128)  # the square would multiply it by 4


def test_nothing_that_is_taken_costs_more_than_its_bound() -> None:
    random, taken, length = Random(11), 0, 64
    for _ in range(examples(1_000)):
        text = made(random, 6) + "(x)"
        try:
            log_metrics.host_form(text)
        except UsageError:
            continue
        taken += 1
        lines = [unit * (length // len(unit)) for unit in ("a", "ab", "b", "aab", "abc", "c", "abb")]
        assert steps(text, lines) <= 32 * length**2, text
    assert taken > 20


def test_names_and_numbers_of_metrics_are_bounded() -> None:
    assert "17 expressions, at most 16" in log_metrics.mistakes({f"m{n}": "(a)" for n in range(17)})[0]
    for name in ("", "a b", "a/b", 'a"', "1a", "a" * 41, "größe"):
        assert "is not a valid name" in log_metrics.mistakes({name: "(a)"})[0]


def test_the_check_itself_is_quick() -> None:
    """Of whatever is as long as an expression may be."""
    began = time.process_time()
    for text in (
        "(?:" + "|".join("abcdefgh"[n % 8] + str(n) for n in range(60)) + ")*(x)",
        "(.*)" + "a?" * 120,
        "(" * 49 + "a" * 100 + ")*" * 49 + "(b)",
    ):
        try:
            log_metrics.host_form(text[: log_metrics.MAX_CHARS])
        except UsageError:
            pass
    assert time.process_time() - began < 2.0
