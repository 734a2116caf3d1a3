"""The shapes of a worker, a host and an event, each stated once: `workers.py`, `hosts.py`, `events.py` list the fields,
`sources.py` is what they are read from, `views.py` turns a source into what the API, the live feed and /metrics show.

Knows records, no HTTP. The lists import no record at run time: the command line loads them, too.
"""
