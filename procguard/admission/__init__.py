"""Limits on what callers may use of the manager, so that no caller can exhaust it.

- `connections.py`: the number of connections, in total, unproven, per address and per agent; beyond a limit, the oldest
  connection that it covers is closed. Also how long a connection may wait for its peer before it is closed.
- `memory.py`: the bytes of bodies and log posts being received, per caller, for all known callers, and for all
  strangers; beyond, they wait in a queue, then 429. Also the bytes that wait for slow readers, in total; beyond, they
  are dropped, or the reader with the most is closed.
- `rate.py`: how often an address, an agent or a token may do something; beyond, 429. Records beyond it are counted.
- `turns.py`: work per iteration of the event loop, per caller and for all strangers; the rest waits for a later one.

A *caller* is an agent or the holder of a token; a *stranger*, written "", is an unidentified caller. A connection is
*unproven* until a request on it has been identified. An *address* stands for all addresses that one machine may have
(fleet/agents/addresses.py). Limits are keys of `web.limits`, or constants of the modules that use them; exceeding one
raises `LimitExceeded.for_now`. This package knows neither HTTP nor zmq nor the content of requests. `now` is passed in;
only loops and `turns.py`, which measures, read the clock. Used from the event loop only. Start with `connections.py`.

The following limits are elsewhere, because they bound something else:

- `portal/http/websocket.py`, `portal/logs/follow.py`: the queue of one reader.
- `portal/logs/matching.py`, `portal/auth/local_client.py`: the number of requests that use certain threads.
- `agent_api/zmq/channel.py`, `agent_api/zmq/port.py`: messages not yet read. They stay in libzmq, before their sender
  is known.
- `fleet/agents/heartbeat.py`: changes by one agent. They are charged afterwards, by what they have cost the state.
- `portal/auth/sessions.py`, `agent_api/sessions.py`, `fleet/agents/enrolment.py`, `fleet/history/events.py`: the number
  of stored records.
- `procguard/runtime/cooperative.py`: the manager's own long work. `deploy/ssh/pool.py`: connections that the manager
  opens from threads, each with a deadline.
"""
