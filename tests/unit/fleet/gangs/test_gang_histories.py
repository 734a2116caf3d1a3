"""Random histories of a gang: never two epochs at once, never more restarts than its budget, always a final state.

Hosts are simulated (gang_world.py); fleet, leases, store and decisions are real. Time is simulated.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from procguard.config.groups import GroupPolicy
from procguard.fleet.gangs import decider
from procguard.fleet.gangs.decider import GangLimits, GangRecord, Mark, Member
from remote_agent.protocol import messages
from tests.sizes import examples
from tests.unit.gang_world import GROUP, GangWorld, Host

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a thousand commits: their fsyncs are tested elsewhere
MAX_ATTEMPTS = 2
HISTORIES = examples(12, 300)
WORKERS = ("w1", "w2", "w3")
MEMBERS = st.sampled_from(WORKERS)
HOSTS = st.sampled_from(["h1", "h2", "h3", "h4"])
ENDS = ("running", "failed", "stopped", "finished")


class GangHistory(RuleBasedStateMachine):
    @initialize()
    def deployed(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="gang-", dir=MEMORY)
        groups = {GROUP: GroupPolicy(restart="gang", max_attempts=MAX_ATTEMPTS)}
        self.world = GangWorld(Path(self.directory.name), groups=groups)
        self.world.declare()
        self.world.add_spare()
        self.world.go_on(1)
        self.late: list[tuple[str, messages.AgentHeartbeat]] = []

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.all_is_well_again()
        finally:
            self.world.fleet.close()
            self.directory.cleanup()

    def all_is_well_again(self) -> None:
        for host in self.world.hosts.values():
            host.connected = True
            if not host.on:
                host.power_on()
        self.world.go_on(120, step_s=6)
        gang = self.world.gang
        assert gang.phase in ENDS, gang
        for worker_id in WORKERS:
            job = self.world.job(worker_id)
            if gang.phase in ("running", "finished"):
                assert job.state in ("running", "exited"), (job, gang)
            assert (job.life is not None) == (gang.phase == "running" and job.state == "running"), (job, gang)
        self.one_epoch_at_a_time()

    # ------------------------------------------------------------------------------------------ what happens

    @rule(worker_id=MEMBERS)
    def member_fails(self, worker_id: str) -> None:
        for host in self.where_it_lives(worker_id):
            host.fails(worker_id)

    @rule(worker_id=MEMBERS)
    def member_finishes(self, worker_id: str) -> None:
        for host in self.where_it_lives(worker_id):
            host.finishes(worker_id)

    def where_it_lives(self, worker_id: str) -> list[Host]:
        hosts = self.world.hosts.values()
        return [host for host in hosts if worker_id in host.jobs and host.jobs[worker_id].life is not None]

    @rule(host=HOSTS)
    def cable_out(self, host: str) -> None:
        self.world.hosts[host].connected = False

    @rule(host=HOSTS)
    def cable_in(self, host: str) -> None:
        self.world.hosts[host].connected = True

    @rule(host=HOSTS)
    def power_switch(self, host: str) -> None:
        one = self.world.hosts[host]
        one.power_cut() if one.on else one.power_on()

    @rule(seconds=st.sampled_from([0, 1, 3, 12, 40]))
    def time_passes(self, seconds: int) -> None:
        self.world.go_on(seconds)

    @rule(worker_id=MEMBERS)
    def a_spare_is_tried(self, worker_id: str) -> None:
        if (
            self.world.fleet.state.agent_status[self.world.fleet.state.workers_by_id[worker_id].agent_id].state
            == "unreachable"
        ):
            self.world.give_to_spare(worker_id)

    @rule(host=HOSTS)
    def one_host_talks(self, host: str) -> None:
        self.world.hosts[host].talk()

    @rule(host=HOSTS)
    def the_answer_is_lost(self, host: str) -> None:
        """The manager receives and grants; the host never gets the response. The same message may arrive again
        later."""
        one = self.world.hosts[host]
        if one.on and one.connected:
            beat = one.heartbeat()
            self.late.append((host, beat))
            self.world.fleet.agents.heartbeat(host, beat, self.world.now)

    @precondition(lambda self: bool(self.late))
    @rule()
    def a_report_arrives_late(self) -> None:
        host, beat = self.late.pop(0)
        if beat.pid == self.world.hosts[host].boots:
            self.world.fleet.agents.heartbeat(host, beat, self.world.now)

    @rule(crash=st.booleans())
    def manager_restarts(self, crash: bool) -> None:
        if crash:
            self.world.fleet = self.world.open()
        else:
            self.world.restart()

    @rule(worker_id=MEMBERS, verb=st.sampled_from(["start", "stop", "restart", "kill"]))
    def an_operator_acts(self, worker_id: str, verb: str) -> None:
        self.world.fleet.workers.command(worker_id, verb, "ann", self.world.now)

    # ------------------------------------------------------------------------------------------ what always holds

    @invariant()
    def one_epoch_at_a_time(self) -> None:
        if hasattr(self, "world"):
            assert self.world.mixed_s() == 0.0
            assert len(self.world.epochs()) <= 1

    @invariant()
    def never_more_than_the_budget(self) -> None:
        if hasattr(self, "world"):
            assert 0 <= self.world.gang.attempts <= MAX_ATTEMPTS


GangHistory.TestCase.settings = settings(
    max_examples=HISTORIES, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
class TestGangHistory(GangHistory.TestCase):
    """Histories of twenty events: twelve, in the long form (PROCGUARD_LONG_TESTS=1) three hundred."""


# --------------------------------------------------------------------------------------------------- the decider


def members(count: int) -> st.SearchStrategy[list[Member]]:
    one = st.builds(
        Member,
        worker_id=st.just(""),
        host=st.just("h"),
        state=st.sampled_from(["stopped", "starting", "running", "stopping", "backoff", "exited", "failed"]),
        current=st.booleans(),
        attempt=st.integers(0, 4),
        since=st.floats(0, 10),
        reason=st.just("because"),
        epoch=st.sampled_from([7, 8]),
        gone=st.booleans(),
        ready=st.booleans(),
        lost=st.booleans(),
        never_on=st.sampled_from(["", "", "import_error", "time_limit"]),
    )
    return st.lists(one, min_size=count, max_size=count).map(
        lambda found: [member._replace(worker_id=f"w{number}") for number, member in enumerate(found)]
    )


PHASES = st.sampled_from(["restarting", "running", "stopped", "failed", "finished"])


@settings(max_examples=examples(300), deadline=None)
@given(
    phase=PHASES,
    known=members(3),
    launched=st.integers(0, 3),
    attempts=st.integers(0, 3),
    wanted=st.booleans(),
    waited_s=st.floats(0, 100),
    delay_s=st.sampled_from([0.0, 5.0]),
)
def test_a_gang_is_launched_only_when_all_are_gone_their_hosts_are_there_and_the_pause_is_over(
    phase: decider.Phase,
    known: list[Member],
    launched: int,
    attempts: int,
    wanted: bool,
    waited_s: float,
    delay_s: float,
) -> None:
    marks = {f"w{number}": Mark(number, 7, 1) for number in range(launched)}
    gang = GangRecord("g", phase=phase, epoch=7, attempts=attempts, members=marks, delay_s=delay_s)
    step = decider.decide(gang, known, GangLimits(3), wanted=wanted, waited_s=waited_s)
    if step.action == "launch":
        assert wanted and phase == "restarting" and waited_s >= delay_s
        assert all(member.gone and member.ready for member in known)
    if step.action == "hold":
        assert phase == "running" and step.attempts <= 3 and step.culprit
    if step.action == "fail":
        assert phase == "running" and step.culprit in step.reason
        culprit = next(member for member in known if member.worker_id == step.culprit)
        assert attempts == 3 or (culprit.never_on and culprit.state == "failed")
    if not wanted:
        assert step.action == ("keep" if phase == "stopped" else "stop")
    assert step.attempts <= max(attempts, 3)
