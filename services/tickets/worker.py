"""The worker process: `python -m tickets.worker` consumes the bus, relays events and runs the timers.

Imports happen inside `main`, after eventlet has patched the standard library.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Returns the process's exit status."""
    from chassis import worker

    worker.patch()
    from mongoengine import get_db

    from callmesh.tickets.v1 import events_pb2
    from chassis.config import load_settings
    from chassis.ids import new_id
    from chassis.lease import Lease
    from chassis.mongo import ensure_indexes
    from tickets.config import TicketsSettings
    from tickets.consumers import TicketsConsumers
    from tickets.convert import event_of
    from tickets.documents import DOCUMENTS, TicketDocument
    from tickets.handlers import Handlers
    from tickets.store import MongoStore
    from tickets.timers import Timers

    settings = load_settings(TicketsSettings)
    clock = settings.clock()
    TicketsConsumers.use = Handlers(MongoStore(), clock, settings.rules(), event_of)

    def run_timers(stopping: worker.Stopping) -> None:
        ensure_indexes(DOCUMENTS)
        holder = f"{settings.instance_name()}-{new_id()}"
        lease = Lease(get_db()["leases"], "timers", holder, settings.timer_lease_seconds)
        loop = Timers(
            TicketsConsumers.use,
            lease,
            clock,
            poll_seconds=settings.timer_poll_seconds,
            batch_max=settings.timer_batch_max,
        )
        loop.run(stopping)

    return worker.run_worker(
        settings,
        TicketsConsumers,
        documents=[TicketDocument],
        background=[worker.Background(name="timers", run=run_timers)],
        # Told for whoever wants to know; the platform's own services can do without.
        optional_events=[events_pb2.FollowUpScheduled, events_pb2.FollowUpCompleted],
    )


if __name__ == "__main__":
    sys.exit(main())
