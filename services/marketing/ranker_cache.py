"""Keeps a Ranker at hand for the recommending server: catalogue and rule table, read again when they grow
old.

One reading at a time, started by the first request that finds them old; the others go on with what there is.
While reading fails, what there is serves until it is `stale_seconds` old. A model that cannot be read (gone,
half written) leaves the last good one in place, and the plain popularity of an empty table where there never
was one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date

from chassis.clock import Clock
from chassis.errors import CallmeshError, Unavailable
from chassis.logs import get_logger
from chassis.metrics import counter, gauge
from marketing.association import RuleTable
from marketing.effects import Churn, Uplift, churn_from_content, uplift_from_content
from marketing.kinds import BROKEN, CHURN, UPLIFT
from marketing.model import Offer
from marketing.policy import Policy
from marketing.propensity import Propensity
from marketing.ranking import Ranker
from marketing.reader import Reader

_log = get_logger(__name__)


class CatalogueUnavailable(Unavailable):
    """The offer catalogue cannot be read just now: {why}."""

    reason = "CATALOGUE_UNAVAILABLE"


#: In force where nothing else is said.
DEFAULT = Policy()


class RankerCache:
    """Hands out the Ranker of the present catalogue and model. For one event loop."""

    def __init__(
        self,
        reader: Reader,
        clock: Clock,
        *,
        fresh_seconds: float,
        stale_seconds: float,
        policy: Policy = DEFAULT,
    ) -> None:
        """`policy` holds while nobody set one."""
        #: What turns estimates into decisions.
        self.policy = policy
        #: What corrects estimates.
        self.propensity = Propensity()
        #: What offering changes, and who is about to leave.
        self.uplift = Uplift()
        self.churn = Churn()
        self._default_policy = policy
        self._reader = reader
        self._clock = clock
        self._fresh_seconds = fresh_seconds
        self._stale_seconds = stale_seconds
        self._ranker = Ranker((), RuleTable())
        self._signature: tuple[object, ...] = ()
        #: The very catalogue, table and day that the ranker was looked over for last.
        self._looked: tuple[Sequence[Offer], RuleTable, date] | None = None
        self._table = RuleTable()
        #: Real time of the last good reading; None before the first.
        self._read_at: float | None = None
        self._reading: asyncio.Task[None] | None = None
        #: Rises with every `expire`, so that a reading begun before it does not count as fresh.
        self._generation = 0
        self._failures = counter(
            "marketing_catalogue_failures_total", "Readings of the catalogue that failed."
        )
        self._offers = gauge("marketing_offers_ranked", "Published offers in the ranking.")

    def _age(self) -> float:
        return float("inf") if self._read_at is None else self._clock.monotonic() - self._read_at

    async def ranker(self) -> Ranker:
        """The present one; Unavailable when nothing fresh enough can be had."""
        age = self._age()
        if age > self._fresh_seconds:
            task = self._start()
            if age > self._stale_seconds:
                await asyncio.shield(task)
                if self._age() > self._stale_seconds:
                    # The reading may have begun before an `expire`: one more, begun after it, decides.
                    await asyncio.shield(self._start())
                if self._age() > self._stale_seconds:
                    raise CatalogueUnavailable(why="try again")
        return self._ranker

    def expire(self) -> None:
        """What was changed through this server is read again before the next ranking."""
        self._read_at = None
        self._generation += 1

    def _start(self) -> asyncio.Task[None]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read())
        return self._reading

    async def _read(self) -> None:
        started, generation = self._clock.monotonic(), self._generation
        try:
            offers = await self._reader.read_published()
            await self._read_table()
            await self._read_propensity()
            await self._read_effects()
            self.policy = await self._reader.read_policy() or self._default_policy
        except Exception as error:  # whatever the driver raises: what there is goes on serving
            self._failures.inc()
            _log.warning("catalogue.read_failed", error=type(error).__name__)
            return
        self._adopt(offers)
        if generation == self._generation:
            self._read_at = started

    async def _read_table(self) -> None:
        serving = await self._reader.read_serving()
        if not serving.model or serving.model == self._table.model:
            return
        try:
            self._table = await self._reader.read_table(serving.model)
        except (CallmeshError, *BROKEN) as error:
            self._failures.inc()
            _log.warning("model.read_failed", model=serving.model, error=type(error).__name__)

    async def _read_propensity(self) -> None:
        try:
            found = await self._reader.read_propensity(self.propensity.model)
        except BROKEN as error:
            self._failures.inc()
            _log.warning("propensity.read_failed", error=type(error).__name__)
            return
        if found is not None:
            self.propensity = found

    async def _read_effects(self) -> None:
        """Either model by itself: a broken one leaves the last good one of its kind."""
        for name, known in ((UPLIFT, self.uplift.model), (CHURN, self.churn.model)):
            try:
                found = await self._reader.read_effect(name, known)
                if found is None:
                    continue
                if name == UPLIFT:
                    self.uplift = uplift_from_content(*found)
                else:
                    self.churn = churn_from_content(*found)
            except BROKEN as error:
                self._failures.inc()
                _log.warning("model.read_failed", model=name, error=type(error).__name__)

    def _adopt(self, offers: Sequence[Offer]) -> None:
        """A new Ranker only where something that it ranks by changed: its lists are worth keeping."""
        now = self._clock.now()
        looked, self._looked = self._looked, (offers, self._table, now.date())
        if looked and looked[0] is offers and looked[1] is self._table and looked[2] == now.date():
            return
        # With each day some offers are no longer new.
        signature = (
            self._table.model,
            now.date(),
            tuple((offer.id, offer.version, offer.sold_out) for offer in offers),
        )
        if signature != self._signature:
            self._ranker = Ranker(offers, self._table, now)
            self._signature = signature
            self._offers.set(len(offers))
