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
#: Events taken at once: after a minute without the broker as many wait as come in a minute, and one write
#: each, by a majority of three, is slower than they come.
TOGETHER_MAX = 200
#: MongoDB's code of a key that is taken.
TAKEN = 11000


def apply(events: list[Event]) -> None:
    """More events of calls. Safe to repeat: each one's condition and change are one write."""
    import mongoengine
    from pymongo import UpdateOne
    from pymongo.errors import BulkWriteError

    writes = [
        UpdateOne(
            {"_id": event.subject, "events": {"$ne": event.id}},
            {"$push": {"events": event.id}, "$inc": {"applied": 1}},
            upsert=True,
        )
        for event in events
    ]
    # Where the key is taken the call is there, and either has the event already or was just inserted by
    # somebody else: the second time it can only be the former.
    for _ in range(2):
        try:
            mongoengine.get_db()[EFFECTS].bulk_write(writes, ordered=False)
            return
        except BulkWriteError as error:
            failed = error.details["writeErrors"]
            if error.details["writeConcernErrors"] or any(each["code"] != TAKEN for each in failed):
                raise
            writes = [writes[each["index"]] for each in failed]


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
            together_max=TOGETHER_MAX,
        )
        def on_call(self, events: list[Event]) -> None:
            apply(events)

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
