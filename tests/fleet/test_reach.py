"""Every log-in method, against real hosts: passwords, keys with a passphrase, jumps, sudo, dropbear; no secret is
visible."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import jobs
from tests.fleet.conftest import require_fleet, require_programs
from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.manager import Manager, Operator
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

PASSWORD, SUDO_PASSWORD, PASSPHRASE = "pass 'w\"ord", "s3kr1t $udo", "correct horse battery"
WORKERS_TOKEN = "tok-3f9a81c2d7"
PASSWORD_PORT, DROPBEAR_PORT = 2222, 2200

Run = subprocess.CompletedProcess[str]


@dataclass
class World:
    fleet: Fleet
    manager: Manager
    operator: Operator
    folder: Path

    def invoke(self, task: str, inventory: Path, *words: str, **environment: str) -> Run:
        someone = Operator(self.operator.home, self.operator.environment | environment, self.operator.manager_url)
        run = someone.invoke(task, "--hosts", str(inventory), *words, timeout_s=90)
        assert "Traceback" not in run.stderr, run.stderr
        return run

    def secret_file(self, name: str, secret: str) -> str:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(secret + "\n")
        return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """node1 is the jump host; node2 also accepts passwords, on another port, and has dropbear on a third."""
    require_fleet()
    require_programs("sudo", "dropbear", "dropbearkey", "openssl")
    with Fleet(3) as fleet:
        jobs.plant(fleet)
        known = [fleet.known_hosts.read_text(), *with_passwords(fleet[1]), *with_dropbear(fleet[1])]
        home, directory = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("manager")
        operator = Operator.with_keys(home, fleet.private_key, None)
        (home / ".ssh/known_hosts").write_text("\n".join(known))
        with Manager(directory, operator.environment, settings=["monitoring.heartbeat_timeout=3"]) as manager:
            operator.manager_url = manager.url
            yield World(fleet, manager, operator, tmp_path_factory.mktemp("inventory"))


def with_passwords(host: FleetHost) -> list[str]:
    """alice logs in with a password on another port, and sudo asks her for it. Returns its line of known_hosts."""
    for user, password in (("alice", PASSWORD), ("bob", SUDO_PASSWORD)):
        crypted = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=password, capture_output=True, text=True, check=True
        ).stdout.strip()
        if user == "bob":
            host.run("useradd -m -s /bin/bash -u 47002 bob && mkdir -p -m 700 /home/bob/.ssh")
            host.run("cp /home/alice/.ssh/authorized_keys /home/bob/.ssh/ && chown -R bob: /home/bob/.ssh")
        host.run(f"usermod -p {shlex.quote(crypted)} {user}")
    host.path("/etc/sudoers.d/bob").write_text("bob ALL=(ALL) ALL\n")
    host.path("/etc/ssh/password_config").write_text(
        "HostKey /etc/ssh/ssh_host_ed25519_key\nUsePAM no\nPasswordAuthentication yes\nPubkeyAuthentication no\n"
        f"PidFile none\nPort {PASSWORD_PORT}\nAuthenticationMethods password\n"
    )
    host.run("/usr/sbin/sshd -f /etc/ssh/password_config >/dev/null 2>&1")
    key = host.path("/etc/ssh/ssh_host_ed25519_key.pub")
    public = key.read_text() if key.exists() else host.run("ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key").stdout
    return [f"[{host.address}]:{PASSWORD_PORT} {public.strip()}"]


def with_dropbear(host: FleetHost) -> list[str]:
    made = host.run("dropbearkey -t ed25519 -f /etc/dropbear_key 2>&1").stdout
    host.run(f"dropbear -R -r /etc/dropbear_key -p {DROPBEAR_PORT} -P /run/dropbear.pid -E >/run/dropbear.log 2>&1")
    found = re.search(r"^ssh-ed25519 \S+", made, re.MULTILINE)
    assert found is not None, made
    return [f"[{host.address}]:{DROPBEAR_PORT} {found[0]}", ""]


# ---------------------------------------------------------------------------------------------------- no visible secret


class Watcher(threading.Thread):
    """Reads the command line and environment of every process of the machine, on all hosts, again and again."""

    def __init__(self, secrets: dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self.secrets = secrets
        self.in_argv: set[str] = set()
        self.in_environ: set[tuple[str, str]] = set()  # (which secret, command line)
        self.rounds = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            self.rounds += 1
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    self._check(entry)
            self.ended.wait(0.02)  # a core is left to the others

    def _check(self, entry: Path) -> None:
        try:
            argv = (entry / "cmdline").read_bytes()
            environ = (entry / "environ").read_bytes()
        except OSError:
            return
        for name, secret in self.secrets.items():
            if secret in argv:
                self.in_argv.add(f"{name}: {argv!r}")
            if secret in environ:
                self.in_environ.add((name, argv.replace(b"\0", b" ").decode(errors="replace").strip()))


# -------------------------------------------------------------------------------------------------- all ways at once


ODD_VALUE = 'it\'s "quoted" $HOME `x` \\ 你好'


@dataclass(frozen=True)
class Way:
    """One host of the inventory: address, users, method, and the user of its worker."""

    host: int
    user: str
    variables: dict[str, Any]
    runs_as: int = 0
    recovery: str = "yes"  # what the deploy says of the manager's own SSH
    home: str = "~"  # of the agent


def ways(world: World) -> dict[str, Way]:
    locked = world.folder / "locked_key"
    if not locked.exists():
        locked.write_bytes(world.fleet.private_key.read_bytes())
        locked.chmod(0o600)
        words = ["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", str(locked)]
        subprocess.run(words, check=True, capture_output=True)
    jumps = f"-J root@{world.fleet[0].address},alice@{world.fleet[1].address}"
    only = "-o IdentitiesOnly=yes"
    return {
        "password": Way(
            1,
            "alice",
            {"ansible_port": PASSWORD_PORT, "ansible_password": "{{ lookup('env', 'ALICES') }}"},
            47001,
            r"no \(.*login as alice was refused",
        ),
        "locked-key": Way(
            0,
            "alice",
            {
                "ansible_ssh_private_key_file": str(locked),
                "ansible_ssh_common_args": only,
                "ansible_private_key_passphrase": "{{ lookup('env', 'PHRASE') }}",
            },
            47001,
            r"no \(.*needs a passphrase",
        ),
        # node3 has no route to the manager: SSH goes by two jumps, and its agent comes back the same way.
        "jumps": Way(2, "root", {"ansible_ssh_common_args": jumps, "procguard_tunnel": True}),
        "sudo": Way(
            1,
            "bob",
            {"ansible_become": True, "ansible_become_password": "{{ lookup('env', 'BOBS') }}"},
            0,
            r"no \(.*sudo to root asks for a password",
        ),
        "sudo-free": Way(0, "root", {"ansible_become": "yes", "ansible_become_user": "alice"}, 47001),
        "dropbear-root": Way(1, "root", {"ansible_port": DROPBEAR_PORT, "procguard_home": "/srv/pro c'guard"}),
        "dropbear-alice": Way(
            1, "alice", {"ansible_port": DROPBEAR_PORT, "procguard_home": "/home/alice/pro c'guard"}, 47001
        ),
    }


def working_dir(name: str) -> str:
    return f"""/var/tmp/{name} "ing' $dir"""


def inventory_of(world: World, chosen: dict[str, Way], name: str = "ways") -> Path:
    hosts = {}
    for key, way in chosen.items():
        host = world.fleet[way.host]
        env = {"GREETING": ODD_VALUE, "API_TOKEN": WORKERS_TOKEN}
        worker = jobs.counting(f"by-{key}", working_dir=working_dir(key), env=env)
        hosts[f"at-{key}"] = jobs.host_variables(host, [worker], user=way.user) | {
            "procguard_service": "none",
            **way.variables,
        }
    return jobs.write_inventory(world.folder / f"{name}.yaml", hosts)


def test_every_way_in_at_once_and_no_process_list_shows_a_secret(world: World) -> None:
    """One deploy over seven hosts, each reached in its own way, a redeploy that changes nothing, and an undeploy.

    Meanwhile every process of the machine, on all hosts, is looked at again and again: passwords, the agents' secrets,
    the fleet's proof key and the workers' own secrets stand in no command line, and in no environment but the deploying
    person's own and (the worker's token) its child's.
    """
    chosen = ways(world)
    for key, way in chosen.items():
        host, directory = world.fleet[way.host], shlex.quote(working_dir(key))
        host.run(f"mkdir -p -m 755 {directory}")
    world.fleet[2].run(f"ip route replace blackhole {world.fleet.manager_address}/32")
    inventory, given = inventory_of(world, chosen), {"ALICES": PASSWORD, "BOBS": SUDO_PASSWORD, "PHRASE": PASSPHRASE}
    watcher = Watcher({name: secret.encode() for name, secret in {**given, "token": WORKERS_TOKEN}.items()})
    watcher.start()
    run = world.invoke("deploy", inventory, **given)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    children = {}
    for key, way in chosen.items():
        [line] = [one for one in run.stdout.splitlines() if re.match(rf"at-{key} ", one)]
        assert re.search(f"recovery over SSH: {way.recovery}", line), line
        world.manager.wait_worker(f"by-{key}", "running")
        child = children[key] = jobs.only_child(world.fleet[way.host], f"by-{key}")
        assert child.user_id == way.runs_as
        assert f"GREETING={ODD_VALUE}" in Path(f"/proc/{child.outer_pid}/environ").read_text().split("\0")
        assert str(Path(f"/proc/{child.outer_pid}/cwd").readlink()).endswith(working_dir(key))
    assert world.manager.host("at-jumps")["tunnel"]["state"] == "up"
    record = json.loads(next(world.fleet[1].path("/root/.procguard").glob("*/at-sudo/agent.json")).read_text())
    watcher.secrets = {**watcher.secrets, **{name: record[name].encode() for name in ("secret", "proof_key")}}
    stored = [path.read_bytes() for path in world.manager.directory.rglob("*") if path.is_file()]
    assert not any(secret.encode() in data for secret in given.values() for data in stored)

    again = world.invoke("deploy", inventory, **given)
    assert again.returncode == 0 and "changed=0" in again.stdout, again.stdout + again.stderr
    assert {key: jobs.only_child(world.fleet[way.host], f"by-{key}") for key, way in chosen.items()} == children

    gone = world.invoke("undeploy", inventory, **given)
    assert gone.returncode == 0, gone.stdout + gone.stderr
    for host in world.fleet.hosts:
        wait_until(lambda host=host: not host.processes("count.py") and not jobs.agents(host), 10, "nothing runs")  # type: ignore[misc]
    assert not world.fleet[1].path("/srv/pro c'guard").exists()
    assert not world.fleet[1].path("/home/bob/.procguard").exists()
    watcher.ended.set()
    watcher.join(10)
    assert watcher.rounds > 20 and {"secret", "proof_key"} <= set(watcher.secrets)
    assert watcher.in_argv == set()
    seen = {name: [argv for other, argv in watcher.in_environ if other == name] for name, _ in watcher.in_environ}
    assert set(seen) <= {*given, "token"}, seen
    assert all("invoke" in argv for name in given for argv in seen.get(name, [])), seen
    assert all("count.py" in argv or "runner" in argv for argv in seen.get("token", [])), seen


def test_every_refusal_is_one_line_that_says_what_to_do(world: World) -> None:
    """A wrong password, none, a locked key, no or a wrong password for sudo: each host has its own error."""
    all_ways = ways(world)
    chosen = {
        "none-given": replace(all_ways["password"], variables={"ansible_port": PASSWORD_PORT}),
        "wrong-given": replace(
            all_ways["password"], variables={"ansible_port": PASSWORD_PORT, "ansible_password": "hunter2"}
        ),
        "locked-key": replace(
            all_ways["locked-key"],
            variables={
                **all_ways["locked-key"].variables,
                "ansible_private_key_passphrase": "hunter2",
            },
        ),
        "sudo-asks": replace(all_ways["sudo"], variables={"ansible_become": True}),
        "sudo-refuses": replace(
            all_ways["sudo"], variables={"ansible_become": True, "ansible_become_password": "hunter2"}
        ),
    }
    run = world.invoke("deploy", inventory_of(world, chosen, "refused"))
    assert run.returncode == 2
    said = {
        "none-given": "login as alice was refused .*it also takes a password: --ask-pass, or PROCGUARD_SSH_PASSWORD",
        "wrong-given": "login as alice was refused",
        "locked-key": "the key .*locked_key needs a passphrase; load it into ssh-agent: ssh-add",
        "sudo-asks": "sudo to root asks for a password; .*--ask-become-pass",
        "sudo-refuses": "sudo to root refused the password",
    }
    for key, words in said.items():
        assert re.search(rf"at-{key}  {words}", run.stdout), run.stdout
    assert "hunter2" not in run.stdout + run.stderr


def test_a_manager_that_was_given_the_password_recovers_by_it(world: World, tmp_path: Path) -> None:
    """Its agent is killed; nothing on the host brings it back; the manager does, over SSH with a password."""
    given = {"PROCGUARD_SSH_PASSWORD_FILE": world.secret_file("password", PASSWORD)}
    way = replace(ways(world)["password"], variables={"ansible_port": PASSWORD_PORT})
    world.fleet[1].run(f"mkdir -p -m 755 {shlex.quote(working_dir('recovered'))}")
    inventory = inventory_of(world, {"recovered": way}, "recovered")
    settings = ["monitoring.heartbeat_timeout=3"]
    with Manager(tmp_path, world.operator.environment | given, settings=settings) as manager:
        operator = Operator(world.operator.home, world.operator.environment | given, manager.url)
        run = operator.invoke("deploy", "--hosts", str(inventory))
        assert run.returncode == 0 and "recovery over SSH: yes" in run.stdout, run.stdout + run.stderr
        [agent] = jobs.agents(world.fleet[1])
        world.fleet[1].kill(agent)
        wait_until(lambda: [one for one in jobs.agents(world.fleet[1]) if one != agent], 20, "its successor")
        assert operator.invoke("undeploy", "--hosts", str(inventory)).returncode == 0
