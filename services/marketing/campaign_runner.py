"""Runs campaigns: takes people in by batches, takes them from step to step, and hands messages to senders.

Everything here may be killed at any line and run again (campaign_store.py says why). One runner at a time
holds the lease, so the caps over all campaigns are counted by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from marketing.campaign_engine import (
    AGAIN,
    CONSENT,
    PASSING,
    SENT,
    WAITING,
    Courtesy,
    StepChannel,
    capped,
    held_back,
    may_follow,
    own_quiet,
    quiet_until,
    touch_id,
    variant_of,
)
from marketing.campaign_model import Campaign, Phase, Step
from marketing.campaign_store import FINAL_ANSWERS, CampaignStore
from marketing.documents import profile_from_raw
from marketing.engine import eligible
from marketing.model import Contact, Profile
from marketing.rules import CustomerFacts, compiled
from marketing.segments import belongs

#: People looked at in one batch.
BATCH = 2_000
#: Batches taken in before the runner looks at anything else.
BATCHES_A_TURN = 10
#: Where a person's clock is not known.
DEFAULT_ZONE = "Asia/Shanghai"

#: Whether somebody can be reached over a channel by a sender, "" for the channel's own.
Reachable = Callable[[Profile, StepChannel, str], bool]
#: Digits of a number that tell its time zone, the "+" among them.
ZONE_CHARACTERS = 8


def has_number(profile: Profile, channel: StepChannel, sender: str = "") -> bool:
    """The plain test: everything but mail, the shop and other systems needs a number."""
    return bool(profile.numbers) or channel in (StepChannel.SHOP, StepChannel.WEBHOOK, StepChannel.EMAIL)


@lru_cache(maxsize=1_000)
def is_zone(name: str) -> bool:
    """Whether a text is the name of a time zone."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


@lru_cache(maxsize=1_000)
def zone_of(name: str) -> tzinfo:
    """A person's clock; the default for an unknown name."""
    return ZoneInfo(name if is_zone(name) else DEFAULT_ZONE)


def clock_name(time_zone: str, number: str) -> str:
    """The time zone of a person: as known, where there is one of that name; else by the number, else ""."""
    return time_zone if is_zone(time_zone) else _zone_of_prefix(number[:ZONE_CHARACTERS])


@lru_cache(maxsize=20_000)
def _zone_of_prefix(prefix: str) -> str:
    """Numbers that begin alike share a zone; of several zones the first."""
    import phonenumbers
    from phonenumbers.timezone import UNKNOWN_TIMEZONE, time_zones_for_geographical_number

    try:
        found = time_zones_for_geographical_number(phonenumbers.parse(prefix))
    except phonenumbers.NumberParseException:
        return ""
    return "" if not found or found[0] == UNKNOWN_TIMEZONE else str(found[0])


def fits(campaign: Campaign, profile: Profile, channel: StepChannel, now: datetime) -> bool:
    """Whether somebody may be made the offer that a campaign promotes, if any."""
    if not campaign.offer:
        return True
    contact = Contact(channel=CONSENT[channel])
    return campaign.promoted is not None and eligible(campaign.promoted, profile, contact, now)


def is_quiet_until(
    courtesy: Courtesy,
    profile: Profile,
    channel: StepChannel,
    now: datetime,
    holiday: Callable[[datetime], bool],
) -> datetime | None:
    """When to look again at a person for whom it is quiet now: when that ends, and after a day at the latest,
    for rules change. None when it is not quiet.
    """
    zone = zone_of(clock_name(profile.time_zone, profile.numbers[0] if profile.numbers else ""))
    days = holiday if courtesy.holidays_quiet else _no_holiday
    spans = (*courtesy.quiet, *own_quiet(profile)) if profile.quiet_windows else courtesy.quiet
    end = quiet_until(spans, channel, now, zone, holiday=days)
    return None if end is None else min(end, now + AGAIN)


def _no_holiday(_: datetime) -> bool:
    return False


@dataclass(kw_only=True, slots=True)
class Taken:
    """What is to be written of a batch of people."""

    #: Where they stand.
    rows: list[dict[str, Any]] = field(default_factory=list)
    touches: list[dict[str, Any]] = field(default_factory=list)
    #: How many were addressed, and what held the others back.
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class Runner:
    """Takes people through campaigns."""

    store: CampaignStore
    courtesy: Courtesy
    reachable: Reachable = has_number
    #: Whether a day is a holiday, for those who want quiet then.
    holiday: Callable[[datetime], bool] = lambda _: False
    batch: int = BATCH

    def work(self, campaign: Campaign, now: datetime) -> int:
        """One batch of each phase that runs, and of next steps; how many people were looked at."""
        done = 0
        for phase in campaign.phases:
            if phase.start <= now < phase.end:
                done += self.take_in(campaign, phase, now)
        return done + self.answered(campaign, now) + self.next_steps(campaign, now)

    def take_in(self, campaign: Campaign, phase: Phase, now: datetime, batches: int = BATCHES_A_TURN) -> int:
        """Takes the next batches of customers into a phase; how many were looked at, 0 when all were.

        While one batch is being written the next is read and judged. Each is noted as done only after it was
        written, and after the one before it.
        """
        cursor, done, _ = self.store.run(campaign.id, phase.id)
        looked = 0
        writing: Future[None] | None = None
        try:
            for _ in range(batches):
                if done:
                    break
                raws, cursor, done = self._page(campaign, cursor)
                taken = self._judged(campaign, phase, raws, now)
                looked += len(raws)
                if writing is not None:
                    writing.result()
                writing = self.store.beside(self._write, campaign, phase, taken, cursor, done)
        finally:
            if writing is not None:
                writing.result()
        return looked

    def _page(self, campaign: Campaign, cursor: str) -> tuple[Sequence[Mapping[str, Any]], str, bool]:
        """(the next customers who may belong, the last one looked at, whether there are no more)."""
        if not campaign.segment:
            raws = self.store.profiles(cursor, self.batch)
            return raws, raws[-1]["_id"] if raws else cursor, len(raws) < self.batch
        ids = self.store.members(campaign.segment, cursor, self.batch)
        known = self.store.profiles_of(ids)
        return [known[id] for id in ids if id in known], ids[-1] if ids else cursor, len(ids) < self.batch

    def newcomers(self, campaigns: Sequence[Campaign], now: datetime, paused: Sequence[Campaign] = ()) -> int:
        """Takes in those who joined segments since campaigns on them looked at all members; how many.
        `paused` campaigns look at their members anew when they go on.
        """
        looked = 0
        for campaign in campaigns:
            if campaign.segment:
                self.store.recall(campaign.segment, _runs(campaign))
        for segment in sorted({campaign.segment for campaign in campaigns} - {""}):
            fresh = self.store.fresh(segment, self.batch)
            if not fresh:
                continue
            looked += len(fresh)
            raws, settled = list(self.store.profiles_of(fresh).values()), True
            for campaign in campaigns:
                if campaign.segment != segment:
                    continue
                for phase in campaign.phases:
                    if phase.start <= now < phase.end:
                        settled &= self._welcome(campaign, phase, raws, now)
            # Some phase still looks at all members, and may have passed these by already.
            if settled:
                self.store.miss([run for one in paused if one.segment == segment for run in _runs(one)])
                self.store.settle(segment, fresh)
            else:
                looked -= len(fresh)
        return looked

    def answered(self, campaign: Campaign, now: datetime) -> int:
        """Takes those who answered since a phase looked at everybody into it, where its entry rule holds for
        them now; how many answers were looked at.
        """
        rows = self.store.answered(campaign.id, self.batch)
        if not rows:
            return 0
        raws = {
            raw["_id"]: raw for raw in self.store.survivors_of([row["customer"] for row in rows]).values()
        }
        if campaign.segment:
            members = self.store.members_among(campaign.segment, sorted(raws))
            raws = {customer: raw for customer, raw in raws.items() if customer in members}
        settled = True
        for phase in campaign.phases:
            if phase.entry_rule and phase.start <= now < phase.end:
                settled &= self._welcome(campaign, phase, list(raws.values()), now)
        if settled:
            self.store.settle_answers(rows)
        return len(rows) if settled else 0

    def _welcome(
        self, campaign: Campaign, phase: Phase, raws: Sequence[Mapping[str, Any]], now: datetime
    ) -> bool:
        """Takes newcomers into a phase; False while it has not looked at all the others."""
        cursor, done, _ = self.store.run(campaign.id, phase.id)
        if not done:
            return False
        here = {
            customer
            for customer, stands in self.store.standing_people(
                campaign.id, [profile_from_raw(raw) for raw in raws]
            ).items()
            if phase.id in (stands.get("touched") or {})
        }
        taken = self._judged(campaign, phase, [raw for raw in raws if raw["_id"] not in here], now)
        # Touches first: who stands here is not looked at again, whatever a crash cuts off.
        self.store.take_in((), taken.touches)
        self._write(campaign, phase, replace(taken, touches=[]), cursor, done)
        return True

    def _write(self, campaign: Campaign, phase: Phase, taken: Taken, cursor: str, done: bool) -> None:
        self.store.take_in(taken.rows, taken.touches)
        self.store.advance(campaign.id, phase.id, cursor, taken.counts, done)

    def _judged(
        self, campaign: Campaign, phase: Phase, raws: Sequence[Mapping[str, Any]], now: datetime
    ) -> Taken:
        """What becomes of a batch of customers."""
        members = [profile for raw in raws if self._member(campaign, profile := profile_from_raw(raw), now)]
        standing = self._standing(campaign, phase, members)
        members = entrants(phase, members, standing, now)
        taken = self._addressed(campaign, phase, 0, members, standing, now)
        taken.counts["segment"] = len(members)
        return taken

    def _standing(
        self, campaign: Campaign, phase: Phase, members: Sequence[Profile]
    ) -> Mapping[str, dict[str, Any]]:
        first = phase is campaign.phases[0] and not phase.entry_rule and not campaign.segment
        # Whoever was merged into somebody may stand here for them already.
        people = [profile for profile in members if not first or profile.absorbed]
        return self.store.standing_people(campaign.id, people) if people else {}

    def _member(self, campaign: Campaign, profile: Profile, now: datetime) -> bool:
        return belongs(campaign.audience, campaign.rule, profile, now)

    def _addressed(
        self,
        campaign: Campaign,
        phase: Phase,
        number: int,
        people: Sequence[Profile],
        standing: Mapping[str, dict[str, Any]],
        now: datetime,
    ) -> Taken:
        """A step's touch for each of these people, or what holds them back."""
        step = phase.steps[number]
        ids = [profile.customer for profile in people]
        if not ids:
            return Taken()
        complaining = self.store.complaining(ids)
        since = now - timedelta(days=self.courtesy.days_max)
        several = any(profile.absorbed for profile in people)
        earlier = self.store.touched_people(people, min(since, phase.start) if several else since, now)
        counts: dict[str, int] = {}
        rows, touches = [], []
        quiet: dict[Any, datetime | None] = {}
        for profile in people:
            mine = touch_id(campaign.id, phase.id, step.id, profile.customer)
            met = earlier.get(profile.customer, ())
            others = [(at, over) for at, over, id in met if id != mine]
            # Met under the name of somebody who was merged into them since: that was their meeting.
            again = bool(profile.absorbed) and _met_as_another(campaign, phase, step, profile, met)
            stands = standing.get(profile.customer)
            held = held_back(
                profile,
                step.channel,
                now,
                has_address=self.reachable(profile, step.channel, step.sender),
                complaining=profile.customer in complaining,
                declined=stands is not None and stands.get("response") in FINAL_ANSWERS,
                is_capped=capped(self.courtesy, others, step.channel, now),
                fits=fits(campaign, profile, step.channel, now),
            )
            if again:
                held = None
            elif held is None:
                number_of = profile.numbers[0][:ZONE_CHARACTERS] if profile.numbers else ""
                zone = profile.time_zone if is_zone(profile.time_zone) else number_of
                clock = (zone, profile.quiet_windows)
                if clock not in quiet:
                    quiet[clock] = is_quiet_until(self.courtesy, profile, step.channel, now, self.holiday)
                touches.append(_touch(campaign, phase, step, profile, mine, now, quiet[clock] or now))
            else:
                counts[held.value] = counts.get(held.value, 0) + 1
            # Who stands here already was taken in by a run that a crash cut off.
            if stands is None or (stands.get("phase"), stands.get("step")) != (phase.id, step.id):
                if held in PASSING and now + AGAIN < phase.end:
                    rows.append(_put_off(campaign, phase, number, profile, stands, now + AGAIN))
                else:
                    addressed = held is None and not again
                    rows.append(_person(campaign, phase, number, profile, stands, now, addressed))
        counts["touches"] = len(touches)
        return Taken(rows=rows, touches=touches, counts=counts)

    def next_steps(self, campaign: Campaign, now: datetime) -> int:
        """Takes a batch of those who did not answer to their next step; how many."""
        due = self.store.due(campaign.id, now, self.batch)
        if not due:
            return 0
        people = self._whom(campaign, self._waited(campaign, due, now))
        groups: dict[tuple[str, str], list[Profile]] = {}
        standing: dict[str, dict[str, Any]] = {}
        for raw in due:
            if (profile := people.get(raw["_id"])) is not None:
                groups.setdefault((raw["phase"], raw["step"]), []).append(profile)
                standing[profile.customer] = raw
        for (phase_id, step_id), some in groups.items():
            phase = next(phase for phase in campaign.phases if phase.id == phase_id)
            # "" is before the first: somebody who was put off there.
            place = next((at for at, step in enumerate(phase.steps) if step.id == step_id), -1)
            if place + 1 < len(phase.steps) and now < phase.end:
                taken = self._addressed(campaign, phase, place + 1, some, standing, now)
                self.store.take_in(taken.rows, taken.touches)
            else:
                self._let_go([standing[profile.customer] for profile in some])
        return len(due)

    def _waited(
        self, campaign: Campaign, due: Sequence[dict[str, Any]], now: datetime
    ) -> list[dict[str, Any]]:
        """Those of some rows who had as long to answer as the step before says. Its message may have left
        late (after quiet hours, a pause, trouble of its sender), or is still to leave: such people are put
        off.
        """
        waits = {(phase.id, step.id): step.wait for phase in campaign.phases for step in phase.steps}
        ids = [touch_id(campaign.id, raw["phase"], raw["step"], raw["customer"]) for raw in due]
        leaving = self.store.leaving(ids)
        ready, later = [], []
        for id, raw in zip(ids, due, strict=True):
            place = (raw["phase"], raw["step"])
            again = may_follow(leaving.get(id), waits.get(place, timedelta()), now)
            if again <= now:
                ready.append(raw)
            else:
                later.append({"_id": raw["_id"], "was": place, "set": {"$set": {"next_at": again}}})
        self.store.take_in(later, ())
        return ready

    def _whom(self, campaign: Campaign, due: Sequence[dict[str, Any]]) -> dict[str, Profile]:
        """Whom rows are about, by row: one who was merged goes on as the survivor. No further steps for those
        who left the segment or have answered (while the step before was being noted), nor twice for one
        person.
        """
        raws = self.store.survivors_of([raw["customer"] for raw in due])
        profiles = {customer: profile_from_raw(raw) for customer, raw in raws.items()}
        as_another = {p.customer for customer, p in profiles.items() if p.customer != customer}
        taken = set(self.store.standing(campaign.id, sorted(as_another))) if as_another else set()
        members = {profile.customer for profile in profiles.values()}
        if campaign.segment:
            members = self.store.members_among(campaign.segment, sorted(members))
        people, left = {}, []
        for raw in due:
            profile = profiles.get(raw["customer"])
            if profile is None:
                continue
            own = profile.customer == raw["customer"]
            twice = not own and profile.customer in taken
            if profile.customer not in members or twice or raw["phase"] in (raw.get("answers") or {}):
                left.append(raw)
                continue
            taken.add(profile.customer)
            people[raw["_id"]] = profile
        self._let_go(left)
        return people

    def _let_go(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """No further steps for these."""
        ends = [{"_id": raw["_id"], "was": (raw["phase"], raw["step"])} for raw in rows]
        self.store.take_in([{**end, "set": {"$unset": {"next_at": ""}}} for end in ends], ())


_NOWHERE = Contact()


def _runs(campaign: Campaign) -> list[tuple[str, str]]:
    """(campaign, phase) of each of its phases."""
    return [(campaign.id, phase.id) for phase in campaign.phases]


def entrants(
    phase: Phase, members: list[Profile], standing: Mapping[str, dict[str, Any]], now: datetime
) -> list[Profile]:
    """Those members of the segment for whom a phase's entry rule holds."""
    if not phase.entry_rule:
        return members
    rule = compiled(phase.entry_rule)
    return [
        profile
        for profile in members
        if rule.matches(CustomerFacts(profile, _NOWHERE, now, _answers(standing, profile)))
    ]


def _answers(standing: Mapping[str, dict[str, Any]], profile: Profile) -> dict[str, str]:
    stands = standing.get(profile.customer)
    return (
        {phase: answer.lower() for phase, answer in (stands.get("answers") or {}).items()} if stands else {}
    )


def _met_as_another(
    campaign: Campaign,
    phase: Phase,
    step: Step,
    profile: Profile,
    met: Sequence[tuple[datetime, str, str]],
) -> bool:
    """Whether somebody who was merged into a person met a step, and so the person did."""
    ids = {touch_id(campaign.id, phase.id, step.id, customer) for customer in profile.absorbed}
    return any(id in ids for _, _, id in met)


def _touch(
    campaign: Campaign, phase: Phase, step: Step, profile: Profile, id: str, now: datetime, due: datetime
) -> dict[str, Any]:
    weights = [(variant.id, variant.weight) for variant in step.variants]
    variant = step.winner or variant_of(f"{campaign.id}/{phase.id}/{step.id}", profile.customer, weights)
    state = "WAITING" if step.channel in WAITING or step.channel not in SENT else "QUEUED"
    return {
        "_id": id,
        "version": 1,
        "campaign": campaign.id,
        "phase": phase.id,
        "step": step.id,
        "variant": variant,
        "customer": profile.customer,
        "region": profile.home_region,
        "channel": step.channel.value,
        "sender": step.sender,
        "state": state,
        "at": now,
        "due_at": due,
    }


def _person(
    campaign: Campaign,
    phase: Phase,
    number: int,
    profile: Profile,
    stands: Mapping[str, Any] | None,
    now: datetime,
    touched: bool,
) -> dict[str, Any]:
    """Where a person stands after a step, as a new document or as a change of the present one."""
    step = phase.steps[number]
    next_at = now + step.wait if number + 1 < len(phase.steps) else None
    if stands is not None:
        change: dict[str, Any] = {"$set": {"phase": phase.id, "step": step.id}}
        if touched:
            change["$inc"] = {"touch_count": 1, f"touched.{phase.id}": 1}
            change["$set"]["touched_at"] = now
        elif phase.id not in (stands.get("touched") or {}):
            change["$set"][f"touched.{phase.id}"] = 0
        if next_at is not None:
            change["$set"]["next_at"] = next_at
        else:
            change["$unset"] = {"next_at": ""}
        return {
            "_id": stands["_id"],
            "was": (stands.get("phase"), stands.get("step")),
            "set": change,
        }
    row: dict[str, Any] = {
        "_id": f"{campaign.id}/{profile.customer}",
        "campaign": campaign.id,
        "customer": profile.customer,
        "region": profile.home_region,
        "value_class": profile.value_class,
        "phase": phase.id,
        "step": step.id,
        "touched": {phase.id: int(touched)},
        "answers": {},
        "touch_count": int(touched),
    }
    if touched:
        row["touched_at"] = now
    if next_at is not None:
        row["next_at"] = next_at
    return row


def _put_off(
    campaign: Campaign,
    phase: Phase,
    number: int,
    profile: Profile,
    stands: Mapping[str, Any] | None,
    again: datetime,
) -> dict[str, Any]:
    """Where a person stands who is to be looked at again for a step: before it."""
    before = phase.steps[number - 1].id if number else ""
    if stands is None:
        row = _person(campaign, phase, number, profile, None, again, False)
        return {**row, "step": before, "next_at": again}
    change: dict[str, Any] = {"phase": phase.id, "step": before, "next_at": again}
    if phase.id not in (stands.get("touched") or {}):
        change[f"touched.{phase.id}"] = 0
    return {
        "_id": stands["_id"],
        "was": (stands.get("phase"), stands.get("step")),
        "set": {"$set": change},
    }
