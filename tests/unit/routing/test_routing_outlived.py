"""Which commands are poison: what is counted, where, and what acquits."""

from __future__ import annotations

import pytest

from routing.model import CallFacts, HangUp, PlaceCall
from routing.outlived import (
    OUTLIVED_LIFE_SECONDS,
    OUTLIVED_REMEMBERED_MAX,
    Outlived,
    Verdict,
    identity,
)

CLEAR, ALONE, UNSURE, POISON = Verdict
C5 = "PlaceCall c5"


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outlived(clock: Clock) -> Outlived:
    return Outlived(clock)


def verdicts(outlived: Outlived) -> tuple[Verdict, ...]:
    return tuple(outlived.verdict(C5, shard) for shard in ("beijing", "shanghai", "chengdu"))


def lose(outlived: Outlived, shard: str, *, alone: bool) -> None:
    outlived.suspect(C5, shard, alone=alone)
    outlived.judge(C5, shard, died=True)


def test_a_try_is_known_by_what_it_is_about() -> None:
    one = identity(HangUp(call_id="c1", attempt=1))
    assert one == identity(HangUp(call_id="c1", attempt=2)) != identity(HangUp(call_id="c2", attempt=1))
    placing = PlaceCall(facts=CallFacts(call_id="c5", queue="service"), attempt=1, move=1, front="f")
    assert identity(placing) == C5 != one


@pytest.mark.parametrize("first", ["beijing", "shanghai"])
def test_a_call_that_kills_the_next_regions_leader_is_given_to_no_third(
    outlived: Outlived, first: str
) -> None:
    """It goes on to the next region before anybody leads the first again; whichever is judged first."""
    outlived.suspect(C5, "beijing", alone=False)
    assert verdicts(outlived) == (ALONE, ALONE, ALONE)
    outlived.suspect(C5, "shanghai", alone=True)
    assert verdicts(outlived) == (UNSURE, UNSURE, UNSURE), "nobody knows yet"
    outlived.judge(C5, first, died=True)
    assert verdicts(outlived) == (UNSURE, UNSURE, UNSURE)
    outlived.judge(C5, "shanghai" if first == "beijing" else "beijing", died=True)
    assert verdicts(outlived) == (POISON, POISON, POISON)


def test_streams_that_only_broke_convict_nobody(outlived: Outlived) -> None:
    for _ in range(3):
        outlived.suspect(C5, "beijing", alone=True)
        outlived.suspect(C5, "shanghai", alone=True)
        outlived.judge(C5, "beijing", died=False)
        assert verdicts(outlived) == (ALONE, ALONE, ALONE)
        outlived.judge(C5, "shanghai", died=False)
        assert verdicts(outlived) == (CLEAR, CLEAR, CLEAR) and not outlived


@pytest.mark.parametrize("judged", [False, True])
def test_leaders_that_went_together_are_one_accident(outlived: Outlived, judged: bool) -> None:
    """What all shards are asked was on its way to each when one process died that led two of them."""
    for shard in ("beijing", "shanghai"):
        outlived.suspect(C5, shard, alone=False)
    for shard in ("beijing", "shanghai") if judged else ():
        outlived.judge(C5, shard, died=True)
    assert outlived.verdict(C5, "chengdu") is ALONE
    lose(outlived, "chengdu", alone=True)
    assert verdicts(outlived) == ((POISON,) * 3 if judged else (UNSURE,) * 3), "that one was no accident"


def test_of_one_shard_every_leader_counts(outlived: Outlived) -> None:
    lose(outlived, "beijing", alone=False)
    lose(outlived, "beijing", alone=False)
    assert verdicts(outlived) == (POISON, ALONE, ALONE)


def test_asked_twice_at_once_it_was_not_alone(outlived: Outlived) -> None:
    outlived.suspect(C5, "beijing", alone=False)
    outlived.suspect(C5, "beijing", alone=True)
    outlived.suspect(C5, "shanghai", alone=False)
    assert outlived.verdict(C5, "chengdu") is ALONE


def test_an_answer_acquits(outlived: Outlived) -> None:
    """Here of everything; elsewhere of what is counted over shards."""
    lose(outlived, "beijing", alone=False)
    outlived.answered(C5, "shanghai")
    assert verdicts(outlived) == (ALONE, CLEAR, CLEAR)
    lose(outlived, "beijing", alone=True)
    assert verdicts(outlived) == (POISON, ALONE, ALONE), "what kills in one shard alone is poison there"
    outlived.answered(C5, "beijing")
    assert verdicts(outlived) == (CLEAR, CLEAR, CLEAR) and not outlived


def test_a_suspect_who_is_answered_elsewhere_is_one_at_home_alone(outlived: Outlived) -> None:
    """What routers say all the time must not go one by one for as long as a lost region stays away."""
    outlived.suspect(C5, "beijing", alone=False)
    outlived.answered(C5, "shanghai")
    assert verdicts(outlived) == (ALONE, CLEAR, CLEAR)
    outlived.judge(C5, "beijing", died=True)
    assert verdicts(outlived) == (ALONE, CLEAR, CLEAR)


def test_a_leader_that_had_to_step_down_did_so_for_sure(outlived: Outlived) -> None:
    outlived.add(C5, "beijing")
    assert verdicts(outlived) == (ALONE, ALONE, ALONE)
    outlived.add(C5, "shanghai")
    assert verdicts(outlived) == (POISON, POISON, POISON)


def test_what_is_held_against_commands_is_forgotten_by_time_and_bounded(
    outlived: Outlived, clock: Clock
) -> None:
    lose(outlived, "beijing", alone=True)
    clock.seconds = OUTLIVED_LIFE_SECONDS
    assert verdicts(outlived) == (CLEAR, CLEAR, CLEAR)
    lose(outlived, "beijing", alone=True)
    assert verdicts(outlived) == (ALONE, ALONE, ALONE), "once, as of now"
    for number in range(2 * OUTLIVED_REMEMBERED_MAX):
        outlived.suspect(str(number), "beijing", alone=False)
    assert len(outlived._known) == OUTLIVED_REMEMBERED_MAX
