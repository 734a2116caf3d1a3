"""Takes the pictures of docs/product.md: the portal of the demo with a simulated fleet, in a real Chromium.

    .venv/bin/python -m scripts.screenshots                    all of them, into docs/pictures
    .venv/bin/python -m scripts.screenshots --only overview    those of one page

Nothing is edited by hand: the pictures show three real workers of `./start_manager.sh --demo`, simulated hosts (invoke
swarm), and failures that this script causes. Needs Chromium; takes about two minutes; ends everything it started.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from playwright.sync_api import Browser, sync_playwright

from procguard.client.api import ManagerClient
from procguard.errors import ProcGuardError
from procguard.manager import demo
from scripts import chromium
from scripts.swarm import Behaviour, Swarm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PICTURES = os.path.join(ROOT, "docs", "pictures")
WIDTH_PX = 1440
GREY_EDGES = "--disable-lcd-text"  # no subpixel rendering, whose coloured edges suit only one kind of screen
MAX_BYTES = 250_000  # maximum size of a picture, because every checkout contains them
UP_WITHIN_S = 120.0
HAPPENS_WITHIN_S = 120.0
ENDS_WITHIN_S = 120.0
SETTLES_MS = 1500  # time for texts that are loaded after the first data: sentences, charts, the newest lines
GROUPS = ("pretrain", "finetune", "encode", "crawl")
LOGS = "train-tiny,flaky,sim-00002-w0,sim-00007-w1,sim-00012-w0"


class Shot(NamedTuple):
    """`ready`: a selector that is visible once the page has its data."""

    name: str
    address: str
    ready: str
    chinese: bool = False  # also in Chinese
    height_px: int = 900
    opens: str = ""  # clicked before the picture is taken


SHOTS = [
    Shot("overview", "#/overview", ".problem-list li", chinese=True),
    Shot("workers", "#/workers", ".workers-table .table-body .table-row"),
    Shot("worker", "#/worker/train-tiny", ".log-line", chinese=True, height_px=740),
    Shot("logs", f"#/logs?w={LOGS}&grep=epoch", ".log-line mark", height_px=740),
    Shot("recovery", "#/recovery?since=1h", ".restart-list li", opens=".restart-list li:has(a:text('flaky')) summary"),
    Shot("host", "#/host/this-machine", ".host-workers li"),
]


def file_name(shot: Shot, theme: str, locale: str) -> str:
    return f"{shot.name}{'-dark' if theme == 'dark' else ''}{'.zh-CN' if locale == 'zh-CN' else ''}.png"


def themes(shot: Shot) -> list[tuple[str, str]]:
    """(theme, locale) of each picture of a page."""
    return [("light", "en"), ("dark", "en"), *([("light", "zh-CN")] if shot.chinese else [])]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="screenshots", description="The pictures of docs/product.md.")
    parser.add_argument("--to", default=PICTURES, metavar="FOLDER", help="where they go (default docs/pictures)")
    parser.add_argument("--only", nargs="+", choices=[shot.name for shot in SHOTS], help="pictures of these pages")
    parser.add_argument("--hosts", type=int, default=40, metavar="N", help="simulated hosts, 30 or more (default 40)")
    options = parser.parse_args(words)
    program = chromium.path()
    if program is None:
        sys.exit(f"screenshots: {chromium.HOW_TO_HAVE_IT}")
    if options.hosts < 30:
        sys.exit(f"screenshots: --hosts {options.hosts} is too few for what happens in the pictures; 30 or more")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shots = [shot for shot in SHOTS if not options.only or shot.name in options.only]
    try:
        with _demo() as url, _swarm(url, options.hosts) as swarm, sync_playwright() as playwright:
            _happen(ManagerClient(url), swarm)
            browser = playwright.chromium.launch(executable_path=program, args=[*chromium.ARGUMENTS, GREY_EDGES])
            os.makedirs(options.to, exist_ok=True)
            for shot in shots:
                _take(browser, url, shot, options.to)
            browser.close()
    except ProcGuardError as exc:
        sys.exit(f"screenshots: {exc}")
    return 0


# ---------------------------------------------------------------------------------------------------------- the fleet


@contextmanager
def _demo() -> Iterator[str]:
    """The demo, on its own port and in its own folders. It runs from a link to the checkout, so that no picture shows
    the checkout's path."""
    folder = tempfile.mkdtemp(prefix="pg")
    checkout = os.path.join(folder, "ProcGuard")
    os.symlink(ROOT, checkout)
    port = demo.free_port("127.0.0.1")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROCGUARD_")}
    output_path = os.path.join(folder, "demo.out")
    with open(output_path, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "procguard.main", "--demo", "--port", str(port)],
            cwd=folder,
            env=kept | {"XDG_CACHE_HOME": folder, "PYTHONPATH": checkout},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches this script, which ends things in the right order
        )

    def said() -> str:
        with open(output_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def is_up() -> bool:
        if process.poll() is not None:
            raise ProcGuardError(f"the demo ended: {said()[-2000:].strip()}")
        return "Ctrl-C stops everything" in said()

    try:
        _wait(is_up, UP_WITHIN_S, "the demo's workers run")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            if process.wait(ENDS_WITHIN_S) == 0:
                shutil.rmtree(folder)
            else:
                print(f"screenshots: the demo did not end well; see {output_path}", file=sys.stderr)
        except subprocess.TimeoutExpired:
            print(f"screenshots: the demo (pid {process.pid}) does not end; see {output_path}", file=sys.stderr)


def _swarm(url: str, hosts: int) -> Swarm:
    """Simulated hosts, labelled as such on every picture. They stay in the manager, whose state is removed with the
    demo."""
    behaviour = Behaviour(log_lines_per_s=0.3)
    return Swarm(url, hosts, 2, seed=4, behaviour=behaviour, prefix="sim", spec=_spec, keep=True)


def _spec(host: int, number: int) -> dict[str, Any]:
    group = GROUPS[host % len(GROUPS)]
    return {
        "command": f"python {group}.py --shard {host} --part {number}",
        "labels": {"simulated": "true", "rack": f"r{host // 8}"},
        "group": group,
        "stop_grace_s": 5.0,
        # One waits for its second restart until all pictures are taken; one host forgives a single crash.
        "restart": {
            "policy": "on-failure",
            "backoff_s": [0, 300] if host == 11 else [0, 3],
            "max_attempts": 1 if host == 3 else 5,
        },
    }


def _happen(client: ManagerClient, swarm: Swarm) -> None:
    """Cause crashes, finished workers and held workers, so that the pictures show them."""
    print("waiting for things to happen …", flush=True)
    swarm.wait_running(UP_WITHIN_S)
    lasting, passing = ["sim-00003-w0", "sim-00011-w1"], ["sim-00005-w0", "sim-00014-w1", "sim-00026-w0"]
    swarm.crash([*lasting, *passing])
    _until(client, [*lasting, *passing], lambda one: one["state"] == "running" and one["attempt"] == 2)
    for worker_id in passing:
        swarm.crash([worker_id])
        _until(client, [worker_id], lambda one: one["state"] == "running" and one["attempt"] > 2)
    _until(client, ["flaky"], lambda one: one["attempt"] > 1)
    swarm.crash(lasting)
    swarm.finish(["sim-00017-w1"])
    client.command("sim-00021-w0", "stop", "a new data set is on its way")
    wanted = {
        "sim-00003-w0": "failed",
        "sim-00011-w1": "backoff",
        "sim-00017-w1": "exited",
        "sim-00021-w0": "stopped",
        "flaky": "running",
    }
    for worker_id, state in wanted.items():
        _until(client, [worker_id], lambda one, state=state: one["state"] == state)  # type: ignore[misc]


def _until(client: ManagerClient, worker_ids: list[str], reached: Callable[[dict[str, Any]], bool]) -> None:
    _wait(
        lambda: all(reached(client.worker(one)) for one in worker_ids),
        HAPPENS_WITHIN_S,
        f"{', '.join(worker_ids)} came so far",
    )


def _wait(reached: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise ProcGuardError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.2)


# -------------------------------------------------------------------------------------------------------- the pictures


def _take(browser: Browser, url: str, shot: Shot, folder: str) -> None:
    """Take all pictures of one page. Exits if the page reports an error or a picture is larger than MAX_BYTES."""
    for theme, locale in themes(shot):
        context = browser.new_context(
            locale=locale,
            color_scheme="dark" if theme == "dark" else "light",
            viewport={"width": WIDTH_PX, "height": shot.height_px},
            device_scale_factor=1,
            reduced_motion="reduce",
        )
        complaints: list[str] = []
        context.on("weberror", lambda error, said=complaints: said.append(str(error.error)))  # type: ignore[misc]
        page = context.new_page()
        page.goto(f"{url}/{shot.address}")
        for selector in (".badge.is-live", shot.ready):
            page.locator(selector).first.wait_for(state="visible", timeout=60_000)
        if shot.opens:
            page.locator(shot.opens).first.click()
        page.wait_for_timeout(SETTLES_MS)
        path = os.path.join(folder, file_name(shot, theme, locale))
        page.screenshot(path=path)
        context.close()
        size = os.path.getsize(path)
        print(f"{os.path.relpath(path, ROOT)}: {size / 1000:.0f} kB", flush=True)
        if complaints:
            sys.exit(f"screenshots: the page of {shot.name} complains: {complaints[0]}")
        if size > MAX_BYTES:
            sys.exit(f"screenshots: {path} has {size} bytes, more than {MAX_BYTES}: show less on it")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
