"""Every response of the HTTP API matches its description, and none is a 5xx: schemathesis generates valid and invalid
requests from /api/openapi.json, for a manager with simulated workers.

That manager has no hosts, no SSH and no notifications, and writes only into its own directory: nothing can be harmed.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable

from procguard.portal.api.openapi.document import document
from remote_agent.protocol import messages
from tests import api_truth
from tests.chaos import ChaosReport
from tests.server_process import RunningServer

MOCK_WORKERS = 20
CASES_LONG = 10_000
CASES_SHORT = 90


def as_described() -> list[Any]:
    """schemathesis is imported here and not above: it takes a second, and every process collects this file."""
    from schemathesis.specs.openapi import checks

    return [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.response_headers_conformance,
    ]


class Asker:
    """Sends cases and checks each response against the description."""

    def __init__(self, server: RunningServer, secret: str) -> None:
        import requests

        self._server = server
        self._secret = secret
        self._checks = as_described()
        self._session = requests.Session()
        self._session.trust_env = False
        self._random = random.Random(23)
        self.statuses: Counter[int] = Counter()
        self.count = 0

    def ask(self, case: Any) -> None:
        self._make_meaningful(case)
        self._bound(case)
        headers = {"Host": f"localhost:{self._server.port}"}
        if case.path.startswith(("/api/agents/{agent_id}/", "/api/workers/{worker_id}/logs")):
            headers["Authorization"] = f"Bearer {self._secret}"
        response = case.call(
            base_url=f"http://127.0.0.1:{self._server.port}", session=self._session, headers=headers, timeout=30
        )
        self.count += 1
        self.statuses[response.status_code] += 1
        assert response.status_code < 500, f"{case.as_curl_command()}: {response.status_code} {response.text[:500]}"
        case.validate_response(response, checks=self._checks)
        kind = response.headers.get("content-type", [""])[0]
        target = response.request.path_url
        api_truth.check(case.method, target, response.status_code, kind, response.content)

    def _make_meaningful(self, case: Any) -> None:
        """Unknown ids are refused early, so half of the requests use existing ones."""
        if case.method == "DELETE" or case.path.endswith("/credentials") or self._random.random() < 0.5:
            return
        for name, value in (("worker_id", "worker1"), ("agent_id", "alpha"), ("host", "alpha")):
            if case.path_parameters and name in case.path_parameters:
                case.path_parameters[name] = value

    @staticmethod
    def _bound(case: Any) -> None:
        """Long polls and unbounded streams are excluded."""
        if isinstance(case.query, dict):
            case.query.pop("follow", None)
            if "wait" in case.query:
                case.query["wait"] = min(0.01, case.query["wait"]) if isinstance(case.query["wait"], float) else "x"


def strategies() -> list[tuple[str, Callable[[], Any]]]:
    """Valid requests of each operation, and invalid ones if it has parameters."""
    import schemathesis
    from schemathesis.generation import GenerationMode

    schema = schemathesis.openapi.from_dict(document())
    found = []
    wrong = GenerationMode.NEGATIVE
    for result in schema.get_all_operations():
        operation = result.ok()
        name = f"{operation.method.upper()} {operation.path}"
        found.append((name, operation.as_strategy))
        if operation.body or operation.query:
            found.append((name, functools.partial(operation.as_strategy, generation_mode=wrong)))
    return found


@pytest.mark.slow
@pytest.mark.chaos(23)
def test_every_answer_is_as_described_and_none_is_a_server_s_fault(tmp_path: Path, chaos_report: ChaosReport) -> None:
    server = RunningServer(
        tmp_path, f"communication.adapter_config.mock_workers={MOCK_WORKERS}", "web.limits.registrations_at_once=100000"
    )
    try:
        secret = server.deploy("alpha", "worker1", "worker2")
        server.beat("alpha", secret, messages.WorkerReport("worker1", state="running", attempt=1, pid=7))
        asker = Asker(server, secret)
        wanted = CASES_LONG if chaos_report.long else CASES_SHORT
        makers = strategies()
        for number in itertools.count():
            for index, (name, make) in enumerate(makers):
                count = max(1, min(100, wanted // len(makers)))
                run_cases(asker, make(), count, seed_of=number * 1000 + index, name=name)
            chaos_report.progress(f"{asker.count} cases")
            if asker.count >= wanted or not chaos_report.long:
                break
        assert "Traceback" not in server.log()
        assert server.ask("GET", "/readyz").status == 200
        server.beat("alpha", secret, messages.WorkerReport("worker1", state="running", attempt=1, pid=7))
        reported = ", ".join(f"{status}: {count}" for status, count in sorted(asker.statuses.items()))
        chaos_report(measured=f"{asker.count} requests over {len(makers)} forms, all as described; answers {reported}")
    finally:
        server.close()


def run_cases(asker: Asker, strategy: Any, count: int, *, seed_of: int, name: str) -> None:
    @seed(seed_of)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def run(case: Any) -> None:
        asker.ask(case)

    try:
        run()
    except Unsatisfiable:
        pass
    except AssertionError as exc:
        raise AssertionError(f"{name}: {exc}") from exc
