"""One suite over both stores: what the port promises holds in memory and on MongoDB."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chassis.errors import AlreadyExists, EtagMismatch, InvalidArgument, NotFound, Unavailable
from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from tickets import convert, engine, reporting
from tickets import sla as clocks
from tickets.config import TicketsSettings
from tickets.documents import DOCUMENTS, TicketDocument, from_raw
from tickets.filters import parse
from tickets.hotstore import AsyncMongoStore, NewTicket, document_of
from tickets.model import (
    Attachment,
    CallLink,
    Channel,
    Comment,
    Dispatch,
    Draft,
    FeeLine,
    FollowUp,
    Intent,
    IntentKind,
    Kind,
    Link,
    PartLine,
    Priority,
    Profile,
    Relation,
    Rules,
    SurveyAnswer,
    Ticket,
    Visit,
)
from tickets.records import (
    FORGET_BATCH,
    MemoryRecords,
    MongoRecords,
    Record,
    Records,
    all_of,
    forget_assets,
)
from tickets.reporting import ImportedCaseDocument, MongoImports, _case_text
from tickets.reports import Case
from tickets.store import UNREADABLE_HOLD_MS, Changed, MemoryStore, MongoStore, Query, TicketStore, sort_key

NOW = 1_772_452_800_000
RULES = Rules(sla=clocks.DEFAULT_POLICY, follow_up_delay_ms=86_400_000)
NUMBER = "+8613800138000"


@pytest.fixture(params=["memory", pytest.param("mongo", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest) -> Iterator[TicketStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    uri, database = request.getfixturevalue("mongo_uri"), request.getfixturevalue("mongo_database")
    connect(TicketsSettings(mongo_uri=uri, mongo_database=database))
    ensure_indexes(DOCUMENTS)
    yield MongoStore()
    disconnect()


def ticket(id: str = "t1", kind: Kind = Kind.INQUIRY, at: int = NOW, **draft: Any) -> Ticket:
    return engine.open_ticket(id, kind, Draft(subject="Bill", **draft), RULES, at, actor="ann").ticket


def moved(of: Ticket, *verbs: str, at: int = NOW) -> Ticket:
    for verb in verbs:
        act = engine.Act(verb=verb, actor="ann", reason="because", resolution="done")
        of = engine.transition(of, act, RULES, at).ticket
    return of


def add(store: TicketStore, *tickets: Ticket) -> None:
    for one in tickets:
        store.insert(one, ())


FULL = replace(
    ticket(
        description="lines\nof text 昨天", priority=Priority.URGENT, category="billing", customer_id="42",
        caller_number=NUMBER, language="zh-CN", channel=Channel.VOICE, required_skills=("fibre",),
        tags=("a", "b.c"),
        attributes={"contract.end": "2027", "$": "1"}, assets=("assets/1",), products=("5G",),
        dispatch=Dispatch(address="a", latitude=1.5, longitude=2.5, start_ms=NOW, end_ms=NOW + 1,
                          engineer="agents/1", parts=(PartLine(number="p", quantity=2),)),
        fee=(FeeLine(description="", quantity=1, amount="9.90", currency="CNY"),),
        parts=(PartLine(number="p", quantity=1, description="d"),),
        survey=(SurveyAnswer(question_id="q", question="?", answer="!"),),
    ),
    tier="vip", calls=(CallLink(call_id="c1", time_ms=NOW, notes="n", opened=True, owner="g"),), call_count=1,
    resolution="r",
    parent_id="p", follow_up=FollowUp(schedule_ms=NOW + 5, ticket_id="t1.visit-1", number=1),
    visit=Visit(number=2, answered=True, satisfied=True, score=5, comment="fine"),
    intents=(Intent(kind=IntentKind.CLOSE_PARENT, ticket_id="p", number=2, reason="", time_ms=NOW),),
    resolve_count=1, reopen_count=2, first_contact_resolved=True, open_key="k", merged_from=("a", "b"),
    resolved_ms=NOW, closed_ms=NOW,
    assignee="a", team="t", silent_ms=NOW, silent_limit_ms=5, reassign_count=2,
    had_assignee=True,
    links=(Link(ticket_id="t2", relation=Relation.BLOCKS, time_ms=NOW),),
    attachments=(Attachment(id="f", uri="https://f", file_name="f", time_ms=NOW, owner="g"),),
    watchers=("w",),
    comments=(Comment(sequence=1, body="b", public=True, author="a", from_customer=False, time_ms=NOW,
                      owner="g"),),
    guests=("g", "h"),
    comment_count=1, requests=(("k", "f"),), merged_into="t9", problem="p1", fee_approver="boss",
    fee_paid_ms=NOW, satisfaction=4,
)  # fmt: skip


def test_a_ticket_comes_back_as_it_was(store: TicketStore) -> None:
    stored, created = store.insert(FULL, ())
    assert created and stored == replace(FULL, version=1)
    assert store.get("t1") == stored == store.find("t1")
    changed = moved(replace(stored, phase=FULL.phase), "start")
    assert store.update(changed, ()) == replace(changed, version=2) == store.get("t1")


def test_what_is_cleared_is_gone(store: TicketStore) -> None:
    stored, _ = store.insert(FULL, ())
    bare = replace(
        ticket(), version=stored.version, history=stored.history, resolved_ms=None, follow_up=None, visit=None
    )
    store.update(bare, ())
    assert store.get("t1") == replace(bare, version=2)


def test_nothing_is_found_where_nothing_is(store: TicketStore) -> None:
    assert store.find("x") is None and store.by_call("x") is None
    with pytest.raises(NotFound):
        store.get("x")
    with pytest.raises(NotFound):
        store.steps("x", 0, 10)
    with pytest.raises(NotFound):
        store.update(replace(ticket("x"), version=1), ())
    assert store.next_due_ms() is None and store.due(NOW, 10) == []
    assert store.profile("x") is None and store.profile_of_number(NUMBER) is None


def test_ids_and_open_keys_are_taken_once(store: TicketStore) -> None:
    add(store, replace(ticket("t1"), open_key="k"), ticket("t3"), ticket("t4"))
    with pytest.raises(AlreadyExists):
        store.insert(ticket("t1"), ())
    with pytest.raises(AlreadyExists):
        store.insert(replace(ticket("t2"), open_key="k"), ())
    held = store.get("t1")
    store.update(replace(held, open_key=""), ())
    store.insert(replace(ticket("t2"), open_key="k"), ())


def test_a_request_key_gives_the_first_ticket_again(store: TicketStore) -> None:
    first, _ = store.insert(ticket("t1"), (), request_key="k", fingerprint="f")
    again, created = store.insert(ticket("t2"), (), request_key="k", fingerprint="f")
    assert again == first and not created and store.find("t2") is None
    assert store.repeat_of("k", "f") == first and store.repeat_of("other", "f") is None
    assert store.repeat_of(None, None) is None
    with pytest.raises(InvalidArgument):
        store.insert(ticket("t3"), (), request_key="k", fingerprint="g")


def test_only_the_version_that_was_read_is_overwritten(store: TicketStore) -> None:
    stored, _ = store.insert(ticket(), ())
    assert store.update(moved(stored, "start"), ()).version == 2
    with pytest.raises(EtagMismatch):
        store.update(moved(stored, "resolve"), ())
    assert store.get("t1").state == "in_progress"


def test_a_ticket_read_in_part_cannot_be_stored(store: TicketStore) -> None:
    add(store, ticket())
    (part,) = store.page(Query(), 10, None)
    assert part.history == ()
    with pytest.raises(ValueError, match="in part"):
        store.update(part, ())


SEVERAL = (
    ticket(
        "a", Kind.INQUIRY, NOW, category="billing", customer_id="1", caller_number=NUMBER, tags=("x", "y")
    ),
    ticket("b", Kind.COMPLAINT, NOW + 1, category="network", customer_id="1", priority=Priority.URGENT),
    moved(ticket("c", Kind.INQUIRY, NOW + 1, caller_number=NUMBER), "start"),
    moved(ticket("d", Kind.CARE, NOW + 2, customer_id="2"), "start", "wait"),
    moved(ticket("e", Kind.OTHER, NOW + 3), "resolve"),
    replace(ticket("f", Kind.OTHER, NOW + 4), parent_id="e", calls=(CallLink(call_id="c9", time_ms=NOW),)),
    engine.breach(ticket("g", Kind.OTHER, NOW - 8 * 86_400_000), NOW).ticket,
)


@pytest.mark.parametrize(("text", "ids"), [
    ("", "fedcbag"),
    ("open = true", "fdcbag"),
    ("open = false", "e"),
    ("kind = INQUIRY", "ca"),
    ("kind = INQUIRY AND open = true AND state = new", "a"),
    ("kind != INQUIRY", "fedbg"),
    ("state = in_progress", "c"),
    ("phase = WAITING", "d"),
    ("priority = URGENT", "b"),
    ("category = billing", "a"),
    ('customer = "customers/1"', "ba"),
    (f"caller_number = {NUMBER}", "ca"),
    ("tags:y", "a"),
    ("tags = x", "a"),
    ("parent = tickets/e", "f"),
    ("call = calls/c9", "f"),
    ("breached = true", "g"),
    ('create_time >= "2026-03-02T12:00:00.002Z"', "fed"),
    ('create_time < "2026-03-02T12:00:00Z"', "g"),
    ('due_time < "2026-03-02T18:00:00Z"', ""),
    ("customer != customers/1", "fedcg"),
    ("customer:*", "dba"),
    ("NOT customer:*", "fecg"),
    ("tags:*", "a"),
    ("call:*", "f"),
    ("due_time:*", "fcba"),
])  # fmt: skip
def test_filters_find_what_they_say_newest_first(store: TicketStore, text: str, ids: str) -> None:
    add(store, *SEVERAL)
    query = Query(conditions=parse(text))
    assert "".join(found.id for found in store.page(query, 100, None)) == ids


def test_by_due_time_the_soonest_comes_first_and_only_what_is_due(store: TicketStore) -> None:
    add(store, *SEVERAL)
    query = Query(by_due=True)
    found = store.page(query, 100, None)
    assert [one.id for one in found] == ["b", "a", "c", "f"]
    rest = store.page(query, 100, sort_key(found[1], query))
    assert [one.id for one in rest] == ["c", "f"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(times=st.lists(st.integers(0, 3), max_size=12), size=st.integers(1, 5), by_due=st.booleans())
def test_pages_hold_every_ticket_once_and_in_order(
    times: list[int], size: int, by_due: bool, store: TicketStore, request: pytest.FixtureRequest
) -> None:
    tag = f"run{abs(hash((tuple(times), size, by_due)))}"
    add(
        store,
        *(
            t
            for n, at in enumerate(times)
            if store.find((t := ticket(f"{tag}-{n}", at=NOW + at, tags=(tag,))).id) is None
        ),
    )
    query = Query(conditions=parse(f"tags:{tag}"), by_due=by_due)
    seen: list[Ticket] = []
    after = None
    while page := store.page(query, size, after):
        assert len(page) <= size
        seen += page
        after = sort_key(page[-1], query)
    keys = [sort_key(one, query) for one in seen]
    assert keys == sorted(keys, reverse=not by_due)
    assert len(seen) == len({one.id for one in seen}) == len(times)


def test_a_call_is_found_on_its_ticket(store: TicketStore) -> None:
    linked = replace(ticket(), calls=tuple(CallLink(call_id=f"c{n}", time_ms=NOW) for n in range(3)))
    add(store, linked, ticket("other"))
    found = store.by_call("c2")
    assert found is not None and found.id == "t1" and found.history


def test_open_tickets_like_a_call(store: TicketStore) -> None:
    add(store, *SEVERAL, moved(ticket("z", customer_id="1", category="billing"), "cancel"))
    assert {one.id for one in store.open_like("1", NUMBER, "inquiry")} == {"c"}
    assert {one.id for one in store.open_like("1", "", "billing")} == {"a"}
    assert {one.id for one in store.open_like("", NUMBER, "billing")} == {"a"}
    assert store.open_like("", "", "inquiry") == []


def test_open_tickets_of_a_number(store: TicketStore) -> None:
    add(store, *SEVERAL)
    assert [one.id for one in store.open_of_number(NUMBER, 10)] == ["c"]


@pytest.mark.parametrize("kind", ["memory", pytest.param("mongo", marks=pytest.mark.integration)])
def test_an_erased_customers_assets_are_gone(kind: str, request: pytest.FixtureRequest) -> None:
    kept: Records = MemoryRecords()
    if kind == "mongo":
        uri, database = request.getfixturevalue("mongo_uri"), request.getfixturevalue("mongo_database")
        connect(TicketsSettings(mongo_uri=uri, mongo_database=database))
        request.addfinalizer(disconnect)
        kept = MongoRecords()
    for number in range(FORGET_BATCH + 2):
        owner = {"customer": "2" if number == 1 else "1"}
        kept.insert(Record(kind="assets", id=f"a{number}", body="{}", search=owner, created_ms=number))
    for _ in range(2):
        forget_assets(kept, "1")
        assert [record.id for record in all_of(kept, "assets")] == ["a1"]


def test_a_pile_is_what_nobody_has_and_the_skills_are_enough_for(store: TicketStore) -> None:
    pile = [
        replace(ticket(id, at=NOW + at, priority=priority, required_skills=skills), team="field")
        for id, at, priority, skills in (
            ("late", 2, Priority.NORMAL, ()),
            ("early", 1, Priority.NORMAL, ("fibre",)),
            ("urgent", 3, Priority.URGENT, ("fibre", "copper")),
        )
    ]
    had = replace(ticket("had"), team="field", assignee="a")
    add(store, *pile, had, replace(ticket("theirs"), team="other"), moved(ticket("over"), "resolve"))
    found = {
        skills: [one.id for one in store.pile("field", skills.split(), 9)]
        for skills in ("", "fibre", "copper fibre steel")
    }
    assert found == {
        "": ["late"],
        "fibre": ["early", "late"],
        "copper fibre steel": ["urgent", "early", "late"],
    }
    assert [one.id for one in store.pile("field", ["fibre"], 1)] == ["early"]


def test_timers_are_found_by_due_time(store: TicketStore) -> None:
    add(
        store, ticket("late", at=NOW), ticket("soon", Kind.COMPLAINT, at=NOW), moved(ticket("none"), "cancel")
    )
    first = NOW + 30 * clocks.MINUTE_MS
    assert store.next_due_ms() == first
    assert store.due(first - 1, 10) == [] and store.due(first, 10) == ["soon"]
    assert store.due(first * 2, 10) == ["soon", "late"] and store.due(first * 2, 1) == ["soon"]
    store.update(engine.postponed(store.get("soon"), first + 5), ())
    assert store.due(first, 10) == []


@pytest.mark.integration
def test_a_ticket_that_cannot_be_read_does_not_keep_other_timers_waiting(
    mongo_uri: str, mongo_database: str, request: pytest.FixtureRequest
) -> None:
    connect(TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    request.addfinalizer(disconnect)
    store, due = MongoStore(), NOW + 60 * clocks.MINUTE_MS
    add(store, ticket("newer"), ticket("other"))
    newer = {"$set": {"kind": "hologram", "timer_ms": NOW}}
    TicketDocument._get_collection().update_one({"_id": "newer"}, newer)
    assert [one.id for one in store.due_tickets(due, 10)] == ["other"]
    assert store.due(due, 10) == ["other"], "it is looked at again later"
    assert store.due(due + UNREADABLE_HOLD_MS, 10) == ["other", "newer"]


@pytest.mark.integration
def test_a_log_counts_once_it_is_whole_and_is_replaced_whole(
    mongo_uri: str, mongo_database: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    request.addfinalizer(disconnect)
    monkeypatch.setattr(reporting, "PAGE", 1)
    logs, kept = MongoImports(), ImportedCaseDocument._get_collection()

    def case(id: str) -> Case:
        return Case(id=id, opened_ms=5, steps=(("new", 5, True),), open=True)

    def dies(*ids: str) -> Iterator[Case]:
        yield from map(case, ids)
        raise OSError("the process dies")

    def meanwhile() -> Iterator[Case]:
        yield case("slow")
        logs.put("log", [case("quick")])

    def read() -> list[str]:
        return [one.id for one in logs.read("log", 0, 10)]

    kept.insert_one({"_id": "log/old", "import_id": "log", "opened_ms": 5, "case": _case_text(case("old"))})
    with pytest.raises(OSError, match="dies"):
        logs.put("log", dies("a", "b"))
    assert read() == ["old"], "of an earlier release, and still whole"
    logs.put("log", [case("c"), case("d")])
    assert read() == ["c", "d"]
    with pytest.raises(Unavailable):
        logs.put("log", meanwhile())
    assert read() == ["quick"] and kept.count_documents({}) == 2, "what does not count is gone"
    with pytest.raises(NotFound):
        logs.read("nolog", 0, 10)
    logs.put("empty", [])
    assert logs.read("empty", 0, 10) == []


def test_a_long_history_is_read_in_pages_from_both_places(store: TicketStore) -> None:
    current, _ = store.insert(moved(ticket(), "start"), ())
    for n in range(60):
        current = store.update(moved(current, "wait", "resume", at=NOW + n), ())
    assert len(store.get("t1").history) <= 64
    assert [step.sequence for step in store.steps("t1", 0, 1_000)] == list(range(1, 123))
    assert [step.sequence for step in store.steps("t1", 30, 40)] == list(range(31, 71))
    assert [step.sequence for step in store.steps("t1", 121, 40)] == [122]
    assert store.steps("t1", 122, 40) == []
    assert store.steps("t1", 1, 1)[0].reason == "because"
    store.blank_steps("t1")
    assert store.steps("t1", 1, 1)[0].reason == ""


def test_whose_comments_are_is_known_in_both_places_until_they_are_blanked(store: TicketStore) -> None:
    said = tuple(
        Comment(sequence=n, body="b", public=True, author="a", from_customer=True, time_ms=n,
                owner="42" if n % 2 else "")
        for n in range(1, 41)
    )  # fmt: skip
    stored, _ = store.insert(moved(ticket(), "start"), ())
    store.update(replace(stored, comments=said, comment_count=40), ())
    kept = len(store.get("t1").comments)
    assert 0 < kept < 30 and store.comments("t1", 0, 99) == list(said)
    store.blank_comments("t1", "42")
    blanked = [replace(one, body="", owner="") if one.owner else one for one in said[:-kept]]
    assert store.comments("t1", 0, 99) == [*blanked, *said[-kept:]]
    store.blank_comments("t1")
    assert {one.body for one in store.comments("t1", 0, 99)[:-kept]} == {""}


def said(word: str, first: int, last: int) -> tuple[Comment, ...]:
    return tuple(
        Comment(sequence=n, body=word, public=True, author="a", from_customer=False, time_ms=n)
        for n in range(first, last + 1)
    )


def test_a_change_that_comes_too_late_overwrites_nobodys_words(store: TicketStore) -> None:
    """Two merges into one ticket at once: what the one had put away was the other's."""
    read, _ = store.insert(moved(ticket(), "start"), ())
    first = store.update(replace(read, comments=said("first", 1, 30), comment_count=30), ())
    with pytest.raises(EtagMismatch):
        store.update(replace(read, comments=said("late", 1, 30), comment_count=30), ())
    assert {one.body for one in store.comments("t1", 0, 99)} == {"first"}
    assert store.get("t1").version == first.version
    more = (*store.get("t1").comments, *said("more", 31, 60))
    store.update(replace(store.get("t1"), comments=more, comment_count=60), ())
    assert [one.sequence for one in store.comments("t1", 0, 99)] == list(range(1, 61))


def test_a_change_that_comes_after_an_erasure_puts_no_words_away(store: TicketStore) -> None:
    current, _ = store.insert(moved(ticket(), "start"), ())
    read = store.update(replace(current, comments=said("secret", 1, 8), comment_count=8), ())
    for n in range(31):
        read = store.update(moved(read, "wait", "resume", at=NOW + n), ())
    store.blank_steps("t1")
    store.update(engine.erase(read, NOW).ticket, ())
    late = replace(moved(read, "wait"), comments=(*read.comments, *said("secret", 9, 9)), comment_count=9)
    with pytest.raises(EtagMismatch):
        store.update(late, ())
    assert {one.body for one in store.comments("t1", 0, 99)} == {""}
    assert {step.reason for step in store.steps("t1", 0, 99)} == {""}
    if isinstance(store, MongoStore):
        database = TicketDocument._get_collection().database
        for name in ("ticket_comments", "ticket_history"):
            assert not list(database[name].find({"ticket_id": "t1"})), name


@pytest.mark.integration
def test_words_that_came_too_late_between_two_steps_are_taken_back(
    mongo_uri: str, mongo_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change just before the last step of one that puts new words away."""
    connect(TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    store = MongoStore()
    read, _ = store.insert(moved(ticket(), "start"), ())
    put_away = store._put_comments_away

    def meanwhile(ticket_id: str, gone: Any) -> None:
        monkeypatch.setattr(store, "_put_comments_away", put_away)
        put_away(ticket_id, gone)
        now = store.get("t1")
        words = said("theirs", now.comment_count + 1, now.comment_count + 1)
        store.update(replace(now, comments=(*now.comments, *words), comment_count=now.comment_count + 1), ())

    monkeypatch.setattr(store, "_put_comments_away", meanwhile)
    with pytest.raises(EtagMismatch):
        store.update(replace(read, comments=said("late", 1, 30), comment_count=30), ())
    assert [one.body for one in store.comments("t1", 0, 99)] == ["theirs"]
    disconnect()


def test_profiles_only_get_newer(store: TicketStore) -> None:
    old = Profile(customer_id="42", version=1, numbers=(NUMBER, "+4930123456"), tier="gold")
    new = Profile(
        customer_id="42", version=2, numbers=(NUMBER,), tier="vip", language="zh-CN", merged_into="43"
    )
    assert store.save_profile(new)
    assert not store.save_profile(old) and not store.save_profile(new)
    assert store.profile("42") == new == store.profile_of_number(NUMBER)
    assert store.profile_of_number("+4930123456") is None
    for id, at in (("e1", NOW + 1), ("e2", NOW)):
        told = {"erased_ms": NOW - 1, "former_numbers": (NUMBER,)}
        store.save_profile(Profile(customer_id=id, version=1, erased=True, again_ms=at, **told))
    assert (store.erased_due(NOW, 9), store.erased_due(NOW + 1, 9)) == (["e2"], ["e2", "e1"])
    store.look_again("e1", None)
    store.look_again("e2", NOW + 2)
    assert store.profile("e1") == Profile(customer_id="e1", version=1, erased=True, erased_ms=NOW - 1)
    assert store.profile("e2").former_numbers == (NUMBER,)  # type: ignore[union-attr]
    assert store.erased_due(NOW + 1, 9) == [] and store.erased_due(NOW + 2, 9) == ["e2"]


def test_an_occasion_that_is_over_is_remembered(store: TicketStore) -> None:
    assert store.care_end("care-1") is None
    for reason in ("done", "expired"):
        store.end_care("care-1", reason)
    assert store.care_end("care-1") == "done" and store.care_end("care-2") is None


@pytest.mark.integration
def test_events_lie_in_the_document_they_belong_to(mongo_uri: str, mongo_database: str) -> None:
    connect(TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    change = engine.open_ticket("t1", Kind.INQUIRY, Draft(subject="Bill"), RULES, NOW, actor="ann")
    event = convert.event_of(replace(change.ticket, version=1), change.happenings[0])
    MongoStore().insert(change.ticket, [event])
    raw = TicketDocument._get_collection().find_one({"_id": "t1"})
    assert [entry["id"] for entry in raw["outbox"]] == [event.id]
    assert from_raw(raw) == replace(change.ticket, version=1)
    disconnect()


@pytest.mark.integration
async def test_the_hot_paths_write_and_read_what_the_store_does(mongo_uri: str, mongo_database: str) -> None:
    settings = TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database)
    connect(settings)
    ensure_indexes(DOCUMENTS)
    database = async_database(settings)
    hot, store = AsyncMongoStore(database), MongoStore()
    profile = Profile(customer_id="7", version=1, numbers=(NUMBER,), tier="vip")
    store.save_profile(profile)
    found = await asyncio.gather(*(hot.profile_of_number(n) for n in (NUMBER, "+4930123456", NUMBER)))
    assert found == [profile, None, profile] and await hot.profile("7") == profile
    new = [NewTicket(ticket=replace(FULL, id=f"h{n}", open_key=f"k{n}"), events=()) for n in range(9)]
    await asyncio.gather(*(hot.insert(one) for one in new))
    for one in new:
        assert store.get(one.ticket.id) == replace(one.ticket, version=1)
    store.insert(replace(FULL, id="slow"), ())
    ours = document_of(NewTicket(ticket=FULL, events=()), datetime.now(UTC))
    theirs = TicketDocument._get_collection().find_one({"_id": "slow"})
    same = ours.keys() - {"_id", "created_at", "updated_at"}
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    assert {name for name in theirs.keys() - ours.keys() if theirs[name]} == set()
    bare = {"history": (), "comments": ()}
    assert await hot.get("h1") == replace(new[1].ticket, version=1, **bare)
    keyed = NewTicket(
        ticket=replace(FULL, id="r1", open_key="r1"), events=(), request_key="r", fingerprint="f"
    )
    again = replace(keyed, ticket=replace(FULL, id="r2", open_key="r2"))
    outcomes = await asyncio.gather(hot.insert(keyed), hot.insert(again), return_exceptions=True)
    assert sorted(made for _, made in outcomes) == [False, True]  # type: ignore[misc]
    with pytest.raises(InvalidArgument, match="request_id"):
        await hot.insert(replace(again, fingerprint="other"))
    with pytest.raises(AlreadyExists):
        await hot.insert(new[0])
    assert await hot.find("none") is None
    await database.client.close()
    disconnect()


@pytest.mark.integration
@pytest.mark.parametrize("text", [
    "assignee = agents/1", "team = teams/1 AND open = true", "products:a", "problem = problems/1",
    "", "open = true", "kind = CARE", "kind = CARE AND open = true", "state = new", "phase = NEW",
    "priority = LOW",
    "category = a", "customer = customers/1", "caller_number = +4930123456", "tags:a", "parent = tickets/1",
    "call = calls/1", "breached = true", 'create_time > "2026-01-01T00:00:00Z"',
    'update_time > "2026-01-01T00:00:00Z"', 'due_time < "2026-01-01T00:00:00Z"',
])  # fmt: skip
def test_no_list_scans_the_collection(mongo_uri: str, mongo_database: str, text: str) -> None:
    from tickets.listing import mongo_query

    connect(TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    ensure_indexes(DOCUMENTS)
    add(MongoStore(), *(ticket(f"t{n}") for n in range(20)))
    found = TicketDocument._get_collection().find(mongo_query(Query(conditions=parse(text)), (NOW, "t5")))
    plan = repr(found.sort([("created_ms", -1), ("_id", -1)]).explain()["queryPlanner"]["winningPlan"])
    assert "IXSCAN" in plan and "COLLSCAN" not in plan
    disconnect()


@pytest.mark.integration
def test_a_ticket_without_room_for_an_event_keeps_no_other_waiting(
    mongo_uri: str, mongo_database: str
) -> None:
    class Large:
        id = "e"

        def to_json(self) -> str:
            return "x" * 9_000_000

    connect(TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    store = MongoStore()
    add(store, ticket("full"), ticket("other"))
    waiting = {"outbox": [{"id": "e0", "event": Large().to_json()}]}
    TicketDocument._get_collection().update_one({"_id": "full"}, {"$set": waiting})
    before = [store.get(id) for id in ("full", "other")]
    changed = [replace(one, updated_ms=one.updated_ms + 1) for one in before]
    store.update_many(
        [
            Changed(before=b, after=a, events=[Large()] if b.id == "full" else [])  # type: ignore[list-item]
            for b, a in zip(before, changed, strict=True)
        ]
    )
    assert [store.get(id).version for id in ("full", "other")] == [1, 2]
    disconnect()


@pytest.mark.integration
def test_what_was_a_customers_is_found_by_its_index(mongo_uri: str, mongo_database: str) -> None:
    connect(TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    ensure_indexes(DOCUMENTS)
    store = MongoStore()
    add(store, *(replace(ticket(f"t{n}"), merged_from=("a", "b") if n < 3 else ()) for n in range(9)))
    assert store.were_of("b", "", 2) == ["t0", "t1"] and store.were_of("b", "t1", 2) == ["t2"]
    add(store, *(replace(ticket(f"g{n}"), guests=("a", "b") if n < 3 else ()) for n in range(9)))
    assert store.hosts_of("b", "", 2) == ["g0", "g1"] and store.hosts_of("b", "g1", 2) == ["g2"]
    for field in ("merged_from", "guests"):
        query = {field: "b", "_id": {"$gt": ""}}
        plan = repr(TicketDocument._get_collection().find(query).sort("_id", 1).limit(2).explain())
        assert f"{field}_id" in plan and "COLLSCAN" not in plan and "'SORT'" not in plan
    disconnect()


@pytest.mark.integration
def test_a_claim_reads_the_pile_and_not_what_others_have(mongo_uri: str, mongo_database: str) -> None:
    """All that a team has was read, however little of it was free."""
    connect(TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    ensure_indexes(DOCUMENTS)
    store, database = MongoStore(), TicketDocument._get_collection().database
    add(store, *(replace(ticket(f"t{n}"), team="x", assignee="a" if n % 10 else "") for n in range(60)))
    database.command("profile", 2)
    assert [one.id for one in store.pile("x", [], 9)] == ["t0", "t10", "t20", "t30", "t40", "t50"]
    database.command("profile", 0)
    (read,) = database["system.profile"].find({"command.find": "tickets"})
    assert (read["docsExamined"], read.get("hasSortStage")) == (6, None)
    disconnect()


@pytest.mark.integration
@pytest.mark.parametrize("text", ["", "open = true"])
def test_what_is_due_is_read_in_order_and_nothing_else(
    mongo_uri: str, mongo_database: str, text: str
) -> None:
    from tickets.listing import mongo_query

    connect(TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    ensure_indexes(DOCUMENTS)
    add(MongoStore(), *(ticket(f"t{n}", Kind.REPAIR) for n in range(30)))
    add(MongoStore(), *(moved(ticket(f"w{n}", Kind.CARE), "start", "wait") for n in range(60)))
    query = mongo_query(Query(conditions=parse(text), by_due=True), None)
    plan = TicketDocument._get_collection().find(query).sort([("due_ms", 1), ("_id", 1)]).limit(5).explain()
    stats = plan["executionStats"]
    assert (stats["nReturned"], stats["totalKeysExamined"], stats["totalDocsExamined"]) == (5, 5, 5)
    disconnect()
