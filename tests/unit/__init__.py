"""Unit tests; the folders mirror the packages. The fakes of these and the other tests, and what they replace:

A *rig* runs the real component in a simulated environment:

- `task_runner_rig.py`: a runner's TaskRunner; time, processes and files are made up, thousands of histories run.
- `runner_rig.py`: a runner as a process with a real child, and this test as its agent.
- `../agent_host.py`: an agent as a process, and `../fake_manager.py` for it to speak to.
- `../server_process.py`: the portal's server, or the whole manager, as a process.
- `store_rig.py`, `fleet_world.py`, `gang_world.py`: a store, a registry, gangs in it; `now` is passed in.

A *simulator* imitates a missing component by the rules of docs/protocol.md. There are two of an agent:

- `simulated_host.py`: with runners and children, in one object, for a registry in this process; it cannot do without
  the reboots, cuts and lost answers that a history of the fleet is made of.
- `scripts/swarm`: thousands of them over the network, for a manager that is under load; the conversation is the real
  agent's.

And two of a manager: `../fake_manager.py`, one table over HTTP, for agents and tools; `manager_stand_in.py`, whose
process alone counts, for `invoke up`, `down` and the service.
"""
