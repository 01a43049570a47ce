"""`callmesh config`: regions, queues, agents, flows and offers as files; planned, applied, rolled back.

A directory of configuration holds, in the field names of the API:

    directory.yaml     regions, skills, queues, agents                          routing
    tickets.yaml       calendars, teams, sla_policies, flows                    tickets
    offers.yaml        offers                                                   marketing

Any of them may be missing. In tickets.yaml and offers.yaml each entry has a `name` ("flows/repair"); fields
that it does not name are left as they are. The rules:

1. A plan changes nothing. It reads what is there, and asks marketing and routing whether they would take
   what differs; tickets has no way to be asked.
2. An apply makes the same plan again and stops where a service would refuse, before anything is changed.
   Then resources are written one after another, each under the etag that the plan saw; the directory comes
   last, in one request.
3. When one is refused all the same (a fault that only tickets sees, somebody changed it meanwhile), or the
   command is interrupted, what this apply changed is put back, and it says so.
4. Every apply is a revision in `.history`: who, when, what changed, and the files as they were. It belongs
   to the files, and into the same version control. A rollback applies the files of a revision, as a new
   revision; the directory gets them when they are applied.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict

from callmesh.marketing.v1 import offers_pb2, offers_pb2_grpc
from callmesh.routing.v1 import directory_pb2
from callmesh.tickets.v1 import flow_pb2, flow_pb2_grpc, sla_pb2, sla_pb2_grpc, team_pb2, team_pb2_grpc
from cli.directory import (
    APPLY_SECONDS,
    Refused,
    asking,
    directory_of,
    explained,
    message_of,
    parsed,
    stub_at,
    text_of,
)
from cli.options import PortBase, service_at
from cli.plan import HOST, PORT_BASE_DEFAULT, ROUTING_GRPC_OFFSET
from cli.view import print_error

DIRECTORY, TICKETS, OFFERS = "directory.yaml", "tickets.yaml", "offers.yaml"
FILES = (DIRECTORY, TICKETS, OFFERS)
HISTORY = ".history"
#: Revisions that are listed, and entries of one kind in a file.
SHOWN_MAX, ENTRIES_MAX = 50, 10_000
_REVISION = re.compile(r"(\d{6})\.json")
#: What a revision has, and of which type.
_KEPT = {"revision": int, "time": str, "actor": str, "note": str, "changes": list, "files": dict}
#: After these nobody knows whether a change was made.
_UNKNOWN = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of resource with its five RPCs, which all have the same shape."""

    #: Collection of its names, and its key in the file.
    plural: str
    #: Field of its requests, and the end of its RPCs' names.
    field: str
    rpc: str
    message: Any
    #: Module with the requests.
    requests: Any
    stub: Any
    service: str
    file: str


#: In the order in which they are applied: what others name comes first.
KINDS = (
    Kind(
        plural="calendars", field="calendar", rpc="Calendar", message=sla_pb2.Calendar, requests=sla_pb2,
        stub=sla_pb2_grpc.SlaServiceStub, service="tickets", file=TICKETS,
    ),
    Kind(
        plural="teams", field="team", rpc="Team", message=team_pb2.Team, requests=team_pb2,
        stub=team_pb2_grpc.TeamServiceStub, service="tickets", file=TICKETS,
    ),
    Kind(
        plural="sla_policies", field="sla_policy", rpc="SlaPolicy", message=sla_pb2.SlaPolicy,
        requests=sla_pb2, stub=sla_pb2_grpc.SlaServiceStub, service="tickets", file=TICKETS,
    ),
    Kind(
        plural="flows", field="flow", rpc="Flow", message=flow_pb2.Flow, requests=flow_pb2,
        stub=flow_pb2_grpc.FlowServiceStub, service="tickets", file=TICKETS,
    ),
    Kind(
        plural="offers", field="offer", rpc="Offer", message=offers_pb2.Offer, requests=offers_pb2,
        stub=offers_pb2_grpc.OfferServiceStub, service="marketing", file=OFFERS,
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One resource that a file wants."""

    wanted: Any
    #: Fields that the file names, whatever it says of them: what it empties is emptied.
    fields: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """What a directory of configuration wants."""

    directory: directory_pb2.Directory | None
    #: Kind -> wanted resources, in order.
    wanted: Mapping[str, list[Entry]]
    #: File name -> its text, for the history.
    texts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One resource that is not as the files want it."""

    kind: Kind
    name: str
    wanted: Any
    #: As it is now; None: it is not there.
    before: Any
    fields: list[str]

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.name}"
        lines = [f"~ {self.name}"]
        for each in self.fields:
            old, new = _said(self.before, each), _said(self.wanted, each)
            lines.append(f"    {each}: {old} -> {new}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that an apply would do."""

    changes: list[Change]
    #: What the directory's own plan says: "create queues/gold", "update agents/a: skills".
    directory: list[str]
    #: The new resources that a service refuses, in its words.
    refused: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """The plan for people."""
        return [*map(str, self.changes), *self.directory]


def _said(message: Any, name: str) -> str:
    value = MessageToDict(message, preserving_proto_field_name=True).get(name)
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 120 else f"{text[:117]}..."


# --- files -------------------------------------------------------------------------------------------------


def read(directory: Path) -> Files:
    """Reads a directory of configuration. Raises Refused naming file and entry."""
    names = [name for name in FILES if (directory / name).is_file()]
    if not names:
        raise Refused(f"{directory} has none of {', '.join(FILES)}")
    return understood({name: text_of(directory / name) for name in names}, directory)


def understood(texts: Mapping[str, str], directory: Path) -> Files:
    """What the texts of files want; `directory` is where they are, for people. Raises Refused naming file and
    entry.
    """
    said = {name: parsed(directory / name, text) for name, text in texts.items()}
    wanted = {kind.plural: _entries(directory / kind.file, kind, said.get(kind.file)) for kind in KINDS}
    for name in (TICKETS, OFFERS):
        known = [kind.plural for kind in KINDS if kind.file == name]
        if extra := set(said.get(name) or {}) - set(known):
            raise Refused(f"{directory / name}: {min(map(str, extra))} is none of {', '.join(known)}")
    whole = None
    if DIRECTORY in said:
        whole = directory_of(directory / DIRECTORY, said[DIRECTORY])
    return Files(directory=whole, wanted=wanted, texts=texts)


def _entries(file: Path, kind: Kind, said: Any) -> list[Entry]:
    if said is None:
        return []
    if not isinstance(said, dict):
        raise Refused(f"{file} must have lists at its top, such as {kind.plural}")
    entries = said.get(kind.plural) or []
    if not isinstance(entries, list) or len(entries) > ENTRIES_MAX:
        raise Refused(f"{file}: {kind.plural} must be a list of at most {ENTRIES_MAX}")
    found = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not str(entry.get("name", "")).partition("/")[2]:
            raise Refused(f"{file}: {kind.plural}[{number}] must have a name")
        wanted = message_of(file, entry, kind.message())
        # The API's names, or their JSON form.
        fields = [f.name for f in wanted.DESCRIPTOR.fields if f.name in entry or f.json_name in entry]
        found.append(Entry(wanted=wanted, fields=[name for name in fields if name not in ("name", "etag")]))
    twice = [name for name, count in Counter(each.wanted.name for each in found).items() if count > 1]
    if twice:
        raise Refused(f"{file}: {min(twice)} is there twice")
    return found


# --- services ----------------------------------------------------------------------------------------------


class Platform:
    """Clients of the services that are configured. A context manager."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        """`addresses`: routing, tickets, marketing -> host:port."""
        self._addresses = addresses
        self._open = ExitStack()
        self._stubs: dict[Any, Any] = {}

    def __enter__(self) -> Platform:
        return self

    def __exit__(self, *failure: Any) -> bool | None:
        return self._open.__exit__(*failure)

    def stub(self, service: str, client: Any) -> Any:
        """A client; made at its first use."""
        if client not in self._stubs:
            self._stubs[client] = self._open.enter_context(stub_at(self._addresses[service], client))
        return self._stubs[client]

    def _call(self, kind: Kind, verb: str, **fields: Any) -> Any:
        stub = self.stub(kind.service, kind.stub)
        request = getattr(kind.requests, f"{verb}{kind.rpc}Request")(**fields)
        return getattr(stub, f"{verb}{kind.rpc}")(request, **asking())

    def get(self, kind: Kind, name: str) -> Any:
        """A resource as it is; None where there is none."""
        try:
            return self._call(kind, "Get", name=name)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise

    def check_offer(self, wanted: Any, fields: list[str], *, new: bool) -> None:
        """RpcError when marketing would refuse a new offer, or such a change."""
        stub = self.stub("marketing", offers_pb2_grpc.OfferServiceStub)
        if new:
            id = wanted.name.partition("/")[2]
            asked = offers_pb2.CreateOfferRequest(offer=wanted, offer_id=id, validate_only=True)
            stub.CreateOffer(asked, **asking())
            return
        mask = {"paths": fields}
        request = offers_pb2.UpdateOfferRequest(offer=wanted, update_mask=mask, validate_only=True)
        stub.UpdateOffer(request, **asking())

    def create(self, kind: Kind, wanted: Any) -> Any:
        """Makes a resource; an offer is published as well, or not made."""
        id = wanted.name.partition("/")[2]
        made = self._call(kind, "Create", **{kind.field: wanted, f"{kind.field}_id": id})
        if kind.plural != "offers":
            return made
        stub = self.stub(kind.service, kind.stub)
        try:
            request = offers_pb2.PublishOfferRequest(name=made.name, etag=made.etag)
            return stub.PublishOffer(request, **asking())
        except grpc.RpcError:
            self._call(kind, "Delete", name=made.name, etag=made.etag)
            raise

    def update(self, kind: Kind, wanted: Any, fields: list[str], etag: str) -> Any:
        """Changes the named fields of a resource that is still as `etag` says."""
        sent = kind.message()
        sent.CopyFrom(wanted)
        sent.etag = etag
        return self._call(kind, "Update", **{kind.field: sent, "update_mask": {"paths": fields}})

    def delete(self, kind: Kind, name: str, etag: str) -> None:
        """Removes a resource that was made here."""
        if kind.plural == "offers":
            # One that is published cannot be removed.
            stub = self.stub(kind.service, kind.stub)
            retired = stub.RetireOffer(offers_pb2.RetireOfferRequest(name=name, etag=etag), **asking())
            etag = retired.etag
        self._call(kind, "Delete", name=name, etag=etag)

    def apply_directory(self, wanted: Any, *, validate_only: bool, prune: bool) -> list[str]:
        """What changes, or would."""
        from callmesh.routing.v1 import directory_pb2_grpc

        stub = self.stub("routing", directory_pb2_grpc.DirectoryServiceStub)
        request = directory_pb2.ApplyDirectoryRequest(
            directory=wanted, validate_only=validate_only, prune=prune
        )
        answer = stub.ApplyDirectory(request, **asking(APPLY_SECONDS))
        return [
            f"{change.action} {change.name}{': ' + ', '.join(change.fields) if change.fields else ''}"
            for change in answer.changes
        ]


def plan(platform: Platform, files: Files, *, prune: bool = False) -> Plan:
    """What an apply would do, and what would be refused. Raises Refused for a fault in the directory."""
    changes: list[Change] = []
    refused: list[str] = []
    for kind in KINDS:
        for entry in files.wanted[kind.plural]:
            wanted, before = entry.wanted, platform.get(kind, entry.wanted.name)
            fields = [name for name in entry.fields if getattr(wanted, name) != getattr(before, name, None)]
            if before is not None and not fields:
                continue
            changes.append(Change(kind=kind, name=wanted.name, wanted=wanted, before=before, fields=fields))
            if kind.plural == "offers":
                refused += _offer_refused(platform, changes[-1])
    directory: list[str] = []
    if files.directory is not None:
        directory = platform.apply_directory(files.directory, validate_only=True, prune=prune)
    return Plan(changes=changes, directory=directory, refused=refused)


def _offer_refused(platform: Platform, change: Change) -> list[str]:
    try:
        platform.check_offer(change.wanted, change.fields, new=change.before is None)
    except grpc.RpcError as error:
        return [f"{change.name}: {explained(error, 'marketing')}"]
    return []


def apply_plan(platform: Platform, files: Files, planned: Plan, *, prune: bool = False) -> None:
    """Carries a plan out; puts back what was changed when one step is refused, or interrupted. Raises
    Refused.
    """
    if planned.refused:
        raise Refused(f"nothing was changed: {'; '.join(planned.refused)}")
    done: list[tuple[Change, Any]] = []
    step = DIRECTORY
    try:
        for change in planned.changes:
            step = change.name
            if change.before is None:
                made = platform.create(change.kind, change.wanted)
            else:
                made = platform.update(change.kind, change.wanted, change.fields, change.before.etag)
            done.append((change, made))
        step = DIRECTORY
        if files.directory is not None and planned.directory:
            platform.apply_directory(files.directory, validate_only=False, prune=prune)
    except grpc.RpcError as error:
        known = "" if error.code() not in _UNKNOWN else "whether it was changed is not known; "
        raise Refused(
            f"{step}: {explained(error, 'its address')}; {known}{_put_back(platform, done)}"
        ) from None
    except BaseException:
        print_error(f"interrupted at {step}; {_put_back(platform, done)}")
        raise


def _put_back(platform: Platform, done: list[tuple[Change, Any]]) -> str:
    """Undoes steps, the last first; says what became of them."""
    left = list(_left(platform, done))
    return f"not put back: {', '.join(left)}" if left else "what was changed before was put back"


def _left(platform: Platform, done: list[tuple[Change, Any]]) -> Iterator[str]:
    """Undoes; names of those that could not be undone."""
    for change, made in reversed(done):
        try:
            if change.before is None:
                platform.delete(change.kind, change.name, made.etag)
            else:
                platform.update(change.kind, change.before, change.fields, made.etag)
        except grpc.RpcError:
            yield change.name


# --- history -----------------------------------------------------------------------------------------------


def revisions(directory: Path) -> list[dict[str, Any]]:
    """Every revision of a directory of configuration, oldest first. Raises Refused."""
    history = directory / HISTORY
    try:
        names = sorted(path.name for path in history.iterdir()) if history.is_dir() else []
    except OSError as error:
        raise Refused(f"{history} cannot be read: {error.strerror}") from None
    return [_revision(history / name) for name in names if _REVISION.fullmatch(name)]


def _revision(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} cannot be read: {type(error).__name__}") from None
    if not isinstance(said, dict) or not all(isinstance(said.get(n), kind) for n, kind in _KEPT.items()):
        raise Refused(f"{path} is no revision: it must have {', '.join(_KEPT)}")
    return said


def keep(directory: Path, files: Files, planned: Plan, note: str) -> int:
    """Writes a revision; its number. Raises Refused when another was written meanwhile, or it cannot be
    written.
    """
    from cli.dead import actor

    number = max((each["revision"] for each in revisions(directory)), default=0) + 1
    said = {
        "revision": number,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "actor": actor(),
        "note": note,
        "changes": planned.lines,
        "files": dict(files.texts),
    }
    history = directory / HISTORY
    part = history / f".{number:06}.{os.getpid()}"
    try:
        history.mkdir(exist_ok=True)
        part.write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")
        # Whole or not at all, and never over another one.
        os.link(part, history / f"{number:06}.json")
    except FileExistsError:
        raise Refused(f"applied, but revision {number} was written by another apply: plan again") from None
    except OSError as error:
        raise Refused(f"applied, but {history} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return number


# --- commands ----------------------------------------------------------------------------------------------

config = typer.Typer(
    name="config", help="Configuration as files: plan, apply, roll back.", no_args_is_help=True
)

Directory = Annotated[Path, typer.Argument(help="Directory with directory.yaml, tickets.yaml, offers.yaml.")]
Prune = Annotated[
    bool,
    typer.Option(
        "--prune", help="Remove regions, queues, skills and agents that directory.yaml does not name."
    ),
]
Note = Annotated[str, typer.Option("--note", help="Kept with the revision.")]
Routing = Annotated[str, typer.Option("--routing", envvar="CALLMESH_ADDRESS", help="A router, host:port.")]
Tickets = Annotated[str, typer.Option("--tickets", envvar="TICKETS_ADDRESS", help="Tickets, host:port.")]
Marketing = Annotated[
    str, typer.Option("--marketing", envvar="MARKETING_ADDRESS", help="Marketing, host:port.")
]


def _platform(routing: str, tickets: str, marketing: str, base: int) -> Platform:
    return Platform(
        {
            "routing": routing or f"{HOST}:{base + ROUTING_GRPC_OFFSET}",
            "tickets": service_at("tickets", tickets, base),
            "marketing": service_at("marketing", marketing, base),
        }
    )


def _show(planned: Plan) -> None:
    for line in planned.lines:
        typer.echo(line)
    for line in planned.refused:
        typer.echo(f"! {line}")
    typer.echo(f"{len(planned.changes) + len(planned.directory)} to change")


@config.command("plan")
def plan_command(
    directory: Directory, prune: Prune = False, routing: Routing = "", tickets: Tickets = "",
    marketing: Marketing = "", port_base: PortBase = PORT_BASE_DEFAULT,
) -> None:  # fmt: skip
    """Show what an apply would change. Exit status 1 when there is something, 2 when it would be refused."""
    files = read(directory)
    with _platform(routing, tickets, marketing, port_base) as platform:
        planned = plan(platform, files, prune=prune)
    _show(planned)
    raise typer.Exit(2 if planned.refused else 1 if planned.lines else 0)


def _apply(platform: Platform, directory: Path, files: Files, note: str, *, prune: bool) -> None:
    """Plans, shows, applies and keeps. Raises Refused."""
    # Before anything is changed: one that cannot be read is a history that cannot be gone on with.
    revisions(directory)
    with platform:
        planned = plan(platform, files, prune=prune)
        _show(planned)
        if not planned.lines:
            return
        apply_plan(platform, files, planned, prune=prune)
    typer.echo(f"applied as revision {keep(directory, files, planned, note)}")


@config.command()
def apply(
    directory: Directory, prune: Prune = False, note: Note = "", routing: Routing = "", tickets: Tickets = "",
    marketing: Marketing = "", port_base: PortBase = PORT_BASE_DEFAULT,
) -> None:  # fmt: skip
    """Bring the platform to what the files say, and keep that as a revision."""
    platform = _platform(routing, tickets, marketing, port_base)
    _apply(platform, directory, read(directory), note, prune=prune)


@config.command()
def history(directory: Directory) -> None:
    """Show the revisions, newest first: who, when, how much, why."""
    if not directory.is_dir():
        raise Refused(f"there is no directory {directory}")
    found = revisions(directory)
    if not found:
        typer.echo("no revision yet: `callmesh config apply` makes the first")
    for each in reversed(found[-SHOWN_MAX:]):
        note = f"  {each['note']}" if each["note"] else ""
        typer.echo(
            f"{each['revision']:>6}  {each['time']}  {each['actor']}  {len(each['changes'])} changes{note}"
        )


@config.command()
def rollback(
    directory: Directory, revision: Annotated[int, typer.Argument(min=1, help="As `history` shows it.")],
    prune: Prune = False, routing: Routing = "", tickets: Tickets = "", marketing: Marketing = "",
    port_base: PortBase = PORT_BASE_DEFAULT,
) -> None:  # fmt: skip
    """Apply the files of a revision as a new revision, and write them into the directory.

    Nothing is written when they are refused. What the files of that revision do not name stays as it is, or
    goes with --prune where it is of the directory; a file that the revision does not have stays, too.
    """
    wanted = next((each for each in revisions(directory) if each["revision"] == revision), None)
    if wanted is None:
        raise Refused(f"there is no revision {revision}: see `callmesh config history`")
    texts = wanted["files"]
    for name, text in texts.items():
        if name not in FILES or not isinstance(text, str):
            raise Refused(f"revision {revision} has a file {name[:80]!r}")
    files = understood(texts, directory)
    platform = _platform(routing, tickets, marketing, port_base)
    _apply(platform, directory, files, f"rollback to {revision}", prune=prune)
    for name, text in texts.items():
        _replace(directory / name, text)


def _replace(path: Path, text: str) -> None:
    """Writes a file as a whole. Raises Refused."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise Refused(f"applied, but {path} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
