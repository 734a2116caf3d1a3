"""User-facing scripts: they set themselves up once, start quickly afterwards, and pass arguments unchanged.

A fake interpreter records its calls, so that no test waits for a package index.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from procguard.console import language

REPOSITORY = Path(__file__).parents[3]

# Answers what setup_venv.sh asks a Python; `-m venv` copies itself into the new environment.
FAKE_PYTHON = r"""#!/bin/bash
printf '%s' "python" >>"$CALLS"; printf ' [%s]' "$@" >>"$CALLS"; echo >>"$CALLS"
case "$*" in
*"platform.python_version"*) echo 3.12.9 ;;
*"-m venv --clear --without-pip "*) target="${!#}"; rm -rf "$target"; mkdir -p "$target/bin" "$target/site"
    touch "$target/pyvenv.cfg"; cp "$0" "$target/bin/python" ;;
*"_pip.py install"*) sleep "${PIP_SECONDS:-0}"; if [ -n "${PIP_FAILS:-}" ]; then echo "no such index"; exit 1; fi ;;
*"sysconfig"*) echo "$(dirname "$(dirname "$0")")/site" ;;
esac
exit 0
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in a path with spaces, with the real scripts and short locks."""
    root = tmp_path / "a b" / "procguard"
    (root / "requirements").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "start_manager.sh", root)
    for kind in ("runtime", "dev"):
        (root / "requirements" / f"{kind}.lock").write_text(f"{kind}==1\n")
    python = tmp_path / "python3"
    python.write_text(FAKE_PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return root


def environment(root: Path, **more: str) -> dict[str, str]:
    base = root.parents[1]
    return (
        os.environ
        | {"CALLS": str(base / "calls"), "PROCGUARD_PYTHON": str(base / "python3"), "PROCGUARD_UV": ""}
        | more
    )


def run(root: Path, *words: str, script: str = "start_manager.sh", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(root / script), *words],
        cwd=root.parents[1],
        env=environment(root, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def calls(root: Path) -> list[str]:
    path = root.parents[1] / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_first_start_makes_the_environment_and_says_so(checkout: Path) -> None:
    done = run(checkout, "--status")
    assert done.returncode == 0, done.stderr
    assert "making" in done.stderr and "Python 3.12.9" in done.stderr and "runtime.lock" in done.stderr
    made = calls(checkout)
    install = next(line for line in made if "[install]" in line)
    assert "[--require-hashes]" in install and f"[{checkout}/requirements/runtime.lock]" in install
    assert made[-1] == "python [-P] [-m] [procguard.main] [--status]"


def test_the_scripts_speak_the_language_of_the_terminal(checkout: Path) -> None:
    def said(**environment: str) -> str:
        shutil.rmtree(checkout / ".venv", ignore_errors=True)
        return run(
            checkout, **({"PROCGUARD_LANG": "", "LC_ALL": "", "LC_MESSAGES": "", "LANG": ""} | environment)
        ).stderr

    chinese = said(LANG="zh_CN.UTF-8")
    assert "正在用 Python 3.12.9" in chinese and "正在安装" in chinese and "making" not in chinese
    assert "没有找到 Python" in said(LC_ALL="C", LANG="zh_CN.UTF-8", PROCGUARD_PYTHON="/nowhere")
    assert "无法安装" in said(PROCGUARD_LANG="zh", LANG="en_US.UTF-8", PIP_FAILS="1")
    english = said(PROCGUARD_LANG="en", LANG="zh_CN.UTF-8")
    assert english.isascii() and "making" in english


def test_second_start_is_fast_silent_and_starts_python_once(checkout: Path) -> None:
    """The check itself runs no Python: the only one started is the manager."""
    run(checkout)
    calls(checkout)
    best_s = 9.9
    for _ in range(3):
        began = time.monotonic()
        done = run(checkout)
        best_s = min(best_s, time.monotonic() - began)
        assert (done.returncode, done.stderr) == (0, "")
    assert calls(checkout) == ["python [-P] [-m] [procguard.main]"] * 3
    assert best_s < 0.3


def test_arguments_with_spaces_and_quotes_arrive_as_they_were_given(checkout: Path) -> None:
    run(checkout)
    calls(checkout)
    words = ["--set", "logging.format=%(asctime)s 'x' \"y\" $HOME *", "", "--config", "a b.yaml"]
    run(checkout, *words)
    assert calls(checkout) == ["python [-P] [-m] [procguard.main] " + " ".join(f"[{word}]" for word in words)]


def test_works_through_a_symbolic_link(checkout: Path, tmp_path: Path) -> None:
    run(checkout)
    calls(checkout)
    (tmp_path / "link").symlink_to(checkout / "start_manager.sh")
    done = subprocess.run([str(tmp_path / "link"), "--status"], env=environment(checkout), check=False, timeout=30)
    assert done.returncode == 0
    assert calls(checkout) == ["python [-P] [-m] [procguard.main] [--status]"]


def test_uv_is_used_where_it_is_there(checkout: Path, tmp_path: Path) -> None:
    """It installs the same lock with the same hashes, and needs no ensurepip."""
    uv = tmp_path / "uv"
    uv.write_text(
        '#!/bin/bash\nprintf "uv" >>"$CALLS"; printf " [%s]" "$@" >>"$CALLS"; echo >>"$CALLS"\n'
        'if [ "$1" = venv ]; then mkdir -p "${!#}/bin" "${!#}/site"; touch "${!#}/pyvenv.cfg"\n'
        'cp "$PROCGUARD_PYTHON" "${!#}/bin/python"; fi\n'
    )
    uv.chmod(0o755)
    done = run(checkout, "--status", PROCGUARD_UV=str(uv))
    assert done.returncode == 0, done.stderr
    made = calls(checkout)
    assert not any("[-m] [pip]" in line or "[-m] [venv]" in line for line in made)
    (install,) = [line for line in made if line.startswith("uv [pip] [install]")]
    assert "[--require-hashes]" in install and f"[{checkout}/requirements/runtime.lock]" in install
    assert made[-1] == "python [-P] [-m] [procguard.main] [--status]"


def test_changed_lock_is_installed_into_the_same_environment(checkout: Path) -> None:
    run(checkout)
    calls(checkout)
    (checkout / "requirements" / "runtime.lock").write_text("runtime==2\n")
    done = run(checkout)
    assert done.returncode == 0
    made = calls(checkout)
    assert not any("[venv]" in line for line in made) and sum("[install]" in line for line in made) == 1


def test_moved_checkout_gets_a_new_environment(checkout: Path) -> None:
    """The programs in .venv/bin name its old place."""
    run(checkout)
    calls(checkout)
    moved = checkout.rename(checkout.parent / "moved")
    done = run(moved)
    assert "recreated" in done.stderr
    assert any("[venv]" in line for line in calls(moved))


def test_development_environment_serves_the_manager_too(checkout: Path) -> None:
    """dev.lock holds all of runtime.lock: start_manager.sh after run_tests.sh installs nothing."""
    command = f'. "{checkout}/scripts/setup_venv.sh" dev'
    subprocess.run(["bash", "-c", command], env=environment(checkout), check=True, capture_output=True, timeout=30)
    assert any(f"[{checkout}/requirements/dev.lock]" in line for line in calls(checkout))
    run(checkout)
    assert calls(checkout) == ["python [-P] [-m] [procguard.main]"]


def test_two_first_starts_at_once_install_once(checkout: Path) -> None:
    words = ["bash", str(checkout / "start_manager.sh")]
    both = [
        subprocess.Popen(words, env=environment(checkout, PIP_SECONDS="0.5"), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=30)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sum("[install]" in line for line in calls(checkout)) == 1
    assert any("waiting" in text for text in errors)


def test_failed_installation_says_why_and_is_tried_again(checkout: Path) -> None:
    done = run(checkout, PIP_FAILS="yes")
    assert done.returncode == 1
    assert "no such index" in done.stderr and "run this again" in done.stderr
    assert run(checkout).returncode == 0
    assert any("[install]" in line for line in calls(checkout))


def test_interpreter_that_is_gone_is_replaced(checkout: Path) -> None:
    """As after the system's Python was upgraded: .venv/bin/python points nowhere."""
    run(checkout)
    calls(checkout)
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to("/nonexistent/python3")
    assert run(checkout).returncode == 0
    assert any("[venv]" in line for line in calls(checkout))


def test_without_a_python_one_line_says_what_to_install(checkout: Path, tmp_path: Path) -> None:
    done = run(checkout, PROCGUARD_PYTHON=str(tmp_path / "none"))
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr and "apt-get install" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_of_the_users_named_venv_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "thesis.tex").write_text("years")
    done = run(checkout)
    assert done.returncode == 1 and "move it away" in done.stderr
    assert (checkout / ".venv" / "thesis.tex").read_text() == "years"


def test_nothing_of_the_set_up_reaches_the_environment_of_workers(checkout: Path) -> None:
    run(checkout)
    script = f'. "{checkout}/scripts/setup_venv.sh" runtime; env'
    done = subprocess.run(
        ["bash", "-c", script], env=environment(checkout), check=True, capture_output=True, text=True, timeout=30
    )
    before = set(environment(checkout)) | {"_", "SHLVL", "PWD", "OLDPWD"}
    assert {line.split("=")[0] for line in done.stdout.splitlines() if "=" in line} <= before | {"BASH_FUNC_which%%"}


def test_bare_python_hands_over_to_the_script(checkout: Path) -> None:
    """`python -m procguard.main …` as documented, with a Python without the required packages (-S: no site)."""
    shutil.copytree(REPOSITORY / "procguard", checkout / "procguard", ignore=shutil.ignore_patterns("__pycache__"))
    words = [sys._base_executable, "-S", "-m", "procguard.main", "--set", "a b=c d"]  # type: ignore[attr-defined]
    done = subprocess.run(
        words, cwd=checkout, env=environment(checkout), capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert calls(checkout)[-1] == "python [-P] [-m] [procguard.main] [--set] [a b=c d]"


def test_the_list_of_tasks_is_chinese_where_the_terminal_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "--list"],
        cwd=REPOSITORY,
        env=os.environ | {"PROCGUARD_LANG": "zh", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    described = re.findall(r"^  \S+(?: \(\S+\))? {2,}(.+)$", done.stdout, re.MULTILINE)
    assert len(described) > 60
    assert [text for text in described if not re.search(r"[\u4e00-\u9fff]", text)] == []


def test_the_help_of_each_task_is_chinese_where_the_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCGUARD_LANG", "zh")
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import dev_tasks

    tasks = dev_tasks.namespace.tasks
    texts = {f"{name} {option}": text for name, task in tasks.items() for option, text in task.help.items()}
    texts |= {name: " ".join(str(task.__doc__).partition("Example: ")[0].split()) for name, task in tasks.items()}
    assert len(texts) > 30
    assert [where for where, text in texts.items() if not re.search(r"[\u4e00-\u9fff]", language.shown(text))] == []


@pytest.mark.parametrize("words", [("--help", "swarm"), ("chekc",)])
def test_invoke_itself_is_chinese_where_the_terminal_is(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *words],
        cwd=REPOSITORY,
        env=os.environ | {"PROCGUARD_LANG": "zh", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    own = re.sub(r"(?m)^Usage: .*$|'[^']*'|invoke \S.*$", "", done.stdout + done.stderr)
    assert re.search(r"[\u4e00-\u9fff]", own) and not re.search(r"[a-z]{2,} [a-z]{2,}", own), own


def test_scripts_are_executable_and_parse() -> None:
    for name in ("start_manager.sh", "run_tests.sh", ".ci/run", "scripts/setup_venv.sh"):
        path = REPOSITORY / name
        assert name.startswith("scripts/") or os.access(path, os.X_OK), name
        subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)


def test_leftovers_names_a_process_that_a_run_left_behind(tmp_path: Path) -> None:
    marked = os.environ | {"PROCGUARD_CI_MARK": f"test-{os.getpid()}"}
    words = [sys.executable, str(REPOSITORY / "scripts" / "leftovers.py")]
    subprocess.run([*words, "snapshot", str(tmp_path / "before")], env=marked, check=True, timeout=30)
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=marked)
    try:
        done = subprocess.run(
            [*words, "compare", str(tmp_path / "before"), "0.2"],
            env=marked,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    finally:
        left.kill()
        left.wait()
    assert done.returncode == 1
    assert f"left behind: process {left.pid}: " in done.stdout


def test_locks_pin_everything_with_hashes_and_name_no_address() -> None:
    """…and dev.lock holds all of runtime.lock at the same versions, so one environment serves both."""
    pins = {}
    for kind in ("runtime", "dev"):
        lock = (REPOSITORY / "requirements" / f"{kind}.lock").read_text()
        assert "://" not in lock
        pins[kind] = {line.split(" ")[0] for line in lock.splitlines() if "==" in line and not line.startswith(" ")}
        assert lock.count("\n    --hash=sha256:") >= len(pins[kind])
    assert pins["runtime"] < pins["dev"]


def test_bench_lists_what_can_be_measured() -> None:
    """By its name as invoke takes it: `bench deploy` was once understood as two tasks."""
    listed = subprocess.run(
        [sys.executable, "-m", "invoke", "bench", "list"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[0] for line in listed.splitlines()]
    assert {"heartbeats", "recovery", "deploy", "logs", "memory", "fleet", "state"} <= set(names)
    for name in names:  # each can be started by that name
        text = (REPOSITORY / "scripts" / "bench" / f"{name}.py").read_text()
        assert "def main(arguments" in text and "sys.exit(main(sys.argv[1:]))" in text  # one once did nothing, and well


def test_every_task_that_is_written_can_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")  # as tasks.py has it
    import dev_tasks
    from invoke import Task

    written = {one.name.replace("_", "-") for one in vars(dev_tasks).values() if isinstance(one, Task)}
    assert written == set(dev_tasks.namespace.task_names)


def test_what_runs_on_pypy_is_there() -> None:
    from scripts import pypy

    for name in [*pypy.files(), *(f"tests/unit/{one}" for one in pypy.CPYTHON_ONLY)]:
        file, _, test = name.partition("::")
        assert (
            f"def {test}(" in (REPOSITORY / file).read_text(encoding="utf-8") if test else (REPOSITORY / file).exists()
        )
