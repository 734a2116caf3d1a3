"""invoke swarm: simulated agents against the manager on this machine, for a time, with a summary at the end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from procguard.client.api import DEFAULT_URL
from procguard.errors import ProcGuardError, UsageError
from scripts.swarm import Behaviour, Delays, Summary, Swarm
from scripts.swarm.behaviour import Step, read_script, seconds

PROGRESS_EVERY_S = 1.0
MAX_FOR_S = 24 * 3600.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="invoke swarm",
        description="Simulated agents over the real protocol, against a manager on this machine (loopback only).",
        epilog="A script (--script FILE) has a step a line, TIME ACTION [AMOUNT]: '10s kill 10%', '30s return', "
        "'40s storm', '50s crash 25'; actions: kill, silence, return, storm, crash, finish.",
        allow_abbrev=False,
    )
    made.add_argument("--agents", type=int, default=10, metavar="N", help="simulated hosts (default 10)")
    made.add_argument("--workers-per-agent", type=int, default=1, metavar="M", help="workers on each (default 1)")
    made.add_argument(
        "--manager-url",
        default=os.environ.get("PROCGUARD_MANAGER_URL") or DEFAULT_URL,
        help=f"the manager, on this machine (default PROCGUARD_MANAGER_URL or {DEFAULT_URL})",
    )
    made.add_argument("--for", dest="for_s", default="60s", metavar="TIME", help="how long: 90s, 5m, 1h (default 60s)")
    made.add_argument("--script", metavar="FILE", help="what happens when")
    made.add_argument("--seed", type=int, default=1, help="the same seed gives the same swarm (default 1)")
    made.add_argument("--crashes-per-s", type=float, default=0.0, metavar="R", help="children that crash, in all")
    made.add_argument(
        "--log-lines-per-s", type=float, default=0.0, metavar="R", help="log lines per second of each running worker"
    )
    made.add_argument(
        "--stubborn", type=float, default=0.0, metavar="SHARE", help="share of workers that do not end when stopped"
    )
    made.add_argument(
        "--refuse", type=float, default=0.0, metavar="SHARE", help="share of workers that refuse restart and kill"
    )
    made.add_argument("--prefix", default="swarm", help="prefix of the host names (default swarm)")
    made.add_argument("--processes", type=int, metavar="P", help="number of processes (default: 1 for each 5000)")
    made.add_argument("--keep", action="store_true", help="leave the simulated hosts in the manager at the end")
    made.add_argument("--clean", action="store_true", help="only remove the hosts of an earlier swarm from the manager")
    return made


def run(words: list[str]) -> int:
    arguments = parser().parse_args(words)
    for_s = seconds(arguments.for_s)
    if not 0 < for_s <= MAX_FOR_S:
        raise UsageError(f"swarm: --for {arguments.for_s}", "at most 24h")
    for name in ("stubborn", "refuse"):
        if not 0 <= getattr(arguments, name) <= 1:
            raise UsageError(f"swarm: --{name} is a share", "from 0 to 1, e.g. 0.05")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as for Ctrl-C: the hosts are removed again
    steps = _script(arguments.script)
    behaviour = Behaviour(
        crashes_per_s=max(0.0, arguments.crashes_per_s),
        log_lines_per_s=max(0.0, arguments.log_lines_per_s),
        stubborn=arguments.stubborn,
        refuse=arguments.refuse,
    )
    swarm = Swarm(
        arguments.manager_url,
        arguments.agents,
        arguments.workers_per_agent,
        arguments.seed,
        behaviour=behaviour,
        prefix=arguments.prefix,
        token=os.environ.get("PROCGUARD_TOKEN", ""),
        processes=arguments.processes,
        keep=arguments.keep,
    )
    if arguments.clean:
        swarm.clean_up()
        print(f"up to {arguments.agents} hosts {arguments.prefix}-… are gone from {arguments.manager_url}")
        return 0
    print(f"declaring {arguments.agents} hosts with {arguments.workers_per_agent} worker(s) each …", flush=True)
    with swarm:
        print(f"declared in {swarm.declared_in_s:.1f} s; running for {for_s:g} s, Ctrl-C ends it", flush=True)
        began = time.monotonic()
        try:
            _play(swarm, steps, for_s)
        except KeyboardInterrupt:
            print("\nending")
        summary, took_s = swarm.summary(), time.monotonic() - began
    print_summary(summary, took_s)
    return 0


def _script(path: str | None) -> list[Step]:
    if path is None:
        return []
    try:
        with open(path, encoding="utf-8") as file:
            return read_script(file.read(), path)
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"swarm: --script {path} cannot be read ({exc})", "a text file of steps") from exc


def _play(swarm: Swarm, steps: list[Step], for_s: float) -> None:
    """Run the steps of the script, each at its time, until the time is over."""
    began = time.monotonic()
    left, progress_at, last = list(steps), began + PROGRESS_EVERY_S, swarm.summary()
    width = 0
    while (now := time.monotonic()) < began + for_s:
        if left and now - began >= left[0].at_s:
            step = left.pop(0)
            count = len(swarm.act(step.action, step.amount))
            print(f"{'':{width}}\r{now - began:6.1f} s  {step.action} {count}", flush=True)
        elif now >= progress_at:
            summary = swarm.summary()
            line = _progress(summary, last, now - began)
            print(f"{line:{width}}", end="\r" if sys.stdout.isatty() else "\n", flush=True)
            width, last, progress_at = len(line), summary, now + (PROGRESS_EVERY_S if sys.stdout.isatty() else 10.0)
        else:
            due = [progress_at, began + for_s, *([began + left[0].at_s] if left else [])]
            time.sleep(max(0.0, min(due) - now))


def _progress(now: Summary, before: Summary, at_s: float) -> str:
    beats = now.beats_answered - before.beats_answered
    away = now.states["off"] + now.states["silent"]
    return (
        f"{at_s:6.1f} s  {now.states['on']} agents ({away} away), {now.workers['running']} workers running, "
        f"{beats} heartbeats answered, p99 {1000 * now.replies.quantile(0.99):.1f} ms, {now.connects} connects, "
        f"{now.obeyed} commands obeyed"
    )


def print_summary(summary: Summary, took_s: float) -> None:
    replies, obedience, delivery = summary.replies, summary.obedience, summary.delivery
    sent, answers, workers = summary.beats_sent, sorted(summary.statuses.items()), sorted(summary.workers.items())
    rows = [
        ("heartbeats sent", f"{sent} ({sent / took_s:.1f}/s), {summary.beats_answered} answered"),
        ("delay of the replies", _quantiles(replies)),
        ("connections opened", f"{summary.connects}, {summary.losses} lost, {summary.failures} requests failed"),
        ("commands", f"{summary.commands} told ({_quantiles(delivery)} after acceptance)"),
        ("  obeyed", f"{summary.obeyed} ({_quantiles(obedience)}), {summary.refused} refused"),
        ("log bytes stored", f"{summary.log_bytes}"),
        ("other answers", ", ".join(f"{name}: {count}" for name, count in answers) or "none"),
        ("workers at the end", ", ".join(f"{count} {name}" for name, count in workers) or "none"),
        (
            "the swarm itself",
            f"{summary.cpu_s:.1f} s of CPU, {1e6 * summary.cpu_per_beat_s:.0f} µs a heartbeat; at worst "
            f"{1000 * summary.worst_lag_s:.0f} ms late itself",
        ),
    ]
    print()
    for name, value in rows:
        print(f"{name:22} {value}")


def _quantiles(delays: Delays) -> str:
    if not delays.count:
        return "–"
    p50, p99 = delays.quantile(0.5), delays.quantile(0.99)
    return f"p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms, max {1000 * delays.worst:.1f} ms"


def main(words: list[str]) -> int:
    try:
        return run(words)
    except ProcGuardError as exc:
        print(f"swarm: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
