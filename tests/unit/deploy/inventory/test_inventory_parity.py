"""The inventory is read as Ansible reads it: the same hosts, groups and variables as `ansible-inventory --list` says.

A new shape is a new entry in SHAPES: the files of a folder, and which of them is the inventory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.inventory import groups as inventory_groups
from procguard.deploy.inventory import source

pytestmark = pytest.mark.slow

SCRIPT = """#!/bin/sh
case $1 in
--list) cat <<'END'
%s
END
;;
--host) echo '{"ansible_user": "'$2'-user"}';;
esac
"""

SHAPES: dict[str, dict[str, str]] = {
    "yaml: parents, children, one host in many groups": {
        "hosts.yaml": """
all:
  vars: {colour: grey, size: 1}
  hosts: {alone: {colour: red}, }
  children:
    outer:
      vars: {colour: blue, from_outer: [1, 2]}
      children:
        inner: {vars: {colour: green}, hosts: {h1: , h2: {size: 2}}}
    other:
      hosts: {h2: {size: 3}, h3: }
      vars: {colour: yellow}
    empty:
"""
    },
    "yaml: top-level groups without all, priorities, strings for mappings": {
        "hosts.yml": """
zebra: {hosts: {h1: , h2: }, vars: {v: zebra, w: zebra, ansible_group_priority: 10}}
apple: {hosts: {h1: }, vars: {v: apple, w: apple}}
mango: {hosts: h3, children: apple}
"""
    },
    "yaml: ranges, ports and steps": {
        "hosts.yaml": """
gpus:
  hosts:
    gpu[01:03].lan: {rack: a}
    "node[a:c]-[1:2]:2222":
    n[0:6:3]: {ansible_port: 22, port: "{{ ansible_port }}"}
"""
    },
    "yaml: types and templates stay as they are": {
        "hosts.yaml": """
all:
  hosts:
    h1:
      number: 7
      text: "007"
      float: 1.5
      truth: yes
      nothing: null
      nested: {a: [1, {b: "{{ number }}"}], c: no}
      template: "{{ number + 1 }}"
      multi: |
        two
        lines
"""
    },
    "yaml without an ending": {"hosts": "all:\n  hosts:\n    h1: {a: 1}\n"},
    "group_vars and host_vars: files, folders, json, all against inline": {
        "hosts.yaml": """
all:
  vars: {v: inline-all, only: inline}
  children:
    g: {vars: {v: inline-g, w: inline-g}, hosts: {h1: {v: inline-h1, x: inline-h1}, h2: }}
    p: {children: {g: }, vars: {w: inline-p}}
""",
        "group_vars/all.yml": "{v: file-all, y: file-all}",
        "group_vars/g/10-first.yaml": "{v: g-first, z: first}",
        "group_vars/g/20-second.yml": "{z: second}",
        "group_vars/p.json": '{"w": "file-p", "y": "file-p"}',
        "host_vars/h1.yml": "{x: file-h1}",
        "host_vars/h2/main.yml": "{v: file-h2, nested: {deep: [1]}}",
    },
    "ini: sections, vars, children in any order, comments": {
        "hosts": """
# before
alone ansible_host=10.0.0.1   # behind a host
; also a comment
[gpus:children]
trainers
[trainers]
gpu[01:02] rack='a b' ansible_user=ml
gpu03:2222 n=3 f=1.5 l="[1, 2]" d="{'a': 1}" b=True s="quoted" t='(1,2)' z=007 none=None h=0x10
[trainers:vars]
steps = 100
text = some words # kept
quoted = "yes"
list = ['a', 'b']
template = {{ steps + 1 }}
ansible_group_priority = 3
[gpus:vars]
steps=50
site=here
"""
    },
    "ini: one host in several sections, groups that only have children": {
        "inventory.ini": """
[a]
h1 v=a
h2
[b]
h1 w=b
h3
[c:children]
a
b
[d:children]
c
[a:vars]
u=a
[d:vars]
u=d
t=d
"""
    },
    "ini beside group_vars": {
        "hosts.ini": "[web]\nweb[1:2]\n[web:vars]\nport=80\n",
        "group_vars/web.yml": "{port: 8080}",
        "group_vars/ungrouped.yml": "{never: here}",
        "host_vars/web2": "port: 9090\n",
    },
    "executable with _meta": {
        "dynamic.py": SCRIPT
        % json.dumps(
            {
                "trainers": {"hosts": ["d1", "d2"], "vars": {"v": "trainers", "n": 1}, "children": ["more"]},
                "more": {"hosts": ["d3"], "vars": {"v": "more"}},
                "_meta": {"hostvars": {"d1": {"v": "d1", "x": [1, "a"]}, "d3": {"y": None}}},
            }
        )
    },
    "executable without _meta, a list for a group": {
        "dynamic": SCRIPT % json.dumps({"listed": ["d1", "d2"], "g": {"hosts": ["d2"], "vars": {"z": "{{ 1 }}"}}})
    },
    "a folder: yaml, ini and an executable, in order of their names": {
        "inv/10-hosts.yaml": "all: {children: {g: {hosts: {h1: {v: yaml}, h2: }, vars: {gv: yaml}}}}",
        "inv/20-more.ini": "[g]\nh1 v=ini\nh3\n[g:vars]\ngv=ini\n",
        "inv/30-script": SCRIPT % json.dumps({"s": {"hosts": ["h4"]}, "_meta": {"hostvars": {"h4": {"a": 1}}}}),
        "inv/group_vars/g.yml": "{filed: true}",
        "inv/README.md": "not an inventory",
        "inv/.hidden": "nothing",
    },
    "yaml: merge keys, odd scalars, empty sections, addresses for names": {
        "hosts.yaml": """
all:
  vars: &base {a: 1, b: [x]}
  hosts:
    "10.0.0.1":
    10.0.0.2: {a: 0x1F, b: 0o17, c: 017, d: 1e3, f: .5, g: 1_000, h: ~, i: "yes", j: on, k: !!str 5, 名: "é😀"}
  children:
    nothing:
    hollow: {hosts: , vars: , children: }
    g: {vars: *base, hosts: {h1: {<<: *base, b: 2}, "10.0.0.2:2222": {x: }}}
    above: {children: {g: {vars: {a: 2, y: 3}}}}
ungrouped: {vars: {u: 1}, hosts: {lonely: }}
"""
    },
    "ini: quotes, types, sections twice, three levels, steps": {
        "hosts": """
h0 a="x y" b='it''s' c=a=b d="#notcomment" e=#comment
[all:vars]
from_all=1
[ungrouped:vars]
u=2
[a]
h1 a=[1,2] b={'x':1} c=None d=True e=0.5 f=1,2 g="" h=
n[1:9:4].x
r[a:c]:2200 v=1
[b:children]
a
[my-group.x:children]
b
[a]
h2
[a:vars]
x=1
f=
q='q'
i=1 # c
j=http://x/#y
n=None
[my-group.x:vars]
x=2
y=2
[b:vars]
y=3
[web]
web x=1
"""
    },
    "files of variables: priority in one, a folder for all, a file beside a folder, two endings": {
        "hosts.yaml": "all: {children: {a: {hosts: {h1: }}, z: {hosts: {h1: , 'n[1:2]': {v: inline}}}}}",
        "group_vars/all/10.yml": "{x: 1, y: 1}",
        "group_vars/all/20.yml": "x: 2",
        "group_vars/a.yml": "{v: a, ansible_group_priority: 10}",
        "group_vars/a/inside.yml": "w: folder",
        "group_vars/z.yml": "v: yml",
        "group_vars/z.yaml": "v: yaml",
        "host_vars/n1.yml": "v: file",
        "host_vars/n2/deep/er.yml": "v: deep",
    },
    "json": {
        "hosts.json": json.dumps(
            {"all": {"hosts": {"h1": {"a": 1}}, "children": {"g": {"hosts": {"h2": None}, "vars": {"z": [1]}}}}}
        )
    },
    "a folder in a folder, and a later file that adds to an earlier one's groups": {
        "inv/10-first": "[g]\nh1\n",
        "inv/20/a.yaml": "k: {hosts: {h2: {v: yaml}}}",
        "inv/30.ini": "[all:vars]\nx=5\n[g:children]\nk\n[k]\nh3\n",
        "inv/group_vars/k.yml": "filed: 1",
    },
    "executable: groups of groups, variables of all, ungrouped hosts": {
        "dynamic": SCRIPT
        % json.dumps(
            {
                "all": {"hosts": ["x1"], "vars": {"a": 1}},
                "ungrouped": {"hosts": ["x3"]},
                "g": {"children": ["k"], "vars": {"b": 2}},
                "k": {"hosts": ["x2"]},
                "_meta": {"hostvars": {"x2": {"b": 3}}},
            }
        )
    },
    "what the repository ships": {},
}


def planted(name: str, folder: Path) -> Path:
    files = SHAPES[name]
    if not files:
        return Path(__file__).parents[4] / "inventory" / "prod.yaml"
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if text.startswith("#!"):
            file.chmod(0o755)
    first = folder / next(iter(files))
    return first if first.parent == folder else first.parent


def as_ansible_says(path: Path, home: Path) -> dict[str, Any]:
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "inventory", "-i", str(path), "--list"],
        env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def members(listed: dict[str, Any], group: str) -> set[str]:
    body = listed.get(group, {})
    below = [members(listed, child) for child in body.get("children", [])]
    return set(body.get("hosts", [])).union(*below)


@pytest.mark.parametrize("name", SHAPES)
def test_hosts_groups_and_variables_are_those_of_ansible(name: str, tmp_path: Path) -> None:
    (tmp_path / "inventory").mkdir()
    path = planted(name, tmp_path / "inventory")
    mistakes: list[str] = []
    ours = source.read(path, lambda *mistake: mistakes.append(": ".join(mistake)))
    theirs = as_ansible_says(path, tmp_path)

    assert mistakes == []
    assert set(ours.host_variables) == members(theirs, "all")
    groups = {group: set(hosts) for group, hosts in ours.members().items() if hosts}
    named = {group for group in theirs if group != "_meta"} | {"all"}
    assert groups == {group: members(theirs, group) for group in named if members(theirs, group)}
    for host in ours.host_variables:
        assert as_json(ours.variables(host)) == theirs["_meta"]["hostvars"].get(host, {}), host


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("pattern", ["gpu[01:16].lan", "n[0:9:3]", "rack[a:f]", "r[1:2]n[08:11]", "x[c:c]y"])
def test_ranges_are_those_of_ansible(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(pattern + "\n")
    assert set(inventory_groups.expand_range(pattern)) == members(as_ansible_says(tmp_path / "hosts", tmp_path), "all")
