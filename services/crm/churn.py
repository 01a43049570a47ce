"""How likely a customer is to leave, and why. Pure.

The score is 1 - product(1 - w x) over what speaks for leaving: each reason has a weight w, how far it alone
is to be believed, and a strength x from 0 to 1. So every point of the score has a reason that an agent can
read, more reasons never lower it, and none alone makes it 1. It is a rule of thumb that an enterprise can
check against its own leavers, not a fitted model: no label of who left comes with the platform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crm.model import ChurnReason, Interaction, InteractionKind

#: How far back the timeline is looked at, days, and how many interactions of it.
HISTORY_DAYS = 90
HISTORY_MAX = 300
#: How long "I want to leave" counts in full and until it is forgotten, days.
INTENT_DAYS = 180
#: Steps of the scale: a score that crosses one is told to the others.
STEPS = (0.25, 0.5, 0.75)
_DAY_MS = 86_400_000

_WEIGHTS: Mapping[str, float] = {
    "WANTS_TO_LEAVE": 0.7,
    "REPEATED_COMPLAINTS": 0.45,
    "UNRESOLVED_CALLS": 0.35,
    "LOW_SATISFACTION": 0.3,
    "CONTRACT_ENDS": 0.3,
    "USAGE_FALLS": 0.3,
    "ABANDONED_CALLS": 0.15,
}
_TEXTS: Mapping[str, tuple[str, str]] = {
    "WANTS_TO_LEAVE": ("客户表示想离网", "said so himself"),
    "REPEATED_COMPLAINTS": ("近期投诉{n}次", "{n} complaints lately"),
    "UNRESOLVED_CALLS": ("{n}次来电未解决", "{n} calls not resolved"),
    "LOW_SATISFACTION": ("满意度低（{n}分）", "rated us {n} of 5"),
    "CONTRACT_ENDS": ("合约{n}天后到期", "contract ends in {n} days"),
    "USAGE_FALLS": ("用量下降{n}%", "usage fell by {n} %"),
    "ABANDONED_CALLS": ("{n}次来电未接通", "{n} calls not answered"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """What is known of a customer, as far as it bears on leaving."""

    #: Newest first, of the last `HISTORY_DAYS`.
    interactions: Sequence[Interaction] = ()
    #: When the customer, or one who was merged into it, said so, business ms; 0 never, or taken back.
    intent_ms: int = 0
    #: Days until the first contract ends that does not renew itself; None: none ends soon.
    contract_days: float | None = None
    #: Usage of the latest period against the mean of those before, 0 to 1 and above; None: not known.
    usage_ratio: float | None = None


def scored(signs: Signs, now_ms: int) -> tuple[float, tuple[ChurnReason, ...]]:
    """(score 0 to 1, reasons, strongest first)."""
    found = {code: item for code, item in _strengths(signs, now_ms).items() if item[0] > 0}
    doubt = 1.0
    for code, (strength, _) in found.items():
        doubt *= 1.0 - _WEIGHTS[code] * strength
    reasons = [
        ChurnReason(code=code, weight=round(_WEIGHTS[code] * strength, 4), value=round(value, 2))
        for code, (strength, value) in found.items()
    ]
    return round(1.0 - doubt, 4), tuple(sorted(reasons, key=lambda r: (-r.weight, r.code)))


def _strengths(signs: Signs, now_ms: int) -> dict[str, tuple[float, float]]:
    """Code -> (strength 0 to 1, the number that its text names)."""
    calls = [i for i in signs.interactions if i.kind is InteractionKind.CALL]
    complaints = sum(
        1
        for i in signs.interactions
        if i.kind is InteractionKind.TICKET and i.detail.get("kind") == "COMPLAINT"
    )
    unresolved = sum(1 for call in calls if call.detail.get("resolved") is False)
    abandoned = sum(1 for call in calls if call.detail.get("state") == "ABANDONED")
    ratings = [i.detail.get("satisfaction") or 0 for i in signs.interactions]
    low = min((rating for rating in ratings if rating), default=0)
    intent_days = (now_ms - signs.intent_ms) / _DAY_MS if signs.intent_ms else INTENT_DAYS
    ends, usage = signs.contract_days, signs.usage_ratio
    return {
        "WANTS_TO_LEAVE": (_fading(intent_days), 0.0),
        "REPEATED_COMPLAINTS": (min(complaints / 3, 1.0), complaints),
        "UNRESOLVED_CALLS": (min(unresolved / 3, 1.0), unresolved),
        "LOW_SATISFACTION": (max(0.0, (3 - low) / 2) if low else 0.0, low),
        "CONTRACT_ENDS": (max(0.0, 1 - ends / 60) if ends is not None and ends >= 0 else 0.0, ends or 0),
        "USAGE_FALLS": (
            min(max(0.0, (0.8 - usage) / 0.6), 1.0) if usage is not None else 0.0,
            (1 - usage) * 100 if usage is not None else 0.0,
        ),
        "ABANDONED_CALLS": (min(abandoned / 4, 1.0), abandoned),
    }


def _fading(days: float) -> float:
    # Full for a third of the time, then in a line to nothing.
    return 1.0 if days <= INTENT_DAYS / 3 else max(0.0, 1.5 * (1 - days / INTENT_DAYS))


def text(reason: ChurnReason, language: str) -> str:
    """One line for an agent, in "zh" or "en"."""
    zh, en = _TEXTS.get(reason.code, (reason.code, reason.code))
    return (zh if language == "zh" else en).format(n=round(reason.value))


def step(score: float) -> int:
    """On which step of the scale a score stands."""
    return sum(1 for bound in STEPS if score >= bound)
