"""The gRPC face of imports and exports."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from google.protobuf.json_format import MessageToDict

from callmesh.crm.v1 import timeline_pb2, transfer_pb2, transfer_pb2_grpc
from chassis import localize
from chassis.callcontext import current_identity
from chassis.clock import from_ms
from chassis.errors import InvalidArgument, within
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import parse_name
from chassis.localize import caller_language
from chassis.pagination import Page, Scalar, fingerprint
from crm import convert, rows
from crm.app import App
from crm.handlers import default_country
from crm.imports import Opening
from crm.model import Customer
from crm.records import Raw
from crm.rows import Mapped

#: Rows of one piece of an export.
EXPORT_ROWS = 500
#: Longest span of an export of interactions, days.
EXPORT_DAYS_MAX = 366
_DAY_MS = 86_400_000

_FORMATS: dict[int, str] = {
    transfer_pb2.FILE_FORMAT_CSV: "CSV",
    transfer_pb2.FILE_FORMAT_JSON_LINES: "JSON_LINES",
}
_KINDS: dict[int, str] = {
    transfer_pb2.ROW_KIND_UNSPECIFIED: "CUSTOMER",
    transfer_pb2.ROW_KIND_CUSTOMER: "CUSTOMER",
    transfer_pb2.ROW_KIND_CONTRACT: "CONTRACT",
    transfer_pb2.ROW_KIND_USAGE: "USAGE",
    transfer_pb2.ROW_KIND_INTERACTION: "INTERACTION",
}
_STATES = {
    "RECEIVING": transfer_pb2.Import.STATE_RECEIVING,
    "DONE": transfer_pb2.Import.STATE_DONE,
    "CANCELLED": transfer_pb2.Import.STATE_CANCELLED,
    "FAILED": transfer_pb2.Import.STATE_FAILED,
}


def _format(field: str, number: int) -> str:
    found = _FORMATS.get(number)
    if found is None:
        raise InvalidArgument(field=field, why="must be CSV or JSON_LINES")
    return found


def _mappings(messages: Any) -> tuple[Mapped, ...]:
    return tuple(Mapped(column=m.column, field=m.field, default=m.default_value) for m in messages)


def import_out(raw: Raw) -> transfer_pb2.Import:
    """An import as callers see it."""
    formats: dict[str, Any] = {name: number for number, name in _FORMATS.items()}
    kinds: dict[str, Any] = {name: number for number, name in _KINDS.items() if number}
    return transfer_pb2.Import(
        name=f"imports/{raw['_id']}",
        format=formats[raw["format"]],
        row_kind=kinds[raw["row_kind"]],
        mappings=[
            transfer_pb2.ColumnMapping(column=m["column"], field=m["field"], default_value=m["default"])
            for m in raw.get("mappings", ())
        ],
        dry_run=bool(raw.get("dry_run")),
        update_existing=bool(raw.get("update_existing")),
        default_country=raw.get("default_country") or "",
        error_count_max=raw.get("error_count_max") or 0,
        state=_STATES[raw["state"]],
        received_bytes=raw.get("received_bytes") or 0,
        good_rows=raw.get("good_rows") or 0,
        bad_rows=raw.get("bad_rows") or 0,
        create_time=convert.timestamp(raw.get("created_at")),
        update_time=convert.timestamp(raw.get("updated_at")),
        creator=raw.get("creator") or "",
    )


class ImportServicer(transfer_pb2_grpc.ImportServiceServicer):
    """ImportService."""

    def __init__(self, app: App) -> None:
        self._imports = app.imports
        self._policy = app.policy

    def CreateImport(self, request: transfer_pb2.CreateImportRequest, context: Any) -> transfer_pb2.Import:
        """Opens an import."""
        job = request.import_job
        kind = _KINDS.get(job.row_kind)
        if kind is None:
            raise InvalidArgument(field="import_job.row_kind", why=f"has no value {job.row_kind}")
        if job.error_count_max < 0:
            raise InvalidArgument(field="import_job.error_count_max", why="must not be negative")
        with within("import_job"):
            country = default_country(job.default_country, self._policy)
        key = request_key(current_identity(), "CreateImport", request.request_id)
        wanted = Opening(
            id=request.import_id,
            format=_format("import_job.format", job.format),
            row_kind=kind,
            mappings=_mappings(job.mappings),
            dry_run=job.dry_run,
            update_existing=job.update_existing,
            default_country=country,
            error_count_max=job.error_count_max,
            request_key=key,
            fingerprint=content_fingerprint(request) if key else None,
        )
        return import_out(self._imports.open(wanted, current_identity().subject))

    def UploadImport(
        self, requests: Iterator[transfer_pb2.UploadImportRequest], context: Any
    ) -> Iterator[transfer_pb2.UploadImportResponse]:
        """Takes a file piece by piece."""
        first = next(iter(requests), None)
        if first is None:
            raise InvalidArgument(field="name", why="must be set in the first message")
        id = parse_name("name", "imports", first.name)

        def pieces() -> Iterator[tuple[int, bytes, bool]]:
            yield first.offset, first.data, first.last
            for request in requests:
                yield request.offset, request.data, request.last

        for raw in self._imports.feed(id, pieces(), current_identity().subject):
            yield transfer_pb2.UploadImportResponse(import_job=import_out(raw))

    def GetImport(self, request: transfer_pb2.GetImportRequest, context: Any) -> transfer_pb2.Import:
        """One import."""
        return import_out(self._imports.get(parse_name("name", "imports", request.name)))

    def ListImports(
        self, request: transfer_pb2.ListImportsRequest, context: Any
    ) -> transfer_pb2.ListImportsResponse:
        """A page of imports."""
        page = Page.of(request)
        shown, token = page.cut(self._imports.page(page.value(str), page.limit + 1), itemgetter("_id"))
        return transfer_pb2.ListImportsResponse(
            imports=[import_out(raw) for raw in shown], next_page_token=token
        )

    def ListImportErrors(
        self, request: transfer_pb2.ListImportErrorsRequest, context: Any
    ) -> transfer_pb2.ListImportErrorsResponse:
        """A page of refused rows."""
        page = Page.of(request)
        id = parse_name("parent", "imports", request.parent)
        found = self._imports.errors(id, page.value(int), page.limit + 1)
        shown, token = page.cut(found, itemgetter("line"))
        language = caller_language(context)
        return transfer_pb2.ListImportErrorsResponse(
            import_errors=[
                transfer_pb2.ImportError(
                    line=raw["line"],
                    field=raw.get("field", ""),
                    reason=raw.get("reason", ""),
                    message=_in_words(raw, language),
                )
                for raw in shown
            ],
            next_page_token=token,
        )

    def CancelImport(self, request: transfer_pb2.CancelImportRequest, context: Any) -> transfer_pb2.Import:
        """Stops an import."""
        return import_out(self._imports.cancel(parse_name("name", "imports", request.name)))


def _in_words(raw: Mapping[str, Any], language: str) -> str:
    """What is wrong with a row, in the reader's language, which need not be that of whoever sent the file."""
    text = str(raw.get("message", ""))
    if language == "zh":
        known = localize.told_again(raw.get("text") or "", raw.get("values") or {}, "crm")
        text = known or _field_in_words(text, raw.get("field", ""))
    # What is said of a row as a whole names no field.
    return text if raw.get("field") else text.removeprefix("：").removeprefix(": ")


def _field_in_words(text: str, field: str) -> str:
    """In Chinese, what was noted in English alone, as releases before did, where it is said of a field."""
    ahead = f"{field}: "
    why = text.removeprefix(ahead).removesuffix(".")
    said = localize.sentence(why, "crm")
    return text if said == why or not text.startswith(ahead) else f"{ahead[:-2]}：{said}。"


class ExportServicer(transfer_pb2_grpc.ExportServiceServicer):
    """ExportService."""

    def __init__(self, app: App) -> None:
        self._questions = app.questions

    async def ExportCustomers(
        self, request: transfer_pb2.ExportCustomersRequest, context: Any
    ) -> AsyncIterator[transfer_pb2.ExportCustomersResponse]:
        """Customers in the order of ids, piece by piece."""
        kind = _format("format", request.format)
        mappings = _mappings(request.mappings) or tuple(
            Mapped(column=path, field=path) for path in rows.EXPORT_COLUMNS
        )
        rows.check_paths([mapped.field for mapped in mappings])
        which = convert.filter_in(request.filter, show_deleted=False)
        page, key = _resumed(request, str)
        after = key[0] if key else None
        if kind == "CSV" and after is None:
            heading = rows.csv_line([mapped.column for mapped in mappings])
            yield transfer_pb2.ExportCustomersResponse(data=heading.encode())
        while True:
            found, behind = await self._questions.page(which, after, EXPORT_ROWS)
            if kind == "CSV":
                lines = [rows.csv_line(_safe_row(c, mappings)) for c in found]
            elif request.mappings:
                lines = [_json({m.column: rows.value_at(c, m.field) for m in mappings}) for c in found]
            else:
                lines = [_json(_plain(convert.customer_out(c))) for c in found]
            if found:
                yield transfer_pb2.ExportCustomersResponse(
                    data="".join(lines).encode(),
                    resume_token=page.next_token(behind or found[-1].id),
                    row_count=len(found),
                )
            if behind is None:
                return
            after = behind

    async def ExportInteractions(
        self, request: transfer_pb2.ExportInteractionsRequest, context: Any
    ) -> AsyncIterator[transfer_pb2.ExportInteractionsResponse]:
        """Interactions in the order in which they began, piece by piece."""
        kind = _format("format", request.format)
        which = convert.timeline_filter_in(
            timeline_pb2.ListInteractionsRequest(kinds=request.kinds, interval=request.interval)
        )
        if which.from_ms is None or which.until_ms is None:
            raise InvalidArgument(field="interval", why="must have both ends")
        if which.until_ms - which.from_ms > EXPORT_DAYS_MAX * _DAY_MS:
            raise InvalidArgument(field="interval", why=f"must be at most {EXPORT_DAYS_MAX} days")
        page, key = _resumed(request, int, str)
        after = (int(key[0]), str(key[1])) if key else None
        if kind == "CSV" and after is None:
            heading = rows.csv_line(_INTERACTION_COLUMNS)
            yield transfer_pb2.ExportInteractionsResponse(data=heading.encode())
        while True:
            found, behind = await self._questions.interactions(which, after, EXPORT_ROWS)
            if kind == "CSV":
                lines = [rows.csv_line(_interaction_row(item)) for item in found]
            else:
                lines = [_json(_plain(convert.interaction_out(item))) for item in found]
            if found:
                yield transfer_pb2.ExportInteractionsResponse(
                    data="".join(lines).encode(),
                    resume_token=page.next_token(behind or (found[-1].began_ms, found[-1].id)),
                    row_count=len(found),
                )
            if behind is None:
                return
            after = behind


def _resumed(request: Any, *kinds: type[Scalar]) -> tuple[Page, tuple[Any, ...] | None]:
    """(the page that goes on with an export, the key of these kinds that it goes on after).
    InvalidArgument(resume_token).
    """
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("resume_token")
    bound = fingerprint(copy.SerializeToString(deterministic=True).hex())
    try:
        page = Page.parse(0, request.resume_token, fingerprint=bound)
        return page, page.key(*kinds)
    except InvalidArgument as error:
        raise InvalidArgument(field="resume_token", why=error.values["why"]) from None


def _safe_row(customer: Customer, mappings: Sequence[Mapped]) -> list[str]:
    return [rows.safe(rows.value_at(customer, mapped.field)) for mapped in mappings]


def _plain(message: Any) -> dict[str, Any]:
    return dict(MessageToDict(message, preserving_proto_field_name=True))


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n"


_INTERACTION_COLUMNS = [
    *("name", "kind", "source", "source_id", "customer", "phone_number", "channel", "direction"),
    *("start_time", "end_time", "contact_reason", "agent", "region", "product", "partner", "summary"),
]


def _interaction_row(item: Any) -> list[str]:
    message = convert.interaction_out(item)
    shown = _plain(message)
    shown["start_time"] = from_ms(item.began_ms).isoformat()
    shown["end_time"] = from_ms(item.ended_ms).isoformat() if item.ended_ms is not None else ""
    return [rows.safe(str(shown.get(column, ""))) for column in _INTERACTION_COLUMNS]
