"""Campaigns as messages: what is wrong with them, what the runner makes of them, and the use cases that the
servicer and the worker share. Loads no grpc.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from google.protobuf.json_format import ParseDict

from callmesh.marketing.v1 import campaigns_pb2, events_pb2
from chassis.bus import Event
from chassis.clock import Clock
from chassis.errors import EtagMismatch, FailedPrecondition, InvalidArgument, NotFound
from chassis.metrics import gauge
from marketing import convert, sales
from marketing.campaign_engine import (
    TRANSITIONS,
    Arm,
    CampaignState,
    Cap,
    Courtesy,
    Quiet,
    StepChannel,
    endangered,
    placeholders,
    projected,
    winner,
)
from marketing.campaign_model import Campaign, Phase, Step, Variant
from marketing.campaign_store import Answers, CampaignStore
from marketing.engine import (
    LABEL_CHARACTERS_MAX,
    Problem,
    audience_given,
    audience_problems,
    is_language,
)
from marketing.kinds import CAMPAIGNS, CONTACT_POLICY, SEGMENTS
from marketing.model import Offer, Profile, Text
from marketing.resources import (
    Desk,
    Resource,
    enum_problems,
    money_problems,
    name_problems,
    span_problems,
    text_problems,
)
from marketing.rules import ANY, FUNCTIONS, NOT_IN_TOUCH, PHASE_FUNCTIONS, Key, Kind, rule_problems
from marketing.segments import TRIGGERS_BY_NAME
from marketing.senders import Senders
from marketing.shelf import Row, Shelves
from marketing.store import Store

C = campaigns_pb2
#: Bounds.
PHASES_MAX = 8
STEPS_MAX = 16
VARIANTS_MAX = 10
GOALS_MAX = 1_000
#: Longest span of a frequency cap; touches are kept for longer (`MARKETING_TOUCHES_DAYS`).
CAP_DAYS_MAX = 365
#: The one contact policy.
POLICY = "contactPolicy"
#: What a message may ask for.
PLACEHOLDERS = frozenset({"display_name", "offer_title", "price"})
#: Answers that count towards a metric.
COUNTED: Mapping[str, tuple[str, ...]] = {
    "REACHED": ("INTERESTED", "REGISTERED", "BOUGHT", "DECLINED", "OPTED_OUT"),
    "INTERESTED": ("INTERESTED", "REGISTERED", "BOUGHT"),
    "REGISTERED": ("REGISTERED", "BOUGHT"),
    "BOUGHT": ("BOUGHT",),
}
#: What `response` may be in a rule, beside nothing.
ANSWERS = tuple(sorted({answer.lower() for answers in COUNTED.values() for answer in answers}))
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class CampaignStateError(FailedPrecondition):
    """{subject}: {why}."""

    reason = "CAMPAIGN_STATE"


class CampaignNotStartable(FailedPrecondition):
    """{subject} cannot be started: {why}."""

    reason = "CAMPAIGN_NOT_STARTABLE"


class SegmentUsed(FailedPrecondition):
    """{subject}: {why}."""

    reason = "SEGMENT_USED"


def _named(wrapper: Any, prefix: str, number: int) -> str:
    return str(wrapper.Name(number)).removeprefix(f"{prefix}_")


def _rule(
    field: str,
    text: str,
    functions: Mapping[str, tuple[Kind, str]] = FUNCTIONS,
    given: Mapping[Key, Sequence[Any]] = NOT_IN_TOUCH,
    stored: Collection[str] = (),
) -> list[Problem]:
    if not text:
        return []
    found = rule_problems(text, functions, given, stored)
    return [(field, problem.told) for problem in found if not problem.harmless]


def _ids(field: str, ids: Sequence[str]) -> list[Problem]:
    found = [
        (field, f"needs ids of lower-case letters, digits, _ and -: {id!r}")
        for id in ids
        if not _ID.fullmatch(id)
    ]
    if len(set(ids)) < len(ids):
        found.append((field, "an id occurs twice"))
    return found


def campaign_problems(message: Any, currency: str, stored: Any = None) -> list[Problem]:
    """Everything wrong with a campaign; `stored` is the one before the change."""
    found = text_problems("display_name", message.display_name, 200, required=True)
    if not message.segment:
        found.append(("segment", "must be set"))
    found += name_problems("segment", "segments", message.segment)
    found += name_problems("offer", "offers", message.offer)
    found += money_problems("", message, "fixed_cost", currency)
    if not 1 <= len(message.phases) <= PHASES_MAX:
        found.append(("phases", f"needs 1 to {PHASES_MAX} phases"))
    found += _ids("phases", [phase.phase_id for phase in message.phases])
    known = {phase.phase_id for phase in message.phases}
    rules = frozenset() if stored is None else {phase.entry_rule for phase in stored.phases}
    for at, phase in enumerate(message.phases[:PHASES_MAX]):
        found += _phase_problems(f"phases[{at}]", phase, known, rules, currency)
    if len(message.goals) > GOALS_MAX:
        found.append(("goals", f"at most {GOALS_MAX} are allowed"))
    for at, goal in enumerate(message.goals[:GOALS_MAX]):
        if goal.phase_id not in known:
            found.append((f"goals[{at}].phase_id", "is not a phase of this campaign"))
        if not goal.metric or goal.target < 1:
            found.append((f"goals[{at}]", "needs a metric, and a target of at least 1"))
        if goal.value_class not in ("", *"ABCDEF"):
            found.append((f"goals[{at}].value_class", 'must be "A" to "F"'))
    return found


def _phase_problems(
    at: str, phase: Any, known: set[str], rules: Collection[str], currency: str
) -> list[Problem]:
    # Nobody has answered in a phase that there is not.
    answers = {("response", ANY): ("",), **{("response", id): ("", *ANSWERS) for id in known}}
    given = {**NOT_IN_TOUCH, **answers}
    found = _rule(f"{at}.entry_rule", phase.entry_rule, PHASE_FUNCTIONS, given, rules)
    found += name_problems(f"{at}.survey", "surveys", phase.survey)
    if not phase.kind:
        found.append((f"{at}.kind", "must be set"))
    period = phase.period
    if not (period.HasField("start_time") and period.HasField("end_time")):
        found.append((f"{at}.period", "needs both ends"))
    elif period.end_time.ToNanoseconds() <= period.start_time.ToNanoseconds():
        found.append((f"{at}.period.end_time", "must be after start_time"))
    if not 1 <= len(phase.steps) <= STEPS_MAX:
        found.append((f"{at}.steps", f"needs 1 to {STEPS_MAX} steps"))
    found += _ids(f"{at}.steps", [step.step_id for step in phase.steps])
    for number, step in enumerate(phase.steps[:STEPS_MAX]):
        found += _step_problems(f"{at}.steps[{number}]", step, currency)
    return found


def _step_problems(at: str, step: Any, currency: str) -> list[Problem]:
    found: list[Problem] = []
    if not step.channel:
        found.append((f"{at}.channel", "must be set"))
    found += span_problems(f"{at}.wait", step.wait)
    found += [(f"{at}.{field}", why) for field, why in money_problems("", step, "unit_cost", currency)]
    if not 1 <= len(step.variants) <= VARIANTS_MAX:
        found.append((f"{at}.variants", f"needs 1 to {VARIANTS_MAX} variants"))
    found += _ids(f"{at}.variants", [variant.variant_id for variant in step.variants])
    for number, variant in enumerate(step.variants[:VARIANTS_MAX]):
        where = f"{at}.variants[{number}]"
        if not variant.bodies:
            found.append((f"{where}.bodies", "must not be empty"))
        if not 0 <= variant.weight <= 1_000:
            found.append((f"{where}.weight", "must be 0 to 1,000"))
        for field in ("subjects", "bodies"):
            for place, text in enumerate(getattr(variant, field)):
                found += _words_problems(f"{where}.{field}[{place}]", text)
    rule = step.stopping_rule
    if step.HasField("stopping_rule"):
        if not rule.metric:
            found.append((f"{at}.stopping_rule.metric", "must be set"))
        if rule.error_probability_max and not 0.001 <= rule.error_probability_max <= 0.2:
            found.append((f"{at}.stopping_rule.error_probability_max", "must be 0.001 to 0.2, or 0"))
        if rule.contacts_min < 0 or rule.contacts_max < 0:
            found.append((f"{at}.stopping_rule", "counts must not be negative"))
    return found


def _words_problems(at: str, words: Any) -> list[Problem]:
    """What is wrong with a subject or a body."""
    found = text_problems(f"{at}.text", words.text, 2_000, required=True)
    if not is_language(words.language):
        found.append((f"{at}.language", "must be two or three lower-case letters"))
    if unknown := placeholders(words.text) - PLACEHOLDERS:
        found.append((f"{at}.text", f"there is no {{{{{min(unknown)}}}}}"))
    return found + text_problems(f"{at}.audience", getattr(words, "audience", ""), LABEL_CHARACTERS_MAX)


def segment_problems(message: Any, stored: Any = None) -> list[Problem]:
    """Everything wrong with a segment; `stored` is the one before the change."""
    found = text_problems("display_name", message.display_name, 200, required=True)
    audience = convert.audience_from_proto("audience", message.audience, found)
    found += audience_problems(audience)
    if audience.channels:
        found.append(("audience.channels", "can never match: nobody in a segment is in touch just now"))
    if len(message.trigger_event_types) > 20:
        found.append(("trigger_event_types", "at most 20 are allowed"))
    for at, name in enumerate(message.trigger_event_types[:20]):
        if name not in TRIGGERS_BY_NAME:
            found.append(
                (f"trigger_event_types[{at}]", f"must be one of {', '.join(sorted(TRIGGERS_BY_NAME))}")
            )
    given = {**NOT_IN_TOUCH, **audience_given(audience)}
    return found + _rule("rule", message.rule, FUNCTIONS, given, () if stored is None else (stored.rule,))


_halted = gauge("callmesh_outbound_halted", "1 while the kill switch for outbound is on.", ("service",))
#: Longest reason of a halt, characters.
REASON_CHARACTERS_MAX = 500


def note_halted(halted: bool) -> None:
    """Tells the metrics whether outbound is stopped, as whoever acts on it has just read."""
    _halted.labels("marketing").set(float(halted))


def policy_problems(message: Any) -> list[Problem]:
    """Everything wrong with a contact policy."""
    found = enum_problems(message)
    if len(message.frequency_caps) > 20:
        found.append(("frequency_caps", "at most 20 are allowed"))
    for at, cap in enumerate(message.frequency_caps[:20]):
        if not 0 <= cap.touches_max <= 1_000 or not 1 <= cap.days <= CAP_DAYS_MAX:
            found.append((f"frequency_caps[{at}]", "needs 0 to 1,000 touches in 1 to 365 days"))
    found += quiet_problems(message.quiet_hours, 20)
    if len(message.halted_reason) > REASON_CHARACTERS_MAX:
        found.append(("halted_reason", f"at most {REASON_CHARACTERS_MAX} characters"))
    return found


def quiet_problems(spans: Sequence[Any], most: int) -> list[Problem]:
    """Everything wrong with quiet hours, of which there are so many at most."""
    found: list[Problem] = []
    if len(spans) > most:
        found.append(("quiet_hours", f"at most {most} are allowed"))
    for at, span in enumerate(spans[:most]):
        if not (0 <= span.start_minute <= 1439 and 0 <= span.end_minute <= 1439):
            found.append((f"quiet_hours[{at}]", "minutes must be 0 to 1439"))
        elif span.start_minute == span.end_minute:
            # Neither all day nor never: who wrote it may have meant either.
            found.append((f"quiet_hours[{at}].end_minute", "must not be start_minute"))
    return found


def quiet_of(spans: Sequence[Any]) -> tuple[Quiet, ...]:
    """Quiet hours as the engine's values."""
    names = campaigns_pb2.StepChannel
    return tuple(
        Quiet(
            start_minute=span.start_minute,
            end_minute=span.end_minute,
            channels=frozenset(
                StepChannel(names.Name(number).removeprefix("STEP_CHANNEL_")) for number in span.channels
            ),
        )
        for span in spans
    )


def courtesy_of(message: Any) -> Courtesy:
    """A sound policy as the engine's value."""
    names = C.StepChannel
    return Courtesy(
        caps=tuple(
            Cap(
                channel=StepChannel(_named(names, "STEP_CHANNEL", cap.channel)) if cap.channel else None,
                touches_max=cap.touches_max,
                days=cap.days,
            )
            for cap in message.frequency_caps
        ),
        quiet=quiet_of(message.quiet_hours),
        holidays_quiet=message.holidays_quiet,
        halted=message.halted,
    )


def _channel_number(channel: StepChannel | None) -> Any:
    return C.StepChannel.Value(f"STEP_CHANNEL_{channel.value}") if channel else 0


def default_policy() -> Any:
    """The policy in force until one is set."""
    courtesy = Courtesy()
    return C.ContactPolicy(
        name=POLICY,
        frequency_caps=[
            C.FrequencyCap(
                channel=_channel_number(cap.channel),
                touches_max=cap.touches_max,
                days=cap.days,
            )
            for cap in courtesy.caps
        ],
        quiet_hours=[
            C.QuietHours(start_minute=span.start_minute, end_minute=span.end_minute)
            for span in courtesy.quiet
        ],
    )


def campaign_of(
    message: Any, segment: Any, winners: Mapping[str, str], promoted: Offer | None = None
) -> Campaign:
    """A sound campaign with its segment and its offer as the runner's value; `winners` by "phase/step"."""

    def texts(items: Any) -> tuple[Text, ...]:
        return tuple(Text(language=item.language, text=item.text) for item in items)

    def step(phase: Any, given: Any) -> Step:
        return Step(
            id=given.step_id,
            channel=StepChannel(_named(C.StepChannel, "STEP_CHANNEL", given.channel)),
            sender=given.sender,
            wait=given.wait.ToTimedelta(),
            variants=tuple(
                Variant(
                    id=variant.variant_id,
                    weight=variant.weight or 1,
                    subjects=texts(variant.subjects),
                    bodies=tuple(
                        (body.audience, Text(language=body.language, text=body.text))
                        for body in variant.bodies
                    ),
                )
                for variant in given.variants
            ),
            winner=winners.get(f"{phase.phase_id}/{given.step_id}", ""),
        )

    return Campaign(
        id=message.name.removeprefix("campaigns/"),
        state=CampaignState(_named(C.CampaignState, "CAMPAIGN_STATE", message.state)),
        audience=convert.audience_from_proto("audience", segment.audience, []),
        segment=message.segment.removeprefix("segments/") if segment.trigger_event_types else "",
        offer=message.offer,
        promoted=promoted,
        rule=segment.rule,
        phases=tuple(
            Phase(
                id=phase.phase_id,
                start=convert.moment(phase.period.start_time),
                end=convert.moment(phase.period.end_time),
                entry_rule=phase.entry_rule,
                steps=tuple(step(phase, given) for given in phase.steps),
            )
            for phase in message.phases
        ),
    )


class Campaigns:
    """Use cases shared by the servicer and the worker."""

    def __init__(self, shelves: Shelves, store: Store, clock: Clock, currency: str) -> None:
        self.shelves = shelves
        self.store = store
        self.clock = clock
        self.desk = Desk(
            Resource(
                service="CampaignService",
                field="campaign",
                kind=CAMPAIGNS,
                message=C.Campaign,
                problems=lambda message, stored: campaign_problems(message, currency, stored),
                keys=lambda m: {"state": m.state},
                fixed=frozenset({"state", "start_time"}),
            ),
            shelves,
            clock,
        )
        self.segments = Desk(
            Resource(
                service="CampaignService",
                field="segment",
                kind=SEGMENTS,
                message=C.Segment,
                problems=segment_problems,
                keys=lambda m: {"triggers": list(m.trigger_event_types)},
                fixed=frozenset({"member_count", "count_time"}),
            ),
            shelves,
            clock,
        )

    def courtesy(self) -> Courtesy:
        """The contact policy in force."""
        return courtesy_of(self.policy()[0])

    def policy(self) -> tuple[Any, int]:
        """(the contact policy in force, its version; 0 until one is set)."""
        try:
            row = self.shelves.get(CONTACT_POLICY, POLICY)
        except NotFound:
            return default_policy(), 0
        message = C.ContactPolicy()
        ParseDict(row.content["resource"], message, ignore_unknown_fields=True)
        message.name = POLICY
        return message, row.version

    def value(self, row: Row) -> Campaign:
        """A campaign as the runner needs it. The segment's NotFound."""
        message = self.desk.shown(row)
        segment = self.segments.shown(self.segments.row(message.segment, "segment"))
        return campaign_of(message, segment, row.content.get("winners") or {}, self.promoted(message))

    def promoted(self, message: Any) -> Offer | None:
        """The offer that a campaign promotes as it stands; None for none, or one that is gone."""
        if not message.offer:
            return None
        try:
            return self.store.offer(message.offer.removeprefix("offers/"))
        except NotFound:
            return None

    def running(self) -> list[Campaign]:
        """Campaigns that run; one whose segment is gone is left out."""
        return self._in_states(C.CAMPAIGN_STATE_RUNNING)

    def begun(self) -> tuple[list[Campaign], list[Campaign]]:
        """(campaigns that run, those that are paused), at one moment; without those whose segment is gone."""
        every = self._in_states(C.CAMPAIGN_STATE_RUNNING, C.CAMPAIGN_STATE_PAUSED)
        running = [one for one in every if one.state is CampaignState.RUNNING]
        return running, [one for one in every if one.state is CampaignState.PAUSED]

    def _in_states(self, *states: int) -> list[Campaign]:
        found = []
        for row in self.shelves.find(CAMPAIGNS, {"state": {"$in": list(states)}}, 1_000):
            try:
                found.append(self.value(row))
            except NotFound:
                continue
        return found

    def may_address(self, campaign: str) -> bool:
        """Whether a campaign runs at this moment, and nothing is halted."""
        try:
            row = self.shelves.get(CAMPAIGNS, campaign)
        except NotFound:
            return False
        return row.keys.get("state") == C.CAMPAIGN_STATE_RUNNING and not self.courtesy().halted

    def values(self, campaign: str, language: str) -> Mapping[str, str]:
        """What messages of a campaign are filled in with."""
        message = self.desk.shown(self.shelves.get(CAMPAIGNS, campaign))
        offer = self.promoted(message)
        return {"offer_title": offer.title(language), "price": offer.price.text()} if offer else {}

    def sold(self, answers: Answers, campaign: str, customer: str, agent: str) -> None:
        """Notes that somebody bought what a campaign promotes: a unit of it, at its worth now (sales.py).
        Nothing for a campaign that promotes nothing, or somebody who is not in it. OfferSoldOut,
        ClaimsPending.
        """
        try:
            offer = self.promoted(self.desk.shown(self.shelves.get(CAMPAIGNS, campaign)))
        except NotFound:
            return
        place = answers.place(campaign, customer)
        if offer is not None and place is not None:
            sales.sell(self.store, answers, offer, place, agent, self.clock.now())

    def go(self, request: Any, verb: str, check: Any = None) -> Any:
        """Applies a verb. CampaignStateError."""

        def change(message: Any) -> Sequence[Event]:
            before = CampaignState(_named(C.CampaignState, "CAMPAIGN_STATE", message.state))
            after = TRANSITIONS.get((before, verb))
            if after is None:
                raise CampaignStateError(subject=message.name, why=f"it is {before}")
            if check is not None:
                check(message)
            now = self.clock.now()
            message.state = C.CampaignState.Value(f"CAMPAIGN_STATE_{after.value}")
            if verb == "start":
                message.start_time.FromDatetime(now)
            moved = events_pb2.CampaignTransitioned(
                campaign=message.name,
                from_state=before.value,
                to_state=after.value,
                transition_time=convert.timestamp(now),
            )
            return [Event.of(moved, source=convert.SOURCE, subject=message.name, time=now)]

        return self.desk.move(request, change)

    def look_after(self, counting: CampaignStore, now: datetime) -> None:
        """Ends comparisons that are decided and campaigns that are over; warns of goals in danger."""
        for row in self.shelves.find(CAMPAIGNS, {"state": C.CAMPAIGN_STATE_RUNNING}, 1_000):
            message = self.desk.shown(row)
            if all(convert.moment(phase.period.end_time) <= now for phase in message.phases):
                self.go(C.StopCampaignRequest(name=message.name), "complete")
                continue
            winners = {**(row.content.get("winners") or {}), **self._won(row, message, counting)}
            warned = dict(row.content.get("warned") or {})
            events = self._warnings(message, counting, warned, now)
            if events or winners != (row.content.get("winners") or {}):
                try:
                    self.desk.save(row, message, events, winners=winners, warned=warned)
                except EtagMismatch:
                    continue  # somebody changed it meanwhile: the next look decides

    def _won(self, row: Row, message: Any, counting: CampaignStore) -> dict[str, str]:
        found = {}
        known = row.content.get("winners") or {}
        for phase in message.phases:
            for step in phase.steps:
                key = f"{phase.phase_id}/{step.step_id}"
                if len(step.variants) > 1 and step.HasField("stopping_rule") and key not in known:
                    won = experiment(message, phase.phase_id, step.step_id, counting)[1]
                    if won:
                        found[key] = won
        return found

    def _warnings(
        self, message: Any, counting: CampaignStore, warned: dict[str, str], now: datetime
    ) -> list[Event]:
        """One warning for each goal in danger and day, while its phase lasts; notes it in `warned`."""
        if not message.goals:
            return []
        over = {one.phase_id for one in message.phases if convert.moment(one.period.end_time) <= now}
        events = []
        for number, look in enumerate(self.funnel(message, counting).goals):
            day = f"{now:%Y-%m-%d}"
            goal = look.goal
            if not look.endangered or warned.get(str(number)) == day or goal.phase_id in over:
                continue
            warned[str(number)] = day
            told = events_pb2.CampaignGoalEndangered(
                campaign=message.name,
                phase=goal.phase_id,
                region=goal.region,
                value_class=goal.value_class,
                target=goal.target,
                projected=look.projected,
                create_time=convert.timestamp(now),
            )
            events.append(Event.of(told, source=convert.SOURCE, subject=message.name, time=now))
        return events

    def _follows_events(self, segment: str) -> bool:
        """Whether people may join a segment at any time; so they may one that is gone, for nobody knows."""
        try:
            row = self.segments.row(segment, "segment")
        except NotFound:
            return True
        return bool(row.keys.get("triggers"))

    def funnel(self, message: Any, counting: CampaignStore) -> Any:
        """How far a campaign has come."""
        now = self.clock.now()
        found = C.CampaignFunnel(campaign=message.name, read_time=convert.timestamp(now))
        id = message.name.removeprefix("campaigns/")
        closed = set()
        for phase in message.phases:
            _, done, counts = counting.run(id, phase.phase_id)
            if done and not phase.entry_rule and not self._follows_events(message.segment):
                closed.add(phase.phase_id)
            for number, raw in enumerate(counting.funnel(id, phase.phase_id)):
                row = C.FunnelRow(
                    phase_id=phase.phase_id,
                    region=raw["_id"].get("region") or "",
                    value_class=raw["_id"].get("value_class") or "",
                    entered_count=raw["entered"],
                    reached_count=raw["reached"],
                    interested_count=raw["interested"],
                    registered_count=raw["registered"],
                    bought_count=raw["bought"],
                    declined_count=raw["declined"],
                    interest_rate=raw["interested"] / raw["reached"] if raw["reached"] else 0.0,
                    registration_rate=raw["registered"] / raw["interested"] if raw["interested"] else 0.0,
                )
                if number == 0:
                    # Held back is counted for the phase as a whole: in its first row.
                    row.held_back.update({k: v for k, v in counts.items() if k.isupper()})
                found.rows.append(row)
        for goal in message.goals:
            found.goals.append(outlook(goal, message, found.rows, now, closed))
        return found


def outlook(goal: Any, message: Any, rows: Any, now: datetime, closed: Collection[str] = ()) -> Any:
    """Whether a goal of a campaign will be reached, by the rows of its funnel; nobody enters the phases
    `closed` any more.
    """
    metric = _named(C.GoalMetric, "GOAL_METRIC", goal.metric).lower()
    meant = [
        row
        for row in rows
        if row.phase_id == goal.phase_id
        and goal.region in ("", row.region)
        and goal.value_class in ("", row.value_class)
    ]
    reached = sum(getattr(row, f"{metric}_count") for row in meant)
    most = sum(row.entered_count for row in meant) if goal.phase_id in closed else None
    period = next(phase.period for phase in message.phases if phase.phase_id == goal.phase_id)
    # Before the campaign was started nobody could be reached.
    began = max(convert.moment(end) for end in (period.start_time, message.start_time))
    span = (began, convert.moment(period.end_time), now, most)
    return C.GoalOutlook(
        goal=goal,
        reached=reached,
        projected=projected(reached, *span),
        endangered=endangered(goal.target, reached, *span),
    )


def reachable(senders: Senders, profile: Profile, channel: StepChannel, sender: str = "") -> bool:
    """Whether somebody can be reached over a channel by a sender, "" for the channel's own."""
    if channel in (StepChannel.SHOP, StepChannel.TOUCH_POINT):
        return True
    if channel is StepChannel.OUTBOUND_CALL:
        return bool(profile.numbers)
    return senders.reaches(profile, channel, sender)


def experiment(
    message: Any, phase_id: str, step_id: str, store: CampaignStore
) -> tuple[list[Arm], str, float]:
    """(how each variant does, the winner or "", p-value); without a stopping rule nobody wins.
    InvalidArgument for a step that is not there.
    """
    steps = [s for phase in message.phases if phase.phase_id == phase_id for s in phase.steps]
    step = next((one for one in steps if one.step_id == step_id), None)
    if step is None:
        raise InvalidArgument(field="step_id", why="is not a step of this phase")
    rule = step.stopping_rule
    metric = _named(C.GoalMetric, "GOAL_METRIC", rule.metric or C.GOAL_METRIC_INTERESTED)
    id = message.name.removeprefix("campaigns/")
    counts = store.arms(id, phase_id, step_id, COUNTED[metric])
    arms = [
        Arm(variant=one.variant_id, contacts=counts.get(one.variant_id, [0, 0])[0],
            successes=counts.get(one.variant_id, [0, 0])[1])
        for one in step.variants
    ]  # fmt: skip
    won, chance = winner(
        arms,
        contacts_min=rule.contacts_min or 100,
        contacts_max=rule.contacts_max,
        error_max=rule.error_probability_max or 0.05,
    )
    return arms, won if step.HasField("stopping_rule") else "", chance
