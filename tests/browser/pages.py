"""Every page of the portal and the element that shows that its data has loaded. A new page is a line here:
test_appearance.py then checks it in both themes and languages, at every width, with axe and with long words."""

from __future__ import annotations

from typing import NamedTuple


class PortalPage(NamedTuple):
    """`address` may name {worker}, {host} and {operation}; `ready`: a selector that is visible once the page has its
    data."""

    name: str
    address: str
    ready: str


PORTAL_PAGES = [
    PortalPage("overview", "#/overview", ".tile"),
    PortalPage("workers", "#/workers", ".workers-table .table-body .table-row"),
    PortalPage("workers, none matching", "#/workers?q=nothing-like-it", ".empty"),
    PortalPage("worker", "#/worker/{worker}", ".log-line"),
    PortalPage("worker, attempts", "#/worker/{worker}?tab=attempts", ".attempts-table .table-body .table-row"),
    PortalPage("worker, charts", "#/worker/{worker}?tab=charts", ".uplot"),
    PortalPage("compare", "#/compare?w=gpu-00000-w0,gpu-00000-w2,gpu-00001-w1&m=memory", ".chart-legend li"),
    PortalPage("compare, none chosen", "#/compare", ".empty"),
    PortalPage("worker, configuration", "#/worker/{worker}?tab=config", ".config-command"),
    PortalPage("worker, unknown", "#/worker/no-such-worker", ".empty"),
    PortalPage("hosts", "#/hosts", ".hosts-table .table-body .table-row"),
    PortalPage("host", "#/host/{host}", ".host-workers li"),
    PortalPage("host, unknown", "#/host/no-such-host", ".empty"),
    PortalPage("gpus", "#/gpus", ".gpus-table .table-body .table-row"),
    PortalPage("operations", "#/operations", ".operations-table .table-body .table-row"),
    PortalPage("operation", "#/operation/{operation}", ".items-table .table-body .table-row"),
    PortalPage("events", "#/events", ".events-table .table-body .table-row"),
    PortalPage("events, none in this range", "#/events?since=1h&q=nothing-like-it", ".empty .button"),
    PortalPage("logs", "#/logs?w={worker},gpu-00001-w0&grep=line", ".log-line mark"),
    PortalPage("logs, none chosen", "#/logs", ".suggestions .button"),
    PortalPage("search", "#/search?find=attempt%20begins", ".found mark"),
    PortalPage("search, nothing asked", "#/search", ".empty"),
    PortalPage("recovery", "#/recovery", ".restart-list li"),
    PortalPage("groups", "#/groups?group=group0", ".members-table .table-body .table-row"),
    PortalPage("notifications", "#/admin/notifications", ".mutes-table .table-body .table-row"),
    PortalPage("tokens", "#/admin/tokens", ".tokens-table .table-body .table-row"),
    PortalPage("audit", "#/admin/audit", ".audit-table .table-body .table-row"),
    PortalPage("manager", "#/admin/system", ".retention-table .table-body .table-row"),
    PortalPage("api", "#/api", ".api-route"),
    PortalPage("api, none matching", "#/api?q=nothing-like-it", ".empty"),
    PortalPage("recovery of one", "#/recovery/{worker}", ".why-headline"),
]
