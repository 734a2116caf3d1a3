"""Filters and lookups of Ansible's collections, which ansible-core alone cannot verify. The rest stands beside
ansible-core in test_inventory_parity.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.inventory import model as inventory
from procguard.deploy.inventory.templates.functions import TemplateMistake
from procguard.deploy.inventory.templates.renderer import Renderer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ '10.0.0.7' | ipaddr }}", "10.0.0.7"),
        ("{{ 'gpu01' | ipaddr }}", False),
        ("{{ '10.0.0.7/24' | ipaddr('address') }}", "10.0.0.7"),
        ("{{ '10.0.0.7/24' | ipaddr('network') }}", "10.0.0.0"),
        ("{{ '10.0.0.7/24' | ipaddr('netmask') }}", "255.255.255.0"),
        ("{{ '10.0.0.7/24' | ipaddr('prefix') }}", 24),
        ("{{ '10.0.0.0/24' | ipaddr(5) }}", "10.0.0.5/24"),
        ("{{ '10.0.0.0/24' | ipaddr('-1') }}", "10.0.0.255/24"),
        ("{{ '10.0.0.0/30' | ipaddr(9) }}", False),
        ("{{ ['10.0.0.1', 'x', '::1'] | ipaddr }}", ["10.0.0.1", "::1"]),
        ("{{ ['10.0.0.1', '::1'] | ipv6 }}", ["::1"]),
        ("{{ '2001:db8::1' | ipwrap }}", "[2001:db8::1]"),
        ("{{ '10.0.0.7' | ansible.utils.ipaddr('private') }}", "10.0.0.7"),
    ],
)
def test_addresses(text: str, value: Any) -> None:
    assert Renderer({}).render(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ nothing | mandatory }}", "mandatory variable nothing is not defined"),
        ("{{ nothing | mandatory('say where') }}", "say where"),
        ("{{ 'x' | extract({}) }}", "there is no 'x'"),
        ("{{ 1 | dict2items }}", "needs a mapping"),
        ("{{ '10.0.0.1' | ipaddr('nonsense') }}", "is not supported"),
        ("{{ lookup('pipe', 'id') }}", "use env, file or vars"),
        ("{{ query('password', 'x') }}", "use env, file or vars"),
        ("{{ 'abc' | b64decode }}", "b64decode"),
        ("{{ 'a' | regex_search('(') }}", "missing \\)"),
        ("{{ range(10**9) }}", "Range too big"),
    ],
)
def test_what_cannot_be_computed_is_a_mistake_in_words(text: str, words: str) -> None:
    with pytest.raises(TemplateMistake, match=words):
        Renderer({}).render(text)


def test_what_is_omitted_is_not_there() -> None:
    variables = {"a": "{{ omit }}", "b": {"c": "{{ nothing | default(omit) }}", "d": 1}, "l": [1, "{{ omit }}"]}
    renderer = Renderer(variables)
    assert renderer.get("a", "default") == "default"
    assert (renderer.get("b"), renderer.get("l")) == ({"d": 1}, [1])


def test_text_that_is_unsafe_is_no_template(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {hosts: {h1: {procguard_home: !unsafe '/a/{{ x }}'}}}\n")
    assert inventory.load(tmp_path / "hosts.yml").hosts["h1"].home == "/a/{{ x }}"


def test_hosts_know_each_others_variables(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(
        "[head]\nh0 ansible_host=10.0.0.1 rack='{{ 1 + 1 }}'\n[g]\nh1\n[g:vars]\n"
        "procguard_manager_url=http://{{ hostvars[groups['head'][0]].ansible_host }}:5000\n"
        "ansible_user=r{{ hostvars['h0']['rack'] }}-{{ hostvars.h1.inventory_hostname }}\n"
        "procguard_home=/{{ 'h0' | extract(hostvars, 'rack') }}/{{ hostvars | length }}\n"
    )
    host = inventory.load(tmp_path / "hosts").hosts["h1"]
    assert (host.manager_url, host.target.user, host.home) == ("http://10.0.0.1:5000", "r2-h1", "/2/2")


def test_a_file_is_found_beside_the_inventory(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "user").write_text("ml\n\n")
    (tmp_path / "hosts").write_text("h1 ansible_user=\"{{ lookup('file', 'files/user') }}\"\n")
    assert inventory.load(tmp_path / "hosts").hosts["h1"].target.user == "ml"
