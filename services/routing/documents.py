"""Routing's documents: the directory, the customers' read model and the relay's cursors. The journal is
journal.py's.
"""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import (
    BooleanField,
    DateTimeField,
    DictField,
    Document,
    FloatField,
    IntField,
    ListField,
    StringField,
)

from chassis.mongo import Aggregate

#: Fields of a region whose entries are no other region's: two homes are none.
SERVED = ("served_areas", "served_prefixes")


def _served_once(name: str) -> dict[str, Any]:
    """Holds it also for two regions written at the same moment. A region that serves nothing is not in the
    index, where it would stand for "nothing" and be the only one.
    """
    return {
        "fields": [name],
        "name": f"{name}_once",
        "unique": True,
        "partialFilterExpression": {name: {"$gt": ""}},
    }


class RegionDocument(Aggregate):
    """A regional call centre."""

    meta: ClassVar = {"collection": "regions", "indexes": [_served_once(name) for name in SERVED]}
    resource_collection = "regions"
    display_name = StringField()
    latitude = FloatField(required=True, min_value=-90, max_value=90)
    longitude = FloatField(required=True, min_value=-180, max_value=180)
    served_areas = ListField(StringField())
    served_prefixes = ListField(StringField())
    languages = ListField(StringField())
    time_zone = StringField()
    draining = BooleanField(default=False)
    #: While draining: waiting calls go elsewhere at once.
    move_waiting = BooleanField(default=False)
    #: What a line costs there, as milliseconds of waiting.
    trunk_span_ms = IntField(default=0)
    weight = IntField(default=100, min_value=0, max_value=1000)
    lead_list = ListField(StringField())
    business_hours = ListField(StringField())
    holiday_calendar = StringField()
    head_office = BooleanField(default=False)


class SkillDocument(Aggregate):
    """Something agents can do."""

    meta: ClassVar = {"collection": "skills"}
    resource_collection = "skills"
    display_name = StringField()


class QueueDocument(Aggregate):
    """What calls wait in. Spans in business milliseconds; an absent one is the engine's default."""

    meta: ClassVar = {"collection": "queues", "indexes": ["skill_ids"]}
    resource_collection = "queues"
    display_name = StringField()
    #: Skill id to least level.
    skills = DictField()
    #: Skills that it or a step of it names, to find who names a skill.
    skill_ids = ListField(StringField())
    service_level_span_ms = IntField()
    strategy = StringField()
    weight = IntField()
    priority_credit_span_ms = IntField()
    ring_span_ms = IntField()
    wrap_up_span_ms = IntField()
    length_max = IntField()
    wait_span_max_ms = IntField()
    overflow_span_ms = IntField()
    refuse_without_agents = BooleanField(default=False)
    announcements = DictField()
    #: Closed by a supervisor, with words of the closure's own.
    closed = BooleanField(default=False)
    closing_announcements = DictField()
    reject_delay_span_ms = IntField()
    missed_offers_max = IntField()
    busy_delay_span_ms = IntField()
    no_answer_delay_span_ms = IntField()
    preferred_agent_span_ms = IntField()
    #: Of RANDOM.
    seed = IntField(default=0)
    #: Steps of relaxation: skills, span_ms, skip_if_nobody_fits, without_call_skills.
    relaxation_steps = ListField(DictField())
    short_abandon_span_ms = IntField()
    repeat_points = IntField()


class AgentDocument(Aggregate):
    """A seat."""

    meta: ClassVar = {"collection": "agents", "indexes": [("region", "id"), "skill_ids"]}
    resource_collection = "agents"
    display_name = StringField()
    region = StringField(required=True)
    #: Skill id to level.
    skills = DictField()
    skill_ids = ListField(StringField())
    address = StringField()
    #: Channel name to contacts at once.
    capacity = DictField()
    priority = IntField(default=0)
    blended = BooleanField(default=False)
    warm_up_span_ms = IntField(default=0)


class RemovedDocument(Aggregate):
    """What was done to a resource that is no more, until it is told."""

    meta: ClassVar = {"collection": "directory_removed"}
    resource_collection = "removed"
    outbox_only = True


class MetaDocument(Document):
    """The directory's version."""

    meta: ClassVar = {"collection": "directory_meta", "auto_create_index": False}
    id = StringField(primary_key=True)
    version = IntField(default=0)


class ProfileDocument(Document):
    """What routing knows of a number: its customer, fed by crm's events, and its recent calls."""

    meta: ClassVar = {
        "collection": "profiles",
        "auto_create_index": False,
        "indexes": ["customer", {"fields": ["called_ms"], "sparse": True}],
    }
    #: E.164.
    id = StringField(primary_key=True)
    customer = StringField()
    tier = StringField()
    priority = IntField(default=0)
    #: Version of the customer that said so: an older one is ignored.
    customer_version = IntField(default=0)
    #: Business time of the event that said so.
    changed_at = DateTimeField()
    #: Region that the customer belongs to.
    region = StringField()
    #: Recent calls: id, at_ms, ended_ms, resolved_ms, region (callers.py reads them).
    calls = ListField(DictField())
    #: When the latest of them was heard of, business milliseconds; absent without calls.
    called_ms = IntField()


class CursorDocument(Document):
    """How far a shard's journal is published; moved by compare-and-set."""

    meta: ClassVar = {"collection": "relay_cursors", "auto_create_index": False}
    #: Shard.
    id = StringField(primary_key=True)
    sequence = IntField(default=0)
    nonce = StringField(default="")


DIRECTORY = (RegionDocument, SkillDocument, QueueDocument, AgentDocument, RemovedDocument)
DOCUMENTS = (*DIRECTORY, MetaDocument, ProfileDocument, CursorDocument)
