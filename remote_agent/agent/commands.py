"""Commands from the manager: each is executed at most once, on its attempt, or expires visibly.

Owns the journal's command entries and the results for the manager. restart and kill go to the runner, which checks
attempt and time again; start and stop need nothing here, because assignments contain them. Main loop only; knows no
HTTP.

A command is valid for `ttl_s` from the time at which its reply was sent. That time is unknown here: this process, or
the whole host, may have been frozen while the reply was in a socket. It was after the request was sent, so that time
is used. Times are seconds on CLOCK_BOOTTIME.
"""

from __future__ import annotations

from remote_agent.agent.journal import AgentJournal
from remote_agent.agent.worker import WorkerHandle
from remote_agent.protocol import reasons
from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.messages import Command, CommandResult
from remote_agent.protocol.reasons import NONE, Reason, because
from remote_agent.protocol.states import STOPPED

MAX_RESULTS = 500
PROMPT_S = 1.0  # a reply within this time after its request was not delayed, so its times are reliable


class CommandExecutor:
    def __init__(self, journal: AgentJournal) -> None:
        self._journal = journal
        self.seq = 0  # the highest Command.seq received by this process
        self._results: dict[str, CommandResult] = {}  # not yet at the manager
        self._sent: set[str] = set()  # included in the heartbeat in progress
        self._news = False

    def receive(self, commands: list[Command], workers: dict[str, WorkerHandle], now: float, asked: float) -> None:
        """Accept the commands of a response. `asked`: the time when its request was sent. Commands that may have
        expired since are not accepted: the manager sends them again with the remaining time, or reports that they
        expired."""
        for command in sorted(commands, key=lambda one: one.seq):
            acts = command.command in ("restart", "kill")
            expires = asked + max(0.0, command.ttl_s)
            if acts and now >= expires and now > asked + PROMPT_S:
                return
            self.seq = max(self.seq, command.seq)
            if acts:
                self._receive_one(command, workers.get(command.worker_id), now, expires)

    def send_postponed(self, worker: WorkerHandle, now: float) -> None:
        """Send the commands that waited for the worker's runner."""
        if worker.link is not None and not worker.reported:
            return
        waiting, worker.postponed = worker.postponed, []
        for command, expires in waiting:
            self._act(command, worker, expires, now)

    def runner_result(self, worker: WorkerHandle, message: dict[str, Any]) -> None:
        command_id = str(message.get("id", ""))
        # Sent again to an agent that has just started: new only if its predecessor died before it received it.
        open_since_before = self._journal.acted(command_id) and self._journal.result(command_id) is None
        if worker.waiting.pop(command_id, None) is not None or open_since_before:
            status = str(message.get("status"))
            status = status if status in ("done", "expired") else "failed"
            self._end(command_id, status, reasons.read(message, "message"))

    def runner_gone(self, worker: WorkerHandle) -> None:
        """Conclude the results of unanswered commands from the worker's state, after its runner has ended."""
        waiting, worker.waiting = worker.waiting, {}
        for command_id, command in waiting.items():
            over = worker.attempt > command.attempt or (command.command == "kill" and worker.state == STOPPED)
            self._end(command_id, "done" if over else "failed", NONE if over else because("command.runner_ended"))

    def results(self) -> list[CommandResult]:
        """The results to send with the next heartbeat."""
        chosen = list(self._results.values())[:MAX_RESULTS]
        self._sent = {result.command_id for result in chosen}
        return chosen

    def results_taken(self) -> None:
        """The heartbeat with these results was answered: forget them."""
        for command_id in self._sent:
            self._results.pop(command_id, None)
        self._sent = set()

    def take_news(self) -> bool:
        news, self._news = self._news, False
        return news

    def _receive_one(self, command: Command, worker: Optional[WorkerHandle], now: float, expires: float) -> None:
        if worker is None and not self._journal.acted(command.command_id):
            self._refuse(command.command_id, "failed", because("command.no_worker", worker=command.worker_id))
        elif worker is not None:
            self._act(command, worker, expires, now)

    def _act(self, command: Command, worker: WorkerHandle, expires: float, now: float) -> None:
        ready = worker.reported if worker.link is not None else worker.settled
        if self._journal.acted(command.command_id):
            self._repeat(command, worker, ready)
        elif now >= expires:
            self._refuse(command.command_id, "expired", because("command.late"))
        elif worker.attempt > command.attempt:
            self._refuse(
                command.command_id,
                "failed",
                because("command.attempt_over", meant=command.attempt, attempt=worker.attempt),
            )
        elif not ready or worker.attempt < command.attempt:
            self._postpone(command, worker, expires)  # its runner is starting, or being adopted
        elif worker.link is not None:
            self._journal.begin(command.command_id)
            worker.waiting[command.command_id] = command
            order = worker.link.restart if command.command == "restart" else worker.link.kill
            order(command.attempt, command.command_id, int(expires * 1e9))
        elif command.command == "kill":
            self._refuse(command.command_id, "done", because("command.was_already", state=worker.state))
        else:
            why = because("command.start_instead", worker=worker.worker_id, state=worker.state)
            self._refuse(command.command_id, "failed", why)

    def _postpone(self, command: Command, worker: WorkerHandle, expires: float) -> None:
        if all(one.command_id != command.command_id for one, _ in worker.postponed):
            worker.postponed.append((command, expires))

    def _repeat(self, command: Command, worker: WorkerHandle, ready: bool) -> None:
        """Handle a repeated command, whose result may have been lost: send the result again, never act again."""
        known = self._journal.result(command.command_id)
        if known is not None:
            self._results[known.command_id] = known
            self._news = True
        elif command.command_id in worker.waiting:
            return
        elif not ready:
            self._postpone(command, worker, float("inf"))  # its runner may still report the result
        else:
            over = worker.attempt > command.attempt or (command.command == "kill" and worker.state == STOPPED)
            self._end(command.command_id, "done" if over else "failed", because("command.agent_died"))

    def _refuse(self, command_id: str, status: str, message: Reason) -> None:
        self._journal.begin(command_id)
        self._end(command_id, status, message)

    def _end(self, command_id: str, status: str, message: Reason) -> None:
        result = CommandResult(command_id, status, message)  # type: ignore[arg-type]
        self._journal.end(result)
        self._results[command_id] = result
        self._news = True
