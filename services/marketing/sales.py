"""What a campaign sells takes a unit of the promoted offer's stock and budget and joins the history, as an
accepted recommendation does (store.py says how a unit is neither lost nor sold twice).

A unit is claimed for the person's place in the campaign. The sale is noted there once, under the claim's
token; then the purchase joins the history, and the claim is settled. What a crash leaves is resolved by the
worker: a claim that its place names is settled, any other is given back, after the place was told to take no
sale under that token any more. Loads no grpc.
"""

from __future__ import annotations

from datetime import UTC, datetime

from chassis.errors import NotFound
from chassis.ids import new_id
from marketing.campaign_store import Answers
from marketing.model import Offer, Purchase
from marketing.offer_store import Claim
from marketing.store import Store

#: What the `decision` of a sale's claim begins with; ids of decisions hold no "/".
PLACE = "campaigns/"


def is_sale(claim: Claim) -> bool:
    """Whether a claim is a campaign's."""
    return claim.decision.startswith(PLACE)


def sell(store: Store, answers: Answers, offer: Offer, place: str, agent: str, now: datetime) -> bool:
    """Notes that who stands at a place ("<campaign>/<customer>") bought an offer, at its worth and unit cost
    now; False for one who had bought it before. OfferSoldOut, OfferNotFound, ClaimsPending: nothing is noted
    then.
    """
    if answers.has_bought(place):
        return False
    claim = Claim(offer=offer.id, token=new_id(), decision=f"{PLACE}{place}")
    store.claim_unit(claim, datetime.now(UTC))
    cost = offer.unit_cost.text() if offer.unit_cost is not None else "0"
    if not answers.bought(place, now, offer.worth.text(), cost, agent, claim.token):
        # Told twice at once, and the other telling was first.
        store.release_claim(offer.id, claim.token)
        return False
    settle(store, claim, now)
    return True


def settle(store: Store, claim: Claim, at: datetime) -> None:
    """Applies what a noted sale causes. Repeatable."""
    place = claim.decision.removeprefix(PLACE)
    try:
        offer = store.offer(claim.offer)
    except NotFound:
        return  # deleted since, its claims with it
    purchase = Purchase(
        id=f"campaign:{place}",
        customer=place.rpartition("/")[2],
        product=offer.product,
        at=at,
        amount=offer.price,
    )
    store.add_purchases((purchase,), at)
    store.settle_claim(claim.offer, claim.token)


def resolve(store: Store, claim: Claim) -> bool:
    """Ends a claim that a crash left; whether its unit went back."""
    sold_at = store.end_sale(claim.decision.removeprefix(PLACE), claim.token)
    if sold_at is not None:
        settle(store, claim, sold_at)
        return False
    store.release_claim(claim.offer, claim.token)
    return True
