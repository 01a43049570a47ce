"""Decisions of a span, read in bounded batches, with what the customers took afterwards: what a policy and
what offering are judged by. Loads no grpc.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from marketing.model import Decision
from marketing.store import Store

#: Decisions read at once.
PAGE = 1_000
#: Purchases so long after a decision count as its effect.
UPLIFT_DAYS = 14


def decisions_within(store: Store, start: datetime, end: datetime, most: int) -> Iterator[Sequence[Decision]]:
    """The newest `most` decisions made from `start` on and before `end`, newest first, a batch at a time."""
    after: tuple[datetime, str] | None = None
    while most > 0:
        page = store.decisions_made(start, end, min(PAGE, most), after)
        if page:
            yield page
        if len(page) < min(PAGE, most):
            return
        most -= len(page)
        after = (page[-1].created_at, page[-1].id)


def taken_after(store: Store, decisions: Sequence[Decision]) -> list[set[str]]:
    """Of each decision the products looked at that its customer took within `UPLIFT_DAYS`."""
    asked = [decision for decision in decisions if decision.customer and decision.considered]
    if not asked:
        return [set() for _ in decisions]
    span = timedelta(days=UPLIFT_DAYS)
    first = min(decision.created_at for decision in asked)
    last = max(decision.created_at for decision in asked) + span
    looked = {considered.product for decision in asked for considered in decision.considered}
    bought: dict[str, list[tuple[str, datetime]]] = {}
    for customer, product, at in store.purchases_within(sorted({d.customer for d in asked}), first, last):
        if product in looked:
            bought.setdefault(customer, []).append((product, at))
    found = []
    for decision in decisions:
        mine = {considered.product for considered in decision.considered}
        until = decision.created_at + span
        found.append(
            {
                product
                for product, at in bought.get(decision.customer, ())
                if product in mine and decision.created_at <= at < until
            }
        )
    return found
