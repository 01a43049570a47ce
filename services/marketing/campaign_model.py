"""A campaign as the runner needs it. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from marketing.campaign_engine import CampaignState, StepChannel
from marketing.model import EVERYBODY, Audience, Offer, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One wording of a step."""

    id: str
    weight: int
    #: Subject lines by language.
    subjects: tuple[Text, ...] = ()
    #: (audience, words).
    bodies: tuple[tuple[str, Text], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One way of addressing a person."""

    id: str
    channel: StepChannel
    #: Which sender; "" is the channel's default.
    sender: str = ""
    #: How long to wait for an answer before the next step.
    wait: timedelta
    variants: tuple[Variant, ...]
    #: The variant that won its comparison, "" while none did.
    winner: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One phase."""

    id: str
    start: datetime
    end: datetime
    #: Rule over earlier phases' answers, "" for everybody.
    entry_rule: str = ""
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Campaign:
    """A campaign with whom it addresses."""

    id: str
    state: CampaignState
    audience: Audience = EVERYBODY
    #: Id of a segment that follows events and keeps its members; "" where rule and audience say who belongs.
    segment: str = ""
    #: What it promotes, "offers/…", "" nothing.
    offer: str = ""
    #: That offer as it stands; None where there is none (any more).
    promoted: Offer | None = None
    #: The segment's rule, "" for none.
    rule: str = ""
    phases: tuple[Phase, ...]
