"""Checks worker commands for errors that are independent of the host, while the inventory is read.

Without `shell: true` a command is split into words and executed; shell syntax is then an ordinary argument. Quoted
words are literal, and a list is used unchanged. Pure.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from procguard.deploy.inventory import container_words
from remote_agent.protocol.messages import WorkerSpec

_OPERATOR = re.compile(r"(&&|\|\|?|;|&|\d?>>?(&\d)?|<<?<?|&>>?|\|&)$|\d?>>?[^>=\s]\S*$|\d>&\d$|&>\S+$")
_ENDS_WITH_SEMICOLON = re.compile(r"[^\\];$")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_TILDE = re.compile(r"~(/|$)|~[a-z_][a-z0-9_-]*/|[\w-]+=~/")
_VARIABLE = re.compile(r"(?<!\\)\$(\{|\(|[A-Za-z_])|`")


def mistakes(spec: WorkerSpec) -> list[str]:
    """ "command: && means something to a shell only; …" """
    found = list(_in_command(spec))
    lines: list[tuple[str, str]] = [("setup", "\n".join(spec.setup))]
    lines += [("pre_start", one.command) for one in spec.pre_start if isinstance(one.command, str)]
    lines += [("post_stop", one.command) for one in spec.post_stop if isinstance(one.command, str)]
    lines += [("health.command", one.command) for one in spec.health if one.type == "exec"]
    for key, text in lines:
        if quote := open_quote(text):
            found.append(_unbalanced(key, quote, text))
    return found


def engine_started(spec: WorkerSpec) -> str:
    """A note for commands such as `docker run`, whose processes do not belong to the worker; "" for others."""
    try:
        words = list(spec.command) if isinstance(spec.command, list) else shlex.split(spec.command, comments=True)
    except ValueError:
        return ""
    while words and (_ASSIGNMENT.match(words[0]) or words[0] in ("sudo", "exec", "env", "nohup")):
        words.pop(0)
    engine = words[0].rpartition("/")[2] if words else ""
    start = next((at for at, word in enumerate(words[1:5], 1) if word in ("run", "start")), 0)
    if engine not in ("docker", "podman") or not start:
        return ""
    instead = container_words.declared_by(engine, words[start + 1 :] if words[start] == "run" else ())
    return (
        f"its command starts a container by {engine}, whose processes ProcGuard does not own: a second copy can "
        f"start beside it; write instead: {instead}"
    )


def _in_command(spec: WorkerSpec) -> Iterator[str]:
    command = spec.command
    if isinstance(command, list):
        if command and command[0].startswith("~/"):  # other words with ~ may be expanded by the program itself
            yield f"command: {command[0]} is not expanded in a list: write the whole path"
        return
    if quote := open_quote(command, comments=spec.shell):
        yield _unbalanced("command", quote, command)
        return
    if spec.shell:
        return
    try:
        words = shlex.split(command, posix=False)  # keeps the quotes, because quoted words are literal
    except ValueError:
        return  # a quote within a word, which only the host's own splitting can interpret
    for number, word in enumerate(words):
        bare = re.sub(r"'[^']*'|\"(\\.|[^\"\\])*\"", "", word)
        if _OPERATOR.match(word) or _ENDS_WITH_SEMICOLON.search(word):
            yield f"command: {word} means something to a shell only; set shell: true, or quote it"
        elif _TILDE.match(word):
            yield f"command: {word}: ~ is expanded by a shell only; write the whole path, or set shell: true"
        elif _VARIABLE.search(bare):
            yield f"command: {word}: variables are expanded by a shell only; set shell: true, or quote it: '{word}'"
        elif number == 0 and _ASSIGNMENT.match(word):
            yield f"command: {word} before a program means something to a shell only; write it below env:"
        else:
            continue
        return  # one message is enough, because the others have the same cause


def _unbalanced(key: str, quote: str, text: str) -> str:
    return f"{key}: a {quote} is opened and never closed: {text[:80]}"


def open_quote(text: str, comments: bool = True) -> str:
    """The quote that is still open at the end of a line of shell, or "". `comments`: whether # begins a comment.

    Not valid for a text with a here-document, whose content is not shell syntax.
    """
    if comments and "<<" in text:
        return ""
    quote, position = "", 0
    while position < len(text):
        letter = text[position]
        if letter == "\\" and quote != "'":
            position += 1
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif comments and letter == "#" and (not position or text[position - 1].isspace()):
            position = text.find("\n", position)
            if position < 0:
                return ""
        position += 1
    return quote
