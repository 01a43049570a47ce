"""Hands due touches to their senders, each once, and tells what became of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from callmesh.common.v1 import common_pb2
from callmesh.marketing.v1 import events_pb2
from chassis.bus import Event
from chassis.ids import new_id, resource_name, stable_id
from marketing import convert
from marketing.campaign_engine import CONSENT, StepChannel, best_words, fill
from marketing.campaign_model import Campaign, Variant
from marketing.campaign_store import CampaignStore
from marketing.documents import profile_from_raw
from marketing.model import Profile, best_text
from marketing.senders import Message, Senders, SendFailed

#: Touches claimed at once, and how long a claim holds, seconds.
CLAIM_MAX = 200
CLAIM_SECONDS = 600.0
#: Attempts before a touch has failed for good, and the pause after the first (it doubles), seconds.
ATTEMPTS_MAX = 8
PAUSE_SECONDS = 30.0
PAUSE_SECONDS_MAX = 3_600.0

#: What came of a touch: (touch, state, when to try again, event).
Result = tuple[Mapping[str, Any], str, datetime | None, Event | None]


def words(variant: Variant, profile: Profile, values: Mapping[str, str]) -> tuple[str, str]:
    """(subject, body) of a message for a person."""
    told = {"display_name": profile.display_name, **values}
    subject = next((t.text for t in variant.subjects if t.language == profile.language), None)
    return (
        fill(subject or best_text(variant.subjects, ""), told),
        fill(best_words(variant.bodies, profile), told),
    )


@dataclass(kw_only=True, slots=True)
class Delivery:
    """Sends what is due."""

    store: CampaignStore
    senders: Senders
    #: Values of `{{offer_title}}` and `{{price}}` for a campaign and a language.
    values: Callable[[str, str], Mapping[str, str]]
    #: Whether nobody is to be addressed any more; asked before every message, for a slow sender makes a
    #: group long.
    is_halted: Callable[[], bool] = lambda: False

    def deliver(self, campaigns: Sequence[Campaign], now: datetime) -> int:
        """Claims and sends one group; how many were taken up. A sender that fails stops only its own."""
        by_id = {campaign.id: campaign for campaign in campaigns}
        until = now + timedelta(seconds=CLAIM_SECONDS)
        claimed = self.store.claim(list(by_id), new_id(), now, until, CLAIM_MAX)
        profiles = self.store.profiles_of([touch["customer"] for touch in claimed])
        down: set[str] = set()
        for touch in claimed:
            result: Result = (touch, "QUEUED", now, None)
            if not self.is_halted():
                result = self._one(
                    by_id[touch["campaign"]], touch, profiles.get(touch["customer"]), down, now
                )
            # One by one: what was sent is noted before the next is.
            self.store.finish([result])
        return len(claimed)

    def _one(
        self,
        campaign: Campaign,
        touch: Mapping[str, Any],
        raw: Mapping[str, Any] | None,
        down: set[str],
        now: datetime,
    ) -> Result:
        channel = StepChannel(touch["channel"])
        found = self.senders.of(channel, touch.get("sender", ""))
        profile = profile_from_raw(raw) if raw else None
        if (
            profile is None
            or not profile.alive
            or CONSENT[channel] in profile.refused_channels
            or found is None
        ):
            return touch, "FAILED", None, self._event(touch, False, now)
        name, sender = found
        if name in down:
            return touch, "QUEUED", now + timedelta(seconds=PAUSE_SECONDS), None
        subject, body = words(_variant(campaign, touch), profile, self.values(campaign.id, profile.language))
        origin = {key: touch.get(key, "") for key in ("campaign", "phase", "step", "variant")}
        if campaign.offer:
            origin["offer"] = campaign.offer
        message = Message(
            id=touch["_id"], profile=profile, channel=channel, subject=subject, body=body, origin=origin
        )
        try:
            sender.send(message)
        except SendFailed as error:
            attempts = touch.get("attempts", 0) + 1
            if error.final or attempts >= ATTEMPTS_MAX:
                return touch, "FAILED", None, self._event(touch, False, now)
            down.add(name)
            pause = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2 ** (attempts - 1))
            return touch, "QUEUED", now + timedelta(seconds=pause), None
        return touch, "SENT", None, self._event(touch, True, now)

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


def _variant(campaign: Campaign, touch: Mapping[str, Any]) -> Variant:
    phase = next(phase for phase in campaign.phases if phase.id == touch["phase"])
    step = next(step for step in phase.steps if step.id == touch["step"])
    return next((one for one in step.variants if one.id == touch.get("variant")), step.variants[0])
