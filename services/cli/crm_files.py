"""`callmesh import` and `callmesh export`: customers, contracts, usage and interactions from and to files,
through crm's API.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.directory import Refused, asking, bearer, reason_of, stub_at
from cli.options import CrmAddress, PortBase, service_at
from cli.plan import PORT_BASE_DEFAULT
from cli.view import ERR, OUT, print_error

#: Bytes of one piece.
PIECE_BYTES = 262_144
#: Refused rows read at once.
ERRORS_PAGE = 1000
EXIT_REFUSED = 1
EXIT_USAGE = 2
#: A stream that was broken off a moment ago may still finish what it has in hand: how often, and how many
#: seconds apart, its import is asked for again.
BUSY_TRIES, BUSY_SECONDS = 20, 0.5

File = Annotated[Path, typer.Argument(help="A .csv or .jsonl file.")]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", help="COLUMN=FIELD[=DEFAULT], repeatable; without: headings are fields."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check every row and write none.")]
Update = Annotated[bool, typer.Option("--update", help="A row whose customer exists changes it.")]
Resume = Annotated[str, typer.Option("--resume", help="imports/{id} of a broken import: go on with it.")]
Errors = Annotated[
    Path | None, typer.Option("--errors", help="File for the refused rows; FILE.errors.csv if not given.")
]
Country = Annotated[str, typer.Option("--country", help="Numbers without + are of this country.")]
Kind = Annotated[str, typer.Option("--kind", help="customer, contract, usage or interaction.")]
Target = Annotated[Path, typer.Argument(help="The .csv or .jsonl file to write.")]


def import_file(
    file: File,
    mapping: Map = None,
    dry_run: DryRun = False,
    update: Update = False,
    resume: Resume = "",
    errors: Errors = None,
    country: Country = "",
    kind: Kind = "customer",
    address: CrmAddress = "",
    port_base: PortBase = PORT_BASE_DEFAULT,
) -> None:
    """Import a CSV or JSON Lines file: good rows in, refused ones to a file with line and reason."""
    import grpc

    from callmesh.crm.v1 import transfer_pb2, transfer_pb2_grpc

    try:
        job = _job(file, mapping or [], dry_run, update, country, kind)
    except ValueError as error:
        print_error(error)
        raise typer.Exit(EXIT_USAGE) from None
    with stub_at(service_at("crm", address, port_base), transfer_pb2_grpc.ImportServiceStub) as stub:
        if resume:
            job = stub.GetImport(transfer_pb2.GetImportRequest(name=resume), **asking())
        else:
            job = stub.CreateImport(transfer_pb2.CreateImportRequest(import_job=job), **asking())
        try:
            job = _fed(stub, job, file) if resume else _upload(stub, job, file)
        except grpc.RpcError:
            ERR.print(f"go on with: callmesh import {file} --resume {job.name}")
            raise
        where = errors or file.with_name(file.name + ".errors.csv")
        if job.bad_rows:
            _write_errors(stub, job.name, where)
    told = f"{job.name}: {job.good_rows} rows in, {job.bad_rows} refused"
    OUT.print(told + (f" ({where})" if job.bad_rows else ""))
    if job.bad_rows:
        raise typer.Exit(EXIT_REFUSED)


def _job(file: Path, mapping: list[str], dry_run: bool, update: bool, country: str, kind: str) -> Any:
    """The import as it is opened. ValueError for a file, a mapping or a kind that is none."""
    from callmesh.crm.v1 import transfer_pb2

    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    row_kinds = {name.removeprefix("ROW_KIND_").lower(): n for name, n in transfer_pb2.RowKind.items() if n}
    if kind not in row_kinds:
        raise ValueError(f"--kind must be one of {', '.join(row_kinds)}")
    job = transfer_pb2.Import(
        format=_format(file),
        row_kind=row_kinds[kind],  # type: ignore[arg-type]
        dry_run=dry_run,
        update_existing=update,
        default_country=country,
    )
    for item in mapping:
        column, _, rest = item.partition("=")
        field, _, default = rest.partition("=")
        if not (column and field):
            raise ValueError(f"--map must have the form COLUMN=FIELD, got {item!r}")
        job.mappings.add(column=column, field=field, default_value=default)
    return job


def _format(file: Path) -> Any:
    from callmesh.crm.v1 import transfer_pb2

    suffix = file.suffix.lower()
    if suffix == ".csv":
        return transfer_pb2.FILE_FORMAT_CSV
    if suffix in (".jsonl", ".ndjson", ".json"):
        return transfer_pb2.FILE_FORMAT_JSON_LINES
    raise ValueError(f"{file.name} must end in .csv or .jsonl")


def _pieces(file: Path, name: str, start: int) -> Iterator[Any]:
    from callmesh.crm.v1 import transfer_pb2

    with file.open("rb") as source:
        source.seek(start)
        offset = start
        data = source.read(PIECE_BYTES)
        while True:
            following = source.read(PIECE_BYTES)
            yield transfer_pb2.UploadImportRequest(name=name, offset=offset, data=data, last=not following)
            if not following:
                return
            offset, data = offset + len(data), following


def _fed(stub: Any, job: Any, file: Path) -> Any:
    """As `_upload`; again while the stream that broke off still feeds the import, from where it leaves it.
    That one may also have brought it to its end, unheard.
    """
    import grpc

    from callmesh.crm.v1 import transfer_pb2

    for left in reversed(range(BUSY_TRIES)):
        if job.state == transfer_pb2.Import.STATE_DONE:
            return job
        try:
            return _upload(stub, job, file)
        except grpc.RpcError as error:
            if not left or reason_of(error) != "IMPORT_BUSY":
                raise
        time.sleep(BUSY_SECONDS)
        job = stub.GetImport(transfer_pb2.GetImportRequest(name=job.name), **asking())
    return job


def _upload(stub: Any, job: Any, file: Path) -> Any:
    """Sends the file from where the import stands, with a bar; the import as it ends."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ERR, transient=True) as progress:
        bar = progress.add_task(file.name, total=file.stat().st_size, completed=job.received_bytes)
        pieces = _pieces(file, job.name, job.received_bytes)
        for answer in stub.UploadImport(pieces, metadata=bearer()):
            job = answer.import_job
            told = f"{job.good_rows} rows, {job.bad_rows} refused"
            progress.update(bar, completed=job.received_bytes, description=told)
    return job


def _write_errors(stub: Any, name: str, where: Path) -> None:
    from callmesh.crm.v1 import transfer_pb2

    with where.open("w", newline="", encoding="utf-8") as target:
        writer = csv.writer(target)
        writer.writerow(["line", "field", "reason", "message"])
        token = ""
        while True:
            page = stub.ListImportErrors(
                transfer_pb2.ListImportErrorsRequest(parent=name, page_size=ERRORS_PAGE, page_token=token),
                **asking(),
            )
            for found in page.import_errors:
                writer.writerow([found.line, found.field, found.reason, found.message])
            token = page.next_page_token
            if not token:
                return


def export_file(file: Target, address: CrmAddress = "", port_base: PortBase = PORT_BASE_DEFAULT) -> None:
    """Export every live customer to a CSV or JSON Lines file."""
    from callmesh.crm.v1 import transfer_pb2, transfer_pb2_grpc

    count = 0
    try:
        request = transfer_pb2.ExportCustomersRequest(format=_format(file))
    except ValueError as error:
        print_error(error)
        raise typer.Exit(EXIT_USAGE) from None
    # An export that breaks off leaves the file of the one before as it was.
    part = file.with_name(f"{file.name}.part")
    try:
        with (
            stub_at(service_at("crm", address, port_base), transfer_pb2_grpc.ExportServiceStub) as stub,
            part.open("wb") as out,
        ):
            for piece in stub.ExportCustomers(request, metadata=bearer()):
                out.write(piece.data)
                count += piece.row_count
        part.replace(file)
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    OUT.print(f"{count} customers in {file}")
