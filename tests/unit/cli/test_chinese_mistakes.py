"""Mistakes with `--lang zh` against a real manager, and each route's refusals: no English sentence of ProcGuard
remains."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.cli import app
from procguard.portal.api.resource import all_routes
from tests.rows import each
from tests.server_process import RunningServer
from tests.unit.console.test_terminal import shown

HAN = re.compile(r"[\u4e00-\u9fff]")
# Two words of English in a row, outside quotes, that are no list of names, path, option, key or command to type.
WORDS = re.compile(r"(?<![\w./:=<'`-])[A-Za-z]{2,} [a-z]{2,}(?: [a-z]{2,})*")
QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`")
TYPED = re.compile(r"^procguard: [a-z]+ [a-z]+[：:]|(?:invoke|procguard|curl) [^，；。）：\n]*", re.MULTILINE)
FILES = {
    "broken.yaml": "hosts: [",
    "text.txt": "hello\n",
    "bad_config.yaml": "webb: 1\nweb:\n  port: abc\n  limits: {body_size: -3}\nlogs:\n  retention:\n"
    '  - {select: "state=x", days: 1}\n',
    "worse_config.yaml": "state: {backend: x}\nweb: {tls: {mode: sometimes}}\nlogging: {level: LOUD}\n"
    'notify: [{select: "x=", every: 3x}]\n',
    "host.yaml": "all:\n  hosts:\n    a b: {}\n",
    "ssh.yaml": "all:\n  hosts:\n    h1: {ansible_host: 127.0.0.1, ansible_port: 1, ansible_user: root}\n",
    "workers.yaml": "all:\n  hosts:\n    h1:\n      procguard_workers:\n"
    '      - {id: "a/b", command: sleep 1}\n      - {id: w, command: ""}\n'
    "      - {id: w, command: sleep 1, cwdd: /x, restart: {policy: sometimes}, stop_signal: SIGX}\n",
    "groups.yaml": "all:\n  children:\n    h: 3\n",
    "vault.yaml": "$ANSIBLE_VAULT;1.1;AES256\n6162\n",
    "empty.yaml": "",
}
MISTAKES = """
ps --select state=x
ps --select 'team='
ps --select 'a=b,,'
ps --select 'label~('
start w9
kill 'zz*'
start 'state=x'
start w1 --concurrency many
start w1 --wait x
describe w9
explain w9
logs w9
logs w1 --tail -3
logs w1 --attempt x
logs w1 --stream foo
logs w1 --since yesterday
logs w1 --regex '('
search '('
search '(?<=a)b'
search foo --select state=x
search foo --limit 0
search foo --since never
search foo --stream zz
search foo --timeout x
events --since x
events --limit 100000000
audit --since x
audit --limit x
wait w9
wait w1 --timeout x
wait 'state=x'
move w9 gpu01
move w1 nohost
move w1
forget w9 --yes
forget gpu01 --yes
cordon nohost
uncordon nohost
approve nobody
deny nobody
agents.revoke nobody
agents.rotate nobody
agents.rotate gpu01 --timeout x
agents.rotate gpu01 --limit zz
hosts -o xml
operations.show o-9
operations.cancel o-9
operations.retry o-9
notify.ack w9
notify.mute
notify.mute 'state=x'
notify.mute w1 --for x
notify.mute w1 --for 900d
notify.mute w1 --at yesterday
notify.unmute m-9
notify.test nobody
token.create --scope agent:nobody
token.create --scope viewer --uses 3
restart w1 --max-failures x
token.create --uses x
token.create --expires 0d
token.revoke nobody
managers.promote nobody
context.add x
context.remove nowhere
top --count x
top --every 0
top --sort nonsense --count 1
validate --hosts broken.yaml
validate --hosts host.yaml
validate --hosts workers.yaml
validate --hosts groups.yaml
validate --hosts vault.yaml
validate --hosts empty.yaml
validate --config bad_config.yaml
validate --config worse_config.yaml
validate --config /nowhere.yaml
validate --config broken.yaml
deploy --hosts ssh.yaml --limit nobody
deploy --hosts ssh.yaml --forks 0
deploy --hosts ssh.yaml --serial x
deploy --hosts ssh.yaml --max-fail x
deploy --hosts ssh.yaml --wait x
deploy --hosts workers.yaml
upgrade --hosts ssh.yaml --canary x
doctor --hosts ssh.yaml h9
fetch --hosts ssh.yaml 'zz*' /x
fetch --hosts ssh.yaml h1 /x --max-size x
playbooks text.txt
init h1 --folder text.txt
init 'a b' --folder d3
state.show --state nowhere
state.show --config bad_config.yaml
state.import --state s.db text.txt
state.import --state s.db nowhere
state.migrate a b
state.rebuild --state nowhere.db fleet
manager --nonsense
demo --nonsense
demo --managers x
""".strip().splitlines()


def english_in(text: str) -> list[str]:
    return WORDS.findall(TYPED.sub("", QUOTED.sub("", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))))


def printed(line: str, **environment: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return shown(lambda: app.main(["procguard", *shlex.split(line), "--lang", "zh"]), patch)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    running.beat("gpu01", running.deploy("gpu01", "w1", "w2"))
    yield running
    running.close()


@pytest.fixture
def folder(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCGUARD_MANAGER_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)


@each("line", MISTAKES)
def test_a_mistake_is_explained_in_chinese_alone(folder: None, line: str) -> None:
    text = printed(line)
    assert HAN.search(text) and english_in(text) == [], f"{text}\n{english_in(text)}"


@each(
    "environment",
    [
        {"PROCGUARD_MANAGER_URL": "http://127.0.0.1:1"},
        {"PROCGUARD_MANAGER_URL": "ftp://127.0.0.1:1"},
        {"PROCGUARD_MANAGER_URL": "http://nohost.invalid:5"},
        {"PROCGUARD_TOKEN": "wrong"},
    ],
)
def test_a_manager_out_of_reach_or_a_wrong_token_is_explained_in_chinese(
    folder: None, environment: dict[str, str]
) -> None:
    for line in ("ps", "logs w1", "start w1"):
        text = printed(line, **environment)
        assert HAN.search(text) and english_in(text) == [], text


# What a route is asked: an unknown name in its path; a body that is not JSON, not an object, or incomplete.
BODIES = (None, b"{", b"[]", b'{"nonsense": 1}')
NAMES = {"worker_id": "w9", "host": "nohost", "agent_id": "nobody", "operation_id": "o-9", "mute_id": "m-9"}


@each("route", [f"{one.method} {one.path}" for one in all_routes()])
def test_each_refusal_of_a_route_brings_its_chinese(server: RunningServer, route: str) -> None:
    method, path = route.split()
    path = re.sub(r"<(\w+)(?::[^>]*)?>", lambda name: NAMES.get(name[1], "nothing"), path)
    asked = [(method, path, body) for body in (BODIES if method in ("POST", "PUT", "PATCH") else BODIES[:1])]
    asked += [("PATCH", path, None), (method, f"{path}?limit=x&since=never&select=state%3Dx&nonsense=1", None)]
    for verb, url, body in asked:
        if "follow" in url or "/search" in url:
            continue
        answer = server.ask(verb, url, body, {"Accept-Language": "zh-CN"})
        if not 400 <= answer.status < 500 or not answer.body:
            continue
        said = answer.json["error"]["localized"]
        text = "\n".join(filter(None, (said["message"], said["next"])))
        assert HAN.search(text) and english_in(text) == [], f"{verb} {url} {body!r}: {text}\n{english_in(text)}"
