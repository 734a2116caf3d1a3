"""Measures the network traffic of a page: its requests, their transferred bytes, and the wait of a distant browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Page


@dataclass
class Traffic:
    """Requests that reached the manager since `begin`, without those served by the browser's cache."""

    page: Page
    sent: dict[str, str] = field(default_factory=dict)  # request -> its URL
    sizes: dict[str, int] = field(default_factory=dict)  # headers and body, as transferred

    def __post_init__(self) -> None:
        self._session = self.page.context.new_cdp_session(self.page)
        self._session.on("Network.requestWillBeSent", self._begin)
        self._session.on("Network.webSocketCreated", self._begin)
        self._session.on("Network.requestServedFromCache", self._cached)
        self._session.on("Network.responseReceived", self._response)
        self._session.on("Network.loadingFinished", self._end)
        self._session.send("Network.enable")

    def begin(self) -> None:
        self.sent.clear()
        self.sizes.clear()

    def slow(self, round_trip_ms: float) -> None:
        """Add latency to every request, including WebSockets, as emulated by Chromium."""
        limits = {"offline": False, "latency": round_trip_ms, "downloadThroughput": -1, "uploadThroughput": -1}
        self._session.send("Network.emulateNetworkConditions", limits)

    @property
    def bytes(self) -> int:
        return sum(size for request, size in self.sizes.items() if request in self.sent)

    def _begin(self, event: dict[str, Any]) -> None:
        address = event["url"] if "url" in event else event["request"]["url"]
        if not address.startswith("data:"):
            self.sent[event["requestId"]] = address

    def _cached(self, event: dict[str, Any]) -> None:
        self.sent.pop(event["requestId"], None)

    def _response(self, event: dict[str, Any]) -> None:
        response = event["response"]
        if response.get("fromDiskCache") or response.get("fromPrefetchCache"):
            self.sent.pop(event["requestId"], None)

    def _end(self, event: dict[str, Any]) -> None:
        self.sizes[event["requestId"]] = int(event["encodedDataLength"])
