"""Administrative acts: their names, and the words that the bus carries of them."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.routing.v1 import events_pb2
from chassis.bus import Event
from chassis.clock import Clock

_SUPERVISION = "/callmesh.routing.v1.SupervisionService"
_DIRECTORY = "/callmesh.routing.v1.DirectoryService"
_ROUTING = "/callmesh.routing.v1.RoutingService"


class Act(enum.StrEnum):
    """What can be done to the platform by hand; the journal keeps the name."""

    LOG_OUT_AGENT = "LOG_OUT_AGENT"
    PAUSE_AGENT = "PAUSE_AGENT"
    RESKILL_AGENT = "RESKILL_AGENT"
    CLOSE_QUEUE = "CLOSE_QUEUE"
    REOPEN_QUEUE = "REOPEN_QUEUE"
    MONITOR_CALL = "MONITOR_CALL"
    REPRIORITIZE_CALL = "REPRIORITIZE_CALL"
    DRAIN_REGION = "DRAIN_REGION"
    RESUME_REGION = "RESUME_REGION"
    SEIZE_SHARD = "SEIZE_SHARD"
    #: The engine's own, as the consequence of a closure: a call-back was promised and is not made.
    END_CALLBACK = "END_CALLBACK"


#: Full name of the method that an act is done by.
METHODS: Mapping[str, str] = {
    Act.LOG_OUT_AGENT: f"{_SUPERVISION}/LogOutAgent",
    Act.PAUSE_AGENT: f"{_SUPERVISION}/PauseAgent",
    Act.RESKILL_AGENT: f"{_SUPERVISION}/ReskillAgents",
    Act.CLOSE_QUEUE: f"{_SUPERVISION}/CloseQueue",
    Act.REOPEN_QUEUE: f"{_SUPERVISION}/ReopenQueue",
    Act.MONITOR_CALL: f"{_SUPERVISION}/MonitorCall",
    Act.REPRIORITIZE_CALL: f"{_ROUTING}/ReprioritizeCall",
    Act.DRAIN_REGION: f"{_DIRECTORY}/DrainRegion",
    Act.RESUME_REGION: f"{_DIRECTORY}/ResumeRegion",
    Act.SEIZE_SHARD: f"{_SUPERVISION}/SeizeShard",
    Act.END_CALLBACK: f"{_SUPERVISION}/CloseQueue",
}


def act_message(
    act: str,
    *,
    actor: str,
    resource: str,
    time: Timestamp | None,
    reason: str = "",
    details: Mapping[str, str] | None = None,
) -> events_pb2.AdministrativeAct:
    """The event of an act. One that this release does not know is told by its name."""
    return events_pb2.AdministrativeAct(
        actor=actor,
        method=METHODS.get(act, act),
        resource=resource,
        event_time=time,
        reason=reason,
        details=details or {},
    )


def act_event(
    clock: Clock, act: Act, resource: str, actor: str, reason: str, details: Mapping[str, str] | None = None
) -> Event:
    """An act for the outbox of the document that it changes."""
    now, stamp = clock.now(), Timestamp()
    stamp.FromDatetime(now)
    message = act_message(act, actor=actor, resource=resource, time=stamp, reason=reason, details=details)
    return Event.of(message, source="routing", subject=resource, time=now)
