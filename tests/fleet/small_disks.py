"""Disks that a test can fill up and cut the power of: a small tmpfs, and ext4 in a file on a loop device.

Needs root. Whatever becomes of the tests, the mount goes: a guard of its own waits for their end. Runs by itself too:
`python small_disks.py MOUNTPOINT` waits for its standard input to end, then unmounts (a loop device goes with that).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

FS_IOC_SHUTDOWN = 0x8004587D  # include/uapi/linux/fs.h
GOING_DOWN_NOLOGFLUSH = 2  # as when the power goes: what is not on the disk by now never gets there
IMAGE_BYTES = 48 * 1024 * 1024


def why_unavailable() -> str:
    if os.geteuid() != 0:
        return "mounting needs root"
    missing = [tool for tool in ("mount", "umount", "mkfs.ext4") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    return "" if os.path.exists("/dev/loop-control") else "no loop devices here"


def require() -> None:
    """Skip (or, under CI=true, fail) where nothing can be mounted."""
    reason = why_unavailable()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def unmount(place: Path) -> None:
    """Also what is in use: it disappears from here at once, and the kernel lets go of it with its last user."""
    while os.path.ismount(place):
        if subprocess.run(["umount", "-l", str(place)], check=False).returncode:
            return


class Mounted:
    """Something mounted at `place` as long as the block lasts."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Mounted:
        self.place.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, os.path.abspath(__file__), str(self.place)]
        self._guard = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        self.unmount()
        assert self._guard is not None
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(20)

    def mount(self) -> None:
        raise NotImplementedError

    def unmount(self) -> None:
        unmount(self.place)

    def fill(self) -> Path:
        """Until nothing more fits. Returns the file to remove for space."""
        filler = self.place / "filler"
        with open(filler, "ab", buffering=0) as file:
            for size in (65536, 4096, 512, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size) == size:
                        pass
        return filler


class Filler:
    """Somebody else who takes whatever room there is, again and again: `with Filler(disk, "space"): …`, or "inodes".
    All of it is free again at the end."""

    def __init__(self, disk: Mounted, what: str, every_s: float = 0.01) -> None:
        self._place = disk.place / "filler"
        self._take = self._take_space if what == "space" else self._take_inodes
        self._every_s = every_s
        self._count = 0
        self._ending = threading.Event()
        self._full = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Filler:
        self._place.mkdir()
        self._thread.start()
        assert self._full.wait(60), "the disk was not full within 60 s"
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        shutil.rmtree(self._place)

    def _run(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(OSError):
                self._take()
            self._full.set()
            self._ending.wait(self._every_s)

    def _take_space(self) -> None:
        with open(self._place / "bytes", "ab", buffering=0) as file:
            for size in (1 << 20, 65536, 4096):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size) == size:
                        pass

    def _take_inodes(self) -> None:
        while True:
            (self._place / str(self._count)).touch()
            self._count += 1


class Tmpfs(Mounted):
    def __init__(self, place: Path, size: str) -> None:
        super().__init__(place)
        self._size = size

    def mount(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self.place)], check=True)


class LoopDisk(Mounted):
    """ext4 in `image`. `cut_power`, then `unmount` and `mount`, is what a machine sees after a power cut."""

    def unmount(self) -> None:
        """Wait for its last user: a saving process outlives its manager by a moment."""
        deadline = time.monotonic() + 15
        while os.path.ismount(self.place) and time.monotonic() < deadline:
            if subprocess.run(["umount", str(self.place)], capture_output=True, check=False).returncode:
                time.sleep(0.05)
        super().unmount()

    def __init__(self, place: Path, image: Path, size_bytes: int = IMAGE_BYTES) -> None:
        super().__init__(place)
        self._image = image
        self._cuts = 0
        self._has_power = True
        with open(image, "wb") as file:
            file.truncate(size_bytes)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)

    def mount(self) -> None:
        """After a power cut, what was on the disk is on another one: a test host that was made meanwhile has this mount
        in its own namespace, and as long as it lives the old disk stays what it was, without power."""
        if not self._has_power:
            self._cuts += 1
            former, self._image = self._image, self._image.with_name(f"image{self._cuts}")
            subprocess.run(["cp", "--sparse=always", str(former), str(self._image)], check=True)
            former.unlink()
            self._has_power = True
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.place)], check=True)

    def cut_power(self) -> int:
        """Returns the moment it was cut, in ns of the monotonic clock: what was synced before then is on the disk."""
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        moment_ns = time.monotonic_ns()
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", GOING_DOWN_NOLOGFLUSH))
        finally:
            os.close(descriptor)
        self._has_power = False
        return moment_ns


if __name__ == "__main__":
    sys.stdin.read()
    unmount(Path(sys.argv[1]))
