"""Which scope each RPC needs. A server does not start while one is missing."""

from __future__ import annotations


def _table(service: str, scopes: dict[str, str]) -> dict[str, str]:
    return {f"/callmesh.routing.v1.{service}/{method}": scope for method, scope in scopes.items()}


SCOPES: dict[str, str] = {
    **_table(
        "RoutingService",
        {
            "RouteCall": "routing.calls.route",
            "AssignCall": "routing.calls.route",
            "ConfirmCall": "routing.calls.route",
            "HangUp": "routing.calls.route",
            "EndCall": "routing.calls.route",
            "GetCall": "routing.calls.read",
            "ListCalls": "routing.calls.read",
            "ReprioritizeCall": "routing.calls.supervise",
            "TransferCall": "routing.calls.route",
            "RequestCallback": "routing.calls.route",
            "ExplainRoute": "routing.calls.read",
        },
    ),
    **_table("AgentService", {"Session": "routing.agents.session", "GetAgentStatus": "routing.agents.read"}),
    **_table(
        "DirectoryService",
        {
            **{
                f"{verb}{kind}": "routing.directory.write"
                for verb in ("Create", "Update", "Delete")
                for kind in ("Region", "Skill", "Queue", "Agent")
            },
            **{f"Get{kind}": "routing.directory.read" for kind in ("Region", "Skill", "Queue", "Agent")},
            **{f"List{kind}s": "routing.directory.read" for kind in ("Region", "Skill", "Queue", "Agent")},
            "BatchCreateAgents": "routing.directory.write",
            "DrainRegion": "routing.regions.operate",
            "ResumeRegion": "routing.regions.operate",
            "LocateNumber": "routing.directory.read",
            "ApplyDirectory": "routing.directory.write",
        },
    ),
    **_table(
        "SupervisionService",
        {
            "GetStats": "routing.stats.read",
            "WatchStats": "routing.stats.read",
            "ListIntervalReports": "routing.stats.read",
            "LogOutAgent": "routing.agents.supervise",
            "PauseAgent": "routing.agents.supervise",
            "ReskillAgents": "routing.agents.supervise",
            "CloseQueue": "routing.queues.supervise",
            "ReopenQueue": "routing.queues.supervise",
            "MonitorCall": "routing.calls.supervise",
            "SeizeShard": "routing.regions.operate",
            "ListActs": "routing.audit.read",
            "SimulateDay": "routing.stats.read",
        },
    ),
    **_table(
        "ShardService",
        {
            "Attach": "routing.shards.peer",
            "WatchPeers": "routing.shards.peer",
            "GetNewestBlock": "routing.shards.peer",
            "Hold": "routing.shards.peer",
            "TakeBlocks": "routing.shards.peer",
        },
    ),
    **_table(
        "MenuService",
        {
            "CreateMenu": "routing.menus.write",
            "GetMenu": "routing.menus.read",
            "ListMenus": "routing.menus.read",
            "PublishMenu": "routing.menus.write",
            "StepMenu": "routing.menus.step",
            "SetShortcut": "routing.menus.step",
            "RebuildMenu": "routing.menus.write",
            "ListShortcuts": "routing.menus.step",
            "CompareMenus": "routing.menus.read",
            "ChoosePromotion": "routing.menus.step",
            "GetMenuStats": "routing.menus.read",
        },
    ),
    **_table(
        "PlanningService",
        {
            "ForecastArrivals": "routing.planning.read",
            "PlanStaffing": "routing.planning.read",
            "GetAdherence": "routing.planning.read",
        },
    ),
}

#: Of the dialler's own server (planning/dialler_main.py).
DIALLER_SCOPES: dict[str, str] = {
    "/callmesh.dialler.v1.LineService/ServeLines": "dialler.lines.serve",
}

#: What the dialler asks of others: the scopes of its own token.
DIALLER_ASKS: tuple[str, ...] = (
    "marketing.outbound.dial",
    "marketing.outbound.read",
    "routing.calls.read",
    "routing.calls.route",
    "routing.directory.read",
    "routing.planning.read",
    "routing.stats.read",
)

#: What the canary asks of a router (`callmesh canary --furnish`): the scopes of its token.
CANARY_ASKS: tuple[str, ...] = (
    "routing.agents.read",
    "routing.agents.session",
    "routing.calls.route",
    "routing.directory.write",
)
