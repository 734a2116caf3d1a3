"""One dialect of regular expressions: the manager's RE2 and the hosts' `re` match the same, or it is refused."""

import re
import time

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from procguard import expression
from procguard.errors import UsageError
from tests.rows import each
from tests.sizes import examples

TEXTS = [
    "", "a", "A", "ab", "aab\tb", "CUDA error: out of memory", "loss=nan step=12", "k\u212aK", "s\u017fS",
    "Straße STRASSE",
    "naïve ÀÉ àé", "损失 损失=3", "a.b*c", "x{,5} {2} {", "\x1b[31mred\x1b[0m", "_под_чертой_", "Ⅷ ⅷ", "σςΣ", "iıIİ",
    "12٣", "a\x0bb\u00a0c",
    "]-^\\[", "aaa" * 20, "\ufffd", "😀 text 😀", "\u0085\u2028x",
]  # fmt: skip


def both(pattern: str, text: str, ignore_case: bool = False) -> tuple[bool, bool]:
    """(the manager's result, a host's result)."""
    read = expression.read(pattern, ignore_case)
    return read.found_in(text), re.compile(read.for_hosts).search(text) is not None


UNDERSTOOD = [
    "CUDA error", "^a", "b$", r"\Aa\z", ".", "a*", "a+?b", "(a|b)*c", "(?:a|)b", "(?P<x>a)b", "(?<x>a)b",
    "[a-c]", "[^a-c]",
    "[]a]", "[^]a]", "[a-]", "[-a]", r"[\]\-\^\\]", r"[\d]", r"[\D]", r"[^\w]", r"[\W\d]", r"\d+", r"\D", r"\s",
    r"\S",
    r"\w+", r"\W", r"\b", r"\bb", r"a\b", "[[:alpha:]]", "[[:^alpha:]]", "[[:word:][:space:]]", "[^[:digit:]]",
    r"\Qa.b*c\E", r"\Qa.b", r"\x41", r"\x{1F600}", r"\t", r"\v", r"\.", r"\_", "a{2}", "a{2,}", "a{1,3}?", "x{",
    "{2",
    "x{a}", "(?i)straße", "(?i:K)", "a(?i)b|C", "(?i)[k]", "(?i)[^s]", r"(?i)\w", r"(?i)\W", "(?i)σ", "(?i)ⅷ",
    "(?i)i",
    "(?i)ı", "(?i)[à-ý]", "(?s)a.b", "(?s:.)", "(?m)^a$", "(?U)a+b", "(?i-s:A)", "a||b", "()", "(|a)*b", "^*a",
    r"(?:\b)*a",
    "[a-c-e]", r"[\x{0}-\x{10FFFF}]", r"[^\x{0}-\x{10FFFF}]", "损失", "[一-龥]=3", "a{0}b", "(a{2}){3}", "[&&~~||a]",
    "#x", "a b", "[[:^space:]]+", "😀", "[😀]", r"\x{2028}", "$", "^$", "^", "(?i)[[:upper:]]", "[^\\n]", "\\r?$",
    "a.*a.*a.*b", "(a+)+b", "(x+x+)+y",
]  # fmt: skip


@each("pattern", UNDERSTOOD)
def test_the_manager_and_a_host_find_the_same(pattern):
    for text in TEXTS:
        for ignore_case in (False, True):
            if pattern == "(a+)+b" and len(text) > 25:
                continue  # a host's engine may run away: test_log_search.py says what becomes of it
            manager, host = both(pattern, text, ignore_case)
            assert manager == host, (pattern, text, ignore_case, expression.read(pattern, ignore_case).for_hosts)


REFUSED = [
    (r"a(?=b)", "look-ahead", 2), (r"a(?!b)", "look-ahead", 2), ("(?<=a)b", "look-behind", 1),
    ("(?<!a)b", "look-behind", 1),
    (r"(a)\1", "back-reference", 4), ("(?P<n>a)(?P=n)", "back-reference", 9), ("(?>a)", "atomic", 1),
    ("(?#x)a", "comment", 1),
    ("(a)?(?(1)b|c)", "condition", 5), ("a*+b", "possessive", 2), ("a{,5}", "lower bound", 2), (r"a\Z", r"\Z", 2),
    (r"\Bx", r"\B", 1), (r"\pN", r"\p", 1), (r"\PL", r"\P", 1), (r"\C", r"\C", 1), (r"[\pN]", r"\p", 2),
    (r"\012", "octal", 1),
    ("(?x)a", "flag", 1), ("(?a)a", "flag", 1), (r"\u0041", r"\u", 1), (r"\N{DASH}", r"\N", 1), (r"a\E", r"\E", 2),
    ("(" * 60 + ")" * 60, "group", 51),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "construct", "at"), REFUSED)
def test_what_the_two_do_not_mean_alike_is_refused_with_what_where_and_what_instead(pattern, construct, at):
    with pytest.raises(UsageError) as refused:
        expression.read(pattern)
    said = str(refused.value)
    assert (
        construct in said
        and f"at character {at} " in said
        and refused.value.next_step
        and refused.value.code == "bad_expression"
    )


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "[", "[a", "a**", "*a", "a|*", "a{2}{3}", "x{1001}", "(a{100}){100}", "[z-a]", "[[:foo:]]", "\\",
    r"\x", r"\x{110000}",
     r"\q", "(?", "(?i", r"[a-\d]", "a" * 513, "\ud800", "(?:.{300}x){3}" * 30],
)  # fmt: skip
def test_a_mistake_is_a_usage_error_in_one_line(pattern):
    with pytest.raises(UsageError) as refused:
        expression.read(pattern)
    assert "\n" not in str(refused.value) and refused.value.next_step


def test_upper_and_lower_case_are_the_same_characters_as_re2_has_them():
    """Every character with another case: RE2's folding and the table sent to hosts agree."""
    orbits = expression._orbits()
    text = "".join(map(chr, sorted(orbits)))
    for code in [*list(orbits)[::7], 0x131, 0x130, 0x4B, 0x53, 0xDF, 0x1E9E, 0x3C2]:
        options = re2.Options()
        options.case_sensitive = False
        by_re2 = set(re2.compile(f"\\x{{{code:x}}}", options).findall(text))
        re2.purge()
        assert {chr(one) for one in expression._orbit(code)} & set(text) == by_re2, hex(code)


LETTERS = st.sampled_from(["a", "b", "k", "s", "K", "é", "0", "_", " ", "-", "损", "\t"])
ATOMS = st.one_of(
    LETTERS.map(expression.literal),
    st.sampled_from([".", r"\d", r"\W", r"\s", r"\w", "[ab]", "[^a]", r"[^\w-]", "[a-s]", "[[:alpha:]]", r"\x{4b}"]),
    st.sampled_from([r"\b", "^", "$", "", r"\Qa.\E"]),
)  # fmt: skip
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.tuples(inner, inner).map("|".join).map("({})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{0,2}", "{1,}"])).map("(?:{0[0]}){0[1]}".format),
        inner.map("(?i:{})".format),
        inner.map("(?U:{})".format),
    ),
    max_leaves=8,
)


@settings(max_examples=examples(400), deadline=None)
@given(PATTERNS, st.lists(LETTERS, max_size=8).map("".join), st.booleans())
def test_generated_expressions_are_found_in_the_same_texts(pattern, text, ignore_case):
    try:
        manager, host = both(pattern, text, ignore_case)
    except UsageError:
        return
    assert manager == host


def test_an_expression_that_runs_away_elsewhere_is_quick_here():
    began = time.perf_counter()
    assert not expression.read("a.*a.*a.*b").found_in("a" * 2000)
    assert not expression.read("(a+)+b").found_in("a" * 16_000)
    assert not expression.read("(a?){50}a{50}b").found_in("a" * 16_000)
    assert time.perf_counter() - began < 5  # with Python's `re` the first takes minutes, the second forever


def test_a_literal_stands_for_itself():
    for text in TEXTS:
        read = expression.read(expression.literal(text), ignore_case=True)
        assert read.found_in(f"x{text}y") and re.search(read.for_hosts, f"x{text}y")
