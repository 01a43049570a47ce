"""Off-line policy estimates against simulators whose answer is known exactly.

One run says little: a 95 % interval misses the truth in one run of twenty. So many worlds are drawn, and the
share of them in which the truth lies inside the interval is what is judged.
"""

from __future__ import annotations

import random
import statistics
from typing import Any

#: Worlds, and decisions logged in each.
WORLDS = 200
DECISIONS = 3_000
#: The limit: a true share of 0.95 falls below this in fewer than one report of a thousand.
COVERAGE_MIN = 0.90
SEED = 23
KINDS_OF_CUSTOMER = 4
OFFERS = 5
ESTIMATES = ("inverse_propensity", "self_normalised", "doubly_robust")


def run() -> tuple[dict[str, Any], bool]:
    """(figures, whether the intervals hold the truth as often as they say)."""
    draw = random.Random(SEED)
    inside = dict.fromkeys(ESTIMATES, 0)
    errors: dict[str, list[float]] = {name: [] for name in ESTIMATES}
    for _ in range(WORLDS):
        truth, found = world(draw)
        for name in ESTIMATES:
            estimate = getattr(found, name)
            inside[name] += estimate.lower <= truth <= estimate.upper
            errors[name].append(estimate.value / truth - 1)
    figures: dict[str, Any] = {"policy_worlds": WORLDS, "policy_decisions_each": DECISIONS}
    for name in ESTIMATES:
        figures[f"policy_{name}_coverage"] = round(inside[name] / WORLDS, 3)
        figures[f"policy_{name}_mean_error_ratio"] = round(statistics.fmean(errors[name]), 4)
    figures["policy_coverage_min"] = COVERAGE_MIN
    return figures, all(count / WORLDS >= COVERAGE_MIN for count in inside.values())


def world(draw: random.Random) -> tuple[float, Any]:
    """(true value of the policy judged, the estimates from another policy's log)."""
    from marketing.offline import Logged, compare

    accept = [[draw.uniform(0.02, 0.3) for _ in range(OFFERS)] for _ in range(KINDS_OF_CUSTOMER)]
    worth = [draw.uniform(10, 100) for _ in range(OFFERS)]
    # The model errs by up to a third; the doubly robust estimate must bear it.
    believed = [[chance * draw.uniform(0.67, 1.33) for chance in row] for row in accept]
    logging = [_spread(draw) for _ in range(KINDS_OF_CUSTOMER)]
    target = [_spread(draw) for _ in range(KINDS_OF_CUSTOMER)]

    def value(policy: list[list[float]], chances: list[list[float]]) -> list[float]:
        return [
            sum(p * chance * money for p, chance, money in zip(row, accepted, worth, strict=True))
            for row, accepted in zip(policy, chances, strict=True)
        ]

    truth = sum(value(target, accept)) / KINDS_OF_CUSTOMER
    expected = value(target, believed)
    log = []
    for _ in range(DECISIONS):
        kind = draw.randrange(KINDS_OF_CUSTOMER)
        offer = draw.choices(range(OFFERS), logging[kind])[0]
        taken = draw.random() < accept[kind][offer]
        log.append(
            Logged(
                chance=logging[kind][offer],
                target=target[kind][offer],
                reward=worth[offer] if taken else 0.0,
                expected=believed[kind][offer] * worth[offer],
                expected_target=expected[kind],
            )
        )
    return truth, compare(log)


def _spread(draw: random.Random) -> list[float]:
    """Probabilities of the offers, none of them tiny."""
    weights = [draw.uniform(0.2, 1.0) for _ in range(OFFERS)]
    return [weight / sum(weights) for weight in weights]
