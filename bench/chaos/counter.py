"""A consumer of routing's events, as any service is one: `python -m bench.chaos.counter`.

Its effect is a document a call, with the events that have been applied to it: what a service would do to an
aggregate of its own. So an event applied twice is seen, and one that never came is missing. Imports stand
inside functions, because nothing may be loaded before the worker has patched the standard library.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chassis.bus import Event

#: Where the effects are, in the database of the service.
EFFECTS = "effects"
SERVICE = "chaoscounter"


def apply(event: Event) -> None:
    """One more event of a call. Safe to repeat: the condition and the change are one write."""
    import mongoengine
    from pymongo.errors import DuplicateKeyError

    rows = mongoengine.get_db()[EFFECTS]
    change = {"$push": {"events": event.id}, "$inc": {"applied": 1}}
    try:
        rows.update_one({"_id": event.subject, "events": {"$ne": event.id}}, change, upsert=True)
    except DuplicateKeyError:
        # The call is there and has the event already.
        return


def consumers() -> type[Any]:
    """The nameko service."""
    from callmesh.routing.v1 import events_pb2
    from chassis.bus.entrypoint import subscribe

    class ChaosCounter:
        name = SERVICE

        @subscribe(
            "routing",
            events_pb2.CallQueued,
            events_pb2.CallConnected,
            events_pb2.CallEnded,
            events_pb2.CallWrappedUp,
        )
        def on_call(self, event: Event) -> None:
            apply(event)

    return ChaosCounter


def main() -> int:
    """Runs the worker; its exit status."""
    from chassis import worker

    worker.patch()
    from chassis.config import ServiceSettings, load_settings

    settings = load_settings(ServiceSettings)
    return worker.run_worker(settings, consumers(), documents=[], background=[])


if __name__ == "__main__":
    sys.exit(main())
