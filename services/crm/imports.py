"""Imports: bytes in, rows applied, how far it is. Blocks.

Rows of one piece are decided while those of the piece before are written, so neither waits for the other.
An import goes on from the last byte whose rows are done. The check-point is written after its rows, in one
conditional write, so rows may be applied again after a crash, and come out the same: a customer remembers the
row that made it (its *origin*), and has an id that follows from import and line, unless the row names one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from pymongo import UpdateOne

from chassis import localize
from chassis.clock import Clock
from chassis.errors import (
    MESSAGE_CHARACTERS_MAX,
    AlreadyExists,
    CallmeshError,
    FailedPrecondition,
    InvalidArgument,
    shorten,
    within,
)
from chassis.ids import check_id, new_id, parse_name, stable_id
from crm import convert, engine, import_trial, merging, plain, rows
from crm.handlers import Create, Customers
from crm.import_store import ReadyRow
from crm.model import Contact, Customer, PostalAddress
from crm.records import Raw, Records
from crm.rows import Mapped, Record, Span
from crm.store import NewCustomer
from crm.transfer_documents import ImportDocument, ImportErrorDocument

#: Rows applied, and check-pointed, at once.
ROWS_BATCH = 500
#: Largest piece of a file, bytes.
PIECE_BYTES_MAX = 1_048_576
MAPPINGS_MAX = 200
#: Pieces that wait to be read, and batches decided before the one that is being written is in.
PIECES_AHEAD_MAX, BATCHES_AHEAD_MAX = 2, 2
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


#: Applies one row: (values by path, the row's id, dry, actor) -> the name of what it made that no other may
#: make again, or ""; raises what an API call would.
ApplyRow = Callable[[Mapping[str, Any], str, bool, str], str]


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
            raise InvalidArgument(field="import_job.mappings", why=f"must hold at most {MAPPINGS_MAX}")
        if wanted.row_kind == "CUSTOMER":
            with within("import_job"):
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

    def name(self, id: str) -> str:
        """The resource name."""
        return self._records.name(id)

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

        done = self._records.update(id, edit)
        import_trial.forget(id)
        return done

    def feed(self, id: str, pieces: Iterator[tuple[int, bytes, bool]], actor: str) -> Iterator[Raw]:
        """Applies (offset, bytes, last) pieces and answers the import after each check-point.

        ImportClosed, ImportBusy (another stream feeds it), InvalidArgument(offset) when bytes are left out.
        """
        job = self.get(id)
        if job["state"] != RECEIVING:
            raise ImportClosed(subject=self._records.name(id), why=f"is {job['state']}")
        with ThreadPoolExecutor(1, thread_name_prefix="import") as writer:
            yield from _Feeding(self, job, writer, actor).run(pieces)

    # --- what `_Feeding` uses ---

    def prepared(
        self, job: Raw, records: Sequence[Record], actor: str
    ) -> list[ReadyRow | NewCustomer | CallmeshError]:
        """The rows as decided: to be stored (in a dry run to be looked at), or refused."""
        occasion = self._customers.occasion(actor, job.get("default_country") or "")
        mappings = _mappings(job)
        dry = bool(job.get("dry_run"))
        done: list[ReadyRow | NewCustomer | CallmeshError] = []
        for record in records:
            try:
                id, draft = _drafted(job, record, mappings, occasion.fields)
                if dry:
                    done.append(self._decided(job, record, id, draft, actor))
                else:
                    origin = f"{job['_id']}:{record.line}"
                    done.append(self._customers.ready(draft, id, origin, occasion))
            except CallmeshError as error:
                done.append(error)
        return done

    def _decided(self, job: Raw, record: Record, id: str, draft: Customer, actor: str) -> NewCustomer:
        """A row with everything that is decided about it."""
        wanted = Create(
            draft=draft,
            id=id,
            default_country=job.get("default_country") or "",
            origin=f"{job['_id']}:{record.line}",
        )
        return self._customers.decide(wanted, actor)

    def write(
        self,
        job: Raw,
        records: Sequence[Record],
        decided: Sequence[ReadyRow | NewCustomer | CallmeshError],
        actor: str,
    ) -> list[CallmeshError | None]:
        """Stores what is to be stored (a dry run checks it); the fault of each row, None for a good one."""
        good = [place for place, item in enumerate(decided) if not isinstance(item, CallmeshError)]

        @cache
        def again(place: int) -> NewCustomer:
            record = records[good[place]]
            drafted = _drafted(job, record, _mappings(job), self._customers.declared_fields())
            return self._decided(job, record, *drafted, actor)

        def changed(number: int, error: CallmeshError) -> CallmeshError | None:
            said = _fields_said(job, records[good[number]])
            return self._again(job, partial(again, number), said, error, actor)

        outcomes: list[CallmeshError | None]
        if job.get("dry_run"):
            new = [item for item in decided if isinstance(item, NewCustomer)]
            outcomes = self._tried(job, [records[place].line for place in good], new, changed)
        else:
            ready = [item for item in decided if isinstance(item, ReadyRow)]
            outcomes = list(self._customers.import_many(ready, again))
            for number, outcome in enumerate(outcomes):
                if outcome is not None:
                    outcomes[number] = changed(number, outcome)
        faults = [item if isinstance(item, CallmeshError) else None for item in decided]
        for place, outcome in zip(good, outcomes, strict=True):
            faults[place] = outcome
        return faults

    def _tried(
        self, job: Raw, lines: Sequence[int], new: Sequence[NewCustomer], changed: import_trial.Change
    ) -> list[CallmeshError | None]:
        """What the run of these rows would refuse."""
        found = self._customers.check_many(new)
        tried = [
            import_trial.Tried(
                line=line,
                customer=item.change.customer,
                stored=outcome if isinstance(outcome, CallmeshError) else None,
            )
            for line, item, outcome in zip(lines, new, found, strict=True)
        ]

        def owned(number: int, error: AlreadyExists) -> CallmeshError | None:
            return self._customers.taken(tried[number].customer)

        update = changed if job.get("update_existing") else None
        return import_trial.faults_of(job["_id"], tried, update, owned)

    def _again(
        self,
        job: Raw,
        decide: Callable[[], NewCustomer],
        said: Collection[str],
        error: CallmeshError,
        actor: str,
    ) -> CallmeshError | None:
        """What a conflict comes to: updated in the fields that the row has (None), or refused."""
        if not job.get("update_existing") or not isinstance(error, AlreadyExists):
            return error
        # Whose the id is, or the claim.
        owner = str(error.values.get("resource") or "").removeprefix("customers/")
        wanted = decide().change.customer
        dry = bool(job.get("dry_run"))
        try:
            self._customers.update(owner, lambda current: _updated(current, wanted, said), actor, dry=dry)
        except CallmeshError as failed:
            return failed
        return None

    def apply_others(self, job: Raw, records: Sequence[Record], actor: str) -> list[CallmeshError | None]:
        """Rows of other kinds than customers, one by one."""
        apply = self._appliers[job["row_kind"]]
        mappings = _mappings(job)
        faults: list[CallmeshError | None] = []
        for record in records:
            try:
                if record.values is None:
                    raise rows.BadRow(field="", why=record.fault)
                row_id = stable_id("import-row", job["_id"], record.line)
                dry = bool(job.get("dry_run"))
                made = apply(rows.by_path(record.values, mappings), row_id, dry, actor)
                clashing = dry and made
                faults.append(import_trial.clash_of_name(job["_id"], made, record.line) if clashing else None)
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

        done = self._records.update(job["_id"], edit)
        if done["state"] != RECEIVING and job.get("dry_run"):
            import_trial.forget(job["_id"])
        return done


def _mappings(job: Raw) -> list[Mapped]:
    return [Mapped(**m) for m in job.get("mappings", ())]


def _drafted(
    job: Raw, record: Record, mappings: Sequence[Mapped], custom: Mapping[str, Any]
) -> tuple[str, Customer]:
    """(the id that the row's customer is to have, the customer as drafted)."""
    if record.values is None:
        raise rows.BadRow(field="", why=record.fault)
    if record.whole is not None and not mappings:
        return parse_name("name", "customers", record.whole["name"]), convert.customer_of_json(record.whole)
    id, draft = rows.customer_of(rows.by_path(record.values, mappings), custom)
    return check_id("id", id) if id else stable_id("import-row", job["_id"], record.line), draft


def _fields_said(job: Raw, record: Record) -> set[str]:
    """The fields that a row has a value for."""
    if record.whole is not None and not job.get("mappings"):
        return convert.fields_of_json(record.whole)
    return rows.fields_of(rows.by_path(record.values or {}, _mappings(job)))


def _updated(current: Customer, wanted: Customer, said: Collection[str]) -> Customer:
    """The present customer with what the row says; lists gain what they lack."""
    changes: dict[str, Any] = {}
    for name in engine.WRITABLE:
        value = getattr(wanted, name)
        if not value or name == "kind" or name not in said:
            continue
        if isinstance(value, tuple):
            own = getattr(current, name)
            keys = {merging.key_of(name, item) for item in own}
            more = [i for i in value if merging.key_of(name, i) not in keys and not _is_told(i, own)]
            changes[name] = (*own, *(replace(i, primary=False) if hasattr(i, "primary") else i for i in more))
        elif name == "custom_values":
            changes[name] = {**current.custom_values, **value}
        else:
            changes[name] = value
    return replace(current, **changes)


def _is_told(item: Any, own: Sequence[Any]) -> bool:
    """Whether one of a customer's own says all that an address or a contact of a row does: a row leaves out
    what it has no column for.
    """
    if not isinstance(item, PostalAddress | Contact):
        return False
    said = plain.without_defaults(type(item), plain.builtin(item)).items()
    return any(said <= plain.builtin(mine).items() for mine in own)


def _note(id: str, record: Record, fault: CallmeshError) -> UpdateOne:
    values = {
        "import_id": id,
        "line": record.line,
        "field": shorten(str(fault.values.get("field", ""))),
        "reason": fault.reason,
        "message": fault.message,
        # For readers of another language than English.
        "text": localize.known_as(fault),
        "values": {
            key: shorten(str(value), MESSAGE_CHARACTERS_MAX) for key, value in fault.values.items() if value
        },
    }
    return UpdateOne({"_id": f"{id}:{record.line:012}"}, {"$set": values}, upsert=True)


class _Inbox:
    """What happens to one import, in turn: pieces that arrive, check-points that are through.

    Pieces are read by a thread of their own, so that a check-point is told as soon as it is through, whether
    or not its sender has another piece; at most `PIECES_AHEAD_MAX` of them wait.
    """

    def __init__(self, pieces: Iterator[tuple[int, bytes, bool]], on_break: Callable[[], None]) -> None:
        """`on_break` is called, by another thread, as soon as the stream of pieces breaks."""
        self._pieces = pieces
        self._on_break = on_break
        self._found: queue.SimpleQueue[Callable[[], _Happening]] = queue.SimpleQueue()
        self._room = threading.Semaphore(PIECES_AHEAD_MAX)
        self._closed = False
        # It may stand waiting for a sender that says no more, until the call is over: nobody waits for it.
        threading.Thread(target=self._read, name="import-pieces", daemon=True).start()

    def _read(self) -> None:
        try:
            for piece in self._pieces:
                self._room.acquire()
                if self._closed:
                    return
                self._found.put(partial(_Happening, piece=piece))
            self._found.put(partial(_Happening, ended=True))
        except BaseException as error:
            self._on_break()
            self._found.put(partial(_raised, error))

    def point(self, done: Future[Raw]) -> None:
        """A check-point is through."""
        self._found.put(lambda: _Happening(point=done.result()))

    def next(self) -> _Happening:
        """Waits for what happens next. Raises what broke the stream, or a check-point."""
        happening = self._found.get()()
        if happening.piece is not None:
            self._room.release()
        return happening

    def close(self) -> None:
        """Reads no more."""
        self._closed = True
        self._room.release()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Happening:
    """One of these."""

    #: (offset, bytes, last).
    piece: tuple[int, bytes, bool] | None = None
    #: The import as it stands.
    point: Raw | None = None
    #: No more pieces come.
    ended: bool = False


def _raised(error: BaseException) -> _Happening:
    raise error


class _Feeding:
    """One stream into one import. Rows are decided here while earlier ones are written by `writer`, a thread
    that does one thing after another; the check-point of a piece is written after its rows.
    """

    def __init__(self, imports: Imports, job: Raw, writer: ThreadPoolExecutor, actor: str) -> None:
        self._imports = imports
        #: As of the last check-point; after the beginning the writer's alone.
        self._job = job
        self._writer = writer
        self._actor = actor
        self._cutter = rows.Cutter(csv=job["format"] == "CSV")
        #: First byte and first line that are not cut into records yet.
        self._byte = int(job.get("received_bytes") or 0)
        self._line = int(job.get("lines") or 0) + 1
        self._next_byte = self._byte
        self._columns: list[str] = list(job.get("columns") or ())
        #: The last piece was taken.
        self._last = False
        #: Something went wrong: what was decided is not written any more.
        self._broken = False
        self._ahead = threading.Semaphore(BATCHES_AHEAD_MAX)

    def run(self, pieces: Iterator[tuple[int, bytes, bool]]) -> Iterator[Raw]:
        """Takes pieces as they come and answers the import after each one's check-point."""
        inbox, due, refused = _Inbox(pieces, self._break_off), 0, None
        try:
            ended = False
            while due or not ended:
                happening = inbox.next()
                if happening.point is not None:
                    due -= 1
                    yield happening.point
                elif happening.piece is not None and refused is None:
                    try:
                        self._take(*happening.piece).add_done_callback(inbox.point)
                        due += 1
                    except CallmeshError as error:
                        # What came before it is finished and told first.
                        refused, ended = error, True
                ended = ended or happening.ended
            if refused is not None:
                raise refused
        finally:
            self._break_off()
            inbox.close()

    def _break_off(self) -> None:
        """Nothing more is written: whoever sent this may already be sending the rest in another stream."""
        self._broken = True

    def _take(self, offset: int, data: bytes, last: bool) -> Future[Raw]:
        """One piece of the file; its check-point."""
        if len(data) > PIECE_BYTES_MAX:
            raise InvalidArgument(field="data", why=f"must be at most {PIECE_BYTES_MAX} bytes")
        if offset > self._next_byte or offset < 0:
            raise InvalidArgument(field="offset", why=f"must be {self._next_byte}, got {offset}")
        if self._last:
            raise ImportClosed(subject=self._imports.name(self._job["_id"]), why="has had its last piece")
        # What was sent before, after a broken stream, is passed over.
        data = data[self._next_byte - offset :]
        self._next_byte += len(data)
        records: list[Record] = []
        for span in self._cutter.cut(data, last):
            records += self._records(span)
            self._byte += span.size
            self._line += span.lines
        self._last = last
        return self._apply(records, {"received_bytes": self._byte, "lines": self._line - 1})

    def _records(self, span: Span) -> Iterator[Record]:
        if span.data is None:
            yield self._too_long()
            return
        # What is no UTF-8 costs only its own record, whose values may go over several lines.
        text = span.data.decode(errors="surrogateescape")
        if self._line == 1:
            text = text.removeprefix("\ufeff")
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

    def _too_long(self) -> Record:
        """The record that begins here and is passed over."""
        most, csv = rows.RECORD_BYTES_MAX, self._cutter.csv
        if csv and not self._columns:
            raise InvalidArgument(
                field="data", why=f"has headings of more than {most} bytes, or an open quote among them"
            )
        fault = f"has more than {most} bytes, or an open quote" if csv else f"has more than {most} bytes"
        return Record(line=self._line, values=None, fault=fault)

    def _apply(self, records: list[Record], moved: dict[str, Any]) -> Future[Raw]:
        """Has a piece's rows written in batches, deciding one while those before are written; the check-point
        that follows them.
        """
        if self._columns:
            moved["columns"] = self._columns
        if self._last:
            moved["state"] = DONE
        told: list[Future[list[CallmeshError | None]]] = []
        for start in range(0, len(records), ROWS_BATCH):
            batch = records[start : start + ROWS_BATCH]
            work = self._work(batch)
            self._ahead.acquire()
            told.append(self._writer.submit(self._in_turn, work))
        return self._writer.submit(self._point, records, told, moved)

    def _work(self, batch: list[Record]) -> Callable[[], list[CallmeshError | None]]:
        """What is left to do for rows: those of customers are decided here and now."""
        if self._job["row_kind"] != "CUSTOMER":
            return partial(self._imports.apply_others, self._job, batch, self._actor)
        decided = self._imports.prepared(self._job, batch, self._actor)
        return partial(self._imports.write, self._job, batch, decided, self._actor)

    def _in_turn(self, work: Callable[[], list[CallmeshError | None]]) -> list[CallmeshError | None]:
        """Done by the writer."""
        try:
            if self._broken:
                raise CancelledError
            return work()
        except BaseException:
            self._broken = True
            raise
        finally:
            self._ahead.release()

    def _point(
        self,
        records: list[Record],
        told: Sequence[Future[list[CallmeshError | None]]],
        moved: Mapping[str, Any],
    ) -> Raw:
        """Done by the writer, whose rows are written by now."""
        try:
            faults = [fault for each in told for fault in each.result()]
            if self._broken:
                raise CancelledError
            self._job = self._imports.check_point(self._job, list(zip(records, faults, strict=True)), moved)
            if self._job["state"] == FAILED:
                name = self._imports.name(self._job["_id"])
                raise ImportClosed(subject=name, why="stopped: it has too many bad rows")
        except BaseException:
            self._broken = True
            raise
        return self._job
