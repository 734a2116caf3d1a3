"""Expressions as inventories have them, for test_inventory_parity.py: each has the value that ansible-core gives it."""

# ruff: noqa: E501 -- a case is a line
from __future__ import annotations

VARIABLES = {
    "name": "gpu01.rack3.lan",
    "empty": "",
    "number": 7,
    "ports": [22, 2222],
    "nested": [[1, [2]], 3, None],
    "tags": {"rack": "r3", "gpu": "a100"},
    "more": {"gpu": "h100", "deep": {"a": 1}},
    "users": [{"name": "ml", "keys": ["k1", "k2"]}, {"name": "ops", "keys": ["k3"]}],
    "lazy": "{{ name }}-{{ number }}",
    "truth": "yes",
    "path": "/data/a.b/c.tar.gz",
    "json": '{"a": [1, 2]}',
}

EXPRESSIONS = [
    "{{ name }}", "{{ number }}", "{{ number + 1 }}", "{{ ports }}", "{{ lazy }}", "x-{{ number }}", "{{ tags.rack }}",
    "{{ tags['gpu'] }}", "{{ ports[0] }}", "{{ ports | join(',') }}", "{{ ports | first }}", "{{ ports | length }}",
    "{{ missing | default('d') }}", "{{ empty | default('d') }}", "{{ empty | default('d', true) }}",
    "{{ missing | default([]) }}", "{{ tags.none | default(1) }}", "{{ name if number > 3 else 'x' }}",
    "{{ truth | bool }}", "{{ 'no' | bool }}", "{{ number | string }}", "{{ '12' | int + 1 }}", "{{ 7 / 2 }}", "{{ 7 // 2 }}",
    "{{ name | upper }}", "{{ name | replace('.', '-') }}", "{{ name.split('.')[1] }}", "{{ name | split('.') }}",
    "{{ name | regex_replace('^gpu(\\d+).*', 'node\\1') }}", "{{ name | regex_replace('\\.lan$') }}",
    "{{ name | regex_search('rack\\d') }}", "{{ name | regex_search('(\\w+)\\.(\\w+)', '\\1', '\\2') }}",
    "{{ name | regex_search('(?P<r>rack\\d)', '\\g<r>') }}", "{{ name | regex_search('nothing') }}",
    "{{ name | regex_findall('\\d') }}", "{{ name | regex_search('GPU', ignorecase=True) }}", "{{ 'a.b' | regex_escape }}",
    "{{ tags | dict2items }}", "{{ tags | dict2items(key_name='k', value_name='v') }}", "{{ tags | dict2items | items2dict }}",
    "{{ name | b64encode }}", "{{ 'Z3B1' | b64decode }}", "{{ 'rack' | extract(tags) }}", "{{ 0 | extract(ports) }}",
    "{{ 'deep' | extract(more, 'a') }}", "{{ ['rack', 'gpu'] | map('extract', tags) | list }}", "{{ name | mandatory }}",
    "{{ tags | combine(more) }}", "{{ tags | combine({'deep': {'b': 2}}, more, recursive=True) }}", "{{ nested | flatten }}",
    "{{ nested | flatten(levels=1) }}", "{{ true | ternary('a', 'b') }}", "{{ ports | union([22, 80]) | sort }}",
    "{{ ports | intersect([22, 80]) }}", "{{ ports | difference([22]) }}", "{{ ports | symmetric_difference([22, 80]) | sort }}",
    "{{ [3, 1, 3] | unique }}", "{{ ports | zip(['a', 'b']) | list }}", "{{ [1, 2] | product(['a']) | list }}",
    "{{ users | subelements('keys') }}", "{{ users | map(attribute='name') | list }}", "{{ users | map(attribute='name') }}",
    "{{ users | selectattr('name', 'equalto', 'ml') | list }}", "{{ ports | map('string') | list }}", "{{ ports | sum }}",
    "{{ ports | max }}", "{{ [2, 1] | sort }}", "{{ ports | reverse | list }}", "{{ range(3) | list }}", "{{ range(1, 4) | list }}",
    "{{ path | basename }}", "{{ path | dirname }}", "{{ path | splitext }}", "{{ ['/a', 'b'] | path_join }}",
    "{{ tags | to_json }}", "{{ json | from_json }}", "{{ 'a: 1' | from_yaml }}", "{{ ports | to_json }}",
    "{{ tags | to_nice_json }}", "{{ name | quote }}", "{{ 'a b' | quote }}", "{{ name | hash('sha1') }}", "{{ name | md5 }}",
    "{{ name | checksum }}", "{{ name is match('gpu') }}", "{{ name is search('rack') }}", "{{ name is regex('lan$') }}",
    "{{ [22] is subset(ports) }}", "{{ ports is contains(22) }}", "{{ 22 in ports }}", "{{ missing is defined }}",
    "{{ '%03d' | format(number) }}", "{{ name | truncate(8) }}", "{{ (ports | random) in ports }}",
    "{% if number > 3 %}big{% else %}small{% endif %}", "{% for p in ports %}{{ p }} {% endfor %}",
    "{{ lookup('vars', 'name') }}", "{{ query('vars', 'name', 'number') }}", "{{ lookup('env', 'NOT_SET_ANYWHERE') }}",
    "{{ q('env', 'NOT_SET_ANYWHERE') }}", "{{ name | ansible.builtin.b64encode }}", "{{ tags.keys() | list }}",
    "{{ {'a': 1} }}", "{{ [1, 'a', true] }}", "{{ none }}", "{{ 'true' }}", "{{ '5' }}", "{{ '[1]' }}", "{{ '}}' }}", "{{ {'a': {'b': [1]}} }}",
    "{{ name }}{{ number }}", "{{ name.split('\\.') }}", "{{- number -}}",
]  # fmt: skip
