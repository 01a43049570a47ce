"""What crm keeps, of which class and for how long; which of its RPCs are administrative acts."""

from __future__ import annotations

from chassis.lifecycle import DataClass, Held, Lifecycle, Rule, of_documents, technical
from crm.care_documents import CareRuleDocument, ContractDocument, UsageDocument
from crm.documents import (
    AuditDocument,
    CareTaskDocument,
    ChurnDocument,
    CustomerDocument,
    CustomFieldDocument,
    ImportedDocument,
    InteractionDocument,
    MergeDocument,
    RankingDocument,
)
from crm.import_trial import TRIAL_KEPT_SECONDS, ImportTrialDocument
from crm.transfer_documents import ImportDocument, ImportErrorDocument
from crm.voice import ReasonDocument
from crm.webhooks import KEPT_SECONDS, DeliveryDocument, WebhookDocument

HELD: tuple[Held, ...] = (
    *of_documents(
        [CustomerDocument, InteractionDocument, CareTaskDocument, ContractDocument, UsageDocument],
        DataClass.PERSONAL,
        Rule.ERASED,
    ),
    *of_documents([ChurnDocument, RankingDocument, MergeDocument], DataClass.PERSONAL, Rule.ERASED),
    *of_documents([AuditDocument], DataClass.AUDIT, Rule.ERASED),
    *of_documents(
        [CustomFieldDocument, CareRuleDocument, ReasonDocument, WebhookDocument],
        DataClass.CONFIGURATION,
        Rule.DELETED,
    ),
    *of_documents([ImportDocument, ImportErrorDocument], DataClass.BUSINESS, Rule.DELETED),
    *of_documents([ImportedDocument], DataClass.TECHNICAL, Rule.PRUNED),
    *of_documents([DeliveryDocument], DataClass.TECHNICAL, Rule.TTL, KEPT_SECONDS),
    *of_documents([ImportTrialDocument], DataClass.TECHNICAL, Rule.TTL, TRIAL_KEPT_SECONDS),
    *technical(),
)
LIFECYCLE = Lifecycle(
    service="crm",
    held=HELD,
    acts=frozenset(
        {
            "crm.care.admin",
            "crm.customers.delete",
            "crm.customers.erase",
            "crm.customers.merge",
            # Reading, but of all people at once.
            "crm.export.read",
            "crm.import.write",
            "crm.insights.admin",
            "crm.schema.write",
            "crm.webhooks.write",
        }
    ),
    daily=frozenset({"crm.care.write", "crm.consent.write", "crm.customers.write", "crm.timeline.write"}),
)
