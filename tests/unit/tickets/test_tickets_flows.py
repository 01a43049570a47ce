"""The shipped state tables are sound, and the check that says so finds what is unsound."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from tickets.flows import FLOWS, allowed_verbs, problems_of
from tickets.model import FINAL_PHASES, OPEN_PHASES, Flow, Kind, Phase, Transition

SOUND = Flow(
    id="small",
    kind=Kind.OTHER,
    initial="new",
    states=MappingProxyType({"new": Phase.NEW, "done": Phase.CLOSED}),
    transitions=(Transition(verb="finish", sources=frozenset({"new"}), target="done"),),
)


def test_every_kind_has_a_shipped_flow() -> None:
    assert {flow.kind for flow in FLOWS.values()} == set(Kind)
    assert all(FLOWS[kind.value].kind is kind for kind in Kind)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=lambda flow: flow.id)
def test_shipped_flows_are_sound(flow: Flow) -> None:
    assert problems_of(flow) == []
    assert flow.states[flow.initial] is Phase.NEW


@pytest.mark.parametrize("flow", FLOWS.values(), ids=lambda flow: flow.id)
def test_open_tickets_can_be_given_up_and_final_states_end(flow: Flow) -> None:
    for state, phase in flow.states.items():
        verbs = allowed_verbs(flow.id, state)
        assert bool(verbs) is (phase not in FINAL_PHASES)
        if phase in OPEN_PHASES:
            targets = {row.target for row in flow.transitions if state in row.sources}
            assert targets - {state}, f"{state} leads nowhere"


def test_allowed_verbs_of_an_unknown_flow_are_none() -> None:
    assert allowed_verbs("nobody", "new") == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"initial": "nowhere"}, "UNKNOWN_STATE"),
        ({"states": MappingProxyType({**SOUND.states, "island": Phase.CLOSED})}, "UNREACHABLE_STATE: island"),
        (
            {
                "states": MappingProxyType({**SOUND.states, "pit": Phase.ACTIVE}),
                "transitions": (
                    *SOUND.transitions,
                    Transition(verb="fall", sources=frozenset({"new"}), target="pit"),
                ),
            },
            "TRAPPING_STATE: pit",
        ),
        (
            {
                "transitions": (
                    *SOUND.transitions,
                    Transition(verb="back", sources=frozenset({"done"}), target="new"),
                )
            },
            "LEAVES_FINAL_STATE",
        ),
        ({"transitions": SOUND.transitions * 2}, "AMBIGUOUS_TRANSITION"),
        (
            {
                "transitions": (
                    *SOUND.transitions,
                    Transition(verb="x", sources=frozenset({"gone"}), target="new"),
                )
            },
            "UNKNOWN_STATE",
        ),
        ({"kind": Kind.RETURN_VISIT}, "MISSING_TRANSITION: cancel"),
        ({"states": MappingProxyType({f"s{n}": Phase.NEW for n in range(65)}), "initial": "s0"}, "TOO_LARGE"),
    ],
)
def test_unsound_flows_are_named(change: dict[str, object], reason: str) -> None:
    assert problems_of(SOUND) == []
    problems = problems_of(replace(SOUND, **change))  # type: ignore[arg-type]
    assert any(problem.startswith(reason) for problem in problems), problems


def test_a_flow_with_return_visits_needs_close_and_reopen() -> None:
    states = MappingProxyType({"new": Phase.NEW, "solved": Phase.RESOLVED, "done": Phase.CLOSED})
    rows = (
        Transition(verb="solve", sources=frozenset({"new"}), target="solved"),
        Transition(verb="end", sources=frozenset({"solved"}), target="done"),
    )
    flow = replace(SOUND, states=states, transitions=rows, follow_up=True)
    assert set(problems_of(flow)) == {
        "MISSING_TRANSITION: close from solved",
        "MISSING_TRANSITION: reopen from solved",
    }
