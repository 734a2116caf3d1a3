"""A machine whose sshd accepts connections and then sends nothing, which is worse than a machine that is off."""

from __future__ import annotations

from tests.fleet.hosts import FleetHost
from tests.fleet.processes import HostProcess, listens
from tests.waiting import wait_until

NOTES = "/var/tmp/silent.attempts"

# Notes each connection that its peer has ended: when it came and went, in ns of the clock that all hosts share.
SILENT = """
import selectors, socket, time
chosen, came = selectors.DefaultSelector(), {}
server = socket.create_server(("0.0.0.0", 22), backlog=256)
chosen.register(server, selectors.EVENT_READ)
while True:
    for key, _ in chosen.select():
        if key.fileobj is server:
            one = server.accept()[0]
            came[one] = time.monotonic_ns()
            chosen.register(one, selectors.EVENT_READ)
            continue
        one = key.fileobj
        try:
            gone = not one.recv(65536)
        except OSError:
            gone = True
        if gone:
            with open("/var/tmp/silent.attempts", "a") as notes:
                notes.write(f"{came.pop(one)} {time.monotonic_ns()}\\n")
            chosen.unregister(one)
            one.close()
"""


def fall_silent(host: FleetHost) -> HostProcess:
    """End its sshd and put one in its place that never speaks. Returns that one; `speak_again` undoes it."""
    for one in host.processes("sshd"):
        if one.pid != 1:  # the host's init, whose command line names what it started
            host.kill(one)
    wait_until(lambda: not listens(host.init_pid, 22), 10, f"sshd of {host.name} gone")
    host.path("/opt/silent.py").parent.mkdir(exist_ok=True)
    host.path("/opt/silent.py").write_text(SILENT)
    host.run("nohup python3 -I -S /opt/silent.py >/dev/null 2>&1 &")
    wait_until(lambda: listens(host.init_pid, 22), 10, f"a silent sshd on {host.name}")
    return host.processes("/opt/silent.py")[0]


def attempts_s(host: FleetHost) -> list[float]:
    """How long each connection to the silent sshd lasted until its other end gave up, in seconds."""
    path = host.path(NOTES)
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split()[1]) - int(line.split()[0])) / 1e9 for line in lines]


def speak_again(host: FleetHost) -> None:
    for one in host.processes("/opt/silent.py"):
        host.kill(one)
    wait_until(lambda: not listens(host.init_pid, 22), 10, f"the silent sshd of {host.name} gone")
    host.run("/usr/sbin/sshd -e -f /etc/ssh/sshd_config >/dev/null 2>&1")
    wait_until(host.answers_ssh, 20, f"sshd of {host.name}")
