"""`python -m marketing.learn` learns the models that are due (propensity, uplift, churn) once from what there
is so far, validates them, and lets them serve. Prints one JSON line a model; 0 when none failed validation
for another reason than too few examples, else 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from chassis import mongo
from chassis.config import load_settings
from marketing.config import MarketingSettings
from marketing.kinds import ALL_DOCUMENTS
from marketing.learned import Churns, Propensities, Uplifts, put_to_customer
from marketing.model import ModelInfo, ModelState
from marketing.shelf import MongoShelves
from marketing.store import MongoStore


def learn_propensity(propensities: Propensities, closed: int) -> ModelInfo:
    """Learns and keeps a version."""
    from marketing.learning.offers import Example, learn

    examples = [
        Example(offer=one.offer, traits=decision.traits, base=one.base, accepted=taken)
        for decision in propensities.closed()
        for one, taken in put_to_customer(decision)
    ]
    return propensities.keep_learned(learn(examples), len(examples), closed)


def learn_uplift(uplifts: Uplifts) -> ModelInfo:
    """Learns and keeps a version."""
    from marketing.learning.effects import Effect
    from marketing.learning.effects import learn_uplift as learn

    examples = [
        Effect(
            traits=one.traits,
            offered=one.offered,
            chance=one.chance,
            bought=one.took,
            customer=one.customer,
        )
        for one in uplifts.examples()
    ]
    found = learn(examples)
    return uplifts.keep({**found.content, "examples": len(examples)}, found.metrics, found.failure)


def learn_churn(churns: Churns) -> ModelInfo:
    """Learns and keeps a version."""
    from marketing.learning.effects import learn_churn as learn

    examples = churns.examples()
    found = learn(examples)
    return churns.keep({**found.content, "examples": len(examples)}, found.metrics, found.failure)


def told(info: ModelInfo) -> Mapping[str, Any]:
    """What to print of a version."""
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
    parts = (MongoShelves(), store, settings.clock(), settings.models_kept)
    propensities, uplifts, churns = Propensities(*parts), Uplifts(*parts), Churns(*parts)
    found = []
    if propensities.due():
        found.append(learn_propensity(propensities, store.closed_count()))
    if uplifts.due():
        found.append(learn_uplift(uplifts))
    if churns.due():
        found.append(learn_churn(churns))
    for info in found:
        print(json.dumps(told(info)))
    mongo.disconnect()
    return 1 if any(info.state is ModelState.FAILED and info.metrics for info in found) else 0


if __name__ == "__main__":
    sys.exit(main())
