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
    from tickets.governing import Governor, MongoState
    from tickets.handlers import Handlers
    from tickets.records import RECORDS, MongoRecords
    from tickets.store import MongoStore
    from tickets.timers import Governing, Timers

    settings = load_settings(TicketsSettings)
    clock = settings.clock()
    state = MongoState()
    governor = Governor(settings.rules(), MongoRecords(), state, clock)
    # Consumers begin before the loop that keeps the rules fresh.
    TicketsConsumers.use = Handlers(MongoStore(), clock, governor.known, event_of)

    def run_timers(stopping: worker.Stopping) -> None:
        ensure_indexes((*DOCUMENTS, *RECORDS.values()))
        holder = f"{settings.instance_name()}-{new_id()}"
        lease = Lease(get_db()["leases"], "timers", holder, settings.timer_lease_seconds)
        loop = Timers(
            TicketsConsumers.use,
            lease,
            clock,
            poll_seconds=settings.timer_poll_seconds,
            batch_max=settings.timer_batch_max,
            governing=Governing(governor, state),
        )
        loop.run(stopping)

    return worker.run_worker(
        settings,
        TicketsConsumers,
        documents=[TicketDocument, RECORDS["articles"]],
        people="customers",
        background=[worker.Background(name="timers", run=run_timers)],
        # Told for whoever wants to know; the platform's own services can do without.
        optional_events=[
            events_pb2.FollowUpScheduled,
            events_pb2.FollowUpCompleted,
            events_pb2.SlaWarned,
            events_pb2.TicketEscalated,
            events_pb2.TicketAssigned,
            events_pb2.CommentAdded,
            events_pb2.TicketsMerged,
            events_pb2.ArticlePublished,
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
