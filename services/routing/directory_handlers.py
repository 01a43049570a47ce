"""Use cases of the directory: create, get, list, update, delete of its four kinds, and drain and resume of
a region.

Blocking (mongoengine): run in the servicer's thread pool. Every change raises the directory's version,
which routers look at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.routing.v1 import directory_pb2 as pb
from callmesh.routing.v1 import events_pb2
from chassis.bus import Event
from chassis.callcontext import current_identity
from chassis.clock import Clock
from chassis.errors import AlreadyExists, EtagMismatch, FailedPrecondition, InvalidArgument, NotFound, within
from chassis.fieldmask import apply_mask
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import parse_name, resource_name, stable_id
from chassis.mongo import create_once, parse_etag, retry_conflicts, update_aggregate
from chassis.pagination import Page
from routing.audit import Act, act_event
from routing.directory import VERSION_ID
from routing.directory_kinds import AGENT, QUEUE, REGION, SKILL, Kind, resource_id
from routing.documents import (
    SERVED,
    AgentDocument,
    MetaDocument,
    QueueDocument,
    RegionDocument,
    RemovedDocument,
    SkillDocument,
)
from routing.errors import AgentNotFound, QueueNotFound, RegionNotFound

#: Agents created by one call.
BATCH_MAX = 500

Result = TypeVar("Result")


class SkillNotFound(NotFound):
    """There is no skill {resource}."""

    reason = "SKILL_NOT_FOUND"


class InUse(FailedPrecondition):
    """{subject} cannot be removed: {why}."""


class RegionInUse(InUse):
    reason = "REGION_IN_USE"


class SkillInUse(InUse):
    reason = "SKILL_IN_USE"


class QueueInUse(InUse):
    reason = "QUEUE_IN_USE"


#: Kinds of resource that others name.
_IN_USE: dict[str, type[InUse]] = {"regions": RegionInUse, "skills": SkillInUse}
_NOT_FOUND: dict[str, type[NotFound]] = {
    "regions": RegionNotFound,
    "skills": SkillNotFound,
    "queues": QueueNotFound,
    "agents": AgentNotFound,
}


class DirectoryHandlers:
    """The directory's use cases."""

    def __init__(self, clock: Clock, routers: Collection[str] = ()) -> None:
        """`routers` are the addresses that ROUTING_PEERS names; with none any may lead."""
        self._clock = clock
        self._routers = routers

    def create(self, kind: Kind, id: str, message: Any, request: Any, subject: str) -> Any:
        """A new resource; a repeat of the request answers the first result. Raises AlreadyExists,
        InvalidArgument, NotFound.
        """
        resource_id(f"{kind.field}_id", id)
        document = kind.to_document(id, message)
        self._check_references(kind, document)
        key = request_key(subject, f"Create{kind.field}", request.request_id)
        made = self._saved(
            document,
            lambda: create_once(
                document, request_key=key, fingerprint=content_fingerprint(request), now=self._clock.now()
            )[0],
        )
        self._changed()
        return kind.to_message(made)

    def create_agents(self, requests: Sequence[pb.CreateAgentRequest], subject: str) -> list[pb.Agent]:
        """Up to 500 agents: all are checked before the first is written. Repeating a batch that stopped
        half-way is safe.
        """
        if not 1 <= len(requests) <= BATCH_MAX:
            raise InvalidArgument(field="requests", why=f"must have 1 to {BATCH_MAX} entries")
        ids = [resource_id(f"requests[{i}].agent_id", r.agent_id) for i, r in enumerate(requests)]
        if len(set(ids)) != len(ids):
            raise InvalidArgument(field="requests", why="must not name an agent twice")
        documents = []
        for i, each in enumerate(requests):
            with within(f"requests[{i}]"):
                documents.append(AGENT.to_document(each.agent_id, each.agent))
        self._check_agents(documents)
        taken = AgentDocument.objects(id__in=ids).only("id").first()
        if taken is not None and not any(r.request_id for r in requests):
            raise AlreadyExists(resource=resource_name("agents", taken.id))
        made = []
        for request, document in zip(requests, documents, strict=True):
            key = request_key(subject, "Createagent", request.request_id)
            stored, _ = create_once(
                document, request_key=key, fingerprint=content_fingerprint(request), now=self._clock.now()
            )
            made.append(AGENT.to_message(stored))
        self._changed()
        return made

    def _check_agents(self, documents: Sequence[AgentDocument]) -> None:
        regions = {d.region for d in documents}
        known = set(RegionDocument.objects(id__in=regions).scalar("id"))
        for region in sorted(regions - known):
            raise RegionNotFound(resource=f"regions/{region}")
        self._check_skills({skill for d in documents for skill in d.skill_ids})

    def _check_references(self, kind: Kind, document: Any) -> None:
        """What a resource names must exist."""
        if kind is AGENT:
            self._check_agents([document])
        elif kind is REGION:
            self.check_routers("region.lead_list", document.lead_list)
            self._check_served(document)
        elif kind is QUEUE:
            self._check_skills(set(document.skill_ids))

    def check_routers(self, field: str, lead_list: Sequence[str]) -> None:
        """Raises InvalidArgument for an address that no router has: it could be reached by nobody, and a
        shard that only such may lead would be lost with its leader.
        """
        for index, router in enumerate(lead_list):
            if self._routers and router not in self._routers:
                raise InvalidArgument(
                    field=f"{field}[{index}]", why="no router in ROUTING_PEERS is reached there"
                )

    def _check_served(self, document: RegionDocument) -> None:
        """Raises InvalidArgument for an area or prefix whose callers are at home in another region already:
        two homes are none. A finer area, or a longer prefix, within another's is no such thing.
        """
        for name in SERVED:
            said = list(getattr(document, name))
            taken = {"id__ne": document.id, f"{name}__in": said}
            other = RegionDocument.objects(**taken).only("id", name).first() if said else None
            if other is not None:
                index = next(i for i, value in enumerate(said) if value in getattr(other, name))
                raise InvalidArgument(
                    field=f"region.{name}[{index}]",
                    why=f"{said[index]!r} is served by {resource_name('regions', other.id)} already",
                )

    def _saved(self, document: Any, save: Callable[[], Result]) -> Result:
        """What `save` answers. Raises InvalidArgument for a region whose area or prefix went to another one
        after it was looked at: the database takes each once.
        """
        try:
            return save()
        except AlreadyExists as error:
            if error.values.get("conflict") in SERVED:
                self._check_served(document)
            raise

    def _check_skills(self, skills: set[str]) -> None:
        known = set(SkillDocument.objects(id__in=skills).scalar("id"))
        for skill in sorted(skills - known):
            raise SkillNotFound(resource=f"skills/{skill}")

    def get(self, kind: Kind, name: str) -> Any:
        """One resource. Raises its kind of NotFound."""
        return kind.to_message(self._load(kind, "name", name))

    def _load(self, kind: Kind, field: str, name: str) -> Any:
        id = parse_name(field, kind.collection, name)
        document = kind.document.objects(id=id).first()
        if document is None:
            raise _NOT_FOUND[kind.collection](resource=name)
        return document

    def list(self, kind: Kind, page_size: int, page_token: str, **where: str) -> tuple[list[Any], str]:
        """One page by id, and the token of the next."""
        page = Page.parse(page_size, page_token, fingerprint=f"{kind.collection}|{sorted(where.items())}")
        query = kind.document.objects(**where)
        if after := page.value(str):
            query = query.filter(id__gt=after)
        shown, token = page.cut(list(query.order_by("id").limit(page.limit + 1)), attrgetter("id"))
        return [kind.to_message(row) for row in shown], token

    def update(self, kind: Kind, patch: Any, mask: FieldMask | None) -> Any:
        """Changes the fields that the mask names. Raises InvalidArgument, NotFound, EtagMismatch."""
        expected = parse_etag(f"{kind.field}.etag", patch.etag)

        def change() -> Any:
            document = self._load(kind, f"{kind.field}.name", patch.name)
            message = kind.to_message(document)
            apply_mask(message, patch, mask, allowed=kind.allowed)
            if kind is REGION and mask is not None and "weight" in mask.paths and not message.weight:
                # 0 counts as not said, so as 100: the opposite of what is meant here.
                raise InvalidArgument(
                    field="region.weight", why="must be 1 to 1000; 0 is what draining is for"
                )
            kind.to_document(document.id, message, document)
            self._check_references(kind, document)
            self._saved(
                document,
                lambda: update_aggregate(document, expected_version=expected, now=self._clock.now()),
            )
            return kind.to_message(document)

        result = change() if expected is not None else retry_conflicts(change)
        self._changed()
        return result

    def all_of(self, kind: Kind) -> dict[str, Any]:
        """Every resource of a kind by id: for whole directories."""
        return {row.id: kind.to_message(row) for row in kind.document.objects.order_by("id")}

    def put(self, kind: Kind, id: str, message: Any) -> None:
        """Creates a resource or brings it to what `message` says, whatever it was. Raises InvalidArgument."""

        def change() -> None:
            known = kind.document.objects(id=id).first()
            document, now = kind.to_document(id, message, known), self._clock.now()
            if known is None:
                self._saved(document, lambda: create_once(document, request_key=None, now=now))
            else:
                self._saved(document, lambda: update_aggregate(document, now=now))

        retry_conflicts(change)
        self._changed()

    def delete(self, kind: Kind, name: str, etag: str) -> None:
        """Removes a resource that nothing names. Raises NotFound, InUse, EtagMismatch."""
        expected = parse_etag("etag", etag)

        def change() -> None:
            document = self._load(kind, "name", name)
            if expected is not None and expected != document.version:
                raise EtagMismatch(resource=name)
            user = self._user_of(kind, document.id)
            if user:
                raise _IN_USE[kind.collection](subject=name, why=f"{user} names it")
            self._keep_untold(document)
            if not kind.document.objects(id=document.id, version=document.version).delete():
                # Somebody changed it meanwhile.
                raise EtagMismatch(resource=name)

        retry_conflicts(change)
        self._changed()

    def _keep_untold(self, document: Any) -> None:
        """What a resource has not told yet outlives it: its queue was closed, say, and by whom. The same
        events may go out twice, under the same ids.
        """
        if not document.outbox:
            return
        removed = RemovedDocument(
            id=stable_id(document.resource, document.version),
            version=1,
            outbox=document.outbox,
            outbox_since=document.outbox_since,
            created_at=self._clock.now(),
        )
        removed.save()

    def _user_of(self, kind: Kind, id: str) -> str:
        """Somebody who names the resource; "" for nobody."""
        if kind is REGION:
            agent = AgentDocument.objects(region=id).only("id").first()
            return resource_name("agents", agent.id) if agent is not None else ""
        if kind is SKILL:
            for users, collection in ((QueueDocument, "queues"), (AgentDocument, "agents")):
                user = users.objects(skill_ids=id).only("id").first()
                if user is not None:
                    return resource_name(collection, user.id)
        return ""

    def set_draining(
        self, name: str, draining: bool, reason: str, *, move_waiting: bool = False
    ) -> pb.Region:
        """Drains or resumes a region, with its waiting calls if wanted; repeating it changes nothing."""
        if len(reason) > 500:
            raise InvalidArgument(field="reason", why="must be at most 500 characters")

        def change() -> pb.Region:
            document = self._load(REGION, "name", name)
            if (document.draining, bool(document.move_waiting)) != (draining, move_waiting):
                document.draining, document.move_waiting = draining, move_waiting
                update_aggregate(document, self._drained(document, reason), now=self._clock.now())
            message: pb.Region = REGION.to_message(document)
            return message

        result = retry_conflicts(change)
        self._changed()
        return result

    def _drained(self, document: RegionDocument, reason: str) -> Sequence[Event]:
        """What everybody hears of a region's new state, and what the audit log keeps."""
        act = Act.DRAIN_REGION if document.draining else Act.RESUME_REGION
        name, actor = resource_name("regions", document.id), current_identity().subject
        return [self._state_changed(document, reason), act_event(self._clock, act, name, actor, reason)]

    def _state_changed(self, document: RegionDocument, reason: str) -> Event:
        now = Timestamp()
        now.FromDatetime(self._clock.now())
        name = resource_name("regions", document.id)
        state = pb.REGION_STATE_DRAINING if document.draining else pb.REGION_STATE_UP
        body = events_pb2.RegionStateChanged(region=name, event_time=now, state=state, reason=reason)
        return Event.of(body, source="routing", subject=name, time=self._clock.now())

    def _changed(self) -> None:
        MetaDocument.objects(id=VERSION_ID).update_one(inc__version=1, upsert=True)
