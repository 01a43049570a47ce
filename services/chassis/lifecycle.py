"""What a service keeps, of which class, for how long; its indexes; its migrations. One table a service.

Each service has a `lifecycle.py` with a `LIFECYCLE`. `python -m chassis.lifecycle <service>` compares it
with the service's database; `--apply` makes missing indexes and runs migrations, `--prune` removes what is
older than its class allows; both go into the service's audit log, as done by `--actor=NAME`. Without either
it only tells, as JSON. Exit status: 0 nothing to tell, 1 something, 2 it could not look.

A migration is a function that brings documents of the previous release to what this one wants. It must be
harmless when it is run twice and while processes of both releases run; `MIGRATIONS` says which have been
done.
"""

from __future__ import annotations

import enum
import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from chassis.config import ServiceSettings

if TYPE_CHECKING:
    from mongoengine import Document
    from pymongo.database import Database

#: Collection of a service's migrations that were done.
MIGRATIONS = "callmesh_migrations"
#: Documents removed at once.
PRUNE_AT_ONCE = 1_000
DAY_SECONDS = 86_400
#: Options of an index that change what it does.
_TELLING = ("unique", "sparse", "expireAfterSeconds", "partialFilterExpression")


class DataClass(enum.StrEnum):
    """What kind of data a collection holds."""

    #: About a person: goes with EraseCustomer.
    PERSONAL = "personal"
    #: What the business did: kept as its records.
    BUSINESS = "business"
    #: How the platform is set up.
    CONFIGURATION = "configuration"
    #: Who changed what.
    AUDIT = "audit"
    #: Counts without people.
    STATISTICS = "statistics"
    #: Made from events of others, and made again from them.
    READ_MODEL = "read model"
    #: The machinery's own.
    TECHNICAL = "technical"


class Rule(enum.StrEnum):
    """What ends a document's life."""

    #: Somebody deletes or replaces it through the API.
    DELETED = "deleted by its owner"
    #: The customer is erased, or it goes with the record that it belongs to.
    ERASED = "erased with the customer, or with its record"
    #: The database removes it by a TTL index.
    TTL = "removed by the database"
    #: The service removes it by itself.
    PRUNED = "removed by the service"
    #: `callmesh retention --apply` removes it.
    AGED = "removed by callmesh retention"


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """One collection."""

    name: str
    kind: DataClass
    rule: Rule
    #: How long, seconds; None where no age ends it.
    seconds: int | None = None
    #: For AGED: the field with the age, milliseconds since 1970; indexed.
    aged_by: str = ""
    #: Its mapping, for the indexes; None for what is written without one.
    document: type[Document] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """One step from the previous release to this one."""

    #: Sorts and names it: "2026-11-22-tickets-team".
    id: str
    #: For the operator: one sentence.
    what: str
    #: (database, apply) -> how many documents were, or would be, changed.
    run: Callable[[Database[dict[str, Any]], bool], int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifecycle:
    """All of one service."""

    service: str
    held: tuple[Held, ...]
    #: In the order in which they run; never removed while a release that needs one is supported.
    migrations: tuple[Migration, ...] = field(default=())
    #: Scopes whose RPCs are administrative acts (`chassis.acts`).
    acts: frozenset[str] = field(default=frozenset())
    #: Scopes of everyday work that changes something.
    daily: frozenset[str] = field(default=frozenset())


def technical() -> tuple[Held, ...]:
    """What every service has through the chassis."""
    from chassis import acts, eventlog
    from chassis.bus import inbox

    own = functools.partial(Held, kind=DataClass.TECHNICAL)
    return (
        own(name=inbox.COLLECTION, rule=Rule.TTL, seconds=inbox.MARK_SECONDS),
        own(name=eventlog.COLLECTION, rule=Rule.PRUNED, seconds=round(eventlog.HOURS * 3600)),
        own(name=eventlog.META, rule=Rule.PRUNED),
        own(name="leases", rule=Rule.PRUNED),
        own(name=MIGRATIONS, rule=Rule.DELETED),
        Held(
            name=acts.COLLECTION,
            kind=DataClass.AUDIT,
            rule=Rule.AGED,
            seconds=acts.KEPT_DAYS * DAY_SECONDS,
            aged_by="at",
            document=acts.ActDocument,
        ),
    )


def of_documents(
    documents: Sequence[type[Document]], kind: DataClass, rule: Rule, seconds: int | None = None
) -> tuple[Held, ...]:
    """Collections of one class, by their mappings."""
    return tuple(
        Held(name=each._meta["collection"], kind=kind, rule=rule, seconds=seconds, document=each)
        for each in documents
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that is not as it should be, and what to do."""

    what: str
    do: str


def findings(database: Database[dict[str, Any]], lifecycle: Lifecycle) -> Iterator[Finding]:
    """Where a database is not as the table says. Pymongo's errors."""
    there = {name for name in database.list_collection_names() if not name.startswith("system.")}
    for name in sorted(there - {held.name for held in lifecycle.held}):
        yield Finding(
            what=f"{name}: no retention is stated for it", do="an older release made it: drop it, or ask"
        )
    for held in lifecycle.held:
        if held.document is not None and held.name in there:
            yield from _index_findings(database, held)
    done = {each["_id"] for each in database[MIGRATIONS].find({}, {"_id": 1})}
    for migration in lifecycle.migrations:
        # Where there is nothing to bring forward (a new installation), there is nothing to tell.
        if migration.id not in done and (count := migration.run(database, False)):
            yield Finding(
                what=f"migration {migration.id}: {migration.what} ({count})", do="callmesh migrate --apply"
            )


def _index_findings(database: Database[dict[str, Any]], held: Held) -> Iterator[Finding]:
    assert held.document is not None
    live = {_shape(index) for index in database[held.name].list_indexes() if index["name"] != "_id_"}
    wanted = {_shape(_as_index(spec)) for spec in held.document._meta.get("index_specs", ())}
    for shape in sorted(wanted - live):
        yield Finding(what=f"{held.name}: index {shape} is missing", do="callmesh migrate --apply")
    for shape in sorted(live - wanted):
        yield Finding(
            what=f"{held.name}: index {shape} belongs to no release", do="drop it when nobody needs it"
        )


def _as_index(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "key": dict(spec["fields"])}


def _shape(index: Any) -> str:
    """What an index does, as one line; text indexes by their name alone."""
    key = index["key"]
    if "_fts" in key or "text" in key.values():
        return f"text {index.get('name', '')}"
    fields = ", ".join(f"{name} {direction}" for name, direction in key.items())
    # As JSON: the server answers with ordered documents, which equal plain ones and do not look like them.
    said = [
        f"{name}={json.dumps(index[name], default=str)}"
        for name in _TELLING
        if index.get(name) not in (None, False)
    ]
    return " ".join([f"({fields})", *said])


def apply(database: Database[dict[str, Any]], lifecycle: Lifecycle) -> Iterator[str]:
    """Makes missing indexes, runs what was not run yet; a line for each. Pymongo's errors, StartError."""
    from chassis.mongo import ensure_indexes

    for held in lifecycle.held:
        if held.document is not None:
            before = [each for each in _index_findings(database, held) if "is missing" in each.what]
            ensure_indexes([held.document])
            yield from (each.what.replace("is missing", "made") for each in before)
    marks = database[MIGRATIONS]
    for migration in lifecycle.migrations:
        if marks.find_one({"_id": migration.id}) is None:
            count = migration.run(database, True)
            # Written after the work: one that died on the way is run again.
            marks.update_one(
                {"_id": migration.id}, {"$set": {"at": datetime.now(UTC), "count": count}}, upsert=True
            )
            yield f"migration {migration.id}: {count} changed"


def prune(
    database: Database[dict[str, Any]], lifecycle: Lifecycle, now: datetime, *, remove: bool
) -> dict[str, int]:
    """Documents older than their class allows, by collection: counted, and removed if `remove`. Pymongo's
    errors.
    """
    found: dict[str, int] = {}
    for held in lifecycle.held:
        if held.rule is not Rule.AGED or held.seconds is None:
            continue
        before_ms = int((now - timedelta(seconds=held.seconds)).timestamp() * 1000)
        old = {held.aged_by: {"$lt": before_ms}}
        collection = database[held.name]
        if not remove:
            found[held.name] = collection.count_documents(old)
            continue
        found[held.name] = 0
        while ids := [each["_id"] for each in collection.find(old, {"_id": 1}).limit(PRUNE_AT_ONCE)]:
            found[held.name] += collection.delete_many({"_id": {"$in": ids}}).deleted_count
    return found


def load(service: str) -> Lifecycle:
    """A service's table. ModuleNotFoundError for a service that is none."""
    found: Lifecycle = importlib.import_module(f"{service}.lifecycle").LIFECYCLE
    return found


def settings_class(service: str) -> type[ServiceSettings]:
    """The settings of a service. ModuleNotFoundError for a service that is none."""
    module = importlib.import_module(f"{service}.config")
    return next(
        each
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == module.__name__ and each.__base__ is ServiceSettings
    )


def table(lifecycle: Lifecycle) -> list[dict[str, Any]]:
    """The retention table, for people and documents."""
    return [
        {
            "collection": held.name,
            "class": held.kind.value,
            "ends": held.rule.value,
            "days": None if held.seconds is None else round(held.seconds / DAY_SECONDS, 2),
        }
        for held in lifecycle.held
    ]


def main(arguments: Sequence[str]) -> int:
    """`python -m chassis.lifecycle <service> [--apply | --prune | --aged | --table] [--actor=NAME]`; see the
    module's docstring.
    """
    from pymongo.errors import PyMongoError

    from chassis import mongo
    from chassis.acts import noted
    from chassis.config import load_settings
    from chassis.errors import StartError

    service, flags = arguments[0], {each for each in arguments[1:] if not each.startswith("--actor=")}
    actor = next((each.partition("=")[2] for each in arguments if each.startswith("--actor=")), "cli:unknown")
    lifecycle = load(service)
    if "--table" in flags:
        print(json.dumps(table(lifecycle)))
        return 0
    settings = load_settings(settings_class(service))
    try:
        database = mongo.connect(settings)
        act = functools.partial(noted, database, actor=actor, resource=service)
        if "--apply" in flags:
            with act(method="callmesh migrate --apply"):
                said: Any = list(apply(database, lifecycle))
        elif "--prune" in flags:
            with act(method="callmesh retention --apply"):
                said = prune(database, lifecycle, datetime.now(UTC), remove=True)
        elif "--aged" in flags:
            said = prune(database, lifecycle, datetime.now(UTC), remove=False)
        else:
            said = [{"what": each.what, "do": each.do} for each in findings(database, lifecycle)]
    except (StartError, PyMongoError) as error:
        text = str(error) if isinstance(error, StartError) else type(error).__name__
        print(json.dumps({"error": text}))
        return 2
    finally:
        mongo.disconnect()
    print(json.dumps(said))
    return 1 if said and not flags else 0


if __name__ == "__main__":
    # Under its own name: the services' tables are made of that module's rules; "__main__" has them once more.
    from chassis.lifecycle import main as own_main

    raise SystemExit(own_main(sys.argv[1:]))
