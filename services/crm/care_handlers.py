"""Use cases of care and retention: contracts, usage, rules, tasks, churn. Everything here blocks."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from pymongo import ReplaceOne
from pymongo.write_concern import WriteConcern

from callmesh.crm.v1 import events_pb2
from chassis import logs
from chassis.bus import Event
from chassis.clock import Clock, from_ms
from chassis.errors import (
    AlreadyExists,
    CallmeshError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from chassis.ids import check_id, new_id, stable_id
from chassis.mongo import find_repeat
from crm import care, churn, convert, engine, glance, timeline
from crm import documents as docs
from crm.care import Occasion, Rule
from crm.care_documents import CareRuleDocument, ContractDocument, UsageDocument
from crm.handlers import Policy
from crm.model import Churn, Customer, State, TimelineFilter
from crm.records import Raw, Records
from crm.sagas import event_of, settle, shown_as
from crm.store import Store, timeline_query

#: Customers looked at together by a rule.
RULE_BATCH = 200
#: Things of one kind that one run of one rule looks at, one after another: a run that reaches it says so.
RULE_ITEMS_MAX = 2_000_000
#: Tasks opened again, or let expire, in one round of many.
TASKS_BATCH = 1_000
USAGE_MAX = 500
#: Churn scores made at the same time.
SCORERS = 4
#: Dirty churn scores read at once; how long they are made anew without a pause, seconds, and how many of them
#: may fail meanwhile.
CHURN_BATCH, RESCORE_SECONDS_MAX, RESCORE_FAILED_MAX = 200, 10.0, 1_000
TRIES_MAX = 10
CONTRACT_STATES = ("ACTIVE", "SUSPENDED", "ENDED")
#: Customers merged into one whose words on leaving count for it.
LINEAGE_MAX = 50
_DAY_MS = 86_400_000
_METRIC = re.compile(r"[a-z0-9_]{1,64}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_AMOUNT = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,6})?")
_BY_ID = (("contract", 1), ("_id", 1))
_MAJORITY = WriteConcern(w="majority")
_log = logs.get_logger(__name__)


#: (caller's number, call's id, channel's name).
Call = tuple[str, str, str]


class CareTaskClosed(FailedPrecondition):
    """{subject}: {why}."""

    reason = "CARE_TASK_CLOSED"


def _col(document: Any) -> Any:
    return document._get_collection().with_options(write_concern=_MAJORITY)


def checked_money(field: str, currency: str, amount: str) -> dict[str, Any]:
    """An amount of money as it is kept. InvalidArgument."""
    problems = engine.Problems()
    if not _CURRENCY.fullmatch(currency):
        problems.add(f"{field}.currency_code", "must be an ISO 4217 code such as CNY")
    if not _AMOUNT.fullmatch(amount):
        problems.add(f"{field}.amount", "must be a decimal number such as 19.90")
    problems.raise_if_any()
    try:
        Decimal(amount)
    except InvalidOperation:
        raise InvalidArgument(field=f"{field}.amount", why="must be a decimal number") from None
    return {"currency": currency, "amount": amount}


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageFault:
    """Why a record of usage was refused."""

    #: Its place among those that were sent.
    index: int
    #: What of it is at fault.
    field: str
    #: What is wrong with that, in English.
    why: str


class Contracts:
    """What customers have subscribed to, and what they use."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._records = Records(ContractDocument, clock)

    def _owner(self, id: str) -> Customer:
        found = self._store.customer(id)
        if found is None:
            raise NotFound(resource=f"customers/{id}")
        if found.state is not State.ACTIVE:
            raise engine.CustomerNotActive(subject=found.name, why=f"is {found.state}")
        return found

    def create(
        self,
        customer: str,
        contract_id: str,
        fields: Mapping[str, Any],
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> Raw:
        """AlreadyExists, NotFound for the customer."""
        self._owner(customer)
        id = check_id("contract_id", contract_id) if contract_id else new_id()
        values = {**self._clean(fields), "customer": customer, "contract": id}
        done = self._records.insert(
            f"{customer}|{id}", values, request_key=request_key, fingerprint=fingerprint
        )
        settle(self._store, [customer])
        self._store.mark_churn(customer)
        return done

    def check(self, customer: str, contract_id: str, fields: Mapping[str, Any]) -> str:
        """What `create` would raise; else the name of what it would make."""
        self._owner(customer)
        id = f"{customer}|{check_id('contract_id', contract_id)}"
        self._clean(fields)
        if self._records.find({"_id": id}, _BY_ID, 1):
            raise AlreadyExists(resource=self._records.name(id))
        return self._records.name(id)

    def _clean(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        problems = engine.Problems()
        done = dict(fields)
        for name, least, most in (("product", 1, 128), ("title", 0, 200), ("partner", 0, 128)):
            done[name] = problems.text(
                f"contract.{name}", str(fields.get(name) or ""), least=least, most=most
            )
        if fields.get("state") not in CONTRACT_STATES:
            problems.add("contract.state", f"must be one of {', '.join(CONTRACT_STATES)}")
        start, end = fields.get("start_ms"), fields.get("end_ms")
        if start is not None and end is not None and end <= start:
            problems.add("contract.end_time", "must lie after start_time")
        for index, item in enumerate(problems.few("contract.allowances", fields.get("allowances") or [], 50)):
            path = f"contract.allowances[{index}]"
            if not _METRIC.fullmatch(item["metric"]):
                problems.add(f"{path}.metric", "must be 1 to 64 of a-z, 0-9 and _")
            if not (math.isfinite(item["quantity"]) and item["quantity"] >= 0):
                problems.add(f"{path}.quantity", "must not be negative")
        problems.raise_if_any()
        for name, field in (("price", "monthly_price"), ("balance", "balance")):
            money = fields.get(name)
            done[name] = checked_money(f"contract.{field}", **money) if money else None
        done["balance_value"] = float(done["balance"]["amount"]) if done["balance"] else None
        return done

    def get(self, customer: str, contract: str) -> Raw:
        """The contract of that name; else one of that id that a merge brought the customer. NotFound."""
        shown = {"customer": customer, "contract": contract}
        for query in ({"_id": f"{customer}|{contract}"}, shown):
            if found := self._records.find(query, _BY_ID, 1):
                return found[0]
        raise NotFound(resource=f"customers/{customer}/contracts/{contract}")

    def page(self, customer: str, after: tuple[str, str] | None, limit: int) -> list[Raw]:
        """By id, behind the key `after`: who was merged may have brought one with the same id. NotFound for
        the customer; one that was merged away means its survivor.
        """
        query: dict[str, Any] = {"customer": shown_as(self._store, customer)}
        if after is not None:
            query["contract"] = {"$gte": after[0]}
            query["$or"] = [{"contract": {"$gt": after[0]}}, {"_id": {"$gt": after[1]}}]
        return self._records.find(query, _BY_ID, limit)

    def update(
        self,
        customer: str,
        contract: str,
        edit: Callable[[Raw], Mapping[str, Any]],
        expected_version: int | None,
    ) -> Raw:
        """`edit` answers the wanted fields from the present ones."""
        known = self.get(customer, contract)

        def change(raw: Raw) -> Mapping[str, Any]:
            wanted = self._clean(edit(raw))
            return {name: value for name, value in wanted.items() if raw.get(name) != value}

        done = self._records.update(known["_id"], change, expected_version)
        self._store.mark_churn(done["customer"])
        return done

    def delete(self, customer: str, contract: str, expected_version: int | None) -> Raw:
        """Removes it."""
        gone = self._records.delete(self.get(customer, contract)["_id"], expected_version)
        self._store.mark_churn(gone["customer"])
        return gone

    def record_usage(
        self, wanted: Sequence[Mapping[str, Any]], *, dry: bool = False
    ) -> tuple[int, list[UsageFault]]:
        """(how many are in, those refused). `dry` checks and writes nothing."""
        failures: list[UsageFault] = []
        writes: list[ReplaceOne[dict[str, Any]]] = []
        known: dict[str, bool] = {}
        for index, usage in enumerate(wanted):
            fault = self._usage_fault(usage, known)
            if fault is not None:
                failures.append(UsageFault(index=index, field=fault[0], why=fault[1]))
                continue
            key = stable_id("usage", usage["customer"], usage["metric"], usage["start_ms"], usage["end_ms"])
            writes.append(ReplaceOne({"_id": key}, {**usage, "_id": key}, upsert=True))
        if dry:
            return len(writes), failures
        told = {usage["customer"] for usage in wanted if known.get(usage["customer"])}
        if writes:
            _col(UsageDocument).bulk_write(writes, ordered=True)
            settle(self._store, told)
        for customer in told:
            self._store.mark_churn(customer)
        return len(writes), failures

    def _usage_fault(self, usage: Mapping[str, Any], known: dict[str, bool]) -> tuple[str, str] | None:
        """(field, what is wrong with it)."""
        customer = usage["customer"]
        if customer not in known:
            found = self._store.customer(customer)
            known[customer] = found is not None and found.state is State.ACTIVE
        if not known[customer]:
            return "customer", "does not exist or is not active"
        if not _METRIC.fullmatch(usage["metric"]):
            return "metric", "must be 1 to 64 of a-z, 0-9 and _"
        if usage["start_ms"] is None or usage["end_ms"] is None or usage["end_ms"] <= usage["start_ms"]:
            return "period", "must have a start and a later end"
        for name in ("quantity", "allowance"):
            if not (math.isfinite(usage[name]) and usage[name] >= 0):
                return name, "must not be negative"
        return None

    def usage(self, customer: str, metric: str, after: tuple[int, str] | None, limit: int) -> list[Raw]:
        """Newest period first. The customer is as of `page`."""
        query: dict[str, Any] = {"customer": shown_as(self._store, customer)}
        if metric:
            query["metric"] = metric
        if after is not None:
            query["end_ms"] = {"$lte": after[0]}
            query["$or"] = [{"end_ms": {"$lt": after[0]}}, {"_id": {"$lt": after[1]}}]
        found = _col(UsageDocument).find(query).sort([("end_ms", -1), ("_id", -1)]).limit(limit)
        return list(found)


def rule_of(raw: Raw) -> Rule:
    """A stored rule."""
    return Rule(
        id=raw["_id"],
        title=raw.get("title") or "",
        trigger=raw["trigger"],
        days_before=raw.get("days_before") or 0,
        threshold=raw.get("threshold") or 0.0,
        tier_min=raw.get("tier_min") or "",
        texts=raw.get("texts") or {},
        enabled=bool(raw.get("enabled")),
    )


def snoozed_query(now_ms: int) -> dict[str, Any]:
    """The filter document of tasks that were put off until now or earlier."""
    return {"snooze_ms": {"$gt": 0, "$lte": now_ms}}


def stale_query(now_ms: int) -> dict[str, Any]:
    """The filter document of open tasks whose time is over."""
    return {"state": "OPEN", "ends_ms": {"$lt": now_ms}}


class Care:
    """Rules and the tasks that they raise."""

    def __init__(self, store: Store, clock: Clock, policy: Policy) -> None:
        self._store = store
        self._clock = clock
        self._policy = policy
        self.rules = Records(CareRuleDocument, clock)
        self.tasks = Records(docs.CareTaskDocument, clock)

    # --- rules ---

    def checked_rule(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A rule's fields as they are kept. InvalidArgument."""
        problems = engine.Problems()
        title = problems.text("care_rule.title", fields["title"], least=1, most=care.TITLE_CHARACTERS_MAX)
        if fields["trigger"] not in care.TRIGGERS:
            problems.add("care_rule.trigger", "must be set")
        if not 0 <= fields["days_before"] <= care.DAYS_MAX:
            problems.add("care_rule.days_before", f"must be 0 to {care.DAYS_MAX}")
        if not math.isfinite(fields["threshold"]):
            problems.add("care_rule.threshold", "must be a finite number")
        if fields["tier_min"] and fields["tier_min"] not in ("STANDARD", "SILVER", "GOLD", "PLATINUM", "VIP"):
            problems.add("care_rule.tier_min", "must be a tier's name")
        texts = {}
        for language, text in fields["texts"].items():
            if language not in ("zh", "en"):
                problems.add("care_rule.texts", "are known in zh and en")
                continue
            texts[language] = problems.text(
                f"care_rule.texts.{language}", text, most=care.TEXT_CHARACTERS_MAX
            )
        problems.raise_if_any()
        return {**fields, "title": title, "texts": texts}

    def create_rule(
        self, id: str, fields: Mapping[str, Any], request_key: str | None, fingerprint: str | None
    ) -> Raw:
        """InvalidArgument, AlreadyExists; ResourceExhausted when there are as many as ever run."""
        checked = self.checked_rule(fields)
        full = self.rules.collection.count_documents({}, limit=care.RULES_MAX) >= care.RULES_MAX
        if full and find_repeat(CareRuleDocument, request_key, fingerprint) is None:
            raise ResourceExhausted(subject="careRules", limit=f"at most {care.RULES_MAX}")
        return self.rules.insert(id, checked, request_key=request_key, fingerprint=fingerprint)

    def ensure_defaults(self) -> None:
        """The rules that a new installation begins with, once."""
        if self.rules.find({}, [("_id", 1)], 1):
            return
        for rule in care.DEFAULTS:
            fields = {
                "title": rule.title,
                "trigger": rule.trigger,
                "days_before": rule.days_before,
                "threshold": rule.threshold,
                "tier_min": rule.tier_min,
                "texts": dict(rule.texts),
                "enabled": rule.enabled,
            }
            try:
                self.rules.insert(rule.id, fields)
            except AlreadyExists:
                continue

    # --- running ---

    def run(self) -> int:
        """Runs every rule, opens what was put off, lets expire what is stale; how many tasks were raised."""
        self._wake()
        self._expire()
        raised = 0
        for raw in self.rules.find({}, [("_id", 1)], care.RULES_MAX):
            rule = rule_of(raw)
            if rule.enabled:
                raised += self._run_rule(rule)
        return raised

    def _run_rule(self, rule: Rule) -> int:
        count = 0
        batch: list[tuple[str, Occasion]] = []
        now = self._clock.now()
        for number, item in enumerate(self._due(rule, now, None)):
            if number >= RULE_ITEMS_MAX:
                _log.warning("care.rule_cut_short", rule=rule.id, items=number)
                break
            batch.append(item)
            if len(batch) >= RULE_BATCH:
                count += self._raise(rule, batch, now)
                batch = []
        return count + self._raise(rule, batch, now)

    def preview(self, customer: str, as_of: datetime | None) -> list[dict[str, Any]]:
        """What the rules would raise for one customer. NotFound."""
        found = self._store.customer(customer)
        if found is None:
            raise NotFound(resource=f"customers/{customer}")
        now = as_of or self._clock.now()
        done = []
        for raw in self.rules.find({}, [("_id", 1)], care.RULES_MAX):
            rule = rule_of(raw)
            if rule.enabled and care.applies(rule, found) and found.state is State.ACTIVE:
                done += [self._task(rule, found, o) for _, o in self._due(rule, now, found)]
        return done

    def _due(self, rule: Rule, now: datetime, only: Customer | None) -> Iterator[tuple[str, Occasion]]:
        """(customer's id, occasion) for everybody, or one."""
        finders: Mapping[str, Callable[..., Iterator[tuple[str, Occasion | None]]]] = {
            "BIRTHDAY": self._birthdays,
            "CONTRACT_EXPIRES": self._contract_ends,
            "LOW_BALANCE": self._low_balances,
            "UNUSED_ALLOWANCE": self._unused,
            "CHURN": self._churning,
            "SILENCE": self._silent,
        }
        for customer, occasion in finders[rule.trigger](rule, now, only):
            if occasion is not None:
                yield customer, occasion

    def _birthdays(
        self, rule: Rule, now: datetime, only: Customer | None
    ) -> Iterator[tuple[str, Occasion | None]]:
        if only is not None:
            yield only.id, care.birthday(rule, only, now, self._policy.time_zone)
            return
        query = {"birthday": {"$in": care.birthdays(now, rule.days_before)}}
        for raw in _col(docs.CustomerDocument).find(query, docs.HIDDEN):
            customer = docs.customer_from_raw(raw)
            yield customer.id, care.birthday(rule, customer, now, self._policy.time_zone)

    def _contract_ends(
        self, rule: Rule, now: datetime, only: Customer | None
    ) -> Iterator[tuple[str, Occasion | None]]:
        now_ms = _ms(now)
        span = {"$gte": now_ms, "$lte": now_ms + rule.days_before * _DAY_MS}
        query: dict[str, Any] = {"customer": only.id} if only else {"end_ms": span}
        for raw in _col(ContractDocument).find(query):
            yield raw["customer"], care.contract_end(rule, raw, now_ms)

    def _low_balances(
        self, rule: Rule, now: datetime, only: Customer | None
    ) -> Iterator[tuple[str, Occasion | None]]:
        low = {"balance_value": {"$lt": rule.threshold, "$gt": -1e18}}
        query: dict[str, Any] = {"customer": only.id} if only else low
        for raw in _col(ContractDocument).find(query):
            yield raw["customer"], care.low_balance(rule, raw, now)

    def _unused(
        self, rule: Rule, now: datetime, only: Customer | None
    ) -> Iterator[tuple[str, Occasion | None]]:
        now_ms = _ms(now)
        span = {"$gte": now_ms, "$lte": now_ms + rule.days_before * _DAY_MS}
        query: dict[str, Any] = {"end_ms": span}
        if only is not None:
            query["customer"] = only.id
        for raw in _col(UsageDocument).find(query):
            yield raw["customer"], care.unused(rule, raw, now_ms)

    def _churning(
        self, rule: Rule, now: datetime, only: Customer | None
    ) -> Iterator[tuple[str, Occasion | None]]:
        query: dict[str, Any] = {"_id": only.id} if only else {"score": {"$gt": rule.threshold}}
        for raw in _col(docs.ChurnDocument).find(query):
            yield raw["_id"], care.churning(rule, raw.get("score") or 0.0, now)

    def _silent(
        self, rule: Rule, now: datetime, only: Customer | None
    ) -> Iterator[tuple[str, Occasion | None]]:
        """All customers, in the order of ids: the only rule that asks for what did not happen."""
        after = ""
        while True:
            people = [only] if only else self._people(after)
            if not people:
                return
            heard = self._last_heard([customer.id for customer in people])
            for customer in people:
                created = customer.create_time or now
                yield customer.id, care.silent(rule, heard.get(customer.id, _ms(created)), now)
            if only:
                return
            after = people[-1].id

    def _people(self, after: str) -> list[Customer]:
        query = {"state": State.ACTIVE.value, "_id": {"$gt": after}}
        found = _col(docs.CustomerDocument).find(query, docs.HIDDEN).sort("_id", 1).limit(RULE_BATCH)
        return [docs.customer_from_raw(raw) for raw in found]

    def _last_heard(self, ids: Sequence[str]) -> dict[str, int]:
        heard: dict[str, int] = {}
        for id in ids:
            query = timeline_query([timeline.subject_of_customer(id)], TimelineFilter(), None)
            newest = _col(docs.InteractionDocument).find(query, {"began_ms": 1})
            for raw in newest.sort([("began_ms", -1), ("_id", -1)]).limit(1):
                heard[id] = raw["began_ms"]
        return heard

    def _raise(self, rule: Rule, due: Sequence[tuple[str, Occasion]], now: datetime) -> int:
        wanted = {stable_id("care", rule.id, o.own or id, o.key): (id, o) for id, o in due}
        if not wanted:
            return 0
        known = {raw["_id"] for raw in self.tasks.find({"_id": {"$in": list(wanted)}}, [("_id", 1)], 0)}
        fresh = {task: item for task, item in wanted.items() if task not in known}
        query = {"_id": {"$in": list({id for id, _ in fresh.values()})}}
        found = _col(docs.CustomerDocument).find(query, docs.HIDDEN)
        people = {raw["_id"]: docs.customer_from_raw(raw) for raw in found}
        count = 0
        for task, (id, occasion) in fresh.items():
            customer = people.get(id)
            if customer is None or customer.state is not State.ACTIVE or not care.applies(rule, customer):
                continue
            fields = self._task(rule, customer, occasion)
            try:
                self.tasks.insert(task, fields, [self._raised(task, customer, fields, now)])
                count += 1
            except AlreadyExists:
                continue
        settle(self._store, people)
        return count

    def _task(self, rule: Rule, customer: Customer, occasion: Occasion) -> dict[str, Any]:
        language = glance.pop_language(customer.language, self._policy.language)
        return {
            "customer": customer.id,
            "own": occasion.own or None,
            "rule": rule.id,
            "kind": rule.trigger,
            "text": care.words(rule, occasion, customer, language, self._policy.time_zone),
            "state": "OPEN",
            "due_ms": occasion.due_ms,
            "ends_ms": occasion.ends_ms,
        }

    def _raised(self, task: str, customer: Customer, fields: Mapping[str, Any], now: datetime) -> Event:
        message = events_pb2.CareTaskRaised(
            care_task=f"careTasks/{task}",
            customer=convert.snapshot(customer),
            care_rule=f"careRules/{fields['rule']}",
            kind=fields["kind"],
            text=fields["text"],
            due_time=convert.ms_timestamp(fields["due_ms"]),
            event_time=convert.timestamp(now),
        )
        return event_of(message, customer.name, now)

    # --- tasks ---

    def close(self, id: str, dismissed: bool, outcome: str, actor: str) -> Raw:
        """CareTaskClosed when it is closed otherwise; repeating it is harmless."""
        problems = engine.Problems()
        outcome = problems.text("outcome", outcome, most=care.OUTCOME_CHARACTERS_MAX)
        problems.raise_if_any()
        state = "DISMISSED" if dismissed else "DONE"

        def edit(raw: Raw) -> Mapping[str, Any] | None:
            if raw["state"] == state:
                return None
            self._require_open(raw)
            return {"state": state, "outcome": outcome, "closer": actor, "snooze_ms": None}

        return self.tasks.update(id, edit, events=self._closed)

    def snooze(self, id: str, until_ms: int) -> Raw:
        """CareTaskClosed, InvalidArgument for a time that is not ahead."""
        if until_ms <= self._clock.now_ms():
            raise InvalidArgument(field="snooze_time", why="must lie in the future")

        def edit(raw: Raw) -> Mapping[str, Any]:
            self._require_open(raw)
            ends = max(raw.get("ends_ms") or 0, until_ms + _DAY_MS)
            return {"state": "SNOOZED", "snooze_ms": until_ms, "ends_ms": ends}

        return self.tasks.update(id, edit)

    def _require_open(self, raw: Raw) -> None:
        if raw["state"] not in ("OPEN", "SNOOZED"):
            raise CareTaskClosed(subject=f"careTasks/{raw['_id']}", why=f"is {raw['state']}")

    def page(
        self, customer: str, states: Sequence[str], after: tuple[int, str] | None, limit: int
    ) -> list[Raw]:
        """By due time; of one customer (see `Contracts.page`), or all."""
        query: dict[str, Any] = {"state": {"$in": sorted(states)}}
        if customer:
            query["customer"] = shown_as(self._store, customer)
        if after is not None:
            query["due_ms"] = {"$gte": after[0]}
            query["$or"] = [{"due_ms": {"$gt": after[0]}}, {"_id": {"$gt": after[1]}}]
        return self.tasks.find(query, [("due_ms", 1), ("_id", 1)], limit)

    def _closed(self, raw: Raw) -> Sequence[Event]:
        now = self._clock.now()
        message = events_pb2.CareTaskClosed(
            care_task=f"careTasks/{raw['_id']}",
            customer=f"customers/{raw['customer']}",
            state=raw["state"],
            event_time=convert.timestamp(now),
        )
        return [event_of(message, f"customers/{raw['customer']}", now)]

    def _wake(self) -> None:
        """Opens what was put off until now."""

        def edit(raw: Raw) -> Mapping[str, Any] | None:
            return {"state": "OPEN", "snooze_ms": None} if raw["state"] == "SNOOZED" else None

        for id in self._tasks_until(snoozed_query(self._clock.now_ms()), "snooze_ms"):
            self.tasks.update(id, edit)

    def _expire(self) -> None:
        """Closes what is stale."""

        def edit(raw: Raw) -> Mapping[str, Any] | None:
            return {"state": "EXPIRED"} if raw["state"] == "OPEN" else None

        for id in self._tasks_until(stale_query(self._clock.now_ms()), "ends_ms"):
            self.tasks.update(id, edit, events=self._closed)

    def _tasks_until(self, query: Mapping[str, Any], order: str) -> Iterator[str]:
        """Ids of tasks that, once done with, do not fit the query any more."""
        for _ in range(RULE_ITEMS_MAX // TASKS_BATCH):
            found = self.tasks.find(query, [(order, 1)], TASKS_BATCH)
            yield from (raw["_id"] for raw in found)
            if len(found) < TASKS_BATCH:
                return


def dirty_query(but: Sequence[str]) -> dict[str, Any]:
    """The filter document of those who are to be scored, but for some."""
    query: dict[str, Any] = {"dirty_ms": {"$exists": True}}
    return {**query, "_id": {"$nin": list(but)}} if but else query


class Retention:
    """Churn scores and "I want to leave"."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def get(self, customer: str) -> Churn:
        """The score as it is now. NotFound for a customer that does not exist."""
        if self._store.customer(customer) is None:
            raise NotFound(resource=f"customers/{customer}")
        return self.score(customer)

    def page(
        self, score_min: float, leaving: bool, after: tuple[float, str] | None, limit: int
    ) -> list[Churn]:
        """Highest first."""
        query: dict[str, Any] = {"score": {"$gte": score_min}}
        if leaving:
            query["wants_to_leave"] = True
        if after is not None:
            query["score"]["$lte"] = after[0]
            query["$or"] = [{"score": {"$lt": after[0]}}, {"_id": {"$gt": after[1]}}]
        found = _col(docs.ChurnDocument).find(query).sort([("score", -1), ("_id", 1)]).limit(limit)
        return [docs.churn_from_raw(raw) for raw in found]

    def score(self, customer: str) -> Churn:
        """Scores anew; tells the others when a step of the scale is crossed. Who is deleted or merged away
        scores nothing, and of who was erased nothing is kept.
        """
        state = (self._store.standing(customer) or (State.ACTIVE, ""))[0]
        if state is State.ERASED:
            self._store.forget_churn(customer)
            return Churn(customer=customer)
        for _ in range(TRIES_MAX):
            known = self._store.churn(customer) or Churn(customer=customer)
            now_ms = self._clock.now_ms()
            signs = self._signs(customer, known, now_ms) if state is State.ACTIVE else churn.Signs()
            value, reasons = churn.scored(signs, now_ms)
            fresh = replace(known, score=value, reasons=reasons, scored_ms=now_ms)
            events = [self._changed(fresh)] if churn.step(value) != churn.step(known.score) else []
            if self._store.save_churn(fresh, events, clean=True):
                return fresh
        raise Unavailable(why="a score is changed by too many at once", retry_seconds=1.0)

    def rescore(self) -> int:
        """Scores those of whom something was heard, the longest ago first, until there is nobody or for
        `RESCORE_SECONDS_MAX`; how many.
        """
        ends, count = time.monotonic() + RESCORE_SECONDS_MAX, 0
        failed: list[str] = []
        # A score is a few short questions, one after another: most of its time is waiting.
        with ThreadPoolExecutor(SCORERS, thread_name_prefix="churn") as scorers:
            while found := self._dirty(failed):
                good = scorers.map(self._is_scored, found)
                failed += [customer for customer, done in zip(found, good, strict=True) if not done]
                count += len(found)
                if time.monotonic() >= ends or len(failed) >= RESCORE_FAILED_MAX:
                    break
        return count

    def _is_scored(self, customer: str) -> bool:
        """Scores one; who cannot be scored stays marked, and keeps nobody else waiting."""
        try:
            self.score(customer)
        except CallmeshError as error:
            _log.warning("churn.not_scored", customer=customer, error=error.reason)
            return False
        return True

    def _dirty(self, but: Sequence[str]) -> list[str]:
        found = _col(docs.ChurnDocument).find(dirty_query(but), {"_id": 1})
        return [raw["_id"] for raw in found.sort("dirty_ms", 1).limit(CHURN_BATCH)]

    def flag(
        self, customer: str, wants: bool, at_ms: int, *, comment: str = "", call: Call | None = None
    ) -> Churn:
        """Notes that a customer (or, by its subject, a number) wants to leave, or no longer; older words than
        are known change nothing. Tells the others once. CustomerNotActive for one who was erased.
        """
        if self._is_erased(customer):
            raise engine.CustomerNotActive(subject=f"customers/{customer}", why="is ERASED")
        for _ in range(TRIES_MAX):
            known = self._store.churn(customer) or Churn(customer=customer)
            if at_ms <= known.intent_ms:
                return known
            fresh = replace(known, wants_to_leave=wants, intent_ms=at_ms, comment=comment)
            if self._store.save_churn(fresh, [self._flagged(fresh, call)]):
                if not customer.startswith("n:"):
                    self._store.mark_churn(customer)
                return fresh
        raise Unavailable(why="a score is changed by too many at once", retry_seconds=1.0)

    def heard_in_call(self, whose: str, at_ms: int, call: Call) -> None:
        """A customer (or a number) said in a call that he wants to leave; of one who was erased since nothing
        is kept, and nothing told.
        """
        if not self._is_erased(whose):
            self.flag(whose, True, at_ms, call=call)

    def _is_erased(self, customer: str) -> bool:
        return (self._store.standing(customer) or (State.ACTIVE, ""))[0] is State.ERASED

    def _signs(self, customer: str, known: Churn, now_ms: int) -> churn.Signs:
        which = TimelineFilter(from_ms=now_ms - churn.HISTORY_DAYS * _DAY_MS)
        query = timeline_query([timeline.subject_of_customer(customer)], which, None)
        found = _col(docs.InteractionDocument).find(query, docs.POP_HIDDEN)
        newest = found.sort([("began_ms", -1), ("_id", -1)]).limit(churn.HISTORY_MAX)
        return churn.Signs(
            interactions=[docs.interaction_from_raw(raw) for raw in newest],
            intent_ms=self._intent_ms(customer, known),
            contract_days=self._contract_days(customer, now_ms),
            usage_ratio=self._usage_ratio(customer),
        )

    def _intent_ms(self, customer: str, known: Churn) -> int:
        """When the customer, or whoever was merged into it, said last that he wants to leave; 0 when the last
        word was another.
        """
        below = self._store.lineage([customer], LINEAGE_MAX)
        said = [known, *filter(None, map(self._store.churn, below))]
        last = max(said, key=lambda one: one.intent_ms)
        return last.intent_ms if last.wants_to_leave else 0

    def _contract_days(self, customer: str, now_ms: int) -> float | None:
        ends = [
            raw["end_ms"]
            for raw in _col(ContractDocument).find({"customer": customer}).limit(100)
            if raw.get("end_ms") and raw["end_ms"] >= now_ms and not raw.get("auto_renew")
        ]
        return (min(ends) - now_ms) / _DAY_MS if ends else None

    def _usage_ratio(self, customer: str) -> float | None:
        """The latest period's usage against the mean of up to six before, of the metric used most."""
        found = _col(UsageDocument).find({"customer": customer}).sort([("end_ms", -1), ("_id", -1)]).limit(50)
        series: dict[str, list[float]] = {}
        for raw in found:
            series.setdefault(raw["metric"], []).append(raw.get("quantity") or 0.0)
        longest = max(series.values(), key=len, default=[])
        before = longest[1:7]
        mean = sum(before) / len(before) if before else 0.0
        return longest[0] / mean if len(before) >= 2 and mean > 0 else None

    def _changed(self, fresh: Churn) -> Event:
        now = self._clock.now()
        message = events_pb2.ChurnRiskChanged(
            customer=f"customers/{fresh.customer}",
            score=fresh.score,
            reasons=[reason.code for reason in fresh.reasons],
            event_time=convert.timestamp(now),
        )
        return event_of(message, f"customers/{fresh.customer}", now)

    def _flagged(self, fresh: Churn, call: Call | None) -> Event:
        known = not fresh.customer.startswith("n:")
        message = events_pb2.LeaveIntentFlagged(
            customer=f"customers/{fresh.customer}" if known else "",
            wants_to_leave=fresh.wants_to_leave,
            event_time=convert.ms_timestamp(fresh.intent_ms),
        )
        if call is not None:
            message.caller_number, message.call_id = call[0], call[1]
            message.channel = convert.channel_number(call[2])
        # Of a caller whom nobody knows yet it is the call's: an erasure finds it by that.
        subject = f"customers/{fresh.customer}" if known else f"calls/{call[1]}" if call is not None else ""
        return event_of(message, subject, from_ms(fresh.intent_ms))


def _ms(moment: datetime) -> int:
    return int((moment.astimezone(UTC) - from_ms(0)).total_seconds() * 1000)
