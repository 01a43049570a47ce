"""How long it is remembered who was addressed with what: for as long as any cap or report asks, by the
business clock (a TTL index would go by the database's).

Of a campaign that is not over nothing goes: its touches say who met which step, so nobody meets one twice.
When it is over for `MARKETING_TOUCHES_DAYS`, all of them go; calls outside campaigns go when they are so old.
Where people stood, what they answered and bought stays (campaign_contacts). Loads no grpc.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from callmesh.marketing.v1 import campaigns_pb2
from chassis.metrics import counter
from marketing.campaign_store import CampaignStore
from marketing.kinds import CAMPAIGNS
from marketing.shelf import Row, Shelves

#: Campaigns read at once.
PAGE = 500
#: Touches removed at once, and at most in one go; the rest waits for the next.
AT_ONCE = 1_000
A_GO_MAX = 100_000
_OVER = [campaigns_pb2.CAMPAIGN_STATE_STOPPED, campaigns_pb2.CAMPAIGN_STATE_COMPLETED]

_removed = counter("marketing_touches_removed_total", "Touches that grew too old to be asked for.")


def kept_since(now: datetime, days: float) -> datetime:
    """Touches of before this time are not kept."""
    return now - timedelta(days=days)


def over_since(row: Row) -> datetime | None:
    """When a campaign addressed somebody for the last time, at the latest; None for one that is not over."""
    if row.keys.get("state") not in _OVER:
        return None
    ends = [
        datetime.fromisoformat(phase["period"]["end_time"])
        for phase in row.content["resource"].get("phases", ())
        if phase.get("period", {}).get("end_time")
    ]
    # One that was stopped addressed nobody later either; what is changed of it since is its name at most.
    return min([*([max(ends)] if ends else []), *([row.updated_at] if row.updated_at else [])], default=None)


def forgotten(row: Row, since: datetime) -> bool:
    """Whether a campaign's touches are, or may be, gone."""
    over = over_since(row)
    return over is not None and over < since


def campaigns_of(shelves: Shelves) -> Iterator[Row]:
    """All that are over."""
    after = None
    while True:
        rows = shelves.find(CAMPAIGNS, {"state": {"$in": _OVER}}, PAGE, after=after)
        yield from rows
        if len(rows) < PAGE:
            return
        after = rows[-1].id


def remove_old(shelves: Shelves, people: CampaignStore, now: datetime, days: float) -> int:
    """Removes touches that nothing asks for any more; how many. Repeatable, beside everything else."""
    since = kept_since(now, days)
    # "" is outside campaigns.
    names = ["", *(row.id for row in campaigns_of(shelves) if forgotten(row, since))]
    gone = 0
    for name in names:
        while gone < A_GO_MAX and (count := people.remove_touches(name, since, AT_ONCE)):
            gone += count
    _removed.inc(gone)
    return gone
