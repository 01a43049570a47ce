"""How long a journal has been silent, as far as one who follows it can tell."""

from __future__ import annotations

#: A look, or a timer, that comes later than this was not in time, real seconds.
STALL_SECONDS = 0.25


class Silence:
    """How long a candidate has heard nothing of the journal: added up of its own looks. A look that came late
    counts as if it had come nearly in time, because whoever was asleep or had no turn has not heard that
    nobody speaks; often the leader had no turn either.
    """

    def __init__(self, now: float) -> None:
        """`now` on any clock of real seconds."""
        self.seconds = 0.0
        self._looked = now

    def look(self, now: float, due_seconds: float) -> None:
        """Nothing was heard until now; this look was due so long after the one before."""
        self.seconds += min(now - self._looked, due_seconds + STALL_SECONDS)
        self._looked = now

    def heard(self, now: float) -> None:
        """The leader lives, or nobody could have heard it: it has its time again."""
        self.seconds, self._looked = 0.0, now
