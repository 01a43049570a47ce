"""Service-level clocks against a slow reference that counts every tick."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickets import sla
from tickets.model import ClockState, ClockType, Kind, Phase, Priority, Rules, SlaPolicy, SlaTarget

NOON = 1_772_452_800_000
#: Durations short enough to count every millisecond of.
TINY = replace(
    sla.DEFAULT_POLICY,
    targets=MappingProxyType({kind: SlaTarget(first_response_ms=20, resolution_ms=60) for kind in Kind}),
)
RULES = Rules(sla=TINY, follow_up_delay_ms=1)
FACTS = (Kind.OTHER, Priority.NORMAL, "", "")


def test_the_shipped_policy_is_sound() -> None:
    assert sla.problems_of(sla.DEFAULT_POLICY) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"targets": {}}, "no target for kind inquiry"),
        ({"priority_percent": {}}, "no percent for priority low"),
        ({"tier_percent": {"vip": 0}}, "vip"),
        ({"reopen_floor_percent": 0}, "floor"),
        (
            {
                "targets": {
                    **sla.DEFAULT_POLICY.targets,
                    Kind.CARE: SlaTarget(first_response_ms=2, resolution_ms=1),
                }
            },
            "care",
        ),
    ],
)
def test_unsound_policies_are_named(change: dict[str, object], word: str) -> None:
    policy: SlaPolicy = replace(sla.DEFAULT_POLICY, **change)  # type: ignore[arg-type]
    assert any(word in problem for problem in sla.problems_of(policy))


def test_targets_follow_kind_priority_and_tier_and_explain_themselves() -> None:
    target, rule, lines = sla.targets(sla.DEFAULT_POLICY, Kind.COMPLAINT, Priority.HIGH, "vip")
    assert target == SlaTarget(first_response_ms=30 * sla.MINUTE_MS // 4, resolution_ms=48 * sla.HOUR_MS // 4)
    assert rule == "complaint/high/vip"
    assert lines == (
        "policy default: complaint allows 30 min to the first response and 48 h to resolution",
        "priority high: 50 %",
        "customer tier vip: 50 %",
        "so 7 min 30 s to the first response and 12 h to resolution",
    )


def test_an_unknown_tier_counts_in_full() -> None:
    known, *_ = sla.targets(sla.DEFAULT_POLICY, Kind.CARE, Priority.NORMAL, "standard")
    unknown, rule, _ = sla.targets(sla.DEFAULT_POLICY, Kind.CARE, Priority.NORMAL, "")
    assert known == unknown == sla.DEFAULT_POLICY.targets[Kind.CARE]
    assert rule == "care/normal/unknown"


@given(st.sampled_from(list(Kind)), st.sampled_from(["", "silver", "gold", "platinum", "vip"]))
def test_more_urgent_never_means_later(kind: Kind, tier: str) -> None:
    dues = [sla.targets(sla.DEFAULT_POLICY, kind, p, tier)[0].resolution_ms for p in Priority]
    assert dues == sorted(dues, reverse=True)


class Reference:
    """The same rules, one tick at a time."""

    def __init__(self, target: int) -> None:
        self.allowed, self.target = target, target
        self.used = 0
        self.breached = False
        self.breaches = 0

    def tick(self, phase: Phase) -> None:
        if phase in (Phase.NEW, Phase.ACTIVE):
            self.used += 1
            if self.used >= self.allowed and not self.breached:
                self.breached, self.breaches = True, self.breaches + 1

    def reopen(self) -> None:
        self.allowed = max(self.allowed, self.used + self.target * 25 // 100)
        self.breached = False


MOVES = {
    Phase.NEW: (Phase.ACTIVE, Phase.WAITING, Phase.RESOLVED),
    Phase.ACTIVE: (Phase.WAITING, Phase.RESOLVED, Phase.ACTIVE),
    Phase.WAITING: (Phase.ACTIVE, Phase.RESOLVED),
    Phase.RESOLVED: (Phase.ACTIVE, Phase.WAITING),
}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 2)), max_size=25))
def test_the_resolution_clock_agrees_with_counting_every_tick(walk: list[tuple[int, int]]) -> None:
    levels = sla.start(RULES, FACTS, NOON)
    reference = Reference(60)
    now, phase, told = NOON, Phase.NEW, 0
    for wait, choice in walk:
        for _ in range(wait):
            reference.tick(phase)
        now += wait
        after = MOVES[phase][choice % len(MOVES[phase])]
        levels, breaches = sla.advance(levels, RULES, (phase, ""), (after, ""), now)
        told += sum(breach.clock is ClockType.RESOLUTION for breach in breaches)
        if phase is Phase.RESOLVED:
            reference.reopen()
        phase = after
        clock = levels.resolution
        assert sla.used_ms(clock, now) == reference.used
        assert told == reference.breaches
        assert (clock.breached_ms is not None) is reference.breached
        due = sla.due_ms(clock)
        assert (due is not None) is (phase in (Phase.NEW, Phase.ACTIVE) and not reference.breached)
        if due is not None:
            assert due - now == reference.allowed - reference.used > 0


@given(st.integers(0, 100), st.integers(0, 100))
def test_a_reopened_ticket_is_not_overdue_at_once_and_keeps_what_it_used(worked: int, rested: int) -> None:
    levels = sla.start(RULES, FACTS, NOON)
    solved_at = NOON + worked
    levels, _ = sla.advance(levels, RULES, (Phase.NEW, ""), (Phase.RESOLVED, ""), solved_at)
    again_at = solved_at + rested
    levels, breaches = sla.advance(levels, RULES, (Phase.RESOLVED, ""), (Phase.ACTIVE, ""), again_at)
    due = sla.due_ms(levels.resolution)
    assert not breaches
    assert levels.resolution.cycle == 2
    assert due is not None and due - again_at == max(60 - worked, 15)


def test_a_pause_stops_the_clock_and_its_credit_survives_a_new_priority() -> None:
    levels = sla.start(RULES, FACTS, NOON)
    levels, _ = sla.advance(levels, RULES, (Phase.NEW, ""), (Phase.WAITING, ""), NOON + 10)
    assert sla.due_ms(levels.resolution) is None
    levels = sla.retarget(levels, RULES, (Kind.OTHER, Priority.HIGH, "", ""), (Phase.WAITING, ""), NOON + 110)
    levels, _ = sla.advance(levels, RULES, (Phase.WAITING, ""), (Phase.ACTIVE, ""), NOON + 1_000)
    assert sla.due_ms(levels.resolution) == NOON + 1_000 + 30 - 10


def test_a_breach_is_found_once_and_stays() -> None:
    levels = sla.start(RULES, FACTS, NOON)
    levels, first = sla.settle(levels, NOON + 60)
    assert {breach.clock: breach.due_ms for breach in first} == {
        ClockType.FIRST_RESPONSE: NOON + 20,
        ClockType.RESOLUTION: NOON + 60,
    }
    levels, again = sla.settle(levels, NOON + 10_000)
    assert again == ()
    levels, _ = sla.advance(levels, RULES, (Phase.NEW, ""), (Phase.RESOLVED, ""), NOON + 10_000)
    assert levels.resolution.state is ClockState.BREACHED
    assert levels.resolution.used_ms == 10_000
    assert levels.first_response.state is ClockState.BREACHED


def test_done_in_time_is_met_and_withdrawn_is_stopped() -> None:
    levels = sla.start(RULES, FACTS, NOON)
    met, _ = sla.advance(levels, RULES, (Phase.NEW, ""), (Phase.RESOLVED, ""), NOON + 5)
    assert met.resolution.state is met.first_response.state is ClockState.MET
    stopped, _ = sla.advance(levels, RULES, (Phase.NEW, ""), (Phase.CANCELLED, ""), NOON + 5)
    assert stopped.resolution.state is stopped.first_response.state is ClockState.STOPPED


def test_a_clock_set_back_uses_no_negative_time() -> None:
    levels = sla.start(RULES, FACTS, NOON)
    levels, breaches = sla.advance(levels, RULES, (Phase.NEW, ""), (Phase.WAITING, ""), NOON - 1_000)
    assert levels.resolution.used_ms == 0 and not breaches
