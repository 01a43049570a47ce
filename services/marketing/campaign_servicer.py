"""CampaignService: campaigns, segments, the rules of courtesy, and what people answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict

from callmesh.marketing.v1 import campaigns_pb2, campaigns_pb2_grpc, types_pb2
from chassis.bus import Event
from chassis.errors import EtagMismatch, InvalidArgument, NotFound
from chassis.fieldmask import apply_mask
from chassis.ids import parse_name
from chassis.mongo import parse_etag, retry_conflicts
from chassis.pagination import Page
from marketing import convert
from marketing.campaign_delivery import variant_said, words
from marketing.campaign_engine import SENT, Courtesy, Held, StepChannel, capped, held_back, touch_id
from marketing.campaign_model import Campaign, Phase
from marketing.campaign_runner import entrants, fits
from marketing.campaign_store import FINAL_ANSWERS, CampaignStore
from marketing.campaigns import (
    POLICY,
    CampaignNotStartable,
    Campaigns,
    CampaignStateError,
    SegmentUsed,
    _named,
    experiment,
    policy_problems,
    reachable,
)
from marketing.documents import profile_from_raw
from marketing.kinds import CAMPAIGNS, CONTACT_POLICY, SURVEYS, ContactNotFound
from marketing.model import OfferState, Profile
from marketing.segments import belongs
from marketing.senders import Senders
from marketing.shelf import Row
from marketing.touch_retention import forgotten, kept_since

C = campaigns_pb2
_SENT = frozenset({C.STEP_CHANNEL_SMS, C.STEP_CHANNEL_EMAIL, C.STEP_CHANNEL_WEBHOOK})
#: Most touch points shown at once, and touches looked at for them.
TOUCH_POINTS_MAX = 10
WAITING_LOOKED_AT = 100
#: Customers that a preview looks at, and most samples that it shows.
PREVIEWED = 2_000
SAMPLES_MAX = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What a preview knows of people, by customer."""

    #: Where they stand in the campaign.
    standing: Mapping[str, dict[str, Any]]
    #: Who has an open complaint.
    complaining: set[str]
    #: (when, channel, id) of earlier touches.
    earlier: Mapping[str, Sequence[tuple[datetime, str, str]]]


def _scaled(count: int, looked: int, total: int) -> int:
    """A count among those looked at as one of all. Those who live no more are among both."""
    return round(count * total / looked) if looked else 0


class CampaignServicer(campaigns_pb2_grpc.CampaignServiceServicer):
    """CampaignService."""

    def __init__(
        self,
        campaigns: Campaigns,
        senders: Senders,
        people: Callable[[], CampaignStore],
        touches_days: float,
    ) -> None:
        """`people` is asked for with the first use: the database is connected by then. `touches_days` says
        for how long touches are kept.
        """
        self._campaigns = campaigns
        self._senders = senders
        self._people = people
        self._touches_days = touches_days

    @property
    def _counting(self) -> CampaignStore:
        return self._people()

    def CreateCampaign(self, request: C.CreateCampaignRequest, context: Any) -> C.Campaign:
        """Adds a draft."""

        def prepare(message: Any) -> Sequence[Event]:
            message.state = C.CAMPAIGN_STATE_DRAFT
            return ()

        return self._campaigns.desk.create(request, prepare)

    def GetCampaign(self, request: C.GetCampaignRequest, context: Any) -> C.Campaign:
        """Reads one."""
        return self._campaigns.desk.get(request)

    def ListCampaigns(self, request: C.ListCampaignsRequest, context: Any) -> C.ListCampaignsResponse:
        """A page, newest id first."""
        condition = {"state": request.state} if request.state else {}
        rows, token = self._campaigns.desk.list(request, condition, "-_id")
        return C.ListCampaignsResponse(campaigns=rows, next_page_token=token)

    def UpdateCampaign(self, request: C.UpdateCampaignRequest, context: Any) -> C.Campaign:
        """Anything of a draft; of one that ran goals, name, the ends of phases and the shares of variants."""

        def change(present: Any, wanted: Any) -> None:
            if present.state != C.CAMPAIGN_STATE_DRAFT and _lasting(present) != _lasting(wanted):
                why = "only goals, the name, phases' ends and variants' shares may change now"
                raise CampaignStateError(subject=present.name, why=why)

        return self._campaigns.desk.update(request, change=change)

    def DeleteCampaign(self, request: C.DeleteCampaignRequest, context: Any) -> Empty:
        """Removes one that never ran."""

        def allowed(message: Any) -> None:
            if message.state != C.CAMPAIGN_STATE_DRAFT:
                raise CampaignStateError(subject=message.name, why="it ran already")

        self._campaigns.desk.delete(request, allowed)
        return Empty()

    def StartCampaign(self, request: C.StartCampaignRequest, context: Any) -> C.Campaign:
        """Lets it address people."""

        def check(message: Any) -> None:
            causes = []
            try:
                self._campaigns.segments.row(message.segment, "segment")
            except NotFound:
                causes.append(f"there is no {message.segment}")
            now = self._campaigns.clock.now()
            if all(convert.moment(phase.period.end_time) <= now for phase in message.phases):
                causes.append("every phase is over")
            causes += self._offer_causes(message, now)
            for phase in message.phases:
                causes += self._survey_causes(phase)
                for step in phase.steps:
                    channel = StepChannel(_named(C.StepChannel, "STEP_CHANNEL", step.channel))
                    if step.channel in _SENT and self._senders.of(channel, step.sender) is None:
                        causes.append(f"step {step.step_id} has no sender for {channel}")
            if causes:
                raise CampaignNotStartable(subject=message.name, why="; ".join(causes))

        return self._campaigns.go(request, "start", check)

    def _offer_causes(self, message: Any, now: datetime) -> list[str]:
        """Why nobody could take what a campaign promotes."""
        offer = self._campaigns.promoted(message)
        if not message.offer:
            return []
        if offer is None:
            return [f"there is no {message.offer}"]
        if offer.state is not OfferState.PUBLISHED:
            return [f"{message.offer} is {offer.state}"]
        if offer.valid_until is not None and offer.valid_until <= now:
            return [f"the validity of {message.offer} is over"]
        return [f"{message.offer} is sold out"] if offer.sold_out else []

    def _survey_causes(self, phase: Any) -> list[str]:
        """Why the survey of a phase could not be answered."""
        if not phase.survey:
            return []
        try:
            row = self._campaigns.shelves.get(SURVEYS, phase.survey.removeprefix("surveys/"))
        except NotFound:
            return [f"there is no {phase.survey}"]
        is_open = row.content["resource"].get("state") == "SURVEY_STATE_OPEN"
        return [] if is_open else [f"{phase.survey} is not OPEN"]

    def PauseCampaign(self, request: C.PauseCampaignRequest, context: Any) -> C.Campaign:
        """Holds it."""
        return self._campaigns.go(request, "pause")

    def ResumeCampaign(self, request: C.ResumeCampaignRequest, context: Any) -> C.Campaign:
        """Goes on."""
        return self._campaigns.go(request, "resume")

    def StopCampaign(self, request: C.StopCampaignRequest, context: Any) -> C.Campaign:
        """Ends it."""
        return self._campaigns.go(request, "stop")

    def PreviewCampaign(self, request: C.PreviewCampaignRequest, context: Any) -> C.PreviewCampaignResponse:
        """Whom the first step of each phase would reach as things stand, estimated from a sample where there
        are many customers.
        """
        if not 0 <= request.sample_size <= SAMPLES_MAX:
            raise InvalidArgument(field="sample_size", why=f"must be 0 to {SAMPLES_MAX}")
        campaign = self._campaigns.value(self._campaigns.desk.row(request.name))
        courtesy, now = self._campaigns.courtesy(), self._campaigns.clock.now()
        looked_at, total = self._looked_at(campaign)
        people = [p for p in looked_at if belongs(campaign.audience, campaign.rule, p, now)]
        known = _Known(
            standing=self._counting.standing_people(campaign.id, people),
            complaining=self._counting.complaining([profile.customer for profile in people]),
            earlier=self._counting.touched_people(people, now - timedelta(days=courtesy.days_max), now),
        )
        looked = min(total, PREVIEWED)
        response = C.PreviewCampaignResponse(sampled_count=looked if looked < total else 0)
        for phase in campaign.phases:
            entering = entrants(phase, people, known.standing, now)
            held = {p.customer: self._held(campaign, phase, p, known, courtesy, now) for p in entering}
            causes = Counter(cause.value for cause in held.values() if cause is not None)
            reached = [profile for profile in entering if held[profile.customer] is None]
            response.phases.add(
                phase_id=phase.id,
                segment_count=_scaled(len(entering), looked, total),
                reachable_count=_scaled(len(reached), looked, total),
                held_back={cause: _scaled(count, looked, total) for cause, count in causes.items()},
                samples=[self._sample(campaign, phase, p) for p in reached[: request.sample_size]],
            )
        return response

    def _held(
        self, campaign: Campaign, phase: Phase, profile: Profile, known: _Known, courtesy: Courtesy,
        now: datetime,
    ) -> Held | None:  # fmt: skip
        """Why somebody would not be addressed by a phase's first step now."""
        step = phase.steps[0]
        mine = touch_id(campaign.id, phase.id, step.id, profile.customer)
        met = [(at, over) for at, over, id in known.earlier.get(profile.customer, ()) if id != mine]
        stands = known.standing.get(profile.customer) or {}
        return held_back(
            profile,
            step.channel,
            now,
            has_address=self._reaches(profile, step.channel, step.sender),
            complaining=profile.customer in known.complaining,
            declined=stands.get("response") in FINAL_ANSWERS,
            is_capped=capped(courtesy, met, step.channel, now),
            fits=fits(campaign, profile, step.channel, now),
        )

    def _sample(self, campaign: Campaign, phase: Phase, profile: Profile) -> C.SampleMessage:
        """What a phase's first step would tell somebody."""
        variant = phase.steps[0].variants[0]
        subject, body = words(variant, profile, self._campaigns.values(campaign.id, profile.language))
        return C.SampleMessage(
            customer=f"customers/{profile.customer}",
            step_id=phase.steps[0].id,
            variant_id=variant.id,
            subject=subject,
            body=body,
        )

    def _looked_at(self, campaign: Campaign) -> tuple[list[Profile], int]:
        """(the living among the customers that a preview looks at, of how many): of all, or of the members of
        a segment that follows events.
        """
        if not campaign.segment:
            return list(self._campaigns.store.sample(PREVIEWED)), self._campaigns.store.customer_count()
        members = self._counting.some_members(campaign.segment, PREVIEWED)
        raws = self._counting.profiles_of(members).values()
        return [profile_from_raw(raw) for raw in raws], self._counting.member_count(campaign.segment)

    def _reaches(self, profile: Profile, channel: StepChannel, sender: str = "") -> bool:
        return reachable(self._senders, profile, channel, sender)

    def GetCampaignFunnel(self, request: C.GetCampaignFunnelRequest, context: Any) -> C.CampaignFunnel:
        """How far each phase has come."""
        return self._campaigns.funnel(self._campaigns.desk.get(request), self._counting)

    def GetExperiment(self, request: C.GetExperimentRequest, context: Any) -> C.Experiment:
        """How the variants compare."""
        row = self._campaigns.desk.row(request.campaign, "campaign")
        message = self._campaigns.desk.shown(row)
        found = experiment(message, request.phase_id, request.step_id, self._counting)
        won = (row.content.get("winners") or {}).get(f"{request.phase_id}/{request.step_id}", "")
        since = kept_since(self._campaigns.clock.now(), self._touches_days)
        return C.Experiment(
            variants=[
                C.VariantResult(
                    variant_id=arm.variant, contact_count=arm.contacts, success_count=arm.successes
                )
                for arm in found[0]
            ],
            winner_variant_id=won or found[1],
            p_value=found[2],
            touches_kept_since=convert.timestamp(since if forgotten(row, since) else None),
        )

    def ListCampaignContacts(
        self, request: C.ListCampaignContactsRequest, context: Any
    ) -> C.ListCampaignContactsResponse:
        """A page by customer."""
        campaign = self._campaigns.desk.row(request.parent, "parent").id
        page = Page.of(request)
        response = _response(request) if request.response else None
        found = self._counting.listed(campaign, response, page.value(str), page.limit + 1)
        shown, token = page.cut(found, itemgetter("_id"))
        return C.ListCampaignContactsResponse(contacts=[_stands(raw) for raw in shown], next_page_token=token)

    def RecordCampaignResponse(
        self, request: C.RecordCampaignResponseRequest, context: Any
    ) -> C.CampaignContact:
        """Notes that a person answered."""
        campaign = self._campaigns.desk.row(request.campaign, "campaign")
        customer = parse_name("customer", "customers", request.customer)
        answer = _response(request)
        message = self._campaigns.desk.shown(campaign)
        if request.phase_id and request.phase_id not in {phase.phase_id for phase in message.phases}:
            raise InvalidArgument(field="phase_id", why="is not a phase of this campaign")
        if request.response == C.CONTACT_RESPONSE_BOUGHT:
            # First, for there may be none left.
            self._campaigns.sold(self._counting, campaign.id, customer, "")
        raw = self._counting.answer(campaign.id, customer, request.phase_id, answer)
        if raw is None:
            raise ContactNotFound(resource=f"{request.campaign}/contacts/{customer}")
        self._counting.mark_answered(campaign.id, request.phase_id or raw["phase"], customer, answer)
        if request.response == C.CONTACT_RESPONSE_OPTED_OUT:
            self._counting.opt_out(customer, self._campaigns.clock.now())
        return _stands(raw)

    def ListTouchPoints(self, request: C.ListTouchPointsRequest, context: Any) -> C.ListTouchPointsResponse:
        """What to mention to a customer who is there now."""
        customer = parse_name("customer", "customers", request.customer)
        channel = request.channel or C.STEP_CHANNEL_TOUCH_POINT
        if channel not in (C.STEP_CHANNEL_TOUCH_POINT, C.STEP_CHANNEL_SHOP):
            raise InvalidArgument(field="channel", why="must be TOUCH_POINT or SHOP")
        if not 0 <= request.page_size <= TOUCH_POINTS_MAX:
            raise InvalidArgument(field="page_size", why=f"must be 0 to {TOUCH_POINTS_MAX}")
        response, store, now = C.ListTouchPointsResponse(), self._campaigns.store, self._campaigns.clock.now()
        over = StepChannel(_named(C.StepChannel, "STEP_CHANNEL", channel))
        profile = store.survivors([customer]).get(customer)
        if profile is None or self._campaigns.courtesy().halted:
            return response
        complaining = bool(store.open_complaints(profile.customer, 1))
        running = {campaign.id: campaign for campaign in self._campaigns.running()}
        standing = {
            id: self._counting.standing_people(id, [profile]).get(profile.customer) or {} for id in running
        }
        known_as, shown = (profile.customer, *profile.absorbed), set()
        for touch in self._counting.waiting(known_as, over.value, list(running), WAITING_LOOKED_AT):
            if len(response.touch_points) >= (request.page_size or 3):
                break
            place = (touch["campaign"], touch["phase"], touch["step"])
            if place in shown:
                continue
            shown.add(place)
            campaign = running[touch["campaign"]]
            phase = next(phase for phase in campaign.phases if phase.id == touch["phase"])
            held = held_back(
                profile,
                over,
                now,
                has_address=True,
                complaining=complaining,
                declined=standing[campaign.id].get("response") in FINAL_ANSWERS,
                is_capped=False,
                fits=fits(campaign, profile, over, now),
            )
            if held is not None or now >= phase.end:
                continue
            variant = variant_said(campaign, touch)
            values = self._campaigns.values(campaign.id, profile.language)
            _, body = words(variant, profile, values)
            response.touch_points.add(
                campaign=f"campaigns/{campaign.id}",
                phase_id=phase.id,
                step_id=touch["step"],
                variant_id=variant.id,
                texts=[types_pb2.LocalizedText(language=profile.language or "zh", text=body)],
            )
        return response

    # segments

    def CreateSegment(self, request: C.CreateSegmentRequest, context: Any) -> C.Segment:
        """Adds one."""
        return self._campaigns.segments.create(request)

    def GetSegment(self, request: C.GetSegmentRequest, context: Any) -> C.Segment:
        """Reads one and counts its members: those of one that follows events exactly, others in a sample
        where there are more customers than that.
        """
        segment, now = self._campaigns.segments.get(request), self._campaigns.clock.now()
        if segment.trigger_event_types:
            segment.member_count = self._counting.member_count(segment.name.removeprefix("segments/"))
        else:
            audience = convert.audience_from_proto("audience", segment.audience, [])
            people, total = self._campaigns.store.sample(PREVIEWED), self._campaigns.store.customer_count()
            members = sum(belongs(audience, segment.rule, profile, now) for profile in people)
            segment.member_count = _scaled(members, min(total, PREVIEWED), total)
        segment.count_time.FromDatetime(now)
        return segment

    def ListSegments(self, request: C.ListSegmentsRequest, context: Any) -> C.ListSegmentsResponse:
        """A page by id."""
        rows, token = self._campaigns.segments.list(request, {})
        return C.ListSegmentsResponse(segments=rows, next_page_token=token)

    def UpdateSegment(self, request: C.UpdateSegmentRequest, context: Any) -> C.Segment:
        """Changes one."""
        return self._campaigns.segments.update(request)

    def DeleteSegment(self, request: C.DeleteSegmentRequest, context: Any) -> Empty:
        """Removes one that no campaign uses."""

        def allowed(message: Any) -> None:
            for row in self._campaigns.shelves.find(CAMPAIGNS, {}, 10_000):
                if row.content["resource"].get("segment") == message.name:
                    raise SegmentUsed(subject=message.name, why=f"campaigns/{row.id} uses it")

        self._campaigns.segments.delete(request, allowed)
        return Empty()

    # courtesy and senders

    def GetContactPolicy(self, request: C.GetContactPolicyRequest, context: Any) -> C.ContactPolicy:
        """Reads the policy."""
        _check_policy("name", request.name)
        message, version = self._campaigns.policy()
        message.etag = f"v{version}" if version else ""
        return message

    def UpdateContactPolicy(self, request: C.UpdateContactPolicyRequest, context: Any) -> C.ContactPolicy:
        """Changes the policy."""
        given = request.contact_policy
        _check_policy("contact_policy.name", given.name)
        expected = parse_etag("contact_policy.etag", given.etag)

        def attempt() -> Any:
            message, version = self._campaigns.policy()
            if expected is not None and expected != version:
                raise EtagMismatch(resource=POLICY)
            fields = {"frequency_caps", "quiet_hours", "holidays_quiet", "halted", "halted_reason"}
            # What an earlier release took must not keep anybody from stopping everything.
            known = policy_problems(message)
            apply_mask(message, given, request.update_mask, allowed=fields)
            if problems := [one for one in policy_problems(message) if one not in known]:
                raise InvalidArgument.many([(f"contact_policy.{field}", why) for field, why in problems])
            resource = MessageToDict(message, preserving_proto_field_name=True)
            row = Row(id=POLICY, content={"resource": resource}, version=version)
            now, shelves = self._campaigns.clock.now(), self._campaigns.shelves
            if version:
                row = shelves.update(CONTACT_POLICY, row, now)
            else:
                row, _ = shelves.insert(CONTACT_POLICY, row, now)
            message.etag = f"v{row.version}"
            return message

        return retry_conflicts(attempt, 1 if expected is not None else 5)

    def ListSenders(self, request: C.ListSendersRequest, context: Any) -> C.ListSendersResponse:
        """The configured senders, with what waits for each."""
        shown, token = Page.of(request).part(self._senders.configs)
        response = C.ListSendersResponse(next_page_token=token)
        lanes = {lane.name: lane.senders for lane in self._senders.lanes(sorted(SENT))}
        # What a stopped campaign left behind waits for nobody.
        begun = [campaign.id for some in self._campaigns.begun() for campaign in some]
        for config in shown:
            queued, failing = self._counting.backlog(begun, config.channel.value, lanes[config.id])
            response.senders.add(
                sender_id=config.id,
                channel=C.StepChannel.Value(f"STEP_CHANNEL_{config.channel.value}"),
                adapter=config.adapter,
                healthy=not failing,
                backlog_count=queued,
            )
        return response


def _lasting(campaign: Any) -> Any:
    """A campaign without what may change while it runs."""
    kept = C.Campaign()
    kept.CopyFrom(campaign)
    for field in ("goals", "display_name", "etag", "update_time"):
        kept.ClearField(field)
    for phase in kept.phases:
        phase.period.ClearField("end_time")
        for step in phase.steps:
            for variant in step.variants:
                variant.weight = 0
    return kept


def _response(request: Any) -> str:
    """The answer that a request names. InvalidArgument."""
    if not request.response or request.response not in C.ContactResponse.values():
        raise InvalidArgument(field="response", why="must be set, to a value that this server knows")
    return _named(C.ContactResponse, "CONTACT_RESPONSE", request.response)


def _check_policy(field: str, name: str) -> None:
    if name != POLICY:
        raise InvalidArgument(field=field, why=f'must be "{POLICY}"')


def _stands(raw: Mapping[str, Any]) -> Any:
    message: Any = C.CampaignContact(
        name=f"campaigns/{raw['campaign']}/contacts/{raw['customer']}",
        customer=f"customers/{raw['customer']}",
        phase_id=raw.get("phase", ""),
        step_id=raw.get("step", ""),
        touch_count=raw.get("touch_count", 0),
        touch_time=convert.timestamp(raw.get("touched_at")),
        next_step_time=convert.timestamp(raw.get("next_at")),
    )
    if raw.get("response"):
        message.response = C.ContactResponse.Value(f"CONTACT_RESPONSE_{raw['response']}")
    return message
