"""A fleet of real hosts on one machine: each has its own address, files, process ids, users and sshd, and can fail.

Owns how a host is built, cut off and brought back. Needs root. Knows nothing of ProcGuard.

    root namespace                           one host (boot.sh)
    bridge pg-<pid>-<X> 10.77.X.1/24 ── cable pgX-N ══ eth0 10.77.X.(10+N)   sshd on 22, users root and alice
                                             /  = overlay(lower: this machine's /, upper: <directory>/hosts/N/upper)

Everything lives in namespaces that end with the host's first process, and in one directory on a tmpfs; no mount and no
named namespace is ever made outside. Hosts have no route out of 10.77.X.0/24. If the tests die, `leftovers.py` (started
as a keeper with a pipe to us) removes the fleet; what even that missed goes when the next fleet starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tests.fleet import leftovers
from tests.fleet.disk import USER_ID, furnish, give_to, write_key
from tests.fleet.processes import HostProcess, listens, read_process, state_of
from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TOOLS = ("unshare", "nsenter", "mount", "ip", "chroot", "ssh")
UNSHARE = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child")
SSHD = "/usr/sbin/sshd"
FIRST_ADDRESS = 10
CLEAN_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class FleetUnavailable(Exception):
    """This machine can't carry a fleet; the text says why."""


def why_unavailable() -> str:
    """The reason no fleet can be built here, "" when one can."""
    if os.geteuid() != 0:
        return "fleet hosts need root (network and mount namespaces)"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not os.access(SSHD, os.X_OK):
        missing.append(SSHD)
    if missing:
        return f"fleet hosts need {', '.join(missing)}"
    attempt = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces here: {attempt.stderr.strip()}" if attempt.returncode else ""


class FleetHost:
    """One machine. Made by Fleet; `power_on` and `power_cut` may follow each other as often as a test likes."""

    def __init__(self, fleet: Fleet, number: int, name: str) -> None:
        self.fleet = fleet
        self.number = number
        self.name = name
        self.address = f"{fleet.network}.{FIRST_ADDRESS + number}"
        self.directory = fleet.directory / "hosts" / str(number)
        self.shared: dict[str, str] = {}  # target on the host -> source outside
        self.boot_id = ""
        self._unshare: subprocess.Popen[str] | None = None
        self.init_pid = 0
        self._init_start: str | None = None
        self._frozen: list[HostProcess] = []

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"

    # ------------------------------------------------------------------------------------------------- power

    @property
    def is_on(self) -> bool:
        return leftovers.is_alive(self.init_pid, self._init_start)

    def power_on(self) -> None:
        """Boot and wait until its sshd answers."""
        self.fleet.boot([self])

    def power_cut(self) -> None:
        """Cut the power: no process sends anything more, and no connection is closed.

        The cable is removed first, because the kernel would close the connections of killed processes.
        """
        if self._unshare is None:
            return
        ip("link", "delete", self.cable)
        leftovers.end_process(self.init_pid, self._init_start)
        self._unshare.wait(timeout=10)
        self._unshare = None
        (self.directory / "process.json").unlink(missing_ok=True)

    def begin_boot(self) -> None:
        """Start the host's first process; it mounts its file systems and then waits for its cable."""
        assert self._unshare is None, f"{self.name} is on"
        self.boot_id = str(uuid.uuid4())
        (self.directory / "boot_id").write_text(self.boot_id + "\n")
        shares = [word for target, source in self.shared.items() for word in (source, target)]
        address = f"{self.address}/24"
        self._unshare = subprocess.Popen(
            [
                *UNSHARE,
                "/bin/sh",
                str(HERE / "boot.sh"),
                str(self.directory),
                self.name,
                address,
                str(REPOSITORY),
                *shares,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=CLEAN_ENV,
            cwd="/",
            start_new_session=True,  # Ctrl-C must reach the tests only, not the hosts
        )
        self._record()

    def wait_mounted(self) -> None:
        assert self._unshare is not None and self._unshare.stdout is not None
        said = self._unshare.stdout.readline()
        if said != "mounted\n":
            raise RuntimeError(f"{self.name} did not boot: {said}{self._unshare.stdout.read()}")
        child = psutil.Process(self._unshare.pid).children()[0]
        self.init_pid, self._init_start = child.pid, leftovers.start_time(child.pid)
        self._record()

    def let_go(self) -> None:
        assert self._unshare is not None and self._unshare.stdin is not None and self._unshare.stdout is not None
        self._unshare.stdin.write("go\n")
        self._unshare.stdin.close()
        self._unshare.stdout.close()

    def answers_ssh(self) -> bool:
        if not self.is_on:
            raise RuntimeError(f"{self.name} died while booting: {self.console()}")
        if not listens(self.init_pid, 22):  # asked first: a packet to a machine without an address waits for 1 s
            return False
        with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
        return False

    def console(self) -> str:
        """What its sshd said."""
        path = self.directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _record(self) -> None:
        """The record by which `leftovers` ends this host if the tests have died."""
        assert self._unshare is not None
        record = {"unshare_pid": self._unshare.pid, "unshare_start": leftovers.start_time(self._unshare.pid)}
        if self.init_pid:
            record |= {"init_pid": self.init_pid, "init_start": self._init_start}
        (self.directory / "process.json").write_text(json.dumps(record))

    # ----------------------------------------------------------------------------------------------- network

    @property
    def cable(self) -> str:
        return leftovers.cable_name(self.fleet.subnet, self.number)

    @property
    def namespace_pid(self) -> int:
        assert self._unshare is not None, f"{self.name} is off"
        return self._unshare.pid

    def cable_out(self) -> None:
        ip("link", "set", self.cable, "down")

    def cable_in(self) -> None:
        ip("link", "set", self.cable, "up")

    # --------------------------------------------------------------------------------------------- processes

    def processes(self, containing: str = "") -> list[HostProcess]:
        """Its living processes, optionally those whose command line contains a text."""
        return [one for one in self._scan() if containing in one.command]

    def _scan(self) -> Iterator[HostProcess]:
        if not self.is_on:
            return
        namespace = os.stat(f"/proc/{self.init_pid}/ns/pid").st_ino
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError, ValueError, LookupError):
                    if os.stat(f"/proc/{entry}/ns/pid").st_ino == namespace:
                        found = read_process(int(entry))
                        if found is not None:
                            yield found

    def kill(self, process: HostProcess, sig: int = signal.SIGKILL) -> None:
        """Signal one process of this host; does nothing when it is gone."""
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.outer_pid, sig)

    def freeze(self) -> None:
        """Stop every process at once, as a hung machine. The kernel still answers pings and accepts connections."""
        for _round in range(50):
            running = [one for one in self._scan() if state_of(one.outer_pid) not in ("T", "t")]
            if not running:
                return
            for one in running:
                self.kill(one, signal.SIGSTOP)
                self._frozen.append(one)
            time.sleep(0.002)
        raise RuntimeError(f"{self.name}: processes keep appearing while it freezes")

    def thaw(self) -> None:
        for one in self._frozen:
            self.kill(one, signal.SIGCONT)
        self._frozen = []

    # ----------------------------------------------------------------------------------------------- commands

    def run(
        self, command: str, user: str = "root", *, check: bool = True, timeout_s: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """A shell command on the host, past its network (works with the cable out)."""
        as_user = [] if user == "root" else ["--setuid", str(USER_ID), "--setgid", str(USER_ID)]
        home = self.home_of(user)
        return subprocess.run(
            ["nsenter", "--target", str(self.init_pid), "--all", "--root", "--wd", *as_user, "/bin/sh", "-c", command],
            env=CLEAN_ENV | {"HOME": home, "USER": user, "LOGNAME": user},
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout_s,
        )

    def ssh_command(self, user: str = "root") -> list[str]:
        options = [
            "-F",
            "none",
            "-o",
            f"UserKnownHostsFile={self.fleet.known_hosts}",
            "-o",
            "StrictHostKeyChecking=yes",
        ]
        options += ["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
        return ["ssh", "-i", str(self.fleet.private_key), *options, f"{user}@{self.address}"]

    def ssh(self, command: str, user: str = "root", *, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command over SSH, as a person would."""
        return subprocess.run(
            [*self.ssh_command(user), command], capture_output=True, text=True, check=False, timeout=timeout_s
        )

    # -------------------------------------------------------------------------------------------------- files

    def mount(self, source: Path, target: str) -> None:
        """Show a directory of the machine outside as `target`: at once, and again at each power-on."""
        self.shared[target] = str(source)
        if not self.is_on:
            (self.directory / "upper" / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
            return
        self.run(f"mkdir -p {shlex.quote(target)}")
        # The host's mount namespace still sees the outside; only its processes are chrooted.
        enter = ["nsenter", "--target", str(self.init_pid), "--mount"]
        subprocess.run([*enter, "mount", "--bind", str(source), f"{self.directory}/root{target}"], check=True)

    def home_of(self, user: str) -> str:
        return "/root" if user == "root" else f"/home/{user}"

    def path(self, path: str) -> Path:
        """A file of the host, readable from outside while it is on (through its root directory)."""
        return Path(f"/proc/{self.init_pid}/root") / path.lstrip("/")


class Fleet:
    """N hosts on one bridge. `with Fleet(4) as fleet: fleet.hosts[0].power_cut()`"""

    def __init__(self, count: int, names: Sequence[str] = ()) -> None:
        leftovers.clean_stale()
        self._lock, self.subnet = take_subnet()
        self.network = f"10.77.{self.subnet}"
        self.manager_address = f"{self.network}.1"
        self.bridge = leftovers.fleet_name(os.getpid(), self.subnet)
        self.directory = choose_base() / self.bridge
        self.hosts: list[FleetHost] = []
        self._keeper: subprocess.Popen[bytes] | None = None
        self._closed = threading.Lock()
        try:
            self._build([*names] or [f"node{number + 1}" for number in range(count)])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __getitem__(self, index: int) -> FleetHost:
        return self.hosts[index]

    @property
    def private_key(self) -> Path:
        """The operator's key, good for root and alice on every host."""
        return self.directory / "operator_key"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    def share_home(self, hosts: Sequence[FleetHost], user: str = "root") -> None:
        """One home directory on all of these, as over NFS: at once, and again at each power-on."""
        target = hosts[0].home_of(user)
        source = self.directory / "shared" / "-".join(host.name for host in hosts) / user
        source.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(hosts[0].directory / "upper" / target.lstrip("/"), source)
        give_to(source, 0 if user == "root" else USER_ID)
        for host in hosts:
            host.mount(source, target)

    def boot(self, hosts: Sequence[FleetHost]) -> None:
        """Power on several at once."""
        for host in hosts:
            host.begin_boot()
        for host in hosts:
            host.wait_mounted()
        lines = []
        for host in hosts:
            number = host.number
            lines.append(
                f"link add {host.cable} master {self.bridge} type veth "
                f"peer name eth0 netns {host.namespace_pid} address 02:77:00:{self.subnet:02x}:00:{number:02x}"
            )
            lines.append(f"link set {host.cable} up")
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)
        for host in hosts:
            host.let_go()
        for host in hosts:
            wait_until(host.answers_ssh, 20, f"sshd of {host.name}")

    def close(self) -> None:
        """Remove everything. Safe to call twice and at any stage of building."""
        with self._closed:
            for host in self.hosts:
                with contextlib.suppress(Exception):
                    host.power_cut()
            leftovers.clean(str(self.directory))
            if self._keeper is not None:
                self._keeper.communicate()
                self._keeper = None
            self._lock.close()

    def _build(self, names: Sequence[str]) -> None:
        self.directory.mkdir(mode=0o755)
        owner = {"start": leftovers.start_time(os.getpid())}
        (self.directory / "owner.json").write_text(json.dumps(owner))
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(HERE / "leftovers.py"), str(self.directory)],
            stdin=subprocess.PIPE,
            pass_fds=[self._lock.fileno()],  # the subnet stays taken until it is really free
            start_new_session=True,
        )
        # An address of its own: otherwise it takes one of its cables', and changes it when that host loses power.
        ip("link", "add", self.bridge, "address", f"02:77:ff:{self.subnet:02x}:00:00", "type", "bridge")
        ip("addr", "add", f"{self.manager_address}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        public_key = write_key(self.private_key)
        self.hosts = [FleetHost(self, number, name) for number, name in enumerate(names)]
        addresses = {host.name: host.address for host in self.hosts}
        keys = {host: furnish(host.directory, host.name, addresses, public_key) for host in self.hosts}
        self.known_hosts.write_text("".join(f"{host.address},{host.name} {key}\n" for host, key in keys.items()))
        self.boot(self.hosts)


# --------------------------------------------------------------------------------------------------------- pieces


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def take_subnet() -> tuple[socket.socket, int]:
    """An X for 10.77.X.0/24 that no other fleet of this network namespace uses, held by the returned socket.

    The lock is an abstract socket name: it has the scope of the bridge, ends with its holder and leaves no file.
    """
    used = subprocess.run(["ip", "-4", "-o", "addr"], check=True, capture_output=True, text=True).stdout
    for number in range(256):
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            lock.bind(f"\0procguard-fleet-10.77.{number}")
        except OSError:
            lock.close()
            continue
        if f" 10.77.{number}." not in used:
            return lock, number
        lock.close()
    raise FleetUnavailable("all of 10.77.0.0/16 is in use on this machine")


def choose_base(least_free_bytes: int = 256 << 20) -> Path:
    for base in leftovers.BASES:
        with contextlib.suppress(OSError):
            if shutil.disk_usage(base).free >= least_free_bytes and file_system_of(base) == "tmpfs":
                return Path(base)
    raise FleetUnavailable(f"none of {', '.join(leftovers.BASES)} is a tmpfs with 256 MiB free")


def file_system_of(path: str) -> str:
    with open("/proc/self/mounts") as mounts:
        kinds = {words[1]: words[2] for words in map(str.split, mounts)}
    return kinds.get(path, "")
