"""Wall clocks that a test can set: of a host and everything started on it, or of a process started here.

Compiles clock_shim.c. On a host /etc/ld.so.preload names it, so sshd, agent, runner and child have it alike.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

from tests.fleet.hosts import FleetHost

SOURCE = Path(__file__).with_name("clock_shim.c")
ON_HOST = Path("/opt/clock")


def why_unavailable() -> str:
    return "" if shutil.which("gcc") or shutil.which("cc") else "needs a C compiler"


class WallClock:
    """Of the manager's machine: start a process with `environment`, then `set(seconds)`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.library = directory / "clock.so"
        self._offset = directory / "offset"
        compiler = shutil.which("gcc") or shutil.which("cc")
        assert compiler, why_unavailable()
        words = [compiler, "-O2", "-shared", "-fPIC", "-o", str(self.library), str(SOURCE), "-ldl", "-pthread"]
        subprocess.run(words, check=True, capture_output=True, text=True)
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "CLOCK_SHIM": str(self._offset)}

    def set(self, offset_s: float) -> None:
        """So far from the true time, at once."""
        write_offset(self._offset, offset_s)

    def install_on(self, host: FleetHost) -> None:
        """For every process that starts there from now on."""
        upper = host.path(str(ON_HOST))
        upper.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.library, upper / "clock.so")
        (upper / "clock.so").chmod(0o755)
        write_offset(upper / "offset", 0)
        host.path("/etc/ld.so.preload").write_text(f"{ON_HOST}/clock.so\n")


def set_host(host: FleetHost, offset_s: float) -> None:
    write_offset(host.path(f"{ON_HOST}/offset"), offset_s)


def write_offset(path: Path, offset_s: float) -> None:
    """In place: the processes have the file mapped."""
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.write(struct.pack("=q", int(offset_s * 1e9)))
