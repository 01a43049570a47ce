"""The rules of campaigns, free of clock, randomness and I/O.

1. A campaign moves by verbs, along `TRANSITIONS`. Its phases (survey, invite, follow-up, remind) run in their
   periods; a phase takes in those of the segment for whom its entry rule holds, also by an answer that comes
   while it runs, and takes each through its steps in order. The next step is due when `wait` has passed and
   no answer came, counted from when the message left; whoever declined or opted out is not addressed again.
2. Nobody is addressed against the rules of courtesy: consent (`consents`), not opted out, no unresolved
   complaint, eligible for the offer that is promoted, an address to reach them by, the caps over all
   campaigns. What holds somebody back is counted by its cause (`Held`). Causes that pass (`PASSING`) put the
   step off by a day. All of it is looked at again right before a message leaves, which may be hours later;
   the caps where it is a day later: before, others counted it.
3. Quiet hours are those of the person's own clock, the person's own quiet windows among them. What falls into
   them waits until they end.
4. Each person meets each step once: a touch has one id, made of campaign, phase, step and customer.
5. Variants are dealt out by a digest of step and customer, so that a repeated run deals alike. A comparison
   ends by a sequential test that stays valid however often one looks (mixture sequential probability ratio
   test: Robbins 1970; Johari, Koomen, Pekelis, Walsh: Peeking at A/B tests, KDD 2017), or at its size limit.
6. A goal is endangered when the pace so far, carried on to the phase's end, does not reach it, or there are
   too few people for it. The pace is that since the phase began or, where that was later, the campaign.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from marketing.model import Channel, Profile, Text
from marketing.policy import share_of

#: Prior variance of a difference in rates, for the sequential test: differences of a few percent are looked
#: for.
PRIOR_VARIANCE = 0.001
#: Quiet spans that may follow on each other: two weeks of holidays, nights between them.
QUIET_SPANS_MAX = 60
#: Share of a phase that must be over before its goals are judged.
OUTLOOK_SHARE_MIN = 0.1


class CampaignState(enum.StrEnum):
    """Where a campaign is in its life."""

    DRAFT = "DRAFT"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPED = "STOPPED"
    COMPLETED = "COMPLETED"


#: The state that a verb leads to; a pair that is missing is refused and changes nothing.
TRANSITIONS: Mapping[tuple[CampaignState, str], CampaignState] = {
    (CampaignState.DRAFT, "start"): CampaignState.RUNNING,
    (CampaignState.RUNNING, "pause"): CampaignState.PAUSED,
    (CampaignState.PAUSED, "resume"): CampaignState.RUNNING,
    (CampaignState.RUNNING, "stop"): CampaignState.STOPPED,
    (CampaignState.PAUSED, "stop"): CampaignState.STOPPED,
    (CampaignState.RUNNING, "complete"): CampaignState.COMPLETED,
}


class Held(enum.StrEnum):
    """Why somebody is not addressed."""

    NO_CONSENT = "NO_CONSENT"
    FREQUENCY_CAP = "FREQUENCY_CAP"
    NO_ADDRESS = "NO_ADDRESS"
    OPEN_COMPLAINT = "OPEN_COMPLAINT"
    DO_NOT_CONTACT = "DO_NOT_CONTACT"
    NOT_ELIGIBLE = "NOT_ELIGIBLE"


#: Causes that pass by themselves, and after which time somebody is looked at again.
PASSING = frozenset({Held.FREQUENCY_CAP, Held.OPEN_COMPLAINT})
AGAIN = timedelta(days=1)


class StepChannel(enum.StrEnum):
    """How a person is addressed."""

    SMS = "SMS"
    EMAIL = "EMAIL"
    TOUCH_POINT = "TOUCH_POINT"
    OUTBOUND_CALL = "OUTBOUND_CALL"
    SHOP = "SHOP"
    WEBHOOK = "WEBHOOK"


#: Whose consent a step needs.
CONSENT: Mapping[StepChannel, Channel] = {
    StepChannel.SMS: Channel.SMS,
    StepChannel.EMAIL: Channel.EMAIL,
    StepChannel.TOUCH_POINT: Channel.VOICE,
    StepChannel.OUTBOUND_CALL: Channel.VOICE,
    StepChannel.SHOP: Channel.VISIT,
    StepChannel.WEBHOOK: Channel.UNSPECIFIED,
}
#: Those who wait to be spoken to when the person is there anyway: no quiet hours, no sender.
WAITING = frozenset({StepChannel.TOUCH_POINT, StepChannel.SHOP})
#: Those that a sender delivers; a call's is the step's call list.
SENT = frozenset({StepChannel.SMS, StepChannel.EMAIL, StepChannel.WEBHOOK, StepChannel.OUTBOUND_CALL})


@dataclass(frozen=True, kw_only=True, slots=True)
class Cap:
    """At most so many touches in so many days."""

    #: None is over all channels together.
    channel: StepChannel | None = None
    touches_max: int
    days: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Quiet:
    """A daily span of quiet, which may pass midnight."""

    #: Minutes of the day; the end is the first minute after.
    start_minute: int
    end_minute: int
    #: Empty is all.
    channels: frozenset[StepChannel] = frozenset()
    #: Days on which it begins, 1 Monday to 7 Sunday; empty is all.
    weekdays: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Courtesy:
    """The rules that hold across all campaigns."""

    caps: tuple[Cap, ...] = (Cap(touches_max=4, days=30), Cap(channel=StepChannel.SMS, touches_max=2, days=7))
    quiet: tuple[Quiet, ...] = (
        Quiet(start_minute=12 * 60, end_minute=14 * 60),
        Quiet(start_minute=22 * 60, end_minute=8 * 60),
    )
    #: Whether public holidays are quiet all day.
    holidays_quiet: bool = False
    #: Nobody is addressed at all.
    halted: bool = False

    @property
    def days_max(self) -> int:
        """How far back touches matter."""
        return max((cap.days for cap in self.caps), default=0)


def touch_id(campaign: str, phase: str, step: str, customer: str) -> str:
    """The one id of a person's meeting with a step."""
    return f"{campaign}/{phase}/{step}/{customer}"


def capped(
    courtesy: Courtesy, touches: Sequence[tuple[datetime, str]], channel: StepChannel, now: datetime
) -> bool:
    """Whether one more touch would pass a cap; `touches` are (when, channel) of the earlier ones."""
    if not touches:
        return any(cap.touches_max <= 0 and cap.channel in (None, channel) for cap in courtesy.caps)
    for cap in courtesy.caps:
        if cap.channel not in (None, channel):
            continue
        since = now - timedelta(days=cap.days)
        counted = sum(at >= since and cap.channel in (None, over) for at, over in touches)
        if counted >= cap.touches_max:
            return True
    return False


def consents(profile: Profile, channel: StepChannel, now: datetime) -> bool:
    """Whether somebody may be addressed for marketing by a channel now, as crm reads it: only while a consent
    to it stands. Who is there of their own accord (`WAITING`) is not contacted: with them only a refusal
    counts, as with offers in a call. A webhook has no channel of its own: some consent must stand.
    """
    over = CONSENT[channel]
    if over in profile.refused_channels:
        return False
    return channel in WAITING or profile.consented(over, now)


def held_back(
    profile: Profile,
    channel: StepChannel,
    now: datetime,
    *,
    has_address: bool,
    complaining: bool,
    declined: bool,
    is_capped: bool,
    fits: bool = True,
) -> Held | None:
    """Why somebody is not addressed now; None when they may be. `fits` says whether they are eligible for
    what is promoted.
    """
    if not profile.alive or declined or profile.opted_out:
        return Held.DO_NOT_CONTACT
    if not consents(profile, channel, now):
        return Held.NO_CONSENT
    if complaining:
        return Held.OPEN_COMPLAINT
    if not fits:
        return Held.NOT_ELIGIBLE
    if not has_address:
        return Held.NO_ADDRESS
    return Held.FREQUENCY_CAP if is_capped else None


def own_quiet(profile: Profile) -> tuple[Quiet, ...]:
    """A person's own quiet windows, for the channels of steps."""
    return tuple(
        Quiet(
            start_minute=window.start_minute,
            end_minute=window.end_minute,
            weekdays=window.weekdays,
            channels=frozenset(step for step, channel in CONSENT.items() if channel in window.channels),
        )
        for window in profile.quiet_windows
        # Channels that no step uses must not become "all channels".
        if not window.channels or window.channels & set(CONSENT.values())
    )


def quiet_until(
    quiet: Sequence[Quiet],
    channel: StepChannel,
    now: datetime,
    zone: tzinfo,
    *,
    holiday: Callable[[datetime], bool] = lambda _: False,
) -> datetime | None:
    """When quiet ends that holds at this instant on the person's clock, spans and holidays that follow on
    each other taken together; None when none does. `holiday` says whether a local time is one. Where quiet
    does not end within `QUIET_SPANS_MAX` spans, the end of the last one looked at.
    """
    if channel in WAITING:
        return None
    moment = now
    for _ in range(QUIET_SPANS_MAX):
        end = _quiet_end(quiet, channel, moment.astimezone(zone), holiday)
        if end is None:
            break
        ended = end.astimezone(UTC)
        # Where clocks go back the end comes twice, and once is over already.
        moment = ended if ended > moment else end.replace(fold=1).astimezone(UTC)
    return moment if moment != now else None


def _quiet_end(
    quiet: Sequence[Quiet], channel: StepChannel, local: datetime, holiday: Callable[[datetime], bool]
) -> datetime | None:
    """The latest end of the spans that hold at a local time."""
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    minute = local.hour * 60 + local.minute
    ends = [midnight + timedelta(days=1)] if holiday(local) else []
    today, yesterday = local.isoweekday(), (midnight - timedelta(days=1)).isoweekday()
    for span in quiet:
        if span.channels and channel not in span.channels:
            continue
        first, end = span.start_minute, span.end_minute
        begins = not span.weekdays or today in span.weekdays
        if first < end:
            if begins and first <= minute < end:
                ends.append(midnight + timedelta(minutes=end))
        elif first > end:
            if begins and minute >= first:
                ends.append(midnight + timedelta(days=1, minutes=end))
            elif minute < end and (not span.weekdays or yesterday in span.weekdays):
                ends.append(midnight + timedelta(minutes=end))
    return max(ends, default=None)


def may_follow(touch: tuple[str, datetime] | None, wait: timedelta, now: datetime) -> datetime:
    """When the step after a touch may be taken (to be looked at again then, where that is later than now).
    `touch` is (its state, when it left or, before that, is due); None for somebody who was held back.
    """
    if touch is None or touch[0] == "FAILED":
        return now
    state, at = touch
    return (max(at, now) if state in ("QUEUED", "SENDING") else at) + wait


def variant_of(step: str, customer: str, weights: Sequence[tuple[str, int]]) -> str:
    """The variant that a person is dealt; weights are (variant, weight >= 1)."""
    total = sum(weight for _, weight in weights)
    left = share_of("variant", step, customer) * total
    for variant, weight in weights:
        left -= weight
        if left < 0:
            return variant
    return weights[-1][0]


def fill(text: str, values: Mapping[str, str]) -> str:
    """A message with its placeholders filled in; an unknown one is left empty."""
    parts = text.split("{{")
    found = [parts[0]]
    for part in parts[1:]:
        name, closed, rest = part.partition("}}")
        found.append(values.get(name.strip(), "") + rest if closed else "{{" + part)
    return "".join(found)


def placeholders(text: str) -> set[str]:
    """The names that a message asks for."""
    return {part.partition("}}")[0].strip() for part in text.split("{{")[1:] if "}}" in part}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """How one variant does."""

    variant: str
    contacts: int
    successes: int


def p_value(first: Arm, second: Arm) -> float:
    """Always-valid p-value of "both rates are the same", by the mixture sequential probability ratio test
    with a normal mixture of variance `PRIOR_VARIANCE`; for one look, the running minimum is the caller's.
    """
    count = min(first.contacts, second.contacts)
    if count < 1:
        return 1.0
    rates = [arm.successes / arm.contacts for arm in (first, second)]
    variance = sum(rate * (1 - rate) for rate in rates)
    if variance <= 0:
        variance = 1 / count
    difference = rates[0] - rates[1]
    spread = variance + count * PRIOR_VARIANCE
    ratio = math.sqrt(variance / spread) * math.exp(
        min(700.0, count**2 * PRIOR_VARIANCE * difference**2 / (2 * variance * spread))
    )
    return min(1.0, 1 / ratio)


def winner(
    arms: Sequence[Arm], *, contacts_min: int, contacts_max: int, error_max: float
) -> tuple[str, float]:
    """(the variant that takes all, "" while undecided; p-value of the best against the next)."""
    if len(arms) < 2:
        return "", 1.0
    ordered = sorted(
        arms, key=lambda arm: (-(arm.successes / arm.contacts if arm.contacts else 0), arm.variant)
    )
    # Each further variant is a further chance to err.
    chance = min(1.0, p_value(ordered[0], ordered[1]) * (len(arms) - 1))
    if all(arm.contacts >= max(1, contacts_min) for arm in arms):
        if chance <= error_max:
            return ordered[0].variant, chance
        if contacts_max and all(arm.contacts >= contacts_max for arm in arms):
            return ordered[0].variant, chance
    return "", chance


def projected(reached: int, start: datetime, end: datetime, now: datetime, most: int | None = None) -> int:
    """What is expected by the phase's end at the present pace. `most` is how many people there are at all,
    None while more may come.
    """
    length, passed = (end - start).total_seconds(), (min(now, end) - start).total_seconds()
    expected = reached if passed <= 0 or length <= 0 else int(reached * length / passed)
    return expected if most is None else min(expected, most)


def endangered(
    target: int, reached: int, start: datetime, end: datetime, now: datetime, most: int | None = None
) -> bool:
    """Whether a goal will be missed at the present pace, or because there are too few people. Of the pace
    nothing is said too early in the phase.
    """
    if most is not None and most < target:
        return True
    early = (now - start) < (end - start) * OUTLOOK_SHARE_MIN
    return not early and reached < target and projected(reached, start, end, now) < target


def best_words(texts: Sequence[tuple[str, Text]], profile: Profile) -> str:
    """The words for a person: their language before all, a tag's before the tier's before everybody's."""
    found: tuple[int, int, int, str] | None = None
    for place, (audience, text) in enumerate(texts):
        if audience and audience != profile.tier and audience not in profile.tags:
            continue
        nearness = 2 if not audience else 1 if audience == profile.tier else 0
        candidate = (0 if text.language == profile.language else 1, nearness, place, text.text)
        if found is None or candidate < found:
            found = candidate
    return found[3] if found else ""
