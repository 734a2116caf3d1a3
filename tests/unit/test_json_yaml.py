"""JSON and YAML documents on each parser: accepted or refused with a message, each within 0.1 s of
processor time, and never answered by a 5xx (scenario 29).

The cases are in the manner of JSONTestSuite (y_: must be taken, n_: must be refused, i_: either) and of the YAML test
suite, by what they are about; the documents are our own.
"""

# ruff: noqa: E501 -- a case is a line
from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from procguard.agent_api import decode, http_io
from procguard.agent_api.zmq import channel
from procguard.config import schema as config
from procguard.deploy.inventory import model, positions
from procguard.deploy.inventory.vault import Vault
from procguard.errors import ProcGuardError
from procguard.fleet.store import exchange
from remote_agent.protocol import messages
from remote_agent.runner import control
from tests.chaos import ChaosReport
from tests.rows import each
from tests.server_process import RunningServer

MAX_CPU_S = 0.1

TAKEN = {
    "array": b"[1, 2]", "empty array": b"[]", "nested arrays": b"[[[]]]", "heterogeneous": b'[null, 1, "1", {}, true]',
    "spaces": b" [ 1 ] ", "newlines and tabs": b"\r\n[\t1\n]\r\n", "empty object": b"{}", "empty key": b'{"": 0}',
    "long keys": b'{"%s": 1}' % (b"x" * 500), "escaped NUL in a key": b'{"a\\u0000b": 1}', "key twice": b'{"a": 1, "a": 2}',
    "object with newlines": b'{\n"a": "b"\n}', "minus zero": b"[-0]", "exponents": b"[1e1, 1E1, 1e+1, 1e-1, 0e1]",
    "a small number": b"[1e-308]", "a negative fraction": b"[-1.5]", "a large whole number": b"[9007199254740993]",
    "escapes": b'["\\"\\\\\\/\\b\\f\\n\\r\\t"]', "escaped letters": b'["\\u0061\\u30af\\u30EA"]',
    "a pair of surrogates": b'["\\uD834\\uDd1e"]', "UTF-8": '["€𝄞é"]'.encode(), "U+2028": '["\u2028"]'.encode(),
    "noncharacters": '["\uffff"]'.encode(), "DEL": b'["\x7f"]', "text alone": b'"x"', "a number alone": b"42",
    "true alone": b"true", "null alone": b"null", "a string that looks like a comment": b'["// no /* */"]',
    "spaces behind": b"[1] \n", "nul escaped": b'["\\u0000"]', "a reverse solidus": b'["\\\\u0041"]',
}  # fmt: skip
REFUSED = {
    "nothing": b"", "blanks": b"  \n", "a comma too many": b"[1,]", "a comma before": b"[,1]", "two commas": b"[1,,2]", "a comma alone": b"[,]",
    "no comma": b'["a" "b"]', "a colon for a comma": b'["":1]', "unclosed array": b"[1", "unclosed object": b'{"a": 1', "unclosed text": b'["a',
    "closed twice": b"[1]]", "closed by the other": b"[1}", "a star": b"[*]", "an object's comma too many": b'{"a": 1,}',
    "two commas in an object": b'{"a": 1,,"b": 2}', "no colon": b'{"a" 1}', "two colons": b'{"a":: 1}', "no value": b'{"a":}', "no key": b"{:1}",
    "a key without quotes": b"{a: 1}", "single quotes": b"{'a': 1}", "a number for a key": b"{1: 1}", "a comment": b"[1] // x",
    "a comment within": b"[/* x */ 1]", "a hash comment": b"[1] # x", "text behind": b"[1] x", "two values": b"[1] [2]",
    "plus": b"[+1]", "a zero before": b"[012]", "minus alone": b"[-]", "a dot alone": b"[.5]", "a dot behind": b"[1.]", "an exponent without digits": b"[1e]",
    "two exponents": b"[1e1e1]", "hexadecimal": b"[0x1]", "an underscore": b"[1_000]", "a space in a number": b"[1 000]", "full-width digits": "[１]".encode(),
    "NaN": b"[NaN]", "Infinity": b"[Infinity]", "minus infinity": b"[-Infinity]", "inf": b"[inf]", "True": b"[True]", "nul": b"[nul]", "TRUE": b"[TRUE]",
    "a control character in text": b'["a\x01"]', "a newline in text": b'["a\nb"]', "a tab in text": b'["\t"]', "NUL in text": b'["a\0"]',
    "an unknown escape": b'["\\x41"]', "an escape cut short": b'["\\u00A"]', "an escaped quote at the end": b'["\\"]', "an escape of nothing": b'["\\',
    "an emoji escaped": '["\\🌀"]'.encode(), "invalid UTF-8": b'["\xff"]', "UTF-8 cut short": b'["\xe2\x82"]', "overlong UTF-8": b'["\xc0\xaf"]',
    "a surrogate in UTF-8": b'["\xed\xa0\x80"]', "UTF-16": '["é"]'.encode("utf-16"), "Latin-1": b'["\xe9"]', "a byte order mark": b"\xef\xbb\xbf{}", "half of one": b"\xef",
    "a form feed": b"[\x0c1]", "a no-break space": "[\u00a01]".encode(), "U+2060": "[\u2060]".encode(), "NUL between": b"[1\0]", "angle brackets": b"<1>", "a capital hex": b"[0XA]",
    "a thousand brackets": b"[" * 1000, "100,000 brackets": b"[" * 100_000, "100,000 objects": b'{"a":' * 100_000, "open and close": b"[[[" + b"]]]]",
    "a slash": b"[/]", "backslash": b"[\\]", "markup": b"<html>", "YAML": b"a: 1", "JavaScript": b"({})", "undefined": b"[undefined]", "octal": b"[0o17]",
}  # fmt: skip
EITHER = {
    "a number that is out of range": b"[1e9999]", "a number with many digits": b"[" + b"1" * 5000 + b"]", "one with many behind the dot": b"[0." + b"1" * 5000 + b"]",
    "an exponent without end": b"[1e" + b"9" * 5000 + b"]", "a small one": b"[1e-9999]", "half of a surrogate pair": b'["\\uD800"]', "two halves in the wrong order": b'["\\uDC00\\uD800"]',
    "half and text": b'["\\uD800a"]', "500 nested arrays": b"[" * 500 + b"]" * 500, "100,000 nested arrays": b"[" * 100_000 + b"]" * 100_000,
    "a million of nothing": b"[" + b"0," * 300_000 + b"0]", "60,000 objects": b"[" + b"{}," * 59_999 + b"{}]", "one key a thousand times": b"{" + b'"a":1,' * 1000 + b'"a":1}',
    "a long text": b'"' + b"x" * 500_000 + b'"', "escapes without end": b'"' + b"\\u0041" * 80_000 + b'"',
}  # fmt: skip
JSON = {**TAKEN, **REFUSED, **EITHER}

# Documents that the YAML test suite has in other words: what is here is valid, and what PyYAML makes of it is right.
YAML = {
    "plain": "a: b\n", "flow": "{a: [1, 2], b: {c: d}}\n", "block sequence": "a:\n- 1\n- 2\n", "sequence of sequences": "a:\n- - 1\n  - 2\n- [3]\n",
    "comments": "# x\na: 1 # y\n# z\n", "document marks": "---\na: 1\n...\n", "a directive": "%YAML 1.1\n---\na: 1\n", "single quotes": "a: 'it''s'\n", "double quotes": 'a: "\\t\\u0041\\x41\\n"\n',
    "folded": "a: >\n  one\n  two\n\n  three\n", "literal": "a: |\n  one\n    two\n", "stripped": "a: >-\n  x\n", "kept": "a: |+\n  x\n\n", "indentation said": "a: |2\n    x\n",
    "plain over lines": "a: one\n  two\n", "anchors": "a: &x {b: 1}\nc: *x\n", "merge": "a: &x {b: 1}\nc: {<<: *x, d: 2}\n", "tags": "a: !!str 1\nb: !!int '2'\n",
    "null in many words": "a:\nb: ~\nc: null\nd: ''\n", "truth in many words": "a: yes\nb: No\nc: ON\nd: 'on'\n", "numbers": "a: 0x1F\nb: 017\nc: 1_000\nd: 1e3\ne: .5\nf: -.inf\ng: 190:20:30\n",
    "a date": "a: 2026-01-31\nb: 2026-01-31T10:00:00Z\n", "an explicit key": "? a\n: 1\n", "a set": "a: !!set {b, c}\n", "empty flow": "a: []\nb: {}\n", "flow over lines": "a: [\n  1,\n  2,\n]\n",
    "a colon in text": "a: b:c\nd: http://x/y\n", "a hash in text": "a: b#c\n", "dashes": "a: -1\nb: '- x'\n", "Unicode": "ä: 名\n", "CRLF": "a: 1\r\nb: 2\r\n", "no newline at the end": "a: 1", "binary": "a: !!binary aGk=\n",
    "a question mark in text": "a: what?\n", "percent": "a: 50%\n", "at in quotes": "a: '@x'\n", "an alias as a key": "? &k a\n: 1\nb: *k\n", "spaces at the end": "a: 1   \n",
}  # fmt: skip
BAD_YAML = {
    "unclosed flow": "a: [1\n", "unclosed mapping": "a: {b: 1\n", "unclosed quote": 'a: "x\n', "unclosed single quote": "a: 'x\n", "a tab for indentation": "a:\n\tb: 1\n", "wrong indentation": "a:\n  b: 1\n c: 2\n",
    "two values": "a: b: c\n", "an unknown alias": "a: *x\n", "an unknown tag": "a: !foo 1\n", "a tag of Python": "a: !!python/object/apply:os.system [id]\n", "a name of Python": "a: !!python/name:os.system\n",
    "an unknown escape": 'a: "\\q"\n', "an at sign": "a: @x\n", "a backtick": "a: `x`\n", "a directive without a document": "%YAML 1.1\n", "another version": "%YAML 9.9\n---\na: 1\n", "two documents": "a: 1\n---\nb: 2\n",
    "NUL": "a: \0\n", "a control character": "a: \x01\n", "a date that is none": "a: 2026-99-99\n", "an int that is none": "a: !!int x\n", "an empty int": "a: !!int ''\n", "a bool that is none": "a: !!bool x\n",
    "a float that is none": "a: !!float x\n", "a timestamp that is none": "a: !!timestamp x\n", "a mapping for a key": "? {a: 1}\n: 2\n", "a sequence for a key": "? [a]\n: 2\n", "merge of text": "a: {<<: x}\n",
    "many brackets": "a: " + "[" * 2000, "many braces": "a: " + "{a: " * 2000, "a comma first": "a: [,]\n", "a hash right behind a quote": "a: 'x'#y\nb: 1: 2\n", "a literal indented less": "a: |\n   x\n y\n",
}  # fmt: skip
ODD_YAML = {
    "merge of itself": "a: &a {<<: *a}\n",
    "binary that is none": "a: !!binary '%'\n",
    "a tab behind": "a: 1\t\n",
    "nothing": "", "a comment alone": "# x\n", "null": "~\n", "text": "x\n", "a number": "1\n", "a sequence": "- a\n- b\n", "one key twice": "a: 1\na: 2\n", "itself": "a: &a [*a]\n", "a mapping of itself": "a: &a {b: *a}\n",
    "aliases of aliases": "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]) + "\n",
    "a long line": "a: " + "x" * 100_000 + "\n", "many keys": "".join(f"k{n}: {n}\n" for n in range(60)), "nested": "".join("  " * n + "a:\n" for n in range(60)), "a byte order mark": "\ufeffa: 1\n",
    "a number of 5,000 digits": "a: " + "9" * 5000 + "\n", "a float beyond bounds": "a: 1e9999\n", "sexagesimal without end": "a: " + ":".join(["1"] * 2000) + "\n", "a key of null": "~: 1\n", "a key of truth": "yes: 1\n", "a key of a number": "1.5: 1\n",
}  # fmt: skip


def within_bounds(act: Callable[[], Any]) -> Any:
    """Its result, or the ProcGuardError or WireError that it raises; a slow case is repeated alone."""
    for attempt in (1, 2):
        began = time.process_time()
        try:
            answer = act()
        except (ProcGuardError, messages.WireError) as exc:
            assert 0 < len(str(exc)) < 20_000
            answer = exc
        took = time.process_time() - began
        if took < MAX_CPU_S:
            return answer
        assert attempt == 1, f"{took:.2f} s of processor time"
    return None


@each("name", JSON)
def test_json_is_read_or_refused_by_each_reader(tmp_path: Path, name: str) -> None:
    data = JSON[name]
    found = within_bounds(lambda: http_io.parse_json(data))
    if name in TAKEN:
        assert found == json.loads(data)
    if name in REFUSED:
        assert isinstance(found, ProcGuardError)
    assert isinstance(within_bounds(lambda: decode.read(messages.AgentHeartbeat, data)), ProcGuardError)
    within_bounds(lambda: decode.read(messages.WorkerHeartbeat, data))
    within_bounds(lambda: channel._header(data))
    (tmp_path / "a.json").write_bytes(data)
    if len(data) < 64 * 1024:  # a state may be large, and is the operator's own
        within_bounds(lambda: exchange.read_changed(str(tmp_path / "a.json")))


@each("name", JSON)
def test_a_line_of_json_between_agent_and_runner_is_read_or_ends_the_connection(name: str) -> None:
    def act() -> None:
        try:
            list(control.LineBuffer().feed(JSON[name].replace(b"\n", b" ") + b"\n"))
        except (ValueError, OSError, RecursionError) as exc:
            assert str(exc)

    within_bounds(act)


@each("name", {**YAML, **BAD_YAML, **ODD_YAML})
def test_yaml_is_read_or_refused_by_each_reader(tmp_path: Path, name: str) -> None:
    text = {**YAML, **BAD_YAML, **ODD_YAML}[name]
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    found = within_bounds(lambda: positions.load(path, Vault(), lambda *_: None))
    if name in YAML:
        assert found == yaml.safe_load(text)
    if name in BAD_YAML:
        assert isinstance(found, ProcGuardError) and "a.yaml" in str(found)
    assert isinstance(within_bounds(lambda: config.load(str(path))), ProcGuardError) or name in ODD_YAML
    within_bounds(lambda: exchange.read_changed(str(path)))
    (tmp_path / "group_vars").mkdir(exist_ok=True)
    (tmp_path / "group_vars" / "all.yml").write_text(text, encoding="utf-8", newline="")
    (tmp_path / "hosts").write_text("h1\n")
    within_bounds(lambda: model.load(path))
    within_bounds(lambda: model.load(tmp_path / "hosts"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    running.deploy("h1", "w1")
    yield running
    running.close()
    assert "Traceback" not in running.log()


@pytest.mark.slow
@pytest.mark.chaos(29)
def test_no_body_is_answered_by_a_5xx(server: RunningServer, chaos_report: ChaosReport) -> None:
    """Every case as the body of an operator's, an agent's and an unauthenticated request, over one connection."""
    asked = 0
    agent = "secret-of-h1"
    for name, data in JSON.items():
        for path, secret in (
            ("/api/operations/preview", ""), ("/api/deployments", ""), ("/api/agents/h1/heartbeat", agent), ("/api/workers/register", ""),
        ):  # fmt: skip
            answer = server.ask("POST", path, data, secret=secret)
            assert 400 <= answer.status < 500 and answer.json["error"]["next"], (name, path, answer.status)
            asked += 1
    assert asked == 4 * len(JSON)
    chaos_report(measured=f"{asked} bodies: 0 of 5xx, each refused in words")
