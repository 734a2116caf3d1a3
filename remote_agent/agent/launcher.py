"""Runs one worker by hand, from start to end: an agent in the foreground.

Owns the launcher's directory, its fleet and its output; agent.py does the work, as on deployed hosts, with
registration.py. Knows no arguments and no terminal: the caller passes the options, the printer, and the lookup of the
manager's certificate. SIGINT and SIGTERM stop the process too; SIGHUP and SIGKILL leave it to its runner, and the
next launcher of the worker adopts it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

from remote_agent.agent import settings
from remote_agent.agent.agent import Agent
from remote_agent.agent.registration import LauncherRegistrar, host_name
from remote_agent.agent.settings import AgentLock, AgentLog, AgentSettings
from remote_agent.agent.spec_file import shown
from remote_agent.agent.wiring import AgentParts
from remote_agent.agent.worker import WorkerHandle, load_workers
from remote_agent.protocol import messages, states
from remote_agent.protocol.hints import Any, Callable, Literal, Optional
from remote_agent.protocol.messages import Assignment, RegisterReply, WorkerReport, WorkerSpec
from remote_agent.protocol.records import field, record
from remote_agent.system import memory, paths
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.outcomes import LinkDown, retry_delay_s
from remote_agent.transport.tls import Trust, is_untrusted

TOKEN_VARIABLE = "PROCGUARD_TOKEN"  # noqa: S105 - a name
REPLACE_TIMEOUT_S = 60.0
UNTRUSTED = "untrusted"

Say = Callable[[str], None]  # prints one line; raises OSError if the terminal has gone
Describe = Callable[[WorkerReport], str]
# (the manager's URL, the value of --ca) -> the certificates to trust; may raise LinkDown
TrustFor = Callable[[str, str], Trust]


class LauncherError(Exception):
    """`message` says what went wrong, `next_step` what to do now; `code` is stable, for programs."""

    def __init__(self, message: str, next_step: str = "", *, code: str = "conflict") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.code = code


@record
class LauncherOptions:
    worker_id: str
    manager_url: str
    command: str
    working_dir: str  # absolute
    env: dict[str, str] = field(default_factory=dict)
    shell: bool = False
    env_file: list[str] = field(default_factory=list)
    venv: str = ""
    conda: str = ""
    on_partition: Literal["keep", "fence"] = "keep"
    token: str = field(default="", repr=False)
    ca: str = ""  # a file (absolute) or a fingerprint
    replace: bool = False
    exit_when_done: bool = False

    def spec(self) -> WorkerSpec:
        return WorkerSpec(
            command=self.command,
            working_dir=self.working_dir,
            env=self.env,
            shell=self.shell,
            env_file=self.env_file if len(self.env_file) > 1 else "".join(self.env_file),
            venv=self.venv,
            conda=self.conda,
            on_partition=self.on_partition,
        )


# -------------------------------------------------------------------------------------------------------- output


class LauncherOutput:
    """Writes short lines to the terminal and to logs/launcher-<worker_id>.log in the working directory."""

    def __init__(self, worker_id: str, cwd: str, say: Say) -> None:
        self._worker_id = worker_id
        self._say = say
        self._last = ""
        directory = os.path.join(cwd, "logs")
        self.path = os.path.join(directory, f"launcher-{worker_id}.log")
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError:
            pass
        self.log = AgentLog(self.path)

    def say(self, text: str) -> None:
        if text == self._last:
            return
        self._last = text
        self.log.say("said", text=text)
        try:
            self._say(f"{self._worker_id}: {text}")
        except OSError:  # the terminal has gone
            pass


def describe(report: WorkerReport) -> str:
    """A worker's report as one line of text."""
    where = f" (pid {report.pid}, attempt {report.attempt})" if report.pid else ""
    if report.state == states.RUNNING:
        return f"running{where}"
    line = f"{report.state}{where}" + (f": {report.reason}" if report.reason else "")
    if report.state in states.SETTLED and report.attempt:
        line += f"; waiting for a start (invoke start {report.worker_id}; Ctrl-C ends the launcher)"
    return line


# --------------------------------------------------------------------------------------------------- the launcher


class Launcher:
    def __init__(
        self,
        options: LauncherOptions,
        environ: dict[str, str],
        cwd: str,
        *,
        say: Say,
        trust_for: TrustFor,
        describe: Describe = describe,
    ) -> None:
        """`describe`: renders a report as one line for the terminal."""
        self._options = options
        self._cwd = cwd
        self._base_env = {name: value for name, value in environ.items() if name != TOKEN_VARIABLE}
        self._output = LauncherOutput(options.worker_id, cwd, say)
        self._trust_for = trust_for
        self._describe = describe
        self._home = paths.procguard_home()
        self._agent: Optional[Agent] = None
        self._interrupted = ""
        self._exit_code = 0
        self._trust = Trust()
        self._stopping = False

    def run(self) -> int:
        """Run until a signal, a refusal, or (--exit-when-done) the worker's end. Returns the exit code.

        Raises LauncherError, SettingsError, UnsafeDirectory, OSError, and what `trust_for` raises."""
        self._catch_signals()
        fleet_id = self._find_fleet()
        if not fleet_id:
            return 0  # a signal arrived while it was searching for the manager
        directory = paths.launcher_dir(self._home, fleet_id, host_name(), self._options.worker_id)
        self._refuse_other_fleets(directory)
        own = self._settings(directory, fleet_id)
        lock = AgentLock(own.runtime_dir)
        holder = lock.take()
        if holder is not None:
            raise LauncherError(
                f"another launcher runs {self._options.worker_id} on this host ({holder})",
                "stop it first, or leave it running",
            )
        try:
            return self._supervise(directory, own)
        finally:
            lock.release()

    def _supervise(self, directory: str, own: AgentSettings) -> int:
        worker = load_workers(directory, own.runtime_dir).get(self._options.worker_id)
        if worker is not None and worker.runner_alive():
            self._check_running(worker)
        credentials = AgentCredentials(own.agent_id, own.fleet_id, own.secret, own.proof_key)
        registrar = LauncherRegistrar(
            self._options.worker_id,
            self._options.spec(),
            credentials=credentials,
            url=self._options.manager_url,
            say=self._output.say,
            token=self._options.token,
        )
        registrar.may_start_offline = self._is_what_it_had(directory)
        parts = AgentParts(
            own,
            directory,
            self._output.log,
            default_dir=self._options.working_dir,
            base_env=self._base_env,
            credentials=credentials,
            registrar=registrar,
            on_secret=lambda secret: setattr(own, "secret", secret),  # stored already
        )
        agent = self._agent = registrar.agent = Agent(
            parts,
            on_report=self._report,
            on_link=self._link,
            on_removed=lambda _: self._removed(),
        )

        def accepted(reply: RegisterReply) -> None:
            # A stored key is never replaced: a relay could otherwise remove the manager's proof, make the launcher
            # register as a new one, and give it a key of the relay's own.
            own.proof_key = credentials.proof_key = own.proof_key or reply.proof_key
            settings.save(directory, own)

        def renewed() -> None:
            own.secret = credentials.secret
            settings.save(directory, own)

        registrar.accepted, registrar.renewed = accepted, renewed
        if self._interrupted:
            agent.leave(self._interrupted)
        memory.settle()
        agent.run()
        if registrar.refused:
            left = self._left_running()
            raise LauncherError(registrar.refused, left, code="refused") if left else LauncherError(registrar.refused)
        if self._interrupted == "now":
            self._output.say(f"detached; {self._left_running() or 'nothing runs'}")
        return self._exit_code

    # ------------------------------------------------------------------------------------- before the agent runs

    def _find_fleet(self) -> str:
        """The id of the manager's fleet; cached per address for times when the manager is unreachable."""
        url = self._options.manager_url
        remembered = _remembered(self._home)
        failures = 0
        while not self._interrupted:
            try:
                self._trust = self._trust_for(url, self._options.ca)
                connection = Connection(Addresses([url], self._trust), AgentCredentials(""))
                fleet_id = connection.anonymous("GET", "/api/hello").data.get("fleet_id")
                if not messages.valid_id(fleet_id):
                    raise LinkDown(f"{url} does not respond as a ProcGuard manager")
                if remembered.get(url) != fleet_id:
                    _remember(self._home, url, str(fleet_id))
                return str(fleet_id)
            except LinkDown as exc:
                if is_untrusted(exc.__cause__):
                    raise LauncherError(str(exc), code=UNTRUSTED) from exc
                if url in remembered:
                    return remembered[url]  # the agent continues to try
                self._output.say(f"manager {url} not reachable ({exc}); retrying")
            failures += 1
            self._wait(min(5.0, retry_delay_s(failures)))
        return ""

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._interrupted and time.monotonic() < deadline:
            time.sleep(0.05)

    def _settings(self, directory: str, fleet_id: str) -> AgentSettings:
        """The launcher's agent.json, created at its first start; later starts keep the secret."""
        url, worker_id = self._options.manager_url, self._options.worker_id
        if os.path.exists(paths.agent_file(directory)):
            own = settings.load(directory)
            own.runtime_dir = paths.keep_runtime_dir(own.runtime_dir, self._home, fleet_id, host_name(), worker_id)
        else:
            os.makedirs(directory, mode=paths.PRIVATE_DIR, exist_ok=True)
            own = AgentSettings(
                fleet_id=fleet_id,
                host=host_name(),
                agent_id=messages.LAUNCHER_PREFIX + worker_id,
                manager_urls=[url],
                runtime_dir=paths.choose_runtime_dir(self._home, fleet_id, host_name(), worker_id),
                secret=os.urandom(32).hex(),
                kind="launcher",
            )
        own.manager_urls, own.python = [url], sys.executable
        if self._trust.ca:
            own.manager_ca, own.manager_any_name = self._trust.ca, True
        settings.save(directory, own)
        return own

    def _refuse_other_fleets(self, directory: str) -> None:
        """Raise LauncherError if the worker still runs in another fleet, for example after the manager was rebuilt."""
        name = os.path.basename(directory)
        try:
            fleets = os.listdir(self._home)
        except FileNotFoundError:
            return
        for fleet_id in fleets:
            other = os.path.join(self._home, fleet_id, host_name(), "launchers", name)
            if other == directory or not os.path.exists(paths.agent_file(other)):
                continue
            worker = load_workers(other, settings.load(other).runtime_dir).get(self._options.worker_id)
            if worker is not None and worker.runner_alive():
                raise LauncherError(
                    f"{self._options.worker_id} already runs here under another manager (fleet {fleet_id}, "
                    f"pid {worker.status.get('pid')})",
                    "stop it there first",
                )

    def _check_running(self, worker: WorkerHandle) -> None:
        """Raise LauncherError if the running worker has another command than the given one."""
        stored = _object(paths.spec_file(worker.directory))
        running = worker.status.get("launch_digest") or stored.get("launch_digest")
        if running == messages.launch_digest(self._options.spec()):
            return
        was = shown((stored.get("spec") or {}).get("command", "another command"))
        what = f"already running: {was} (pid {worker.status.get('pid')}, attempt {worker.attempt})"
        if was == self._options.command:
            what += ", with another working directory or environment"
        if not self._options.replace:
            raise LauncherError(f"{self._options.worker_id}: {what}", "stop it first or --replace")
        self._output.say(f"{what}; stopping it (--replace)")
        _stop(worker)

    def _is_what_it_had(self, directory: str) -> bool:
        """Whether the stored assignment has the given command; then it may start before the manager has responded."""
        stored = _object(paths.assignments_file(directory)).get("assignments") or []
        mine = messages.launch_digest(self._options.spec())
        return any(messages.launch_digest(messages.decode(Assignment, one).spec) == mine for one in stored)

    # -------------------------------------------------------------------------------------- while the agent runs

    def _report(self, report: WorkerReport) -> None:
        if not report.attempt and not report.reason:
            return
        if self._interrupted == "stopped" and report.state in states.SETTLED:
            self._output.say("stopped; the launcher ends")
            return
        self._output.say(self._describe(report))
        if self._options.exit_when_done and report.state in (states.EXITED, states.FAILED) and self._agent is not None:
            last = report.last_exit
            self._exit_code = 1 if last is None else last.code if last.code is not None else 128 + (last.signal or 0)
            self._agent.leave("stopped")

    def _link(self, trouble: str) -> None:
        then = "is stopped when its lease ends" if self._options.on_partition == "fence" else "runs on"
        self._output.say(f"manager unreachable ({trouble}); the worker {then}" if trouble else "the manager answers")

    def _removed(self) -> None:
        self._output.say("removed by the manager; the launcher ends")
        if self._agent is not None:
            self._agent.leave("stopped")

    def _left_running(self) -> str:
        worker = self._agent.workers.get(self._options.worker_id) if self._agent is not None else None
        if worker is None or worker.state not in states.ALIVE:
            return ""
        how_long = " until its lease ends" if self._options.on_partition == "fence" else ""
        return f"the process keeps running{how_long} (pid {worker.status.get('pid')}); the next start adopts it"

    # -------------------------------------------------------------------------------------------------- signals

    def _catch_signals(self) -> None:
        for number, how in ((signal.SIGINT, "stopped"), (signal.SIGTERM, "stopped"), (signal.SIGHUP, "now")):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup, and jobs in the background of a script
                signal.signal(number, self._handler(how))

    def _handler(self, how: str) -> Callable[[int, Optional[FrameType]], None]:
        def handle(_number: int, _frame: Optional[FrameType]) -> None:
            self._interrupted = how
            if self._agent is not None:
                self._agent.leave(how)

        return handle


def _stop(worker: WorkerHandle) -> None:
    """Stop the worker through its runner. Raises LauncherError if that takes too long."""
    deadline = time.monotonic() + REPLACE_TIMEOUT_S
    asked = False
    while worker.runner_alive():
        if worker.link is None:
            worker.connect()
        elif worker.link.closed:
            worker.lost_runner(time.monotonic())
        else:
            worker.receive()
            if worker.reported and not asked:
                worker.terminate_runner()
                asked = True
        if time.monotonic() > deadline:
            raise LauncherError(
                f"{worker.worker_id} does not stop (pid {worker.status.get('pid')})", "check it with ps and kill it"
            )
        time.sleep(0.02)


def _managers_file(home: str) -> str:
    return os.path.join(home, "managers.json")


def _remembered(home: str) -> dict[str, str]:
    return {url: str(fleet_id) for url, fleet_id in _object(_managers_file(home)).items()}


def _remember(home: str, url: str, fleet_id: str) -> None:
    os.makedirs(home, mode=paths.PRIVATE_DIR, exist_ok=True)
    paths.write_json(_managers_file(home), {**_remembered(home), url: fleet_id})


def _object(path: str) -> dict[str, Any]:
    try:
        value = paths.read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
