"""Fixtures that several unit tests share; a file that needs other ones of these names defines its own."""

from tests.agent_host import host, manager  # noqa: F401 - known to pytest by being here
from tests.unit.one_sshd import server  # noqa: F401
from tests.unit.podman_host import podman_host  # noqa: F401
from tests.unit.runner_rig import rig  # noqa: F401
