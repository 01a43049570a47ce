"""The worker process: `python -m routing.worker` publishes the journals of all shards and the directory's
changes, counts the journals into half-hour reports, makes snapshots of the shards and prunes their journals,
and keeps the audit log and what routing knows of customers.

Imports happen inside `main`, after eventlet has patched the standard library.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from routing.relay import BeginAt


def main() -> int:
    """Returns the process's exit status."""
    from chassis import worker

    worker.patch()
    from mongoengine import get_db

    from chassis.bus.publisher import Publisher
    from chassis.config import load_settings
    from chassis.ids import new_id
    from chassis.lease import Lease
    from chassis.mongo import ensure_indexes
    from routing import reports_feed, snapshots
    from routing.audit_store import AuditDocument, MongoAudit
    from routing.config import RoutingSettings
    from routing.consumers import RoutingConsumers
    from routing.documents import DIRECTORY, ProfileDocument
    from routing.publish import OPTIONAL
    from routing.relay import LEASE_SECONDS, MongoCursors, MongoTail, Relay
    from routing.reports_store import IntervalReportDocument, MongoReports
    from routing.store import KnownCustomerDocument, MongoProfiles

    settings = load_settings(RoutingSettings)
    RoutingConsumers.use = MongoProfiles()
    RoutingConsumers.acts = MongoAudit()
    holder = f"{settings.instance_name()}-{new_id()}"

    def nearest_start(database: Any) -> BeginAt:
        return functools.partial(snapshots.nearest_start, snapshots.MongoSnapshots(database))

    def relay(stopping: worker.Stopping) -> None:
        database = get_db()
        ensure_indexes((ProfileDocument, KnownCustomerDocument))
        lease = Lease(database["leases"], "journal", holder, LEASE_SECONDS)
        # A connection of its own: the journals do not wait behind the directory's outbox.
        publisher = Publisher(settings.amqp_uri, service=settings.service)
        try:
            Relay(
                MongoTail(database),
                MongoCursors(database),
                publisher,
                lease,
                begin_at=nearest_start(database),
            ).run(stopping)
        finally:
            publisher.close()

    def reports(stopping: worker.Stopping) -> None:
        database = get_db()
        ensure_indexes((IntervalReportDocument, AuditDocument))
        lease = Lease(database["leases"], "reports", holder, reports_feed.LEASE_SECONDS)
        reports_feed.Reports(
            MongoTail(database), MongoReports(database), lease, begin_at=nearest_start(database)
        ).run(stopping)

    def make_snapshots(stopping: worker.Stopping) -> None:
        database = get_db()
        cursors, counted = MongoCursors(database), MongoReports(database)
        snapshots.Snapshotter(
            MongoTail(database),
            snapshots.MongoSnapshots(database),
            Lease(database["leases"], "snapshots", holder, snapshots.LEASE_SECONDS),
            settings.snapshot_options(),
            lambda shard: min(cursors.get(shard).sequence, counted.counted(shard).sequence),
        ).run(stopping)

    return worker.run_worker(
        settings,
        RoutingConsumers,
        documents=DIRECTORY,
        background=[
            worker.Background(name="journal", run=relay),
            worker.Background(name="reports", run=reports),
            worker.Background(name="snapshots", run=make_snapshots),
        ],
        optional_events=OPTIONAL,
    )


if __name__ == "__main__":
    sys.exit(main())
