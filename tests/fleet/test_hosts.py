"""The fleet itself: the foundation of the other tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import leftovers
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import REPOSITORY, Fleet, FleetHost
from tests.fleet.processes import state_of
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet


@pytest.fixture(scope="module")
def three() -> Iterator[Fleet]:
    require_fleet()
    with Fleet(3) as fleet:
        yield fleet


def mounts_outside() -> str:
    return Path("/proc/self/mounts").read_text()


def links() -> list[tuple[str, int]]:
    """(name, number) of this machine's network interfaces; a number is never given twice."""
    return [(name, number) for number, name in socket.if_nameindex()]


def can_connect(host: FleetHost, timeout_s: float = 0.5) -> bool:
    try:
        with socket.create_connection((host.address, 22), timeout=timeout_s) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def test_a_host_has_its_own_name_address_files_and_process_ids(three: Fleet) -> None:
    """Nothing of the machine outside is visible: neither its processes, nor its homes, nor this checkout."""
    host = three[0]
    seen = host.ssh(f"hostname; pwd; ls ~ /tmp /home/alice {REPOSITORY}; ps ax | wc -l; ip -o -4 addr; ip route")
    assert seen.returncode == 0, seen.stderr
    assert seen.stdout.startswith("node1\n/root\n")
    assert f"{host.address}/24" in seen.stdout
    assert "default" not in seen.stdout  # no way out
    assert "pyproject.toml" not in seen.stdout
    assert 1 in [process.pid for process in host.processes()]
    assert len(host.processes()) < 10


def test_both_users_log_in_with_the_operators_key(three: Fleet) -> None:
    assert three[0].ssh("id -un; pwd", user="root").stdout == "root\n/root\n"
    assert three[0].ssh("id -un; pwd", user="alice").stdout == "alice\n/home/alice\n"
    assert three[0].run("id -un; echo $HOME", user="alice").stdout == "alice\n/home/alice\n"


def test_an_unknown_host_key_is_refused(three: Fleet, tmp_path: Path) -> None:
    """ssh trusts a host only by the known_hosts file."""
    command = [word.replace(str(three.known_hosts), str(tmp_path / "empty")) for word in three[0].ssh_command()]
    refused = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr


def test_power_cut_ends_every_process_without_a_word_and_disk_survives(three: Fleet) -> None:
    """No connection is closed towards anybody; /tmp and the boot id are new after power-on, files on disk are not."""
    host = three[1]
    host.run("echo kept > /var/kept; echo lost > /tmp/lost; sync")
    boot_id = host.run("cat /proc/sys/kernel/random/boot_id").stdout
    processes = host.processes()
    with socket.create_connection((host.address, 22), timeout=5) as connection:
        assert connection.recv(4) == b"SSH-"
        host.power_cut()
        assert not any(process.is_alive() for process in processes)
        assert not host.is_on
        connection.settimeout(0.3)
        connection.recv(1000)  # the rest of the banner
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert not can_connect(host)
    host.power_on()
    assert host.ssh("cat /var/kept; ls /tmp").stdout == "kept\n"
    assert host.run("cat /proc/sys/kernel/random/boot_id").stdout not in ("", boot_id)


def test_cable_out_silences_the_network_and_no_process(three: Fleet) -> None:
    host = three[0]
    before = host.processes()
    host.cable_out()
    assert not can_connect(host)
    assert host.run("echo alive").stdout == "alive\n"
    host.cable_in()
    wait_until(lambda: can_connect(host), 5, "the way back")
    assert all(process.is_alive() for process in before)


def test_freeze_stops_every_process_and_thaw_wakes_only_those(three: Fleet) -> None:
    """Processes that a test had stopped stay stopped."""
    host = three[0]
    host.run("sleep 1000.5 >/dev/null 2>&1 & sleep 1000.6 >/dev/null 2>&1 &")
    stopped = wait_until(lambda: host.processes("sleep 1000.5"), 5, "first sleeper")[0]
    other = wait_until(lambda: host.processes("sleep 1000.6"), 5, "second sleeper")[0]
    host.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: state_of(stopped.outer_pid) == "T", 5, "stopped by the test")
    host.freeze()
    assert {state_of(process.outer_pid) for process in host.processes()} == {"T"}
    host.thaw()
    wait_until(lambda: state_of(other.outer_pid) == "S", 5, "awake")
    assert state_of(stopped.outer_pid) == "T"
    assert can_connect(host)
    for process in (stopped, other):
        host.kill(process)


def test_a_shared_home_is_one_directory_on_two_hosts_also_after_power_on(three: Fleet) -> None:
    three.share_home([three[1], three[2]], user="alice")
    three[1].ssh("echo from-two > note", user="alice")
    assert three[2].ssh("cat note", user="alice").stdout == "from-two\n"
    assert three[0].ssh("ls", user="alice").stdout == ""
    three[2].power_cut()
    three[2].power_on()
    assert three[2].ssh("cat note; id -un", user="alice").stdout == "from-two\nalice\n"


def test_sixteen_hosts_come_up_and_go_without_a_trace() -> None:
    require_fleet()
    started = time.monotonic()
    with Fleet(16) as fleet:
        print(f"\n16 hosts up in {time.monotonic() - started:.2f} s")
        directory = fleet.directory
        own_links = {number for name, number in links() if name.startswith((f"pg{fleet.subnet}-", fleet.bridge))}
        assert len(own_links) == 17
        processes = [process for host in fleet.hosts for process in host.processes()]
        assert len({process.outer_pid for process in processes}) >= 48
    assert not any(process.is_alive() for process in processes)
    assert not directory.exists()
    # another fleet may come or go meanwhile: only what was this one's is looked for
    assert str(directory) not in mounts_outside()
    assert [name for name, number in links() if number in own_links] == []


DYING_TESTS = """
import os, signal, sys, json
from tests.fleet.hosts import Fleet
fleet = Fleet(1)
print(json.dumps([str(fleet.directory), fleet.subnet, fleet._keeper.pid, fleet[0].init_pid]), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("keeper_too", [False, True], ids=["keeper cleans", "the next fleet cleans"])
def test_a_fleet_whose_tests_were_killed_disappears(keeper_too: bool, three: Fleet) -> None:
    """Two fleets at once do not collide, and the stale one is removed completely while the live one is not affected."""
    with subprocess.Popen(
        [sys.executable, "-c", DYING_TESTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as tests:
        assert tests.stdout is not None
        directory, subnet, keeper_pid, init_pid = json.loads(tests.stdout.readline())
        assert subnet != three.subnet
        init_start, keeper_start = leftovers.start_time(init_pid), leftovers.start_time(keeper_pid)
        if keeper_too:
            leftovers.end_process(keeper_pid, keeper_start)
        tests.kill()
        tests.wait()
    if keeper_too:
        assert leftovers.is_alive(init_pid, init_start)
        assert os.path.basename(directory) in leftovers.clean_stale()
    wait_until(lambda: not os.path.exists(directory), 10, "the directory gone")
    assert not leftovers.is_alive(init_pid, init_start)
    assert not os.path.exists(f"/sys/class/net/{os.path.basename(directory)}")
    assert can_connect(three[0])
