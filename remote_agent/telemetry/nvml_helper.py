"""A separate process that reads the NVIDIA GPUs: one line of input, one line of JSON as output. Exits at end of input.

Run as a script (`python -I -S nvml_helper.py`); imports none of ProcGuard's modules. It is a separate process because a
hung driver can block its caller even against SIGKILL, which must not happen to the agent. Uses NVML through ctypes, or
nvidia-smi if the library is missing. `trouble` describes what cannot be read.

    {"source": "nvml", "gpus": [{"index": 0, "minor": 0, "name": "…", "processes": [{"pid": 42, "memory_bytes": 1}]},
     …], "trouble": ""}
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

NVML_LIBRARY = "libnvidia-ml.so.1"
SMI_TIMEOUT_S = 8.0
MAX_PROCESSES = 256
MAX_GPUS = 64
NOT_SUPPORTED, INSUFFICIENT_SIZE = 3, 7  # NVML's return codes
UNKNOWN_MEMORY = 2**64 - 1
THROTTLES = ((0x8, "hw_slowdown"), (0x20, "sw_thermal"), (0x40, "hw_thermal"), (0x80, "hw_power_brake"))
# Queried separately, because a driver that lacks one of the fields rejects the whole query.
SMI_HEALTH = ("pci.bus_id", "ecc.errors.uncorrected.volatile.total", "remapped_rows.pending", "remapped_rows.failure",
              "clocks_throttle_reasons.active")  # fmt: skip
SMI_FIELDS = ("index", "uuid", "name", "utilization.gpu", "memory.used", "memory.total", "power.draw",
              "enforced.power.limit", "temperature.gpu")  # fmt: skip


class NoNvml(Exception):
    """NVML cannot be used; the text gives the reason."""


class _Pci(ctypes.Structure):
    _fields_ = [("legacy", ctypes.c_char * 16), ("numbers", ctypes.c_uint * 5), ("bus", ctypes.c_char * 32)]


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _ProcessV1(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong)]


class _ProcessV2(ctypes.Structure):  # for functions whose names end in _v2 and _v3
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class Nvml:
    """NVML through ctypes; `read()` returns every GPU. Raises NoNvml if the library or the driver cannot be used."""

    def __init__(self, library: str = NVML_LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as exc:
            raise NoNvml(f"{library}: {exc}") from exc
        self._started = False

    def read(self) -> list[dict[str, object]]:
        if not self._started:
            self._check(self._library.nvmlInit_v2(), "nvmlInit")
            self._started = True
        count = ctypes.c_uint()
        self._check(self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)), "nvmlDeviceGetCount")
        return [self._gpu(index) for index in range(min(count.value, MAX_GPUS))]

    def close(self) -> None:
        if self._started:
            self._library.nvmlShutdown()
            self._started = False

    def _gpu(self, index: int) -> dict[str, object]:
        device = ctypes.c_void_p()
        code = self._library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device))
        if code != 0:
            return {"index": index, "processes": [], "trouble": self._words(code)}
        gpu: dict[str, object] = {
            "index": index,
            "name": self._text("nvmlDeviceGetName", device),
            "uuid": self._text("nvmlDeviceGetUUID", device),
            "minor": self._number("nvmlDeviceGetMinorNumber", device),
            "power_w": self._number("nvmlDeviceGetPowerUsage", device, 1000.0),
            "power_limit_w": self._number("nvmlDeviceGetEnforcedPowerLimit", device, 1000.0),
            "temperature_c": self._temperature(device),
            "processes": self._processes(device),
            "trouble": "",
            **self._health(device),
        }
        load, memory = _Utilization(), _Memory()
        if self._ask("nvmlDeviceGetUtilizationRates", device, ctypes.byref(load)) == 0:
            gpu["utilization_percent"] = float(load.gpu)
        code = self._ask("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
        if code == 0:
            gpu.update(memory_used_bytes=memory.used, memory_total_bytes=memory.total)
        elif code not in (None, NOT_SUPPORTED):
            gpu["trouble"] = self._words(code)
        return gpu

    def _health(self, device: ctypes.c_void_p) -> dict[str, object]:
        """The bus address and the health of a GPU, without fields that the driver does not report."""
        found: dict[str, object] = {}
        pci, count = _Pci(), ctypes.c_ulonglong()
        if self._ask("nvmlDeviceGetPciInfo_v3", device, ctypes.byref(pci)) == 0:
            found["bus"] = pci.bus.decode("ascii", "replace")
        uncorrected, volatile = ctypes.c_int(1), ctypes.c_int(0)  # volatile: since the driver was loaded
        if self._ask("nvmlDeviceGetTotalEccErrors", device, uncorrected, volatile, ctypes.byref(count)) == 0:
            found["ecc"] = count.value
        rows = [ctypes.c_uint() for _ in range(4)]  # corrected, uncorrected, pending, failed
        if self._ask("nvmlDeviceGetRemappedRows", device, *(ctypes.byref(one) for one in rows)) == 0:
            found.update(row_remap_pending=int(bool(rows[2].value)), row_remap_failed=int(bool(rows[3].value)))
        if self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", device, ctypes.byref(count)) == 0:
            found["throttled"] = [name for bit, name in THROTTLES if count.value & bit]
        return found

    def _ask(self, name: str, *arguments: object) -> int | None:
        """The function's return code; None if this library lacks the function."""
        function = getattr(self._library, name, None)
        return None if function is None else int(function(*arguments))

    def _text(self, name: str, device: ctypes.c_void_p) -> str:
        buffer = ctypes.create_string_buffer(96)
        code = self._ask(name, device, buffer, ctypes.c_uint(len(buffer)))
        return buffer.value.decode("utf-8", "replace") if code == 0 else ""

    def _number(self, name: str, device: ctypes.c_void_p, divisor: float = 0.0) -> float | int | None:
        value = ctypes.c_uint()
        if self._ask(name, device, ctypes.byref(value)) != 0:
            return None
        return value.value / divisor if divisor else value.value

    def _temperature(self, device: ctypes.c_void_p) -> float | None:
        value = ctypes.c_uint()
        sensor = ctypes.c_uint(0)  # NVML_TEMPERATURE_GPU
        return (
            float(value.value)
            if self._ask("nvmlDeviceGetTemperature", device, sensor, ctypes.byref(value)) == 0
            else None
        )

    def _processes(self, device: ctypes.c_void_p) -> list[dict[str, object]]:
        for suffix, shape in (("_v3", _ProcessV2), ("_v2", _ProcessV2), ("", _ProcessV1)):
            found = (shape * MAX_PROCESSES)()
            count = ctypes.c_uint(MAX_PROCESSES)
            code = self._ask("nvmlDeviceGetComputeRunningProcesses" + suffix, device, ctypes.byref(count), found)
            if code is None:
                continue  # an older driver
            if code not in (0, INSUFFICIENT_SIZE):
                return []
            listed = found[: min(count.value, MAX_PROCESSES)]
            return [
                {"pid": one.pid, "memory_bytes": None if one.used == UNKNOWN_MEMORY else one.used} for one in listed
            ]
        return []

    def _check(self, code: int, what: str) -> None:
        if code != 0:
            raise NoNvml(f"{what}: {self._words(code)}")

    def _words(self, code: int) -> str:
        self._library.nvmlErrorString.restype = ctypes.c_char_p
        text = self._library.nvmlErrorString(ctypes.c_int(code))
        return text.decode("utf-8", "replace") if text else f"error {code}"


# ---------------------------------------------------------------------------------------------------- nvidia-smi


def read_smi() -> list[dict[str, object]]:
    """The GPUs according to nvidia-smi. Raises OSError if there is no such program, ValueError with its message."""
    rows = _smi("--query-gpu=" + ",".join(SMI_FIELDS))
    apps = _smi("--query-compute-apps=gpu_uuid,pid,used_memory")
    try:
        health = {row[0]: _smi_health(row[1:]) for row in _smi("--query-gpu=index," + ",".join(SMI_HEALTH))}
    except ValueError:
        health = {}
    gpus = []
    for row in rows:
        if len(row) != len(SMI_FIELDS) or not row[0].isdigit():
            continue
        gpus.append(
            {
                "index": int(row[0]),
                "uuid": row[1],
                "name": row[2],
                "utilization_percent": _figure(row[3]),
                "memory_used_bytes": _bytes(row[4]),
                "memory_total_bytes": _bytes(row[5]),
                "power_w": _figure(row[6]),
                "power_limit_w": _figure(row[7]),
                "temperature_c": _figure(row[8]),
                "processes": [
                    {"pid": int(app[1]), "memory_bytes": _bytes(app[2])}
                    for app in apps
                    if len(app) == 3 and app[0] == row[1] and app[1].isdigit()
                ],
                "trouble": "",
                **health.get(row[0], {}),
            }
        )
    return gpus


def _smi_health(words: list[str]) -> dict[str, object]:
    if len(words) != len(SMI_HEALTH):
        return {}
    found: dict[str, object] = {"bus": words[0]}
    if words[1].isdigit():
        found["ecc"] = int(words[1])
    for name, word in zip(("row_remap_pending", "row_remap_failed"), words[2:4]):
        if word in ("Yes", "No", "0", "1"):
            found[name] = int(word in ("Yes", "1"))
    try:
        active = int(words[4], 16)
    except ValueError:
        return found
    return {**found, "throttled": [name for bit, name in THROTTLES if active & bit]}


def _smi(query: str) -> list[list[str]]:
    import subprocess

    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SMI_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise ValueError(f"nvidia-smi does not answer within {SMI_TIMEOUT_S:g} s") from exc
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        words = text.strip().splitlines()
        raise ValueError(f"nvidia-smi: {words[0] if words else f'exit {done.returncode}'}")
    return [[word.strip() for word in line.split(",")] for line in text.splitlines() if line.strip()]


def _bytes(text: str) -> int | None:
    figure = _figure(text)
    return None if figure is None else int(figure * 1024 * 1024)


def _figure(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # [N/A], [Not Supported]
        return None


# ----------------------------------------------------------------------------------------------------- answers


class NvmlReader:
    """Reads by NVML while it works, otherwise by nvidia-smi; each answer names its source."""

    def __init__(self, library: str = NVML_LIBRARY) -> None:
        self._library = library
        self._nvml: Nvml | None = None

    def answer(self) -> dict[str, object]:
        try:
            if self._nvml is None:
                self._nvml = Nvml(self._library)
            return {"source": "nvml", "gpus": self._nvml.read(), "trouble": ""}
        except (NoNvml, AttributeError) as exc:  # AttributeError: the library lacks a required function
            why = str(exc)
            self._nvml = None
        try:
            return {"source": "nvidia-smi", "gpus": read_smi(), "trouble": ""}
        except FileNotFoundError:
            return {"source": "none", "gpus": [], "trouble": why}
        except (OSError, ValueError) as exc:
            return {"source": "none", "gpus": [], "trouble": f"{why}; {exc}"}


def end_with_parent() -> None:
    """Receive SIGKILL when the agent ends; a call that hangs in the driver may still delay the end of this process."""
    try:
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    except (OSError, AttributeError):
        pass  # not Linux: only the end of the input ends this process


def main() -> None:
    end_with_parent()
    library = sys.argv[1] if len(sys.argv) > 1 else NVML_LIBRARY
    reader = NvmlReader(library)
    while sys.stdin.buffer.readline():
        os.write(1, json.dumps(reader.answer()).encode() + b"\n")


if __name__ == "__main__":
    main()
