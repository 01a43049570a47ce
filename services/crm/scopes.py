"""Which scope each RPC needs; permission is checked before existence. Every RPC of crm stands here, or the
server does not start.
"""

from __future__ import annotations

from collections.abc import Mapping

_CUSTOMERS = {
    "crm.customers.read": "GetCustomer BatchGetCustomers LookupCustomer ListCustomers SearchCustomers "
    "ListDuplicates GetMerge ListMerges",
    "crm.customers.write": "CreateCustomer BatchCreateCustomers UpdateCustomer",
    "crm.customers.delete": "DeleteCustomer UndeleteCustomer",
    "crm.customers.erase": "EraseCustomer",
    "crm.customers.merge": "MergeCustomers UnmergeCustomers",
    "crm.consent.read": "CheckContactPermission",
    "crm.consent.write": "RecordConsent",
    "crm.schema.read": "GetCustomField ListCustomFields",
    "crm.schema.write": "CreateCustomField UpdateCustomField DeleteCustomField",
    "crm.audit.read": "ListAuditEntries",
}
_TIMELINE = {
    "crm.timeline.read": "ListInteractions GetInteraction",
    "crm.timeline.write": "RecordInteraction",
}
_SCREEN_POP = {"crm.screenpop.read": "GetScreenPop"}
_CARE = {
    "crm.care.read": "GetContract ListContracts ListUsage GetCareRule ListCareRules PreviewCareTasks "
    "GetCareTask ListCareTasks GetChurnRisk ListChurnRisks",
    "crm.care.write": "CreateContract UpdateContract DeleteContract RecordUsage CloseCareTask SnoozeCareTask "
    "FlagLeaveIntent",
    "crm.care.admin": "CreateCareRule UpdateCareRule DeleteCareRule",
}
_INSIGHTS = {
    "crm.insights.read": "ListContactReasons ListHotTopics ListHotSpots ListReasonStats ListAgentFeedback "
    "GetVoiceReport",
    "crm.insights.admin": "CreateContactReason UpdateContactReason DeleteContactReason",
}
_IMPORT = {
    "crm.import.read": "GetImport ListImports ListImportErrors",
    "crm.import.write": "CreateImport UploadImport CancelImport",
}
_EXPORT = {"crm.export.read": "ExportCustomers ExportInteractions"}
_WEBHOOKS = {
    "crm.webhooks.read": "GetWebhook ListWebhooks ListWebhookDeliveries",
    "crm.webhooks.write": "CreateWebhook UpdateWebhook DeleteWebhook RotateWebhookSecret TestWebhook "
    "ReplayWebhookDeliveries",
}


def _table(service: str, methods: Mapping[str, str]) -> dict[str, str]:
    return {
        f"/callmesh.crm.v1.{service}/{method}": scope
        for scope, names in methods.items()
        for method in names.split()
    }


#: Full method name -> scope.
SCOPES: Mapping[str, str] = {
    **_table("CustomerService", _CUSTOMERS),
    **_table("TimelineService", _TIMELINE),
    **_table("ScreenPopService", _SCREEN_POP),
    **_table("CareService", _CARE),
    **_table("InsightsService", _INSIGHTS),
    **_table("ImportService", _IMPORT),
    **_table("ExportService", _EXPORT),
    **_table("WebhookService", _WEBHOOKS),
}
