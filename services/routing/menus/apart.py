"""A rebuild in a process of its own: a large tree takes a second or two of pure computing, and routers
decide meanwhile.

`python -m routing.menus.apart` reads a job (msgpack) on its standard input and writes
the answer on its standard output.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

import msgspec

from callmesh.routing.v1 import menus_pb2 as pb
from chassis import logs
from chassis.apart import run_apart
from chassis.errors import FailedPrecondition, Internal, ResourceExhausted
from routing.convert import duration
from routing.menus import check, convert
from routing.menus.rebuild import Constraints, Impossible, Rebuilt, rebuild

#: Leaves up to which a rebuild is done where it is asked for, in a thread: about a tenth of a second.
LEAVES_HERE_MAX = 500
#: Longest that a rebuild may take, and how soon another try makes sense, real seconds.
SECONDS_MAX, RETRY_SECONDS = 30.0, 5.0
CHANGES_SHOWN_MAX = 1_000
#: Exit status of a job whose constraints cannot be met.
EXIT_IMPOSSIBLE = 3

_one_at_a_time = asyncio.Lock()
log = logs.get_logger(__name__)


class RebuildImpossible(FailedPrecondition):
    """{subject} cannot be rebuilt like that: {why}."""

    reason = "REBUILD_IMPOSSIBLE"


class Job(msgspec.Struct, frozen=True):
    """What is to be rebuilt, and how."""

    #: A `Menu` message.
    menu: bytes
    id: str
    accesses: dict[str, int]
    regulars: dict[str, int]
    keep_groups: bool
    choices_max: int
    changes_max: int
    listening_weight: float
    stability: float


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Job)


async def answer(job: Job, leaves: int) -> pb.RebuildMenuResponse:
    """The rebuilt menu, not stored. Raises RebuildImpossible, ResourceExhausted while another tree is
    rebuilt.
    """
    if _one_at_a_time.locked():
        raise ResourceExhausted("server", RETRY_SECONDS, limit="one menu is rebuilt at a time")
    async with _one_at_a_time:
        if leaves <= LEAVES_HERE_MAX:
            try:
                return await asyncio.to_thread(carry_out, job)
            except Impossible as error:
                raise RebuildImpossible(subject=f"menus/{job.id}", why=str(error)) from None
        return await _in_another_process(job)


async def _in_another_process(job: Job) -> pb.RebuildMenuResponse:
    ended = await run_apart("routing.menus.apart", job=_encoder.encode(job), seconds_max=SECONDS_MAX)
    if ended.status == EXIT_IMPOSSIBLE:
        raise RebuildImpossible(subject=f"menus/{job.id}", why=ended.why)
    if ended.status:
        log.error("menus.rebuild_failed", status=ended.status, said=ended.why)
        raise Internal()
    return pb.RebuildMenuResponse.FromString(ended.said)


def carry_out(job: Job) -> pb.RebuildMenuResponse:
    """Rebuilds. Raises Impossible."""
    menu = convert.read_menu(job.id, pb.Menu.FromString(job.menu))
    constraints = Constraints(
        keep_groups=job.keep_groups,
        choices_max=job.choices_max,
        changes_max=job.changes_max,
        listening_weight=job.listening_weight,
        stability=job.stability,
    )
    made = rebuild(menu, _floats(job.accesses), constraints, _floats(job.regulars))
    wrong = check.problems(made.menu)
    if wrong:
        raise Impossible(f"the tree would be at fault at {wrong[0][0]}: {wrong[0][1]}")
    return show(made)


def _floats(counts: Mapping[str, int]) -> dict[str, float]:
    return {id: float(number) for id, number in counts.items()}


def show(made: Rebuilt) -> pb.RebuildMenuResponse:
    """A rebuilt menu as it is answered."""
    shown = made.changes[:CHANGES_SHOWN_MAX]
    return pb.RebuildMenuResponse(
        menu=convert.show_menu(made.menu),
        presses_before=made.before.presses,
        presses_after=made.after.presses,
        listening_before=duration(round(made.before.listening_seconds * 1000)),
        listening_after=duration(round(made.after.listening_seconds * 1000)),
        presses_optimal=made.presses_optimal,
        changes=[pb.MenuChange(node=c.node, keys_before=c.before, keys_after=c.after) for c in shown],
        accesses=made.accesses,
        regulars_moved=made.regulars_moved,
    )


def main() -> int:
    """Returns the process's exit status."""
    job = _decoder.decode(sys.stdin.buffer.read())
    try:
        sys.stdout.buffer.write(carry_out(job).SerializeToString())
    except Impossible as error:
        sys.stderr.write(str(error))
        return EXIT_IMPOSSIBLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
