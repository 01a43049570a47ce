"""A whole directory at once: checked as a whole, compared with what is stored, then brought into force.

1. Everything is checked before anything is written: each resource as by its own Create, names given once,
   and what only the whole can show (an area or prefix that two regions claim, a name that leads nowhere). So
   a bad file changes nothing and the directory before it stays in force.
2. What follows is a list of changes in an order in which every step is valid: skills, regions, queues, agents
   are made and changed first, then, with `prune`, agents, queues, regions and skills that the file does not
   name go.
3. Each change is one document's; a writer that dies half-way leaves a valid directory, and the same file
   applied again does the rest. What goes from one region to another is given up before it is taken: for that
   moment its callers belong to the nearest region, and never to two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from callmesh.routing.v1 import directory_pb2 as pb
from chassis.errors import InvalidArgument
from chassis.ids import parse_name, resource_name
from routing.directory_handlers import DirectoryHandlers
from routing.directory_kinds import AGENT, QUEUE, REGION, SKILL, Kind, resource_id
from routing.documents import SERVED

#: Resources of one file.
RESOURCES_MAX = 200_000
#: In the order in which they may name one another.
KINDS: tuple[Kind, ...] = (SKILL, REGION, QUEUE, AGENT)


def apply_directory(
    handlers: DirectoryHandlers, request: pb.ApplyDirectoryRequest
) -> pb.ApplyDirectoryResponse:
    """Puts a directory in force, or says with `validate_only` what would change. Raises InvalidArgument
    naming the entry and field.
    """
    wanted = checked(request.directory)
    stored = {kind.collection: handlers.all_of(kind) for kind in KINDS}
    kept = {} if request.prune else stored
    _check_names(wanted, kept)
    _check_areas(request.directory, kept)
    for index, region in enumerate(request.directory.regions):
        handlers.check_routers(f"directory.regions[{index}].lead_list", region.lead_list)
    changes = list(_changes(wanted, stored, prune=request.prune))
    if not request.validate_only:
        for id, region in _given_up(request.directory, stored["regions"]):
            handlers.put(REGION, id, region)
        for change in changes:
            _carry_out(handlers, change, wanted)
    return pb.ApplyDirectoryResponse(changes=changes)


Wanted = dict[str, dict[str, Any]]


def checked(directory: pb.Directory) -> Wanted:
    """A directory's resources by collection and id. Raises InvalidArgument."""
    if sum(len(getattr(directory, kind.collection)) for kind in KINDS) > RESOURCES_MAX:
        raise InvalidArgument(field="directory", why=f"must have at most {RESOURCES_MAX} resources")
    wanted: Wanted = {}
    for kind in KINDS:
        found = wanted[kind.collection] = {}
        for index, message in enumerate(getattr(directory, kind.collection)):
            field = f"directory.{kind.collection}[{index}]"
            id = resource_id(f"{field}.name", parse_name(f"{field}.name", kind.collection, message.name))
            if id in found:
                raise InvalidArgument(field=f"{field}.name", why=f"{message.name} is there twice")
            found[id] = _normal(kind, id, message, field)
    return wanted


def _normal(kind: Kind, id: str, message: Any, field: str) -> Any:
    """The resource as it would be shown once stored. Raises InvalidArgument under the file's own path."""
    try:
        return kind.to_message(kind.to_document(id, message))
    except InvalidArgument as error:
        violations = error.details.field_violations
        raise InvalidArgument.many(
            [(f"{field}{_inner(each.field, kind)}", each.description) for each in violations]
        ) from error


def _inner(path: str, kind: Kind) -> str:
    """A path below the resource: "region.weight" is ".weight" of an entry."""
    return path.removeprefix(kind.field) if path.startswith(kind.field) else f".{path}"


def _check_areas(directory: pb.Directory, kept: Wanted) -> None:
    """No area and no prefix is claimed by two regions, those that stay as they are among them."""
    changed = {region.name for region in directory.regions}
    others = [region for region in kept.get("regions", {}).values() if region.name not in changed]
    for name in SERVED:
        claimed = {area: region.name for region in others for area in getattr(region, name)}
        for index, region in enumerate(directory.regions):
            for place, area in enumerate(getattr(region, name)):
                if area in claimed:
                    raise InvalidArgument(
                        field=f"directory.regions[{index}].{name}[{place}]",
                        why=f"{area!r} is served by {claimed[area]} already",
                    )
                claimed[area] = region.name


def _given_up(directory: pb.Directory, stored: Mapping[str, pb.Region]) -> Iterator[tuple[str, pb.Region]]:
    """(id, region) of the stored ones that serve what the file gives to another, without that."""
    takes = {
        name: {area: region.name for region in directory.regions for area in getattr(region, name)}
        for name in SERVED
    }
    for id, known in stored.items():
        less = pb.Region()
        less.CopyFrom(known)
        for name, taker in takes.items():
            left = [area for area in getattr(known, name) if taker.get(area, known.name) == known.name]
            getattr(less, name)[:] = left
        if less != known:
            yield id, less


def _check_names(wanted: Wanted, stored: Wanted) -> None:
    """What a resource names is in the file or, unless the rest is removed, stored already."""
    skills = wanted["skills"].keys() | stored.get("skills", {}).keys()
    regions = wanted["regions"].keys() | stored.get("regions", {}).keys()
    for id, queue in wanted["queues"].items():
        steps = [need for step in queue.relaxation_steps for need in step.skills]
        for need in (*queue.skills, *steps):
            if need.skill not in skills:
                raise InvalidArgument(field=f"queues/{id}.skills", why=f"there is no skill {need.skill!r}")
    for id, agent in wanted["agents"].items():
        if agent.region.removeprefix("regions/") not in regions:
            raise InvalidArgument(field=f"agents/{id}.region", why=f"there is no {agent.region}")
        for skill in agent.skills:
            if skill not in skills:
                raise InvalidArgument(field=f"agents/{id}.skills", why=f"there is no skill {skill!r}")


def _changes(wanted: Wanted, stored: Wanted, *, prune: bool) -> Iterator[pb.ApplyDirectoryResponse.Change]:
    for kind in KINDS:
        for id, message in wanted[kind.collection].items():
            name, known = resource_name(kind.collection, id), stored[kind.collection].get(id)
            if known is None:
                yield pb.ApplyDirectoryResponse.Change(name=name, action="create")
                continue
            fields = differing(kind, known, message)
            if fields:
                yield pb.ApplyDirectoryResponse.Change(name=name, action="update", fields=fields)
    if prune:
        for kind in reversed(KINDS):
            for id in sorted(stored[kind.collection].keys() - wanted[kind.collection].keys()):
                yield pb.ApplyDirectoryResponse.Change(
                    name=resource_name(kind.collection, id), action="delete"
                )


def differing(kind: Kind, known: Any, message: Any) -> list[str]:
    """Names of the fields that a client may set and that differ."""
    return [name for name in sorted(kind.allowed) if getattr(known, name) != getattr(message, name)]


def _carry_out(handlers: DirectoryHandlers, change: pb.ApplyDirectoryResponse.Change, wanted: Wanted) -> None:
    collection, _, id = change.name.partition("/")
    kind = next(each for each in KINDS if each.collection == collection)
    if change.action == "delete":
        handlers.delete(kind, change.name, "")
        return
    handlers.put(kind, id, wanted[collection][id])
