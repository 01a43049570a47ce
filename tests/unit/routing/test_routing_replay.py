"""Past decisions: found in the journal, and explained as the leader saw them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.routing.routing_journals import MINUTE, T0, Journal, busy_day

from routing import codec, replay
from routing.journal import Block, ChainReader
from routing.model import AskExplain, CallOffered, CallState, DeclineOffer, HangUp, TransferCall
from routing.publish import Projection
from routing.replay import AROUND_SPAN_MS, JournalPruned, PastDecision, SearchTooLong, past_decision
from routing.testing import MemoryBlocks
from routing.views import view_call


class MemoryPast:
    """A `PastBlocks` over `MemoryBlocks`, which counts what is read."""

    def __init__(self, blocks: MemoryBlocks) -> None:
        self.blocks = blocks
        self.reads = 0

    def newest(self, shard: str) -> int:
        return self.blocks.newest(shard)

    def time_at(self, shard: str, sequence: int) -> int | None:
        found = self.blocks.of(shard, sequence - 1)
        return found[0].now_ms if found else None

    def back(self, shard: str, sequence: int) -> Iterable[Block]:
        for block in reversed([b for b in self.blocks.of(shard) if b.sequence <= sequence]):
            self.reads += 1
            yield block

    def forth(self, shard: str, after: int, upto: int) -> Iterable[Block]:
        return [b for b in self.blocks.of(shard, after) if b.sequence <= upto]


def look(journal: Journal, call_id: str, *, around_ms: int = 0, seconds: float = 60.0) -> PastDecision | None:
    journal.block()
    past = MemoryPast(journal.blocks)
    return past_decision(past, "beijing", call_id, limit=100, seconds=seconds, around_ms=around_ms)


def test_the_last_offer_is_explained_as_it_was() -> None:
    journal = Journal()
    journal.agent("ann")
    journal.wait(MINUTE)
    journal.agent("bob")
    journal.block()
    journal.place("c1")
    journal.do(DeclineOffer(agent="ann", session=1, offer_id=view_call(journal.state, "c1").offer_id))
    journal.block()
    offered_ms = journal.now_ms
    journal.connect("c1")
    journal.wait(MINUTE)
    found = look(journal, "c1")
    assert found is not None and found.agent == "bob" and found.at_ms == offered_ms
    assert found.call.state is CallState.WAITING
    agents = {a.agent: (a.rank, a.skipped_reason) for a in found.explanation.agents}
    assert agents == {"bob": (1, ""), "ann": (0, "REJECT_DELAY")}


def test_a_call_that_nobody_was_offered() -> None:
    journal = Journal()
    journal.place("c1")
    journal.wait(7_000)
    journal.do(HangUp(call_id="c1", attempt=1))
    found = look(journal, "c1")
    assert found is not None and found.agent == "" and found.at_ms == T0 + 7_000
    assert found.explanation.summary.startswith("Waits 7 s in queue service")
    assert look(journal, "c2") is None
    assert look(journal, "c") is None, "an id inside another is no call"


def test_a_call_that_nobody_was_offered_after_a_transfer() -> None:
    """Who had it before is no answer to why it came to nothing."""
    journal = Journal()
    journal.agent("ann")
    journal.place("c1")
    journal.connect("c1")
    journal.block()
    journal.do(TransferCall(call_id="c1", queue="sales"))
    journal.wait(7_000)
    journal.do(HangUp(call_id="c1", attempt=1))
    found = look(journal, "c1")
    assert found is not None and found.agent == ""
    assert found.explanation.summary.startswith("Waits 7 s in queue sales")


@given(seed=st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_whom_an_explanation_ranks_first_was_offered_the_call(seed: int) -> None:
    journal = busy_day(seed, steps=60)
    journal.block()
    last: dict[str, tuple[int, str]] = {}
    for block in journal.blocks.of("beijing"):
        for at_ms, event in codec.decode_events(block.body, block.now_ms):
            if isinstance(event, CallOffered):
                last[event.call_id] = (at_ms, event.agent)
    for call_id, (at_ms, agent) in list(last.items())[:5]:
        found = look(journal, call_id)
        assert found is not None and (found.at_ms, found.agent) == (at_ms, agent)
        assert [a.agent for a in found.explanation.agents if a.rank == 1] == [agent]


def test_a_time_to_look_around_spares_the_rest() -> None:
    journal = Journal()
    for number in range(40):
        journal.place(f"c{number}")
        journal.block()
        journal.now_ms += AROUND_SPAN_MS // 4
    past = MemoryPast(journal.blocks)
    journal.block()
    at_ms = T0 + 20 * AROUND_SPAN_MS // 4
    assert past_decision(past, "beijing", "c20", limit=1, seconds=60, around_ms=at_ms) is None
    assert past.reads < 15


def test_it_begins_from_the_nearest_start_and_says_when_there_is_none() -> None:
    journal = Journal()
    journal.agent("ann")
    journal.place("c1")
    journal.block()
    projection, chain = Projection("beijing"), ChainReader()
    for block in journal.blocks.of("beijing")[:1]:
        chain.accept(block)
        projection.skip(block)
    journal.blocks.remove("beijing", 1)
    past = MemoryPast(journal.blocks)
    with pytest.raises(JournalPruned):
        past_decision(past, "beijing", "c1", limit=1, seconds=60)
    found = past_decision(
        past, "beijing", "c1", limit=1, seconds=60, start=lambda shard, sequence: (projection, chain)
    )
    assert found is not None and found.agent == "ann"
    assert AskExplain(call_id="c1").limit == 100


def test_a_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal()
    for _ in range(20):
        journal.block()
    monkeypatch.setattr(replay, "SEARCH_BLOCKS_MAX", 10)
    with pytest.raises(SearchTooLong):
        look(journal, "c1")
    monkeypatch.setattr(replay, "SEARCH_BLOCKS_MAX", 10_000)
    monkeypatch.setattr(replay, "TURN_BLOCKS", 5)
    with pytest.raises(SearchTooLong):
        look(journal, "c1", seconds=0.0)
