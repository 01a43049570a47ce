"""PlanningService, from its requests to its responses, in a process of its own.

A forecast loads a statistics library and computes for a while, a shift plan for some seconds: not in a
process that routes calls. So `Elsewhere` starts another one (`python -m routing.planning.process`: the
database's name and the region on its command line, its address in MONGO_URI or MONGO_URI_FILE, requests on
its standard input) and waits, one request at a time. The first request takes two or three seconds, more than
ten on a busy machine: callers set a deadline. Then the process is kept for those that follow, which take a
fraction of a second, and ends some minutes after the last. What cannot be planned is refused before.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from chassis import logs
from chassis.apart import Kept, serve_jobs
from chassis.clock import Clock
from chassis.errors import CallmeshError, InvalidArgument, ResourceExhausted, Unavailable
from routing.errors import QueueNotFound
from routing.planning.forecast import HistoryTooShort
from routing.planning.requests import CHECKS
from routing.planning.shifts import NoShiftPlan

if TYPE_CHECKING:
    from google.protobuf.message import Message

#: How long the process is kept for another request by default, real seconds.
KEPT_SECONDS = 900.0
#: Longest that a request may take, and how soon another try makes sense while one is worked at, real seconds.
SECONDS_MAX = 180.0
RETRY_SECONDS = 5.0
#: Bytes of a request that is checked before another process is started, a tenth of a second's work at most;
#: of a larger one the other process says what is wrong.
CHECKED_HERE_BYTES_MAX = 256 * 1024
#: Real milliseconds in which the database must answer the other process.
ANSWER_MS_MAX = 5_000
#: Statuses of the other process's answers: a request that is refused, reports that cannot be read.
EXIT_REFUSED, EXIT_UNREADABLE = 3, 4

log = logs.get_logger(__name__)
Filled = TypeVar("Filled", bound="Message")


class PlannerBusy(ResourceExhausted):
    """Another forecast or plan is being made; try again."""

    reason = "PLANNER_BUSY"


class PlanningAway(Unavailable):
    """Forecasts and plans cannot be made just now; try again."""

    reason = "PLANNING_UNAVAILABLE"


class Job(msgspec.Struct, frozen=True):
    """One request on its way."""

    method: str
    #: Business time.
    now_ms: int
    #: The request's message.
    request: bytes


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Job)


class Elsewhere:
    """One a router. Its methods belong to one event loop."""

    def __init__(
        self,
        mongo_uri: str,
        database: str,
        region: str,
        clock: Clock,
        kept_seconds: float = KEPT_SECONDS,
        *,
        mongo_uri_file: str = "",
    ) -> None:
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._kept = Kept(
            "routing.planning.process",
            *(database, region),
            # One thread is enough, and leaves the others to routing.
            environment={"MONGO_URI": mongo_uri, "MONGO_URI_FILE": mongo_uri_file, "OMP_NUM_THREADS": "1"},
            kept_seconds=kept_seconds,
        )

    async def answer(self, method: str, request: Message, response: Filled) -> Filled:
        """Fills the response in. Raises what the planner refuses with (answers.py), PlannerBusy,
        PlanningAway and, after `SECONDS_MAX`, DeadlineExceeded.
        """
        if request.ByteSize() <= CHECKED_HERE_BYTES_MAX:
            await asyncio.to_thread(CHECKS[method], request)
        if self._one_at_a_time.locked():
            raise PlannerBusy(subject="server", limit="one plan at a time", retry_seconds=RETRY_SECONDS)
        async with self._one_at_a_time:
            said = await self._run(method, request.SerializeToString())
        response.ParseFromString(said)
        return response

    async def _run(self, method: str, request: bytes) -> bytes:
        job = Job(method=method, now_ms=self._clock.now_ms(), request=request)
        ended = await self._kept.ask(_encoder.encode(job), SECONDS_MAX)
        if ended.status == EXIT_REFUSED:
            raise _refusal(json.loads(ended.said))
        if ended.status:
            log.warning("planning_failed", method=method, status=ended.status, said=ended.why)
            raise PlanningAway(retry_seconds=RETRY_SECONDS)
        return ended.said

    async def close(self) -> None:
        """Ends the other process, if there is one."""
        await self._kept.close()


def _refusal(said: dict[str, Any]) -> CallmeshError:
    """The error that the other process raised."""
    kinds: tuple[type[CallmeshError], ...] = (InvalidArgument, QueueNotFound, HistoryTooShort, NoShiftPlan)
    kind = next((each for each in kinds if each.reason == said["reason"]), None)
    if kind is None:
        return PlanningAway(retry_seconds=RETRY_SECONDS)
    return kind(**said["values"])


def answer_here(method: str, raw: bytes, database: Any, region: str, now_ms: int) -> bytes:
    """What the other process does. Raises as `Planner`."""
    from routing.planning.answers import METHODS, Planner
    from routing.planning.store import MongoPlanning

    request_type, bind = METHODS[method]
    response = bind(Planner(MongoPlanning(database), region, now_ms))(request_type.FromString(raw))
    filled: bytes = response.SerializeToString()
    return filled


def carry_out(job: Job, database: Any, region: str) -> tuple[int, bytes]:
    """(status, answer) of one request. Pymongo's errors."""
    try:
        return 0, answer_here(job.method, job.request, database, region, job.now_ms)
    except Unavailable:
        raise
    except CallmeshError as error:
        said = {"reason": error.reason, "values": _plain(error)}
        return EXIT_REFUSED, json.dumps(said).encode()


def connected(job: Job, name: str, region: str) -> tuple[int, bytes]:
    """`carry_out` over a connection of its own: between two requests a password may have been changed."""
    from pymongo.errors import PyMongoError

    from chassis.credentials import client_of
    from chassis.errors import StartError

    uri, file = os.environ["MONGO_URI"], os.environ["MONGO_URI_FILE"]
    try:
        with client_of(uri, file, ANSWER_MS_MAX) as client:
            return carry_out(job, client[name], region)
    except (PyMongoError, StartError) as error:
        print(type(error).__name__, file=sys.stderr)
        return EXIT_UNREADABLE, b""


def main() -> int:
    """The other process: requests on its standard input, answers on its standard output."""
    os.nice(10)
    name, region = sys.argv[1:3]
    return serve_jobs(lambda job: connected(_decoder.decode(job), name, region))


def _plain(error: CallmeshError) -> dict[str, str]:
    return {name: str(value) for name, value in error.values.items()}


if __name__ == "__main__":
    sys.exit(main())
