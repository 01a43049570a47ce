"""The service figures of a day by the field's definitions; used for the demo's own calls and for the
reference alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Answered within this counts for the service level.
TARGET_SECONDS = 20.0
#: Abandoned sooner than this does not count against it.
SHORT_ABANDON_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceFigures:
    """ASA, service level and abandonment of a set of calls."""

    #: Calls answered.
    answered: int
    #: Callers who hung up before.
    abandoned: int
    #: Mean wait of those answered, business seconds; 0 when none was.
    asa_seconds: float
    #: Answered within the target, of answered and of abandoned after more than the short-abandon time; 1
    #: when none was.
    service_level_ratio: float

    @property
    def abandoned_ratio(self) -> float:
        total = self.answered + self.abandoned
        return self.abandoned / total if total else 0.0


def service_figures(answered_waits: Sequence[float], abandoned_waits: Sequence[float]) -> ServiceFigures:
    """From the waits in business seconds of the answered, and of those who hung up."""
    counted = len(answered_waits) + sum(wait > SHORT_ABANDON_SECONDS for wait in abandoned_waits)
    in_time = sum(wait <= TARGET_SECONDS for wait in answered_waits)
    return ServiceFigures(
        answered=len(answered_waits),
        abandoned=len(abandoned_waits),
        asa_seconds=sum(answered_waits) / len(answered_waits) if answered_waits else 0.0,
        service_level_ratio=in_time / counted if counted else 1.0,
    )
