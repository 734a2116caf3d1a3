"""Inventories in every shape that people write, for test_inventory_parity.py: name -> the files of a folder.

The first file (or the folder it is in) is the inventory; several: those named in SOURCES. A new shape is a new entry.
"""

# ruff: noqa: E501 -- a case is a line
from __future__ import annotations

import json

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

SHAPES |= {
    # ------------------------------------------------------------------------------- ungrouped, all, dynamic answers
    "ini: a host at the top and in a group is not ungrouped": {"hosts": "h1\nh2\n[g]\nh1\n[ungrouped:vars]\nu=1\n"},
    "ini: [ungrouped] by name": {"hosts": "[ungrouped]\nh1\nh2\n[g]\nh2 v=1\n"},
    "ini: [all] by name": {"hosts": "[all]\nh1\nh2\n[g]\nh2\n"},
    "ini: [all:children]": {"hosts": "[all:children]\ng\nk\n[g]\nh1\n[k]\nh2\n"},
    "yaml: a host below all alone, and in a group": {"hosts.yml": "all: {hosts: {h1: , h2: }, children: {g: {hosts: {h1: }}}}"},
    "yaml: ungrouped with a host of a group": {"hosts.yml": "ungrouped: {hosts: {h1: , h2: }}\ng: {hosts: {h1: }}\n"},
    "a script's host that is in _meta alone is none": {
        "dynamic": SCRIPT % json.dumps({"g": {"hosts": ["d1"]}, "_meta": {"hostvars": {"d1": {"a": 1}, "d2": {"b": 2}}}})
    },
    "a script with an empty _meta": {"dynamic": SCRIPT % json.dumps({"g": ["d1"], "_meta": {"hostvars": {}}})},
    "a script with nothing": {"dynamic": SCRIPT % "{}", "other.ini": "h1\n"},
    "a script: a group of nothing but vars": {
        "dynamic": SCRIPT % json.dumps({"g": {"vars": {"a": 1}}, "k": ["d1"], "_meta": {"hostvars": {}}})
    },
    "a script: a host where a group should stand": {"dynamic": SCRIPT % json.dumps({"d1": {"a": 1}, "_meta": {"hostvars": {}}})},
    "a script: children named before their groups": {
        "dynamic": SCRIPT % json.dumps({"top": {"children": ["g", "k"]}, "g": ["d1"], "k": {"hosts": ["d2"]}, "_meta": {"hostvars": {}}})
    },
    "a script: hosts in all and in a group": {
        "dynamic": SCRIPT % json.dumps({"all": {"hosts": ["d1", "d2"]}, "g": {"hosts": ["d1"]}, "_meta": {"hostvars": {}}})
    },
    # ----------------------------------------------------------------------------------------- what a file's name says
    "INI in .yml": {"hosts.yml": "[g]\nh1 a=1\n[g:vars]\nb=2\n"},
    "INI in .yaml that begins with a comment": {"hosts.yaml": "# hosts\n[g]\nh[1:2]\n"},
    "INI in .cfg": {"hosts.cfg": "[g]\nh1 a=1\n"},
    "INI without an ending, hosts alone": {"production": "h1\nh2 a=1\n"},
    "YAML in .ini is INI": {"hosts.ini": "h1\n[g]\nh2\n"},
    "YAML without an ending that begins with ---": {"hosts": "---\ng:\n  hosts:\n    h1:\n      a: 1\n"},
    "YAML without an ending, flow style": {"hosts": "{g: {hosts: {h1: {a: 1}}}}"},
    "JSON without an ending": {"hosts": '{"g": {"hosts": {"h1": {"a": 1}}}}'},
    "YAML with a byte order mark": {"hosts.yml": "\ufeffg: {hosts: {h1: }}\n"},
    "INI with CRLF": {"hosts": "[g]\r\nh1 a=1\r\n[g:vars]\r\nb=x y\r\n"},
    # ------------------------------------------------------------------------------------------ warn, and go on
    "ini: an undefined group in [x:children]": {"hosts": "h0\n[g]\nh1\n[x:children]\ng\nnobody\n"},
    "ini: [x:vars] of an undefined group": {"hosts": "[g]\nh1\n[nobody:vars]\na=1\n"},
    "yaml: a key stands twice": {"hosts.yml": "g:\n  hosts:\n    h1: {a: 1, a: 2}\n  vars: {b: 1}\n  vars: {c: 1}\n"},
    "yaml: a host stands twice": {"hosts.yml": "g:\n  hosts:\n    h1: {a: 1}\n    h2:\n    h1: {b: 2}\n"},
    "yaml: an unknown key of a group": {"hosts.yml": "g: {hosts: {h1: }, host: {h2: }, foo: 1}\n"},
    "yaml: a group that is text": {"hosts.yml": "g: {hosts: {h1: }}\nk: text\n"},
    "a folder with a file that nobody can read": {"inv/10": "[g]\nh1\n", "inv/20.yml": "a: [unclosed\n", "inv/30": "[g]\nh2\n"},
    "a folder with a script that fails": {"inv/10": "h1\n", "inv/20": "#!/bin/sh\nexit 3\n", "inv/30": "h2\n"},
    "a folder with an empty file": {"inv/10": "h1\n", "inv/20": "", "inv/30.yml": "---\n"},
    "a folder in which a later file fails in the middle": {"inv/10": "h1\n", "inv/20": "[g]\nh2\n[x:children]\nnobody\n[k]\nh3\n"},
    "host_vars with a key twice": {"hosts": "h1\n", "host_vars/h1.yml": "a: 1\na: 2\n"},
    # ---------------------------------------------------------------------------------------------------- several -i
    "several: two files, the later one wins": {
        "one.ini": "[g]\nh1 a=1 b=1\nh2\n[g:vars]\nv=1\n", "two.yml": "g: {hosts: {h1: {a: 2}, h3: }, vars: {v: 2}}\n",
    },
    "several: a file and a list": {"one.ini": "[g]\nh1\n"},
    "several: a folder and a file": {"inv/10": "[g]\nh1\n", "two.ini": "[k:children]\ng\n[k]\nh2\n[g]\n"},
    "several: group_vars beside both": {
        "a/hosts": "[g]\nh1\n", "a/group_vars/g.yml": "v: a\nw: a\n", "b/hosts": "[g]\nh2\n", "b/group_vars/g.yml": "v: b\n",
        "b/host_vars/h1.yml": "x: b\n",
    },
    # ------------------------------------------------------------------------------------------------------ names
    "ini: a port behind a range, a range within a name": {"hosts": "[g]\nn[1:3]-x.lan:2222 a=1\nm[08:11:2]\n"},
    "ini: IPv4": {"hosts": "10.0.0.1\n[g]\n10.0.0.[2:4]:22\n"},
    "ini: IPv6": {"hosts": "[g]\n[2001:db8::1]:2222 a=1\nfe80::1\n::1\n"},
    "yaml: IPv6": {"hosts.yml": "g: {hosts: {'2001:db8::1': {a: 1}, '[2001:db8::2]:2200': , '::1': }}\n"},
    "ini: Unicode": {"hosts": "[g]\nbücher.example a=1\n节点1\n"},
    "yaml: Unicode": {"hosts.yml": "g: {hosts: {bücher.example: {a: ü}, 节点1: }}\n"},
    "names longer than 64": {"hosts": f"[g]\n{'x' * 70}.example\n{'y.' * 60}z\n"},
    "names with an underscore in front, and with capitals": {"hosts": "[g]\n_h1\nGPU01\ngpu01\n"},
    "yaml: names that are numbers": {"hosts.yml": "g: {hosts: {1: , 2: }}\n"},
    "groups with dashes, dots and spaces": {"hosts.yml": "a-b.c: {hosts: {h1: }}\n'd e': {hosts: {h2: }}\n"},
    "a group and a host of one name": {"hosts": "[g]\ng\nh1\n"},
    # ----------------------------------------------------------------------------------------------------- variables
    "ini: quotes within quotes": {"hosts": "h1 a='x \"y\" z' b=\"it's\" c='[\"a\", \"b\"]' d=\"{'k': 'v w'}\"\n"},
    "ini: a value with = and with #": {"hosts": "h1 a='-o ProxyCommand=\"ssh -W %h:%p jump\"' b=x#y\n[all:vars]\nc=a=b\nd='x # y'\n"},
    "ini: words for nothing and truth": {"hosts": "h1 a=yes b=no c=True d=False e=None f=null g=~ h=on\n[all:vars]\ni=yes\nj=true\n"},
    "ini: numbers": {"hosts": "h1 a=1 b=-1 c=1e3 d=1_000 e=0o17 f=0b1 g=1.50 h=+1 i=1j j=00 k=٣\n"},
    "ini: a value over two sections": {"hosts": "[g]\nh1 a=1\n[k]\nh1 a=2 b=3\n[g:vars]\nb=g\n[k:vars]\nb=k\n"},
    "ini: a comment behind a section, blanks in it": {"hosts": "[g] # c\nh1\n[g:vars] # c\na=1\n"},
    "ini: vars before the group": {"hosts": "[g:vars]\na=1\n[g]\nh1\n"},
    "ini: empty sections": {"hosts": "[a]\n[b:vars]\n[b]\n[c:children]\nh0\n[h0]\nh1\n"},
    "ini: Jinja with blanks": {"hosts": "h1 a=\"{{ x | default('y z') }}\"\n[all:vars]\nb={{ inventory_hostname }}-{{ a }}\n"},
    "yaml: anchors, merges over two levels, aliases as hosts": {
        "hosts.yml": """
all:
  vars: {base: &b {x: 1, y: {z: 1}}, more: &m {<<: *b, y: 2}}
  children:
    g: {hosts: &h {h1: {<<: [*m, *b]}, h2: }}
    k: {hosts: *h, vars: *b}
"""
    },
    "yaml: octal, sexagesimal, dates, infinities": {
        "hosts.yml": "g: {hosts: {h1: {a: 0o17, b: 017, c: 1:30, d: '2026-01-01', e: 0x1f, f: 1_000, g: .5, h: 1e3, i: 12e03}}}\n"
    },
    "yaml: !unsafe and multi-line text": {
        "hosts.yml": "g:\n  hosts:\n    h1:\n      a: !unsafe '{{ x }}'\n      b: >-\n        one\n        two\n      c: |+\n        x\n\n"
    },
    "yaml: variables that are lists and mappings, over levels": {
        "hosts.yml": "all: {vars: {d: {a: 1}}, children: {g: {vars: {d: {b: 2}}, hosts: {h1: {l: [1]}, h2: {d: }}}}}\n",
        "group_vars/all.yml": "l: [0]\nd: {c: 3}\n",
    },
    "priorities in ini, and in group_vars": {
        "hosts": "[a]\nh1\n[b]\nh1\n[a:vars]\nv=a\nansible_group_priority=10\n[b:vars]\nv=b\n",
        "group_vars/a.yml": "w: a\n", "group_vars/b.yml": "w: b\n",
    },
    "deep parents: depth, then name": {
        "hosts": "[a]\nh1\n[b:children]\na\n[c:children]\nb\n[z]\nh1\n[a:vars]\nv=a\n[b:vars]\nv=b\nw=b\n[c:vars]\nw=c\nx=c\n[z:vars]\nv=z\nx=z\n"
    },
    "group_vars: hidden and backup files, other endings": {
        "hosts": "[g]\nh1\n", "group_vars/g/.hidden.yml": "a: 1\n", "group_vars/g/b.yml~": "a: 2\n",
        "group_vars/g/c.txt": "a: 3\n", "group_vars/g/d": "b: 4\n", "group_vars/g/e.json": '{"c": 5}',
    },
    "group_vars in INI's folder and empty ones": {"hosts": "[g]\nh1\n", "group_vars/g.yml": "", "group_vars/all.yml": "---\n# nothing\n"},
}  # fmt: skip

# Made by `ansible-vault encrypt` and `encrypt_string`, with this password; the second with a label (format 1.2).
PASSWORD = "correct horse"
ENCRYPTED = """\
$ANSIBLE_VAULT;1.1;AES256
61366433616230353838633066333833623665326636366639343835653366653435623834303066
6336613039636162373430376436303934303536356537320a363265373566333262366133666631
37643466616134323035616261333062623534316364646134666666326330353334613436396333
3661373138636664320a363036303964376136323462343866653765626230383564616237613364
6439
"""
LABELLED = """\
$ANSIBLE_VAULT;1.2;AES256;prod
38353166623363613164633630306363336166396134386433623631316330386134663831646363
3061633163366331346534646533353331666461643633350a366434646435633532616464623536
65323732353561356464643264396333616565356437636535306364303161353565653033313831
6336643432373063330a316133633761396363336432393237396139663933376666633939653439
3037
"""
ENCRYPTED_FILE = """\
$ANSIBLE_VAULT;1.1;AES256
34623239346637313833313565356335643265646337623664616662366338386166303766383863
3962653864646463356166316133343232323166333634630a383733326432353632613663393732
65663066383964663038393066366361313337393261646561616166313164373639623162643063
3435313136626339300a623437323365646562363039666563366137383431633739333932366530
61323966373232663566306563363535393462613231303633326162633832636434616237343635
62386636636436666639323935656338613533663133353266303937613361613366323230363063
643533363838313139393962313066653431
"""


def vaulted(text: str) -> str:
    """As a value of YAML."""
    return "!vault |\n" + "".join(f"          {line}\n" for line in text.splitlines())


SHAPES |= {
    "vault: values": {"hosts.yml": f"g:\n  hosts:\n    h1:\n      a: {vaulted(ENCRYPTED)}      b: {vaulted(LABELLED)}      c: 1\n"},
    "vault: a file of group_vars": {"hosts": "[g]\nh1\n", "group_vars/g.yml": ENCRYPTED_FILE, "group_vars/all.yml": "c: 1\n"},
    "vault: a file of host_vars in a folder": {"hosts": "h1\n", "host_vars/h1/vault.yml": ENCRYPTED_FILE, "host_vars/h1/a.yml": "z: 1\n"},
    "vault: values within lists and mappings": {
        "hosts": "h1\n", "group_vars/all.yml": f"l:\n  - {vaulted(ENCRYPTED)}  - 2\nm:\n  k: {vaulted(ENCRYPTED)}",
    },
}  # fmt: skip

# Shapes that need more words than `-i` and their first file; {} is the folder.
SOURCES: dict[str, list[str]] = {
    "several: two files, the later one wins": ["{}/one.ini", "{}/two.yml"],
    "several: a file and a list": ["{}/one.ini", "h2,h3"],
    "several: a folder and a file": ["{}/inv", "{}/two.ini"],
    "several: group_vars beside both": ["{}/a/hosts", "{}/b/hosts"],
    "a script with nothing": ["{}/dynamic", "{}/other.ini"],
}
