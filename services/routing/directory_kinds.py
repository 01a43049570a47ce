"""The four kinds of the directory: which fields each has, how they are checked, and proto <-> document."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import directory_pb2 as pb
from chassis.errors import InvalidArgument
from chassis.ids import check_id, parse_name, resource_name
from chassis.mongo import Aggregate, etag
from routing.addresses import is_address
from routing.announcements import ANNOUNCEMENT_CHARACTERS_MAX
from routing.convert import duration, requirements, span_ms, text, whole
from routing.documents import AgentDocument, QueueDocument, RegionDocument, SkillDocument
from routing.geo import check_area, checked_point
from routing.hours import check_calendar, schedule
from routing.model import REJECT_DELAY_SPAN_MS, STEPS_MAX, QueueConfig, Strategy

#: Lists and maps of a resource have at most this many entries.
ENTRIES_MAX = 500
DAY_MS = 86_400_000
#: More than an hour of waiting no line is worth.
TRUNK_SPAN_MAX_MS = 3_600_000
_CAPACITY_MAX = 100
#: Points for one earlier call of a repeat caller.
REPEAT_POINTS_MAX = 20
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8}){0,4}")
#: Behind +86 stands no 0: an area code is dialled with one, and nobody's number begins so.
_PREFIX = re.compile(r"\+(?!860)[1-9][0-9]{0,14}")
_RESOURCE_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_CHANNELS = frozenset({"voice", "chat", "sms", "email", "visit"})
_STRATEGIES = {
    pb.ROUTING_STRATEGY_LONGEST_IDLE: Strategy.LONGEST_IDLE,
    pb.ROUTING_STRATEGY_FEWEST_CALLS: Strategy.FEWEST_CALLS,
    pb.ROUTING_STRATEGY_LEAST_OCCUPIED: Strategy.LEAST_OCCUPIED,
    pb.ROUTING_STRATEGY_ROUND_ROBIN: Strategy.ROUND_ROBIN,
    pb.ROUTING_STRATEGY_RANDOM: Strategy.RANDOM,
    pb.ROUTING_STRATEGY_PRIORITY_ORDER: Strategy.PRIORITY_ORDER,
    pb.ROUTING_STRATEGY_BEST_PROFICIENCY: Strategy.BEST_PROFICIENCY,
}
_STRATEGY_NUMBERS = {strategy: number for number, strategy in _STRATEGIES.items()}
#: Durations of a queue: proto field to document field, with the default that is shown when none is stored.
_DEFAULTS = QueueConfig(id="default")
_SPANS = {
    "service_level_target": ("service_level_span_ms", _DEFAULTS.service_level_span_ms),
    "priority_credit": ("priority_credit_span_ms", _DEFAULTS.priority_credit_span_ms),
    "ring_timeout": ("ring_span_ms", _DEFAULTS.ring_span_ms),
    "wrap_up_timeout": ("wrap_up_span_ms", _DEFAULTS.wrap_up_span_ms),
    "wait_max": ("wait_span_max_ms", 0),
    "overflow_threshold": ("overflow_span_ms", _DEFAULTS.overflow_span_ms),
    "reject_delay": ("reject_delay_span_ms", REJECT_DELAY_SPAN_MS),
    "busy_delay": ("busy_delay_span_ms", 0),
    "no_answer_delay": ("no_answer_delay_span_ms", 0),
    "preferred_agent_timeout": ("preferred_agent_span_ms", _DEFAULTS.preferred_span_ms),
    "short_abandon": ("short_abandon_span_ms", _DEFAULTS.short_abandon_span_ms),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of resource."""

    #: "regions".
    collection: str
    #: "region": the field of requests that holds the resource.
    field: str
    document: type[Aggregate]
    message: type[Any]
    #: Paths that an update may change.
    allowed: frozenset[str]
    #: Checked message -> document fields. Raises InvalidArgument.
    fill: Callable[[Any, Any], None]
    #: Document -> message, without what all kinds share.
    show: Callable[[Any, Any], None]

    def to_message(self, document: Any) -> Any:
        """The resource as clients see it."""
        message = self.message(name=resource_name(self.collection, document.id), etag=etag(document.version))
        message.display_name = document.display_name or ""
        for name, moment in (("create_time", document.created_at), ("update_time", document.updated_at)):
            if moment is not None:
                stamp = Timestamp()
                stamp.FromDatetime(moment)
                getattr(message, name).CopyFrom(stamp)
        self.show(document, message)
        return message

    def to_document(self, id: str, message: Any, document: Any = None) -> Any:
        """A checked document, new or changed. Raises InvalidArgument naming the field."""
        document = document if document is not None else self.document(id=id)
        document.display_name = text(f"{self.field}.display_name", message.display_name, 200)
        self.fill(message, document)
        return document


def resource_id(field: str, value: str) -> str:
    """An id that a client chose for a resource of the directory."""
    if not _RESOURCE_ID.fullmatch(check_id(field, value, 63)):
        raise InvalidArgument(field=field, why="must be 1 to 63 characters of a-z, 0-9 and inner -")
    return value


def _strings(field: str, values: Any, maximum: int = 64) -> list[str]:
    if len(values) > ENTRIES_MAX:
        raise InvalidArgument(field=field, why=f"must have at most {ENTRIES_MAX} entries")
    seen = [text(f"{field}[{i}]", value, maximum, required=True) for i, value in enumerate(values)]
    if len(set(seen)) != len(seen):
        raise InvalidArgument(field=field, why="must not name an entry twice")
    return seen


def language_tag(field: str, value: str) -> str:
    """`value`, which must be a BCP 47 tag: words under any other would never be the caller's."""
    if not _LANGUAGE.fullmatch(text(field, value, 35, required=True)):
        raise InvalidArgument(field=field, why="must be a BCP 47 tag such as zh-CN")
    return value


def _levels(field: str, skills: Mapping[str, int]) -> dict[str, int]:
    if len(skills) > ENTRIES_MAX:
        raise InvalidArgument(field=field, why=f"must have at most {ENTRIES_MAX} skills")
    return {
        check_id(f"{field}[{skill!r}]", skill, 63): whole(f"{field}[{skill!r}]", level, 1, 5)
        for skill, level in sorted(skills.items())
    }


# --- regions


def _fill_region(message: pb.Region, document: RegionDocument) -> None:
    if not message.HasField("location"):
        raise InvalidArgument(field="region.location", why="must be set")
    point = checked_point(message.location.latitude, message.location.longitude, field="region.location")
    document.latitude, document.longitude = point.latitude, point.longitude
    document.served_areas = _strings("region.served_areas", message.served_areas)
    for index, area in enumerate(document.served_areas):
        check_area(f"region.served_areas[{index}]", area)
    document.served_prefixes = _strings("region.served_prefixes", message.served_prefixes)
    for index, prefix in enumerate(document.served_prefixes):
        if not _PREFIX.fullmatch(prefix):
            raise InvalidArgument(
                field=f"region.served_prefixes[{index}]", why='must look like "+8610" (not "+86010")'
            )
    document.languages = _strings("region.languages", message.languages, 35)
    for index, language in enumerate(document.languages):
        language_tag(f"region.languages[{index}]", language)
    document.time_zone = text("region.time_zone", message.time_zone, 64)
    if document.time_zone and document.time_zone not in zoneinfo.available_timezones():
        raise InvalidArgument(field="region.time_zone", why='must be an IANA zone such as "Asia/Shanghai"')
    document.weight = whole("region.weight", message.weight, 0, 1000) or 100
    document.lead_list = _strings("region.lead_list", message.lead_list, 255)
    for index, router in enumerate(document.lead_list):
        if not is_address(router):
            raise InvalidArgument(field=f"region.lead_list[{index}]", why='must look like "router-1:7120"')
    document.business_hours = _strings("region.business_hours", message.business_hours, 100)
    document.holiday_calendar = check_calendar("region.holiday_calendar", message.holiday_calendar)
    if document.business_hours and not document.time_zone:
        raise InvalidArgument(field="region.time_zone", why="must be set where business hours are")
    schedule(document.business_hours, document.time_zone, field="region.business_hours")
    document.head_office = message.head_office
    cost = message.trunk_cost
    set_ = message.HasField("trunk_cost") and bool(cost.seconds or cost.nanos)
    document.trunk_span_ms = span_ms("region.trunk_cost", cost, maximum_ms=TRUNK_SPAN_MAX_MS) if set_ else 0


def _show_region(document: RegionDocument, message: pb.Region) -> None:
    message.location.CopyFrom(common_pb2.GeoPoint(latitude=document.latitude, longitude=document.longitude))
    for name in ("served_areas", "served_prefixes", "languages", "lead_list", "business_hours"):
        getattr(message, name).extend(getattr(document, name))
    message.time_zone = document.time_zone or ""
    message.holiday_calendar = document.holiday_calendar or ""
    message.weight = document.weight
    message.head_office = document.head_office
    message.moves_waiting = bool(document.draining and document.move_waiting)
    if document.trunk_span_ms:
        message.trunk_cost.CopyFrom(duration(document.trunk_span_ms))
    message.state = pb.REGION_STATE_DRAINING if document.draining else pb.REGION_STATE_UP


# --- queues


def _fill_queue(message: pb.Queue, document: QueueDocument) -> None:
    document.skills = dict(requirements("queue.skills", message.skills, ENTRIES_MAX))
    for name, (stored, _) in _SPANS.items():
        if message.HasField(name):
            value = getattr(message, name)
            zero = not value.seconds and not value.nanos
            if zero and name == "ring_timeout":
                # Nobody can accept what has ended already: it would be offered, in vain, without an end.
                raise InvalidArgument(field=f"queue.{name}", why="must be longer than 0")
            setattr(document, stored, 0 if zero else span_ms(f"queue.{name}", value, maximum_ms=DAY_MS))
        else:
            setattr(document, stored, None)
    if message.strategy and message.strategy not in _STRATEGIES:
        raise InvalidArgument(field="queue.strategy", why="is not a strategy that this release offers")
    document.strategy = _STRATEGIES[message.strategy].value if message.strategy else None
    document.weight = whole("queue.weight", message.weight, 0, 100)
    document.length_max = whole("queue.length_max", message.length_max, 0, 1_000_000) or None
    document.missed_offers_max = whole("queue.missed_offers_max", message.missed_offers_max, 0, 1_000)
    document.refuse_without_agents = message.refuse_without_agents
    repeat = message.HasField("repeat_caller_points")
    document.repeat_points = (
        whole("queue.repeat_caller_points", message.repeat_caller_points, 0, REPEAT_POINTS_MAX)
        if repeat
        else None
    )
    if len(message.announcements) > ENTRIES_MAX:
        raise InvalidArgument(field="queue.announcements", why=f"must have at most {ENTRIES_MAX} languages")
    document.announcements = {
        language_tag("queue.announcements key", key): text(
            "queue.announcements", value, ANNOUNCEMENT_CHARACTERS_MAX
        )
        for key, value in message.announcements.items()
    }
    document.seed = whole("queue.seed", message.seed, 0, 2**31 - 1)
    document.relaxation_steps = _steps(message.relaxation_steps)
    in_steps = {skill for step in document.relaxation_steps for skill in step["skills"]}
    document.skill_ids = sorted({*document.skills, *in_steps})


def _steps(steps: Any) -> list[dict[str, Any]]:
    """Steps of relaxation as they are stored."""
    field = "queue.relaxation_steps"
    if len(steps) > STEPS_MAX:
        raise InvalidArgument(field=field, why=f"must have at most {STEPS_MAX} steps")
    stored = []
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        if last and step.HasField("timeout"):
            raise InvalidArgument(
                field=f"{field}[{index}].timeout", why="must not be set: the last step has no end"
            )
        stored.append(
            {
                "skills": dict(requirements(f"{field}[{index}].skills", step.skills, ENTRIES_MAX)),
                "span_ms": 0
                if last
                else span_ms(f"{field}[{index}].timeout", step.timeout, maximum_ms=DAY_MS),
                "skip_if_nobody_fits": step.skip_if_nobody_fits,
                "without_call_skills": step.without_call_skills,
            }
        )
        if not last and not stored[-1]["span_ms"]:
            raise InvalidArgument(
                field=f"{field}[{index}].timeout", why="must be set for every step but the last"
            )
    return stored


def _show_queue(document: QueueDocument, message: pb.Queue) -> None:
    for skill, level in sorted(document.skills.items()):
        message.skills.add(skill=skill, level_min=level)
    for name, (stored, default) in _SPANS.items():
        value = getattr(document, stored)
        getattr(message, name).CopyFrom(duration(default if value is None else value))
    strategy = Strategy(document.strategy) if document.strategy else Strategy.LONGEST_IDLE
    message.strategy = _STRATEGY_NUMBERS[strategy]
    message.weight = document.weight or 0
    message.length_max = document.length_max or _DEFAULTS.length_max
    message.missed_offers_max = document.missed_offers_max or 0
    message.refuse_without_agents = document.refuse_without_agents
    stored = document.repeat_points
    message.repeat_caller_points = _DEFAULTS.repeat_points if stored is None else stored
    message.announcements.update(document.announcements)
    message.seed = document.seed or 0
    for step in document.relaxation_steps:
        shown = message.relaxation_steps.add(
            skip_if_nobody_fits=step["skip_if_nobody_fits"], without_call_skills=step["without_call_skills"]
        )
        for skill, level in sorted(step["skills"].items()):
            shown.skills.add(skill=skill, level_min=level)
        if step["span_ms"]:
            shown.timeout.CopyFrom(duration(step["span_ms"]))
    message.closed = bool(document.closed)


# --- agents, skills


def _fill_agent(message: pb.Agent, document: AgentDocument) -> None:
    document.region = parse_name("agent.region", "regions", message.region)
    document.skills = _levels("agent.skills", message.skills)
    document.skill_ids = sorted(document.skills)
    document.address = text("agent.address", message.address, 255)
    unknown = sorted(set(message.capacity) - _CHANNELS)
    if unknown:
        raise InvalidArgument(field="agent.capacity", why=f"names an unknown channel {unknown[0][:40]!r}")
    document.capacity = {
        channel: whole(f"agent.capacity[{channel}]", count, 0, _CAPACITY_MAX)
        for channel, count in sorted(message.capacity.items())
    } or {"voice": 1}
    document.priority = whole("agent.priority", message.priority, -1_000_000, 1_000_000)
    document.blended = message.blended
    document.warm_up_span_ms = 0
    if message.HasField("warm_up") and (message.warm_up.seconds or message.warm_up.nanos):
        document.warm_up_span_ms = span_ms("agent.warm_up", message.warm_up, maximum_ms=DAY_MS)


def _show_agent(document: AgentDocument, message: pb.Agent) -> None:
    message.region = resource_name("regions", document.region)
    message.skills.update(document.skills)
    message.capacity.update(document.capacity)
    message.address = document.address or ""
    message.priority = document.priority
    message.blended = document.blended
    if document.warm_up_span_ms:
        message.warm_up.CopyFrom(duration(document.warm_up_span_ms))


def _paths(message: type[Any]) -> frozenset[str]:
    fixed = {"name", "etag", "create_time", "update_time", "state", "closed", "moves_waiting"}
    return frozenset(field.name for field in message.DESCRIPTOR.fields if field.name not in fixed)


def _nothing(source: Any, target: Any) -> None:
    """A skill has a name and nothing else."""


REGION = Kind(
    collection="regions",
    field="region",
    document=RegionDocument,
    message=pb.Region,
    allowed=_paths(pb.Region),
    fill=_fill_region,
    show=_show_region,
)
SKILL = Kind(
    collection="skills",
    field="skill",
    document=SkillDocument,
    message=pb.Skill,
    allowed=_paths(pb.Skill),
    fill=_nothing,
    show=_nothing,
)
QUEUE = Kind(
    collection="queues",
    field="queue",
    document=QueueDocument,
    message=pb.Queue,
    allowed=_paths(pb.Queue),
    fill=_fill_queue,
    show=_show_queue,
)
AGENT = Kind(
    collection="agents",
    field="agent",
    document=AgentDocument,
    message=pb.Agent,
    allowed=_paths(pb.Agent),
    fill=_fill_agent,
    show=_show_agent,
)
