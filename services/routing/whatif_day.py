"""`SupervisionService.SimulateDay`, from its request to its response, in a process of its own.

A day takes seconds of pure computing, and the process that asks routes calls meanwhile: so `answer` starts
another one (`python -m routing.whatif_day`: the request on its standard input, MONGO_URI or MONGO_URI_FILE)
and waits, one at a time. `simulate_request` is what that process does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import directory_pb2, supervision_pb2
from chassis import logs
from chassis.apart import run_apart
from chassis.errors import InvalidArgument, ResourceExhausted, Unavailable
from chassis.ids import parse_name, resource_name
from routing.convert import duration, moment_ms
from routing.directory import agent_config, queue_config
from routing.directory_kinds import AGENT, QUEUE
from routing.model import AgentConfig, QueueConfig
from routing.past import read_past
from routing.whatif import DAY_MS, Figures, simulate_day

if TYPE_CHECKING:
    from pymongo.database import Database

#: Agents and queues in one request.
AGENTS_MAX, QUEUES_MAX = 10_000, 1_000
#: Longest that a day may take, and how soon another try makes sense while one is gone through, real seconds.
SECONDS_MAX = 120.0
RETRY_SECONDS = 10.0
#: Real milliseconds in which the database must answer the other process.
ANSWER_MS_MAX = 5_000
#: Exit statuses of the other process: a request that does not fit, a journal that cannot be read.
EXIT_INVALID, EXIT_UNREADABLE = 3, 4

_one_at_a_time = asyncio.Lock()
log = logs.get_logger(__name__)


async def answer(
    request: supervision_pb2.SimulateDayRequest, mongo_uri: str, database: str, mongo_uri_file: str = ""
) -> supervision_pb2.SimulateDayResponse:
    """The response. Raises InvalidArgument naming the field, ResourceExhausted while another day is gone
    through, Unavailable when the journal cannot be read and DeadlineExceeded after `SECONDS_MAX`.
    """
    check(request)
    if _one_at_a_time.locked():
        raise ResourceExhausted("server", RETRY_SECONDS, limit="one day is simulated at a time")
    async with _one_at_a_time:
        environment = {"MONGO_URI": mongo_uri, "MONGO_URI_FILE": mongo_uri_file}
        return await _in_another_process(request, database, environment)


async def _in_another_process(
    request: supervision_pb2.SimulateDayRequest, database: str, environment: dict[str, str]
) -> supervision_pb2.SimulateDayResponse:
    job = request.SerializeToString()
    ended = await run_apart(
        "routing.whatif_day", database, job=job, seconds_max=SECONDS_MAX, environment=environment
    )
    if ended.status == EXIT_INVALID:
        raise InvalidArgument(**json.loads(ended.said))
    if ended.status != 0:
        log.warning("simulate_day_failed", status=ended.status, said=ended.why)
        raise Unavailable(why="the journal cannot be read just now", retry_seconds=RETRY_SECONDS)
    return supervision_pb2.SimulateDayResponse.FromString(ended.said)


def simulate_request(
    request: supervision_pb2.SimulateDayRequest, database: Database[dict[str, Any]]
) -> supervision_pb2.SimulateDayResponse:
    """The response, here and now. Raises InvalidArgument naming the field and as `past.read_past`."""
    start_ms, end_ms = check(request)
    past = read_past(database, start_ms, end_ms)
    agents, sites = agents_of(request.agents)
    actual, proposed = simulate_day(past, agents, queues_of(request.queues), request.seed, sites)
    return supervision_pb2.SimulateDayResponse(actual=_messages(actual), proposed=_messages(proposed))


def check(request: supervision_pb2.SimulateDayRequest) -> tuple[int, int]:
    """(start, end) of the interval in business milliseconds. Raises InvalidArgument."""
    interval: common_pb2.Interval = request.interval
    for name in ("start_time", "end_time"):
        if not interval.HasField(name):
            raise InvalidArgument(field=f"interval.{name}", why="must be set")
    start_ms = moment_ms("interval.start_time", interval.start_time)
    end_ms = moment_ms("interval.end_time", interval.end_time)
    if not start_ms < end_ms <= start_ms + DAY_MS:
        raise InvalidArgument(field="interval", why="must end after it begins, at most a day later")
    for field, entries, most in (
        ("agents", request.agents, AGENTS_MAX),
        ("queues", request.queues, QUEUES_MAX),
    ):
        if len(entries) > most:
            raise InvalidArgument(field=field, why=f"must have at most {most} entries")
        names = [entry.name for entry in entries]
        if len(set(names)) != len(names):
            raise InvalidArgument(field=field, why="must not name an entry twice")
    agents_of(request.agents)
    queues_of(request.queues)
    return start_ms, end_ms


def agents_of(messages: Sequence[directory_pb2.Agent]) -> tuple[list[AgentConfig], dict[str, str]]:
    """Agents as proposed, and their regions. Raises InvalidArgument."""
    found: list[AgentConfig] = []
    sites: dict[str, str] = {}
    for index, message in enumerate(messages):
        found.append(agent_config(_document(AGENT, f"agents[{index}]", message)))
        region = parse_name(f"agents[{index}].region", "regions", message.region)
        sites[found[-1].id] = region
    return found, sites


def queues_of(messages: Sequence[directory_pb2.Queue]) -> list[QueueConfig]:
    """Queues as proposed. Raises InvalidArgument."""
    return [queue_config(_document(QUEUE, f"queues[{i}]", message)) for i, message in enumerate(messages)]


def _document(kind: Any, place: str, message: Any) -> dict[str, Any]:
    """What the directory would store, checked as the directory checks it."""
    id = parse_name(f"{place}.name", kind.collection, message.name)
    try:
        stored: dict[str, Any] = kind.to_document(id, message).to_mongo().to_dict()
    except InvalidArgument as error:
        field = str(error.values["field"]).removeprefix(f"{kind.field}.")
        raise InvalidArgument(field=f"{place}.{field}", why=error.values["why"]) from None
    return stored


def _messages(queues: Mapping[str, Figures]) -> list[supervision_pb2.QueueStats]:
    return [
        supervision_pb2.QueueStats(
            queue=resource_name("queues", queue),
            offered=figures.offered,
            answered=figures.answered,
            abandoned=figures.abandoned,
            short_abandoned=figures.short_abandoned,
            refused=figures.refused,
            answered_in_target=figures.answered_in_target,
            average_speed_of_answer=duration(round(figures.asa_seconds * 1000)),
            average_handle_time=duration(round(figures.handle_seconds * 1000)),
        )
        for queue, figures in queues.items()
    ]


def main() -> int:
    """The other process: standard input to standard output."""
    from pymongo.errors import PyMongoError

    from chassis.credentials import client_of
    from chassis.errors import StartError
    from routing.codec import CodecError
    from routing.journal import JournalGap

    request = supervision_pb2.SimulateDayRequest.FromString(sys.stdin.buffer.read())
    uri, file = os.environ["MONGO_URI"], os.environ.get("MONGO_URI_FILE", "")
    try:
        with client_of(uri, file, ANSWER_MS_MAX) as client:
            response = simulate_request(request, client[sys.argv[1]])
    except InvalidArgument as error:
        print(json.dumps({"field": error.values["field"], "why": error.values["why"]}))
        return EXIT_INVALID
    except (PyMongoError, StartError, JournalGap, CodecError) as error:
        print(type(error).__name__, file=sys.stderr)
        return EXIT_UNREADABLE
    sys.stdout.buffer.write(response.SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(main())
