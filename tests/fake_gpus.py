"""GPUs that a test makes up: an NVML library compiled from fake_nvml.c, and a fake nvidia-smi on PATH.

Both read the same file, so that what a test says is what either source sees. Processes that look for them are started
with `environment(...)`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

GIB = 1024**3
SOURCE = Path(__file__).with_name("fake_nvml.c")
SMI = """#!{python}
import sys
if {broken!r}:
    print({broken!r}); sys.exit(9)
rows = [line.split() for line in open({state!r}) if line.strip()]
mib = lambda text: str(int(text) // 1048576)
if sys.argv[1].startswith("--query-gpu="):
    for i, r in enumerate(rows):
        watts = [str(int(r[3]) / 1000), str(int(r[4]) / 1000)]
        if "pci.bus_id" in sys.argv[1]:
            health = open({state!r} + ".health").read().splitlines()[i].split()
            yes = ["Yes" if word != "0" else "No" for word in health[1:3]]
            print(", ".join([str(i), f"00000000:{{0x3b + i:02X}}:00.0", health[0], *yes, health[3]]))
            continue
        print(", ".join([str(i), f"GPU-fake-{{i}}", "Fake GPU", r[0], mib(r[1]), mib(r[2]), *watts, r[5]]))
else:
    for i, r in enumerate(rows):
        for pid, used in (word.split(":") for word in r[6:]):
            print(f"GPU-fake-{{i}}, {{pid}}, {{mib(used)}}")
"""


class FakeGpus:
    """`say` what the driver tells from now on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True)
        self.state = directory / "gpus.txt"
        self.state.write_text("")

    def say(self, *lines: str) -> None:
        new = self.directory / "gpus.new"
        new.write_text("".join(line + "\n" for line in lines))
        os.replace(new, self.state)

    def ail(self, *lines: str) -> None:
        """A line "ecc pending failed throttle" for each GPU: uncorrectable errors, rows to be remapped, a bit mask."""
        Path(f"{self.state}.health").write_text("".join(line + "\n" for line in lines))

    def with_library(self) -> FakeGpus:
        """Raises FileNotFoundError where there is no C compiler."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise FileNotFoundError("no C compiler")
        library = self.directory / "libnvidia-ml.so.1"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
        return self

    def with_smi(self, broken: str = "") -> FakeGpus:
        script = self.directory / "nvidia-smi"
        script.write_text(SMI.format(python=sys.executable, state=str(self.state), broken=broken))
        script.chmod(0o755)
        return self

    def environment(self) -> dict[str, str]:
        path = f"{self.directory}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "LD_LIBRARY_PATH": str(self.directory), "FAKE_NVML": str(self.state)}


def gpu(util: int = 0, used: int = 0, total: int = 80 * GIB, watts: float = 60, limit: float = 700, *users: int) -> str:
    """A line for `say`; `users`: pids, each with 1 GiB."""
    processes = " ".join(f"{pid}:{GIB}" for pid in users)
    return f"{util} {used} {total} {int(watts * 1000)} {int(limit * 1000)} 40 {processes}"
