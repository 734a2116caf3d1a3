"""Templates without bounds get an error with their name, within seconds; others have the resources they need."""

# ruff: noqa: E501 -- a template is a line
from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from procguard.deploy.inventory import model as inventory
from procguard.deploy.inventory.templates import contained
from procguard.errors import InventoryError, UsageError

HOSTILE = {
    "long text": "{{ 'a' * 10**9 }}",
    "long text, doubled": "{% set ns = namespace(a='a' * 1000) %}{% for i in range(40) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
    "a list": "{{ [0] * 10**9 }}",
    "a range": "{{ range(10**9) | list }}",
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "powers": "{{ 9**(9**9) }}",
    "powers by a filter": "{{ ([9] * 9) | map('int') | product([1]) | list | length * 10**5000 }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a format": "{{ '{:>1000000000}'.format(1) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "indent": "{{ ('a\n' * 1000) | indent(10**8) }}",
    "replace": "{{ ('a' * 1000) | replace('a', 'b' * 1000) | replace('b', 'c' * 1000) }}",
    "a slow expression": "{{ ('a' * 40) | regex_search('(a|a)*b') }}",
    "product": "{{ [0] | product(range(9999), range(9999)) | list | length }}",
    "itself": "{{ ansible_user }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "joined": "{{ range(99999) | map('string') | join('x' * 100) }}",
    "a file without end": "{{ lookup('file', '/dev/zero') }}",
    "a pipe that nobody writes": "{{ lookup('file', 'pipe') }}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_with_its_name_and_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(contained, "SOFT_S", 0.4)  # as it is elsewhere, but sooner
    monkeypatch.setattr(contained, "HARD_S", 0.8)
    monkeypatch.setattr(contained, "MEMORY_BYTES", 128 * 1024 * 1024)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "hosts").write_text("h1\n")
    (tmp_path / "host_vars" / "h1.yml").write_text('ansible_user: "' + HOSTILE[name].replace("\n", "\\n") + '"\n')
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    with pytest.raises(InventoryError) as caught:
        inventory.load(tmp_path / "hosts")
    assert time.monotonic() - began < contained.STUCK_S
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 1.0 and after.ru_maxrss - before.ru_maxrss < 100 * 1024
    assert len(str(caught.value)) < 2_000 and ("h1" in str(caught.value) or "{" in str(caught.value))


def test_aliases_of_aliases_are_no_way_around(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "hosts.yml").write_text(
        "all:\n  hosts: {h1: }\n  vars:\n    " + "\n    ".join([*lines, "procguard_labels: *a9"])
    )
    began = time.process_time()
    with pytest.raises(InventoryError, match="more than 1000000 values"):
        inventory.load(tmp_path / "hosts.yml")
    assert time.process_time() - began < 2.0


def test_what_the_work_says_and_raises_comes_back() -> None:
    def fails(_bounds: contained.Bounds) -> None:
        raise UsageError("no", "do it otherwise")

    here = os.getpid()
    assert contained.run(lambda _: (os.getpid() != here, [1, "a"])) == (True, [1, "a"])
    with pytest.raises(UsageError, match="do it otherwise"):
        contained.run(fails)


def test_a_process_that_just_ends_is_an_error_that_names_the_template() -> None:
    def gone(bounds: contained.Bounds) -> None:
        with bounds.of("{{ the_last_one }}"):
            os._exit(0)

    with pytest.raises(InventoryError, match="the_last_one"):
        contained.run(gone)
