"""A lease: at most one holder at a time, as far as the database's clock tells.

Times are the database's own (`$$NOW`), so holders' clocks don't have to agree. The holder counts its own time
from before the request was sent, hence believes in its lease a little shorter than the database does. A
holder that stands still (a paused process) can still act after its lease is over: what it guards must bear
that. Here duplicates are borne (consumers recognise events), so nothing more is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.write_concern import WriteConcern

from chassis import logs

#: Shortest lease: below, an ordinary pause of a busy machine would lose it, seconds.
TTL_SECONDS_MIN = 0.5

log = logs.get_logger(__name__)


class LeaseLost(Exception):
    """Somebody else holds the lease, or it was not renewed in time."""


class Lease:
    """One named lease in a collection; `holder` is unique to this process."""

    def __init__(
        self,
        collection: Collection[dict[str, Any]],
        name: str,
        holder: str,
        ttl_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Does no I/O. ValueError for a lease shorter than `TTL_SECONDS_MIN`."""
        if ttl_seconds < TTL_SECONDS_MIN:
            raise ValueError(f"a lease lasts at least {TTL_SECONDS_MIN} s, got {ttl_seconds}")
        self._collection = collection.with_options(write_concern=WriteConcern(w="majority"))
        self.name = name
        self.holder = holder
        self.ttl_seconds = ttl_seconds
        self._monotonic = monotonic
        self._until = float("-inf")
        #: Rises by one with every change of the holder; 0 before the first acquisition.
        self.epoch = 0

    @property
    def held(self) -> bool:
        """Whether we hold it, by our own stopwatch; no I/O."""
        return self._monotonic() < self._until

    @property
    def renewal_due(self) -> bool:
        """Whether a third of the lease has passed, so that two renewals may fail before it is lost."""
        return self._monotonic() >= self._until - self.ttl_seconds * 2 / 3

    def acquire(self) -> bool:
        """Takes or prolongs the lease; False when another holds it. Raises pymongo's errors."""
        started = self._monotonic()
        try:
            found = self._collection.find_one_and_update(
                {"_id": self.name},
                [{"$set": self._claim_if_free()}],
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:
            # Another made the document at the same moment.
            found = None
        if found is None or found["holder"] != self.holder:
            self._until = float("-inf")
            return False
        self._until = started + self.ttl_seconds
        self.epoch = int(found["epoch"])
        return True

    def _claim_if_free(self) -> dict[str, Any]:
        """The fields as we want them, if the lease is free or ours; else as they are."""
        # A lease that nobody ever had has no end: missing sorts below any date.
        free = {"$or": [{"$eq": ["$holder", self.holder]}, {"$lte": ["$expires_at", "$$NOW"]}]}
        return {name: {"$cond": [free, wanted, f"${name}"]} for name, wanted in self._claim().items()}

    def _claim(self) -> dict[str, Any]:
        same = {"$eq": ["$holder", self.holder]}
        return {
            "holder": self.holder,
            "expires_at": {"$add": ["$$NOW", round(self.ttl_seconds * 1000)]},
            "epoch": {"$add": [{"$ifNull": ["$epoch", 0]}, {"$cond": [same, 0, 1]}]},
        }

    def renew(self) -> None:
        """Prolongs a lease that we hold; LeaseLost when we don't, even if nobody else took it yet."""
        if not self.held:
            raise LeaseLost(f"the lease {self.name} was not renewed in time")
        started = self._monotonic()
        mine = {"_id": self.name, "holder": self.holder, "epoch": self.epoch}
        found = self._collection.update_one(mine, [{"$set": self._claim()}])
        if found.matched_count == 0:
            self._until = float("-inf")
            raise LeaseLost(f"the lease {self.name} went to another holder")
        self._until = started + self.ttl_seconds

    def take(self) -> bool:
        """Whether we hold it: acquired where we do not, or where that is due again. Raises as `acquire`."""
        return (self.held and not self.renewal_due) or self.acquire()

    def keep(self) -> None:
        """Prolongs it where that is due. Raises as `renew`."""
        if self.renewal_due:
            self.renew()

    def release(self) -> None:
        """Gives the lease up so that another need not wait for its end; harmless when it is not ours."""
        self._until = float("-inf")
        self._collection.update_one(
            {"_id": self.name, "holder": self.holder}, [{"$set": {"expires_at": "$$NOW", "holder": ""}}]
        )


def run_in_rounds(lease: Lease, turn: Callable[[], float], stopping: Callable[[float], bool]) -> None:
    """One `turn` after another until `stopping(seconds)`, which waits that long at most, says True; then the
    lease is given back. `turn` says how long to wait before the next; what it raises ends the rounds.
    """
    try:
        while not stopping(turn()):
            continue
    finally:
        try:
            lease.release()
        except PyMongoError as error:
            # It runs out by itself.
            log.info("lease.not_released", lease=lease.name, error=repr(error))
