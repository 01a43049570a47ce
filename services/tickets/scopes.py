"""Which scope each RPC needs. The server refuses to start when one is missing."""

from __future__ import annotations

from collections.abc import Mapping

READ, WRITE, ADMIN = "tickets.read", "tickets.write", "tickets.admin"
KNOWLEDGE, REPORTS, SELF_SERVICE = "tickets.knowledge", "tickets.reports", "tickets.selfservice"

_TICKETS = {
    READ: "GetTicket ListTickets ListTransitions ListComments WatchChanges",
    WRITE: "CreateTicket UpdateTicket TransitionTicket ClaimTicket ClaimNextTicket AssignTicket "
    "TransferTicket ReleaseTicket CreateComment AttachFile DetachFile WatchTicket UnwatchTicket LinkTickets "
    "UnlinkTickets MergeTickets SplitTicket",
    ADMIN: "BulkUpdateTickets",
}
_TEAMS = {READ: "GetTeam ListTeams", ADMIN: "CreateTeam UpdateTeam DeleteTeam"}
_FLOWS = {READ: "GetFlow ListFlows ValidateFlow", ADMIN: "CreateFlow UpdateFlow DeleteFlow"}
_SLA = {
    READ: "GetSlaPolicy ListSlaPolicies GetCalendar ListCalendars ExplainSla",
    ADMIN: "CreateSlaPolicy UpdateSlaPolicy DeleteSlaPolicy CreateCalendar UpdateCalendar DeleteCalendar",
}
_KNOWLEDGE = {
    SELF_SERVICE: "GetArticle SearchArticles RateArticle",
    READ: "ListArticles ListArticleVersions SuggestArticles",
    KNOWLEDGE: "CreateArticle UpdateArticle SubmitArticle ReviewArticle WithdrawArticle ListKnowledgeGaps",
}
_EXPERTS = {
    READ: "GetQuestion ListQuestions",
    WRITE: "CreateQuestion AnswerQuestion AcceptAnswer",
    KNOWLEDGE: "ConvertQuestion",
}
_QUALITY = {
    READ: "GetProblem ListProblems GetReview ListReviews GetAsset ListAssets",
    WRITE: "CreateProblem UpdateProblem TransitionProblem LinkProblemTickets CreateReview UpdateReview "
    "CompleteReview CreateAsset UpdateAsset",
}
_REPORTS = {REPORTS: "GetBacklog GetPerformance GetCost GetProcessMap", ADMIN: "ImportTicketLog"}


def _scopes(service: str, table: Mapping[str, str]) -> dict[str, str]:
    return {
        f"/callmesh.tickets.v1.{service}/{method}": scope
        for scope, names in table.items()
        for method in names.split()
    }


#: What a caller of each RPC needs.
SCOPES: Mapping[str, str] = {
    **_scopes("TicketService", _TICKETS),
    **_scopes("FlowService", _FLOWS),
    **_scopes("SlaService", _SLA),
    **_scopes("TeamService", _TEAMS),
    **_scopes("KnowledgeService", _KNOWLEDGE),
    **_scopes("ExpertService", _EXPERTS),
    **_scopes("QualityService", _QUALITY),
    **_scopes("ReportService", _REPORTS),
}
