"""The workers of one host and their assignments: adopted, stored in assignments.json, written for runners.

Owns the set of workers. A full disk delays storing, never the use of an assignment. Main loop only; knows no HTTP and
starts nothing.
"""

from __future__ import annotations

import os

from remote_agent.agent.settings import AgentLog
from remote_agent.agent.worker import WorkerHandle, load_workers, longest_pause_s, remove_tree, stored_form, supersedes
from remote_agent.protocol.hints import Optional
from remote_agent.protocol.messages import Assignment, Lease, decode, valid_id
from remote_agent.system import paths, state_files
from remote_agent.system.free_port import FreePort

WRITE_AGAIN_S = 2.0


class AssignedWorkers:
    """`default_dir`: working directory of workers without `working_dir`. `base_env`: base of their environment."""

    def __init__(
        self,
        agent_dir: str,
        runtime_dir: str,
        log: AgentLog,
        default_dir: str,
        base_env: dict[str, str],
        port: FreePort,
    ) -> None:
        self._agent_dir, self._runtime_dir, self._log = agent_dir, runtime_dir, log
        self._default_dir, self._base_env, self._port = default_dir, base_env, port
        self.workers = load_workers(agent_dir, runtime_dir)
        self.rev = ""  # revision of the known assignments
        self.longest_pause_s = float("inf")  # between two heartbeats, so that no lease ends
        self.next_write = 0.0  # monotonic
        self._unstored = False  # assignments.json is older than the known assignments

    def load(self) -> None:
        """Load the stored assignments of a previous agent process."""
        path = paths.assignments_file(self._agent_dir)
        try:
            data = paths.read_json(path)
            if isinstance(data, dict):
                self._apply([decode(Assignment, one) for one in data.get("assignments", [])])
                self.rev = str(data.get("rev", ""))
        except (OSError, ValueError) as exc:
            self._log.say("assignments unreadable", path=path, why=exc)

    def take(self, assignments: list[Assignment], rev: str) -> None:
        """Apply the complete list of assignments in a reply; `rev`: its digest."""
        self._apply(assignments)
        self.rev = rev
        self.store()

    def take_leases(self, leases: list[Lease], asked_ns: int) -> None:
        for lease in leases:
            if lease.worker_id in self.workers:
                self.workers[lease.worker_id].take_lease(lease, asked_ns)

    def assign_again(self, worker: WorkerHandle) -> None:
        worker.assign_again(self._default_dir, self._base_env)

    def remove(self, worker: WorkerHandle) -> None:
        """Delete a worker and its log from this host."""
        remove_tree(worker.directory)
        state_files.forget_runtime(self._runtime_dir, worker.directory)
        del self.workers[worker.worker_id]
        self.store()

    def log_directory(self, worker_id: str) -> Optional[str]:
        worker = self.workers.get(worker_id)
        return paths.attempts_dir(worker.directory) if worker is not None else None

    def write_again(self, now: float) -> bool:
        """Retry writes refused by a full disk, every few seconds, for all workers at once. Returns whether any
        succeeded."""
        if now < self.next_write:
            return False
        self.next_write = now + WRITE_AGAIN_S
        written = False
        for worker in self.workers.values():
            if worker.unwritten and worker.assignment is not None:
                self.assign_again(worker)
                written = written or not worker.unwritten
        if self._unstored:
            self.store()
        return written

    @property
    def behind(self) -> bool:
        """Whether the agent or a runner has data that the disk refused."""
        return self._unstored or any(
            worker.unwritten or worker.status.get("problem") for worker in self.workers.values()
        )

    def store(self) -> None:
        assigned = [worker.assignment for worker in self.workers.values() if worker.assignment is not None]
        try:
            paths.write_json(paths.assignments_file(self._agent_dir), stored_form(assigned, self.rev), durable=True)
            self._unstored = False
            self._log.changed("assignments not stored", "")
        except OSError as exc:
            self._unstored = True
            self._log.changed("assignments not stored", str(exc.strerror or exc))

    def close(self) -> None:
        for worker in self.workers.values():
            if worker.link is not None:
                worker.link.close()

    def _apply(self, assignments: list[Assignment]) -> None:
        for assignment in assignments:
            if not valid_id(assignment.worker_id):
                continue
            worker = self.workers.get(assignment.worker_id)
            if worker is None:
                directory = paths.worker_dir(self._agent_dir, assignment.worker_id)
                if assignment.desired == "removed" and not os.path.isdir(directory):
                    continue
                worker = self.workers[assignment.worker_id] = WorkerHandle(
                    assignment.worker_id, directory, self._runtime_dir
                )
                worker.read_status()
            if not supersedes(assignment, worker.assignment):
                self._log.say("older assignment ignored", worker=worker.worker_id, epoch=assignment.epoch)
                continue
            worker.assign(assignment, self._default_dir, self._base_env)
            self._port.handed_out(assignment.env)
        self.longest_pause_s = longest_pause_s(assignments)
        listed = {assignment.worker_id for assignment in assignments}
        for worker_id, worker in self.workers.items():
            if worker_id not in listed:
                worker.assignment = None  # no longer controlled by this agent; running processes continue
