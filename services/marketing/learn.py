"""`python -m marketing.learn` learns the propensity model once from the outcomes so far, validates it, and
lets it serve. Prints one JSON line; 0 when it serves or was already learned, 1 when it failed validation.
"""

from __future__ import annotations

import json
import sys

from chassis import mongo
from chassis.config import load_settings
from marketing.config import MarketingSettings
from marketing.kinds import ALL_DOCUMENTS
from marketing.learned import Propensities, put_to_customer
from marketing.model import ModelState
from marketing.shelf import MongoShelves
from marketing.store import MongoStore


def learn_once(propensities: Propensities, closed: int) -> dict[str, object]:
    """Learns and keeps a version; what to print."""
    from marketing.learning.offers import Example, learn

    examples = [
        Example(offer=one.offer, traits=decision.traits, base=one.base, accepted=taken)
        for decision in propensities.closed()
        for one, taken in put_to_customer(decision)
    ]
    info = propensities.keep(learn(examples), len(examples), closed)
    return {
        "model": info.id,
        "state": info.state.value,
        "failure": info.failure,
        "examples": info.example_count,
        **dict(info.metrics),
    }


def main() -> int:
    """The whole life of the process; its exit status."""
    settings = load_settings(MarketingSettings)
    mongo.connect(settings)
    mongo.ensure_indexes(ALL_DOCUMENTS)
    store = MongoStore()
    propensities = Propensities(MongoShelves(), store, settings.clock(), settings.models_kept)
    found = learn_once(propensities, store.closed_count())
    print(json.dumps(found))
    mongo.disconnect()
    return 1 if found["state"] == ModelState.FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
