"""A deploy without root: one sshd of the current user on a high port is the host."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.fleet.jobs import COUNT, numbers, write_inventory
from tests.fleet.manager import Manager, Operator
from tests.fleet.user_sshd import UserSshd, find_sshd
from tests.waiting import wait_until

needs_sshd = pytest.mark.skipif(find_sshd() is None and os.environ.get("CI") != "true", reason="needs sshd")


@needs_sshd
def test_deploy_kill_restart_log_and_undeploy_through_an_ordinary_sshd(tmp_path: Path) -> None:
    """The whole path once: inventory, SSH, agent, child, log; then everything is removed."""
    (tmp_path / "sshd").mkdir()
    (tmp_path / "manager").mkdir()
    job = tmp_path / "count.py"
    job.write_text(COUNT.replace("/var/tmp", str(tmp_path)))
    with UserSshd(tmp_path / "sshd") as host:
        operator = Operator.with_keys(tmp_path / "operator", host.private_key, host.known_hosts)
        variables = {
            "ansible_host": "127.0.0.1",
            "ansible_port": host.port,
            "ansible_user": host.user,
            "procguard_service": "none",
            "procguard_workers": [{"worker_id": "solo", "command": f"python3 {job} solo"}],
        }
        inventory = write_inventory(tmp_path / "inventory.yaml", {"here": variables})
        with Manager(tmp_path / "manager", operator.environment) as manager:
            operator.manager_url = manager.url
            run = operator.invoke("deploy", "--hosts", str(inventory))
            assert run.returncode == 0, run.stdout + run.stderr
            try:
                child = psutil.Process(manager.wait_worker("solo", "running")["pid"])
                assert child.environ()["HOME"] == str(host.home)
                child.kill()
                wait_until(lambda: manager.worker("solo")["pid"] not in (None, child.pid), 10, "another pid")
                assert manager.wait_worker("solo", "running")["restarts"] == 1
                wait_until(lambda: len(numbers(manager.log_text("solo"), "solo")) > 10, 10, "log lines")
            finally:
                gone = operator.invoke("undeploy", "--hosts", str(inventory))
            assert gone.returncode == 0, gone.stdout + gone.stderr
        assert not (host.home / ".procguard").exists()
        ours = [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or [])]
        assert [one.info["cmdline"] for one in ours if "sshd" not in one.info["cmdline"][0]] == []
