"""Shell syntax in an inventory is found before it becomes an argument on a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.inventory import model
from procguard.deploy.inventory.command_words import mistakes, open_quote
from procguard.errors import InventoryError
from remote_agent.protocol.messages import HealthCheck, Hook, WorkerSpec


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("cd /data && python train.py", "&&"),
        ("python train.py | tee log", "|"),
        ("python train.py > out.log 2>&1", ">"),
        ("python train.py >out.log", ">out.log"),
        ("python train.py 2>err.log", "2>err.log"),
        ("python train.py 2>&1", "2>&1"),
        ("python train.py < input", "<"),
        ("python a.py; python b.py", "a.py;"),
        ("python train.py &", "&"),
        ("python ~/train.py", "~/train.py"),
        ("~/bin/train --fast", "~/bin/train"),
        ("python train.py --data=~/data", "--data=~/data"),
        ("python ~ml/train.py", "~ml/train.py"),
        ("python train.py $HOME/data", "$HOME/data"),
        ("python train.py --out=${OUT}", "${OUT}"),
        ("python train.py $(hostname)", "$(hostname)"),
        ("CUDA_VISIBLE_DEVICES=0 python train.py", "CUDA_VISIBLE_DEVICES=0"),
        ("python train.py 'a", "'"),
        ('python train.py --name "my run', '"'),
        ("echo it's", "'"),
    ],
)
def test_a_mistake_names_the_word(command: str, word: str) -> None:
    (found,) = mistakes(WorkerSpec(command))
    assert word in found
    if "'" not in word and '"' not in word:
        assert mistakes(WorkerSpec(command, shell=True)) == []


@pytest.mark.parametrize(
    "command",
    [
        "python train.py --epochs 100",
        "python -c 'import os; print(1 > 0 and 2 | 3)'",
        'python -c "a = b && c"',
        "grep '|' '~/x' \"$HOME\"",  # quoted: literal
        "curl http://host/?a=1&b=2",
        "app --filter a=>b --sep=';' --arrow ->",
        "app --price 5$ --pattern ^a$ --home~ x~y backup~",
        "app --set x=1 A=b",
        "app it\\'s \\$HOME",
        'app --json=\'{"a": "b c"}\'',
        ["sh", "-c", "cd /data && python train.py"],
        ["app", "$HOME", "|", "it's"],
        "",
    ],
)
def test_what_is_meant_as_it_stands_is_none(command: Any) -> None:
    assert mistakes(WorkerSpec(command)) == []


def test_a_program_with_a_tilde_cannot_be_executed_from_a_list_either() -> None:
    assert "~/bin/train" in mistakes(WorkerSpec(["~/bin/train", "~/data"]))[0]
    assert mistakes(WorkerSpec(["train", "~/data"])) == []  # the program may expand it itself


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("", ""),
        ("echo 'a' \"b\"", ""),
        ("echo 'a", "'"),
        ('echo "a\\"', '"'),
        ("echo \\'", ""),
        ("true # don't\necho", ""),
        ("true # don't", ""),
        ("echo a#'", "'"),
        ("cat <<END\ndon't\nEND", ""),
        ('echo "it\'s"', ""),
    ],
)
def test_open_quotes_as_a_shell_sees_them(text: str, quote: str) -> None:
    assert open_quote(text) == quote


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (WorkerSpec("x", shell=True, setup=["module load 'cuda"]), "setup"),
        (WorkerSpec("x", pre_start=[Hook('echo "x')]), "pre_start"),
        (WorkerSpec("x", post_stop=[Hook("echo 'x")]), "post_stop"),
        (WorkerSpec("x", health=[HealthCheck("exec", command="curl 'x")]), "health.command"),
        (WorkerSpec("echo 'x", shell=True), "command"),
    ],
)
def test_whatever_is_handed_to_a_shell_closes_its_quotes(spec: WorkerSpec, key: str) -> None:
    assert mistakes(spec)[0].startswith(f"{key}: ")


def test_an_inventory_reports_it_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "i.yaml"
    path.write_text("all:\n  hosts:\n    h1:\n      procguard_workers:\n        - id: w\n          command: a && b\n")
    with pytest.raises(InventoryError, match=r"i\.yaml:\d+: worker w: command: && means something to a shell only"):
        model.load(path)
