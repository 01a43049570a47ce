"""How often a number was about to be called lately: kept with each contact, so that no restart of a dialler
forgets it, and an erasure takes it along.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from marketing.shelf import Row

#: What is counted.
SPAN = timedelta(hours=24)
#: The highest limit, and so the most beginnings that a contact keeps.
CALLS_MAX = 20
#: Contacts of one number, on different lists, that are looked at.
CONTACTS_MAX = 1_000

#: Of a contact's content: [attempt, when it began], oldest first.
_BEGUN = "begun"


def begun(row: Row, attempt: int, now: datetime) -> Row:
    """A contact that is about to be called: told twice, an attempt counts once."""
    known = [[one, at] for one, at in row.content.get(_BEGUN, ()) if one != attempt and at > now - SPAN]
    return replace(row, content={**row.content, _BEGUN: [*known, [attempt, now]][-CALLS_MAX:]})


def not_begun(row: Row, attempt: int) -> Row:
    """A contact whose attempt came to nothing before anybody was called."""
    known = [[one, at] for one, at in row.content.get(_BEGUN, ()) if one != attempt]
    return replace(row, content={**row.content, _BEGUN: known}) if _BEGUN in row.content else row


def free_at(rows: Iterable[Row], id: str, attempt: int, most: int, now: datetime) -> datetime:
    """When the number of all these contacts may be called again for an attempt of the one with an `id`: `now`
    while it was called less than `most` times.
    """
    times = sorted(
        at
        for each in rows
        for one, at in each.content.get(_BEGUN, ())
        if at > now - SPAN and (each.id, one) != (id, attempt)
    )
    return times[-most] + SPAN if len(times) >= most else now
