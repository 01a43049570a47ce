"""The rules of the journal and of the hand-over of calls: together safe, each missed when it is gone.

`MODELS=large` searches wider bounds (minutes), and `-s` prints every counterexample:

    MODELS=large python -m pytest tests/models -s
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.models import call_handover, journal_fence
from tests.models.call_handover import CallHandover
from tests.models.explorer import explore
from tests.models.journal_fence import JournalFence

LARGE = os.environ.get("MODELS") == "large"
#: A large search has to be let run.
LARGE_SECONDS_MAX = 3_600

#: 1,764,456 states of the journal and 699,892 of the hand-over.
JOURNAL_BOUNDS: dict[str, Any] = {"openings": (1, 2)} if LARGE else {}
HANDOVER_BOUNDS: dict[str, Any] = {"offers": 3} if LARGE else {}

#: Rule of the journal to the harm that comes of its absence.
JOURNAL_HARM = {
    "only_majority_acknowledges": "answers from block 1 = a1, where the journal has nothing",
    "majority_reads": "B answers from block 1 = a1, where the journal has nothing",
    "one_in_flight": "block 2 = a2 was decided on top of a1, not openB1",
    "openings_are_kept": "A answers from block 1 = a1, where the journal has openB1",
    "openings_are_verified": "B answers from block 1 = openB1, where the journal has a1",
    "sent_bytes_are_frozen": "A answers from block 1 = a1+a2, where the journal has a1",
}
#: The same for the hand-over.
HANDOVER_HARM = {
    "accept_is_not_connect": "is connected to S's agent 1 and to T's agent 1",
    "the_edge_consents": "is connected to S's agent 1 and to T's agent 1",
    "confirmations_name_the_offer": "consented to S's agent 1, and S's agent 2 is connected",
    "offer_ids_are_never_reused": "consented to S's agent 1, and S's agent 2 is connected",
    "free_by_refusal_alone": "is connected to S's agent 1 and to T's agent 1",
}


@pytest.mark.timeout(LARGE_SECONDS_MAX if LARGE else 120)
@pytest.mark.parametrize(
    ("model", "least", "happens"),
    [
        pytest.param(
            JournalFence(**JOURNAL_BOUNDS),
            70_000,
            (
                "B holds block 1 = openB1 for committed and leads",
                "B holds block 2 = b1 for committed and answers its client",
                "A finds block 1 = openB1 in its place and steps down",
                "B finds block 1 = a1, applies it and sends its opening as block 2",
                "B has opened, looks above, had slept and discards all",
                "the primary is lost, and block 1 = a1 with it",
                "a snapshot is made, blocks below 2 are pruned",
            ),
            id="journal",
        ),
        pytest.param(
            CallHandover(**HANDOVER_BOUNDS),
            50_000,
            (
                "the edge hears yes and bridges S's agent 1",
                "the edge hears yes and bridges T's agent 1",
                "S refuses offer S1 of (1, 1)",
                "the edge hears no to offer S1 of (1, 1), is free",
                "S hears of (1, 2) elsewhere and ends its entry",
                "T queues (2, 1)",
            ),
            id="handover",
        ),
    ],
)
def test_all_rules_together_are_safe(model: Any, least: int, happens: tuple[str, ...]) -> None:
    found = explore(model)
    print(
        f"\n{type(model).__name__}: {found.states:,} states, {'complete' if found.complete else 'given up'}"
    )
    assert found.complete and not found.harm, found.story()
    # A model in which nothing can happen is safe too.
    assert found.states >= least
    assert [step for step in happens if step not in found.steps] == []


@pytest.mark.parametrize(
    ("model", "rules", "rule", "harm"),
    [
        *((JournalFence, journal_fence.RULES, *row) for row in JOURNAL_HARM.items()),
        *((CallHandover, call_handover.RULES, *row) for row in HANDOVER_HARM.items()),
    ],
)
def test_each_rule_is_needed(model: Any, rules: dict[str, str], rule: str, harm: str) -> None:
    found = explore(model(without=rule))
    print(f"\nwithout {rule}: {rules[rule]} ({found.states:,} states)\n{found.story()}")
    assert harm in found.harm, found.story()
    assert _replay(model(without=rule), found.trace) == found.harm


def _replay(model: Any, trace: tuple[str, ...]) -> str:
    """Walks the trace step by step, as a reader would; the harm it ends in."""
    state = model.initial()
    for step in trace:
        state = next(after for said, after in model.steps(state) if said == step)
    harm: str = model.harm(state)
    return harm


def test_every_rule_is_in_the_tables() -> None:
    assert set(JOURNAL_HARM) == set(journal_fence.RULES)
    assert set(HANDOVER_HARM) == set(call_handover.RULES)


@pytest.mark.parametrize("model", [JournalFence, CallHandover])
def test_an_unknown_rule_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="there is no rule 'luck'"):
        model(without="luck")


def test_a_search_beyond_its_bound_says_so() -> None:
    found = explore(JournalFence(), states_max=1_000)
    assert not found.complete and not found.harm and found.story() == "  no counterexample"
