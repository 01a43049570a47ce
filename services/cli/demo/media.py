"""The voice path between callers and agents, as far as the demo needs it: which region's media stands.

A region's agents sit behind its router's building: when it is lost, their conversations break off in the same
instant
for both sides, which is how an edge learns it in the field (media time-out, BYE of the SBC).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Media:
    """Regions whose media is gone, and the conversations that break with it."""

    def __init__(self, region_of_agent: dict[str, str]) -> None:
        self._region_of = region_of_agent
        self._down: set[str] = set()
        self._bridges: dict[str, tuple[str, asyncio.Event]] = {}
        self._listeners: dict[str, list[Callable[[], None]]] = {}

    def region_of(self, agent: str) -> str:
        """The agent's region; empty for an agent the demo does not know."""
        return self._region_of.get(agent, "")

    def is_down(self, region: str) -> bool:
        return region in self._down

    def on_loss(self, region: str, listener: Callable[[], None]) -> None:
        """`listener` is called each time the region is lost."""
        self._listeners.setdefault(region, []).append(listener)

    def bridge(self, call: str, agent: str) -> asyncio.Event:
        """Bridges a caller with an agent; the event is set if the media breaks, at once when it is gone
        already.
        """
        broken = asyncio.Event()
        self._bridges[call] = (self.region_of(agent), broken)
        if self.is_down(self.region_of(agent)):
            broken.set()
        return broken

    def unbridge(self, call: str) -> None:
        """The conversation is over; harmless if it was not bridged."""
        self._bridges.pop(call, None)

    def lose(self, region: str) -> None:
        """The region is gone with all its conversations."""
        self._down.add(region)
        for home, broken in list(self._bridges.values()):
            if home == region:
                broken.set()
        for listener in self._listeners.get(region, []):
            listener()

    def restore(self, region: str) -> None:
        """The region's agents can be reached again."""
        self._down.discard(region)
