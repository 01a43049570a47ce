"""Off-line policy estimates against simulators whose answer is known exactly.

One run says little: a 95 % interval misses the truth in one run of twenty. So many worlds are drawn, and the
share of them in which the truth lies inside the interval is judged; the first world of each kind is shown by
itself as well. Worlds differ in how the log came about: by policies that try everything often, and, as in
production, by the best offer of a model with a share of exploration, judged for a policy that would put other
offers first.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

#: Worlds of each kind, and decisions logged in each.
WORLDS = 400
DECISIONS = 3_000
#: The limit: a true share of 0.95 falls below this in fewer than one report of five hundred.
COVERAGE_MIN = 0.915
#: Largest mean error beside the truth: several times what chance makes of so many worlds.
BIAS_MAX = 0.02
SEED = 23
KINDS_OF_CUSTOMER = 4
OFFERS = 5
ESTIMATES = ("inverse_propensity", "self_normalised", "doubly_robust")
#: Share of exploration by kind of world; None tries everything often.
LOGS: dict[str, float | None] = {"even": None, "explore_20": 0.2, "explore_5": 0.05}

Chances = list[list[float]]


def run() -> tuple[dict[str, Any], bool]:
    """(figures, whether the intervals hold the truth as often as they say)."""
    figures: dict[str, Any] = {"policy_worlds": WORLDS, "policy_decisions_each": DECISIONS}
    ok = True
    for log, exploration in LOGS.items():
        draw = random.Random(f"{SEED}-{log}")
        inside = dict.fromkeys(ESTIMATES, 0)
        errors: dict[str, list[float]] = {name: [] for name in ESTIMATES}
        for number in range(WORLDS):
            truth, found = world(draw, exploration)
            for name in ESTIMATES:
                estimate = getattr(found, name)
                held = estimate.lower <= truth <= estimate.upper
                inside[name] += held
                errors[name].append(estimate.value / truth - 1)
                if not number:
                    figures[f"policy_{log}_{name}_first_world_inside"] = held
        for name in ESTIMATES:
            coverage, bias = inside[name] / WORLDS, statistics.fmean(errors[name])
            figures[f"policy_{log}_{name}_coverage"] = round(coverage, 3)
            figures[f"policy_{log}_{name}_mean_error_ratio"] = round(bias, 4)
            figures[f"policy_{log}_{name}_scatter_ratio"] = round(statistics.stdev(errors[name]), 4)
            ok &= coverage >= COVERAGE_MIN and abs(bias) <= BIAS_MAX
    figures |= {"policy_coverage_min": COVERAGE_MIN, "policy_mean_error_ratio_max": BIAS_MAX}
    return figures, ok


def world(draw: random.Random, exploration: float | None) -> tuple[float, Any]:
    """(true value of the policy judged, the estimates from another policy's log)."""
    from marketing.offline import Logged, compare, spread_of

    accept = _table(lambda: draw.uniform(0.02, 0.3))
    worth = [draw.uniform(10, 100) for _ in range(OFFERS)]
    # The model errs by up to a third; the doubly robust estimate must bear it.
    believed = [[chance * draw.uniform(0.67, 1.33) for chance in row] for row in accept]
    if exploration is None:
        logging, target = ([_spread(draw) for _ in range(KINDS_OF_CUSTOMER)] for _ in range(2))
    else:
        other = [[chance * draw.uniform(0.4, 1.8) for chance in row] for row in believed]
        logging, target = (_greedy(table, worth, exploration) for table in (believed, other))
    truth = sum(_values(target, accept, worth)) / KINDS_OF_CUSTOMER
    expected = _values(target, believed, worth)
    spreads = [
        spread_of(zip(logging[kind], target[kind], believed[kind], worth, strict=True))
        for kind in range(KINDS_OF_CUSTOMER)
    ]
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
                spread=spreads[kind],
            )
        )
    return truth, compare(log)


def _table(value: Callable[[], float]) -> Chances:
    return [[value() for _ in range(OFFERS)] for _ in range(KINDS_OF_CUSTOMER)]


def _values(policy: Chances, accept: Chances, worth: list[float]) -> list[float]:
    """What a policy earns of each kind of customer, a decision."""
    return [
        sum(p * chance * money for p, chance, money in zip(row, accepted, worth, strict=True))
        for row, accepted in zip(policy, accept, strict=True)
    ]


def _spread(draw: random.Random) -> list[float]:
    """Probabilities of the offers, none of them tiny."""
    weights = [draw.uniform(0.2, 1.0) for _ in range(OFFERS)]
    return [weight / sum(weights) for weight in weights]


def _greedy(believed: Chances, worth: list[float], exploration: float) -> Chances:
    """The offer that a model likes best, and now and then any of them."""
    rows = []
    for row in believed:
        best = max(range(OFFERS), key=lambda offer: row[offer] * worth[offer])
        chance = exploration / OFFERS
        rows.append([chance + (1 - exploration) * (offer == best) for offer in range(OFFERS)])
    return rows
