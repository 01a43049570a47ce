"""Which scope each RPC needs. The server refuses to start when one is missing."""

from __future__ import annotations

from collections.abc import Mapping

PACKAGE = "callmesh.marketing.v1"

_BY_SERVICE: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "OfferService": {
        "marketing.offers.read": ("GetOffer", "ListOffers", "ListOfferRevisions", "CheckEligibilityRule"),
        "marketing.offers.write": (
            "CreateOffer",
            "UpdateOffer",
            "DeleteOffer",
            "PublishOffer",
            "RetireOffer",
        ),
    },
    "RecommendationService": {
        "marketing.recommend": ("Recommend", "RecordOutcome"),
        "marketing.history.read": ("GetDecision", "ListDecisions", "ListPurchases", "GetProfile"),
        "marketing.history.write": ("RecordPurchases", "ImportPurchases"),
        "marketing.models.read": ("GetModel", "ListModels", "GetPolicy", "EvaluatePolicy"),
        "marketing.models.write": ("TrainModel", "ActivateModel", "RollbackModel", "UpdatePolicy"),
    },
    "SavingsService": {
        "marketing.savings.read": ("GetTariff", "ListTariffs", "FindCheapestPlan"),
        "marketing.savings.write": ("CreateTariff", "UpdateTariff", "DeleteTariff", "RecordUsage"),
    },
    "LeadService": {
        "marketing.leads.read": ("GetLead", "ListLeads", "GetPartner", "ListPartners"),
        "marketing.leads.write": (
            "CreateLead",
            "UpdateLead",
            "AssignLead",
            "ContactLead",
            "WinLead",
            "LoseLead",
            "CreatePartner",
            "UpdatePartner",
            "DeletePartner",
        ),
    },
    "CampaignService": {
        "marketing.campaigns.read": (
            "GetCampaign",
            "ListCampaigns",
            "PreviewCampaign",
            "GetCampaignFunnel",
            "GetExperiment",
            "ListCampaignContacts",
            "ListTouchPoints",
            "GetSegment",
            "ListSegments",
            "GetContactPolicy",
            "ListSenders",
        ),
        "marketing.campaigns.write": (
            "CreateCampaign",
            "UpdateCampaign",
            "DeleteCampaign",
            "RecordCampaignResponse",
            "CreateSegment",
            "UpdateSegment",
            "DeleteSegment",
            "UpdateContactPolicy",
        ),
        "marketing.campaigns.run": ("StartCampaign", "PauseCampaign", "ResumeCampaign", "StopCampaign"),
    },
    "OutboundService": {
        "marketing.outbound.read": (
            "GetContactList",
            "ListContactLists",
            "GetContact",
            "ListContacts",
            "GetDialStatistics",
        ),
        "marketing.outbound.write": (
            "CreateContactList",
            "UpdateContactList",
            "DeleteContactList",
            "StartContactList",
            "PauseContactList",
            "ImportContacts",
            "AddForbiddenNumbers",
            "RemoveForbiddenNumber",
        ),
        "marketing.outbound.dial": ("NextContacts", "RenewContacts", "ReturnContacts", "RecordResult"),
    },
    "SurveyService": {
        "marketing.surveys.read": (
            "GetSurvey",
            "ListSurveys",
            "GetSurveyResponse",
            "ListSurveyResponses",
            "GetSurveyResults",
        ),
        "marketing.surveys.write": (
            "CreateSurvey",
            "UpdateSurvey",
            "DeleteSurvey",
            "OpenSurvey",
            "CloseSurvey",
        ),
        "marketing.surveys.respond": ("StartSurveyResponse", "AnswerSurvey"),
    },
    "ReportService": {
        "marketing.reports.read": ("GetProfitReport", "RenderProfitChart"),
        "marketing.reports.write": ("RecordCost",),
    },
}


def method(service: str, name: str) -> str:
    """Full name of an RPC."""
    return f"/{PACKAGE}.{service}/{name}"


#: Scope by full method name.
SCOPES: Mapping[str, str] = {
    method(service, name): scope
    for service, scopes in _BY_SERVICE.items()
    for scope, names in scopes.items()
    for name in names
}
