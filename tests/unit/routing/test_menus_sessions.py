"""Callers on their way: the pure steps, and sessions over the memory store as an IVR meets them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import UpdateOne
from pymongo.errors import AutoReconnect, BulkWriteError
from tests.unit.routing.routing_menus import hotline, index, survey

from callmesh.routing.v1 import menu_events_pb2 as events
from callmesh.routing.v1 import menus_pb2 as pb
from chassis.errors import CallmeshError, EtagMismatch, InvalidArgument, ResourceExhausted
from chassis.idempotency import RequestIdReused
from chassis.testing import FakeClock
from routing.menus import apart, convert, engine, records
from routing.menus import running as running_module
from routing.menus.documents import CALLER_SECONDS, MenuCallerDocument
from routing.menus.engine import STEPS_MAX, Input, Level, Notice, Outcome, Personal, State
from routing.menus.handlers import CallerUnknown, MenuHandlers
from routing.menus.recorder import Recorder
from routing.menus.running import MenuNotFound, MenuNotPublished, Running
from routing.menus.sessions import Sessions
from routing.menus.store import MemoryMenus, MongoMenus, Published, Shortcut, Stored, TooManyShortcuts
from routing.menus.tokens import InvalidMenuSession, MenuSessionEnded, SessionTokens, body_of, state_of

NOW = datetime(2026, 3, 2, 6, 10, tzinfo=UTC)
ANN, BEN = "+8613800138000", "+8613900139000"
TIMES = (0, 1_772_431_200_000)


def begun(**fields: Any) -> State:
    base: dict[str, Any] = {"id": "s", "menu": "hotline", "version": 1, "began_ms": 0, "last_ms": 0}
    return engine.begin(HOTLINE, State(**{**base, "language": "zh-CN", **fields}))


HOTLINE = index()


def walk(state: State, *keys: str, menu: engine.Index = HOTLINE) -> State:
    for key in keys:
        did = {"": Input.TIMEOUT, "!": Input.HANG_UP}.get(key, Input.KEY)
        state = engine.step(menu, state, did, key, state.last_ms + 1_000, TIMES).state
    return state


#: Keys ("" for a silence, "!" for hanging up), the node they lead to, and how the session then stands.
WAYS: list[tuple[str, str, Outcome]] = [
    ("1 1", "balance", Outcome.DONE),
    ("1 2", "pay", Outcome.DONE),
    ("2 1", "diagnosis", Outcome.OPEN),
    ("2 1 2", "expert", Outcome.DONE),
    ("2 1 *", "internet", Outcome.OPEN),
    ("2 1 * *", "welcome", Outcome.OPEN),
    ("* # 4", "request", Outcome.DONE),
    ("1 #", "bills", Outcome.OPEN),
    ("0", "welcome", Outcome.FALLBACK),
    ("1 9 9 1", "balance", Outcome.DONE),
    ("1 9 9 9", "bills", Outcome.FALLBACK),
    ("9 ? ", "welcome", Outcome.OPEN),
    ("3", "visit", Outcome.OPEN),
    ("3 2", "visit", Outcome.DONE),
    ("3 * 4", "request", Outcome.DONE),
    ("1 !", "bills", Outcome.GAVE_UP),
]


@pytest.mark.parametrize(("keys", "node", "outcome"), WAYS)
def test_keys_lead_where_the_menu_says(keys: str, node: str, outcome: Outcome) -> None:
    state = walk(begun(), *("" if key == "?" else key for key in keys.split()))
    assert (state.node, state.outcome) == (node, outcome)


def test_three_silences_end_in_the_fallback_and_a_key_in_between_forgives() -> None:
    assert walk(begun(), "", "", "").outcome is Outcome.FALLBACK
    assert walk(begun(), "", "", "1", "", "").outcome is Outcome.OPEN


def test_a_session_that_is_over_takes_no_step() -> None:
    with pytest.raises(engine.Ended):
        walk(begun(), "1", "1", "1")


def test_own_short_cuts_never_take_a_key_of_the_menu() -> None:
    mine = begun(own=(("1", "expert"), ("7", "pay"), ("8", "gone")))
    assert mine.own == (("1", "expert"), ("7", "pay"))
    assert walk(mine, "7").node == "pay" and walk(mine, "1").node == "bills"
    assert walk(mine, "#").level is Level.OWN
    assert walk(mine, "#", "1").node == "expert" and walk(mine, "#", "*", "1").node == "bills"
    assert walk(mine, "#", "7").visits[-1].notice is Notice.SHORTCUT


def test_a_personal_level_stands_before_the_root_or_among_its_choices() -> None:
    before = begun(personal=Personal(choices=(("1", "pay"), ("2", "expert")), before=True))
    assert [c.digit for c in engine.choices(HOTLINE, before)] == ["1", "2", "9"]
    assert walk(before, "2").node == "expert" and walk(before, "2").way == ("welcome", "expert")
    assert walk(before, "9").level is Level.NODE and walk(before, "").level is Level.NODE
    assert walk(before, "9", "1").node == "bills" and walk(before, "").tries == 0
    among = begun(personal=Personal(choices=(("5", "pay"),), before=False))
    assert [c.digit for c in engine.choices(HOTLINE, among)] == ["5", "1", "2", "3", "4"]
    assert walk(among, "5").visits[-1].notice is Notice.PERSONAL
    assert begun(personal=Personal(choices=(("1", "gone"),), before=True)).level is Level.NODE


def test_own_short_cuts_work_on_a_personal_level_as_at_the_root() -> None:
    level = Personal(choices=(("2", "pay"),), before=True)
    mine = begun(own=(("1", "expert"), ("7", "order")), personal=level)
    assert walk(mine, "7").node == "order" and walk(mine, "7").visits[-1].notice is Notice.SHORTCUT
    assert walk(mine, "#").level is Level.OWN and walk(mine, "#", "1").node == "expert"
    assert walk(mine, "1").visits[-1].notice is Notice.WRONG_KEY, "the menu has this key at its root"
    assert walk(mine, "2").node == "pay" and walk(mine, "9").level is Level.NODE


def test_what_is_told() -> None:
    def told(state: State) -> str:
        return engine.prompt(HOTLINE, state, engine.choices(HOTLINE, state))

    assert told(begun()).startswith("welcome 账单请按1。")
    assert told(begun(language="en-GB")).startswith("welcome For bills, press 1.")
    assert told(walk(begun(), "1")) == "余额请按1。 pay请按2。"
    assert (
        told(walk(begun(), "1", "1")) == "余额五元" and told(walk(begun(language="en"), "1", "1")) == "5 yuan"
    )
    assert told(walk(begun(), "2", "1")).startswith("diagnosis")
    assert told(walk(begun(language="fr"), "1")) == "For balance, press 1. For pay, press 2."


def test_an_answer_alone_is_for_the_languages_that_have_none_of_their_own() -> None:
    menu = hotline()
    menu.root.children[0].children[0].answers.pop("zh")
    asked = index(menu)
    told = {
        language: engine.prompt(asked, walk(begun(language=language), "1", "1", menu=asked), [])
        for language in ("zh-CN", "en-GB")
    }
    assert told == {"zh-CN": "Your balance is 5 yuan", "en-GB": "5 yuan"}


def test_answers_of_a_survey() -> None:
    asked = index(survey())
    state = engine.begin(asked, begun(way=()))
    over = walk(state, "2", "1", menu=asked)
    assert over.outcome is Outcome.DONE
    assert engine.answers(asked, over) == [("friendliness", "fair", 3), ("solved", "yes", 5)]
    corrected = walk(state, "2", "*", "3", "!", menu=asked)
    assert engine.answers(asked, corrected) == [("friendliness", "kind", 5)]


@settings(max_examples=40, deadline=None)
@given(keys=st.lists(st.sampled_from([*"0123456789*#", "", "", "!"]), max_size=STEPS_MAX + 5))
def test_any_way_ends_within_its_bound_and_survives_its_token(keys: list[str]) -> None:
    state = begun(
        own=(("1", "expert"), ("7", "pay")), personal=Personal(choices=(("5", "pay"),), before=False)
    )
    for key in keys:
        if state.outcome is not Outcome.OPEN:
            break
        again = walk(state_of(body_of(state)), key)
        assert again == walk(state, key), "a repeat, at another router, comes to the same"
        state = again
        assert state.step <= STEPS_MAX and set(state.way) <= HOTLINE.nodes.keys()
        offered = engine.choices(HOTLINE, state) if state.outcome is Outcome.OPEN else []
        assert len({choice.digit for choice in offered}) == len(offered)
    assert state.outcome is not Outcome.OPEN or len(keys) < STEPS_MAX


# --- sessions as an IVR meets them ---


class Away(MemoryMenus):
    """A store whose database can be away."""

    away = False
    #: Nor does it say that it is; and how often it was asked.
    silent = False
    asked = 0

    async def published(self, menu: str) -> Published | None:
        self.asked += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.away:
            raise AutoReconnect("away")
        return await super().published(menu)

    async def caller(self, menu: str, number: str, *, tickets: bool) -> Any:
        if self.away:
            raise AutoReconnect("away")
        return await super().caller(menu, number, tickets=tickets)

    async def session(self, id: str) -> bytes | None:
        if self.away:
            raise AutoReconnect("away")
        return await super().session(id)

    async def record(self, rows: Any, expires: datetime) -> None:
        if self.away:
            raise AutoReconnect("away")
        await super().record(rows, expires)


class Ivr:
    """A router's menus over a memory store, and somebody who calls."""

    def __init__(self, store: Away | None = None, key: bytes = b"k" * 32) -> None:
        self.clock = FakeClock(NOW)
        self.store = store or Away(known_queues={"sales", "service"})
        tokens = SessionTokens(key, life_span_ms=1_800_000)
        running = Running(self.store, self.clock, seconds=1.0)
        self.recorder = Recorder(self.store, days=90, pending_max=20)
        self.handlers = MenuHandlers(self.store, running, tokens, self.clock)
        self.sessions = Sessions(
            store=self.store,
            running=running,
            recorder=self.recorder,
            tokens=tokens,
            clock=self.clock,
            zone=lambda: "Asia/Shanghai",
            caller_seconds=1.0,
        )

    async def load(self, menu: pb.Menu | None = None, id: str = "hotline", share: float = 0.0) -> int:
        request = pb.CreateMenuRequest(menu_id=id, menu=menu if menu is not None else hotline())
        made = await self.handlers.create(request, "ops")
        wanted = pb.PublishMenuRequest(name=f"menus/{id}", version=made.version, share=share)
        await self.handlers.publish(wanted)
        return made.version

    async def call(self, *keys: str, menu: str = "menus/hotline", **fields: Any) -> pb.StepMenuResponse:
        base: dict[str, Any] = {"caller_number": ANN, "language": "zh"}
        answer = await self.sessions.step(pb.StepMenuRequest(menu=menu, **{**base, **fields}))
        for key in keys:
            self.clock.advance(2)
            answer = await self.press(answer, key)
        return answer

    async def press(self, answer: pb.StepMenuResponse, key: str) -> pb.StepMenuResponse:
        kinds = {"": pb.MENU_INPUT_TIMEOUT, "!": pb.MENU_INPUT_HANG_UP}
        did = kinds.get(key, pb.MENU_INPUT_KEY)
        digit = key if did == pb.MENU_INPUT_KEY else ""
        return await self.sessions.step(
            pb.StepMenuRequest(session=answer.session, digit=digit, input=did)  # type: ignore[arg-type]
        )

    async def stats(self, **fields: Any) -> pb.MenuStats:
        await self.recorder.write()
        self.clock.advance(1)
        return await self.handlers.stats(pb.GetMenuStatsRequest(name="menus/hotline", **fields))


async def refused(call: Any) -> CallmeshError:
    with pytest.raises(CallmeshError) as caught:
        await call
    return caught.value


async def test_a_caller_finds_the_way() -> None:
    ivr = Ivr()
    await ivr.load()
    first = await ivr.call()
    assert [c.digit for c in first.choices] == ["1", "2", "3", "4"] and not first.done and first.step == 1
    assert first.prompt.startswith("welcome 账单请按1。")
    wrong = await ivr.press(first, "8")
    assert wrong.notice == pb.MENU_NOTICE_WRONG_KEY and wrong.prompt == first.prompt
    leaf = await ivr.call("2", "1", "2")
    assert leaf.done and leaf.node.queue == "queues/service" and leaf.farewell == "再见" and leaf.step == 4
    assert isinstance(await refused(ivr.press(leaf, "1")), MenuSessionEnded)
    fallback = await ivr.call("0")
    assert fallback.done and fallback.node.queue == "queues/service"
    assert fallback.notice == pb.MENU_NOTICE_FALLBACK


async def test_a_step_repeated_answers_the_same_and_counts_once() -> None:
    ivr = Ivr()
    await ivr.load()
    first = await ivr.call()
    once, twice = await ivr.press(first, "1"), await ivr.press(first, "1")
    assert once == twice
    await ivr.press(once, "1")
    await ivr.press(twice, "1")
    stats = await ivr.stats()
    assert (stats.sessions, stats.completed, stats.presses_mean) == (1, 1, 2.0)


async def test_a_session_goes_on_at_another_router_and_after_the_ivr_has_lost_it() -> None:
    ivr = Ivr()
    await ivr.load()
    there = await ivr.call("2", call_id="pbx:1")
    other = Ivr(ivr.store)
    assert (await other.press(there, "2")).node.id == "order"
    lost = await ivr.call(call_id="pbx:1")
    assert lost.resumed and lost.node.id == "internet" and lost.step == 2
    await ivr.recorder.write()
    elsewhere = await Ivr(ivr.store).call(call_id="pbx:1")
    assert elsewhere.resumed and elsewhere.node.id == "internet"
    assert isinstance(await refused(Ivr(ivr.store, key=b"x" * 32).press(there, "2")), InvalidMenuSession)
    over = await ivr.press(lost, "!")
    again = await ivr.call(call_id="pbx:1")
    assert over.notice == pb.MENU_NOTICE_HUNG_UP and not again.resumed and again.step == 1


async def test_a_call_that_comes_often_has_a_session_each_time() -> None:
    ivr = Ivr()
    await ivr.load()
    for _ in range(14):
        await ivr.call("1", "1", call_id="pbx:2")
        await ivr.recorder.write()
    assert (await ivr.stats()).completed == 14


async def test_a_caller_may_change_the_language_on_the_way() -> None:
    ivr = Ivr()
    await ivr.load()
    there = await ivr.call("1")
    assert there.prompt == "余额请按1。 pay请按2。"
    step = pb.StepMenuRequest(session=there.session, digit="#", language="en")
    there = await ivr.sessions.step(step)
    assert there.prompt == "For balance, press 1. For pay, press 2."
    assert (await ivr.press(there, "1")).prompt == "5 yuan", "and it stays so"
    step.language = "not a language"
    assert (await refused(ivr.sessions.step(step))).details.field_violations[0].field == "language"


class Slow(Away):
    """A store that reads no version until it may."""

    def __init__(self) -> None:
        super().__init__(known_queues={"sales", "service"})
        self.may_read = asyncio.Event()
        self.read: list[int] = []

    async def version(self, menu: str, number: int) -> Stored | None:
        self.read.append(number)
        await self.may_read.wait()
        return await super().version(menu, number)


async def test_callers_of_a_new_version_wait_for_one_reading_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_module, "READINGS_MAX", 1)
    store = Slow()
    store.may_read.set()
    await Ivr(store).load()
    ivr = Ivr(store)
    store.may_read.clear()
    store.read.clear()
    calls = [asyncio.create_task(ivr.call()) for _ in range(20)]
    while not store.read:
        await asyncio.sleep(0)
    # Who wanted it first gives up, and another version is one too many.
    calls[0].cancel()
    assert isinstance(await refused(ivr.call(menu="menus/hotline@7")), ResourceExhausted)
    store.may_read.set()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert all(isinstance(each, pb.StepMenuResponse) and len(each.choices) == 4 for each in done[1:])
    assert store.read == [1]
    assert isinstance(await refused(ivr.call(menu="menus/hotline@7")), MenuNotFound)


async def test_a_session_ends_by_itself() -> None:
    ivr = Ivr()
    await ivr.load()
    first = await ivr.call()
    ivr.clock.advance(1_801)
    assert isinstance(await refused(ivr.press(first, "1")), InvalidMenuSession)
    stats = await ivr.stats()
    assert (stats.given_up, stats.paths[0].given_up) == (1, 1)


async def test_the_running_version_stays_when_a_load_is_refused() -> None:
    ivr = Ivr()
    assert isinstance(await refused(ivr.call()), MenuNotFound)
    draft = await ivr.handlers.create(pb.CreateMenuRequest(menu_id="hotline", menu=hotline()), "ops")
    assert isinstance(await refused(ivr.call()), MenuNotPublished) and draft.version == 1
    await ivr.handlers.publish(pb.PublishMenuRequest(name="menus/hotline", version=1))
    bad = hotline()
    bad.root.children[1].digit = "1"
    error = await refused(ivr.handlers.create(pb.CreateMenuRequest(menu_id="hotline", menu=bad), "ops"))
    assert error.details.field_violations[0].field == "menu.root.children[1].digit"
    ivr.store.known_queues.discard("sales")
    error = await refused(ivr.handlers.create(pb.CreateMenuRequest(menu_id="hotline", menu=hotline()), "ops"))
    assert error.details.field_violations[0].field == "menu.root.children[1].children[1].queue"
    error = await refused(ivr.handlers.publish(pb.PublishMenuRequest(name="menus/hotline", version=1)))
    assert "sales" in error.message
    assert (await ivr.handlers.get("menus/hotline")).version == 1 and not (await ivr.call("1", "2")).notice


async def test_what_runs_goes_on_while_the_database_is_away() -> None:
    ivr = Ivr()
    await ivr.load()
    await ivr.call("1")
    ivr.store.away = True
    ivr.clock.advance(60)
    assert (await ivr.call("1", "1", call_id="pbx:1")).done
    assert not await ivr.recorder.write()
    ivr.store.away = False
    stats = await ivr.stats()
    assert (stats.sessions, stats.completed) == (2, 1)


async def test_a_database_that_says_nothing_keeps_no_caller_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_module, "WORD_SECONDS", 0.02)
    ivr = Ivr()
    await ivr.load()
    await ivr.call("1")
    ivr.store.silent = True
    ivr.clock.advance(60)
    asked = ivr.store.asked
    async with asyncio.timeout(10):
        for _ in range(3):
            assert (await ivr.sessions.step(pb.StepMenuRequest(menu="menus/hotline"))).version == 1
    assert ivr.store.asked == asked + 1, "the others of the same second do not wait for it again"
    # What was not in service before is not now.
    ivr.store.silent = False
    await ivr.handlers.create(pb.CreateMenuRequest(menu_id="draft", menu=hotline()), "ops")
    await refused(ivr.call(menu="menus/draft"))
    ivr.store.away = True
    ivr.clock.advance(60)
    assert isinstance(await refused(ivr.call(menu="menus/draft")), MenuNotPublished)


async def test_records_that_wait_are_bounded() -> None:
    ivr = Ivr()
    await ivr.load()
    await ivr.call(caller_number="")
    ivr.store.away = True
    for _ in range(30):
        assert (await ivr.call("1", "1")).done
    ivr.store.away = False
    assert (await ivr.stats()).sessions == 20


async def test_a_later_step_is_kept_though_an_earlier_one_is_written_at_the_same_moment() -> None:
    """By another router, between the look for the session and its insert."""

    class Raced:
        def __init__(self) -> None:
            self.written: list[Any] = []

        async def bulk_write(self, writes: list[Any], *, ordered: bool) -> None:
            self.written.append(writes)
            if len(self.written) == 1:
                raise BulkWriteError({"writeErrors": [{"index": 1, "code": 11_000}]})

    sessions = Raced()
    rows = [(records.Record.of(walk(begun(id=id), "1")), b"") for id in ("a", "b")]
    await MongoMenus({"menu_sessions": sessions}).record(rows, NOW)  # type: ignore[arg-type]
    first, again = sessions.written
    assert again == [UpdateOne(first[1]._filter, first[1]._doc)]
    assert (first[1]._filter, first[1]._upsert) == ({"_id": "b", "step": {"$lt": 2}}, True)


async def test_what_a_caller_does_is_forgotten_when_the_caller_stays_away() -> None:
    """With each use and each short cut its time begins anew; the database removes it."""

    class Written:
        def __init__(self) -> None:
            self.values: list[dict[str, Any]] = []

        async def bulk_write(self, writes: list[UpdateOne], *, ordered: bool) -> None:
            self.values += [each._doc[0]["$set"] for each in writes]

        async def find_one(self, *_: Any) -> None:
            return None

        async def update_one(self, _: Any, change: list[dict[str, Any]], *, upsert: bool) -> None:
            self.values.append(change[0]["$set"])

    class Sessions:
        async def bulk_write(self, writes: list[UpdateOne], *, ordered: bool) -> None:
            pass

    callers = Written()
    store = MongoMenus({"menu_sessions": Sessions(), "menu_callers": callers})  # type: ignore[arg-type]
    used = replace(records.Record.of(walk(begun(id="a"), "1")), leaf="pay", number="+8613800138000")
    before = datetime.now(UTC)
    await store.record([(used, b"")], NOW)
    await store.set_shortcut(
        Shortcut(menu="hotline", number=used.number, key="7", node="pay", source=1, at_ms=1)
    )
    assert len(callers.values) == 2
    for values in callers.values:
        assert before <= values["used"] <= datetime.now(UTC)
    assert {"fields": ["used"], "expireAfterSeconds": CALLER_SECONDS} in MenuCallerDocument._meta["indexes"]


async def test_versions_are_loaded_published_and_tried() -> None:
    ivr = Ivr()
    uuid = "6f1c1c5e-5c0f-4c5b-9a57-0d2f0f4f7a11"
    request = pb.CreateMenuRequest(menu_id="hotline", menu=hotline(), request_id=uuid)
    assert [(await ivr.handlers.create(request, "ops")).version for _ in range(2)] == [1, 1]
    request.menu.note = "another"
    assert isinstance(await refused(ivr.handlers.create(request, "ops")), RequestIdReused)
    only_checked = pb.CreateMenuRequest(menu_id="hotline", menu=hotline(), validate_only=True)
    assert (await ivr.handlers.create(only_checked, "ops")).version == 0
    error = await refused(
        ivr.handlers.publish(pb.PublishMenuRequest(name="menus/hotline", version=1, share=0.5))
    )
    assert error.details.field_violations[0].field == "share"
    await ivr.handlers.publish(pb.PublishMenuRequest(name="menus/hotline", version=1))
    second = await ivr.load(share=0.4)
    menu = await ivr.handlers.get("menus/hotline")
    assert (menu.version, menu.published, menu.trial_version, menu.trial_share) == (1, True, second, 0.4)
    numbers = [f"+86138{n:08d}" for n in range(300)]
    met = [(await ivr.call(caller_number=number)).version for number in numbers]
    assert 80 < met.count(second) < 160
    assert met == [(await ivr.call(caller_number=number)).version for number in numbers]
    stale = pb.PublishMenuRequest(name="menus/hotline", version=second, etag="v1")
    assert isinstance(await refused(ivr.handlers.publish(stale)), EtagMismatch)
    told = [event.message(events.MenuPublished) for event in ivr.store.events]
    assert [(t.version, t.previous_version, t.trial_version) for t in told] == [(1, 0, 0), (1, 1, second)]
    rows = await ivr.handlers.list(pb.ListMenusRequest())
    assert [(m.name, m.version, m.HasField("root")) for m in rows.menus] == [("menus/hotline", 1, False)]


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"menu": "hotline"}, "menu"),
    ({"menu": "menus/hotline@0"}, "menu"),
    ({"caller_number": "12"}, "caller_number"),
    ({"language": "not a language"}, "language"),
    ({"customer": "7"}, "customer"),
    ({"call_id": "a b"}, "call_id"),
    ({"digit": "1"}, "session"),
    ({"input": pb.MENU_INPUT_HANG_UP}, "session"),
]


@pytest.mark.parametrize(("fields", "field"), BAD_REQUESTS)
async def test_a_bad_first_step_names_its_field(fields: dict[str, Any], field: str) -> None:
    ivr = Ivr()
    await ivr.load()
    error = await refused(ivr.call(**fields))
    assert isinstance(error, InvalidArgument) and error.details.field_violations[0].field == field


async def test_a_bad_step_changes_nothing() -> None:
    ivr = Ivr()
    await ivr.load()
    first = await ivr.call()
    for fields, field in (({"digit": "12"}, "digit"), ({"digit": ""}, "digit"), ({"input": 77}, "input")):
        error = await refused(ivr.sessions.step(pb.StepMenuRequest(session=first.session, **fields)))
        assert error.details.field_violations[0].field == field
    for token in ("x", "é", first.session[:-4] + "AAAA", "A" * 40_000):
        error = await refused(ivr.sessions.step(pb.StepMenuRequest(session=token, digit="1")))
        assert isinstance(error, InvalidMenuSession)
    assert (await ivr.press(first, "1")).node.id == "bills"


async def test_short_cuts_are_set_by_phone_app_and_agent() -> None:
    ivr = Ivr()
    await ivr.load()
    there = await ivr.call("2", "1")
    by_phone = pb.SetShortcutRequest(session=there.session, shortcut=pb.Shortcut(digit="7"))
    made = await ivr.handlers.set_shortcut(by_phone)
    assert (made.node, made.caller_number, made.source) == ("diagnosis", ANN, pb.SHORTCUT_SOURCE_PHONE)
    by_agent = pb.Shortcut(
        caller_number="138 0013 8000",
        menu="menus/hotline",
        digit="1",
        node="pay",
        source=pb.SHORTCUT_SOURCE_AGENT,
    )
    await ivr.handlers.set_shortcut(pb.SetShortcutRequest(shortcut=by_agent))
    first = await ivr.call()
    assert (await ivr.press(first, "7")).notice == pb.MENU_NOTICE_SHORTCUT
    assert (await ivr.call("#", "1")).node.id == "pay" and (await ivr.call("1")).node.id == "bills"
    listed = await ivr.handlers.shortcuts(pb.ListShortcutsRequest(caller_number=ANN))
    assert [(s.digit, s.node) for s in listed.shortcuts] == [("1", "pay"), ("7", "diagnosis")]
    by_agent.node = ""
    await ivr.handlers.set_shortcut(pb.SetShortcutRequest(shortcut=by_agent))
    assert [
        s.digit for s in (await ivr.handlers.shortcuts(pb.ListShortcutsRequest(caller_number=ANN))).shortcuts
    ] == ["7"]
    for change, field in (
        ({"node": "moon"}, "node"),
        ({"digit": "0"}, "digit"),
        ({"caller_number": ""}, "caller_number"),
    ):
        bad = pb.Shortcut(caller_number=ANN, menu="menus/hotline", digit="1", node="pay")
        for name, value in change.items():
            setattr(bad, name, value)
        error = await refused(ivr.handlers.set_shortcut(pb.SetShortcutRequest(shortcut=bad)))
        assert error.details.field_violations[0].field == f"shortcut.{field}"
    withheld = await ivr.call("1", caller_number="")
    nameless = pb.SetShortcutRequest(session=withheld.session, shortcut=pb.Shortcut(digit="7"))
    assert isinstance(await refused(ivr.handlers.set_shortcut(nameless)), CallerUnknown)
    assert TooManyShortcuts(subject="x").reason == "TOO_MANY_SHORTCUTS"


async def test_a_habit_does_not_take_the_short_cut_that_it_comes_from() -> None:
    ivr = Ivr()
    await ivr.load()
    mine = pb.Shortcut(caller_number=ANN, menu="menus/hotline", digit="5", node="expert")
    await ivr.handlers.set_shortcut(pb.SetShortcutRequest(shortcut=mine))
    await ivr.call("2", "2")
    for _ in range(5):
        assert (await ivr.call("5")).node.id == "expert"
        await ivr.call("2", "2")
        await ivr.call("2", "2")
        await ivr.recorder.write()
        ivr.clock.advance(86_400)


async def test_a_caller_with_a_habit_gets_it_at_once() -> None:
    ivr = Ivr()
    await ivr.load()
    for _ in range(4):
        assert (await ivr.call("2", "1", "2")).node.id == "expert"
        await ivr.recorder.write()
        ivr.clock.advance(3 * 86_400)
    first = await ivr.call()
    assert [c.node for c in first.choices if c.personal] == ["expert"]
    key = next(c.digit for c in first.choices if c.personal)
    assert (await ivr.press(first, key)).node.id == "expert"
    assert (await ivr.call("2", "1", "1")).node.id == "reset", "every other way is as it was"
    assert not any(c.personal for c in (await ivr.call(caller_number=BEN)).choices)


async def test_a_call_back_is_chosen_by_time() -> None:
    ivr = Ivr()
    await ivr.load()
    times = await ivr.call("3")
    assert [c.prompt for c in times.choices][:2] == ["尽快回电请按1。", "今天15点请按2。"]
    done = await ivr.press(times, "2")
    assert done.callback.queue == "queues/service" and done.callback.number == ANN
    assert done.callback.not_before_time.ToDatetime() == datetime(2026, 3, 2, 7, 0)
    soon = await ivr.call("3", "1", caller_number="")
    assert soon.done and soon.callback.number == "" and not soon.callback.HasField("not_before_time")
    ivr.clock.advance(9 * 3600)
    assert (await ivr.call("3")).choices[0].prompt == "明天9点请按1。"


async def test_a_survey_is_told_once_with_what_was_answered() -> None:
    ivr = Ivr()
    await ivr.load(survey(), "after")
    done = await ivr.call("2", "2", menu="menus/after", call_id="pbx:1", customer="customers/7")
    assert done.done
    (event,) = [event for _, event in ivr.store.surveys.values()]
    told = event.message(events.SurveyAnswered)
    assert (event.subject, told.survey, told.call_id, told.caller_number) == (
        "customers/7",
        "menus/after",
        "pbx:1",
        ANN,
    )
    assert [(a.question, a.node, a.score) for a in told.answers] == [
        ("friendliness", "fair", 3),
        ("solved", "no", 1),
    ]
    assert (told.satisfaction, told.completed) == (2.0, True)
    await ivr.call("3", "!", menu="menus/after", call_id="pbx:2")
    await ivr.call("!", menu="menus/after", call_id="pbx:3")
    kept = {survey.call_id: survey for survey, _ in ivr.store.surveys.values()}
    assert set(kept) == {"pbx:1", "pbx:2"}, "nothing answered, nothing told"
    assert (kept["pbx:2"].satisfaction, kept["pbx:2"].completed) == (5.0, False)


async def test_a_promotion_never_outlasts_the_wait() -> None:
    ivr = Ivr()
    news = [
        pb.Promotion(
            id="long", offer="offers/long", prompts={"en": "x" * 300}, duration=Duration(seconds=40)
        ),
        pb.Promotion(id="short", offer="offers/short", prompts={"en": "half price", "zh": "半价"}),
    ]
    await ivr.load(hotline(promotions=news))

    async def chosen(seconds: int | None, **fields: Any) -> str:
        request = pb.ChoosePromotionRequest(menu="menus/hotline", language="zh", **fields)
        if seconds is not None:
            request.expected_wait.FromSeconds(seconds)
        return (await ivr.sessions.promotion(request)).promotion

    assert [await chosen(wait) for wait in (None, 0, 3, 10, 42, 44)] == ["", "", "", "short", "short", "long"]
    assert (
        await chosen(60, offers=["offers/short"]) == "short" and await chosen(60, heard=["long"]) == "short"
    )
    assert await chosen(60, heard=["long", "short"]) == ""
    error = await refused(chosen(-1))
    assert error.details.field_violations[0].field == "expected_wait"


async def test_figures_say_where_callers_give_up() -> None:
    ivr = Ivr()
    await ivr.load()
    await ivr.call("1", "1")
    await ivr.call("1", "!", caller_number=BEN)
    await ivr.call("1", "8", "", "!", caller_number=BEN, customer="customers/7")
    await ivr.call("0", caller_number=BEN)
    stats = await ivr.stats()
    assert (stats.sessions, stats.completed, stats.given_up, stats.fallbacks) == (4, 1, 2, 1)
    assert (stats.callers, stats.regular_callers, stats.presses_mean) == (2, 1, 2.0)
    bills = next(node for node in stats.nodes if node.node == "bills")
    assert (bills.accesses, bills.given_up, bills.wrong_keys, bills.timeouts) == (3, 2, 1, 1)
    assert bills.listening.ToMilliseconds() == 2_000
    assert next((list(p.nodes), p.sessions, p.given_up) for p in stats.paths) == (["welcome", "bills"], 2, 2)
    assert (await ivr.stats(caller_number=ANN)).sessions == 1
    assert (await ivr.stats(customer="customers/7")).sessions == 1
    assert (await ivr.stats(version=9)).sessions == 0


@pytest.mark.parametrize(
    ("interval", "field"),
    [
        ({"start_time": {"seconds": 2**63 - 1}}, "interval.start_time"),
        ({"end_time": {"seconds": 1, "nanos": -1}}, "interval.end_time"),
        ({"start_time": {"seconds": 20}, "end_time": {"seconds": 10}}, "interval"),
    ],
)
async def test_a_span_that_is_none_is_refused(interval: dict[str, Any], field: str) -> None:
    ivr = Ivr()
    await ivr.load()
    error = await refused(ivr.stats(interval=interval))
    assert error.details.field_violations[0].field == field


async def test_a_version_in_the_name_is_meant_or_refused() -> None:
    ivr = Ivr()
    await ivr.load()
    await ivr.call("1", "1")
    await ivr.load()
    await ivr.call("1", "1", caller_number=BEN)
    await ivr.recorder.write()
    ivr.clock.advance(1)
    first = await ivr.handlers.stats(pb.GetMenuStatsRequest(name="menus/hotline@1"))
    assert (first.sessions, (await ivr.stats()).sessions) == (1, 2)
    rebuilt = await ivr.handlers.rebuild(
        pb.RebuildMenuRequest(name="menus/hotline@1", validate_only=True), "ops"
    )
    assert rebuilt.menu.note.startswith("rebuilt from version 1")
    shortcut = pb.Shortcut(caller_number=ANN, menu="menus/hotline@1", digit="7", node="pay")
    for asked, field in (
        (ivr.handlers.stats(pb.GetMenuStatsRequest(name="menus/hotline@1", version=2)), "version"),
        (ivr.handlers.rebuild(pb.RebuildMenuRequest(name="menus/hotline@1", version=2), "ops"), "version"),
        (ivr.handlers.compare(pb.CompareMenusRequest(name="menus/hotline@1", version_a=1)), "name"),
        (ivr.handlers.set_shortcut(pb.SetShortcutRequest(shortcut=shortcut)), "shortcut.menu"),
        (ivr.handlers.shortcuts(pb.ListShortcutsRequest(caller_number=ANN, menu=shortcut.menu)), "menu"),
    ):
        assert (await refused(asked)).details.field_violations[0].field == field


async def test_a_trial_is_judged() -> None:
    ivr = Ivr()
    await ivr.load()
    better = hotline()
    better.root.children.add(id="quick", digit="5", prompts={"en": "quick", "zh": "快"}, answer="here")
    second = await ivr.load(better, share=0.5)
    for n in range(150):
        first = await ivr.call(caller_number=f"+86138{n:08d}")
        ivr.clock.advance(3)
        if first.version == second:
            await ivr.press(first, "5")
        else:
            there = await ivr.press(first, "1")
            await ivr.press(there, "!" if n % 3 == 0 else "1")
        await ivr.recorder.write()
    report = await ivr.handlers.compare(
        pb.CompareMenusRequest(name="menus/hotline", version_a=1, version_b=second)
    )
    assert report.a.sessions + report.b.sessions == 150 and report.b.given_up == 0 < report.a.given_up
    assert report.presses.value == -1.0 and report.presses.significant
    assert report.given_up.high < 0 and report.given_up.significant
    error = await refused(
        ivr.handlers.compare(pb.CompareMenusRequest(name="menus/hotline", version_a=1, version_b=1))
    )
    assert error.details.field_violations[0].field == "version_b"


async def test_a_menu_is_rebuilt_from_its_use() -> None:
    ivr = Ivr()
    await ivr.load()
    for _ in range(5):
        await ivr.call("2", "2", caller_number=BEN)
    await ivr.call("1", "1")
    await ivr.recorder.write()
    ivr.clock.advance(1)
    request = pb.RebuildMenuRequest(name="menus/hotline", changes_max=1, validate_only=True)
    shown = await ivr.handlers.rebuild(request, "ops")
    assert (shown.accesses, [c.node for c in shown.changes], shown.menu.version) == (6, ["order"], 0)
    assert shown.presses_after < shown.presses_before == 2.0 and shown.regulars_moved == 1.0
    request.validate_only = False
    made = await ivr.handlers.rebuild(request, "ops")
    assert made.menu.version == 2 and "version 1" in made.menu.note
    assert (await ivr.handlers.get("menus/hotline")).version == 1, "a draft runs when it is published"
    given = pb.RebuildMenuRequest(name="menus/hotline", accesses={"pay": 100}, keep_groups=True)
    assert (await ivr.handlers.rebuild(given, "ops")).accesses == 100
    for fields, field in (
        ({"changes_max": -1}, "changes_max"),
        ({"choices_max": 1}, "choices_max"),
        ({"listening_weight": float("nan")}, "listening_weight"),
        ({"stability": -1.0}, "stability"),
        ({"accesses": {"bills": 1}}, "accesses[bills]"),
        ({"accesses": {"pay": -1}}, "accesses[pay]"),
        ({"request_id": "x"}, "request_id"),
    ):
        error = await refused(
            ivr.handlers.rebuild(pb.RebuildMenuRequest(name="menus/hotline", **fields), "ops")
        )
        assert error.details.field_violations[0].field == field


async def test_who_goes_through_a_link_has_reached_it() -> None:
    """A section is as heavy as what is reached in it: weightless, its link would be put behind all others."""
    ivr = Ivr()
    await ivr.load()
    for _ in range(4):
        await ivr.call("2", "1", "2", caller_number=BEN)
    await ivr.call("1", "1")
    await ivr.recorder.write()
    ivr.clock.advance(1)
    shown = await ivr.handlers.rebuild(
        pb.RebuildMenuRequest(name="menus/hotline", changes_max=1, validate_only=True), "ops"
    )
    assert (shown.accesses, [c.node for c in shown.changes], shown.regulars_moved) == (5, ["slow"], 1.0)


async def test_a_survey_is_not_rebuilt() -> None:
    ivr = Ivr()
    await ivr.load(survey(), "after")
    error = await refused(ivr.handlers.rebuild(pb.RebuildMenuRequest(name="menus/after"), "ops"))
    assert error.reason == "REBUILD_IMPOSSIBLE" and "questions" in error.message
    assert await ivr.store.version("after", 2) is None


async def test_a_trial_stands_beside_what_is_in_service_whoever_publishes_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ivr = Ivr()
    await ivr.load()
    for _ in range(2):
        await ivr.handlers.create(pb.CreateMenuRequest(menu_id="hotline", menu=hotline()), "ops")
    publish, others = MemoryMenus.publish, [2]

    async def late(store: MemoryMenus, wanted: Published, *more: Any) -> Published:
        while others:
            await ivr.handlers.publish(pb.PublishMenuRequest(name="menus/hotline", version=others.pop()))
        return await publish(store, wanted, *more)

    monkeypatch.setattr(MemoryMenus, "publish", late)
    trial = pb.PublishMenuRequest(name="menus/hotline", version=3, share=0.2)
    shown = await ivr.handlers.publish(trial)
    assert (shown.trial_version, shown.trial_share) == (3, 0.2)
    assert (await ivr.handlers.get("menus/hotline")).version == 2
    told = ivr.store.events[-1].message(events.MenuPublished)
    assert (told.version, told.previous_version, told.trial_version) == (2, 2, 3)


def test_intervals_of_differences() -> None:
    same = records.mean_difference((60.0, 130.0, 30), (60.0, 130.0, 30))
    assert same.value == 0 and same.low == pytest.approx(-same.high) and not same.significant
    assert records.mean_difference((1.0, 1.0, 1), (2.0, 4.0, 1)) == records.Difference()
    clear = records.share_difference(50, 100, 10, 100)
    assert clear.value == pytest.approx(-0.4) and clear.significant
    assert clear.high == pytest.approx(-0.4 + 1.96 * (0.25 / 100 + 0.09 / 100) ** 0.5, abs=1e-3)
    assert records.share_difference(0, 0, 1, 1) == records.Difference()


async def test_a_large_tree_is_rebuilt_in_another_process() -> None:
    """Its outcome is that of this one; one at a time; what cannot be done is said."""
    menu = convert.show_menu(HOTLINE.menu).SerializeToString()
    wanted: dict[str, Any] = {
        "keep_groups": False,
        "choices_max": 9,
        "changes_max": 0,
        "listening_weight": 0.0,
        "stability": 0.0,
    }
    job = apart.Job(menu=menu, id="hotline", accesses={"pay": 9, "order": 4}, regulars={}, **wanted)
    many = apart.LEAVES_HERE_MAX + 1
    running = asyncio.create_task(apart.answer(job, many))
    await asyncio.sleep(0)
    assert (await refused(apart.answer(job, 1))).reason == "RESOURCE_EXHAUSTED"
    assert await running == apart.carry_out(job)
    pinned = hotline()
    for node in pinned.root.children:
        node.pinned = True
    full = convert.show_menu(index(pinned).menu).SerializeToString()
    impossible = apart.Job(menu=full, id="hotline", accesses={}, regulars={}, **{**wanted, "choices_max": 3})
    error = await refused(apart.answer(impossible, 1))
    assert error.reason == "REBUILD_IMPOSSIBLE" and "'welcome' has 4 pinned choices" in error.message
