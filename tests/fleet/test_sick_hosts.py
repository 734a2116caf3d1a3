"""A fleet with a few faulty hosts: each is named with its cause, and no other host is delayed or affected."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import jobs
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.manager import Manager, Operator

pytestmark = pytest.mark.fleet

CONNECT_TIMEOUT_S = 10.0  # procguard/deploy/ssh/connection.py
SMALL = "/small"  # a full disk


@dataclass
class Sick:
    """The first seven of a fleet. `codes`: host -> its possible error codes."""

    fleet: Fleet
    operator: Operator
    codes: dict[str, set[str]] = field(default_factory=dict)

    def make(self) -> dict[str, set[str]]:
        dead, (locked_out, changed, full, bare) = self.fleet.hosts[:3], self.fleet.hosts[3:7]
        for host in dead:
            host.power_cut()
            self.codes[host.name] = {"timeout", "network"}
        locked_out.path("/root/.ssh/authorized_keys").unlink()
        self.codes[locked_out.name] = {"auth"}
        self._change_key(changed, self.fleet.hosts[7])
        self.codes[changed.name] = {"host_key_changed"}
        full.run(f"mkdir {SMALL} && mount -t tmpfs -o size=64k tmpfs {SMALL}")
        self.codes[full.name] = {"no_space"}
        bare.run("rm /usr/bin/python3*")
        self.codes[bare.name] = {"no_python"}
        return self.codes

    def _change_key(self, host: FleetHost, other: FleetHost) -> None:
        """For the operator: the known key of this host is another's."""
        known = self.operator.home / ".ssh" / "known_hosts"
        lines = [line.split(" ", 1) for line in known.read_text().splitlines()]
        keys = dict(lines)
        mine, its = (next(names for names in keys if one.address in names.split(",")) for one in (host, other))
        known.write_text("".join(f"{names} {keys[its] if names == mine else key}\n" for names, key in lines))

    def variables(self, host: FleetHost) -> dict[str, Any]:
        own = {"procguard_home": SMALL} if self.codes.get(host.name) == {"no_space"} else {}
        return jobs.host_variables(host, [jobs.counting(f"count-{host.name}")]) | own


def deploy(operator: Operator, inventory: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    run = operator.invoke("deploy", "--hosts", str(inventory), *options, timeout_s=280)
    return run, time.monotonic() - began


def fleet_with_seven_sick(tmp_path: Path, count: int, measure: bool) -> str:
    """Deploy to `count` hosts. `measure`: before, to the healthy ones alone, to compare. Returns what was measured."""
    with Fleet(count) as fleet:
        jobs.plant(fleet)
        operator = Operator.with_keys(tmp_path / "home", fleet.private_key, fleet.known_hosts)
        (tmp_path / "manager").mkdir()
        with Manager(tmp_path / "manager", operator.environment) as manager:
            operator.manager_url = manager.url
            sick = Sick(fleet, operator)
            codes = sick.make()
            healthy = [host for host in fleet.hosts if host.name not in codes]
            inventory = tmp_path / "prod.yaml"
            alone_s = 0.0
            if measure:
                jobs.write_inventory(inventory, {host.name: sick.variables(host) for host in healthy})
                run, alone_s = deploy(operator, inventory)
                assert run.returncode == 0, run.stdout + run.stderr
                assert operator.invoke("undeploy", "--hosts", str(inventory), timeout_s=200).returncode == 0
            jobs.write_inventory(inventory, {host.name: sick.variables(host) for host in fleet.hosts})
            run, took_s = deploy(operator, inventory)
            assert run.returncode == 2, run.stdout + run.stderr
            for host in healthy:
                manager.wait_worker(f"count-{host.name}", "running")
                assert len(jobs.agents(host)) == 1
            assert f"ok=0  changed={len(healthy)}" in run.stdout and "7 of" in run.stderr, run.stdout + run.stderr
            assert re.search(r"^3 × (network|timeout): node1, node2, node3$", run.stdout, re.MULTILINE), run.stdout
            for name, (cause,) in list(codes.items())[3:]:
                said = re.search(rf"^1 × {cause.replace('_', ' ')}: {name}\n    \S.*$", run.stdout, re.MULTILINE)
                assert said is not None, (name, cause, run.stdout)  # with what to do about it in the next line
            if not measure:
                return f"{count} hosts, 7 sick: {took_s:.1f} s"
            assert took_s <= 2 * alone_s + CONNECT_TIMEOUT_S, (took_s, alone_s)

            # again: the well are left alone
            run, again_s = deploy(operator, inventory)
            assert run.returncode == 2 and f"ok={len(healthy)}  changed=0" in run.stdout, run.stdout
    alone = f"the {len(healthy)} healthy alone {alone_s:.1f} s"
    return f"{count} hosts, 7 sick: {took_s:.1f} s ({alone}), again {again_s:.1f} s"


def test_seven_sick_hosts_are_named_and_the_others_deployed(tmp_path: Path) -> None:
    require_fleet()
    print(fleet_with_seven_sick(tmp_path, 10, measure=False))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_seven_sick_hosts_of_sixty_four_cost_the_others_little(tmp_path: Path) -> None:
    require_fleet()
    print(fleet_with_seven_sick(tmp_path, 64, measure=True))
