"""Hands due touches to their senders, each once, and tells what became of them.

Each sender has a lane of its own: its messages are claimed, sent and noted apart from those of others, some
at once. A lane ends its turn after `TURN_SECONDS`, and `deliver` does not wait for one that does not end, so
a slow sender holds up nobody. One that fails rests for a while. What was claimed and not tried goes back as
it was.

A message may leave hours after somebody was taken in. So right before it does, everything is looked at again:
consent, complaints, answers (who has answered in the phase needs no further message of it), whether the offer
still stands, quiet hours, whether the phase is over; and the caps, where it has waited for more than a day.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from callmesh.common.v1 import common_pb2
from callmesh.marketing.v1 import events_pb2
from chassis.bus import Event
from chassis.ids import new_id, resource_name, stable_id
from marketing import convert
from marketing.campaign_engine import (
    AGAIN,
    CONSENT,
    PASSING,
    SENT,
    Courtesy,
    StepChannel,
    best_words,
    capped,
    fill,
    held_back,
    touch_id,
)
from marketing.campaign_model import Campaign, Step, Variant
from marketing.campaign_runner import fits, is_quiet_until
from marketing.campaign_store import CampaignStore, has_answered
from marketing.documents import profile_from_raw
from marketing.model import Profile, best_text
from marketing.senders import SENDERS_MAX, Lane, Message, Senders, SendFailed

#: Touches claimed at once by a lane, and how long a claim holds, real seconds.
CLAIM_MAX = 200
CLAIM_SECONDS = 600.0
#: Messages that one sender has in hand at once.
AT_ONCE = 8
#: Real seconds after which a lane begins no further message in its turn, and for which `deliver` waits for
#: lanes.
TURN_SECONDS = 5.0
WAIT_SECONDS = 10.0
#: How long a sender rests whose first message in a turn failed, seconds.
REST_SECONDS = 30.0
#: Attempts before a touch has failed for good, and the pause after the first (it doubles), seconds.
ATTEMPTS_MAX = 8
PAUSE_SECONDS = 30.0
PAUSE_SECONDS_MAX = 3_600.0


#: What to do with a touch instead of sending it: put it off until then, or, with None, never send it.
Later = tuple[datetime | None]


def words(variant: Variant, profile: Profile, values: Mapping[str, str]) -> tuple[str, str]:
    """(subject, body) of a message for a person."""
    told = {"display_name": profile.display_name, **values}
    subject = next((t.text for t in variant.subjects if t.language == profile.language), None)
    return (
        fill(subject or best_text(variant.subjects, ""), told),
        fill(best_words(variant.bodies, profile), told),
    )


@dataclass(kw_only=True, slots=True)
class _Group:
    """What there is to know of claimed touches."""

    campaigns: Mapping[str, Campaign]
    profiles: Mapping[str, Profile]
    complaining: set[str]
    #: Where people stand, by campaign and customer.
    standing: Mapping[str, Mapping[str, Mapping[str, Any]]]
    #: Of people who are one by a merge: by touch, (state, token) of their other touches of the same step.
    others: Mapping[str, Mapping[str, tuple[str, str]]]
    #: What messages are filled in with, by campaign and language.
    values: dict[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)


def _drivers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=2 * SENDERS_MAX, thread_name_prefix="campaign-lane")


@dataclass(kw_only=True, slots=True)
class Delivery:
    """Sends what is due."""

    store: CampaignStore
    senders: Senders
    #: Values of `{{offer_title}}` and `{{price}}` for a campaign and a language.
    values: Callable[[str, str], Mapping[str, str]]
    #: Whether a campaign may address anybody at this moment; asked before every message.
    may_address: Callable[[str], bool] = lambda _: True
    #: The rules in force; whoever runs campaigns keeps them up to date.
    courtesy: Courtesy = field(default_factory=Courtesy)
    holiday: Callable[[datetime], bool] = lambda _: False
    turn_seconds: float = TURN_SECONDS
    wait_seconds: float = WAIT_SECONDS
    _lanes: ThreadPoolExecutor = field(default_factory=_drivers)
    _pools: dict[str, ThreadPoolExecutor] = field(default_factory=dict)
    #: Lanes whose turn has not ended.
    _at_work: dict[str, Future[int]] = field(default_factory=dict)
    #: Until when senders rest that failed.
    _resting: dict[str, datetime] = field(default_factory=dict)

    def deliver(self, campaigns: Sequence[Campaign], now: datetime) -> int:
        """A turn of every lane; how many touches were taken up by those that ended."""
        by_id = {campaign.id: campaign for campaign in campaigns}
        for lane in self.senders.lanes(sorted(SENT)):
            if lane.name not in self._at_work and self._resting.get(lane.name, now) <= now:
                self._at_work[lane.name] = self._lanes.submit(self._turn, lane, by_id, now)
        ended, _ = wait(self._at_work.values(), timeout=self.wait_seconds)
        for name in [name for name, turn in self._at_work.items() if turn in ended]:
            del self._at_work[name]
        return sum(turn.result() for turn in ended)

    def _turn(self, lane: Lane, by_id: Mapping[str, Campaign], now: datetime) -> int:
        """Claims and sends one group of a lane; how many were claimed."""
        token, real_now = new_id(), datetime.now(UTC)
        claimed = self.store.claim(
            list(by_id),
            token,
            now,
            real_now=real_now,
            until=real_now + timedelta(seconds=CLAIM_SECONDS),
            limit=CLAIM_MAX,
            of={"channel": lane.channel.value, **lane.senders},
        )
        if not claimed:
            return 0
        try:
            self._send_all(lane, self._group(by_id, claimed), claimed, now)
        finally:
            self.store.release(token)
        return len(claimed)

    def _group(self, by_id: Mapping[str, Campaign], claimed: Sequence[Mapping[str, Any]]) -> _Group:
        raws = self.store.survivors_of(sorted({touch["customer"] for touch in claimed}))
        profiles = {customer: profile_from_raw(raw) for customer, raw in raws.items()}
        people = list({profile.customer: profile for profile in profiles.values()}.values())
        return _Group(
            campaigns=by_id,
            profiles=profiles,
            complaining=self.store.complaining([profile.customer for profile in people]),
            standing={
                campaign: self.store.standing_people(campaign, people)
                for campaign in {touch["campaign"] for touch in claimed}
            },
            others=self._others(claimed, profiles),
        )

    def _others(
        self, claimed: Sequence[Mapping[str, Any]], profiles: Mapping[str, Profile]
    ) -> Mapping[str, Mapping[str, tuple[str, str]]]:
        """Of people who are one by a merge: by touch, (state, token) of the same step's touches under their
        other names.
        """
        names: dict[str, list[str]] = {}
        for touch in claimed:
            profile = profiles.get(touch["customer"])
            if profile is not None and profile.absorbed:
                step = (touch["campaign"], touch["phase"], touch["step"])
                ids = [touch_id(*step, customer) for customer in (profile.customer, *profile.absorbed)]
                names[touch["_id"]] = [id for id in ids if id != touch["_id"]]
        states = self.store.states_of([id for ids in names.values() for id in ids]) if names else {}
        return {id: {one: states[one] for one in ids if one in states} for id, ids in names.items()}

    def _send_all(
        self, lane: Lane, group: _Group, claimed: Sequence[Mapping[str, Any]], now: datetime
    ) -> None:
        """The first by itself, to see whether the sender is there; then the others, some at once."""
        stop, ends = threading.Event(), time.monotonic() + self.turn_seconds

        def one(touch: Mapping[str, Any]) -> None:
            if stop.is_set() or time.monotonic() >= ends or not self.may_address(touch["campaign"]):
                return
            if not self._one(lane, group, touch, now):
                stop.set()

        one(claimed[0])
        if stop.is_set():
            rests = now + timedelta(seconds=REST_SECONDS)
            self._resting[lane.name] = max(rests, self._resting.get(lane.name, rests))
            return
        if lane.name not in self._pools:
            self._pools[lane.name] = ThreadPoolExecutor(AT_ONCE, f"campaign-send-{lane.name}")
        list(self._pools[lane.name].map(one, claimed[1:]))

    def _one(self, lane: Lane, group: _Group, touch: Mapping[str, Any], now: datetime) -> bool:
        """Sends a touch, or notes why not; False when the sender seems to be down."""
        campaign, profile = group.campaigns[touch["campaign"]], group.profiles.get(touch["customer"])
        touch = _as_decided(campaign, touch)
        later = self._later(campaign, group, touch, profile, now)
        if later is not None and later[0] is not None:
            self.store.put_off(touch, later[0], tried=False)
            return True
        if later is not None or profile is None or lane.sender is None:
            self._end(touch, False, now)
            return True
        try:
            lane.sender.send(self._message(campaign, group, touch, profile, lane.channel))
        except SendFailed as error:
            attempts = touch.get("attempts", 0) + 1
            if error.final or attempts >= ATTEMPTS_MAX:
                self._end(touch, False, now)
            else:
                pause = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2 ** (attempts - 1))
                if error.pause_seconds:
                    # So long the sender wants to hear of nobody.
                    pause = max(pause, error.pause_seconds)
                    self._resting[lane.name] = now + timedelta(seconds=error.pause_seconds)
                self.store.put_off(touch, now + timedelta(seconds=pause), tried=True)
            return error.final
        self._end(touch, True, now)
        return True

    def _later(
        self,
        campaign: Campaign,
        group: _Group,
        touch: Mapping[str, Any],
        profile: Profile | None,
        now: datetime,
    ) -> Later | None:
        """What stands in the way of a message now; None for nothing."""
        phase = next(phase for phase in campaign.phases if phase.id == touch["phase"])
        if profile is None or now >= phase.end:
            return (None,)
        if (others := group.others.get(touch["_id"])) and (twice := _twice(touch, profile, others, now)):
            return twice
        channel = StepChannel(touch["channel"])
        stands = group.standing[campaign.id].get(profile.customer) or {}
        held = held_back(
            profile,
            channel,
            now,
            has_address=True,
            complaining=profile.customer in group.complaining,
            declined=has_answered(stands, phase.id),
            is_capped=self._capped(touch, profile, channel, now),
            fits=fits(campaign, profile, channel, now),
        )
        if held is not None:
            return (now + AGAIN if held in PASSING else None,)
        end = is_quiet_until(self.courtesy, profile, channel, now, self.holiday)
        return None if end is None else (end,)

    def _capped(
        self, touch: Mapping[str, Any], profile: Profile, channel: StepChannel, now: datetime
    ) -> bool:
        """Whether the caps hold a message back that should have left a day ago: others may have left since.
        One that was taken up lately was counted by all.
        """
        if touch["at"] >= now - AGAIN:
            return False
        since = now - timedelta(days=self.courtesy.days_max)
        met = self.store.touched_people([profile], since, now).get(profile.customer, ())
        others = [(at, over) for at, over, id in met if id != touch["_id"]]
        return capped(self.courtesy, others, channel, now)

    def _message(
        self,
        campaign: Campaign,
        group: _Group,
        touch: Mapping[str, Any],
        profile: Profile,
        channel: StepChannel,
    ) -> Message:
        key = (campaign.id, profile.language)
        if key not in group.values:
            group.values[key] = self.values(*key)
        subject, body = words(variant_said(campaign, touch), profile, group.values[key])
        origin = {key: touch.get(key, "") for key in ("campaign", "phase", "step", "variant")}
        if campaign.offer:
            origin["offer"] = campaign.offer
        return Message(
            id=touch["_id"], profile=profile, channel=channel, subject=subject, body=body, origin=origin
        )

    def _end(self, touch: Mapping[str, Any], delivered: bool, now: datetime) -> None:
        state = "SENT" if delivered else "FAILED"
        self.store.finish(touch, state, self._event(touch, delivered, now), now, datetime.now(UTC))

    def _event(self, touch: Mapping[str, Any], delivered: bool, now: datetime) -> Event:
        customer = resource_name("customers", touch["customer"])
        channel = CONSENT[StepChannel(touch["channel"])]
        message = events_pb2.CampaignContactTouched(
            campaign=resource_name("campaigns", touch["campaign"]),
            phase=touch["phase"],
            step=touch["step"],
            variant=touch.get("variant", ""),
            customer=customer,
            channel=convert.enum_number(common_pb2.Channel, "CHANNEL", channel),
            delivered=delivered,
            touch_time=convert.timestamp(now),
        )
        id = stable_id("touch", touch["_id"])
        return Event.of(message, source=convert.SOURCE, subject=customer, time=now, id=f"touch:{id}")


def _twice(
    touch: Mapping[str, Any], profile: Profile, others: Mapping[str, tuple[str, str]], now: datetime
) -> Later | None:
    """What stands in the way of a message whose person has others of the same step under other names: one
    that left, or one that is to leave (the person's own before those of merged ones). None for nothing.
    """

    def rank(id: str) -> tuple[bool, str]:
        return not id.endswith(f"/{profile.customer}"), id

    for id, (state, token) in others.items():
        if state == "SENDING" and token != touch.get("token"):
            return (now + timedelta(seconds=CLAIM_SECONDS),)
        if state in ("SENT", "WAITING") or (state != "FAILED" and rank(id) < rank(touch["_id"])):
            return (None,)
    return None


def _step(campaign: Campaign, touch: Mapping[str, Any]) -> Step:
    phase = next(phase for phase in campaign.phases if phase.id == touch["phase"])
    return next(step for step in phase.steps if step.id == touch["step"])


def _as_decided(campaign: Campaign, touch: Mapping[str, Any]) -> Mapping[str, Any]:
    """A touch with the variant that has won since another was dealt: the better one takes all that has not
    left.
    """
    won = _step(campaign, touch).winner
    return {**touch, "variant": won} if won else touch


def variant_said(campaign: Campaign, touch: Mapping[str, Any]) -> Variant:
    """The words of a touch."""
    step, said = _step(campaign, touch), _as_decided(campaign, touch).get("variant")
    return next((one for one in step.variants if one.id == said), step.variants[0])
