"""Use cases of IVRs: steps of a session, what is told while waiting."""

from __future__ import annotations

import asyncio
import zoneinfo
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, tzinfo

from google.protobuf.timestamp_pb2 import Timestamp
from pymongo.errors import PyMongoError

from callmesh.routing.v1 import menu_events_pb2 as events
from callmesh.routing.v1 import menus_pb2 as pb
from chassis import logs
from chassis.bus import Event
from chassis.clock import Clock
from chassis.errors import InvalidArgument
from chassis.ids import check_id, new_id, parse_name, resource_name, stable_id
from routing.announcements import announcement
from routing.convert import duration, span_ms, timestamp
from routing.geo.numbers import parse_number
from routing.menus import convert, engine, predict
from routing.menus.engine import Choice, Ended, Input, Level, Outcome, State, Step
from routing.menus.model import KEYS, Act, Index, Kind
from routing.menus.recorder import Recorder
from routing.menus.running import Running, in_trial
from routing.menus.store import CallerFacts, MenuStore, Survey
from routing.menus.tokens import InvalidMenuSession, MenuSessionEnded, SessionTokens, body_of, state_of

#: A session to resume is looked for at most this long, real seconds.
RESUME_SECONDS = 1.0
#: Sessions of one call in one menu that are told apart by its id.
SESSIONS_MAX = 10
HEARD_MAX, OFFERS_MAX = 50, 20
WAIT_MS_MAX = 86_400_000

log = logs.get_logger(__name__)


def caller_number(field: str, text: str) -> str:
    """A number in E.164; "" for a withheld one. Raises InvalidArgument."""
    return parse_number(text, field=field, accept_unassigned=True).e164 if text else ""


class Sessions:
    """Sessions of callers; any router serves any step."""

    def __init__(
        self,
        *,
        store: MenuStore,
        running: Running,
        recorder: Recorder,
        tokens: SessionTokens,
        clock: Clock,
        zone: Callable[[], str],
        caller_seconds: float,
    ) -> None:
        """`zone` names the time zone that call-backs are offered in, "" for UTC; what is known of a caller
        is waited for `caller_seconds` (real) at most.
        """
        self._store = store
        self._running = running
        self._recorder = recorder
        self._tokens = tokens
        self._clock = clock
        self._zone = zone
        self._caller_seconds = caller_seconds

    # --- steps ---

    async def step(self, request: pb.StepMenuRequest) -> pb.StepMenuResponse:
        """One step. Raises InvalidArgument, MenuNotFound, InvalidMenuSession, MenuSessionEnded."""
        now_ms = self._clock.now_ms()
        if not request.session:
            return await self._begin(request, now_ms)
        state = self._tokens.read(request.session, now_ms)
        did = convert.INPUTS.get(request.input)
        if did is None:
            raise InvalidArgument(field="input", why="is not one that this release knows")
        if did is Input.KEY and request.digit not in KEYS:
            raise InvalidArgument(field="digit", why="must be one of 0-9, * and #")
        if request.language:
            state = replace(state, language=convert.language("language", request.language))
        index = await self._running.index(state.menu, state.version)
        times = predict.callback_times(self._local(now_ms))
        try:
            came = engine.step(index, state, did, request.digit, now_ms, times)
        except Ended:
            raise MenuSessionEnded(subject="the session", why=state.outcome.value) from None
        return await self._answer(index, came, now_ms)

    async def _begin(self, request: pb.StepMenuRequest, now_ms: int) -> pb.StepMenuResponse:
        menu, asked = convert.named("menu", request.menu)
        if request.digit or request.input not in (pb.MENU_INPUT_UNSPECIFIED, pb.MENU_INPUT_KEY):
            raise InvalidArgument(field="session", why="must be set for every step but the first")
        number = caller_number("caller_number", request.caller_number)
        language = convert.language("language", request.language)
        customer = request.customer and resource_name(
            "customers", parse_name("customer", "customers", request.customer)
        )
        call_id = request.call_id and check_id("call_id", request.call_id)
        if not call_id:
            return await self._first(
                self._blank(menu, new_id(), now_ms, number, language, customer, ""), asked
            )
        id = stable_id("menu-session", menu, call_id)
        for _ in range(SESSIONS_MAX):
            known = await self._known(id, now_ms)
            if known is None:
                break
            if known.outcome is Outcome.OPEN:
                return await self._resumed(known)
            # The call comes into the menu again.
            id = stable_id(id, "again")
        else:
            # Too often to be looked for: a session of its own, that cannot be resumed.
            id = new_id()
        return await self._first(self._blank(menu, id, now_ms, number, language, customer, call_id), asked)

    @staticmethod
    def _blank(
        menu: str, id: str, now_ms: int, number: str, language: str, customer: str, call_id: str
    ) -> State:
        return State(
            id=id,
            menu=menu,
            version=0,
            began_ms=now_ms,
            last_ms=now_ms,
            number=number,
            language=language,
            customer=customer,
            call_id=call_id,
        )

    async def _known(self, id: str, now_ms: int) -> State | None:
        """A session that goes on, or is over; None for none, and for one that is too old to go on."""
        body = self._recorder.find(id) or await self._stored(id)
        if body is None:
            return None
        try:
            state = state_of(body)
        except InvalidMenuSession:
            return None
        left = state.outcome is Outcome.OPEN and now_ms - state.last_ms > self._tokens.life_span_ms
        return replace(state, outcome=Outcome.GAVE_UP) if left else state

    async def _stored(self, id: str) -> bytes | None:
        """A session as it was written down; None when that cannot be found out: the caller begins again."""
        try:
            async with asyncio.timeout(RESUME_SECONDS):
                return await self._store.session(id)
        except (TimeoutError, PyMongoError):
            log.info("menus.resume_skipped")
            return None

    async def _resumed(self, state: State) -> pb.StepMenuResponse:
        index = await self._running.index(state.menu, state.version)
        answer = await self._answer(index, Step(state=state), state.last_ms)
        answer.resumed = True
        return answer

    async def _first(self, blank: State, asked: int) -> pb.StepMenuResponse:
        version = asked or await self._version_for(blank)
        index = await self._running.index(blank.menu, version)
        facts = await self._facts(blank, index)
        language = blank.language or index.menu.root.prompts[0][0]
        wanted = predict.wants(index, facts.uses, facts.has_open_ticket, blank.began_ms)
        spoken = engine.spoken_language(index, language)
        survey = index.menu.kind is Kind.SURVEY
        own = () if survey else engine.own_of(index, ((each.key, each.node) for each in facts.own))
        keys = [key for key, _ in own]
        state = replace(
            blank,
            version=version,
            language=language,
            own=own,
            personal=None if survey else predict.personal_level(index, wanted, spoken, keys),
        )
        return await self._answer(index, Step(state=engine.begin(index, state)), state.began_ms)

    async def _version_for(self, state: State) -> int:
        published = await self._running.published(state.menu)
        return published.trial if in_trial(published, state.number or state.id) else published.version

    async def _facts(self, state: State, index: Index) -> CallerFacts:
        """What is known of the caller; nothing when that takes too long."""
        if not state.number or index.menu.kind is Kind.SURVEY:
            return CallerFacts()
        try:
            async with asyncio.timeout(self._caller_seconds):
                return await self._store.caller(state.menu, state.number, tickets=bool(index.about_tickets))
        except (TimeoutError, PyMongoError):
            log.info("menus.caller_skipped")
            return CallerFacts()

    def _local(self, now_ms: int) -> datetime:
        zone = self._zone()
        known: tzinfo = zoneinfo.ZoneInfo(zone) if zone else UTC
        return datetime.fromtimestamp(now_ms / 1000, known)

    async def _answer(self, index: Index, came: Step, now_ms: int) -> pb.StepMenuResponse:
        state = came.state
        over = state.outcome is not Outcome.OPEN
        if over and index.menu.kind is Kind.SURVEY:
            await self._keep_survey(index, state)
        told = [] if over else self._told(index, state, now_ms)
        farewell = announcement(index.menu.farewells, state.language) if over else ""
        body = body_of(state)
        self._recorder.note(state, body)
        answer = convert.show_step(
            index,
            came,
            told,
            engine.prompt(index, state, told),
            farewell,
            self._tokens.seal(body),
            state.last_ms + self._tokens.life_span_ms,
        )
        node = index.nodes[state.node]
        if state.outcome is Outcome.DONE and node.act is Act.CALLBACK:
            back = pb.MenuCallback(queue=resource_name("queues", node.target), number=state.number)
            if state.chosen_ms:
                back.not_before_time.CopyFrom(timestamp(state.chosen_ms) or Timestamp())
            answer.callback.CopyFrom(back)
        return answer

    def _told(self, index: Index, state: State, now_ms: int) -> list[Choice]:
        told = engine.choices(index, state)
        if state.level is not Level.TIMES:
            return told
        now, spoken = self._local(now_ms), engine.spoken_language(index, state.language)
        words = [predict.say_time(at_ms, now, spoken) for at_ms in state.times]
        return [engine.worded(choice, said, spoken) for choice, said in zip(told, words, strict=True)]

    async def _keep_survey(self, index: Index, state: State) -> None:
        """Keeps what was answered before the caller is told that it is: raises, and the step is repeated."""
        answers = engine.answers(index, state)
        if not answers:
            return
        scores = [score for _, _, score in answers if score]
        satisfaction = sum(scores) / len(scores) if scores else 0.0
        completed = state.outcome is Outcome.DONE
        told = events.SurveyAnswered(
            session=state.id,
            survey=resource_name("menus", state.menu),
            version=state.version,
            call_id=state.call_id,
            caller_number=state.number,
            customer=state.customer,
            satisfaction=satisfaction,
            completed=completed,
            event_time=timestamp(state.last_ms),
        )
        for question, node, score in answers:
            told.answers.add(question=question, node=node, score=score)
        now = self._clock.now()
        subject = state.customer or resource_name("menus", state.menu)
        event = Event.of(told, source="routing", subject=subject, time=now, id=stable_id("survey", state.id))
        survey = Survey(
            session=state.id,
            menu=state.menu,
            call_id=state.call_id,
            satisfaction=satisfaction,
            completed=completed,
        )
        await self._store.keep_survey(survey, event, now)

    # --- while waiting ---

    async def promotion(self, request: pb.ChoosePromotionRequest) -> pb.ChoosePromotionResponse:
        """What may be told to a caller who waits; empty for nothing. Raises InvalidArgument, MenuNotFound."""
        menu, asked = convert.named("menu", request.menu)
        language = convert.language("language", request.language)
        for field, given, most in (
            ("heard", request.heard, HEARD_MAX),
            ("offers", request.offers, OFFERS_MAX),
        ):
            if len(given) > most:
                raise InvalidArgument(field=field, why=f"must have at most {most} entries")
        wait = None
        if request.HasField("expected_wait"):
            wait = span_ms("expected_wait", request.expected_wait, maximum_ms=WAIT_MS_MAX) / 1000
        version = asked or (await self._running.published(menu)).version
        index = await self._running.index(menu, version)
        chosen = predict.choose_promotion(
            index.menu, wait, language, set(request.heard), list(request.offers)
        )
        if chosen is None:
            return pb.ChoosePromotionResponse()
        seconds = predict.promotion_seconds(chosen, language)
        return pb.ChoosePromotionResponse(
            promotion=chosen.id,
            prompt=announcement(chosen.prompts, language),
            duration=duration(round(seconds * 1000)),
            offer=chosen.offer,
        )
