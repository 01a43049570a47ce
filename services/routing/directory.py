"""The directory as routers read it: a version to look at often, a snapshot when it changed, an agent's
region.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from pymongo.errors import PyMongoError

from chassis.errors import CallmeshError, Unavailable
from routing import model
from routing.committed import PoisonCommand
from routing.hours import Schedule, check_calendar, schedule
from routing.leader import Leader
from routing.model import (
    REJECT_DELAY_SPAN_MS,
    AgentConfig,
    ConfigureAgent,
    ConfigureQueue,
    QueueConfig,
    RelaxationStep,
    RemoveAgent,
    RemoveQueue,
)
from routing.regions import RegionConfig

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

#: Collections; documents.py owns their schema.
REGIONS, QUEUES, AGENTS, SKILLS, META = "regions", "queues", "agents", "skills", "directory_meta"
#: The one document of META, whose `version` rises with every change of the directory.
VERSION_ID = "directory"
#: The whole directory is read again this often even if its version stands still (a writer may die before it
#: raises it).
REFRESH_SECONDS = 30.0
#: Configuration commands carried out in a row before routing gets its turn.
COMMANDS_IN_A_ROW_MAX = 50

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The directory as one region's router needs it."""

    version: int
    regions: tuple[RegionConfig, ...]
    queues: tuple[QueueConfig, ...]
    #: Ids.
    skills: frozenset[str]
    #: Of this region.
    agents: tuple[AgentConfig, ...]


class DirectoryReader:
    """Reads through the hot client. Methods raise Unavailable when the database cannot be read."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]]) -> None:
        self._database = database
        #: The version last read, and when, on the loop's clock.
        self._read_last = 0, float("-inf")

    async def version(self) -> int:
        """Rises with every change."""
        asked = asyncio.get_running_loop().time()
        found = await self._read(self._database[META].find_one({"_id": VERSION_ID}))
        version = int(found["version"]) if found else 0
        self._read_last = version, asked
        return version

    async def recent_version(self, age_seconds: float) -> int:
        """A version that was the newest not longer than `age_seconds` (real) ago."""
        version, asked = self._read_last
        if asyncio.get_running_loop().time() - asked <= age_seconds:
            return version
        return await self.version()

    async def snapshot(self, region: str) -> Snapshot:
        """Everything, with this region's agents. The version is read first, so that a change meanwhile is
        seen again.
        """
        version = await self.version()
        regions = await self._read(self._database[REGIONS].find().sort("_id", 1).to_list())
        queues = await self._read(self._database[QUEUES].find().sort("_id", 1).to_list())
        skills = await self._read(self._database[SKILLS].find({}, {"_id": 1}).to_list())
        agents = await self._read(self._database[AGENTS].find({"region": region}).sort("_id", 1).to_list())
        return Snapshot(
            version=version,
            regions=tuple(region_config(d) for d in regions),
            queues=tuple(queue_config(d) for d in queues),
            skills=frozenset(str(d["_id"]) for d in skills),
            agents=tuple(agent_config(d) for d in agents),
        )

    async def region_of(self, agent: str) -> str | None:
        """An agent's region, None for an unknown one."""
        found = await self._read(self._database[AGENTS].find_one({"_id": agent}, {"region": 1}))
        return str(found["region"]) if found else None

    async def _read(self, awaitable: Awaitable[Any]) -> Any:
        try:
            return await awaitable
        except PyMongoError as error:
            raise Unavailable(why="the directory cannot be read just now", retry_seconds=1.0) from error


def _pairs(rows: Any) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((str(key), int(value)) for key, value in dict(rows or {}).items()))


def region_config(document: dict[str, Any]) -> RegionConfig:
    """A stored region as placement knows it."""
    return RegionConfig(
        id=document["_id"],
        latitude=document["latitude"],
        longitude=document["longitude"],
        served_areas=tuple(document.get("served_areas", ())),
        served_prefixes=tuple(document.get("served_prefixes", ())),
        languages=tuple(document.get("languages", ())),
        weight=document.get("weight", 100),
        draining=document.get("draining", False),
        move_waiting=document.get("move_waiting", False),
        trunk_seconds=(document.get("trunk_span_ms") or 0) / 1000,
        schedule=_schedule(document),
        time_zone=document.get("time_zone") or "",
        lead_list=tuple(document.get("lead_list", ())),
    )


def _schedule(document: dict[str, Any]) -> Schedule | None:
    """A stored region's business hours. Rules that cannot be read (stored before they were checked) close
    nothing.
    """
    calendar = document.get("holiday_calendar") or ""
    try:
        check_calendar("holiday_calendar", calendar)
        return schedule(document.get("business_hours", ()), document.get("time_zone") or "", calendar)
    except CallmeshError as error:
        log.error("business_hours_unreadable", region=document["_id"], error=error.message)
        return None


def queue_config(document: dict[str, Any]) -> QueueConfig:
    """A stored queue as the engine knows it; what it does not say is the engine's default."""
    known = {f: document[f] for f in _QUEUE_FIELDS if document.get(f) is not None}
    known.setdefault("reject_delay_span_ms", REJECT_DELAY_SPAN_MS)
    if not known.get("ring_span_ms"):
        # Stored before it was refused: nobody could accept.
        known.pop("ring_span_ms", None)
    if document.get("preferred_agent_span_ms") is not None:
        known["preferred_span_ms"] = document["preferred_agent_span_ms"]
    if document.get("strategy"):
        known["strategy"] = _strategy(document)
    return QueueConfig(
        id=document["_id"],
        skills=_pairs(document.get("skills")),
        steps=tuple(_step(step) for step in document.get("relaxation_steps") or ()),
        closed=bool(document.get("closed")),
        announcements=_announcements(document),
        **known,
    )


def _strategy(document: dict[str, Any]) -> model.Strategy:
    """A stored queue's strategy. One that a later release has stored is the default: a release that is gone
    back to has to run.
    """
    try:
        return model.Strategy(document["strategy"])
    except ValueError:
        log.error("strategy_unknown", queue=document["_id"], strategy=document["strategy"])
        return QueueConfig(id=document["_id"]).strategy


def _step(stored: dict[str, Any]) -> RelaxationStep:
    return RelaxationStep(
        skills=_pairs(stored.get("skills")),
        span_ms=stored.get("span_ms", 0),
        skip_if_nobody_fits=stored.get("skip_if_nobody_fits", False),
        without_call_skills=stored.get("without_call_skills", False),
    )


def _announcements(document: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What refused callers are told; while the queue is closed, the closure's own words come first."""
    closing = document.get("closing_announcements") if document.get("closed") else None
    return tuple(sorted({**(document.get("announcements") or {}), **(closing or {})}.items()))


_QUEUE_FIELDS = (
    "service_level_span_ms",
    "short_abandon_span_ms",
    "weight",
    "priority_credit_span_ms",
    "ring_span_ms",
    "wrap_up_span_ms",
    "length_max",
    "wait_span_max_ms",
    "overflow_span_ms",
    "refuse_without_agents",
    "reject_delay_span_ms",
    "busy_delay_span_ms",
    "no_answer_delay_span_ms",
    "missed_offers_max",
    "seed",
    "repeat_points",
)


def agent_config(document: dict[str, Any]) -> AgentConfig:
    """A stored agent as the engine knows it."""
    return AgentConfig(
        id=document["_id"],
        skills=_pairs(document.get("skills")),
        capacity=_pairs(document.get("capacity")) or (("voice", 1),),
        priority=document.get("priority", 0),
        address=document.get("address", ""),
        warm_up_span_ms=document.get("warm_up_span_ms") or 0,
    )


async def follow(
    reader: DirectoryReader,
    leader: Leader,
    region: str,
    poll_seconds: float,
    apply: Callable[[Snapshot], None],
    age_seconds: float = 0.0,
) -> None:
    """Keeps this router and its shard current with the directory, until cancelled. `age_seconds`: another
    asks as often, and its answer may be so old.

    A failed read changes nothing: the last directory stays in force.
    """
    in_force: tuple[int, int] | None = None
    refreshed = 0.0
    loop = asyncio.get_running_loop()
    while True:
        try:
            version = await (reader.recent_version(age_seconds) if age_seconds else reader.version())
            stale = loop.time() - refreshed > REFRESH_SECONDS
            epoch = leader.epoch if leader.leading else 0
            if stale or in_force != (version, epoch):
                refreshed = loop.time()
                snapshot = await reader.snapshot(region)
                apply(snapshot)
                if leader.leading and leader.epoch == epoch:
                    await _configure(leader, snapshot)
                in_force = (snapshot.version, epoch)
        except CallmeshError as error:
            log.warning("directory_unread", error=error.reason)
        await asyncio.sleep(poll_seconds)


async def _configure(leader: Leader, snapshot: Snapshot) -> None:
    """Brings the shard's configuration into line; the engine ignores what is the same already. What it fails
    on is left out: the leader has said so.
    """
    known = leader.state.agents
    commands: list[model.Command] = [ConfigureQueue(queue=queue) for queue in snapshot.queues]
    # A new leader has better things to do than to be told of every agent again.
    commands += [
        ConfigureAgent(agent=agent)
        for agent in snapshot.agents
        if agent.id not in known or known[agent.id].config != agent or known[agent.id].remove
    ]
    agents = {agent.id for agent in snapshot.agents}
    queues = {queue.id for queue in snapshot.queues}
    commands += [RemoveAgent(agent=a) for a in sorted(set(leader.state.agents) - agents)]
    commands += [RemoveQueue(queue=q) for q in sorted(set(leader.state.queues) - queues)]
    draining = any(r.id == leader.shard and r.draining for r in snapshot.regions)
    commands.append(model.SetDraining(draining=draining))
    lead_list = next((r.lead_list for r in snapshot.regions if r.id == leader.shard), ())
    if lead_list != leader.state.lead_list:
        commands.append(model.SetLeadList(routers=lead_list))
    for index, command in enumerate(commands):
        with contextlib.suppress(PoisonCommand):
            while leader.carry_out(command).more:
                await asyncio.sleep(0)
        if index % COMMANDS_IN_A_ROW_MAX == 0:
            await asyncio.sleep(0)
