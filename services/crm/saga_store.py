"""The part of the MongoDB store that merging, erasing, custom fields and churn need; see
`crm.store.Store`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import mongoengine
from pymongo import UpdateOne
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

from chassis.errors import AlreadyExists, EtagMismatch, NotFound
from chassis.mongo import (
    PendingEvent,
    create_once,
    find_repeat,
    insert_aggregate,
    update_aggregate,
)
from crm import documents as docs
from crm import timeline, webhooks
from crm.model import Churn, Customer, CustomField, Entry, Merge, State

#: Merges below one customer, deep.
LINEAGE_DEPTH_MAX = 20
#: Interactions made anonymous in one round.
SCRUB_BATCH = 500
_MAJORITY = WriteConcern(w="majority")
_EVER = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))


def _of(document: type[mongoengine.Document]) -> Any:
    return document._get_collection().with_options(write_concern=_MAJORITY)


#: What belongs to a customer and moves with a merge, beside interactions: (collection's name).
MOVED = ("care_tasks", "contracts", "usage")
#: Whoever read it before the move and writes it whole after it is to look anew.
_NEXT_VERSION = {"version": {"$add": [{"$ifNull": ["$version", 0]}, 1]}}


def noted_query(id: str) -> dict[str, Any]:
    """The filter document of merges that have, or may soon have, noted something of a customer."""
    return {"parties": id, "$or": [{"gains": {"$exists": True}}, {"busy": id}]}


def explained_query(id: str) -> dict[str, Any]:
    """The filter document of a customer's merges that say why they were asked for."""
    return {"parties": id, "$or": [{"reason": {"$exists": True}}, {"undo_reason": {"$exists": True}}]}


class MongoSagaStore:
    """Mixed into `crm.store.MongoStore`."""

    #: Of the part for imports.
    _scrub_imported: Callable[[str], None]

    # --- custom fields ---

    def custom_fields(self) -> dict[str, CustomField]:
        found = _of(docs.CustomFieldDocument).find()
        return {raw["_id"]: docs.custom_field_from_raw(raw) for raw in found}

    def insert_custom_field(self, field: CustomField) -> None:
        try:
            _of(docs.CustomFieldDocument).insert_one({"_id": field.id, **docs.custom_field_fields(field)})
        except DuplicateKeyError:
            raise AlreadyExists(resource=f"customFields/{field.id}") from None

    def save_custom_field(self, field: CustomField) -> None:
        collection = _of(docs.CustomFieldDocument)
        done = collection.update_one(
            {"_id": field.id, "version": field.version - 1}, {"$set": docs.custom_field_fields(field)}
        )
        if not done.matched_count:
            known = collection.find_one({"_id": field.id}, {"_id": 1})
            error = NotFound if known is None else EtagMismatch
            raise error(resource=f"customFields/{field.id}")

    # --- whose is what ---

    def standing(self, id: str) -> tuple[State, str] | None:
        raw = _of(docs.CustomerDocument).find_one({"_id": id}, {"state": 1, "merged_into": 1})
        return None if raw is None else (State(raw["state"]), raw.get("merged_into") or "")

    def standings(self, ids: Iterable[str]) -> dict[str, tuple[State, str]]:
        wanted = list(ids)
        if not wanted:
            return {}
        found = _of(docs.CustomerDocument).find({"_id": {"$in": wanted}}, {"state": 1, "merged_into": 1})
        return {raw["_id"]: (State(raw["state"]), raw.get("merged_into") or "") for raw in found}

    def move_subject(self, from_id: str, to_id: str) -> int:
        before, after = timeline.subject_of_customer(from_id), timeline.subject_of_customer(to_id)
        done = _of(docs.InteractionDocument).update_many(
            {"subject": before},
            [
                {
                    "$set": {
                        "own": {"$ifNull": ["$own", "$subject"]},
                        "subject": after,
                        "version": {"$add": ["$version", 1]},
                    }
                }
            ],
        )
        database = mongoengine.get_db()
        for name in MOVED:
            database[name].with_options(write_concern=_MAJORITY).update_many(
                {"customer": from_id},
                [{"$set": {"own": {"$ifNull": ["$own", "$customer"]}, "customer": to_id, **_NEXT_VERSION}}],
            )
        return int(done.modified_count)

    def return_subjects(self, from_id: str, to_id: str, owners: Sequence[str]) -> int:
        after = timeline.subject_of_customer(to_id)
        own = {"$cond": [{"$eq": ["$own", after]}, "$$REMOVE", "$own"]}
        done = _of(docs.InteractionDocument).update_many(
            {
                "own": {"$in": [timeline.subject_of_customer(owner) for owner in owners]},
                "subject": timeline.subject_of_customer(from_id),
            },
            [{"$set": {"subject": after, "version": {"$add": ["$version", 1]}, "own": own}}],
        )
        database = mongoengine.get_db()
        for name in MOVED:
            mine = {"$cond": [{"$eq": ["$own", to_id]}, "$$REMOVE", "$own"]}
            database[name].with_options(write_concern=_MAJORITY).update_many(
                {"own": {"$in": list(owners)}, "customer": from_id},
                [{"$set": {"customer": to_id, "own": mine, **_NEXT_VERSION}}],
            )
        return int(done.modified_count)

    def moved_count(self, survivor: str, owners: Sequence[str]) -> int:
        return int(
            _of(docs.InteractionDocument).count_documents(
                {
                    "own": {"$in": [timeline.subject_of_customer(owner) for owner in owners]},
                    "subject": timeline.subject_of_customer(survivor),
                }
            )
        )

    def lineage(self, ids: Sequence[str], limit: int) -> list[str]:
        found: list[str] = []
        level = list(ids)
        for _ in range(LINEAGE_DEPTH_MAX):
            below = _of(docs.CustomerDocument).find({"merged_into": {"$in": level}}, {"_id": 1}).limit(limit)
            level = [raw["_id"] for raw in below]
            found += level
            if not level or len(found) >= limit:
                break
        return found[:limit]

    # --- merges ---

    def insert_merge(self, merge: Merge, request_key: str | None, fingerprint: str | None) -> Merge:
        doc = docs.MergeDocument(id=merge.id, created_at=merge.create_time, **docs.merge_fields(merge))
        done, _ = create_once(doc, request_key=request_key, fingerprint=fingerprint, now=merge.create_time)
        return docs.merge_from_raw(done.to_mongo())

    def merge(self, id: str) -> Merge | None:
        raw = _of(docs.MergeDocument).find_one({"_id": id})
        return None if raw is None else docs.merge_from_raw(raw)

    def merge_by_request(self, request_key: str | None, fingerprint: str | None) -> Merge | None:
        found = find_repeat(docs.MergeDocument, request_key, fingerprint)
        return None if found is None else docs.merge_from_raw(found.to_mongo())

    def merges(self, customer: str, before: str | None, limit: int) -> list[Merge]:
        query: dict[str, Any] = {"parties": customer} if customer else {}
        if before is not None:
            query["_id"] = {"$lt": before}
        found = _of(docs.MergeDocument).find(query).sort("_id", -1).limit(limit)
        return [docs.merge_from_raw(raw) for raw in found]

    def merge_running(self, customer: str) -> bool:
        return _of(docs.MergeDocument).find_one({"busy": customer}, {"_id": 1}) is not None

    def save_merge(self, merge: Merge, events: Sequence[PendingEvent]) -> Merge:
        doc = docs.MergeDocument.objects(id=merge.id).first()
        if doc is None:
            raise NotFound(resource=merge.name)
        if doc.version != merge.version:
            raise EtagMismatch(resource=merge.name)
        for name, value in docs.merge_fields(merge).items():
            setattr(doc, name, value)
        update_aggregate(doc, events, now=merge.update_time)
        return replace(merge, version=doc.version)

    def unfinished_merges(self, limit: int) -> list[Merge]:
        found = _of(docs.MergeDocument).find({"busy": {"$gt": ""}}).limit(limit)
        return [docs.merge_from_raw(raw) for raw in found]

    # --- erasure ---

    def erase_pending(self, limit: int) -> list[Customer]:
        found = _of(docs.CustomerDocument).find({"erase_pending": True}, docs.HIDDEN).limit(limit)
        return [docs.customer_from_raw(raw) for raw in found]

    def erased(self, id: str) -> None:
        _of(docs.CustomerDocument).update_one({"_id": id}, {"$unset": {"erase_pending": ""}})

    def scrub(self, id: str) -> None:
        raw = _of(docs.CustomerDocument).find_one({"_id": id}, {"origin": 1})
        if raw is not None and raw.get("origin"):
            self._scrub_imported(raw["origin"])
        self._scrub_trails(id)
        self._scrub_interactions(id)
        subject = timeline.subject_of_customer(id)
        _of(docs.RankingDocument).delete_one({"_id": subject})
        _of(docs.ChurnDocument).delete_one({"_id": id})
        self._scrub_merges(id)
        database = mongoengine.get_db()
        for name in MOVED:
            collection = database[name].with_options(write_concern=_MAJORITY)
            # What is shown with it and somebody else's goes with that one, or back to it.
            collection.delete_many({"customer": id, "own": {"$exists": False}})
            collection.delete_many({"own": id})

    def _scrub_merges(self, id: str) -> None:
        """Takes what merges noted of it, and why they were asked for: people write names there. One that is
        under way reads again, whether it has noted something yet or not, and does not write down once more
        what is known of nobody.
        """
        noted, again = noted_query(id), {"$inc": {"version": 1}}
        merges = _of(docs.MergeDocument)
        merges.update_many(explained_query(id), {"$unset": {"reason": "", "undo_reason": ""}, **again})
        merges.update_many({**noted, "survivor": id}, {"$unset": {"gains": ""}, **again})
        merges.update_many({**noted, "absorbed": id}, {"$pull": {"gains": {"id": id}}, **again})

    def _scrub_trails(self, id: str) -> None:
        """Its own trail of changes, and of those of a survivor who gave it back what was written between the
        two: there stands what the survivor had of it.
        """
        self._scrub_audit(id, _EVER)
        for raw in _of(docs.MergeDocument).find({"parties": id, "absorbed": id}):
            self._scrub_audit(raw["survivor"], (raw["created_at"], raw["updated_at"]))

    def _scrub_audit(self, id: str, span: tuple[datetime, datetime]) -> None:
        """Fields' names stay, values go; the reason of an erasure stays."""
        first, last = span
        blank = {
            "$map": {
                "input": "$$entry.changes",
                "as": "change",
                "in": {
                    "field": "$$change.field",
                    "new": {"$cond": [{"$eq": ["$$change.field", "reason"]}, "$$change.new", "$$REMOVE"]},
                },
            }
        }
        within = {"$and": [{"$gte": ["$$entry.time", first]}, {"$lte": ["$$entry.time", last]}]}
        inside = {
            "$map": {
                "input": "$audit",
                "as": "entry",
                "in": {"$cond": [within, {"$mergeObjects": ["$$entry", {"changes": blank}]}, "$$entry"]},
            }
        }
        _of(docs.CustomerDocument).update_one({"_id": id}, [{"$set": {"audit": inside}}])
        older = {"customer": id, "entry.time": {"$gte": first, "$lte": last}}
        for raw in docs.AuditDocument._get_collection().find(older):
            changes = [{"field": change["field"]} for change in raw["entry"].get("changes", ())]
            _of(docs.AuditDocument).update_one({"_id": raw["_id"]}, {"$set": {"entry.changes": changes}})

    def _scrub_interactions(self, id: str) -> None:
        subject = timeline.subject_of_customer(id)
        # What is shown with it and somebody else's goes with that one, or back to it.
        for query in ({"subject": subject, "own": {"$exists": False}}, {"own": subject}):
            found = docs.InteractionDocument._get_collection().find(
                query, docs.INTERACTION_HIDDEN, batch_size=SCRUB_BATCH
            )
            batch: list[Entry] = []
            for raw in found:
                batch.append(docs.entry_from_raw(raw))
                self._anonymise(batch[-1])
                if len(batch) >= SCRUB_BATCH:
                    webhooks.forget_interactions(batch)
                    batch = []
            webhooks.forget_interactions(batch)

    def _anonymise(self, entry: Entry) -> None:
        clean = timeline.anonymised(entry)
        if clean is entry:
            return
        doc = docs.InteractionDocument(id=clean.id, **docs.entry_fields(clean))
        doc.version = clean.revision
        try:
            update_aggregate(doc)
        except EtagMismatch:
            again = docs.InteractionDocument._get_collection().find_one({"_id": clean.id})
            if again is not None:
                self._anonymise(docs.entry_from_raw(again))

    # --- churn ---

    def churn(self, customer: str) -> Churn | None:
        raw = _of(docs.ChurnDocument).find_one({"_id": customer})
        return None if raw is None else docs.churn_from_raw(raw)

    def save_churn(self, churn: Churn, events: Sequence[PendingEvent], *, clean: bool = False) -> bool:
        doc = docs.ChurnDocument.objects(id=churn.customer).first() or docs.ChurnDocument(id=churn.customer)
        if (doc.version if churn.revision else 0) != churn.revision:
            return False
        for name, value in docs.churn_fields(churn).items():
            setattr(doc, name, value)
        if clean:
            doc.dirty_ms = None
        try:
            if churn.revision:
                update_aggregate(doc, events)
            else:
                insert_aggregate(doc, events)
        except (AlreadyExists, EtagMismatch, NotFound):
            return False
        return True

    def mark_churn(self, *customers: str) -> None:
        marked = {
            "dirty_ms": {"$ifNull": ["$dirty_ms", {"$toLong": "$$NOW"}]},
            "version": {"$add": [{"$ifNull": ["$version", 0]}, 1]},
        }
        writes = [UpdateOne({"_id": customer}, [{"$set": marked}], upsert=True) for customer in customers]
        if writes:
            _of(docs.ChurnDocument).bulk_write(writes, ordered=False)

    def forget_churn(self, customer: str) -> None:
        _of(docs.ChurnDocument).delete_one({"_id": customer})
