"""Imports: bytes in, rows applied, how far it is. Blocks.

An import goes on from the last byte whose rows are done. The check-point is written after its rows, in one
conditional write, so rows may be applied again after a crash, and come out the same: a customer remembers the
row that made it (its *origin*), and has an id that follows from import and line, unless the row names one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from pymongo import UpdateOne

from chassis.clock import Clock
from chassis.errors import (
    AlreadyExists,
    CallmeshError,
    FailedPrecondition,
    InvalidArgument,
    shorten,
)
from chassis.ids import check_id, new_id, stable_id
from crm import engine, rows
from crm.handlers import Create, Customers
from crm.model import Customer
from crm.records import Raw, Records
from crm.rows import Mapped, Record
from crm.store import NewCustomer
from crm.transfer_documents import ImportDocument, ImportErrorDocument

#: Rows applied, and check-pointed, at once.
ROWS_BATCH = 500
#: Largest piece of a file, bytes.
PIECE_BYTES_MAX = 1_048_576
MAPPINGS_MAX = 200
RECEIVING, DONE, CANCELLED, FAILED = "RECEIVING", "DONE", "CANCELLED", "FAILED"


class ImportClosed(FailedPrecondition):
    """{subject}: {why}."""

    reason = "IMPORT_CLOSED"


class ImportBusy(FailedPrecondition):
    """{subject}: {why}."""

    reason = "IMPORT_BUSY"


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """An import to be opened."""

    #: Chosen by the caller; "" one is made.
    id: str
    #: CSV or JSON_LINES.
    format: str
    #: CUSTOMER, CONTRACT, USAGE or INTERACTION.
    row_kind: str
    #: Which column goes where.
    mappings: tuple[Mapped, ...]
    #: Check and write nothing.
    dry_run: bool
    #: A row whose customer exists changes it.
    update_existing: bool
    #: ISO 3166-1; "" the policy's.
    default_country: str
    #: Stop after so many bad rows; 0 never.
    error_count_max: int
    #: See `chassis.idempotency`.
    request_key: str | None
    #: See `chassis.idempotency`.
    fingerprint: str | None


#: Applies one row: (values by path, the row's id, dry, actor); raises what an API call would.
ApplyRow = Callable[[Mapping[str, Any], str, bool, str], None]


class Imports:
    """Opening, feeding, asking."""

    def __init__(self, customers: Customers, clock: Clock, appliers: Mapping[str, ApplyRow]) -> None:
        """`appliers` maps the row kinds other than CUSTOMER to (paths, row's id, dry) -> None."""
        self._customers = customers
        self._clock = clock
        self._appliers = appliers
        self._records = Records(ImportDocument, clock)

    def open(self, wanted: Opening, actor: str) -> Raw:
        """Opens an import, or answers what an earlier call with the same request key did."""
        if len(wanted.mappings) > MAPPINGS_MAX:
            raise InvalidArgument(field="mappings", why=f"must hold at most {MAPPINGS_MAX}")
        if wanted.row_kind == "CUSTOMER":
            rows.check_paths([mapped.field for mapped in wanted.mappings])
        elif wanted.row_kind not in self._appliers:
            raise InvalidArgument(field="import_job.row_kind", why="cannot be imported")
        id = check_id("import_id", wanted.id) if wanted.id else new_id()
        fields = {
            "format": wanted.format,
            "row_kind": wanted.row_kind,
            "mappings": [
                {"column": m.column, "field": m.field, "default": m.default} for m in wanted.mappings
            ],
            "dry_run": wanted.dry_run,
            "update_existing": wanted.update_existing,
            "default_country": wanted.default_country,
            "error_count_max": wanted.error_count_max,
            "state": RECEIVING,
            "received_bytes": 0,
            "lines": 0,
            "good_rows": 0,
            "bad_rows": 0,
            "creator": actor,
        }
        return self._records.insert(
            id, fields, request_key=wanted.request_key, fingerprint=wanted.fingerprint
        )

    def get(self, id: str) -> Raw:
        """NotFound when there is none."""
        return self._records.get(id)

    def page(self, after: str | None, limit: int) -> list[Raw]:
        """Newest first."""
        query = {} if after is None else {"_id": {"$lt": after}}
        return self._records.find(query, [("_id", -1)], limit)

    def errors(self, id: str, after: int | None, limit: int) -> list[Raw]:
        """The refused rows by line."""
        self.get(id)
        query: dict[str, Any] = {"import_id": id}
        if after is not None:
            query["line"] = {"$gt": after}
        found = ImportErrorDocument._get_collection().find(query).sort("line", 1).limit(limit)
        return list(found)

    def cancel(self, id: str) -> Raw:
        """Stops; what is in stays. Repeating it is harmless. ImportClosed when it is done."""

        def edit(raw: Raw) -> Mapping[str, Any] | None:
            if raw["state"] in (DONE, FAILED):
                raise ImportClosed(subject=self._records.name(id), why=f"is {raw['state']}")
            return None if raw["state"] == CANCELLED else {"state": CANCELLED}

        return self._records.update(id, edit)

    def feed(self, id: str, pieces: Iterator[tuple[int, bytes, bool]], actor: str) -> Iterator[Raw]:
        """Applies (offset, bytes, last) pieces and answers the import after each check-point.

        ImportClosed, ImportBusy (another stream feeds it), InvalidArgument(offset) when bytes are left out.
        """
        job = self.get(id)
        if job["state"] != RECEIVING:
            raise ImportClosed(subject=self._records.name(id), why=f"is {job['state']}")
        with ThreadPoolExecutor(1, thread_name_prefix="import") as writer:
            feeding = _Feeding(self, job, writer, actor)
            for offset, data, last in pieces:
                yield from feeding.take(offset, data, last)

    # --- what `_Feeding` uses ---

    def prepared(self, job: Raw, records: Sequence[Record], actor: str) -> list[NewCustomer | CallmeshError]:
        """The rows as decided: to be stored, or refused."""
        custom = self._customers.declared_fields()
        mappings = [Mapped(**m) for m in job.get("mappings", ())]
        done: list[NewCustomer | CallmeshError] = []
        for record in records:
            try:
                done.append(self._customers.decide(self._create(job, record, mappings, custom), actor))
            except CallmeshError as error:
                done.append(error)
        return done

    def _create(
        self, job: Raw, record: Record, mappings: Sequence[Mapped], custom: Mapping[str, Any]
    ) -> Create:
        if record.values is None:
            raise rows.BadRow(field="", why=record.fault)
        id, draft = rows.customer_of(rows.by_path(record.values, mappings), custom)
        return Create(
            draft=draft,
            id=check_id("id", id) if id else stable_id("import-row", job["_id"], record.line),
            default_country=job.get("default_country") or "",
            origin=f"{job['_id']}:{record.line}",
        )

    def write(
        self, job: Raw, decided: Sequence[NewCustomer | CallmeshError], actor: str
    ) -> list[CallmeshError | None]:
        """Stores what is to be stored (a dry run checks it); the fault of each row, None for a good one."""
        new = [item for item in decided if isinstance(item, NewCustomer)]
        dry = bool(job.get("dry_run"))
        stored = iter(self._customers.check_many(new) if dry else self._customers.import_many(new))
        faults: list[CallmeshError | None] = []
        for item in decided:
            outcome = next(stored) if isinstance(item, NewCustomer) else item
            if isinstance(outcome, CallmeshError) and isinstance(item, NewCustomer):
                outcome = self._again(job, item, outcome, actor)
            faults.append(outcome if isinstance(outcome, CallmeshError) else None)
        return faults

    def _again(self, job: Raw, new: NewCustomer, error: CallmeshError, actor: str) -> Any:
        """What a conflict comes to: to be updated, or refused."""
        customer = new.change.customer
        owner = str(error.values.get("owner") or "").removeprefix("customers/")
        if not owner and isinstance(error, AlreadyExists):
            owner = customer.id
        if not job.get("update_existing") or not owner:
            return error
        dry = bool(job.get("dry_run"))
        try:
            return self._customers.update(owner, lambda current: _updated(current, customer), actor, dry=dry)
        except CallmeshError as failed:
            return failed

    def apply_others(self, job: Raw, records: Sequence[Record], actor: str) -> list[CallmeshError | None]:
        """Rows of other kinds than customers, one by one."""
        apply = self._appliers[job["row_kind"]]
        mappings = [Mapped(**m) for m in job.get("mappings", ())]
        faults: list[CallmeshError | None] = []
        for record in records:
            try:
                if record.values is None:
                    raise rows.BadRow(field="", why=record.fault)
                row_id = stable_id("import-row", job["_id"], record.line)
                apply(rows.by_path(record.values, mappings), row_id, bool(job.get("dry_run")), actor)
                faults.append(None)
            except CallmeshError as error:
                faults.append(error)
        return faults

    def check_point(
        self, job: Raw, faults: Sequence[tuple[Record, CallmeshError | None]], moved: Mapping[str, Any]
    ) -> Raw:
        """Notes refused rows, then how far it is. ImportBusy when another stream was faster, ImportClosed."""
        bad = [(record, fault) for record, fault in faults if fault is not None]
        notes = [_note(job["_id"], record, fault) for record, fault in bad]
        if notes:
            ImportErrorDocument._get_collection().bulk_write(notes, ordered=False)
        total = int(job.get("bad_rows") or 0) + len(bad)
        most = int(job.get("error_count_max") or 0)

        def edit(raw: Raw) -> Mapping[str, Any]:
            if raw["state"] != RECEIVING:
                raise ImportClosed(subject=self._records.name(job["_id"]), why=f"is {raw['state']}")
            if raw.get("received_bytes") != job.get("received_bytes"):
                raise ImportBusy(subject=self._records.name(job["_id"]), why="is being fed by another stream")
            good = int(raw.get("good_rows") or 0) + len(faults) - len(bad)
            state = {"state": FAILED} if most and total >= most else {}
            return {"good_rows": good, "bad_rows": total, **moved, **state}

        return self._records.update(job["_id"], edit)


def _updated(current: Customer, wanted: Customer) -> Customer:
    """The present customer with what the row says; lists gain what they lack."""
    changes: dict[str, Any] = {}
    for name in engine.WRITABLE:
        value = getattr(wanted, name)
        if not value or name == "kind" or value == getattr(Customer(), name):
            continue
        if isinstance(value, tuple):
            own = getattr(current, name)
            keys = {_claim(item) for item in own}
            more = [i for i in value if _claim(i) not in keys]
            changes[name] = (*own, *(replace(i, primary=False) if hasattr(i, "primary") else i for i in more))
        elif name == "custom_values":
            changes[name] = {**current.custom_values, **value}
        else:
            changes[name] = value
    return replace(current, **changes)


def _claim(item: Any) -> Any:
    return getattr(item, "number", None) or getattr(item, "address", None) or item


def _note(id: str, record: Record, fault: CallmeshError) -> UpdateOne:
    values = {
        "import_id": id,
        "line": record.line,
        "field": shorten(str(fault.values.get("field", ""))),
        "reason": fault.reason,
        "message": fault.message,
    }
    return UpdateOne({"_id": f"{id}:{record.line:012}"}, {"$set": values}, upsert=True)


class _Feeding:
    """One stream into one import."""

    def __init__(self, imports: Imports, job: Raw, writer: ThreadPoolExecutor, actor: str) -> None:
        self._imports = imports
        self._job = job
        self._writer = writer
        self._actor = actor
        self._cutter = rows.Cutter(csv=job["format"] == "CSV")
        #: First byte and first line that are not cut into records yet.
        self._byte = int(job.get("received_bytes") or 0)
        self._line = int(job.get("lines") or 0) + 1
        self._next_byte = self._byte
        self._columns: list[str] = list(job.get("columns") or ())

    def take(self, offset: int, data: bytes, last: bool) -> Iterator[Raw]:
        """One piece of the file."""
        if len(data) > PIECE_BYTES_MAX:
            raise InvalidArgument(field="data", why=f"must be at most {PIECE_BYTES_MAX} bytes")
        if offset > self._next_byte or offset < 0:
            raise InvalidArgument(field="offset", why=f"must be {self._next_byte}, got {offset}")
        # What was sent before, after a broken stream, is passed over.
        data = data[self._next_byte - offset :]
        self._next_byte += len(data)
        whole = self._cutter.cut(data, last)
        end_byte, end_lines = self._byte + len(whole), whole.count(b"\n")
        records = list(self._records(whole)) if whole else []
        yield from self._apply(records, end_byte, self._line - 1 + end_lines)
        self._byte, self._line = end_byte, self._line + end_lines
        if last and self._job["state"] == RECEIVING:
            moved = {"received_bytes": end_byte, "lines": self._line - 1, "state": DONE}
            self._job = self._imports.check_point(self._job, [], moved)
            yield self._job

    def _records(self, whole: bytes) -> Iterator[Record]:
        try:
            text = whole.decode()
        except UnicodeDecodeError:
            yield from self._undecodable(whole)
            return
        if self._job["format"] != "CSV":
            yield from rows.json_records(text, self._line)
            return
        if not self._columns:
            self._columns = rows.headings(text)
            skipped = True
        else:
            skipped = False
        found = rows.csv_records(text, self._columns, self._line)
        if skipped:
            next(found, None)
        yield from found

    def _undecodable(self, whole: bytes) -> Iterator[Record]:
        """Line by line, so that one bad line costs only itself."""
        for number, raw in enumerate(whole.splitlines()):
            line = self._line + number
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                yield Record(line=line, values=None, fault="is not UTF-8")
                continue
            if self._job["format"] != "CSV":
                yield from rows.json_records(text, line)
            elif not self._columns:
                self._columns = rows.headings(text)
            else:
                yield from rows.csv_records(text, self._columns, line)

    def _apply(self, records: list[Record], end_byte: int, end_lines: int) -> Iterator[Raw]:
        """Decides one batch while the one before is written; the last carries the check-point of the
        bytes.
        """
        if self._job["row_kind"] != "CUSTOMER":
            faults = self._imports.apply_others(self._job, records, self._actor)
            yield self._point(list(zip(records, faults, strict=True)), end_byte, end_lines)
            return
        told: list[tuple[Record, CallmeshError | None]] = []
        running: tuple[list[Record], Future[list[CallmeshError | None]]] | None = None
        for start in range(0, len(records), ROWS_BATCH):
            batch = records[start : start + ROWS_BATCH]
            decided = self._imports.prepared(self._job, batch, self._actor)
            if running is not None:
                told += zip(running[0], running[1].result(), strict=True)
            running = (
                batch,
                self._writer.submit(self._imports.write, self._job, decided, self._actor),
            )
        if running is not None:
            told += zip(running[0], running[1].result(), strict=True)
        yield self._point(told, end_byte, end_lines)

    def _point(self, told: list[tuple[Record, CallmeshError | None]], end_byte: int, end_lines: int) -> Raw:
        moved: dict[str, Any] = {"received_bytes": end_byte, "lines": end_lines}
        if self._columns:
            moved["columns"] = self._columns
        self._job = self._imports.check_point(self._job, told, moved)
        if self._job["state"] == FAILED:
            raise ImportClosed(subject=f"imports/{self._job['_id']}", why="stopped: it has too many bad rows")
        return self._job
