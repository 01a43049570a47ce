"""What tickets keeps, of which class and for how long; which of its RPCs are administrative acts."""

from __future__ import annotations

from chassis.lifecycle import DataClass, Held, Lifecycle, Rule, of_documents, technical
from tickets.documents import (
    CARE_END_SECONDS,
    CareEndDocument,
    CommentDocument,
    HistoryPageDocument,
    ProfileDocument,
    TicketDocument,
)
from tickets.feedback import REMEMBERED_SECONDS, RatingDocument, SearchDocument
from tickets.governing import COUNTERS
from tickets.records import (
    ArticleDocument,
    ArticleVersionDocument,
    AssetDocument,
    CalendarDocument,
    FlowDocument,
    PolicyDocument,
    ProblemDocument,
    QuestionDocument,
    ReviewDocument,
    TeamDocument,
)
from tickets.reporting import ImportedCaseDocument

HELD: tuple[Held, ...] = (
    *of_documents(
        [TicketDocument, CommentDocument, HistoryPageDocument, AssetDocument], DataClass.PERSONAL, Rule.ERASED
    ),
    *of_documents([ProfileDocument], DataClass.READ_MODEL, Rule.ERASED),
    *of_documents([ProblemDocument, ReviewDocument, QuestionDocument], DataClass.BUSINESS, Rule.DELETED),
    *of_documents(
        [
            ArticleDocument,
            ArticleVersionDocument,
            CalendarDocument,
            FlowDocument,
            PolicyDocument,
            TeamDocument,
        ],
        DataClass.CONFIGURATION,
        Rule.DELETED,
    ),
    *of_documents([RatingDocument], DataClass.STATISTICS, Rule.DELETED),
    *of_documents([SearchDocument], DataClass.STATISTICS, Rule.TTL, REMEMBERED_SECONDS),
    *of_documents([CareEndDocument], DataClass.TECHNICAL, Rule.TTL, CARE_END_SECONDS),
    *of_documents([ImportedCaseDocument], DataClass.BUSINESS, Rule.DELETED),
    Held(name=COUNTERS, kind=DataClass.TECHNICAL, rule=Rule.DELETED),
    *technical(),
)
LIFECYCLE = Lifecycle(
    service="tickets",
    held=HELD,
    acts=frozenset({"tickets.admin", "tickets.knowledge"}),
    daily=frozenset({"tickets.write", "tickets.selfservice"}),
)
