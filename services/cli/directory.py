"""`callmesh region`, `callmesh shard` and `callmesh directory`: what an operator does to regions, their
leaders, queues, skills and agents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc
import typer
import yaml  # type: ignore[import-untyped]
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status
from rich.table import Table

from callmesh.routing.v1 import directory_pb2 as pb
from callmesh.routing.v1 import directory_pb2_grpc, supervision_pb2, supervision_pb2_grpc
from cli.plan import HOST, PORT_BASE_DEFAULT, ROUTING_GRPC_OFFSET
from cli.view import OUT

M = TypeVar("M", bound=Message)

#: Deadline of one request, and of a whole directory, seconds.
DEADLINE_SECONDS = 10.0
APPLY_SECONDS = 300.0
#: Deadline of a seizure: the router tries for 10 s, seconds.
SEIZE_SECONDS = 15.0
#: A file of a whole directory is read up to this, bytes.
FILE_BYTES_MAX = 64 << 20
#: Rows asked for at once.
PAGE_ROWS = 1_000
#: gRPC messages, bytes.
MESSAGE_BYTES_MAX = 16 << 20


def _router(address: str) -> str:
    """The address given, or the first router's of the local stack of PORT_BASE."""
    if address:
        return address
    base = os.environ.get("PORT_BASE") or str(PORT_BASE_DEFAULT)
    if not base.isdecimal():
        raise typer.BadParameter(f"must be a number, got {base!r}", param_hint="PORT_BASE")
    return f"{HOST}:{int(base) + ROUTING_GRPC_OFFSET}"


Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="CALLMESH_ADDRESS",
        callback=_router,
        help="A router, host:port; the local stack's if empty. CALLMESH_TOKEN may hold a token.",
    ),
]
ADDRESS_DEFAULT = ""
Reason = Annotated[str, typer.Option("--reason", help="For the audit log.")]

region = typer.Typer(name="region", help="See, drain and resume regions.", no_args_is_help=True)
shard = typer.Typer(name="shard", help="Who leads a region's shard.", no_args_is_help=True)
directory = typer.Typer(name="directory", help="The whole directory as a file.", no_args_is_help=True)


class Refused(Exception):
    """What the platform, or the file, says against it: one line."""


@contextmanager
def stub_at(address: str, client: Any = directory_pb2_grpc.DirectoryServiceStub) -> Iterator[Any]:
    """A client of the directory, or another one; what the platform refuses becomes one line. With TLS where
    TLS_CA_FILE names the servers' authority; TLS_CERT_FILE and TLS_KEY_FILE are shown to servers that ask.
    """
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.enable_http_proxy", 0)]
    credentials = tls_credentials()
    try:
        with (
            grpc.insecure_channel(address, options=options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options=options)
        ) as channel:
            yield client(channel)
    except grpc.RpcError as error:
        raise Refused(explained(error, address)) from error


def tls_credentials() -> grpc.ChannelCredentials | None:
    """What the files of TLS_CA_FILE, TLS_KEY_FILE and TLS_CERT_FILE make; None for plain text. Raises Refused
    naming what is missing.
    """
    authority, key, certificate = (os.environ.get(f"TLS_{name}_FILE", "") for name in ("CA", "KEY", "CERT"))
    if bool(key) != bool(certificate) or (certificate and not authority):
        raise Refused("TLS_CERT_FILE comes with its key (TLS_KEY_FILE) and the authority (TLS_CA_FILE)")
    if not authority:
        return None
    contents: list[bytes | None] = []
    for file in (authority, key, certificate):
        try:
            contents.append(Path(file).read_bytes() if file else None)
        except OSError as error:
            raise Refused(f"{file} cannot be read: {error.strerror}") from None
    return grpc.ssl_channel_credentials(*contents)


#: What gRPC says when there is no connection, and what that means to who typed the command.
_NO_CONNECTION = (
    ("WRONG_VERSION_NUMBER", "{} speaks plain text: unset TLS_CA_FILE"),
    (
        "handshake failed",
        "the certificate of {} is of another authority than TLS_CA_FILE, or of another name",
    ),
    ("lookup", "there is no host of the name in {}"),
    ("remote host", "nothing answers at {}: is it up, and is the address right?"),
    (
        "",
        "{} closes the connection: it wants TLS (TLS_CA_FILE), or a certificate that it knows (TLS_CERT_FILE,"
        " TLS_KEY_FILE)",
    ),
)


def explained(error: Any, address: str) -> str:
    """An RPC's error as one line with field and reason."""
    details = error.details() or ""
    if error.code() is grpc.StatusCode.UNAVAILABLE and ("connect" in details or "lookup" in details):
        why = next((why for sign, why in _NO_CONNECTION if sign in details), _NO_CONNECTION[-1][1])
        return why.format(address)
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return f"{details} CALLMESH_TOKEN holds the token, or CALLMESH_TOKEN_FILE names its file."
    fields = []
    for detail in _details(error):
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            fields += [f"{each.field}: {each.description}" for each in bad.field_violations]
    return "; ".join(fields) or f"{error.code().name}: {details}"


def reason_of(error: Any) -> str:
    """The reason of an RPC's error; "" without one."""
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            return str(error_details_pb2.ErrorInfo.FromString(detail.value).reason)
    return ""


def _details(error: Any) -> Sequence[Any]:
    """What an RPC's error carries beside its words; () for one that is not understood."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        return ()
    return tuple(status.details) if status is not None else ()


def bearer() -> list[tuple[str, str]]:
    """The token of CALLMESH_TOKEN, or in the file of CALLMESH_TOKEN_FILE, for calls without a deadline:
    `asking` has both. Raises Refused.
    """
    token = os.environ.get("CALLMESH_TOKEN", "")
    if not token and (file := os.environ.get("CALLMESH_TOKEN_FILE", "")):
        try:
            token = Path(file).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise Refused(f"{file} cannot be read: {type(error).__name__}") from None
    return [("authorization", f"Bearer {token}")] if token else []


def asking(seconds: float = DEADLINE_SECONDS) -> dict[str, Any]:
    """Deadline and token of a call."""
    return {"timeout": seconds, "metadata": bearer()}


@region.command("list")
def list_regions(address: Address = ADDRESS_DEFAULT) -> None:
    """Show each region with its state and what it serves."""
    table = Table(box=None, pad_edge=False)
    for heading in ("region", "state", "weight", "serves", "hours", "led by"):
        table.add_column(heading)
    with stub_at(address) as stub:
        token = ""
        while True:
            request = pb.ListRegionsRequest(page_size=PAGE_ROWS, page_token=token)
            answer = stub.ListRegions(request, **asking())
            for each in answer.regions:
                table.add_row(*_row(each))
            token = answer.next_page_token
            if not token:
                break
    OUT.print(table)


def _row(each: pb.Region) -> tuple[str, ...]:
    state = pb.RegionState.Name(each.state).removeprefix("REGION_STATE_")
    return (
        each.name.removeprefix("regions/"),
        f"{state} with its waiting calls" if each.moves_waiting else state,
        str(each.weight),
        ", ".join((*each.served_areas, *each.served_prefixes)) or "-",
        ", ".join(each.business_hours) or "always",
        ", ".join(each.lead_list) or "its own routers",
    )


@region.command()
def drain(
    name: Annotated[str, typer.Argument(help="Region id, for example chengdu.")],
    address: Address = ADDRESS_DEFAULT,
    move_waiting: Annotated[
        bool, typer.Option("--move-waiting", help="Waiting calls go elsewhere at once, too.")
    ] = False,
    reason: Reason = "",
) -> None:
    """New calls go to other regions; what the region has is finished."""
    request = pb.DrainRegionRequest(name=f"regions/{name}", move_waiting=move_waiting, reason=reason)
    with stub_at(address) as stub:
        stub.DrainRegion(request, **asking())
    typer.echo(f"{name} drains.")


@region.command()
def resume(
    name: Annotated[str, typer.Argument(help="Region id.")],
    address: Address = ADDRESS_DEFAULT,
    reason: Reason = "",
) -> None:
    """The region takes calls again."""
    with stub_at(address) as stub:
        stub.ResumeRegion(pb.ResumeRegionRequest(name=f"regions/{name}", reason=reason), **asking())
    typer.echo(f"{name} takes calls.")


@region.command()
def shift(
    name: Annotated[str, typer.Argument(help="Region id.")],
    percent: Annotated[
        int, typer.Argument(min=1, max=1000, help="Percent of its home calls that stay; 100 is normal.")
    ],
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Keeps a part of the region's home calls there; the others go where they cost least.

    Which calls stay is drawn by their ids. Above 100 the region counts as larger, and takes more of what
    overflows. To send all of its calls elsewhere, drain it.
    """
    changed = pb.UpdateRegionRequest(region=pb.Region(name=f"regions/{name}", weight=percent))
    changed.update_mask.paths.append("weight")
    with stub_at(address) as stub:
        stub.UpdateRegion(changed, **asking())
    typer.echo(f"{name} has weight {percent}.")


@shard.command()
def seize(
    name: Annotated[str, typer.Argument(help="Region id.")],
    reason: Annotated[str, typer.Option("--reason", help="For the audit log; must be given.")],
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """The router at --address leads the region's shard at once, whoever leads it now.

    For when all routers of its lead list are gone, or the wrong one leads. The router must be one of the
    region's own, or be named in the region's lead list first.
    """
    request = supervision_pb2.SeizeShardRequest(region=f"regions/{name}", reason=reason)
    with stub_at(address, supervision_pb2_grpc.SupervisionServiceStub) as stub:
        answer = stub.SeizeShard(request, **asking(SEIZE_SECONDS))
    typer.echo(f"{answer.router} leads {name}, epoch {answer.epoch}.")


@directory.command()
def apply(
    file: Annotated[Path, typer.Argument(help="YAML or JSON: regions, skills, queues, agents.")],
    address: Address = ADDRESS_DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what the file does not name.")] = False,
) -> None:
    """Bring the directory to what a file says. A file with a fault changes nothing."""
    request = pb.ApplyDirectoryRequest(directory=read(file), validate_only=dry_run, prune=prune)
    with stub_at(address) as stub:
        changes = stub.ApplyDirectory(request, **asking(APPLY_SECONDS)).changes
    for change in changes:
        fields = f": {', '.join(change.fields)}" if change.fields else ""
        typer.echo(f"{change.action} {change.name}{fields}")
    typer.echo(f"{len(changes)} {'would change' if dry_run else 'changed'}")


def read(file: Path) -> pb.Directory:
    """A directory from a file in the field names of the API. Raises Refused naming file and entry."""
    return directory_of(file, load(file))


def directory_of(file: Path, said: Any) -> pb.Directory:
    """The directory that a file's contents make. Raises Refused naming file and entry."""
    if not isinstance(said, dict):
        raise Refused(f"{file} must have regions, skills, queues and agents at its top")
    made = message_of(file, said, pb.Directory())
    for index, (entry, region) in enumerate(zip(said.get("regions") or (), made.regions, strict=True)):
        if entry.get("weight") is not None and not region.weight:
            # A message cannot tell 0 from "not said", which is 100: the opposite of what is meant here.
            raise Refused(
                f"{file}: regions[{index}].weight must be 1 to 1000; to send all calls elsewhere, drain it"
            )
    return made


def load(file: Path) -> Any:
    """What a YAML or JSON file says. Raises Refused naming the file."""
    return parsed(file, text_of(file))


def text_of(file: Path) -> str:
    """A file of bounded size, as text. Raises Refused naming it."""
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise Refused(f"{file} has more than {FILE_BYTES_MAX} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file} cannot be read: {error}") from error


def parsed(file: Path, text: str) -> Any:
    """What the text of a YAML or JSON file says. Raises Refused naming the file."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Refused(f"{file} is neither YAML nor JSON: {' '.join(str(error).split())[:200]}") from error


def message_of(file: Path, said: dict[str, Any], message: M) -> M:
    """The message that a file's fields make. Raises Refused naming file and entry."""
    try:
        return ParseDict(said, message)
    except (ParseError, RecursionError) as error:
        raise Refused(f"{file}: {' '.join(str(error).split())}") from error
