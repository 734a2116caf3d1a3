"""The patterns that prove a cause of failure in a program's last lines. Data only.

A cause is an identifier; its text is `failure.CAUSE` in protocol/host_reasons.py.
"""

from __future__ import annotations

STRICT = frozenset(
    {
        "import_error", "syntax_error", "missing_library", "command_not_found", "file_not_found", "not_executable",
        "permission_denied", "usage_error",
    }
)  # fmt: skip

SIGNALS = {
    4: "illegal_instruction", 6: "aborted", 7: "bus_error", 8: "arithmetic_error", 9: "child_killed",
    11: "segmentation_fault", 24: "cpu_limit", 25: "file_size_limit",
}  # fmt: skip
# The texts with which a shell, Python or the C library report a process that was ended by such a signal.
SIGNAL_TEXTS = {
    4: ("illegal instruction",), 6: ("aborted", "sigabrt"), 7: ("bus error",), 8: ("floating point exception",),
    9: ("killed", "sigkill"), 11: ("segmentation fault", "sigsegv"), 24: ("cpu time limit exceeded",),
    25: ("file size limit exceeded",),
}  # fmt: skip

# Texts in lower case that prove a cause in an exception, in `what():` or in the last lines. The first match counts.
TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("gpu_fault", (
        "uncorrectable ecc error", "fallen off the bus", "gpu is lost", "uncorrectable nvlink error",
    )),
    ("collective_timeout", (
        "caught collective operation timeout", "watchdog got stuck for", "for recv operation to complete",
        "for send operation to complete", "the client socket has timed out after", "waiting for clients",
        "monitoredbarrier", "runtimeerror: socket timeout", "wait timeout after", "rendezvoustimeouterror",
        "nccl operations have failed or timed out", "deadline_exceeded: barrier timed out",
    )),
    ("gpu_oom", (
        "cuda out of memory", "hip out of memory", "cuda error: out of memory", "hip error: out of memory",
        "cuda error 2 (out of memory)", "cudaerrormemoryallocation", "hiperroroutofmemory",
        "cudamalloc failed: out of memory", "cuda_error_out_of_memory", "cublas_status_alloc_failed",
        "'out of memory'", "resource_exhausted: out of memory", "oom when allocating tensor",
        "outofmemoryerror: out of memory allocating", "xpu out of memory", "npu out of memory",
        "mps backend out of memory", "out_of_memory: cuda error", "ran out of memory in memory space",
        "no available memory for the cache blocks",
    )),
    ("collective_error", (
        "nccl error", "rccl error", "nccl communicator was aborted", "ncclsystemerror", "ncclunhandledcudaerror",
        "ncclinternalerror", "ncclremoteerror", "connection closed by peer [", "gloo connectfullmesh failed",
        "gloo/transport/",
    )),
    ("port_in_use", (
        "address already in use", "eaddrinuse", "connection in use: (", "web server failed to start. port ",
    )),
    ("shared_memory", ("out of shared memory", "insufficient shared memory", "unable to write to file </torch_")),
    ("no_space", ("no space left on device", "disk quota exceeded", "enospc", "database or disk is full")),
    ("read_only", ("read-only file system",)),
    ("too_many_files", ("too many open files", "received 0 items of ancdata")),
    ("out_of_memory", (
        "cannot allocate memory", "std::bad_alloc", "can't allocate memory", "unable to allocate ",
        "java.lang.outofmemoryerror", "runtime: out of memory", "heap out of memory", "memory allocation of ",
    )),
    ("no_gpu", (
        "no cuda gpus are available", "found no nvidia driver", "no cuda-capable device is detected",
        "cuda driver version is insufficient", "no hip gpus are available", "torch not compiled with cuda enabled",
        "cuda unknown error", "nvidia driver on your system is too old", "no visible gpu devices",
        "driver/library version mismatch", "couldn't communicate with the nvidia driver",
        "could not select device driver", "nvidia-container-cli: initialization error",
    )),
    ("cuda_error", (
        "cuda error:", "cuda error ", "hip error:", "cuda runtime error", "cublas_status_", "cudnn_status_",
        "cudnn error",
        "cuda_error_", "device-side assert triggered", "an illegal memory access was encountered", "cuda failure",
        "cusolver error", "cufft error", "memory access fault by gpu node",
    )),
    ("connection_failed", (
        "connection refused", "temporary failure in name resolution", "name or service not known",
        "no route to host", "could not resolve host", "unable to resolve host", "connection timed out",
        "network is unreachable", "couldn't connect to", "connection reset by peer",
    )),
)  # fmt: skip

# The C library's text of an error at the end of a program's last line: "cp: '/out/step-9.pt': Read-only file system".
ERRNO_TEXTS = (
    ": no space left on device", ": disk quota exceeded", ": read-only file system", ": too many open files",
    ": cannot allocate memory", ": address already in use", ": connection refused",
)  # fmt: skip

# The C library's texts of errors that may pass, of a network file system or a limit. A message that contains one, for
# example "ImportError: /nfs/x.so: cannot read file data: Input/output error", does not prove a cause of STRICT.
PASSING = (
    "input/output error", "remote i/o error", "stale file handle", "stale nfs file handle",
    "transport endpoint is not connected", "transport endpoint shutdown", "resource temporarily unavailable",
    "text file busy", "device or resource busy", "host is down", "interrupted system call", "too many open files",
    "connection timed out",
)  # fmt: skip

# Python's exceptions by the last part of their name. Any other is python_exception.
EXCEPTIONS = {
    "ModuleNotFoundError": "import_error", "ImportError": "import_error", "SyntaxError": "syntax_error",
    "IndentationError": "syntax_error", "TabError": "syntax_error", "MemoryError": "out_of_memory",
    "_ArrayMemoryError": "out_of_memory", "OutOfMemoryError": "gpu_oom", "PermissionError": "permission_denied",
    "FileNotFoundError": "file_not_found", "KeyboardInterrupt": "interrupted",
    "ConnectionRefusedError": "connection_failed", "ConnectionError": "connection_failed",
    "ConnectionResetError": "connection_failed", "ConnectError": "connection_failed",
    "ConnectTimeout": "connection_failed", "MaxRetryError": "connection_failed", "gaierror": "connection_failed",
}  # fmt: skip
# Exceptions that report only that another process failed: a traceback above may name the cause.
LAUNCHERS = ("ChildFailedError", "CalledProcessError", "ProcessExitedException", "BrokenProcessPool")
OF_ANOTHER = (  # recognized by its message
    "see root cause above",
    "see stack trace for root cause",
    "exited unexpectedly",
    "is killed by signal",
    "non-zero exit status",
)
CHAINED = "the above exception was the direct cause of"
HANDLING = "during handling of the above exception, another exception occurred"
HEADER = "Traceback (most recent call last)"
BOX = ("│", "╭", "╰", "|", "┃")  # rich's frames
MISSING_LIBRARY = ("cannot open shared object file", "' not found (required by")

# A line with one of these after a failure shows that the program continued; so does a line with one of USUAL, unless it
# mentions an end.
WENT_ON = (
    "retry", "continu", "fallback", "falling back", "fall back", "resum", "skipp", "ignor", "using", "without",
    "disabl", "proceed", "again", "recover", "reconnect", "instead", "optional", "degraded",
)  # fmt: skip
USUAL = (
    "epoch", "step", "iter", "loss", "attempt ", "available", "training", "listening", "started", "serving", "loaded",
    "loading", "saved", "saving", " ready", "warm", "progress", "processed",
)  # fmt: skip
# Beginnings of lines that others (launchers, shells, trackers) print after the end of a program.
AFTERWARDS = (
    "wandb:", "srun:", "slurmstepd:", "make:", "make[", "mpirun", "prterun", "[rank", "[c10d]", "pdsh@",
    "warning:torch.distributed", "error:torch.distributed", "info:torch.distributed", "error conda.cli",
    "exception ignored", "node.js v", "npm err!", "npm error", "error command failed", "real  ", "user  ", "sys  ",
    "+ ", "process ", "primary job", "🏃 ", "🧪 ", "hint: ", "identify and stop the process",
    "set the environment variable hydra_full_error", "note: run with `rust_backtrace", "command exited with",
)  # fmt: skip
ENDING = ("error", "exit", "abort", "terminat", "shut", "clean", "finish", "kill", "giving up", "stopping", "failed")
