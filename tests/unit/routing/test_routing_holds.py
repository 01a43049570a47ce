"""Holds: what follows from answers, how long a promise lasts, and blocks that are handed over as bytes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import bson
import pytest

from callmesh.routing.v1 import shard_pb2
from chassis.errors import InvalidArgument, Unimplemented
from routing.hold_peers import pack_block, unpack_blocks
from routing.holds import LEADS, Asker, HoldAnswer, Holds, Lists, Promise, Round, Verdict
from routing.journal import Block
from routing.seizure import ShardNotFollowed
from routing.shard_servicer import ShardServicer

HELD, WRITES = HoldAnswer(held=True, epoch=5), HoldAnswer(can_write=True, epoch=5)
NEWER, REFUSED = HoldAnswer(reason="NEWER_EPOCH", epoch=9), HoldAnswer(reason=LEADS, epoch=5)


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ((), Verdict.GO_ON),
        ((HELD,), Verdict.GO_ON),
        ((HELD, HELD), Verdict.GO_ON),
        ((HELD, None), Verdict.WAIT),
        ((HELD, REFUSED), Verdict.WAIT),
        ((HELD, HoldAnswer()), Verdict.WAIT),
        ((HELD, WRITES), Verdict.HAND_OVER),
        ((None, WRITES), Verdict.HAND_OVER),
        ((WRITES, NEWER), Verdict.STEP_DOWN),
        ((None, NEWER), Verdict.STEP_DOWN),
    ],
)
def test_what_follows_from_a_round(answers: tuple[HoldAnswer | None, ...], verdict: Verdict) -> None:
    asked = a_round(**{f"r{n}": answer for n, answer in enumerate(answers)})
    assert asked.verdict() is verdict
    holds = Holds(3.0)
    assert holds.take(asked, (100.0,)) is verdict
    assert (holds.left((102.39,)) > 0) is (verdict is Verdict.GO_ON) and holds.left((102.4,)) <= 0


def a_round(**answers: HoldAnswer | None) -> Round:
    return Round(epoch=5, answers=answers, able=frozenset(answers))


def test_a_round_without_all_answers_leaves_what_was_promised() -> None:
    holds = Holds(3.0)
    holds.take(a_round(a=HELD), (100.0,))
    holds.take(a_round(a=None), (101.0,))
    assert holds.left((102.3,)) > 0 >= holds.left((102.5,))
    holds.take(a_round(a=WRITES), (101.5,))
    assert holds.left((101.6,)) <= 0, "a router that can write has promised nothing any more"


def test_the_clock_that_is_furthest_decides() -> None:
    """One stands still, one was set back, one runs."""
    holds = Holds(3.0)
    holds.take(a_round(a=HELD), (100.0, 7.0, 5_000.0))
    assert holds.left((100.0, 9.3, 1_400.0)) == pytest.approx(0.1)
    assert holds.left((100.0, 9.5, 1_400.0)) <= 0


def test_the_first_of_the_list_takes_the_blocks() -> None:
    assert a_round(a=HELD, b=WRITES, c=WRITES).writer() == "b"


def test_who_may_not_be_listed_any_more_is_held_and_not_given_the_blocks() -> None:
    lists = Lists()
    lists.is_in_force(("a", "b"))
    assert lists.certain and lists.named(["home"]) == ["a", "b"]
    lists.may_be(("a", "b"))
    assert lists.certain
    lists.may_be(("a", "c"))
    lists.may_be(())
    assert not lists.certain and lists.named(["a", "home"]) == ["a", "b", "c", "home"]
    assert lists.able(["a", "home"]) == {"a"}
    asked = Round(epoch=5, answers={"b": WRITES, "c": HELD}, able=lists.able(["a", "home"]))
    assert asked.verdict() is Verdict.WAIT, "it would write the blocks down and not open"
    lists.is_in_force(())
    assert lists.named(["home"]) == ["home"] and lists.able(["home"]) == {"home"}


def test_a_promise_is_kept_and_so_is_that_of_a_former_life() -> None:
    promise = Promise((100.0, 7.0), 3.0)
    assert not promise.may_open((102.9, 9.9)) and promise.may_open((103.0, 10.0))
    promise.give(Asker(epoch=5, round=2), (101.0, 8.0), 3.0)
    promise.give(Asker(epoch=5, round=3), (101.5, 8.5), 1.0)
    assert not promise.may_open((103.9, 10.9)) and promise.may_open((104.0, 11.0))
    promise.release()
    assert not promise.may_open((102.9, 9.9)) and promise.may_open((103.0, 10.0))


def test_a_clock_that_stood_still_and_catches_up_ends_no_promise_before_its_time() -> None:
    promise = Promise((100.0, 100.0), 3.0)
    promise.give(Asker(epoch=5, round=2), (110.0, 112.0), 3.0)
    assert not promise.may_open((113.5, 113.5)) and promise.may_open((115.0, 115.0))


def test_what_was_on_its_way_for_long_releases_no_promise() -> None:
    promise = Promise((0.0,), 3.0)
    promise.give(Asker(epoch=5, round=4), (10.0,), 3.0)
    assert promise.given_later(Asker(epoch=5, round=3)) and promise.given_later(Asker(epoch=4, round=9))
    assert not promise.given_later(Asker(epoch=5, round=4))


def block(sequence: int, prev: str) -> Block:
    return Block(
        shard="beijing",
        sequence=sequence,
        epoch=5,
        nonce=f"n{sequence}",
        prev=prev,
        now_ms=1_772_000_000_000,
        format=1,
        count=0,
        body=b"\x90",
    )


A_BLOCK = block(7, "n6")


def handed(*blocks: bytes, epoch: int = 5) -> shard_pb2.TakeBlocksRequest:
    return shard_pb2.TakeBlocksRequest(shard="beijing", epoch=epoch, round=1, blocks=blocks)


@pytest.mark.parametrize("method", ["Hold", "TakeBlocks"])
async def test_who_does_not_go_on_from_memory_promises_nothing(method: str) -> None:
    leader: Any = SimpleNamespace(continuing=None)
    request: Any = {
        "Hold": shard_pb2.HoldRequest(shard="beijing", epoch=5, round=1, hold_ms=3_000),
        "TakeBlocks": handed(pack_block(A_BLOCK)),
    }[method]
    with pytest.raises(Unimplemented):
        await getattr(ShardServicer({"beijing": leader}, "one:1"), method)(request, None)
    others = {"beijing": leader, "shanghai": SimpleNamespace(continuing=object())}
    with pytest.raises(ShardNotFollowed):
        await getattr(ShardServicer(others, "one:1"), method)(request, None)


def test_blocks_come_as_they_were_made() -> None:
    blocks = [block(7, "n6"), block(8, "n7")]
    assert unpack_blocks(handed(*map(pack_block, blocks))) == blocks


@pytest.mark.parametrize(
    "raw",
    [
        (b"",),
        (b"\xff" * 40,),
        (bson.encode({"_id": 7}),),
        (bson.encode({"_id": "beijing:7", "epoch": 5}),),
        (bson.encode({**bson.decode(pack_block(A_BLOCK)), "body": 10**12}),),
        (bson.encode({**bson.decode(pack_block(A_BLOCK)), "body": b"no events"}),),
        (bson.encode({**bson.decode(pack_block(A_BLOCK)), "count": "many"}),),
        (pack_block(replace(block(7, "n6"), shard="shanghai")),),
        (pack_block(replace(block(7, "n6"), epoch=4)),),
        (pack_block(block(7, "n6")), pack_block(block(9, "n7"))),
        (pack_block(block(7, "n6")), pack_block(block(8, "other"))),
    ],
)
def test_what_is_no_block_is_refused_by_name(raw: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        unpack_blocks(handed(*raw))
    assert refused.value.details.field_violations[0].field == f"blocks[{len(raw) - 1}]"
