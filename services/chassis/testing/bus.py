"""A bus in memory, for tests of what publishes and of what consumes, without a broker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from google.protobuf.message import Message

from chassis.bus import Event

MessageType = TypeVar("MessageType", bound=Message)
Handler = Callable[[Event], object]


class MemoryBus:
    """Keeps what was published and hands it to subscribers, as JSON would arrive: parsed anew for each.

    Delivery happens in `deliver`, not in `publish`, so that a test can repeat or reorder it.
    """

    def __init__(self) -> None:
        self.published: list[Event] = []
        self._delivered = 0
        self._handlers: list[tuple[frozenset[str], Handler]] = []

    def publish(self, events: Iterable[Event]) -> None:
        """Takes events; MalformedEvent for one that the real bus would not take."""
        self.published += [Event.from_json(event.to_json()) for event in events]

    def subscribe(self, handler: Handler, *types: type[Message]) -> None:
        """`handler` gets events of the given types."""
        self._handlers.append((frozenset(kind.DESCRIPTOR.full_name for kind in types), handler))

    def deliver(self) -> int:
        """Hands on what was published since the last call, and what the handlers publish; how many events.

        An exception of a handler is raised to the caller.
        """
        count = 0
        while self._delivered < len(self.published):
            event = self.published[self._delivered]
            self._delivered += 1
            count += 1
            self.deliver_again(event)
        return count

    def deliver_again(self, event: Event) -> None:
        """Hands on one event, delivered before or not."""
        for types, handler in self._handlers:
            if event.type in types:
                handler(Event.from_json(event.to_json()))

    def messages(self, cls: type[MessageType]) -> list[MessageType]:
        """The messages of one type that were published, in order."""
        wanted = cls.DESCRIPTOR.full_name
        return [event.message(cls) for event in self.published if event.type == wanted]
