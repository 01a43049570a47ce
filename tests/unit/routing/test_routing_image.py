"""Images: what was dumped comes back, goes on as the original does, and is refused when it is damaged."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.routing.test_routing_engine import (
    Shard,
    carry_out,
    check_invariants,
    commands,
    facts_of,
    staffed,
)

from routing import image
from routing.model import (
    CallFacts,
    CallState,
    ConfigureQueue,
    EndCall,
    PlaceCall,
    QueueConfig,
    RemoveQueue,
    SetLeadList,
    Strategy,
)
from routing.state import CallEntry, ShardState, evolve


def busy_shard(strategy: Strategy) -> Shard:
    shard = staffed(strategy)
    shard.do(SetLeadList(routers=("one:1", "two:1")))
    return shard


def copy_of(state: ShardState) -> ShardState:
    return image.restore(state.shard, image.dump(state))


def parts(state: ShardState) -> list[bytes]:
    return list(image.dump(state))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(commands(), min_size=5, max_size=40),
    st.integers(min_value=0, max_value=40),
    st.sampled_from(Strategy),
)
# An offer and a step of relaxation that end in the same millisecond.
@example([("close", "c1", "ann", "0"), *[("place", "c1", "ann", "0")] * 4], 1, Strategy.LONGEST_IDLE)
def test_what_is_restored_goes_on_as_the_original(
    history: list[tuple[str, ...]], cut: int, strategy: Strategy
) -> None:
    """The rest of the journal, applied to a restored image, ends where the original ends, to the byte."""
    shard = busy_shard(strategy)
    done, restored = len(shard.journal), copy_of(shard.state)
    for number, (kind, call_id, agent, pause) in enumerate(history):
        shard.wait(int(pause))
        carry_out(shard, kind, call_id, agent)
        if number == cut:
            done, restored = len(shard.journal), copy_of(shard.state)
            assert parts(restored) == parts(shard.state)
            assert facts_of(restored) == facts_of(shard.state)
    for at_ms, event in shard.journal[done:]:
        evolve(restored, event, at_ms)
    restored.clear_worklists()
    assert facts_of(restored) == facts_of(shard.state)
    assert parts(restored) == parts(shard.state)
    assert all(image.digest(restored, n) == image.digest(shard.state, n) for n in range(3))
    shard.state = restored
    check_invariants(shard)
    shard.wait(1_000_000)
    check_invariants(shard)


def test_a_call_that_outlived_its_queue_keeps_the_queues_settings() -> None:
    shard = Shard(wrap_up_span_ms=7_000)
    shard.agent("ann")
    shard.place("c1")
    shard.connect("c1")
    shard.do(EndCall(call_id="c1"))
    shard.do(RemoveQueue(queue="service"))
    assert not shard.state.queues
    restored = copy_of(shard.state)
    assert restored.calls["c1"].line.queue.wrap_up_span_ms == 7_000
    assert parts(restored) == parts(shard.state)
    shard.do(ConfigureQueue(queue=QueueConfig(id="service", wrap_up_span_ms=1)))
    assert copy_of(shard.state).calls["c1"].line.queue.wrap_up_span_ms == 7_000


def test_order_and_waiting_survive() -> None:
    shard = Shard()
    for number in range(50):
        shard.place(f"c{number}", facts={"priority": number % 3})
    before = list(shard.state.calls)
    restored = copy_of(shard.state)
    assert list(restored.calls) == before
    shard.agent("ann")
    twin = Shard()
    twin.state, twin.now_ms = restored, shard.now_ms
    twin.agent("ann")
    offered = [c for c, e in shard.state.calls.items() if e.state is CallState.OFFERED]
    assert offered == [c for c, e in twin.state.calls.items() if e.state is CallState.OFFERED] != []


def test_a_large_state_has_many_parts() -> None:
    shard = Shard()
    text = (("note", "x" * 15_000),)
    for number in range(200):
        shard.place(f"c{number}", facts={"attributes": text})
    made = parts(shard.state)
    assert len(made) >= 4 and max(map(len, made)) < 2 * image.PART_BYTES < image.PART_BYTES_MAX
    assert parts(image.restore("beijing", made)) == made


@pytest.mark.parametrize(
    "damage",
    [
        lambda made: [b"\xc1", *made[1:]],
        lambda made: [made[0][:-3], *made[1:]],
        lambda made: [made[-1]],
        lambda made: [msgspec.msgpack.encode(("unheard of", []))],
    ],
    ids=["garbage", "cut off", "calls without lines", "another kind"],
)
def test_a_damaged_image_is_refused(damage: Any) -> None:
    shard = Shard()
    shard.place("c1")
    with pytest.raises(image.ImageError):
        image.restore("beijing", damage(parts(shard.state)))


def test_an_image_of_another_shard_is_refused() -> None:
    with pytest.raises(image.ImageError, match="image of shard beijing"):
        image.restore("shanghai", image.dump(Shard().state))


def test_an_older_image_gives_new_fields_their_first_value() -> None:
    shard = Shard()
    shard.place("c1")
    old = [part.replace(b"move", b"gone") for part in parts(shard.state)]
    assert image.restore("beijing", old).calls["c1"].move == 0


def test_after_call_work_of_who_handed_on_survives_and_an_older_image_has_none() -> None:
    shard = staffed(Strategy.LONGEST_IDLE)
    shard.do(ConfigureQueue(queue=QueueConfig(id="sales")))
    agent = shard.state.agents["ann"]
    agent.wrap_queues["c1"] = "sales"
    images = parts(shard.state)
    assert image.restore("beijing", images).agents["ann"].wrap_queues == {"c1": "sales"}
    old = [part.replace(b"wrap_queues", b"some_thing_") for part in images]
    assert image.restore("beijing", old).agents["ann"].wrap_queues == {}


def test_a_field_without_a_type_is_noticed() -> None:
    class Odd(CallEntry):
        __slots__ = ("something",)

    entry: Any = Odd(CallFacts(call_id="", queue=""), None)  # type: ignore[arg-type]
    entry.something = []
    with pytest.raises(TypeError, match="something needs a type"):
        image._DERIVED[Odd] = frozenset()
        image._Kind(Odd, entry, {})
    del image._DERIVED[Odd]


def test_a_digest_tells_states_apart() -> None:
    one, two = Shard(), Shard()
    for shard in (one, two):
        shard.agent("ann")
        shard.place("c1")
    assert image.digest(one.state, 7) == image.digest(two.state, 7)
    two.state.calls["c1"].recording_uri = "changed"
    assert image.digest(one.state, 7) != image.digest(two.state, 7)
    assert image.comparable(image.digest(one.state, 7), image.digest(two.state, 8))
    assert not image.comparable(image.digest(one.state, 7), "0:0")


def test_a_state_that_began_from_another_releases_image_is_compared_with_its_like_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = Shard()
    shard.place("c1")
    new = image.digest(shard.state, 0)
    assert image.digest(copy_of(shard.state), 0) == new, "an image of these rules says so"

    def older(monkeypatch: pytest.MonkeyPatch, *, silent: bool) -> list[bytes]:
        with monkeypatch.context() as patched:
            patched.setattr(image, "RULES", image.RULES - 1)
            made = parts(shard.state)
        return [part.replace(b"lineage", b"unknown") for part in made] if silent else made

    early = [image.restore("beijing", older(monkeypatch, silent=silent)) for silent in (False, True)]
    shard.place("c2")
    late = image.restore("beijing", older(monkeypatch, silent=False))
    one, other = (image.digest(state, 0) for state in early)
    assert one == other and not image.comparable(one, new)
    assert not image.comparable(one, image.digest(late, 0)), "it took over the old rules' state later"
    again = copy_of(early[0])
    assert image.digest(again, 0) == one, "its own image says where it began"


def test_whoever_is_free_keeps_the_turn_on_every_channel() -> None:
    shard = Shard(wrap_up_span_ms=0)
    shard.agent("ann", capacity=(("chat", 3),))
    for call_id in ("c1", "c2"):
        shard.place(call_id, facts={"channel": "chat"})
        shard.connect(call_id)
        shard.wait(1_000)
    shard.agent("bob", capacity=(("chat", 3),))
    shard.wait(1_000)
    # She had room before, and keeps her turn.
    shard.do(EndCall(call_id="c1"))
    ann = shard.state.agents["ann"]
    assert ann.idle["chat"].since_ms < ann.since_ms
    restored = copy_of(shard.state)
    for key, line in shard.state.lines.items():
        assert restored.lines[key].free.order() == line.free.order(), key
    for agent_id, agent in shard.state.agents.items():
        idle = restored.agents[agent_id].idle
        assert {c: p.since_ms for c, p in idle.items()} == {c: p.since_ms for c, p in agent.idle.items()}
    assert parts(restored) == parts(shard.state)


def test_digests_look_at_every_entry_by_turns() -> None:
    shard = Shard()
    count = 3 * image.DIGEST_ENTRIES
    shard.do(ConfigureQueue(queue=QueueConfig(id="service", length_max=count)))
    for number in range(count):
        facts = CallFacts(call_id=f"c{number}", queue="service")
        shard.do(PlaceCall(facts=facts, attempt=1, move=1, front="f"))
    before = [image.digest(shard.state, n) for n in range(3)]
    last = shard.state.calls[f"c{count - 1}"]
    last.facts = msgspec.structs.replace(last.facts, caller_number="+1")
    changed = [image.digest(shard.state, n) != before[n] for n in range(3)]
    assert sum(changed) == 1


def test_a_number_of_the_databases_own_kind_is_a_number() -> None:
    class Odd(int):
        """As BSON has it."""

    shard = Shard()
    shard.place("c1")
    shard.state.now_ms = Odd(shard.state.now_ms)
    restored = copy_of(shard.state)
    assert restored.now_ms == shard.state.now_ms and type(restored.now_ms) is int
    shard.state.calls["c1"].reason = object()  # type: ignore[assignment]
    with pytest.raises(TypeError, match="no place in an image"):
        parts(shard.state)
