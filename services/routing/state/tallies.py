"""Running figures of a queue: what came of its calls, and what waits that were told came to."""

from __future__ import annotations

from routing.state.entries import Line

#: Weight of the newest handle time in the running mean that expected waits are made of.
HANDLE_TIME_GAIN = 0.05
#: Weight of the newest wait in what is known of earlier ones that were told; so many calls are taken for told
#: rightly before the first was seen.
TOLD_GAIN, TOLD_TRUSTED = 0.02, 25
#: What is told is corrected by no more than this, either way.
TOLD_CORRECTION_MAX = 20.0


class Tally:
    """What happened to a queue's calls in this shard, since the journal began."""

    __slots__ = (
        "abandoned",
        "answered",
        "answered_in_target",
        "handle_span_ms",
        "handled",
        "kept_span_ms",
        "moved",
        "offered",
        "refused",
        "short_abandoned",
        "told_span_ms",
        "wait_total_ms",
        "wrap_up_span_ms",
        "wrapped",
    )

    def __init__(self) -> None:
        self.offered = self.answered = self.answered_in_target = self.abandoned = self.short_abandoned = 0
        self.refused = self.moved = self.handled = self.wait_total_ms = 0
        self.wrapped = 0
        #: Running means of conversation and of after-call work; 0.0 before the first.
        self.handle_span_ms = self.wrap_up_span_ms = 0.0
        #: Waits that were expected and what they came to, added up, the older the less; 0.0 before the first.
        self.told_span_ms = self.kept_span_ms = 0.0

    def keep(self, told_ms: int, wait_ms: int) -> None:
        """A call of which `told_ms` was expected was answered after `wait_ms`."""
        if not self.told_span_ms:
            self.told_span_ms = self.kept_span_ms = float(TOLD_TRUSTED * told_ms)
        self.told_span_ms += told_ms - TOLD_GAIN * self.told_span_ms
        self.kept_span_ms += wait_ms - TOLD_GAIN * self.kept_span_ms

    @property
    def correction(self) -> float:
        """What waits come to, of what is expected of them: agents who serve other queues too, callers who
        leave or go before, ringing, several chats at once are in it.
        """
        if not self.told_span_ms:
            return 1.0
        ratio = self.kept_span_ms / self.told_span_ms
        return min(TOLD_CORRECTION_MAX, max(1 / TOLD_CORRECTION_MAX, ratio))


def expected_span_ms(line: Line, tally: Tally | None, ahead: int) -> int:
    """Expected wait behind `ahead` calls if a line's agents served nobody else, in milliseconds; -1 when it
    cannot be estimated.

    With n agents at work and mean handle time h, one of them becomes free every h / n on average, so the call
    behind k others waits (k + 1) h / n: the mean of the (k+1)-th of Poisson departures at rate n / h (the
    delay of those who wait in M/M/n, Erlang 1917, without later arrivals overtaking). Who is in a pause is
    not at work, unless all are.
    """
    if ahead == 0 and line.idle_count > 0:
        return 0
    agents = line.serving or line.logged_in
    if tally is None or not tally.handled or not agents:
        return -1
    return round((ahead + 1) * (tally.handle_span_ms + tally.wrap_up_span_ms) / agents)
