"""A swarm of simulated agents: the real protocol over real HTTP, thousands of them in one process, on this machine.

For benchmarks, browser and chaos tests, and `invoke swarm`. The protocol is real (remote_agent.agent.session:
heartbeats at the manager's interval, long polls, retries with jitter), as are authentication, restart decisions and the
table of states. Hosts, runners and children are simulated.

    from scripts.swarm import Behaviour, Swarm

    with Swarm(url, agents=200, workers_per_agent=4, seed=7, behaviour=Behaviour(crashes_per_s=2)) as swarm:
        swarm.wait_running()
        gone = swarm.kill(0.1)            # a share, a number, or ids; also silence, storm, crash, finish
        swarm.bring_back(gone)
        print(swarm.summary().replies.quantile(0.99))

Only a manager on loopback is accepted. At its end, `with` stops the agents and removes the hosts from the manager, also
after an error or Ctrl-C. If the owner of a swarm is killed, the agents end, but the hosts stay in the manager; to
remove them: `invoke swarm --clean`.
"""

from scripts.swarm.behaviour import Behaviour
from scripts.swarm.swarm import Swarm, default_spec
from scripts.swarm.tally import Delays, Summary

__all__ = ["Behaviour", "Delays", "Summary", "Swarm", "default_spec"]
