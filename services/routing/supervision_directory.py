"""Use cases of supervision that change the directory: skills of many agents, closed queues.

Blocking (mongoengine): run in the servicer's thread pool. The act that the audit log keeps is written with
the change itself, into the outbox of the very document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pymongo import UpdateOne
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from callmesh.routing.v1 import directory_pb2
from callmesh.routing.v1 import supervision_pb2 as pb
from chassis.bus import Event
from chassis.clock import Clock
from chassis.errors import EtagMismatch, InvalidArgument, Unavailable
from chassis.ids import check_id, parse_name, resource_name
from chassis.mongo import pending_entry, retry_conflicts, update_aggregate
from routing.acts import checked_reason
from routing.announcements import ANNOUNCEMENT_CHARACTERS_MAX
from routing.audit import Act, act_event
from routing.convert import text, whole
from routing.directory import VERSION_ID
from routing.directory_handlers import SkillNotFound
from routing.directory_kinds import AGENT, ENTRIES_MAX, QUEUE, language_tag
from routing.documents import AgentDocument, MetaDocument, QueueDocument, SkillDocument
from routing.errors import AgentNotFound, QueueNotFound

#: Agents re-skilled by one call.
RESKILL_AGENTS_MAX = 1_000
#: Languages of a closure's announcement.
ANNOUNCEMENTS_MAX = 100


class SupervisionDirectory:
    """The directory's side of supervision."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    # --- skills ---

    def reskill(self, request: pb.ReskillAgentsRequest, actor: str) -> list[directory_pb2.Agent]:
        """Changes the skills of all named agents, or of none. Raises InvalidArgument, AgentNotFound,
        SkillNotFound.
        """
        ids = _agent_ids(request.names)
        wanted = _levels(request.set)
        gone = _gone(request.remove, wanted)
        reason = checked_reason(request.reason)
        self._check_skills(wanted)

        def change() -> list[directory_pb2.Agent]:
            documents = self._load(ids)
            changed = [d for d in documents if _apply(d, wanted, gone)]
            if changed and not request.validate_only:
                self._write(changed, actor, reason, _said(wanted, gone))
            return [AGENT.to_message(document) for document in documents]

        agents = retry_conflicts(change)
        if not request.validate_only:
            self._changed()
        return agents

    def _check_skills(self, wanted: Mapping[str, int]) -> None:
        known = set(SkillDocument.objects(id__in=list(wanted)).scalar("id"))
        for skill in sorted(set(wanted) - known):
            raise SkillNotFound(resource=resource_name("skills", skill))

    def _load(self, ids: Sequence[str]) -> list[AgentDocument]:
        found = {document.id: document for document in AgentDocument.objects(id__in=ids)}
        for agent in ids:
            if agent not in found:
                raise AgentNotFound(resource=resource_name("agents", agent))
        return [found[agent] for agent in ids]

    def _write(
        self, documents: Sequence[AgentDocument], actor: str, reason: str, details: dict[str, str]
    ) -> None:
        """All or none: one transaction, each document over the version that it was loaded as. Raises
        EtagMismatch.
        """
        now = self._clock.now()
        operations = []
        for document in documents:
            name = resource_name("agents", document.id)
            event = self._act(Act.RESKILL_AGENT, name, actor, reason, details)
            values = {
                "skills": document.skills,
                "skill_ids": document.skill_ids,
                "version": document.version + 1,
                "updated_at": now,
            }
            update = {
                "$set": values,
                "$push": {"outbox": pending_entry(event)},
                "$min": {"outbox_since": datetime.now(UTC)},
            }
            operations.append(UpdateOne({"_id": document.id, "version": document.version}, update))
        self._in_transaction(operations)
        for document in documents:
            document.version += 1
            document.updated_at = now

    def _in_transaction(self, operations: list[UpdateOne]) -> None:
        collection = AgentDocument._get_collection()

        def write(session: Any) -> None:
            result = collection.bulk_write(operations, session=session)
            if result.matched_count != len(operations):
                # Somebody changed one of them: nothing is written, and all are looked at again.
                raise EtagMismatch(resource="agents")

        try:
            with collection.database.client.start_session() as session:
                session.with_transaction(
                    write, read_concern=ReadConcern("snapshot"), write_concern=WriteConcern(w="majority")
                )
        except PyMongoError as error:
            raise Unavailable(why="the directory cannot be written just now", retry_seconds=1.0) from error

    # --- queues ---

    def close_queue(self, request: pb.CloseQueueRequest, actor: str) -> directory_pb2.Queue:
        """New callers are refused, waiting ones too, with the announcement; repeating it changes nothing."""
        if len(request.announcements) > ANNOUNCEMENTS_MAX:
            raise InvalidArgument(
                field="announcements", why=f"must have at most {ANNOUNCEMENTS_MAX} languages"
            )
        said = {
            language_tag("announcements key", tag): text(
                f"announcements[{tag[:35]}]", value, ANNOUNCEMENT_CHARACTERS_MAX
            )
            for tag, value in request.announcements.items()
        }
        return self._set_closed(request.name, True, said, actor, request.reason)

    def reopen_queue(self, request: pb.ReopenQueueRequest, actor: str) -> directory_pb2.Queue:
        """Takes callers again; repeating it changes nothing."""
        return self._set_closed(request.name, False, {}, actor, request.reason)

    def _set_closed(
        self, name: str, closed: bool, said: dict[str, str], actor: str, reason: str
    ) -> directory_pb2.Queue:
        checked_reason(reason)
        queue = parse_name("name", "queues", name)
        act = Act.CLOSE_QUEUE if closed else Act.REOPEN_QUEUE

        def change() -> directory_pb2.Queue:
            document = QueueDocument.objects(id=queue).first()
            if document is None:
                raise QueueNotFound(resource=name)
            if (bool(document.closed), dict(document.closing_announcements or {})) != (closed, said):
                document.closed, document.closing_announcements = closed, said
                details = {"announcements": ",".join(sorted(said))[:200]} if said else {}
                event = self._act(act, name, actor, reason, details)
                update_aggregate(document, [event], now=self._clock.now())
            message: directory_pb2.Queue = QUEUE.to_message(document)
            return message

        result = retry_conflicts(change)
        self._changed()
        return result

    def _act(self, act: Act, resource: str, actor: str, reason: str, details: dict[str, str]) -> Event:
        return act_event(self._clock, act, resource, actor, reason, details)

    def _changed(self) -> None:
        MetaDocument.objects(id=VERSION_ID).update_one(inc__version=1, upsert=True)


def _agent_ids(names: Sequence[str]) -> list[str]:
    if not 1 <= len(names) <= RESKILL_AGENTS_MAX:
        raise InvalidArgument(field="names", why=f"must have 1 to {RESKILL_AGENTS_MAX} agents")
    ids = [parse_name(f"names[{place}]", "agents", name) for place, name in enumerate(names)]
    if len(set(ids)) != len(ids):
        raise InvalidArgument(field="names", why="must not name an agent twice")
    return ids


def _levels(skills: Mapping[str, int]) -> dict[str, int]:
    if len(skills) > ENTRIES_MAX:
        raise InvalidArgument(field="set", why=f"must have at most {ENTRIES_MAX} skills")
    return {
        check_id(f"set[{skill!r}]", skill, 63): whole(f"set[{skill!r}]", level, 1, 5)
        for skill, level in sorted(skills.items())
    }


def _gone(remove: Sequence[str], wanted: Mapping[str, int]) -> list[str]:
    if len(remove) > ENTRIES_MAX:
        raise InvalidArgument(field="remove", why=f"must have at most {ENTRIES_MAX} skills")
    gone = sorted({check_id(f"remove[{place}]", skill, 63) for place, skill in enumerate(remove)})
    both = [skill for skill in gone if skill in wanted]
    if both:
        raise InvalidArgument(field="remove", why=f"names {both[0]!r}, which `set` sets")
    if not wanted and not gone:
        raise InvalidArgument(field="set", why="must have a skill, or `remove` must")
    return gone


def _apply(document: AgentDocument, wanted: Mapping[str, int], gone: Sequence[str]) -> bool:
    """Changes the document in memory; whether anything is different. Raises InvalidArgument."""
    skills = {skill: level for skill, level in dict(document.skills).items() if skill not in gone}
    skills.update(wanted)
    if len(skills) > ENTRIES_MAX:
        raise InvalidArgument(field="set", why=f"would give {document.id} more than {ENTRIES_MAX} skills")
    changed = skills != dict(document.skills)
    document.skills, document.skill_ids = skills, sorted(skills)
    return changed


def _said(wanted: Mapping[str, int], gone: Sequence[str]) -> dict[str, str]:
    """What the audit log says of a change of skills."""
    said = {"set": ",".join(f"{skill}={level}" for skill, level in wanted.items()), "remove": ",".join(gone)}
    return {name: value[:1_000] for name, value in said.items() if value}
