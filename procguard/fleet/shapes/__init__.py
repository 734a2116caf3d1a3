"""Declares the fields of workers, hosts and events once: `workers.py`, `hosts.py` and `events.py` list the fields,
`sources.py` is what they are read from, `parts.py` has the types of their parts, `views.py` turns a source into the
API, the live feed and /metrics.

Knows records, no HTTP. The lists import no records at run time, because the command line loads them too.
"""
