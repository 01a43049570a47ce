"""How patient a shard's leader and its candidates are: what a deployment sets of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from routing.model import Timing


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaderOptions:
    """Real seconds; the defaults are the platform's."""

    #: An idle leader commits this often.
    heartbeat_seconds: float = 0.5
    #: A router of the shard's own region opens after this much silence of the journal.
    takeover_seconds: float = 1.5
    #: A router of another region, on the lead list as a backup, after this much.
    backup_seconds: float = 4.0
    #: A standby reads the journal's tail this often.
    tail_seconds: float = 0.25
    #: A block unknown for longer than this makes an outage: new work is answered UNAVAILABLE.
    outage_seconds: float = 1.0
    #: Blocks of a busy leader begin at least so far apart.
    gather_seconds: float = 0.0
    #: Protocol durations, already in business milliseconds.
    timing: Timing = field(default_factory=Timing)
