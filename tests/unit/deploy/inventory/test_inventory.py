"""Inventories as Ansible reads them, and every mistake with its position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.inventory import groups
from procguard.deploy.inventory import model as inventory
from procguard.deploy.inventory import names as host_names
from procguard.errors import InventoryError
from remote_agent.protocol import messages

WORKER = "procguard_workers: [{id: 'w-{{ inventory_hostname }}', command: run}]"


def load(tmp_path: Path, text: str, **files: str) -> inventory.Inventory:
    path = tmp_path / "inventory.yaml"
    path.write_text(text)
    for name, content in files.items():
        file = tmp_path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return inventory.load(path)


def mistake(tmp_path: Path, text: str, **files: str) -> str:
    with pytest.raises(InventoryError) as caught:
        load(tmp_path, text, **files)
    return str(caught.value)


def variable(tmp_path: Path, text: str, **files: str) -> str:
    """The user of the first host, as an example of precedence."""
    return next(iter(load(tmp_path, text, **files).hosts.values())).target.user


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("gpu[01:03].lan", ["gpu01.lan", "gpu02.lan", "gpu03.lan"]),
        ("n[8:10]", ["n8", "n9", "n10"]),
        ("n[0:6:3]", ["n0", "n3", "n6"]),
        ("rack[a:c]", ["racka", "rackb", "rackc"]),
        ("r[1:2]n[1:2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("plain", ["plain"]),
    ],
)
def test_host_ranges_expand(pattern: str, names: list[str]) -> None:
    assert list(host_names.expand_range(pattern)) == names


@pytest.mark.parametrize("pattern", ["n[1:", "n[01:100]", "n[5:1]", "n[x:1]", "n[1]"])
def test_bad_ranges_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"range|digits|names"):
        list(host_names.expand_range(pattern))


def test_ranges_that_multiply_without_end_are_one_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing comma merges two ranges: 100 million hosts."""
    path = tmp_path / "i.ini"
    path.write_text("gpu[1:9999][1:9999]\n")
    with pytest.raises(InventoryError, match=r"i\.ini:1: .*these ranges name more than 10000 hosts"):
        inventory.load(path)
    monkeypatch.setattr(groups, "MOST_HOSTS", 50)
    path.write_text("a[1:40]\nb[1:10]\n")
    assert len(inventory.load(path, within_bounds=False).hosts) == 50
    path.write_text("a[1:40]\nb[1:10]\n[g]\nc1\n")
    with pytest.raises(InventoryError, match=r"i\.ini:4: the inventory names more than 50 hosts"):
        inventory.load(path, within_bounds=False)


def test_files_of_variables_are_looked_for_once_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 hosts that evaluate their groups' hosts 10,000 times: seconds."""
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / "all.yml").write_text("ansible_port: 23\n")
    path = tmp_path / "i.ini"
    path.write_text("n[1:200]\n")
    checked: list[str] = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda self: (checked.append(self.name), is_file(self))[1])
    assert {host.target.port for host in inventory.load(path, within_bounds=False).hosts.values()} == {23}
    assert checked.count("all.yml") == 1 and len(checked) < 20


def test_connection_variables_reach_the_target(tmp_path: Path) -> None:
    text = """
all:
  hosts:
    gpu01:
      ansible_host: 10.0.0.1
      ansible_port: 2222
      ansible_user: ml
      ansible_ssh_private_key_file: ~/.ssh/k
      ansible_python_interpreter: /opt/py/bin/python3
      ansible_ssh_common_args: -o ProxyJump=me@jump:22 -o StrictHostKeyChecking=no
    here: {ansible_connection: local, ansible_python_interpreter: auto_silent}
    "web:2200":
"""
    hosts = load(tmp_path, text).hosts
    target = hosts["gpu01"].target
    assert (target.address, target.port, target.user, target.proxy_jump) == ("10.0.0.1", 2222, "ml", "me@jump:22")
    assert target.key_filename == str(Path("~/.ssh/k").expanduser()) and target.python == "/opt/py/bin/python3"
    assert "host keys are always checked" in hosts["gpu01"].warnings[0]
    assert hosts["here"].target.local and hosts["here"].target.python == ""
    assert hosts["web"].target.port == 2200


def test_child_groups_win_over_parents_and_host_over_group(tmp_path: Path) -> None:
    text = """
all:
  vars: {ansible_user: from-all}
  children:
    outer:
      vars: {ansible_user: from-outer}
      children:
        inner:
          vars: {ansible_user: from-inner}
          hosts: {h1: }
"""
    assert variable(tmp_path, text) == "from-inner"
    assert variable(tmp_path, text.replace("{h1: }", "{h1: {ansible_user: from-host}}")) == "from-host"


def test_groups_of_one_depth_go_by_priority_then_name(tmp_path: Path) -> None:
    text = """
a: {hosts: {h1: }, vars: {ansible_user: a}}
b: {hosts: {h1: }, vars: {ansible_user: b}}
"""
    assert variable(tmp_path, text) == "b"
    assert variable(tmp_path, text.replace("user: a", "user: a, ansible_group_priority: 5")) == "a"


def test_files_win_over_the_inventory_of_their_kind(tmp_path: Path) -> None:
    text = "all: {children: {g: {hosts: {h1: }, vars: {ansible_user: inline}}}}"
    assert variable(tmp_path, text, **{"group_vars__all.yml": "ansible_user: file-all"}) == "file-all"
    assert variable(tmp_path, text, **{"group_vars__g__main.yml": "ansible_user: file-g"}) == "file-g"
    assert variable(tmp_path, text, **{"host_vars__h1.yaml": "ansible_user: file-host"}) == "file-host"


def test_templates_refer_to_each_other_and_keep_types(tmp_path: Path) -> None:
    text = """
all:
  hosts: {gpu07: {n: 7}}
  vars:
    base: "/data/{{ name }}"
    name: "run-{{ n + 1 }}"
    procguard_workers:
      - id: "t-{{ inventory_hostname }}"
        command: ["go", "{{ base }}"]
        stop_grace_s: "{{ n }}"
        env: {HOSTS: "{{ groups['all'] | join(',') }}", DEBUG: true}
"""
    worker = load(tmp_path, text).hosts["gpu07"].workers[0]
    assert worker.worker_id == "t-gpu07" and worker.spec["command"] == ["go", "/data/run-8"]
    assert worker.spec["stop_grace_s"] == 7 and worker.spec["env"] == {"HOSTS": "gpu07", "DEBUG": "true"}


@pytest.mark.parametrize("value", ["{{ missing_one }}", "{{ a }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}"])
def test_a_template_that_fails_names_host_and_cause(tmp_path: Path, value: str) -> None:
    text = f'all: {{hosts: {{h1: }}, vars: {{a: "{{{{ b }}}}", b: "{{{{ a }}}}", ansible_user: "{value}"}}}}'
    assert "host h1: ansible_user:" in mistake(tmp_path, text)


def test_workers_as_a_mapping_and_in_the_short_form(tmp_path: Path) -> None:
    text = """
all:
  hosts:
    h1:
      procguard_workers:
        api: {command: serve, restart: always, health: {type: tcp, port: 80}}
        "side-{{ inventory_hostname }}": python side.py
"""
    api, side = load(tmp_path, text).hosts["h1"].workers
    assert api.spec["restart"]["policy"] == "always" and api.spec["health"][0]["port"] == 80
    assert (side.worker_id, side.spec["command"]) == ("side-h1", "python side.py")


def test_duplicate_ids_name_both_hosts_and_the_way_out(tmp_path: Path) -> None:
    text = "all: {hosts: {h1: , h2: }, vars: {procguard_workers: [{id: train, command: x}]}}"
    reported = mistake(tmp_path, text)
    assert "worker train is declared on h1 and on h2" in reported and "train-{{ inventory_hostname }}" in reported


def test_unknown_keys_are_reported_with_line_and_near_key(tmp_path: Path) -> None:
    text = """all:
  hosts:
    h1:
      procguard_workers:
        - id: w
          comand: x
        - id: v
          command: y
          restart: {polcy: always}
"""
    reported = mistake(tmp_path, text)
    assert "inventory.yaml:6: unknown key comand; did you mean command?" in reported
    assert "inventory.yaml:9: unknown key restart.polcy; did you mean restart.policy?" in reported


@pytest.mark.parametrize(
    ("worker", "expected"),
    [
        ("{id: w}", "worker w has no command"),
        ("{id: 'a b', command: x}", "is not a worker id"),
        ("{command: x}", "is not a worker id"),
        ("{id: w, command: x, stop_grace_s: long}", "stop_grace_s"),
        ("{id: w, command: x, restart: sometimes}", "restart.policy"),
        ("{id: w, command: x, stop_signal: BANG}", "stop_signal"),
        ("{id: w, command: x, gpus: -1}", "gpus -1: expected how many"),
        ("{id: w, command: x, evidence_signal: KILL}", "evidence_signal 'KILL'"),
        ("{id: w, command: x, evidence_signal: LOUD}", "evidence_signal 'LOUD'"),
        ("{id: w, command: x, health: {type: heartbeat_file}}", "a heartbeat_file check needs path"),
        ("{id: w, command: x, health: {type: tcp}}", "a tcp check needs port"),
        ("{id: w, command: x, health: {type: log_silence, max_age_s: 0}}", "max_age_s 0"),
        ("just text", "must be a mapping"),
    ],
)
def test_wrong_workers_are_reported(tmp_path: Path, worker: str, expected: str) -> None:
    assert expected in mistake(tmp_path, f"all: {{hosts: {{h1: {{procguard_workers: [{worker}]}}}}}}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "contains no inventory"),
        ("all: {hosts: {}}", "names no host"),
        ("all:\n  hosts:\n   h1:\n  h2: [", ":4: not valid YAML"),
        ("all: {host: {h1: }}", "unknown key host in group all"),
        ("all: {hosts: [h1]}", "must be a mapping"),
        ("a: {children: {b: {children: {a: }}}}", "contain each other"),
        ("all: {hosts: {'../x': }}", "is not a valid host name"),
        ("all: {hosts: {h1: {ansible_port: many}}}", "is not a port"),
        ("all: {hosts: {h1: {procguard_service: upstart}}}", "procguard_service"),
        ("all: {hosts: {h1: {ansible_user: !vault abc}}}", "vault"),
    ],
)
def test_wrong_inventories_are_reported(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in mistake(tmp_path, text)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InventoryError, match="there is no file /no/such/file"):
        inventory.load("/no/such/file")


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        ("", "abc"),
        ("a,c", "ac"),
        ("g", "ab"),
        ("g,!a", "b"),
        ("!b", "ac"),
        ("g,&b", "b"),
        ("[ab]", "ab"),
        ("all", "abc"),
    ],
)
def test_limit_selects_as_ansible_does(tmp_path: Path, limit: str, names: str) -> None:
    one = load(tmp_path, "all: {hosts: {a: , b: , c: }, children: {g: {hosts: {a: , b: }}}}")
    assert "".join(host.name for host in one.select(limit)) == names


def test_a_limit_that_matches_nothing_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="no host or group matches x"):
        load(tmp_path, "all: {hosts: {a: }}").select("x")


@pytest.mark.parametrize("name", sorted(path.name for path in Path("inventory").glob("*.yaml")))
def test_shipped_inventories_load(name: str) -> None:
    hosts: dict[str, Any] = inventory.load(Path("inventory") / name).hosts
    assert (
        hosts and all(host.workers for host in hosts.values()) and not [w for h in hosts.values() for w in h.warnings]
    )


@pytest.mark.parametrize(("written", "meant"), [("true", True), ("2", 2), ("no", False), ('"3"', 3), ("0", 0)])
def test_a_spare_is_declared_by_true_or_by_a_number(tmp_path: Path, written: str, meant: bool | int) -> None:
    text = (
        f"all:\n  hosts:\n    s1:\n      procguard_spare: {written}\n      procguard_labels: {{gpu: a100, ecc: true}}\n"
    )
    (tmp_path / "inv.yaml").write_text(text)
    host = inventory.load(tmp_path / "inv.yaml").hosts["s1"]
    assert (host.spare, type(host.spare)) == (meant, type(meant))
    assert host.labels == {"gpu": "a100", "ecc": "true"}
    assert host.warnings == ()


@pytest.mark.parametrize("written", ["procguard_spare: maybe", "procguard_spare: -1", "procguard_labels: a100"])
def test_a_wrong_spare_or_label_is_reported_with_its_host(tmp_path: Path, written: str) -> None:
    (tmp_path / "inv.yaml").write_text(f"all:\n  hosts:\n    s1:\n      {written}\n")
    with pytest.raises(InventoryError, match="host s1: procguard_"):
        inventory.load(tmp_path / "inv.yaml")


def test_replicas_are_workers_of_their_own_with_an_index(tmp_path: Path) -> None:
    text = """
all:
  hosts:
    h1:
      n: 2
      procguard_workers:
        - {id: crawl, replicas: 3, command: "crawl --part {{ index }}/3", env: {PORT: "{{ 8000 + index }}"}}
        - {id: "{{ index }}-of-{{ n }}", replicas: "{{ n }}", command: run}
        - {id: none, replicas: 0, command: run}
        - {id: alone, command: run}
"""
    workers = {worker.worker_id: worker.spec for worker in load(tmp_path, text).hosts["h1"].workers}
    assert list(workers) == ["crawl-0", "crawl-1", "crawl-2", "0-of-2", "1-of-2", "alone"]
    assert workers["crawl-2"]["command"] == "crawl --part 2/3" and workers["crawl-2"]["env"] == {"PORT": "8002"}


def test_replicas_must_be_a_number_and_mistakes_in_them_are_reported_once(tmp_path: Path) -> None:
    line = "all: {hosts: {h1: {procguard_workers: [{id: w, replicas: %s, command: run%s}]}}}"
    assert "replicas: 'many'" in mistake(tmp_path, line % ("many", ""))
    assert "replicas: 99999" in mistake(tmp_path, line % ("99999", ""))
    assert mistake(tmp_path, line % ("5", ", comand: x")).count("unknown key comand") == 1


def test_become_makes_the_agent_another_users(tmp_path: Path) -> None:
    text = """
all:
  vars: {ansible_become: "yes"}
  hosts:
    h1:
    h2: {ansible_become_user: builder, ansible_become_method: ansible.builtin.sudo}
    h3: {ansible_become: false, ansible_become_user: builder}
"""
    hosts = load(tmp_path, text).hosts
    assert [host.target.become_user for host in hosts.values()] == ["root", "builder", ""]


def test_secrets_stay_out_of_what_the_manager_receives_and_of_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_PASSWORD", "hunter2")
    text = """
all:
  hosts:
    h1:
      ansible_ssh_pass: "{{ lookup('env', 'THE_PASSWORD') }}"
      ansible_become_pass: hunter2
      ansible_private_key_passphrase: hunter2
"""
    host = load(tmp_path, text).hosts["h1"]
    assert (host.secrets.password, host.secrets.become_password, host.secrets.passphrase) == ("hunter2",) * 3
    assert "hunter2" not in repr(host) and "hunter2" not in repr(host.target)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ("ansible_connection: community.docker.docker", "community.docker.docker is not supported"),
        ("{ansible_become: true, ansible_become_method: su}", "ansible_become_method: su is not supported; use sudo"),
        ("{ansible_become: true, ansible_become_user: \"x; rm -rf /\"}", "names no user"),
        ("ansible_become: perhaps", "ansible_become: 'perhaps' is neither true nor false"),
        ("procguard_tunnel: sometimes", "procguard_tunnel: 'sometimes' is neither true nor false"),
    ],
)  # fmt: skip
def test_ways_that_lead_nowhere_are_mistakes(tmp_path: Path, variables: str, said: str) -> None:
    assert said in mistake(
        tmp_path, f"all: {{hosts: {{h1: {variables if '{' in variables else '{' + variables + '}'}}}}}"
    )


def test_an_ssh_option_that_is_not_followed_is_reported(tmp_path: Path) -> None:
    text = "all: {hosts: {h1: {ansible_ssh_extra_args: -o BindAddress=10.0.0.9 -o ControlMaster=auto}}}"
    [warning] = load(tmp_path, text).hosts["h1"].warnings
    assert "bindaddress=10.0.0.9 of ansible_ssh_extra_args is not followed" in warning


def test_a_key_of_ones_own_overrides_what_a_merge_key_brings_and_the_last_of_two_counts(tmp_path: Path) -> None:
    text = """
all:
  vars: &base {ansible_user: base}
  hosts:
    h1: {<<: *base, ansible_user: own}
"""
    assert variable(tmp_path, text) == "own"
    text = text.replace("ansible_user: own", "ansible_user: own, ansible_user: again")
    host = load(tmp_path, text).hosts["h1"]
    assert host.target.user == "again"
    assert any("inventory.yaml:5: ansible_user occurs twice (first in line 5)" in one for one in host.warnings)


@pytest.mark.parametrize(
    ("name", "address", "port"),
    [
        ("fe80::1", "fe80::1", 0),
        ("[fe80::1]:22", "fe80::1", 22),
        ("bücher.example", "xn--bcher-kva.example", 0),
        ("x" * 60 + ".a.long.name.example", "x" * 60 + ".a.long.name.example", 0),
        ("_leading", "_leading", 0),
    ],
)
def test_a_host_whose_name_is_no_id_gets_one_and_is_reached_by_its_name(
    tmp_path: Path, name: str, address: str, port: int
) -> None:
    found = load(tmp_path, f'g:\n  hosts:\n    "{name}": {{ansible_user: "{{{{ inventory_hostname }}}}"}}\n')
    [(own, host)] = found.hosts.items()
    assert messages.valid_id(own) and own == host.name == host.target.host
    assert (host.target.address, host.target.port) == (address, port)
    assert host.target.user == host.inventory_name == host_names.split_port(name)[0]
    assert found.groups["g"] == [own]
    assert found.select(host.inventory_name) == found.select(own) == found.select("g") == [host]
    assert host_names.fleet_id(own) == own  # what commands name either way is the same


@pytest.mark.parametrize(
    ("text", "files", "place"),
    [
        ("all:\n  hosts:\n    h1:\n      x: 1\n      ansible_port: many\n", {}, "inventory.yaml:5: host h1"),
        ("all:\n  vars:\n    ansible_port: many\n  hosts: {h1: }\n", {}, "inventory.yaml:3: host h1"),
        ("g: {hosts: {h1: }}\n", {"group_vars__g.yml": "x: 1\nansible_port: many\n"}, "g.yml:2: host h1"),
        ("g: {hosts: {h1: {ansible_port: 22}}}\n", {"host_vars__h1.yml": "ansible_port: many\n"}, "h1.yml:1: host h1"),
    ],
)
def test_a_variable_that_is_wrong_is_reported_with_the_line_that_set_it(
    tmp_path: Path, text: str, files: dict[str, str], place: str
) -> None:
    assert f"{place}: ansible_port: 'many' is not a port" in mistake(tmp_path, text, **files)


def test_a_wrong_variable_of_an_ini_inventory_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# hosts\n[g]\nh1 procguard_service=upstart\n[g:vars]\nansible_become=perhaps\n")
    with pytest.raises(InventoryError) as caught:
        inventory.load(path)
    assert "hosts:3: host h1: procguard_service: 'upstart' is not known" in str(caught.value)
    assert "hosts:5: host h1: ansible_become: 'perhaps' is neither" in str(caught.value)


def test_each_worker_knows_the_line_that_declares_it(tmp_path: Path) -> None:
    """The portal shows its absolute path: readers have other working directories."""
    text = """all:
  vars:
    procguard_workers:
      - id: a-{{ inventory_hostname }}
        command: run
      - {id: "b-{{ index }}", command: run, replicas: 2}
  hosts:
    h1:
    h2: {procguard_workers: {c: run}}
    h3:
"""
    found = load(tmp_path, text, host_vars__h3='\nprocguard_workers: \'{{ [{"id": "d", "command": "run"}] }}\'\n')
    sources = {one.worker_id: one.source for host in found.hosts.values() for one in host.workers}
    own, more = tmp_path / "inventory.yaml", tmp_path / "host_vars" / "h3"
    assert sources == {
        "a-h1": f"{own}:4", "b-0": f"{own}:6", "b-1": f"{own}:6", "c": f"{own}:9", "d": f"{more}:2",
    }  # fmt: skip
