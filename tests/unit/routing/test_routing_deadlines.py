"""Deadlines come in their order, whichever of them have been outdated meanwhile."""

from __future__ import annotations

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.state.deadlines import Deadline, Deadlines

KINDS = ("detached", "forget", "offer")
ENTRIES = st.tuples(st.integers(1, 5_000), st.sampled_from(KINDS), st.sampled_from("abcdef"))
#: Of each step: deadlines that are set, those that are outdated, and what is asked then.
STEPS = st.lists(
    st.tuples(
        st.lists(ENTRIES, max_size=6),
        st.lists(st.integers(0, 40), max_size=4),
        st.sampled_from(("first", "drop", "together", "tidy")),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_the_first_that_runs_comes_first(steps: list[tuple[list[Deadline], list[int], str]]) -> None:
    running: set[Deadline] = set()
    deadlines = Deadlines(lambda deadline: deadline in running)
    for added, outdated, question in steps:
        for deadline in added:
            running.add(deadline)
            deadlines.add(deadline)
        for at in outdated:
            if running:
                running.discard(sorted(running)[at % len(running)])
        expected = min(running, default=None)
        assert deadlines.earliest_ms <= (expected[0] if expected else inf)
        if question == "drop":
            assert deadlines.drop_first() == expected
            running.discard(expected or (0, "", ""))
        elif question == "tidy":
            deadlines.tidy()
            assert set(deadlines) == running
        elif question == "together" and expected is not None:
            kind, now_ms = expected[1], expected[0] + 1_500
            due = [d for d in sorted(running) if d[0] <= now_ms]
            other = next((at for at, d in enumerate(due) if d[1] != kind), len(due))
            owners = tuple(dict.fromkeys(d[2] for d in due[:other]))
            assert deadlines.together(kind, now_ms, 4) == owners[:4]
        assert deadlines.first() == min(running, default=None)


def test_without_deadlines_nothing_is_due() -> None:
    deadlines = Deadlines(lambda deadline: True)
    assert (deadlines.first(), deadlines.drop_first(), deadlines.earliest_ms) == (None, None, inf)
    assert deadlines.together("offer", 1_000_000, 5) == () and len(deadlines) == 0
