"""Where campaigns keep people and touches, in MongoDB: what is counted in millions, and must survive a crash
anywhere.

* A touch is one document with the id that `campaign_engine.touch_id` gives: the second insert of the same
  meeting is turned away by the unique `_id`, so a repeated run addresses nobody twice.
* A run (one phase taking people in) remembers the last customer of each finished batch, in one write with its
  counts, after the batch's touches are acknowledged: what a crash interrupts is done again, so nobody is
  skipped.
* Delivering claims touches by a token with an end. A claim that outlives its holder is taken up again; the
  message goes out under the same id (Idempotency-Key, Message-ID), by which a receiver knows the repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from operator import itemgetter
from typing import Any, ClassVar, Protocol

from mongoengine import BooleanField, DateTimeField, DictField, Document, IntField, ListField, StringField
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from chassis.mongo import Aggregate, clashes, pending_entry
from marketing import kin
from marketing.campaign_engine import AGAIN
from marketing.documents import ComplaintDocument, ProfileDocument
from marketing.model import Profile

#: Answers after which nobody is addressed again.
FINAL_ANSWERS = frozenset({"DECLINED", "OPTED_OUT"})
#: Campaigns whose due touches are looked for at once: of more the database would sort all there are.
CAMPAIGNS_AT_ONCE = 100
#: Touches counted for a sender's backlog.
BACKLOG_COUNTED_MAX = 1_000_000


class TouchDocument(Aggregate):
    """One person's meeting with one step."""

    resource_collection: ClassVar[str] = "touches"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "touches",
        "indexes": [
            {"fields": ["customer", "at", "channel"], "name": "customer_at"},
            # By campaign first: a million that wait in one that is paused or stopped are in nobody's way.
            {"fields": ["campaign", "state", "channel", "due_at"], "name": "due_by_campaign"},
            {"fields": ["token"], "name": "token", "sparse": True},
            # Calls outside campaigns, by age; campaigns' touches are found by their ids.
            {"fields": ["at"], "name": "calls", "partialFilterExpression": {"campaign": ""}},
        ],
    }

    campaign = StringField(required=True)
    phase = StringField(required=True)
    step = StringField(required=True)
    variant = StringField()
    customer = StringField(required=True)
    #: Where the customer belongs, for the profit report.
    region = StringField()
    channel = StringField(required=True)
    sender = StringField()
    #: QUEUED, SENDING, SENT, FAILED, or WAITING for the person to be there.
    state = StringField(required=True)
    #: When it was taken up, then when it left (caps count from here), and when it may go out.
    at = DateTimeField(required=True)
    due_at = DateTimeField()
    attempts = IntField()
    token = StringField()
    claimed_until = DateTimeField()
    answered = StringField()


class CampaignContactDocument(Document):
    """Where a person stands in a campaign. `_id` is "<campaign>/<customer>"."""

    meta: ClassVar[dict[str, Any]] = {
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "collection": "campaign_contacts",
        "indexes": [
            {
                "fields": ["campaign", "next_at"],
                "name": "next",
                "partialFilterExpression": {"next_at": {"$exists": True}},
            },
            {
                "fields": ["campaign", "response", "_id"],
                "name": "response",
                "partialFilterExpression": {"response": {"$exists": True}},
            },
            {
                "fields": ["campaign", "fresh"],
                "name": "fresh",
                "partialFilterExpression": {"fresh": True},
            },
            {
                "fields": ["bought_at"],
                "name": "bought",
                "partialFilterExpression": {"bought_at": {"$exists": True}},
            },
        ],
    }

    id = StringField(primary_key=True)
    campaign = StringField(required=True)
    customer = StringField(required=True)
    region = StringField()
    value_class = StringField()
    phase = StringField()
    step = StringField()
    response = StringField()
    #: Answers and touches by phase, and whether an answer came that the runner has not looked at.
    answers = DictField()
    fresh = BooleanField()
    touched = DictField()
    touch_count = IntField()
    touched_at = DateTimeField()
    next_at = DateTimeField()
    #: When they bought what is promoted, what that was worth and cost, and who sold it.
    bought_at = DateTimeField()
    bought_worth = StringField()
    bought_cost = StringField()
    bought_agent = StringField()
    #: Token of the unit of stock that the sale took, and tokens under which no sale may be noted any more.
    bought_claim = StringField()
    ended_claims = ListField(StringField())
    #: Steps whose message could not be delivered, by phase.
    failed = DictField()


class RunDocument(Document):
    """How far a phase has come in taking people in. `_id` is "<campaign>/<phase>"."""

    meta: ClassVar[dict[str, Any]] = {
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "collection": "campaign_runs",
    }

    id = StringField(primary_key=True)
    cursor = StringField()
    done = BooleanField()
    counts = DictField()
    #: People joined the segment while the campaign was paused, and others have looked at them.
    missed = BooleanField()


class SegmentMemberDocument(Document):
    """A member of a segment that follows events. `_id` is "<segment>/<customer>"."""

    meta: ClassVar[dict[str, Any]] = {
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "collection": "segment_members",
        "indexes": [
            {
                "fields": ["segment", "fresh"],
                "name": "fresh",
                "partialFilterExpression": {"fresh": True},
            },
            {"fields": ["customer"], "name": "customer"},
        ],
    }

    id = StringField(primary_key=True)
    segment = StringField(required=True)
    customer = StringField(required=True)
    since = DateTimeField()
    #: No campaign has looked at them yet.
    fresh = BooleanField()


CAMPAIGN_DOCUMENTS: tuple[type[Document], ...] = (
    TouchDocument,
    CampaignContactDocument,
    RunDocument,
    SegmentMemberDocument,
)


class Members(Protocol):
    """Who belongs to segments that follow events. Any method may raise Unavailable."""

    def segments_of(self, customers: Sequence[str]) -> list[str]:
        """Segments of which one of these customers is a member."""

    def join(self, segment: str, customer: str, at: datetime) -> bool:
        """Takes a customer in; False for one who is a member."""

    def leave(self, segment: str, customer: str) -> bool:
        """Takes a customer out; False for one who is none."""


class Answers(Protocol):
    """Where campaigns learn what people answered. Any method may raise Unavailable."""

    def answer(self, campaign: str, customer: str, phase: str, response: str) -> dict[str, Any] | None:
        """Notes an answer; the person as they stand then, None for one who is not in the campaign. Where a
        sale was noted, BOUGHT stays the phase's answer, whatever is said later (an opting out, say).
        """

    def mark_answered(self, campaign: str, phase: str, customer: str, response: str) -> None:
        """Notes an answer at the touches of its phase."""

    def answers(self, campaign: str, customer: str) -> Mapping[str, str]:
        """What a person answered, by phase; empty for one who is not in the campaign."""

    def opt_out(self, customer: str, at: datetime) -> None:
        """Notes that a customer is not to be addressed again, by whatever campaign or list."""

    def place(self, campaign: str, customer: str) -> str | None:
        """Where a person stands, "<campaign>/<customer>" under whichever name; None for one who is not in the
        campaign.
        """

    def has_bought(self, place: str) -> bool:
        """Whether a sale was noted there."""

    def bought(self, place: str, at: datetime, worth: str, cost: str, agent: str, claim: str) -> bool:
        """Notes that who stands there bought what is promoted (what that is worth and costs, decimal
        amounts, "agents/…" or "", the token of the unit claimed); False when a sale was noted before, or none
        may be under that token any more.
        """


class TouchLog(Protocol):
    """What people were addressed with, whoever did it: for the caps. Any method may raise Unavailable."""

    def touched(
        self, customers: Sequence[str], since: datetime, now: datetime
    ) -> Mapping[str, Sequence[tuple[datetime, str, str]]]:
        """(when, channel, id) of touches since then, by customer: of those that left or are to leave. What
        has not left a day after it was due (its campaign is stopped or paused, say) is held to the caps anew
        when it does.
        """

    def note(self, id: str, customer: str, channel: str, at: datetime) -> None:
        """Adds a touch that was made outside campaigns. A known id changes nothing."""

    def standing_people(self, campaign: str, people: Sequence[Profile]) -> Mapping[str, Mapping[str, Any]]:
        """Where people stand in a campaign ("response", "answers" by phase), by customer."""


class MemoryTouches:
    """Touches in memory, for tests and trials. `stands` is what `standing_people` answers, by campaign."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[str, datetime, str]] = {}
        self.stands: dict[str, dict[str, dict[str, Any]]] = {}

    def standing_people(self, campaign: str, people: Sequence[Profile]) -> dict[str, dict[str, Any]]:
        """As the port says."""
        known = self.stands.get(campaign, {})
        return {one.customer: known[one.customer] for one in people if one.customer in known}

    def touched(
        self, customers: Sequence[str], since: datetime, now: datetime
    ) -> dict[str, list[tuple[datetime, str, str]]]:
        """As the port says."""
        found: dict[str, list[tuple[datetime, str, str]]] = {}
        for id, (who, at, channel) in self._made.items():
            if who in customers and at >= since:
                found.setdefault(who, []).append((at, channel, id))
        return found

    def note(self, id: str, customer: str, channel: str, at: datetime) -> None:
        """As the port says."""
        self._made.setdefault(id, (customer, at, channel))


def as_one(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where a person stands who stood there more than once before they were merged: the first row, with all
    answers; a refusal given under any name holds.
    """
    answers: dict[str, str] = {}
    for row in reversed(rows):
        answers |= row.get("answers") or {}
    said = [row["response"] for row in rows if row.get("response")]
    final = [response for response in said if response in FINAL_ANSWERS]
    whole = {**rows[0], "answers": answers}
    return {**whole, "response": (final or said)[0]} if said else whole


def _run_ids(runs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{campaign}/{phase}" for campaign, phase in runs]


def _of_campaign(campaign: str, after: str | None = None) -> dict[str, Any]:
    """The condition of all that stand in a campaign, after an id; the index of ids finds them ("0" follows
    "/").
    """
    return {"_id": {"$gt": f"{campaign}/" if after is None else after, "$lt": f"{campaign}0"}}


def has_answered(stands: Mapping[str, Any], phase: str) -> bool:
    """Whether somebody who stands so answered in a phase, or declined in any: the phase is over for them."""
    return phase in (stands.get("answers") or {}) or stands.get("response") in FINAL_ANSWERS


def insert_new(collection: Any, rows: Sequence[Mapping[str, Any]]) -> int:
    """Inserts those whose id is not there; how many were."""
    if not rows:
        return 0
    try:
        collection.insert_many(rows, ordered=False)
    except BulkWriteError as error:
        return len(rows) - len(clashes(error))
    return len(rows)


class CampaignStore:
    """Blocking access. Any method may raise Unavailable while the database is away."""

    def __init__(self) -> None:
        self.touches = TouchDocument._get_collection()
        self.contacts = CampaignContactDocument._get_collection()
        self.runs = RunDocument._get_collection()
        self._members = SegmentMemberDocument._get_collection()
        self._profiles = ProfileDocument._get_collection()
        self._complaints = ComplaintDocument._get_collection()
        #: One write beside another, and both beside the reading: the database has more than one core.
        self._people = ThreadPoolExecutor(max_workers=1, thread_name_prefix="campaign-people")
        self._batches = ThreadPoolExecutor(max_workers=1, thread_name_prefix="campaign-batches")

    def beside(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        """Does something in a thread of its own, one after another."""
        return self._batches.submit(work, *arguments)

    # members

    def segments_of(self, customers: Sequence[str]) -> list[str]:
        """As the port says."""
        return sorted(self._members.distinct("segment", {"customer": {"$in": list(customers)}}))

    def join(self, segment: str, customer: str, at: datetime) -> bool:
        """As the port says."""
        member = {"segment": segment, "customer": customer, "since": at, "fresh": True}
        joined = self._members.update_one(
            {"_id": f"{segment}/{customer}"}, {"$setOnInsert": member}, upsert=True
        )
        return joined.upserted_id is not None

    def leave(self, segment: str, customer: str) -> bool:
        """As the port says."""
        return bool(self._members.delete_one({"_id": f"{segment}/{customer}"}).deleted_count)

    def members(self, segment: str, after: str, limit: int) -> list[str]:
        """Members by customer id."""
        # "0" follows "/".
        between = {"$gt": f"{segment}/{after}", "$lt": f"{segment}0"}
        found = self._members.find({"_id": between}, {"customer": 1})
        return [raw["customer"] for raw in found.sort("_id", 1).limit(limit)]

    def some_members(self, segment: str, limit: int) -> list[str]:
        """Members taken by chance; all where there are no more."""
        between = {"$gt": f"{segment}/", "$lt": f"{segment}0"}
        found = self._members.aggregate(
            [{"$match": {"_id": between}}, {"$sample": {"size": limit}}, {"$project": {"customer": 1}}]
        )
        return [raw["customer"] for raw in found]

    def members_among(self, segment: str, customers: Sequence[str]) -> set[str]:
        """Those of some customers who are members."""
        ids = [f"{segment}/{customer}" for customer in customers]
        return {raw["customer"] for raw in self._members.find({"_id": {"$in": ids}}, {"customer": 1})}

    def member_count(self, segment: str) -> int:
        """How many members there are."""
        return int(self._members.count_documents({"_id": {"$gt": f"{segment}/", "$lt": f"{segment}0"}}))

    def fresh(self, segment: str, limit: int) -> list[str]:
        """Members whom no campaign has looked at since they joined."""
        found = self._members.find({"segment": segment, "fresh": True}, {"customer": 1}).limit(limit)
        return [raw["customer"] for raw in found]

    def settle(self, segment: str, customers: Sequence[str]) -> None:
        """Every campaign has looked at these members."""
        ids = [f"{segment}/{customer}" for customer in customers]
        self._members.update_many({"_id": {"$in": ids}}, {"$unset": {"fresh": ""}})

    def miss(self, runs: Sequence[tuple[str, str]]) -> None:
        """Notes that members are about to be settled at whom these runs, (campaign, phase), did not look. One
        that has not begun looks at all of them.
        """
        if runs:
            self.runs.update_many({"_id": {"$in": _run_ids(runs)}}, {"$set": {"missed": True}})

    def recall(self, segment: str, runs: Sequence[tuple[str, str]]) -> None:
        """Where one of these runs missed members, nobody counts as looked at any more."""
        missed = {"_id": {"$in": _run_ids(runs)}, "missed": True}
        if self.runs.find_one(missed, {"_id": 1}) is None:
            return
        between = {"$gt": f"{segment}/", "$lt": f"{segment}0"}
        self._members.update_many({"_id": between}, {"$set": {"fresh": True}})
        self.runs.update_many(missed, {"$unset": {"missed": ""}})

    # touches of others

    def note(self, id: str, customer: str, channel: str, at: datetime) -> None:
        """As the port says."""
        row = {"_id": id, "version": 1, "campaign": "", "phase": "", "step": "", "customer": customer}
        insert_new(self.touches, [{**row, "channel": channel, "state": "SENT", "at": at}])

    def remove_touches(self, campaign: str, before: datetime, limit: int) -> int:
        """Removes at most so many touches of a campaign that were made before then ("": of calls outside
        campaigns); how many.
        """
        wanted: dict[str, Any] = {"campaign": campaign, "at": {"$lt": before}}
        if campaign:
            # "0" follows "/".
            wanted["_id"] = {"$gt": f"{campaign}/", "$lt": f"{campaign}0"}
        ids = [raw["_id"] for raw in self.touches.find(wanted, {"_id": 1}).limit(limit)]
        return int(self.touches.delete_many({"_id": {"$in": ids}}).deleted_count) if ids else 0

    # taking people in

    def run(self, campaign: str, phase: str) -> tuple[str, bool, dict[str, int]]:
        """(last customer taken in, whether all are, counts)."""
        raw = self.runs.find_one({"_id": f"{campaign}/{phase}"}) or {}
        return raw.get("cursor", ""), bool(raw.get("done")), dict(raw.get("counts") or {})

    def advance(self, campaign: str, phase: str, cursor: str, counts: Mapping[str, int], done: bool) -> None:
        """Notes a finished batch with its counts, in one write."""
        change: dict[str, Any] = {"$set": {"cursor": cursor, "done": done}}
        if counts:
            change["$inc"] = {f"counts.{name}": count for name, count in counts.items()}
        self.runs.update_one({"_id": f"{campaign}/{phase}"}, change, upsert=True)

    def profiles(self, after: str, limit: int) -> list[dict[str, Any]]:
        """Customers by id."""
        found = self._profiles.find({"_id": {"$gt": after}}, {"bought_by": 0}, batch_size=limit)
        return list(found.sort("_id", 1).limit(limit))

    def profiles_of(self, customers: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Customers by id."""
        return {raw["_id"]: raw for raw in self._profiles.find({"_id": {"$in": list(customers)}})}

    def complaining(self, customers: Sequence[str]) -> set[str]:
        """Which of them have an unresolved complaint."""
        found = self._complaints.find(
            {"customer": {"$in": list(customers)}, "open": True}, {"_id": 0, "customer": 1}
        )
        return {raw["customer"] for raw in found}

    def touched_people(
        self, people: Sequence[Profile], since: datetime, now: datetime
    ) -> dict[str, list[tuple[datetime, str, str]]]:
        """The same by people: what those met who were merged into them is theirs."""
        ids = [customer for profile in people for customer in (profile.customer, *profile.absorbed)]
        found = self.touched(ids, since, now)
        for profile in people:
            for customer in profile.absorbed:
                found.setdefault(profile.customer, []).extend(found.get(customer, ()))
        return found

    def touched(
        self, customers: Sequence[str], since: datetime, now: datetime
    ) -> dict[str, list[tuple[datetime, str, str]]]:
        """As the port says."""
        found = self.touches.find(
            {
                "customer": {"$in": list(customers)},
                "at": {"$gte": since},
                "state": {"$ne": "FAILED"},
                "$nor": [{"state": "QUEUED", "due_at": {"$lt": now - AGAIN}}],
            },
            {"customer": 1, "at": 1, "channel": 1},
        )
        touches: dict[str, list[tuple[datetime, str, str]]] = {}
        for raw in found:
            touches.setdefault(raw["customer"], []).append((raw["at"], raw["channel"], raw["_id"]))
        return touches

    def standing(self, campaign: str, customers: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Where people stand in a campaign, by customer."""
        ids = [f"{campaign}/{customer}" for customer in customers]
        return {raw["customer"]: raw for raw in self.contacts.find({"_id": {"$in": ids}})}

    def standing_people(self, campaign: str, people: Sequence[Profile]) -> dict[str, dict[str, Any]]:
        """The same by people: who was merged into them stood for them."""
        ids = [customer for profile in people for customer in (profile.customer, *profile.absorbed)]
        found = self.standing(campaign, ids)
        whole = {}
        for profile in people:
            rows = [found[id] for id in (profile.customer, *profile.absorbed) if id in found]
            if rows:
                whole[profile.customer] = rows[0] if len(rows) == 1 else as_one(rows)
        return whole

    def survivors_of(self, customers: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Customers by id, each as whom they were merged into where they were."""
        return kin.survivors(self._profiles, customers)

    def states_of(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """(state, token) of touches by id."""
        found = self.touches.find({"_id": {"$in": list(ids)}}, {"state": 1, "token": 1})
        return {raw["_id"]: (raw["state"], raw.get("token", "")) for raw in found}

    def leaving(self, ids: Sequence[str]) -> dict[str, tuple[str, datetime]]:
        """(state, when it left or, while it is to leave, is due) of touches by id."""
        found = self.touches.find({"_id": {"$in": list(ids)}}, {"state": 1, "at": 1, "due_at": 1})
        return {
            raw["_id"]: (raw["state"], raw["due_at"] if raw["state"] in ("QUEUED", "SENDING") else raw["at"])
            for raw in found
        }

    def due(self, campaign: str, now: datetime, limit: int) -> list[dict[str, Any]]:
        """People whose next step is due."""
        found = self.contacts.find({"campaign": campaign, "next_at": {"$lte": now}})
        return list(found.sort("next_at", 1).limit(limit))

    def take_in(self, people: Iterable[Mapping[str, Any]], touches: Sequence[Mapping[str, Any]]) -> int:
        """Stores touches, then where their people stand; how many touches were new. Repeatable."""
        rows = list(people)
        # Both are there before the batch is noted as done, so their order among themselves is free.
        entering = self._people.submit(insert_new, self.contacts, [row for row in rows if "set" not in row])
        try:
            new = insert_new(self.touches, touches)
        finally:
            missing = entering.result()
        changes = [
            UpdateOne({"_id": row["_id"], "phase": row["was"][0], "step": row["was"][1]}, row["set"])
            for row in rows
            if "set" in row
        ]
        if changes:
            self.contacts.bulk_write(changes, ordered=False)
        return new if touches else missing

    # delivering

    def claim(
        self,
        campaigns: Sequence[str],
        token: str,
        now: datetime,
        *,
        real_now: datetime,
        until: datetime,
        limit: int,
        of: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """Takes touches that are due, and those whose claim has ended; `of` says of which senders. Claims end
        by the real clock.
        """
        either = [
            {"state": "QUEUED", "due_at": {"$lte": now}},
            {"state": "SENDING", "claimed_until": {"$lt": real_now}},
        ]
        for condition in either:
            wanted = {**condition, **of}
            if ids := self._first_due(wanted, campaigns, limit):
                taken = {"state": "SENDING", "token": token, "claimed_until": until}
                self.touches.update_many({**wanted, "_id": {"$in": ids}}, {"$set": taken})
        taken_now = self.touches.find({"token": token, "state": "SENDING"}, {"outbox": 0})
        # In the order in which they are due: one that fails again and again does not always come first.
        return list(taken_now.sort("due_at", 1))

    def _first_due(self, wanted: Mapping[str, Any], campaigns: Sequence[str], limit: int) -> list[str]:
        """Ids of the touches of some campaigns that are due first."""
        found: list[dict[str, Any]] = []
        for start in range(0, len(campaigns), CAMPAIGNS_AT_ONCE):
            some = {**wanted, "campaign": {"$in": list(campaigns[start : start + CAMPAIGNS_AT_ONCE])}}
            found += self.touches.find(some, {"due_at": 1}).sort("due_at", 1).limit(limit)
        return [raw["_id"] for raw in sorted(found, key=itemgetter("due_at"))[:limit]]

    def finish(
        self, touch: Mapping[str, Any], state: str, event: Any, now: datetime, real_now: datetime
    ) -> None:
        """Notes that a touch still held under its token went out (SENT), in the words of its variant, and
        counts from now on, or never will (FAILED). That it never will is noted where the person stands
        before, so that a crash in between leaves nothing out.
        """
        if state == "FAILED":
            failed = {"$addToSet": {f"failed.{touch['phase']}": touch["step"]}}
            self.contacts.update_one({"_id": f"{touch['campaign']}/{touch['customer']}"}, failed)
        change: dict[str, Any] = {
            "$set": {"state": state, "attempts": touch.get("attempts", 0) + 1, "outbox_since": real_now},
            "$unset": {"token": "", "claimed_until": ""},
            "$push": {"outbox": pending_entry(event)},
        }
        if state == "SENT":
            change["$set"] |= {"at": now, "variant": touch.get("variant", "")}
        self.touches.update_one({"_id": touch["_id"], "token": touch["token"]}, change)

    def put_off(self, touch: Mapping[str, Any], again: datetime, *, tried: bool) -> None:
        """Lets a touch still held under its token wait; `tried` counts as an attempt."""
        change: dict[str, Any] = {
            "$set": {"state": "QUEUED", "due_at": again},
            "$unset": {"token": "", "claimed_until": ""},
        }
        if tried:
            change["$set"]["attempts"] = touch.get("attempts", 0) + 1
        self.touches.update_one({"_id": touch["_id"], "token": touch["token"]}, change)

    def release(self, token: str) -> None:
        """Gives back whatever is still held under a token, as it was."""
        free = {"$set": {"state": "QUEUED"}, "$unset": {"token": "", "claimed_until": ""}}
        self.touches.update_many({"token": token, "state": "SENDING"}, free)

    def backlog(
        self, campaigns: Sequence[str], channel: str, of: Mapping[str, Any] | None = None
    ) -> tuple[int, bool]:
        """(touches of a channel that wait to be sent for these campaigns, whether some were tried in vain);
        `of` says of which sender.
        """
        mine = {"campaign": {"$in": list(campaigns)}, "channel": channel, **(of or {})}
        waiting = {"state": {"$in": ["QUEUED", "SENDING"]}, **mine}
        failing = {"state": "QUEUED", **mine, "attempts": {"$gt": 0}}
        return (
            int(self.touches.count_documents(waiting, limit=BACKLOG_COUNTED_MAX)),
            self.touches.count_documents(failing, limit=1) > 0,
        )

    # answers

    def answer(self, campaign: str, customer: str, phase: str, response: str) -> dict[str, Any] | None:
        """Notes an answer; the person as they stand then, None for one who is not in the campaign."""
        from pymongo import ReturnDocument

        present = self._row(campaign, customer)
        if present is None:
            return None
        known = {"_id": present["_id"]}
        at = phase or present.get("phase", "")
        latest = {"response": response, "fresh": True}
        sold = {"bought_at": {"$exists": True}, f"answers.{at}": "BOUGHT"}
        told = self.contacts.find_one_and_update(
            {**known, "$nor": [sold]},
            {"$set": {**latest, f"answers.{at}": response}},
            return_document=ReturnDocument.AFTER,
        ) or self.contacts.find_one_and_update(known, {"$set": latest}, return_document=ReturnDocument.AFTER)
        # An answer to an earlier phase does not end the steps of the present one, unless it is a refusal.
        here = known if response in FINAL_ANSWERS else {**known, "phase": at}
        ended = self.contacts.find_one_and_update(
            here, {"$unset": {"next_at": ""}}, return_document=ReturnDocument.AFTER
        )
        return ended or told

    def answered(self, campaign: str, limit: int) -> list[dict[str, Any]]:
        """People with answers that the runner has not looked at."""
        return list(self.contacts.find({"campaign": campaign, "fresh": True}).limit(limit))

    def settle_answers(self, people: Sequence[Mapping[str, Any]]) -> None:
        """The runner has looked at these answers. Who has answered again since then stays to be looked at."""
        changes = [
            UpdateOne({"_id": raw["_id"], "answers": raw["answers"]}, {"$unset": {"fresh": ""}})
            for raw in people
        ]
        if changes:
            self.contacts.bulk_write(changes, ordered=False)

    def listed(
        self, campaign: str, response: str | None, after: str | None, limit: int
    ) -> list[dict[str, Any]]:
        """People of a campaign by id."""
        wanted: dict[str, Any] = {"campaign": campaign, **_of_campaign(campaign, after)}
        if response is not None:
            wanted["response"] = response
        return list(self.contacts.find(wanted).sort("_id", 1).limit(limit))

    def answers(self, campaign: str, customer: str) -> dict[str, str]:
        """As the port says."""
        raw = self._row(campaign, customer) or {}
        return dict(raw.get("answers") or {})

    def _row(self, campaign: str, customer: str) -> dict[str, Any] | None:
        """Where a customer stands, else where whom they were merged with stood for them."""
        found: dict[str, Any] | None = self.contacts.find_one({"_id": f"{campaign}/{customer}"})
        if found is not None:
            return found
        rows = self.standing(campaign, self._kin(customer)[1:])
        return next(iter(rows.values()), None)

    def _kin(self, customer: str) -> list[str]:
        """The customer and everybody who is one with them."""
        survivor, _ = kin.lineage(self._profiles, customer)
        return list(dict.fromkeys([customer, survivor, *kin.lineage(self._profiles, survivor)[1]]))

    def opt_out(self, customer: str, at: datetime) -> None:
        """As the port says."""
        self._profiles.update_one({"_id": customer}, {"$max": {"opted_out_at": at}})
        kin.reflect(self._profiles, customer)

    def place(self, campaign: str, customer: str) -> str | None:
        """As the port says."""
        row = self._row(campaign, customer)
        return None if row is None else str(row["_id"])

    def has_bought(self, place: str) -> bool:
        """As the port says."""
        return self.contacts.find_one({"_id": place, "bought_at": {"$exists": True}}, {"_id": 1}) is not None

    def bought(self, place: str, at: datetime, worth: str, cost: str, agent: str, claim: str) -> bool:
        """As the port says."""
        first = {"_id": place, "bought_at": {"$exists": False}, "ended_claims": {"$ne": claim}}
        told = {"bought_at": at, "bought_worth": worth, "bought_cost": cost, "bought_agent": agent}
        told["bought_claim"] = claim
        return bool(self.contacts.update_one(first, {"$set": told}).modified_count)

    def waiting(
        self, customers: Sequence[str], channel: str, campaigns: Sequence[str], limit: int
    ) -> list[dict[str, Any]]:
        """Touches of these campaigns that wait for a person known by these ids to be there, oldest first."""
        wanted = {
            "customer": {"$in": list(customers)},
            "channel": channel,
            "state": "WAITING",
            "campaign": {"$in": list(campaigns)},
        }
        return list(self.touches.find(wanted, {"outbox": 0}).sort("at", 1).limit(limit))

    # counting

    def funnel(self, campaign: str, phase: str) -> list[dict[str, Any]]:
        """Counts of a phase by region and value class."""

        def times(condition: Any) -> dict[str, Any]:
            return {"$sum": {"$cond": [condition, 1, 0]}}

        answer = f"$answers.{phase}"
        # Whoever answered was reached, by whatever way.
        answered = {"$in": [answer, ["INTERESTED", "REGISTERED", "BOUGHT", "DECLINED", "OPTED_OUT"]]}
        in_vain = {"$size": {"$ifNull": [f"$failed.{phase}", []]}}
        return list(
            self.contacts.aggregate(
                [
                    {"$match": {**_of_campaign(campaign), f"touched.{phase}": {"$exists": True}}},
                    {
                        "$group": {
                            "_id": {"region": "$region", "value_class": "$value_class"},
                            "entered": {"$sum": 1},
                            "reached": times({"$or": [{"$gt": [f"$touched.{phase}", in_vain]}, answered]}),
                            "interested": times({"$in": [answer, ["INTERESTED", "REGISTERED", "BOUGHT"]]}),
                            "registered": times({"$in": [answer, ["REGISTERED", "BOUGHT"]]}),
                            "bought": times({"$eq": [answer, "BOUGHT"]}),
                            "declined": times({"$in": [answer, ["DECLINED", "OPTED_OUT"]]}),
                        }
                    },
                    {"$sort": {"_id": 1}},
                ]
            )
        )

    def arms(self, campaign: str, phase: str, step: str, successes: Sequence[str]) -> dict[str, list[int]]:
        """[people, successes] by variant: of those whom a message reached, or for whom one waits until they
        come. What failed, or did not leave yet, says nothing about its words.
        """
        found: dict[str, list[int]] = {}
        # A touch's id begins with these three, so the index of ids finds them ("0" follows "/").
        wanted = {
            "_id": {"$gt": f"{campaign}/{phase}/{step}/", "$lt": f"{campaign}/{phase}/{step}0"},
            "state": {"$in": ["SENT", "WAITING"]},
        }
        grouped = self.touches.aggregate(
            [
                {"$match": wanted},
                {
                    "$group": {
                        "_id": "$variant",
                        "people": {"$sum": 1},
                        "yes": {"$sum": {"$cond": [{"$in": ["$answered", list(successes)]}, 1, 0]}},
                    }
                },
            ]
        )
        for raw in grouped:
            found[raw["_id"] or ""] = [raw["people"], raw["yes"]]
        return found

    def mark_answered(self, campaign: str, phase: str, customer: str, response: str) -> None:
        """Notes an answer at the touches of its phase, for comparing variants; a touch that waits is over."""
        wanted = {"campaign": campaign, "phase": phase, "customer": {"$in": self._kin(customer)}}
        place = self.place(campaign, customer)
        # A sale that was noted stays what its words brought about.
        other = {"answered": {"$ne": "BOUGHT"}} if place is not None and self.has_bought(place) else {}
        self.touches.update_many({**wanted, **other}, {"$set": {"answered": response}})
        self.touches.update_many({**wanted, "state": "WAITING"}, {"$set": {"state": "SENT"}})
