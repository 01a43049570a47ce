"""Everything of crm that has indexes, and everything that has an outbox."""

from __future__ import annotations

from mongoengine import Document

from chassis.mongo import Aggregate
from crm.care_documents import CARE_DOCUMENTS
from crm.documents import AGGREGATES, DOCUMENTS
from crm.import_trial import ImportTrialDocument
from crm.transfer_documents import TRANSFER_DOCUMENTS
from crm.voice import VOICE_DOCUMENTS
from crm.webhooks import WEBHOOK_DOCUMENTS

ALL_DOCUMENTS: tuple[type[Document], ...] = (
    *DOCUMENTS,
    *CARE_DOCUMENTS,
    *TRANSFER_DOCUMENTS,
    ImportTrialDocument,
    *VOICE_DOCUMENTS,
    *WEBHOOK_DOCUMENTS,
)
ALL_AGGREGATES: tuple[type[Aggregate], ...] = AGGREGATES
