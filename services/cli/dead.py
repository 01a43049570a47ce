"""`callmesh dead`: events that a handler gave up on, looked at, replayed or dropped.

1. Nothing is lost on the way: a replayed event is acknowledged in its dead-letter queue when the broker has
   confirmed it in the handler's queue; a command that dies in between leaves it in both, and the handler
   knows an event that it took.
2. A replayed event starts anew: its attempts are counted from the first. What fails again comes back here.
3. Personal fields are left out of what is shown, and text that looks like a telephone number is masked.
4. What is replayed or dropped is an administrative act: it goes to the audit log with who, which and why.
"""

from __future__ import annotations

import contextlib
import getpass
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.directory import Refused
from cli.options import RUN_DIR_DEFAULT, RunDir
from cli.queues import handler_queues
from cli.stores import amqp_uri
from cli.view import OUT

if TYPE_CHECKING:
    from amqp import Channel, Connection

#: Letters that one command takes in hand.
LETTERS_MAX = 10_000
#: Longest reason, characters.
REASON_CHARACTERS_MAX = 500
#: How long the broker may take to confirm one letter, seconds.
CONFIRM_SECONDS_MAX = 15.0

dead = typer.Typer(name="dead", help="Events that a handler gave up on.", no_args_is_help=True)

Queue = Annotated[str, typer.Argument(help="<service>.<handler>, as `list` shows it.")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="An event's id; may be repeated.")]
All = Annotated[bool, typer.Option("--all", help="Every event in the queue.")]
Reason = Annotated[str, typer.Option("--reason", help="For the audit log; must be given.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """One event in a dead-letter queue, held by this command and not acknowledged."""

    tag: int
    body: bytes
    headers: dict[str, Any]
    #: Empty for a body that is no event.
    id: str
    type: str
    subject: str
    time: str


@contextmanager
def broker(uri: str) -> Iterator[Connection]:
    """A connection to the broker. Raises Refused, without the address: it may hold a password."""
    import amqp

    from chassis.bus.connection import CONNECTION_ERRORS, close_quietly, open_connection

    try:
        connection = open_connection(uri)
    except CONNECTION_ERRORS as error:
        raise Refused(f"the broker does not answer: {type(error).__name__}") from None
    try:
        yield connection
    except amqp.NotFound:
        raise Refused("there is no such queue at the broker: its worker was never declared") from None
    except CONNECTION_ERRORS as error:
        raise Refused(f"the broker ended it: {type(error).__name__}") from None
    finally:
        close_quietly(connection)


def depth(connection: Connection, queue: str) -> int | None:
    """Messages ready in a queue; None where there is no such queue."""
    import amqp

    # A passive declaration of a queue that is not there closes the channel.
    channel = connection.channel()
    try:
        count = int(channel.queue_declare(queue, passive=True).message_count)
    except amqp.NotFound:
        return None
    channel.close()
    return count


def letters(channel: Channel, queue: str, limit: int = LETTERS_MAX) -> Iterator[Letter]:
    """Takes letters in hand, oldest first; what is not acknowledged goes back when the channel closes."""
    from chassis.bus import Event, MalformedEvent

    for _ in range(limit):
        message = channel.basic_get(queue)
        if message is None:
            return
        body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
        said = {"id": "", "type": "", "subject": "", "time": ""}
        with contextlib.suppress(MalformedEvent):
            event = Event.from_json(body)
            said = {"id": event.id, "type": event.type, "subject": event.subject}
            said["time"] = event.time.isoformat()
        headers = dict(message.properties.get("application_headers") or {})
        yield Letter(tag=message.delivery_tag, body=body, headers=headers, **said)


def cleaned(letter: Letter) -> dict[str, Any]:
    """A letter as it may be shown: without personal fields, numbers masked."""
    from google.protobuf import descriptor_pool

    from chassis.bus import verdict
    from chassis.logs import mask_text
    from chassis.privacy import plan_of, redact

    shown: dict[str, Any] = {name: getattr(letter, name) for name in ("id", "type", "subject", "time")}
    shown["reason"] = str(letter.headers.get(verdict.REASON_HEADER, ""))
    shown["error"] = mask_text(str(letter.headers.get(verdict.ERROR_HEADER, "")))
    shown["attempts"] = letter.headers.get(verdict.ATTEMPT_HEADER, 0)
    if (failed := letter.headers.get(verdict.FAILED_AT_HEADER)) and isinstance(failed, int):
        shown["failed_at"] = datetime.fromtimestamp(failed / 1000, UTC).isoformat(timespec="seconds")
    _known_types()
    try:
        plan = plan_of(descriptor_pool.Default().FindMessageTypeByName(letter.type))
        data = json.loads(letter.body)["data"]
    except (KeyError, ValueError, TypeError):
        # Nothing says which of its fields are personal.
        shown["data"] = f"not shown: {len(letter.body)} bytes"
        return shown
    redact(data, plan)
    shown["data"] = json.loads(mask_text(json.dumps(data, ensure_ascii=False)))
    return shown


def _known_types() -> None:
    import callmesh.crm.v1.events_pb2
    import callmesh.marketing.v1.events_pb2
    import callmesh.routing.v1.events_pb2
    import callmesh.tickets.v1.events_pb2  # noqa: F401


@dead.command("list")
def list_dead(
    run_dir: RunDir = RUN_DIR_DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Show how many events lie in each dead-letter queue. Exit status 1 when there is any."""
    from rich.table import Table

    from chassis.bus.topology import dead_queue

    with broker(amqp_uri(run_dir)) as connection:
        counts = {queue: depth(connection, dead_queue(queue)) for queue in handler_queues()}
    if as_json:
        typer.echo(json.dumps(counts, indent=1))
    else:
        table = Table("queue", "dead", box=None, pad_edge=False)
        for queue, count in counts.items():
            table.add_row(queue, "no such queue" if count is None else str(count))
        OUT.print(table)
    raise typer.Exit(1 if any(counts.values()) else 0)


@dead.command()
def show(
    queue: Queue,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000, help="Letters shown.")] = 20,
    run_dir: RunDir = RUN_DIR_DEFAULT,
) -> None:
    """Show dead letters as JSON, oldest first, without personal data. They stay where they are."""
    from chassis.bus.topology import dead_queue

    _check(queue)
    with broker(amqp_uri(run_dir)) as connection:
        found = [cleaned(letter) for letter in letters(connection.channel(), dead_queue(queue), limit)]
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False))


@dead.command()
def replay(
    queue: Queue, reason: Reason, id: Ids = None, every: All = False, run_dir: RunDir = RUN_DIR_DEFAULT
) -> None:
    """Hand dead letters to their handler again, as if they came for the first time."""
    from chassis.bus.publisher import Outcome, Outgoing, Publisher

    uri = amqp_uri(run_dir)
    publisher = Publisher(uri, service="cli")

    def again(letter: Letter) -> bool:
        headers = {name: value for name, value in letter.headers.items() if not name.startswith("x-")}
        outgoing = Outgoing(
            exchange="", routing_key=queue, body=letter.body, headers=headers, message_id=letter.id
        )
        return publisher.publish([outgoing], CONFIRM_SECONDS_MAX) == [Outcome.PUBLISHED]

    try:
        count = _settle(uri, queue, id or [], every, again, "replay", reason)
    finally:
        publisher.close()
    typer.echo(f"{count} replayed")


@dead.command()
def drop(
    queue: Queue, reason: Reason, id: Ids = None, every: All = False, run_dir: RunDir = RUN_DIR_DEFAULT
) -> None:
    """Throw dead letters away. There is no way back."""
    count = _settle(amqp_uri(run_dir), queue, id or [], every, lambda letter: True, "drop", reason)
    typer.echo(f"{count} dropped")


def _check(queue: str) -> None:
    if queue not in handler_queues():
        raise Refused(f"there is no queue {queue[:80]!r}: see `callmesh dead list`")


def _settle(
    uri: str, queue: str, ids: list[str], every: bool, take: Callable[[Letter], bool], act: str, reason: str
) -> int:
    """Takes the wanted letters, acknowledges those that `take` is done with, tells the audit log."""
    from chassis.bus.topology import dead_queue

    _check(queue)
    if bool(ids) == every:
        raise Refused("say which: --id, or --all")
    if not reason.strip() or len(reason) > REASON_CHARACTERS_MAX:
        raise Refused(f"--reason must have 1 to {REASON_CHARACTERS_MAX} characters")
    wanted, done = set(ids), 0
    with broker(uri) as connection:
        channel = connection.channel()
        for letter in letters(channel, dead_queue(queue)):
            if not every and letter.id not in wanted:
                continue
            # Told first: an act without a record is worse than a record without its act.
            details = {"event": letter.id, "type": letter.type}
            told(uri, f"dead-letters/{queue}", f"callmesh dead {act}", reason, details)
            if not take(letter):
                raise Refused(f"the broker did not take {letter.id}: {done} done, the rest lies where it was")
            channel.basic_ack(letter.tag)
            wanted.discard(letter.id)
            done += 1
    if wanted and not every:
        raise Refused(f"not in {dead_queue(queue)}: {', '.join(sorted(wanted))[:300]}; {done} done")
    return done


def told(uri: str, resource: str, method: str, reason: str, details: dict[str, str]) -> None:
    """Sends an administrative act to the audit log. Raises Refused when the broker does not take it."""
    from google.protobuf.timestamp_pb2 import Timestamp

    from callmesh.routing.v1 import events_pb2
    from chassis.bus import Event
    from chassis.bus.publisher import Outcome, Publisher

    now, stamp = datetime.now(UTC), Timestamp()
    stamp.FromDatetime(now)
    message = events_pb2.AdministrativeAct(
        actor=actor(), method=method, resource=resource, event_time=stamp, reason=reason, details=details
    )
    publisher = Publisher(uri, service="cli")
    try:
        event = Event.of(message, source="routing", subject=resource, time=now)
        if publisher.publish_events([event], seconds_max=CONFIRM_SECONDS_MAX) != [Outcome.PUBLISHED]:
            raise Refused("the audit log was not told: is routing's worker declared?")
    finally:
        publisher.close()


def actor() -> str:
    """Who is at the command line, as this machine knows it."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli:unknown"
