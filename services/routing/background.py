"""The worker's background loops, put together: the relay, the reports, the snapshots, the forgetting of
callers.

Imported after eventlet has patched the standard library. Each loop opens its collections when it begins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mongoengine import get_db

from chassis import metrics
from chassis.bus.publisher import Publisher
from chassis.eventlog import EventLog, Recorded
from chassis.ids import new_id
from chassis.lease import Lease
from chassis.mongo import ensure_indexes
from routing import relay, reports_feed, snapshots
from routing.audit_store import AuditDocument
from routing.config import RoutingSettings
from routing.documents import ProfileDocument
from routing.metrics_journal import JournalMetrics
from routing.reports_store import IntervalReportDocument, MongoReports
from routing.store import KnownCustomerDocument, MongoProfiles

if TYPE_CHECKING:
    from pymongo.database import Database

#: Pause between two looks for numbers that have not called for long, real seconds.
FORGET_SECONDS = 300.0

#: Waits so many seconds at most; True when the loop is to end.
Stopping = Callable[[float], bool]


class Loops:
    """What runs beside the consumers, each loop under a lease of its own."""

    def __init__(self, settings: RoutingSettings) -> None:
        """Does no I/O."""
        self._settings = settings
        #: Names this process in the leases.
        self._holder = f"{settings.instance_name()}-{new_id()}"

    def _lease(self, database: Database[dict[str, Any]], name: str, seconds: float) -> Lease:
        return Lease(database["leases"], name, self._holder, seconds)

    def journal(self, stopping: Stopping) -> None:
        """Publishes the journals of all shards."""
        database = get_db()
        ensure_indexes((ProfileDocument, KnownCustomerDocument))
        lease = self._lease(database, "journal", relay.LEASE_SECONDS)
        # A connection of its own: the journals do not wait behind the directory's outbox.
        publisher = Publisher(self._settings.broker(), service=self._settings.service)
        tail, cursors = relay.MongoTail(database), relay.MongoCursors(database)
        events = EventLog.of(self._settings, database)
        publishing = relay.Relay(
            tail,
            cursors,
            Recorded(publisher, events, self._settings.service),
            lease,
            begin_at=_nearest_start(database),
            retention_bytes_max=self._settings.retention_bytes_max,
        )
        try:
            publishing.run(stopping)
        finally:
            publisher.close()

    def reports(self, stopping: Stopping) -> None:
        """Counts the journals into half-hour reports."""
        database = get_db()
        ensure_indexes((IntervalReportDocument, AuditDocument))
        lease = self._lease(database, "reports", reports_feed.LEASE_SECONDS)
        tail, store = relay.MongoTail(database), MongoReports(database)
        meter = JournalMetrics()
        metrics.use_source("journal", meter)
        reports_feed.Reports(tail, store, lease, begin_at=_nearest_start(database), meter=meter).run(stopping)

    def callers(self, stopping: Stopping) -> None:
        """Forgets calls that are older than anybody looks back. Two workers may do so at once."""
        profiles, clock = MongoProfiles(), self._settings.clock()
        while not stopping(FORGET_SECONDS):
            profiles.forget_calls(clock.now_ms() - self._settings.repeat_window_seconds * 1000)

    def snapshots(self, stopping: Stopping) -> None:
        """Makes snapshots, and prunes what is published and counted."""
        database = get_db()
        lease = self._lease(database, "snapshots", snapshots.LEASE_SECONDS)
        cursors, counted = relay.MongoCursors(database), MongoReports(database)
        snapshots.Snapshotter(
            relay.MongoTail(database),
            snapshots.MongoSnapshots(database),
            lease,
            self._settings.snapshot_options(),
            lambda shard: min(cursors.get(shard).sequence, counted.counted(shard).sequence),
        ).run(stopping)


def _nearest_start(database: Database[dict[str, Any]]) -> relay.BeginAt:
    return functools.partial(snapshots.nearest_start, snapshots.MongoSnapshots(database))
