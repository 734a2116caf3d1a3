"""A swarm of simulated agents: the real protocol over real HTTP, thousands of them in one process, on this machine.

For benchmarks, browser and chaos tests, and `invoke swarm`. What is real: the conversation (remote_agent.agent.session:
heartbeats at the manager's interval, held requests, retries with jitter), the proof before the secret, the restart
decisions and the table of states. What is simulated: hosts, runners and children.

    from scripts.swarm import Behaviour, Swarm

    with Swarm(url, agents=200, workers_per_agent=4, seed=7, behaviour=Behaviour(crashes_per_s=2)) as swarm:
        swarm.wait_running()
        gone = swarm.kill(0.1)            # a share, a number, or ids; also silence, storm, crash, finish
        swarm.bring_back(gone)
        print(swarm.summary().replies.quantile(0.99))

Only a manager on loopback is accepted. `with` ends the agents and takes the hosts out of the manager again, also after
an error and Ctrl-C; a swarm whose owner was killed ends with it (its hosts then stay: `invoke swarm --clean`).
"""

from scripts.swarm.behaviour import Behaviour
from scripts.swarm.swarm import Swarm, default_spec
from scripts.swarm.tally import Delays, Summary

__all__ = ["Behaviour", "Delays", "Summary", "Swarm", "default_spec"]
