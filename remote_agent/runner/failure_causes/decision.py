"""Decides the cause from the last lines of a program and its exit facts, without I/O.

Because restart.never_on depends on the cause, no cause is better than a wrong one:

- a Python exception counts only with its traceback, and only if no later line shows that the program continued;
- any other line counts only in the form in which a failing program prints it, among the last lines, and with a matching
  exit;
- for a cause of STRICT, which would fail the same way again, no other line of the program may follow.
"""

from __future__ import annotations

from remote_agent.runner.failure_causes.line import (
    is_progress,
    last_with,
    may_pass,
    not_its_own,
    said_after,
    went_on,
    without_prefix,
    word_in,
)
from remote_agent.runner.failure_causes.patterns import (
    CHAINED,
    ENDING,
    ERRNO_TEXTS,
    EXCEPTIONS,
    HANDLING,
    HEADER,
    LAUNCHERS,
    MISSING_LIBRARY,
    OF_ANOTHER,
    SIGNAL_TEXTS,
    SIGNALS,
    STRICT,
    TEXTS,
    USUAL,
    WENT_ON,
)
from remote_agent.runner.failure_causes.tracebacks import Traceback, tracebacks

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Sequence


class Cause:
    """`at`: the index of the line that proves it; -1: the exit proves it. `where`: the file and line of an
    exception."""

    def __init__(self, word: str, at: int = -1, where: str = "") -> None:
        self.word, self.at, self.where = word, at, where


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
    if number in SIGNALS and (number != 9 or last_with(lower, SIGNAL_TEXTS[9], 3) >= 0):
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
        return Cause("oom" if oom_lately else "child_killed", last_with(lower, SIGNAL_TEXTS[9], 30))
    if number == 6 and last_with(lower, ("detected by the java runtime environment",), 30) >= 0:
        at = last_with(lower, ("#  sigsegv (",), 30)
        if at >= 0:
            return Cause("segmentation_fault", at)
    if number == 7 and (at := last_with(lower, ("shared memory", "shm"), 30)) >= 0:
        return Cause("shared_memory", at)
    if number == 6:
        for word, texts in TEXTS:
            at = last_with(lower, texts, 120)
            if at >= 0 and word != "connection_failed":
                return Cause(word, at)
        what = ("what(): ", "assertion", "terminate called", "double free", "corrupt", "free(): ", "malloc(): ",
                "fatal python error", "panicked at", "check failed", "smashing detected")  # fmt: skip
        return Cause("aborted", last_with(lower, what, 120))
    return Cause(SIGNALS[number], last_with(lower, SIGNAL_TEXTS[number], 60))


def _interrupted(lines: Sequence[str]) -> Cause | None:
    for at in range(len(lines) - 1, max(-1, len(lines) - 6), -1):
        if lines[at].strip().endswith("KeyboardInterrupt"):
            return Cause("interrupted", at)
    return None


def _word_of(one: Traceback, lower: Sequence[str], end: int) -> str:
    """The cause named by the traceback's exception. `end`: the index after the last line that may be part of its
    message."""
    text = one.text.lower()
    if may_pass(text):
        return word_in(text)
    if one.name in ("ImportError", "OSError", "RuntimeError") and any(each in text for each in MISSING_LIBRARY):
        return "missing_library"
    known = EXCEPTIONS.get(one.name, "")
    if known == "syntax_error" and one.where.startswith("<") and HEADER.lower() in lower[one.begin]:
        return ""  # of a text that the program parsed, for example by ast.literal_eval, not of its source
    if known in ("import_error", "syntax_error"):
        return known
    if text.startswith("ray.exceptions.outofmemoryerror"):
        return "out_of_memory"  # memory of the node, not of a GPU
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
    last = found[0]
    word = _word_of(last, lower, len(lines))
    if _is_launchers(last):
        return _of_child(found, lower, code, oom_lately)
    if word in ("collective_error", "connection_failed"):
        for one in found[1:]:  # another rank failed first
            first = _word_of(one, lower, last.begin)
            if first and first not in (*STRICT, "collective_error", "connection_failed", "collective_timeout"):
                return Cause(first, one.at, one.where)
    return _of_chain(found, word, lower, code)


def _of_chain(found: Sequence[Traceback], word: str, lower: Sequence[str], code: int, end: int = -1) -> Cause | None:
    """The cause of the newest exception of `found`, which is `word`, or of an earlier exception that led to it: an
    error that may pass is never a cause of STRICT, even if the exception raised because of it would be."""
    last = found[0]
    if word in STRICT:
        for one in _chained(found, lower, (CHAINED, HANDLING)):
            first = _word_of(one, lower, last.begin)
            if first not in STRICT and (first or may_pass(one.text.lower())):
                return _judged(one, first, lower, last.at, code, end)
    elif not word:
        for one in _chained(found[:2], lower, (CHAINED,)):
            first = _word_of(one, lower, last.begin)
            if first and first not in STRICT:
                return _judged(one, first, lower, last.at, code, end)
    return _judged(last, word, lower, last.at, code, end)


def _chained(found: Sequence[Traceback], lower: Sequence[str], links: Sequence[str]) -> list[Traceback]:
    """The exceptions of `found` (newest first) that Python names as what led to the newest one."""
    chain: list[Traceback] = []
    for later, one in zip(found, found[1:]):
        if not any(link in text for text in lower[one.at : later.begin] for link in links):
            break
        chain.append(one)
    return chain


def _judged(one: Traceback, word: str, lower: Sequence[str], at: int, code: int, end: int = -1) -> Cause | None:
    """The cause, if the program ended because of it: no line after `at` shows that the program continued."""
    end = len(lower) if end < 0 else end
    if word in STRICT:
        made = code == 2 and any(text.startswith(("make: ***", "make[")) for text in lower[-3:])
        if not (code == 1 or made) or one.beside or (one.message.strip() and said_after(lower, at + 1, end) != []):
            return None
        behind = lower[at + 1 : end]
        if len(behind) > 40 or any(is_progress(text) or any(each in text for each in USUAL) for text in behind):
            return None
        return Cause(word, one.at, one.where)
    begin = at + 1
    while begin < min(end, at + 6) and lower[begin].strip():  # the rest of its message
        if not word.startswith("collective") and any(each in lower[begin] for each in WENT_ON):
            break
        begin += 1
    said = said_after(lower, begin, end)
    if said is None or len([text for text in said if not any(each in text for each in ENDING)]) > (8 if word else 4):
        return None
    return Cause(word or "python_exception", one.at, one.where)


def _is_launchers(one: Traceback) -> bool:
    return one.name in LAUNCHERS or any(each in one.text.lower() for each in OF_ANOTHER)


def _of_child(found: Sequence[Traceback], lower: Sequence[str], code: int, oom_lately: bool) -> Cause | None:
    """The cause if a launcher reports only that its child failed: from the child's output above, or from how it
    ended."""
    last = found[0]
    shown = lower[: last.at + 1]
    number = _signal_named(last.text.lower())
    if number in SIGNALS:
        return _of_signal(number, shown, oom_lately)
    for index, one in enumerate(found[1:], 1):
        if not _is_launchers(one) and one.name != "Empty":
            cause = _of_chain(found[index:], _word_of(one, lower, last.begin), lower, code, last.begin)
            if cause is not None:
                return cause if said_after(lower, last.at + 1, len(lower)) is not None else None
            break
    for text in (*lower[max(0, last.begin - 8) : last.begin], *lower[last.at :]):
        number = number or _signal_named(text)
    if number in SIGNALS:
        cause = _of_signal(number, lower, oom_lately)
        return cause if cause.at >= 0 else Cause(cause.word, last.at, last.where)
    if last.name == "ChildFailedError":
        return None
    said = said_after(lower, last.at + 1, len(lower))
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


def _of_last_lines(lines: Sequence[str], lower: Sequence[str], code: int) -> Cause | None:
    whole = [index for index in range(max(0, len(lines) - 60), len(lines)) if lower[index].strip()]
    special = _of_runtimes(lines, lower, whole, code)
    if special is not None:
        return special
    own = [index for index in whole if not not_its_own(lower[index])]
    gave_up = bool(own) and any(each in lower[own[-1]] for each in ("abort", "exiting", "giving up", "fatal"))
    for back, at in enumerate(reversed(own[-6:])):
        text = without_prefix(lower[at])
        word = "" if back else _strict_word(text, lower, own, code)
        if word:
            return Cause(word, at)
        if not back and text.endswith(ERRNO_TEXTS):  # regardless of the file's name
            return Cause(word_in(text), at)
        of_end = gave_up and text.endswith(ERRNO_TEXTS)
        if went_on(text) and not of_end:
            if back and "retry" in text:
                continue  # it has retried and given up later
            return None
        if any(each in text for each in ("warn", "info", "debug")) and "error" not in text and not of_end:
            continue
        word = word_in(text)
        if word == "out_of_memory":  # of the GPU, if a line just above says so
            of_gpu = next((index for index in own[-8:] if word_in(lower[index]) == "gpu_oom"), -1)
            if of_gpu >= 0:
                return Cause("gpu_oom", of_gpu)
        if word:
            return Cause(word, at)
    return None


def _strict_word(text: str, lower: Sequence[str], own: Sequence[int], code: int) -> str:
    """The cause named by the last line. `text`: that line in lower case, without a launcher's prefix."""
    if may_pass(text):
        return ""
    if code in (1, 127) and (
        "error while loading shared libraries:" in text
        or "symbol lookup error:" in text
        or "' not found (required by" in text
    ):
        return "missing_library"
    if code == 127 and (
        text.endswith(("not found", "no such file or directory"))
        or ": not found" in text
        or "executable file not found in $path" in text
    ):
        return "command_not_found"
    if code == 126 and ": bad interpreter: " in text and text.endswith("no such file or directory"):
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
    near = [without_prefix(lower[index]) for index in own[-12:]]
    asked = ("error: ", "no such option", "unrecognized", "missing option", "missing argument", "invalid value", "╰")
    if code == 2 and any(one.startswith("usage: ") for one in near) and any(one in text for one in asked):
        return "usage_error"
    hint = text.startswith("try '") and "--help' for more information" in text
    if hint and code in (1, 2, 125) and any("unrecognized option" in one or "invalid option" in one for one in near):
        return "usage_error"
    return ""


def _of_runtimes(lines: Sequence[str], lower: Sequence[str], whole: Sequence[int], code: int) -> Cause | None:
    """The cause in the final output of other languages' runtimes: Go, Rust, Java, Node."""
    for at in reversed(whole):
        text = lower[at]
        if (
            (code == 2 or lower[whole[-1]].strip() == "exit status 2")  # the latter by `go run`, whose code is 1
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
