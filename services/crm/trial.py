"""What only tries a batch looks at beside what is stored: what the entries ahead would have taken by then."""

from __future__ import annotations

from chassis.errors import AlreadyExists, CallmeshError
from chassis.idempotency import check_repeat
from crm import engine
from crm.model import Customer
from crm.store import NewCustomer


class Ahead:
    """The entries of a batch that are done with, stored or tried."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        #: Claim -> its owner's id.
        self._owners: dict[str, str] = {}
        #: Request key -> (fingerprint, what the first entry with it came to).
        self._requests: dict[str, tuple[str | None, Customer]] = {}

    def meet(self, new: NewCustomer, outcome: Customer | CallmeshError) -> Customer | CallmeshError:
        """What becomes of an entry that is only tried, and comes to `outcome` by itself."""
        if isinstance(outcome, CallmeshError):
            return outcome
        if new.request_key in self._requests:
            fingerprint, earlier = self._requests[new.request_key or ""]
            try:
                check_repeat(fingerprint, new.fingerprint)
            except CallmeshError as error:
                return error
            return earlier
        wanted = new.change.customer
        if outcome.id != wanted.id or outcome.version > wanted.version:
            # An earlier call made it: there is nothing to take any more.
            return outcome
        if wanted.id in self._ids:
            return AlreadyExists(resource=wanted.name)
        return engine.claim_taken(wanted, self._owners) or outcome

    def take(self, new: NewCustomer, outcome: Customer | CallmeshError) -> None:
        """Notes what an entry came to."""
        if isinstance(outcome, CallmeshError):
            return
        self._ids.add(outcome.id)
        self._owners.update(dict.fromkeys(engine.claims(outcome), outcome.id))
        if new.request_key is not None:
            self._requests.setdefault(new.request_key, (new.fingerprint, outcome))
