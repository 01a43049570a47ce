"""`callmesh doctor`: looks at a running platform and says, for everything that is wrong, what to do.

Each check looks at one thing and tells what it finds; one that cannot look says so and keeps nobody else
from looking. Exit status: 0 nothing is wrong, 1 a warning, 2 something is broken.
"""

from __future__ import annotations

import enum
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from chassis.release import RELEASE, apart, of_app_name
from cli.directory import Refused, tls_credentials
from cli.lifecycle import ask
from cli.options import RUN_DIR_DEFAULT, RunDir
from cli.queues import handler_queues
from cli.stores import SERVICES, amqp_uri, database_name, mongo_client, mongo_uri
from cli.view import OUT

#: The database's clock may differ from this machine's by so much, seconds.
SKEW_SECONDS_MAX = 1.0
#: A member may be behind its primary by so much, seconds.
LAG_SECONDS_MAX = 10.0
#: An event may wait for its publication for so long, seconds.
OUTBOX_SECONDS_MAX = 60.0
#: Messages waiting in a queue before it is told, and days that a certificate must still hold.
QUEUE_MESSAGES_WARN, CERTIFICATE_DAYS_MIN = 10_000, 14
#: How long a server may take to answer, seconds.
ANSWER_SECONDS_MAX = 3.0
_STATES_WELL = ("PRIMARY", "SECONDARY", "ARBITER")


class Level(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a check found."""

    check: str
    level: Level
    what: str
    #: What to do; empty when nothing is wrong.
    do: str = ""


Check = Callable[[], Iterator[Finding]]


def well(check: str, what: str) -> Finding:
    """Nothing is wrong."""
    return Finding(check=check, level=Level.OK, what=what)


def warning(check: str, what: str, do: str) -> Finding:
    """Something to see to."""
    return Finding(check=check, level=Level.WARNING, what=what, do=do)


def broken(check: str, what: str, do: str) -> Finding:
    """Something that callers feel, or will."""
    return Finding(check=check, level=Level.BROKEN, what=what, do=do)


# --- the database ------------------------------------------------------------------------------------------


def replica_set(client: Any) -> Iterator[Finding]:
    """Members, their states and how far they are behind."""
    from pymongo.errors import OperationFailure

    name = "replica set"
    try:
        status = client.admin.command("replSetGetStatus")
    except OperationFailure as error:
        if error.code == 13:
            yield warning(name, "this user may not look at it", "grant it the role clusterMonitor")
        else:
            yield broken(name, "the database is no replica set", "see docs/deploying.md: callmesh needs one")
        return
    members = status["members"]
    newest = max((m["optimeDate"] for m in members if "optimeDate" in m), default=None)
    for member in members:
        state = member["stateStr"]
        if state not in _STATES_WELL:
            yield broken(
                name, f"{member['name']} is {state}", "start it, or replace it: a majority must stay"
            )
        elif newest is not None and state == "SECONDARY":
            behind = (newest - member["optimeDate"]).total_seconds()
            if behind > LAG_SECONDS_MAX:
                yield warning(
                    name, f"{member['name']} is {behind:.0f} s behind", "look at its disk and network"
                )
    up = sum(member["stateStr"] in _STATES_WELL for member in members)
    if len(members) < 3:
        yield warning(
            name, f"{len(members)} member", "three members survive the loss of one (not for a trial)"
        )
    yield well(name, f"{up} of {len(members)} members, version {client.server_info()['version']}")


def clock_skew(client: Any) -> Iterator[Finding]:
    """This machine's clock against the database's."""
    before = time.time()
    there = client.admin.command("hello")["localTime"].timestamp()
    skew = there - (before + time.time()) / 2
    if abs(skew) > SKEW_SECONDS_MAX:
        yield warning("clock", f"the database's clock is {skew:+.1f} s off this one", "let both follow NTP")
    else:
        yield well("clock", f"{skew * 1000:+.0f} ms")


def releases(client: Any) -> Iterator[Finding]:
    """Which releases are connected: neighbours may run side by side during a rollout, others never."""
    from pymongo.errors import OperationFailure

    name = "releases"
    try:
        running = _running(client)
    except OperationFailure:
        yield warning(name, "this user may not see who is connected", "grant it the role clusterMonitor")
        return
    every = sorted(set().union(*running.values())) if running else []
    for one, other in apart(running):
        what = f"{one or 'one without a name'} and {other} run side by side"
        yield broken(name, what, "only neighbouring releases may: go step by step (docs/day-two.md)")
    if len(every) > 1 and not apart(running):
        mixed = ", ".join(
            f"{service} {'/'.join(sorted(found))}" for service, found in sorted(running.items())
        )
        yield warning(name, f"a rollout is under way, or was left: {mixed}", "finish it, or roll it back")
    if every and RELEASE not in every:
        do = "use the command of the image that runs"
        yield warning(name, f"this command is of {RELEASE}, the platform is not", do)
    if len(every) == 1:
        yield well(name, f"{', '.join(sorted(running))}: {every[0]}")
    elif not every:
        yield warning(name, "no process is connected", "is the platform running, on this database?")


def _running(client: Any) -> dict[str, set[str]]:
    """Service -> releases of its connected processes. OperationFailure for who may not ask."""
    asked: list[dict[str, Any]] = [
        {"$currentOp": {"allUsers": True, "idleConnections": True}},
        {"$group": {"_id": "$appName"}},
    ]
    running: dict[str, set[str]] = {}
    for each in client.admin.aggregate(asked):
        known = of_app_name(str(each["_id"]))
        if known is not None and known[0] in SERVICES:
            running.setdefault(known[0], set()).add(known[1])
    return running


def database(client: Any, service: str) -> Iterator[Finding]:
    """One service's database: a restore that was cut short, events that wait, leases that ran out."""
    from chassis.mongo import RESTORING

    name, held = f"{service} database", client[database_name(service)]
    there = set(held.list_collection_names())
    if RESTORING in there:
        yield broken(name, "it is being restored, or was left half restored", "callmesh restore … --replace")
    if not there:
        yield warning(name, "it is empty", "the service never started on it: is the address right?")
        return
    # A collection without that index has no such events, and would be read as a whole.
    waiting = {"outbox_since": {"$type": "date"}}
    oldest = [
        found["outbox_since"]
        for collection in sorted(there)
        if "outbox_since" in _indexed(held[collection])
        and (found := held[collection].find_one(waiting, sort=[("outbox_since", 1)]))
    ]
    waits = (datetime.now(UTC) - min(oldest)).total_seconds() if oldest else 0.0
    if waits > OUTBOX_SECONDS_MAX:
        yield broken(name, f"events have waited for {waits:.0f} s", "docs/runbooks/events-wait.md")
    for lease in held["leases"].find({"holder": {"$ne": ""}, "expires_at": {"$lt": datetime.now(UTC)}}):
        what = f"the lease {lease['_id']} ran out at {lease['expires_at']:%H:%M:%S} UTC"
        yield warning(name, what, f"is {service}'s worker running? nobody does this work")
    if waits <= OUTBOX_SECONDS_MAX:
        yield well(name, f"{len(there)} collections, the oldest event waits {waits:.0f} s")


def _indexed(collection: Any) -> set[str]:
    return {field for index in collection.list_indexes() for field in index["key"]}


def schema(uri: str, service: str) -> Iterator[Finding]:
    """Indexes, unknown collections and migrations, as the service's own code sees them."""
    found = ask(service, uri)
    for finding in found:
        yield warning(f"{service} schema", finding["what"], finding["do"])
    if not found:
        yield well(f"{service} schema", "indexes and migrations as this release wants them")


# --- the broker --------------------------------------------------------------------------------------------


def broker(uri: str) -> Iterator[Finding]:
    """Queues of all handlers, what waits in them, and dead letters."""
    from chassis.bus.topology import dead_queue
    from cli.dead import broker as connected
    from cli.dead import depth

    waiting = dead = 0
    with connected(uri) as connection:
        for queue in handler_queues():
            ready, lost = depth(connection, queue), depth(connection, dead_queue(queue)) or 0
            service = queue.partition(".")[0]
            if ready is None:
                yield broken("queues", f"{queue} is not there", f"python -m {service}.worker --declare")
                continue
            if ready > QUEUE_MESSAGES_WARN:
                yield warning("queues", f"{ready} wait in {queue}", f"is {service}'s worker running? add one")
            if lost:
                yield warning("dead letters", f"{lost} of {queue}", f"callmesh dead show {queue}")
            waiting, dead = waiting + ready, dead + lost
    yield well("queues", f"{waiting} waiting, {dead} dead")


# --- servers -----------------------------------------------------------------------------------------------


def server(address: str, secure: bool) -> Iterator[Finding]:
    """Whether a server serves, and which services it has."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    name, credentials = f"server {address}", tls_credentials()
    if secure and credentials is None:
        raise Refused("--tls needs TLS_CA_FILE, the authority of the servers' certificates")
    options = [("grpc.enable_http_proxy", 0)]
    channel = (
        grpc.insecure_channel(address, options=options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options=options)
    )
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS_MAX
            )
        except grpc.RpcError as error:
            code = getattr(error, "code", lambda: grpc.StatusCode.UNKNOWN)()
            yield broken(name, f"it does not answer: {code.name}", "is it running? its log says why not")
            return
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        yield well(name, "SERVING")
    else:
        yield broken(name, "it is NOT_SERVING", "it starts, drains, or waits for its stores: see its /readyz")


def certificate(path: Path, now: datetime) -> Iterator[Finding]:
    """How long a certificate still holds."""
    from cryptography import x509

    name = f"certificate {path.name}"
    try:
        until = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        yield broken(name, f"it cannot be read: {type(error).__name__}", f"put a PEM certificate at {path}")
        return
    days = (until - now).total_seconds() / 86_400
    if days < 0:
        yield broken(
            name, f"it ended {-days:.0f} days ago", "renew it: servers read the file again by themselves"
        )
    elif days < CERTIFICATE_DAYS_MIN:
        yield warning(
            name, f"it ends in {days:.0f} days", "renew it: servers read the file again by themselves"
        )
    else:
        yield well(name, f"holds for {days:.0f} days")


def settings() -> Iterator[Finding]:
    """What this machine's environment says that services would not take, or that is unwise."""
    from chassis.config import ServiceSettings

    found = False
    if os.environ.get("AUTH_MODE") == "open":
        found = True
        yield warning("settings", "AUTH_MODE is open", "only for a trial on one machine; use jwt")
    for name in ("MONGO_URI", "AMQP_URI"):
        if "@" in os.environ.get(name, "") and not os.environ.get(f"{name}_FILE"):
            found = True
            do = f"{name}_FILE lets it change without a restart"
            yield warning("settings", f"{name} holds a password in the environment", do)
    if float(os.environ.get("CLOCK_SPEED", "1") or 1) != 1:
        found = True
        yield warning("settings", "CLOCK_SPEED is not 1", "business time runs at a demo's pace")
    if not found:
        yield well("settings", f"nothing unwise among {len(ServiceSettings.model_fields)} shared settings")


# --- all of it ---------------------------------------------------------------------------------------------


def run(checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """Every check's findings; one that breaks is a finding itself."""
    from pymongo.errors import PyMongoError

    found: list[Finding] = []
    for name, check in checks:
        try:
            found += check()
        except (Refused, PyMongoError, OSError, ValueError) as error:
            text = str(error) if isinstance(error, Refused) else type(error).__name__
            found.append(
                broken(name, f"it could not be looked at: {text}", "mend this first, then look again")
            )
    return found


def _store_checks(run_dir: Path) -> Iterator[tuple[str, Check]]:
    def each(look: Callable[[Any], Iterator[Finding]]) -> Check:
        def check() -> Iterator[Finding]:
            with mongo_client(mongo_uri(run_dir)) as client:
                yield from look(client)

        return check

    yield "replica set", each(replica_set)
    yield "clock", each(clock_skew)
    yield "releases", each(releases)
    for service in SERVICES:
        yield f"{service} database", each(lambda client, service=service: database(client, service))  # type: ignore[misc]
        yield f"{service} schema", lambda service=service: schema(mongo_uri(run_dir), service)  # type: ignore[misc]
    yield "queues", lambda: broker(amqp_uri(run_dir))


def _addresses(run_dir: Path, given: Sequence[str]) -> list[str]:
    from cli import plan
    from cli.stack import recorded_stack

    if given:
        return list(given)
    stack = recorded_stack(run_dir.expanduser().resolve())
    if stack is None:
        return []
    served = [*plan.servers(stack.config), *plan.clients(stack.config)]
    return [f"{plan.HOST}:{each.grpc_port}" for each in served]


def doctor(
    server_at: Annotated[
        list[str] | None,
        typer.Option("--server", help="A server, host:port; the local stack's by default. May be repeated."),
    ] = None,
    certificate_at: Annotated[
        list[Path] | None, typer.Option("--certificate", help="A PEM certificate. May be repeated.")
    ] = None,
    secure: Annotated[bool, typer.Option("--tls", help="Refuse to call servers without TLS.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of lines.")] = False,
    run_dir: RunDir = RUN_DIR_DEFAULT,
) -> None:
    """Look at a running platform: database, broker, servers, indexes, certificates; say what to do.

    Where things are is said by MONGO_URI(_FILE) and AMQP_URI(_FILE), else by the local stack of RUN_DIR.
    Exit status 0: nothing is wrong; 1: a warning; 2: something is broken.
    """
    checks: list[tuple[str, Check]] = [("settings", settings), *_store_checks(run_dir)]
    for address in _addresses(run_dir, server_at or []):
        checks.append((f"server {address}", lambda address=address: server(address, secure)))  # type: ignore[misc]
    files = list(certificate_at or [])
    if not files and (own := os.environ.get("TLS_CERT_FILE")):
        files = [Path(own)]
    now = datetime.now(UTC)
    for path in files:
        checks.append((f"certificate {path.name}", lambda path=path: certificate(path, now)))  # type: ignore[misc]
    found = run(checks)
    if as_json:
        said = [{"check": f.check, "level": f.level, "what": f.what, "do": f.do} for f in found]
        typer.echo(json.dumps(said, indent=1))
    else:
        styles = {Level.OK: "green", Level.WARNING: "yellow", Level.BROKEN: "bold red"}
        for finding in found:
            do = f" -> {finding.do}" if finding.do else ""
            OUT.print(f"{finding.level:8}", style=styles[finding.level], end="")
            OUT.print(f"{finding.check}: {finding.what}{do}", markup=False, highlight=False, soft_wrap=True)
    levels = {finding.level for finding in found}
    raise typer.Exit(2 if Level.BROKEN in levels else 1 if Level.WARNING in levels else 0)
