"""What the manager grants to those who ask, so that nobody can take it from the others.

- `connections.py`: how many connections, of all, of the unproven, of one address, of one agent: beyond, the oldest of
  that crowd is closed. How long a connection waits for its peer: beyond, it is closed.
- `memory.py`: bytes of bodies and log posts that are being received, of one caller, of all known ones, of all
  strangers: beyond, they wait in turn, then 429. Bytes that wait for slow readers, of all together: beyond, they are
  left out, or the reader with the most is closed.
- `rate.py`: how often an address, an agent or a token may do something: beyond, 429; of records, they are counted.
- `turns.py`: work in one turn of the event loop, of one caller, of all strangers: beyond, a later turn.

A *caller* is an agent or the holder of a token; "" is a stranger. A connection is *unproven* until a request on it was
identified. An *address* stands for all that one machine may have (fleet/agents/addresses.py). Bounds are keys of
`web.limits`, or constants of those who use them; who is refused gets `LimitExceeded.for_now`. Knows no HTTP, no zmq,
and not what is asked. `now` is passed in; only loops and `turns.py`, which measures, read the clock. Used from the
event loop only. Start reading at `connections.py`.

Apart on purpose, because they bound something else:

- `portal/http/websocket.py`, `portal/logs/follow.py`: what waits for one reader. It is that reader's queue.
- `portal/logs/matching.py`, `portal/auth/local_client.py`: how many use certain threads.
- `agent_api/zmq/channel.py`, `agent_api/zmq/port.py`: messages not begun. They stay unread in libzmq, before it is
known whose they are.
- `fleet/agents/heartbeat.py`: changes of one agent. They are charged after the fact, by what they have cost the state.
- `portal/auth/sessions.py`, `agent_api/sessions.py`, `fleet/agents/enrolment.py`, `fleet/history/events.py`: what is
kept of whom.
- `procguard/runtime/cooperative.py`: the manager's own long work. `deploy/ssh/pool.py`: connections that the manager
opens, from
  threads, each with a deadline.
"""
