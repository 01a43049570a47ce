"""`callmesh redeliver`: events for handlers that never took them, after the broker was lost or the databases
were restored.

The broker is not backed up. What it holds is in the services' event logs as well, which are written before
anything is published (chassis/eventlog.py), and what a handler took is marked in its service's inbox. So what
a broker loses can be named: the events of a log that a handler wants and has no mark of.

1. They go to the handler's own queue, in the log's order, and are handled as if they came for the first time.
2. What is in a queue already, or still in an outbox, may come twice; handlers know an event that they took.
3. What a handler had given up on comes again, for its dead-letter queue went with the broker.
4. Events of people who have been forgotten since are left out: nobody can act on what is left of them.
5. What left the logs (72 hours, unless the settings say otherwise) cannot be brought back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chassis.errors import shorten
from cli.directory import Refused
from cli.options import RUN_DIR_DEFAULT, RunDir
from cli.stores import SERVICES, amqp_uri, database_name, mongo_client, mongo_uri

if TYPE_CHECKING:
    from chassis.bus.publisher import Outgoing

#: Events that are looked at, and published, together.
AT_ONCE = 500
#: How long a worker may take to say what it wants, and the broker to confirm a batch, seconds.
SAY_SECONDS_MAX, CONFIRM_SECONDS_MAX = 60.0, 30.0
#: Longest span that may be asked for, hours; logs hold less.
HOURS_MAX = 24 * 366.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What one handler wants."""

    service: str
    handler: str
    queue: str
    #: The service whose events they are.
    source: str
    types: frozenset[str]


def wanted(services: Sequence[str] = SERVICES) -> list[Wanted]:
    """What every handler wants, as this release's workers say it themselves. Raises Refused."""
    with ThreadPoolExecutor(len(services)) as pool:
        return [
            Wanted(**{**each, "types": frozenset(each["types"])})
            for said in pool.map(_said_by, services)
            for each in said
        ]


def _said_by(service: str) -> list[dict[str, Any]]:
    source = str(Path(__file__).resolve().parent.parent)
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    }
    command = [sys.executable, "-m", f"{service}.worker", "--subscriptions"]
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=SAY_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        why = "its code did not load in time; when the machine is less busy, try again"
        raise Refused(f"{service} did not say what it wants within {SAY_SECONDS_MAX:g} s: {why}") from None
    try:
        said: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        why = ["", *done.stderr.strip().splitlines()][-1]
        raise Refused(f"{service} did not say what it wants: {shorten(why)}") from None
    return said


def missed(client: Any, handlers: Sequence[Wanted], source: str, since: datetime) -> Iterator[Batch]:
    """What handlers of one service's events have no mark of, batch by batch, in the log's order. Pymongo's
    errors.
    """
    from chassis.bus.inbox import Inbox
    from chassis.eventlog import COLLECTION

    interested = [each for each in handlers if each.source == source]
    inboxes = {each.service: Inbox(client[database_name(each.service)]) for each in interested}
    log, last = client[database_name(source)][COLLECTION], 0
    while entries := _page(log, last, since, frozenset().union(*(each.types for each in interested))):
        last = entries[-1]["_id"]
        for each in interested:
            mine = {entry["event"]: entry for entry in entries if entry["type"] in each.types}
            seen = inboxes[each.service].seen_of(each.handler, list(mine)) if mine else set()
            fresh = [entry for id, entry in mine.items() if id not in seen]
            if fresh:
                yield Batch(handler=each, entries=fresh)


def _page(log: Any, last: int, since: datetime, types: frozenset[str]) -> list[dict[str, Any]]:
    query = {"_id": {"$gt": last}, "at": {"$gte": since}, "type": {"$in": sorted(types)}}
    found: list[dict[str, Any]] = log.find(query).sort("_id", 1).limit(AT_ONCE).to_list()
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Events that one handler has no mark of."""

    handler: Wanted
    #: Of the event log.
    entries: list[dict[str, Any]]

    def outgoing(self) -> list[Outgoing]:
        """Messages for the handler's own queue; what was taken out of an event for a person's sake keeps it
        out.
        """
        from chassis.bus.publisher import Outgoing

        made = []
        for entry in self.entries:
            body = bytes(entry["body"])
            envelope = json.loads(body)
            if envelope.get("redacted"):
                continue
            traced = {"traceparent": envelope["traceparent"]} if envelope.get("traceparent") else {}
            made.append(
                Outgoing(
                    exchange="",
                    routing_key=self.handler.queue,
                    body=body,
                    headers=traced,
                    message_id=entry["event"],
                )
            )
        return made


def redeliver(
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, it is only counted.")] = False,
    hours: Annotated[
        float, typer.Option("--hours", min=0.0, max=HOURS_MAX, help="How far back; 0: as far as logs go.")
    ] = 0.0,
    run_dir: RunDir = RUN_DIR_DEFAULT,
) -> None:
    """Bring handlers the events that they never took: after the broker was lost, or databases were restored.

    Reads the services' event logs (72 hours, unless told otherwise) and the handlers' inboxes. Run it when
    the queues are empty, or what waits there is handed over twice, to be recognised. Exit status 1 when,
    without --apply, there is something to bring.
    """
    since = datetime.now(UTC) - timedelta(hours=hours or HOURS_MAX)
    handlers = wanted()
    counts: dict[str, int] = dict.fromkeys((each.queue for each in handlers), 0)
    with mongo_client(mongo_uri(run_dir)) as client, ExitStack() as ending:
        send = _sender(ending, client, amqp_uri(run_dir)) if apply else len
        for source in SERVICES:
            for batch in missed(client, handlers, source, since):
                counts[batch.handler.queue] += send(batch.outgoing())
    for queue, count in sorted(counts.items()):
        if count:
            typer.echo(f"{queue}: {count} {'brought' if apply else 'never taken'}")
    if not any(counts.values()):
        typer.echo("nothing is missing")
    raise typer.Exit(1 if any(counts.values()) and not apply else 0)


def _sender(ending: ExitStack, client: Any, uri: str) -> Callable[[Sequence[Outgoing]], int]:
    """What publishes and counts; told to the audit log of each service whose handlers get something."""
    from chassis.acts import noted
    from chassis.bus.publisher import Outcome, Publisher
    from cli.dead import actor

    publisher = Publisher(uri, service="cli")
    ending.callback(publisher.close)
    told: set[str] = set()

    def send(messages: Sequence[Outgoing]) -> int:
        if not messages:
            return 0
        queue = messages[0].routing_key
        if queue not in told:
            told.add(queue)
            database = client[database_name(queue.partition(".")[0])]
            ending.enter_context(
                noted(database, actor=actor(), method="callmesh redeliver", resource=f"queues/{queue}")
            )
        outcomes = publisher.publish(messages, CONFIRM_SECONDS_MAX)
        if any(outcome is not Outcome.PUBLISHED for outcome in outcomes):
            worst = next(each.value for each in outcomes if each is not Outcome.PUBLISHED)
            raise Refused(f"the broker did not take all for {queue} ({worst}): run it again")
        return len(messages)

    return send
