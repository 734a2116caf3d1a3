"""Counts requests and their durations by plain additions, thousands of times a second.

prometheus_client's counters take a lock and look up a child for each request, which took a tenth of a heartbeat's time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from procguard.portal.metrics.fleet import Family, label_set

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
_BOUNDS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0)


class _Durations:
    """The durations of one route's requests. `buckets`: numbers of requests within each bound, the last one for longer
    requests."""

    def __init__(self, timed: bool) -> None:
        self.timed = timed
        self.buckets = [0] * (len(_BOUNDS_S) + 1)
        self.sum_s = 0.0


class RequestCounts:
    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._durations: dict[str, _Durations] = {}

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests[route, method if method in _METHODS else "other", status] += 1
        durations = self._durations.get(route)
        if durations is None:  # the duration of long polls says nothing about the manager
            durations = self._durations[route] = _Durations(not route.endswith(("/commands", "/command", "/logs")))
        if durations.timed:
            durations.buckets[bisect_left(_BOUNDS_S, seconds)] += 1
            durations.sum_s += seconds

    def families(self) -> Iterable[Family]:
        requests = Family("procguard_http_requests_total", "counter", "Requests answered")
        for (route, method, status), number in sorted(self._requests.items()):
            requests.add(label_set(route=route, method=method, status=str(status)), number)
        yield requests
        name = "procguard_http_request_duration_seconds"
        times = Family(name, "histogram", "Time to answer; held requests excluded")
        for route, durations in sorted(self._durations.items()):
            if durations.timed:
                times.lines += histogram(name, _BOUNDS_S, durations.buckets, durations.sum_s, route=route)
        yield times


def histogram(name: str, bounds: Sequence[float], buckets: Sequence[int], sum_s: float, **labels: str) -> Iterable[str]:
    """The samples of a histogram. `buckets`: numbers of values within each bound and above the previous one; the last
    for all others."""
    total = 0
    for bound, number in zip((*bounds, "+Inf"), buckets, strict=True):
        total += number
        yield f"{name}_bucket{label_set(**labels, le=str(bound))} {total}"
    of = label_set(**labels) if labels else ""
    yield f"{name}_sum{of} {sum_s}"
    yield f"{name}_count{of} {total}"
