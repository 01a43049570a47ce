"""PlanningService, from its requests to its responses, in a process of its own.

A forecast loads a statistics library and computes for a second, a shift plan for some: not in a process
that routes calls. So `Elsewhere` starts another one (`python -m routing.planning.process`: the method on
its command line, the request on its standard input, the database in MONGO_URI) and waits, one at a time.
That takes two or three seconds at least, more than ten on a busy machine: callers set a deadline. What
cannot be planned is refused before.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from chassis import logs
from chassis.apart import run_apart
from chassis.clock import Clock
from chassis.errors import CallmeshError, InvalidArgument, ResourceExhausted, Unavailable
from routing.errors import QueueNotFound
from routing.planning.forecast import HistoryTooShort
from routing.planning.requests import CHECKS
from routing.planning.shifts import NoShiftPlan

if TYPE_CHECKING:
    from google.protobuf.message import Message

#: Longest that a request may take, and how soon another try makes sense while one is worked at, real seconds.
SECONDS_MAX = 180.0
RETRY_SECONDS = 5.0
#: Bytes of a request that is checked before another process is started, a tenth of a second's work at most;
#: of a larger one the other process says what is wrong.
CHECKED_HERE_BYTES_MAX = 256 * 1024
#: Real milliseconds in which the database must answer the other process.
ANSWER_MS_MAX = 5_000
#: Exit statuses of the other process: a request that is refused, reports that cannot be read.
EXIT_REFUSED, EXIT_UNREADABLE = 3, 4

log = logs.get_logger(__name__)
Filled = TypeVar("Filled", bound="Message")


class PlannerBusy(ResourceExhausted):
    """Another forecast or plan is being made; try again."""

    reason = "PLANNER_BUSY"


class PlanningAway(Unavailable):
    """Forecasts and plans cannot be made just now; try again."""

    reason = "PLANNING_UNAVAILABLE"


class Elsewhere:
    """One a router. Its method belongs to one event loop."""

    def __init__(self, mongo_uri: str, database: str, region: str, clock: Clock) -> None:
        self._uri, self._database, self._region, self._clock = mongo_uri, database, region, clock
        self._one_at_a_time = asyncio.Lock()

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
        ended = await run_apart(
            "routing.planning.process",
            *(method, self._database, self._region, str(self._clock.now_ms())),
            job=request,
            seconds_max=SECONDS_MAX,
            # One thread is enough, and leaves the others to routing.
            environment={"MONGO_URI": self._uri, "OMP_NUM_THREADS": "1"},
        )
        if ended.status == EXIT_REFUSED:
            raise _refusal(json.loads(ended.said))
        if ended.status:
            log.warning("planning_failed", method=method, status=ended.status, said=ended.why)
            raise PlanningAway(retry_seconds=RETRY_SECONDS)
        return ended.said


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


def main() -> int:
    """The other process: standard input to standard output."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    os.nice(10)
    method, database, region, now_ms = sys.argv[1:5]
    raw = sys.stdin.buffer.read()
    client: MongoClient[dict[str, Any]]
    try:
        uri = os.environ["MONGO_URI"]
        with MongoClient(uri, serverSelectionTimeoutMS=ANSWER_MS_MAX, tz_aware=True) as client:
            said = answer_here(method, raw, client[database], region, int(now_ms))
    except CallmeshError as error:
        if not isinstance(error, Unavailable):
            print(json.dumps({"reason": error.reason, "values": _plain(error)}))
            return EXIT_REFUSED
        raise
    except PyMongoError as error:
        print(type(error).__name__, file=sys.stderr)
        return EXIT_UNREADABLE
    sys.stdout.buffer.write(said)
    return 0


def _plain(error: CallmeshError) -> dict[str, str]:
    return {name: str(value) for name, value in error.values.items()}


if __name__ == "__main__":
    sys.exit(main())
