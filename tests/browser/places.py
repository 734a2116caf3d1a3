"""Every page of the portal, and how to tell that it has its data. A new page is a line here: test_look.py then looks at
it in both themes and languages, at every width, with axe and with long words."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """`address` may name {worker}, {host} and {operation}; `ready`: a selector that is visible once the page has its
    data."""

    name: str
    address: str
    ready: str


PLACES = [
    Place("overview", "#/overview", ".tile"),
    Place("workers", "#/workers", ".workers-table .table-body .table-row"),
    Place("workers, none matching", "#/workers?q=nothing-like-it", ".empty"),
    Place("worker", "#/worker/{worker}", ".log-line"),
    Place("worker, charts", "#/worker/{worker}?tab=charts", ".chart-canvas"),
    Place("worker, configuration", "#/worker/{worker}?tab=config", ".config-command"),
    Place("worker, unknown", "#/worker/no-such-worker", ".empty"),
    Place("hosts", "#/hosts", ".hosts-table .table-body .table-row"),
    Place("host", "#/host/{host}", ".host-workers li"),
    Place("host, unknown", "#/host/no-such-host", ".empty"),
    Place("operations", "#/operations", ".operations-table .table-body .table-row"),
    Place("operation", "#/operation/{operation}", ".items-table .table-body .table-row"),
    Place("events", "#/events", ".events-table .table-body .table-row"),
    Place("events, none in this range", "#/events?range=1h&q=nothing-like-it", ".empty .button"),
    Place("logs", "#/logs?w={worker},gpu-00001-w0&grep=line", ".log-line mark"),
    Place("logs, none chosen", "#/logs", ".suggestions .button"),
    Place("search", "#/search?find=attempt%20begins", ".found mark"),
    Place("search, nothing asked", "#/search", ".empty"),
    Place("recovery", "#/recovery", ".restart-list li"),
    Place("api", "#/api", ".api-route"),
    Place("api, none matching", "#/api?q=nothing-like-it", ".empty"),
    Place("recovery of one", "#/recovery/{worker}", ".why-headline"),
]
