"""Creates the additional channel that `communication.adapter_type` selects."""

from __future__ import annotations

from procguard.admission.memory import Bodies
from procguard.agent_api.handlers import AgentApi
from procguard.agent_api.interface import Access, Channel
from procguard.agent_api.mock import MockChannel
from procguard.config.limits import WebLimits
from procguard.config.schema import Communication
from procguard.errors import ConfigError
from procguard.fleet.fleet import Fleet


def create(
    communication: Communication, fleet: Fleet, agent_api: AgentApi, access: Access, limits: WebLimits, bodies: Bodies
) -> Channel:
    """The channel besides HTTP. Raises ConfigError if this machine cannot provide it."""
    own = communication.adapter_config
    if communication.adapter_type == "mock":
        return MockChannel(fleet, agent_api, access, own.mock_workers)
    try:
        from procguard.agent_api.zmq.channel import ZmqChannel  # noqa: PLC0415 - 5 MB that only this channel needs
    except ImportError as exc:
        raise ConfigError(
            f"communication.adapter_type: zmq needs pyzmq, which cannot be loaded here ({exc})",
            "install it: pip install 'procguard[zmq]'; or set adapter_type to mock: agents then use HTTP",
        ) from exc
    channel = ZmqChannel(agent_api, access, own, limits, bodies)
    fleet.state.bus.revoked.subscribe(channel.revoke)
    fleet.state.bus.secret_taken.subscribe(channel.revoke)  # existing connections continue; the agent creates a new key
    return channel
