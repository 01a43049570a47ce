"""What routing keeps, of which class and for how long; which of its RPCs are administrative acts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pymongo.database import Database

from chassis.acts import KEPT_DAYS
from chassis.lifecycle import (
    DAY_SECONDS,
    DataClass,
    Held,
    Lifecycle,
    Migration,
    Rule,
    of_documents,
    technical,
)
from routing import journal
from routing.audit_store import AuditDocument
from routing.config import RoutingSettings
from routing.documents import (
    AgentDocument,
    CursorDocument,
    MetaDocument,
    ProfileDocument,
    QueueDocument,
    RegionDocument,
    RemovedDocument,
    SkillDocument,
)
from routing.menus.documents import (
    CALLER_SECONDS,
    MenuCallerDocument,
    MenuDocument,
    MenuSessionDocument,
    MenuVersionDocument,
    OpenTicketDocument,
    SurveyDocument,
)
from routing.reports_feed import DAYS_KEPT
from routing.reports_store import IntervalReportDocument, ReportCursorDocument
from routing.store import KnownCustomerDocument

#: The least time that blocks are kept, seconds; snapshots and readers may hold them longer.
_JOURNAL_SECONDS = int(RoutingSettings.model_fields["journal_retention_seconds"].default)


def _journal() -> tuple[Held, ...]:
    names = (
        journal.COLLECTION,
        journal.SNAPSHOTS,
        journal.SNAPSHOT_PARTS,
        journal.PROBES,
    )
    return tuple(
        Held(name=name, kind=DataClass.PERSONAL, rule=Rule.PRUNED, seconds=_JOURNAL_SECONDS) for name in names
    )


HELD: tuple[Held, ...] = (
    *_journal(),
    Held(name=journal.ORPHANS, kind=DataClass.PERSONAL, rule=Rule.TTL, seconds=journal.ORPHANS_SECONDS),
    *of_documents(
        [RegionDocument, SkillDocument, QueueDocument, AgentDocument, MenuDocument, MenuVersionDocument],
        DataClass.CONFIGURATION,
        Rule.DELETED,
    ),
    *of_documents([MenuCallerDocument], DataClass.PERSONAL, Rule.TTL, CALLER_SECONDS),
    *of_documents([ProfileDocument, KnownCustomerDocument], DataClass.READ_MODEL, Rule.ERASED),
    *of_documents([OpenTicketDocument], DataClass.READ_MODEL, Rule.TTL, 0),
    *of_documents([MenuSessionDocument], DataClass.PERSONAL, Rule.TTL, 0),
    *of_documents([SurveyDocument], DataClass.BUSINESS, Rule.DELETED),
    *of_documents([IntervalReportDocument], DataClass.STATISTICS, Rule.PRUNED, DAYS_KEPT * DAY_SECONDS),
    *of_documents([CursorDocument, ReportCursorDocument, MetaDocument], DataClass.TECHNICAL, Rule.PRUNED),
    # Gone as soon as it is told.
    *of_documents([RemovedDocument], DataClass.CONFIGURATION, Rule.PRUNED),
    Held(
        name=AuditDocument._meta["collection"],
        kind=DataClass.AUDIT,
        rule=Rule.AGED,
        seconds=KEPT_DAYS * DAY_SECONDS,
        aged_by="at",
        document=AuditDocument,
    ),
    *technical(),
)


def _end_callers(database: Database[dict[str, Any]], apply: bool) -> int:
    """What was known of a caller before it had an end ends as of one who was there just now."""
    wanted = {"used": {"$exists": False}}
    callers = database[MenuCallerDocument._meta["collection"]]
    if not apply:
        return callers.count_documents(wanted)
    return callers.update_many(wanted, {"$set": {"used": datetime.now(UTC)}}).modified_count


LIFECYCLE = Lifecycle(
    service="routing",
    held=HELD,
    migrations=(
        Migration(
            id="2026-11-24-routing-menu-callers",
            what="what a caller does in menus is forgotten when the caller stays away",
            run=_end_callers,
        ),
    ),
    acts=frozenset(
        {
            "routing.agents.supervise",
            "routing.calls.supervise",
            "routing.directory.write",
            "routing.menus.write",
            "routing.queues.supervise",
            "routing.regions.operate",
        }
    ),
    daily=frozenset(
        {"routing.agents.session", "routing.calls.route", "routing.menus.step", "routing.shards.peer"}
    ),
)
