"""Why an attempt failed: a cause, and the line that proves it, from the last lines of its output and its exit facts.

The one table of patterns. A cause is a word; its text is `failure.WORD` in protocol/host_reasons.py. Because
restart.never_on goes by it, no cause is better than a wrong one:

- a Python exception counts by its traceback, and only where nothing shows that the program went on after it;
- any other line counts in the form in which a failing program prints it, among the last ones, with a fitting exit;
- for a cause of STRICT, which would fail the same way again, no other line of the program may follow.

Imported only after an attempt that failed by itself. Plain searches for texts, which take as long as the text is; the
users' own patterns are matched in a child that may be killed. Everything is bounded: the bytes, the lines, the time.
"""

from __future__ import annotations

import os

from remote_agent.protocol.host_reasons import HOST
from remote_agent.protocol.reasons import because, reason_of

TYPE_CHECKING = False  # as typing's, which a runner does without
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TAIL_BYTES = 64 * 1024
MAX_LINES = 400
MAX_LINE_CHARS = 2000
SHOWN_CHARS = 300
OWN_LINES = 20  # the last lines, in which the users' own patterns are looked for
OWN_TIME_S = 0.5

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
# What a shell, Python or the C library prints of a process that such a signal ended.
SIGNAL_TEXTS = {
    4: ("illegal instruction",), 6: ("aborted", "sigabrt"), 7: ("bus error",), 8: ("floating point exception",),
    9: ("killed", "sigkill"), 11: ("segmentation fault", "sigsegv"), 24: ("cpu time limit exceeded",),
    25: ("file size limit exceeded",),
}  # fmt: skip

# What proves a cause in an exception, in `what():` or in the last lines, in lower case. The first that is found counts.
TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("gpu_fault", (
        "uncorrectable ecc error", "fallen off the bus", "gpu is lost", "uncorrectable nvlink error",
    )),
    ("collective_timeout", (
        "caught collective operation timeout", "watchdog got stuck for", "for recv operation to complete",
        "for send operation to complete", "the client socket has timed out after", "waiting for clients",
        "monitoredbarrier", "runtimeerror: socket timeout", "wait timeout after", "rendezvoustimeouterror",
        "nccl operations have failed or timed out",
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
    )),
    ("port_in_use", ("address already in use", "eaddrinuse", "connection in use: (")),
    ("shared_memory", ("out of shared memory", "insufficient shared memory", "unable to write to file </torch_")),
    ("no_space", ("no space left on device", "disk quota exceeded", "enospc")),
    ("read_only", ("read-only file system",)),
    ("too_many_files", ("too many open files",)),
    ("out_of_memory", (
        "cannot allocate memory", "std::bad_alloc", "can't allocate memory", "unable to allocate ",
        "java.lang.outofmemoryerror", "runtime: out of memory", "heap out of memory", "memory allocation of ",
    )),
    ("no_gpu", (
        "no cuda gpus are available", "found no nvidia driver", "no cuda-capable device is detected",
        "cuda driver version is insufficient", "no hip gpus are available", "torch not compiled with cuda enabled",
        "cuda unknown error",
    )),
    ("cuda_error", (
        "cuda error:", "cuda error ", "hip error:", "cuda runtime error", "cublas_status_", "cudnn_status_",
        "cudnn error",
        "cuda_error_", "device-side assert triggered", "an illegal memory access was encountered", "cuda failure",
        "cusolver error", "cufft error",
    )),
    ("connection_failed", (
        "connection refused", "temporary failure in name resolution", "name or service not known",
        "no route to host", "could not resolve host", "unable to resolve host", "connection timed out",
        "network is unreachable", "couldn't connect to", "connection reset by peer",
    )),
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
# Exceptions that say only that another process failed: a traceback above may say of what.
LAUNCHERS = ("ChildFailedError", "CalledProcessError", "ProcessExitedException", "BrokenProcessPool")
OF_ANOTHER = (  # by its message
    "see root cause above",
    "see stack trace for root cause",
    "exited unexpectedly",
    "is killed by signal",
    "non-zero exit status",
)
CHAINED = "the above exception was the direct cause of"
HEADER = "Traceback (most recent call last)"
BOX = ("│", "╭", "╰", "|", "┃")  # rich's frames
MISSING_LIBRARY = ("cannot open shared object file", "' not found (required by")

# A line with one of these behind a failure: the program went on. With one of USUAL it did, unless it speaks of an end.
WENT_ON = (
    "retry", "continu", "fallback", "falling back", "fall back", "resum", "skipp", "ignor", "using", "without",
    "disabl", "proceed", "again", "recover", "reconnect", "instead", "optional", "degraded",
)  # fmt: skip
USUAL = (
    "epoch", "step", "iter", "loss", "attempt ", "available", "training", "listening", "started", "serving", "loaded",
    "loading", "saved", "saving", " ready", "warm", "progress", "processed",
)  # fmt: skip
# How lines begin that follow the end of a program and are not its own: of launchers, shells, trackers.
AFTERWARDS = (
    "wandb:", "srun:", "slurmstepd:", "make:", "make[", "mpirun", "prterun", "[rank", "[c10d]", "pdsh@",
    "warning:torch.distributed", "error:torch.distributed", "info:torch.distributed", "error conda.cli",
    "exception ignored", "node.js v", "npm err!", "npm error", "error command failed", "real  ", "user  ", "sys  ",
    "+ ", "process ", "primary job", "🏃 ", "🧪 ",
    "set the environment variable hydra_full_error", "note: run with `rust_backtrace", "command exited with",
)  # fmt: skip
ENDING = ("error", "exit", "abort", "terminat", "shut", "clean", "finish", "kill", "giving up", "stopping", "failed")


class Cause:
    """`at`: the index of the line that proves it; -1: the exit does. `where`: of an exception, its file and line."""

    def __init__(self, word: str, at: int = -1, where: str = "") -> None:
        self.word, self.at, self.where = word, at, where


class ProvenCause:
    """A cause, its line, and the position of that line in the worker's log (`stream`, `offset` in bytes)."""

    def __init__(self, word: str, line: str = "", stream: str = "", offset: int = 0, where: str = "") -> None:
        self.word, self.line, self.stream, self.offset, self.where = word, line, stream, offset, where
        code = f"failure.{word}"
        known = because(f"failure.{word}") if code in HOST else word
        shown = f"{line} ({where})" if where else line
        self.reason = because("exit.proof", cause=known, line=shown) if line else reason_of(known)


def of_attempt(
    files: Sequence[tuple[str, str]],
    code: int | None,
    signal: int | None,
    oom: bool = False,
    oom_lately: bool = False,
    own: Mapping[str, str] | None = None,
) -> ProvenCause | None:
    """`files`: (stream, path), the one with the errors last. `oom_lately`: the kernel OOM killer has struck since it
    began. `own`: the users' causes with their expressions, for Python's `re`. None: nothing is proven."""
    if oom:
        return ProvenCause("oom")
    origins: list[tuple[str, int]] = []
    lines: list[str] = []
    for stream, path in files:
        for offset, text in read_tail(path):
            origins.append((stream, offset))
            lines.append(text)
    del origins[:-MAX_LINES], lines[:-MAX_LINES]
    cause = (own_cause(lines, own) if own else None) or find(lines, code, signal, oom_lately)
    if cause is None:
        return None
    if cause.at < 0:
        return ProvenCause(cause.word)
    stream, offset = origins[cause.at]
    return ProvenCause(cause.word, lines[cause.at].strip()[:SHOWN_CHARS], stream, offset, cause.where)


# ------------------------------------------------------------------------------------------------ the last lines


def read_tail(path: str) -> list[tuple[int, str]]:
    """(offset, text) of the last lines of a file, as a terminal would leave them."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        size = os.fstat(descriptor).st_size
        start = max(0, size - TAIL_BYTES)
        data = os.pread(descriptor, TAIL_BYTES, start)
    except OSError:
        return []
    finally:
        os.close(descriptor)
    first, *rest = data.rsplit(b"\n", MAX_LINES)
    if start or len(rest) == MAX_LINES:  # the first one is cut, or not a line
        start += len(first) + 1
    else:
        rest.insert(0, first)
    lines = []
    for line in rest:
        shown = line.rstrip(b"\r")
        cut = shown.rfind(b"\r") + 1
        lines.append((start + cut, plain(shown[cut : cut + MAX_LINE_CHARS])))
        start += len(line) + 1
    return lines


def plain(line: bytes) -> str:
    """The line as text, without colours and control characters."""
    text = line.decode("utf-8", "replace")
    if "\x1b" in text:
        first, *rest = text.split("\x1b")
        text = first + "".join(_behind_escape(part) for part in rest)
    text = text.replace("\t", "    ")
    return text if text.isprintable() else "".join(one for one in text if one.isprintable())


def _behind_escape(part: str) -> str:
    if not part.startswith("["):
        return part[1:]
    for at in range(1, len(part)):
        if "@" <= part[at] <= "~":
            return part[at + 1 :]
    return ""


# ------------------------------------------------------------------------------------------------ the decision


def find(lines: Sequence[str], code: int | None, signal: int | None, oom_lately: bool = False) -> Cause | None:
    """The cause found in a program's last lines; None if unproven. `code`, `signal`: its exit; one of them is None."""
    if signal is None and not code:
        return None
    lower = [line.lower() for line in lines]
    announced = _of_scheduler(lower)
    if announced is not None:
        return announced
    if signal == 2:
        return _interrupted(lines)
    if signal is not None:
        return _of_signal(signal, lower) if signal in SIGNALS and signal != 9 else None
    assert code is not None
    number = code - 128
    if number in SIGNALS and (number != 9 or _last_with(lower, SIGNAL_TEXTS[9], 3) >= 0):
        return _of_signal(number, lower, oom_lately)
    if number == 2:
        return _interrupted(lines)
    if number > 0 and code != 255:
        return None
    return _of_traceback(lines, lower, code, oom_lately) or _of_last_lines(lines, lower, code)


def _of_scheduler(lower: Sequence[str]) -> Cause | None:
    """The cause according to a message of Slurm, or of the kernel's log, in the output."""
    for at in range(len(lower) - 1, max(-1, len(lower) - 31), -1):
        text = lower[at]
        if "slurmstepd: error:" in text and "due to time limit" in text:
            return Cause("time_limit", at)
        if "slurmstepd: error:" in text and "oom" in text and "kill event" in text:
            return Cause("oom", at)
        if "out of memory: killed process " in text or "oom-kill:constraint=" in text:
            return Cause("oom", at)
        if "nvrm: xid (" in text:
            number = text.partition("): ")[2].partition(",")[0].strip()
            return Cause("cuda_error" if number in ("13", "31", "43", "45") else "gpu_fault", at)
    return None


def _of_signal(number: int, lower: Sequence[str], oom_lately: bool = False) -> Cause:
    if number == 9:
        return Cause("oom" if oom_lately else "child_killed", _last_with(lower, SIGNAL_TEXTS[9], 30))
    if number == 7 and (at := _last_with(lower, ("shared memory", "shm"), 30)) >= 0:
        return Cause("shared_memory", at)
    if number == 6:
        for word, texts in TEXTS:
            at = _last_with(lower, texts, 120)
            if at >= 0 and word != "connection_failed":
                return Cause(word, at)
        what = ("what(): ", "assertion", "terminate called", "double free", "corrupt", "free(): ", "malloc(): ",
                "fatal python error", "panicked at", "check failed", "smashing detected")  # fmt: skip
        return Cause("aborted", _last_with(lower, what, 120))
    return Cause(SIGNALS[number], _last_with(lower, SIGNAL_TEXTS[number], 60))


def _interrupted(lines: Sequence[str]) -> Cause | None:
    for at in range(len(lines) - 1, max(-1, len(lines) - 6), -1):
        if lines[at].strip().endswith("KeyboardInterrupt"):
            return Cause("interrupted", at)
    return None


def _last_with(lower: Sequence[str], texts: Iterable[str], most: int) -> int:
    """The index of the last line that has one of these, among the last `most`; -1: none."""
    for at in range(len(lower) - 1, max(-1, len(lower) - most - 1), -1):
        if any(text in lower[at] for text in texts):
            return at
    return -1


def word_in(text: str) -> str:
    """The cause that an error text proves by itself; "" if none. `text` in lower case."""
    for word, texts in TEXTS:
        if any(one in text for one in texts):
            return "out_of_memory" if word == "gpu_oom" and "allocator cpu" in text else word
    return ""


def _bare(text: str) -> str:
    """A line without the prefix of a launcher: "[rank0]: ", "(pid=7) ", "0: ", "trainer-1 | "."""
    for _ in range(3):
        text = text.strip()
        if text[:1] in ("[", "(") and (end := text.find("]:" if text[0] == "[" else ") ")) > 0 and end < 60:
            text = text[end + 2 :]
        elif text.partition(":")[0].isdigit():
            text = text.partition(":")[2]
        elif " | " in text[:40] and " " not in text[:40].partition(" | ")[0].strip():
            text = text.partition(" | ")[2]
        else:
            break
    return text.strip()


def _is_progress(text: str) -> bool:
    return "%|" in text or "it/s" in text or "s/it" in text


def _not_its_own(text: str) -> bool:
    """Whether a line (in lower case) follows the end of a program, or says nothing."""
    text = text.strip()
    bare = _bare(text)
    if not bare.strip("=-_*#+^~.│╭╰─ |") or text.startswith(AFTERWARDS) or bare.startswith(AFTERWARDS):
        return True
    glog = bare.lstrip("[")
    if glog[:1] in ("w", "e", "i") and glog[1:4].isdigit():  # as torch.distributed prints it
        return True
    return (
        _is_progress(bare)
        or "[launch.py:" in bare
        or "distributed.elastic" in bare
        or " exited with code " in bare
        or ("warning:" in bare and ".py:" in bare)
    )


def _went_on(text: str) -> bool:
    if any(one in text for one in WENT_ON):
        return True
    return any(one in text for one in USUAL) and not any(one in text for one in ENDING)


def _said_after(lower: Sequence[str], begin: int, end: int) -> list[str] | None:
    """The program's own lines in this range; None if they show that the program continued."""
    found = []
    for text in lower[begin:end]:
        if _not_its_own(text):
            continue
        if _went_on(text):
            return None
        found.append(text)
    return found


# ------------------------------------------------------------------------------------------------ tracebacks


class Traceback:
    """`begin`, `at`: the indices of its header and of its exception. `beside`: it was not the program's own end."""

    def __init__(self, begin: int, at: int, text: str, where: str, beside: bool) -> None:
        self.begin, self.at, self.text, self.where, self.beside = begin, at, text, where, beside
        head, _, self.message = text.partition(":")
        self.name = head.partition("(")[0].rpartition(".")[2].strip()


def exception_head(text: str) -> bool:
    """'torch.OutOfMemoryError: CUDA …', 'KeyboardInterrupt', 'RayTaskError(ValueError): …'"""
    if not text or text[0].isspace():
        return False
    head = text.partition(":")[0].strip()
    if head.endswith(")"):
        head = head.partition("(")[0]
    parts = head.split(".")
    return all(part.isidentifier() for part in parts) and parts[-1].lstrip("_")[:1].isalpha() and head != "Traceback"


def tracebacks(lines: Sequence[str], lower: Sequence[str]) -> list[Traceback]:
    """The tracebacks that end with an exception, newest first; a bounded number."""
    found: list[Traceback] = []
    for begin in range(len(lines) - 1, -1, -1):
        at = lines[begin].find(HEADER)
        syntax = at < 0 and lines[begin].startswith('  File "') and _is_syntax_error(lines, begin)
        if at < 0 and not syntax:
            continue
        before = lower[begin][: max(at, 0)] + next(
            (one for one in reversed(lower[max(0, begin - 3) : begin]) if one.strip()), ""
        )
        if "exception ignored" in before or "logging error" in before:
            continue
        one = _read(lines, begin, at, syntax)
        if one is not None:
            one.beside = (
                "exception in thread" in before
                or "never retrieved" in before
                or (before.startswith("process ") and before.endswith(":"))
            )
            found.append(one)
        if len(found) >= 8:
            break
    return found


def _is_syntax_error(lines: Sequence[str], begin: int) -> bool:
    """Whether this is `File …` without a traceback header: Python's message for a syntax error in the script itself."""
    if begin and (lines[begin - 1].startswith("    ") or HEADER in lines[begin - 1]):
        return False
    return any(
        one.startswith(("SyntaxError:", "IndentationError:", "TabError:")) for one in lines[begin + 1 : begin + 6]
    )


def _read(lines: Sequence[str], begin: int, at: int, syntax: bool) -> Traceback | None:
    """Parse one traceback. Its lines may share a prefix: the same text, or one of the same length such as a
    timestamp."""
    prefix, cut = lines[begin][:at] if at > 0 else "", 0
    if prefix.endswith("Exception Group "):
        prefix = prefix.partition("+")[0] + "| "
        at = len(prefix)
    following = lines[begin + 1 : begin + 12]
    if prefix and not any(one.startswith(prefix) and one[at:].startswith("  File ") for one in following):
        cut = next((one.find('  File "') for one in following if '  File "' in one), 0)
        cut, prefix = (cut if cut == at else 0), ""
    where, frames = "", int(syntax)
    if syntax:
        where = _place(lines[begin])
    for index in range(begin + 1, len(lines)):
        text = lines[index]
        if prefix:
            if not text.startswith(prefix) and not _same_form(prefix, text):
                continue
            text = text[len(prefix) :]
        elif cut:
            text = text[cut:]
        bare = text.lstrip("│ ┃")
        if text.lstrip().startswith('File "'):
            where, frames = _place(text), frames + 1
        elif text.startswith(BOX):
            frames += 1
            if ".py:" in bare and " in " in bare:
                where = bare.partition(" in ")[0].strip()
        elif text.startswith(" ") or not text.strip():
            continue
        elif frames and exception_head(text):
            return Traceback(begin, index, text.strip(), where, False)
        else:
            return None
    return None


def _same_form(prefix: str, text: str) -> bool:
    """Whether `text` begins with another timestamp of the same form."""
    if sum(one.isdigit() for one in prefix) < 8 or len(text) < len(prefix):
        return False
    return all(one == two or (one.isdigit() and two.isdigit()) for one, two in zip(prefix, text))


def _place(text: str) -> str:
    """'  File "/srv/train.py", line 12, in main' -> '/srv/train.py:12'"""
    path, _, rest = text.partition('File "')[2].partition('"')
    number = rest.partition("line ")[2].partition(",")[0].strip()
    return f"{path}:{number}" if number.isdigit() else ""


def _word_of(one: Traceback, lower: Sequence[str], end: int) -> str:
    """The cause that its exception names; `end`: behind the last line that may be part of its message."""
    text = one.text.lower()
    if one.name in ("ImportError", "OSError", "RuntimeError") and any(each in text for each in MISSING_LIBRARY):
        return "missing_library"
    known = EXCEPTIONS.get(one.name, "")
    if known in ("import_error", "syntax_error"):
        return known
    if text.startswith("ray.exceptions.outofmemoryerror"):
        return "out_of_memory"  # the node's, not a GPU's
    word = word_in(text)
    if one.name == "ResourceExhaustedError":
        about = lower[one.at : min(end, one.at + 7)]
        return "out_of_memory" if any("allocator cpu" in each for each in about) else "gpu_oom"
    if word == "collective_error" and any("out of memory" in each for each in lower[one.at + 1 : min(end, one.at + 5)]):
        return "gpu_oom"
    return word or known


def _of_traceback(lines: Sequence[str], lower: Sequence[str], code: int, oom_lately: bool) -> Cause | None:
    found = tracebacks(lines, lower)
    if not found:
        return None
    last, end = found[0], len(lines)
    word = _word_of(last, lower, end)
    if _is_launchers(last):
        return _of_child(found, lines, lower, code, oom_lately)
    if word in ("collective_error", "connection_failed"):
        for one in found[1:]:  # another rank failed first
            first = _word_of(one, lower, last.begin)
            if first and first not in (*STRICT, "collective_error", "connection_failed", "collective_timeout"):
                return Cause(first, one.at, one.where)
    if not word and len(found) > 1 and any(CHAINED in one for one in lower[found[1].at : last.begin]):
        first = _word_of(found[1], lower, last.begin)
        if first and first not in STRICT:
            last, word = found[1], first
            end = found[0].at
    return _judged(last, word, lower, found[0].at, code)


def _judged(one: Traceback, word: str, lower: Sequence[str], at: int, code: int, end: int = -1) -> Cause | None:
    """The cause, if the program ended by it: nothing of what follows `at` says that it went on."""
    end = len(lower) if end < 0 else end
    if word in STRICT:
        made = code == 2 and any(text.startswith(("make: ***", "make[")) for text in lower[-3:])
        if not (code == 1 or made) or one.beside or (one.message.strip() and _said_after(lower, at + 1, end) != []):
            return None
        behind = lower[at + 1 : end]
        if len(behind) > 40 or any(_is_progress(text) or any(each in text for each in USUAL) for text in behind):
            return None
        return Cause(word, one.at, one.where)
    begin = at + 1
    while begin < min(end, at + 6) and lower[begin].strip():  # the rest of its message
        if not word.startswith("collective") and any(each in lower[begin] for each in WENT_ON):
            break
        begin += 1
    said = _said_after(lower, begin, end)
    if said is None or len([text for text in said if not any(each in text for each in ENDING)]) > (8 if word else 4):
        return None
    return Cause(word or "python_exception", one.at, one.where)


def _is_launchers(one: Traceback) -> bool:
    return one.name in LAUNCHERS or any(each in one.text.lower() for each in OF_ANOTHER)


def _of_child(
    found: Sequence[Traceback], lines: Sequence[str], lower: Sequence[str], code: int, oom_lately: bool
) -> Cause | None:
    """Of a launcher that says only that its child failed: what the child printed above, or how it ended."""
    last = found[0]
    shown = lower[: last.at + 1]
    number = _signal_named(last.text.lower())
    if number in SIGNALS:
        return _of_signal(number, shown, oom_lately)
    for one in found[1:]:
        if not _is_launchers(one) and one.name != "Empty":
            cause = _judged(one, _word_of(one, lower, last.begin), lower, one.at, code, last.begin)
            if cause is not None:
                return cause if _said_after(lower, last.at + 1, len(lower)) is not None else None
            break
    for text in (*lower[max(0, last.begin - 8) : last.begin], *lower[last.at :]):
        number = number or _signal_named(text)
    if number in SIGNALS:
        cause = _of_signal(number, lower, oom_lately)
        return cause if cause.at >= 0 else Cause(cause.word, last.at, last.where)
    if last.name == "ChildFailedError":
        return None
    said = _said_after(lower, last.at + 1, len(lower))
    return None if said is None or len(said) > 4 else Cause("python_exception", last.at, last.where)


def _signal_named(text: str) -> int:
    """The number in 'Signal 9 (SIGKILL) received by PID', 'exitcode: -11', 'died with <Signals.SIGKILL: 9>', 'killed by
    signal: Killed'; 0: none."""
    for before, after in (("signal ", " (sig"), ("exitcode: -", ")"), ("exitcode  : -", " "), ("<signals.", ">")):
        if before in text:
            digits = text.partition(before)[2].partition(after)[0].rpartition(" ")[2]
            if digits.isdigit():
                return int(digits)
    for number, words in SIGNAL_TEXTS.items():
        if f"killed by signal: {words[0]}" in text or f"terminated with signal {words[-1]}" in text:
            return number
    return 0


# ------------------------------------------------------------------------------------------------ other last lines


def _of_last_lines(lines: Sequence[str], lower: Sequence[str], code: int) -> Cause | None:
    whole = [index for index in range(max(0, len(lines) - 60), len(lines)) if lower[index].strip()]
    special = _of_runtimes(lines, lower, whole, code)
    if special is not None:
        return special
    own = [index for index in whole if not _not_its_own(lower[index])]
    for back, at in enumerate(reversed(own[-6:])):
        text = _bare(lower[at])
        word = "" if back else _strict_word(text, lower, own, code)
        if word:
            return Cause(word, at)
        if _went_on(text):
            if back and "retry" in text:
                continue  # it gave up later
            return None
        if any(each in text for each in ("warn", "info", "debug")) and "error" not in text:
            continue
        word = word_in(text)
        if word == "out_of_memory":  # of the GPU, where a line just above says so
            of_gpu = next((index for index in own[-8:] if word_in(lower[index]) == "gpu_oom"), -1)
            if of_gpu >= 0:
                return Cause("gpu_oom", of_gpu)
        if word:
            return Cause(word, at)
    return None


def _strict_word(text: str, lower: Sequence[str], own: Sequence[int], code: int) -> str:
    """Of the very last line; in lower case, without what a launcher put before it."""
    if code in (1, 127) and (
        "error while loading shared libraries:" in text
        or "symbol lookup error:" in text
        or "' not found (required by" in text
    ):
        return "missing_library"
    if code == 127 and (text.endswith(("not found", "no such file or directory")) or ": not found" in text):
        return "command_not_found"
    if code == 126:
        if "permission denied" in text:
            return "permission_denied"
        return "not_executable" if "exec format error" in text or "cannot execute" in text else ""
    if code == 2 and ("can't open file" in text or "cannot open" in text) and "no such file" in text:
        return "file_not_found"
    if code == 1 and "python" in text.partition(": ")[0] and ": no module named " in text:
        return "import_error"
    if code == 255 and ": permission denied (" in text:
        return "permission_denied"
    if text.endswith(": permission denied") and code in (1, 2) and len(own) == 1:
        return "permission_denied"
    near = [_bare(lower[index]) for index in own[-12:]]
    asked = ("error: ", "no such option", "unrecognized", "missing option", "missing argument", "invalid value", "╰")
    if code == 2 and any(one.startswith("usage: ") for one in near) and any(one in text for one in asked):
        return "usage_error"
    hint = text.startswith("try '") and "--help' for more information" in text
    if hint and code in (1, 2, 125) and any("unrecognized option" in one or "invalid option" in one for one in near):
        return "usage_error"
    return ""


def _of_runtimes(lines: Sequence[str], lower: Sequence[str], whole: Sequence[int], code: int) -> Cause | None:
    """The last words of other languages' runtimes: Go, Rust, Java, Node."""
    for at in reversed(whole):
        text = lower[at]
        if (
            code == 2
            and text.startswith(("panic: ", "fatal error: "))
            and any(lower[index].startswith("goroutine ") for index in whole if index > at)
        ):
            return Cause(word_in(text) or "panic", at)
        if code == 101 and "thread '" in text and " panicked at" in text:
            message = at + 1 if at + 1 < len(lines) and not lower[at + 1].startswith(("note:", "stack")) else at
            return Cause(word_in(lower[message]) or "panic", at)
        if code == 1 and "cannot load such file -- " in text and "(loaderror)" in text:
            frames = all(lower[index].strip().startswith(("from ", "...")) for index in whole if index > at)
            return Cause("import_error", at) if frames else None
        if code == 2 and text.startswith("can't locate ") and "@inc" in text:
            return Cause("import_error", at) if "compilation aborted" in lower[whole[-1]] else None
        if code == 1 and lower[whole[-1]].startswith("execution halted") and text.startswith(("error in ", "error: ")):
            missing = any("there is no package called" in lower[index] for index in whole if index >= at)
            return Cause("import_error" if missing else word_in(text) or "exception", at)
        if code == 1 and text.startswith('exception in thread "main" '):
            return Cause(word_in(text) or "exception", at)
        if code == 1 and "error: could not find or load main class" in text:
            of_class = at + 1 < len(lower) and lower[at + 1].startswith("caused by: ") and at + 2 >= len(lower) - 1
            return Cause("import_error", at) if of_class else None
    if code == 1 and whole and lower[whole[-1]].startswith("node.js v"):
        for at in whole:
            head = lines[at].partition(":")[0]
            if lines[at][:1].isalpha() and head.endswith("Error") and head.isidentifier():
                if "cannot find module '" in lower[at] or "cannot find package '" in lower[at]:
                    return Cause("import_error", at)
                if head == "SyntaxError":
                    return Cause("syntax_error", at)
                return Cause(word_in(lower[at]) or "exception", at)
    return None


# ------------------------------------------------------------------------------------------------ the users' own


def own_cause(lines: Sequence[str], own: Mapping[str, str]) -> Cause | None:
    """The first of `own` that is found in the last lines, the newest line first. Matched in a child, for an expression
    can run away: it is killed after OWN_TIME_S, and then none was found."""
    import select
    import signal
    import time

    first = max(0, len(lines) - OWN_LINES)
    until = time.monotonic() + OWN_TIME_S
    read, write = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        return None
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(2)  # whatever becomes of the runner
            os.write(write, _match(lines, first, own))
        finally:
            os._exit(0)
    os.close(write)
    said = b""
    if select.select([read], [], [], max(0.0, until - time.monotonic()))[0]:
        said = os.read(read, 4096)
    os.close(read)
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except OSError:
        pass
    at, _, word = said.decode("ascii", "replace").partition(" ")
    return Cause(word, int(at)) if at.isdigit() and word in own else None


def _match(lines: Sequence[str], first: int, own: Mapping[str, str]) -> bytes:
    import re

    compiled = []
    for word, expression in own.items():
        try:
            compiled.append((word, re.compile(expression).search))
        except (re.error, ValueError, RecursionError, OverflowError):
            continue  # what this host's Python does not take finds nothing
    for at in range(len(lines) - 1, first - 1, -1):
        for word, search in compiled:
            if search(lines[at]):
                return f"{at} {word}".encode("ascii")
    return b""
