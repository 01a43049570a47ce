"""Imports, exports, care, insights and webhooks through the API, on a real server and a real MongoDB."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import (
    care_pb2,
    care_pb2_grpc,
    customers_pb2,
    customers_pb2_grpc,
    insights_pb2,
    insights_pb2_grpc,
    screen_pop_pb2,
    screen_pop_pb2_grpc,
    timeline_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
    webhooks_pb2,
    webhooks_pb2_grpc,
)
from chassis.bus import Event
from chassis.client import channel
from chassis.clock import to_ms
from chassis.errors import Unavailable
from chassis.grpc_status import error_info
from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from chassis.server import ServiceBinding
from chassis.testing import FakeClock
from chassis.testing.grpc import GrpcServerFactory
from crm import care_handlers, care_servicer, documents, voice
from crm.app import App, compose
from crm.care_handlers import Retention
from crm.collections import ALL_DOCUMENTS
from crm.config import CrmSettings
from crm.documents import CustomerDocument
from crm.model import Churn, Fact, InteractionKind
from crm.sagas import MergeWish
from crm.scopes import SCOPES
from crm.servicer import bindings
from crm.store import MongoReads, MongoStore

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_scanned")]

NOW = datetime(2026, 3, 2, 2, 42, tzinfo=UTC)
DAY_MS = 86_400_000


@dataclass
class Crm:
    """A running server."""

    app: App
    clock: FakeClock
    customers: customers_pb2_grpc.CustomerServiceStub
    care: care_pb2_grpc.CareServiceStub
    insights: insights_pb2_grpc.InsightsServiceStub
    imports: transfer_pb2_grpc.ImportServiceStub
    exports: transfer_pb2_grpc.ExportServiceStub
    webhooks: webhooks_pb2_grpc.WebhookServiceStub
    timeline: timeline_pb2_grpc.TimelineServiceStub
    pops: screen_pop_pb2_grpc.ScreenPopServiceStub

    async def create(self, id: str, **fields: Any) -> customers_pb2.Customer:
        message = customers_pb2.Customer(display_name=f"客户 {id}", **fields)
        return await self.customers.CreateCustomer(
            customers_pb2.CreateCustomerRequest(customer=message, customer_id=id)
        )

    async def upload(
        self,
        job: transfer_pb2.Import,
        data: bytes,
        *,
        piece: int = 64,
        start: int = 0,
        stop: int | None = None,
    ) -> transfer_pb2.Import:
        """Sends a file in small pieces, up to `stop`."""

        async def pieces() -> AsyncIterator[transfer_pb2.UploadImportRequest]:
            end = len(data) if stop is None else stop
            for offset in range(start, end, piece):
                part = data[offset : min(offset + piece, end)]
                last = stop is None and offset + piece >= end
                yield transfer_pb2.UploadImportRequest(name=job.name, offset=offset, data=part, last=last)

        async for answer in self.imports.UploadImport(pieces()):
            job = answer.import_job
        return job


@pytest_asyncio.fixture
async def crm(mongo_uri: str, mongo_database: str, grpc_server: GrpcServerFactory) -> AsyncIterator[Crm]:
    # Whole answers are compared, also on a machine that has something else to do.
    settings = CrmSettings(mongo_uri=mongo_uri, mongo_database=mongo_database, screen_pop_ms=10_000)
    connect(settings)
    ensure_indexes(ALL_DOCUMENTS)
    database = async_database(settings)
    clock = FakeClock(NOW)
    app = compose(MongoStore(), MongoReads(database), clock, settings.policy(), private_webhooks=True)
    server = await grpc_server([ServiceBinding(*part) for part in bindings(app)], scopes=SCOPES)
    line = channel(server.address)
    yield Crm(
        app=app,
        clock=clock,
        customers=customers_pb2_grpc.CustomerServiceStub(line),
        care=care_pb2_grpc.CareServiceStub(line),
        insights=insights_pb2_grpc.InsightsServiceStub(line),
        imports=transfer_pb2_grpc.ImportServiceStub(line),
        exports=transfer_pb2_grpc.ExportServiceStub(line),
        webhooks=webhooks_pb2_grpc.WebhookServiceStub(line),
        timeline=timeline_pb2_grpc.TimelineServiceStub(line),
        pops=screen_pop_pb2_grpc.ScreenPopServiceStub(line),
    )
    await line.close()
    await database.client.close()
    disconnect()


async def refused(call: Any, reason: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = error_info(caught.value)
    assert info is not None and info.reason == reason, caught.value.details()
    return caught.value


CSV = """Name,Mobile,Note,Colour,Born
王小明,138 0000 0001,ok,red,1990-02-28
"李,四",13800000002,"两
行",,
坏号,12,,,
张三,13800000001,,,
赵六,13800000003,,green,1985-13-40
陈七,13800000004,,,
""".encode()
MAPPINGS = [
    ("Name", "display_name"),
    ("Mobile", "phone_numbers[0].number"),
    ("Note", "notes"),
    ("Colour", "custom_values.colour"),
    ("Born", "birth_date"),
]


async def open_import(crm: Crm, **more: Any) -> transfer_pb2.Import:
    mappings = [transfer_pb2.ColumnMapping(column=c, field=f) for c, f in MAPPINGS]
    job = transfer_pb2.Import(format=transfer_pb2.FILE_FORMAT_CSV, mappings=mappings, **more)
    return await crm.imports.CreateImport(transfer_pb2.CreateImportRequest(import_job=job))


async def test_good_rows_are_in_and_bad_ones_told_by_line(crm: Crm) -> None:
    field = customers_pb2.CustomField(
        label="颜色", kind=customers_pb2.CustomField.KIND_CHOICE, choices=["red", "blue"]
    )
    await crm.customers.CreateCustomField(
        customers_pb2.CreateCustomFieldRequest(custom_field=field, custom_field_id="colour")
    )
    dry = await crm.upload(await open_import(crm, dry_run=True), CSV)
    assert (dry.good_rows, dry.bad_rows) == (3, 3) and dry.state == transfer_pb2.Import.STATE_DONE
    listed = await crm.customers.ListCustomers(customers_pb2.ListCustomersRequest())
    assert not listed.customers, "a dry run writes nothing"
    job = await open_import(crm)
    half = await crm.upload(job, CSV, stop=100)
    assert 0 < half.received_bytes <= 100 and half.state == transfer_pb2.Import.STATE_RECEIVING
    done = await crm.upload(job, CSV, start=half.received_bytes)
    assert (done.good_rows, done.bad_rows) == (3, 3) and done.received_bytes == len(CSV)
    asked = transfer_pb2.ListImportErrorsRequest(parent=job.name)
    errors = await crm.imports.ListImportErrors(asked)
    chinese = await crm.imports.ListImportErrors(asked, metadata=(("accept-language", "zh"),))
    assert all(is_chinese(e.message) for e in chinese.import_errors), chinese
    assert all(not is_chinese(e.message) for e in errors.import_errors), errors
    assert [(e.line, e.field, e.reason) for e in errors.import_errors] == [
        (5, "customer.phone_numbers[0].number", "INVALID_ARGUMENT"),
        (6, "customer.phone_numbers[0].number", "CLAIM_TAKEN"),
        (7, "customer.birth_date", "INVALID_ARGUMENT"),
    ]
    await refused(crm.upload(job, CSV), "IMPORT_CLOSED")
    found = await crm.customers.LookupCustomer(
        customers_pb2.LookupCustomerRequest(phone_number="13800000001")
    )
    assert found.display_name == "王小明" and found.custom_values["colour"].text == "red"
    again = await crm.upload(await open_import(crm, update_existing=True), CSV.replace(b"red", b"blue"))
    assert again.bad_rows == 2, "rows whose customer exists change it"
    changed = await crm.customers.GetCustomer(customers_pb2.GetCustomerRequest(name=found.name))
    assert changed.custom_values["colour"].text == "blue"


def is_chinese(text: str) -> bool:
    """Whether a sentence is told in Chinese from its first word after the field's path on."""
    return max(text) >= "\u4e00" and "is " not in text and not text.startswith((":", "："))


CLASHING: dict[str, list[str]] = {
    "CUSTOMER": [
        '{"id": "a", "display_name": "a", "phone_numbers": [{"number": "13900000001"}]}',
        # The number of a row ahead, the id of one, the number of a stored customer.
        '{"display_name": "b", "phone_numbers": [{"number": "13900000001"}]}',
        '{"id": "a", "display_name": "c", "phone_numbers": [{"number": "13900000002"}]}',
        '{"id": "d", "display_name": "d", "phone_numbers": [{"number": "13800000001"}]}',
        # What the refused rows did not take is free; what an updating one took is not.
        '{"id": "e", "display_name": "e", "phone_numbers": [{"number": "13900000002"}]}',
        # A row with numbers of two others.
        '{"id":"f","display_name":"f","phone_numbers":[{"number":"13900000001"},{"number":"13900000003"}]}',
        '{"id": "g", "display_name": "g", "phone_numbers": [{"number": "13900000003"}]}',
        '{"id":"li","display_name":"l","phone_numbers":[{"number":"13900000002"},{"number":"13900000001"}]}',
        '{"id": "li", "display_name": "x", "phone_numbers": [{"number": "13900000004"}]}',
        '{"id": "h", "display_name": "h", "phone_numbers": [{"number": "13900000004"}]}',
    ],
    "CONTRACT": [
        '{"customer": "li", "contract_id": "k1", "product": "p"}',
        '{"customer": "li", "contract_id": "k2", "product": "p"}',
        '{"customer": "li", "contract_id": "k2", "product": "p"}',
        '{"customer": "li", "contract_id": "k3", "product": "p", "state": "x"}',
        '{"customer": "li", "contract_id": "k3", "product": "p"}',
        '{"customer": "li", "contract_id": "no id", "product": "p"}',
        '{"customer": "li", "product": "p"}',
    ],
}


@pytest.mark.parametrize(("kind", "update"), [("CUSTOMER", False), ("CUSTOMER", True), ("CONTRACT", False)])
async def test_a_dry_run_finds_what_the_run_would_refuse(crm: Crm, kind: str, update: bool) -> None:
    await crm.create("li", phone_numbers=[customers_pb2.PhoneNumber(number="13800000001")])
    contract = care_pb2.CreateContractRequest(parent="customers/li", contract_id="k1")
    contract.contract.product = "p"
    await crm.care.CreateContract(contract)
    data = "\n".join(CLASHING[kind]).encode()
    database = CustomerDocument._get_collection().database
    watched = (database.customers, database.contracts, database.audit)

    async def run(*, dry: bool, cut: int | None) -> list[tuple[int, str, str]]:
        job = transfer_pb2.Import(
            format="FILE_FORMAT_JSON_LINES", row_kind=f"ROW_KIND_{kind}", dry_run=dry, update_existing=update
        )
        opened = await crm.imports.CreateImport(transfer_pb2.CreateImportRequest(import_job=job))
        start = 0
        if cut is not None:
            half = await crm.upload(opened, data, stop=cut)
            start = half.received_bytes
        done = await crm.upload(opened, data, start=start, piece=64 if cut else 10_000)
        asked = transfer_pb2.ListImportErrorsRequest(parent=opened.name)
        errors = (await crm.imports.ListImportErrors(asked)).import_errors
        assert done.bad_rows == len(errors) and done.good_rows == len(CLASHING[kind]) - len(errors)
        return [(error.line, error.field if not update else "", error.reason) for error in errors]

    before = [list(found.find()) for found in watched]
    dry, cut = await run(dry=True, cut=None), await run(dry=True, cut=len(data) // 2)
    assert [list(found.find()) for found in watched] == before, "a dry run writes nothing"
    wanted = await run(dry=False, cut=None)
    assert len(wanted) >= 3 and dry == wanted
    # Rows that change somebody come behind those that are read together with them: that depends on the cut.
    assert cut == wanted or update
    assert database.import_trials.count_documents({}) == 0, "and leaves nothing behind"


async def test_what_is_wrong_with_a_row_is_told_in_the_readers_language(crm: Crm) -> None:
    for id in ("li", "gone"):
        await crm.create(id)
    contract = care_pb2.CreateContractRequest(parent="customers/li", contract_id="k")
    contract.contract.product = "p"
    await crm.care.CreateContract(contract)
    await crm.customers.DeleteCustomer(customers_pb2.DeleteCustomerRequest(name="customers/gone"))
    kinds: dict[str, list[tuple[str, str]]] = {
        "CUSTOMER": [('{"id": "li", "display_name": "李"}', "ALREADY_EXISTS"), ("{", "INVALID_ROW")],
        "CONTRACT": [
            ('{"customer": "li", "contract_id": "k", "product": "p"}', "ALREADY_EXISTS"),
            ('{"customer": "nobody", "product": "p"}', "NOT_FOUND"),
            ('{"customer": "gone", "product": "p"}', "CUSTOMER_NOT_ACTIVE"),
        ],
    }
    for kind, rows in kinds.items():
        job = transfer_pb2.Import(format=transfer_pb2.FILE_FORMAT_JSON_LINES, row_kind=f"ROW_KIND_{kind}")
        opened = await crm.imports.CreateImport(transfer_pb2.CreateImportRequest(import_job=job))
        await crm.upload(opened, "\n".join(row for row, _ in rows).encode())
        asked = transfer_pb2.ListImportErrorsRequest(parent=opened.name)
        for language in ("zh", "en"):
            told = await crm.imports.ListImportErrors(asked, metadata=(("accept-language", language),))
            assert [e.reason for e in told.import_errors] == [reason for _, reason in rows]
            assert all(is_chinese(e.message) == (language == "zh") for e in told.import_errors), told


@pytest.mark.parametrize("kind", ["CSV", "JSON_LINES"])
async def test_a_record_that_is_too_long_is_a_bad_row_however_the_file_is_cut(crm: Crm, kind: str) -> None:
    long = "长" * 400_000  # 1.2 million bytes
    if kind == "CSV":
        rows = ["id,display_name", "a,甲", f'x,"{long}\n"', "b,乙", f"y,{long}", "c,丙"]
    else:
        told = [("a", "甲"), ("x", long), ("b", "乙"), ("y", long), ("c", "丙")]
        rows = [json.dumps({"id": id, "display_name": name}, ensure_ascii=False) for id, name in told]
    data = "\n".join(rows).encode()
    bad = [3, 6] if kind == "CSV" else [2, 4]
    for piece in (1_048_576, 700_001):
        job = transfer_pb2.Import(format=f"FILE_FORMAT_{kind}", dry_run=piece < 1_048_576)
        opened = await crm.imports.CreateImport(transfer_pb2.CreateImportRequest(import_job=job))
        # Broken off in the middle of the first: it is sent again from its beginning.
        half = await crm.upload(opened, data, piece=piece, stop=1_100_000)
        assert half.received_bytes == data.index(b"x") - (8 if kind == "JSON_LINES" else 0)
        done = await crm.upload(opened, data, piece=piece, start=half.received_bytes)
        assert done.state == transfer_pb2.Import.STATE_DONE and done.received_bytes == len(data)
        assert done.good_rows == (3 if not done.dry_run else 0) and done.bad_rows == (
            2 if not done.dry_run else 5
        )
        asked = transfer_pb2.ListImportErrorsRequest(parent=opened.name)
        errors = (
            await crm.imports.ListImportErrors(asked, metadata=(("accept-language", "zh"),))
        ).import_errors
        long_ones = [e for e in errors if e.reason == "INVALID_ROW"]
        assert [e.line for e in long_ones] == bad and all("1048576 字节" in e.message for e in long_ones)
    listed = await crm.customers.ListCustomers(customers_pb2.ListCustomersRequest())
    assert [customer.display_name for customer in listed.customers] == ["甲", "乙", "丙"]


async def test_a_sender_may_wait_for_each_answer_before_the_next_piece(crm: Crm) -> None:
    job = await open_import(crm)
    call = crm.imports.UploadImport()
    for offset in range(0, len(CSV), 100):
        part, last = CSV[offset : offset + 100], offset + 100 >= len(CSV)
        await call.write(transfer_pb2.UploadImportRequest(name=job.name, offset=offset, data=part, last=last))
        told = (await asyncio.wait_for(call.read(), 30)).import_job
        assert told.received_bytes <= offset + len(part)
    assert told.state == transfer_pb2.Import.STATE_DONE and told.good_rows + told.bad_rows == 6
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_file_that_is_too_bad_or_has_a_gap_is_stopped(crm: Crm) -> None:
    job = await open_import(crm, error_count_max=2)
    await refused(crm.upload(job, CSV, piece=250), "IMPORT_CLOSED")
    stopped = await crm.imports.GetImport(transfer_pb2.GetImportRequest(name=job.name))
    assert stopped.state == transfer_pb2.Import.STATE_FAILED and stopped.bad_rows >= 2
    job = await open_import(crm)
    pieces = [(0, CSV[:200]), (201, CSV[201:])]

    async def sent() -> AsyncIterator[transfer_pb2.UploadImportRequest]:
        for offset, data in pieces:
            yield transfer_pb2.UploadImportRequest(name=job.name, offset=offset, data=data)

    call = crm.imports.UploadImport(sent())
    first = (await call.read()).import_job
    assert 0 < first.received_bytes <= 200, "what came before the gap is in, and told"
    error = await refused(call.read(), "INVALID_ARGUMENT")
    assert "offset" in str(error.details())


CONTRACTS = b"""customer,product,state,auto_renew,end_time
li,a,FOO,,
li,b,,perhaps,
li,c,SUSPENDED,yes,
li,d,,,9999-12-31T23:00:00-12:00
"""
INTERACTIONS = b"""\xef\xbb\xbf"kind",customer,satisfaction
SURVEY,li,nan
SURVEY,li,1e999
SURVEY,li,4.5
SURVEY,li,4
NOTE,l\xff,
"""


@pytest.mark.parametrize(
    ("kind", "data", "bad"),
    [
        ("CONTRACT", CONTRACTS, ["contract.state", "auto_renew", "end_time"]),
        ("INTERACTION", INTERACTIONS, ["satisfaction", "satisfaction", "satisfaction", ""]),
    ],
)
async def test_one_bad_row_stops_no_others(crm: Crm, kind: str, data: bytes, bad: list[str]) -> None:
    await crm.create("li")
    job = await crm.imports.CreateImport(
        transfer_pb2.CreateImportRequest(
            import_job=transfer_pb2.Import(format=transfer_pb2.FILE_FORMAT_CSV, row_kind=f"ROW_KIND_{kind}")
        )
    )
    done = await crm.upload(job, data)
    errors = await crm.imports.ListImportErrors(transfer_pb2.ListImportErrorsRequest(parent=job.name))
    assert [error.field for error in errors.import_errors] == bad
    assert (done.state, done.good_rows) == (transfer_pb2.Import.STATE_DONE, 1)
    listed = await crm.care.ListContracts(care_pb2.ListContractsRequest(parent="customers/li"))
    assert [contract.product for contract in listed.contracts] == (["c"] if kind == "CONTRACT" else [])


async def test_what_is_exported_can_be_imported(crm: Crm) -> None:
    kinds, firm = customers_pb2.CustomField.Kind, customers_pb2.CUSTOMER_KIND_COMPANY
    fields = {"visits": kinds.KIND_NUMBER, "since": kinds.KIND_DATE, "says": kinds.KIND_TEXT}
    for id, kind in fields.items():
        field = customers_pb2.CustomField(label=id, kind=kind)
        await crm.customers.CreateCustomField(
            customers_pb2.CreateCustomFieldRequest(custom_field_id=id, custom_field=field)
        )
    home = customers_pb2.PostalAddress(city="深圳", street="路 1", label="home")
    home.location.latitude, home.location.longitude = 22.5, 114.0
    values = {id: customers_pb2.CustomValue() for id in fields}
    values["visits"].number, values["says"].text, values["since"].date.year = 3, "=1+1", 2020
    values["since"].date.month = values["since"].date.day = 1
    for n in range(3):
        await crm.create(
            f"c{n}",
            phone_numbers=[customers_pb2.PhoneNumber(number=f"1380000000{n}", label="mobile")],
            notes="=1+1",
            addresses=[home],
            custom_values=values,
            quiet_windows=[customers_pb2.QuietWindow(weekdays=[7], end_minute=480)],
        )
    ways = [customers_pb2.PhoneNumber(number="13900000001")]
    await crm.create(
        "firm", kind=firm, contacts=[customers_pb2.Contact(display_name="王", phone_numbers=ways)]
    )
    everyone = customers_pb2.ListCustomersRequest()
    before = await crm.customers.ListCustomers(everyone)
    request = transfer_pb2.ExportCustomersRequest(format=transfer_pb2.FILE_FORMAT_CSV)
    pieces = [piece async for piece in crm.exports.ExportCustomers(request)]
    told = b"".join(piece.data for piece in pieces)
    assert told.count(b"\n") == 5 and b"+8613800000002" in told and b"'=1+1" in told
    request.format = transfer_pb2.FILE_FORMAT_JSON_LINES
    rows = b"".join([piece.data async for piece in crm.exports.ExportCustomers(request)])
    assert [json.loads(row)["name"] for row in rows.splitlines()] == [c.name for c in before.customers]
    for format, data in ((transfer_pb2.FILE_FORMAT_CSV, told), (request.format, rows)):
        job = transfer_pb2.Import(format=format, update_existing=True)
        opened = await crm.imports.CreateImport(transfer_pb2.CreateImportRequest(import_job=job))
        done = await crm.upload(opened, data, piece=10_000)
        assert (done.good_rows, done.bad_rows) == (4, 0)
        assert await crm.customers.ListCustomers(everyone) == before, "nothing that it did not say before"
    for name in [c.name for c in before.customers]:
        await crm.customers.EraseCustomer(customers_pb2.EraseCustomerRequest(name=name, reason="moves"))
    elsewhere = rows.replace(b"customers/", b"customers/new-")
    opened = await crm.imports.CreateImport(
        transfer_pb2.CreateImportRequest(import_job=transfer_pb2.Import(format=request.format))
    )
    assert (await crm.upload(opened, elsewhere, piece=10_000)).good_rows == 4
    after = await crm.customers.ListCustomers(everyone)
    for old, new in zip(before.customers, after.customers, strict=True):
        new.name, new.etag = old.name, old.etag
    assert after == before, "whole, with what no column holds"


async def test_contracts_of_merged_customers_are_told_apart_and_raise_nothing_twice(crm: Crm) -> None:
    for id in "ab":
        await crm.create(id)
        contract = care_pb2.Contract(product=f"of-{id}")
        contract.end_time.FromDatetime(NOW + timedelta(days=20))
        request = care_pb2.CreateContractRequest(
            parent=f"customers/{id}", contract_id="main", contract=contract
        )
        await crm.care.CreateContract(request)
    error = await refused(crm.care.CreateContract(request), "ALREADY_EXISTS")
    assert "customers/b/contracts/main" in str(error.details())
    crm.app.care.ensure_defaults()
    assert crm.app.care.run() == 2
    merge = await crm.customers.MergeCustomers(
        customers_pb2.MergeCustomersRequest(survivor="customers/a", absorbed=["customers/b"])
    )
    assert crm.app.care.run() == 0, "the same occasions as before"
    pages, token = [], ""
    while not pages or token:
        page = await crm.care.ListContracts(
            care_pb2.ListContractsRequest(parent="customers/a", page_size=1, page_token=token)
        )
        pages += [(contract.name, contract.product) for contract in page.contracts]
        token = page.next_page_token
    assert pages == [(f"customers/{id}/contracts/main", f"of-{id}") for id in "ab"]
    late = care_pb2.Contract(name="customers/b/contracts/main")
    late.end_time.FromDatetime(NOW + timedelta(days=21))
    changed = await crm.care.UpdateContract(
        care_pb2.UpdateContractRequest(contract=late, update_mask=FieldMask(paths=["end_time"]))
    )
    assert changed.product == "of-b" and crm.app.care.run() == 1
    scores, renamed = documents.ChurnDocument._get_collection(), care_pb2.Contract(name=late.name, title="x")
    for call, request in (
        (crm.care.UpdateContract, care_pb2.UpdateContractRequest(contract=renamed)),
        (crm.care.DeleteContract, care_pb2.DeleteContractRequest(name="customers/a/contracts/main")),
    ):
        crm.app.retention.rescore()
        await call(request)
        assert [raw["_id"] for raw in scores.find({"dirty_ms": {"$exists": True}})] == ["a"], "the survivor's"
    await crm.customers.UnmergeCustomers(customers_pb2.UnmergeCustomersRequest(name=merge.name))
    for id, count in (("a", 1), ("b", 2)):
        tasks = await crm.care.ListCareTasks(care_pb2.ListCareTasksRequest(customer=f"customers/{id}"))
        assert len(tasks.care_tasks) == count, "each has its own again"


async def test_lists_of_a_customer_who_is_unknown_merged_or_gone(crm: Crm) -> None:
    for id in ("a", "b", "deleted", "erased"):
        await crm.create(id)
        contract = care_pb2.CreateContractRequest(parent=f"customers/{id}", contract_id=f"of-{id}")
        contract.contract.product = "p"
        await crm.care.CreateContract(contract)
        usage = care_pb2.UsageRecord(customer=f"customers/{id}", metric=f"of_{id}", quantity=1)
        usage.period.start_time.FromDatetime(NOW - timedelta(days=1))
        usage.period.end_time.FromDatetime(NOW)
        await crm.care.RecordUsage(care_pb2.RecordUsageRequest(usage_records=[usage]))
    await crm.customers.MergeCustomers(
        customers_pb2.MergeCustomersRequest(survivor="customers/a", absorbed=["customers/b"])
    )
    await crm.customers.DeleteCustomer(customers_pb2.DeleteCustomerRequest(name="customers/deleted"))
    await crm.customers.EraseCustomer(
        customers_pb2.EraseCustomerRequest(name="customers/erased", reason="asked")
    )

    async def held(id: str) -> tuple[list[str], list[str], int]:
        name = f"customers/{id}"
        contracts = await crm.care.ListContracts(care_pb2.ListContractsRequest(parent=name))
        used = await crm.care.ListUsage(care_pb2.ListUsageRequest(parent=name))
        tasks = await crm.care.ListCareTasks(care_pb2.ListCareTasksRequest(customer=name))
        merges = await crm.customers.ListMerges(customers_pb2.ListMergesRequest(customer=name))
        assert not tasks.care_tasks
        ids = [contract.name.rpartition("/")[2] for contract in contracts.contracts]
        return ids, sorted(record.metric for record in used.usage_records), len(merges.merges)

    assert await held("a") == (["of-a", "of-b"], ["of_a", "of_b"], 1)
    assert await held("b") == await held("a"), "the survivor's, as on the timeline"
    assert await held("deleted") == (["of-deleted"], ["of_deleted"], 0), "what is there when it comes back"
    assert await held("erased") == ([], [], 0)
    for call in (
        crm.care.ListContracts(care_pb2.ListContractsRequest(parent="customers/nobody")),
        crm.care.ListUsage(care_pb2.ListUsageRequest(parent="customers/nobody")),
        crm.care.ListCareTasks(care_pb2.ListCareTasksRequest(customer="customers/nobody")),
        crm.customers.ListMerges(customers_pb2.ListMergesRequest(customer="customers/nobody")),
    ):
        error = await refused(call, "NOT_FOUND")
        assert "customers/nobody" in str(error.details())


async def test_what_is_written_as_its_customer_goes_follows_it(
    crm: Crm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id in "abc":
        await crm.create(id)
    usage = care_pb2.UsageRecord(customer="customers/c", metric="data_mb", quantity=10)
    usage.period.start_time.FromDatetime(NOW - timedelta(days=27))
    usage.period.end_time.FromDatetime(NOW)
    contracts, ask = crm.app.contracts, MongoStore.customer

    def going(go: Callable[[], Any]) -> None:
        """The customer goes right after it was looked at."""

        def looked(store: MongoStore, id: str) -> Any:
            found = ask(store, id)
            monkeypatch.setattr(MongoStore, "customer", ask)
            go()
            return found

        monkeypatch.setattr(MongoStore, "customer", looked)

    going(lambda: crm.app.merges.request(MergeWish(survivor="a", absorbed=("b",)), "amy"))
    contracts.create("b", "k1", {"product": "p", "state": "ACTIVE"})
    assert [raw["_id"] for raw in contracts.page("a", None, 9)] == ["b|k1"]
    going(lambda: crm.app.erasures.erase("c", "asked for it", "dpo"))
    contracts.record_usage([care_servicer.usage_in(usage, 0)])
    assert contracts.usage("c", "", None, 9) == []


async def test_why_usage_is_refused_is_told_in_the_callers_language(crm: Crm) -> None:
    await crm.create("li")
    sent = [
        care_pb2.UsageRecord(customer="customers/nobody", metric="x"),
        care_pb2.UsageRecord(customer="customers/li", metric="X"),
        care_pb2.UsageRecord(customer="customers/li", metric="x"),
        care_pb2.UsageRecord(customer="customers/li", metric="x", quantity=-1),
    ]
    sent[3].period.start_time.FromDatetime(NOW)
    sent[3].period.end_time.FromDatetime(NOW + timedelta(days=3))
    asked = care_pb2.RecordUsageRequest(usage_records=sent)
    english = await crm.care.RecordUsage(asked)
    assert english.failures == [
        "0: customer: does not exist or is not active",
        "1: metric: must be 1 to 64 of a-z, 0-9 and _",
        "2: period: must have a start and a later end",
        "3: quantity: must not be negative",
    ]
    chinese = await crm.care.RecordUsage(asked, metadata=(("accept-language", "zh"),))
    where = [text.rpartition(": ")[0] for text in english.failures]
    assert [text.rpartition(": ")[0] for text in chinese.failures] == where
    assert all(is_chinese(text) for text in chinese.failures), chinese.failures


async def test_rules_raise_each_occasion_once_and_agents_see_it(crm: Crm) -> None:
    await crm.create(
        "li",
        phone_numbers=[customers_pb2.PhoneNumber(number="13800000001")],
        birth_date={"year": 1990, "month": 3, "day": 3},
    )
    contract = care_pb2.Contract(product="5g-199", title="5G套餐")
    contract.end_time.FromDatetime(NOW + timedelta(days=20))
    contract.balance.CopyFrom(common_pb2.Money(currency_code="CNY", amount="3.50"))
    created = await crm.care.CreateContract(
        care_pb2.CreateContractRequest(parent="customers/li", contract=contract, contract_id="k1")
    )
    usage = care_pb2.UsageRecord(customer="customers/li", metric="data_mb", quantity=10, allowance=1000)
    usage.period.start_time.FromDatetime(NOW - timedelta(days=27))
    usage.period.end_time.FromDatetime(NOW + timedelta(days=3))
    bad = care_pb2.UsageRecord(customer="customers/nobody", metric="x")
    told = await crm.care.RecordUsage(care_pb2.RecordUsageRequest(usage_records=[usage, bad]))
    assert told.recorded_count == 1 and told.failures == ["1: customer: does not exist or is not active"]
    crm.app.care.ensure_defaults()
    preview = await crm.care.PreviewCareTasks(care_pb2.PreviewCareTasksRequest(customer="customers/li"))
    kinds = ["BIRTHDAY", "CONTRACT_EXPIRES", "LOW_BALANCE", "UNUSED_ALLOWANCE"]
    assert sorted(task.kind for task in preview.care_tasks) == kinds
    assert crm.app.care.run() == 4 and crm.app.care.run() == 0, "an occasion is raised once"
    seen = await crm.pops.GetScreenPop(screen_pop_pb2.GetScreenPopRequest(phone_number="13800000001"))
    assert sorted(reminder.kind for reminder in seen.care) == kinds and not seen.missing
    tasks = (await crm.care.ListCareTasks(care_pb2.ListCareTasksRequest(customer="customers/li"))).care_tasks
    closed = await crm.care.CloseCareTask(care_pb2.CloseCareTaskRequest(name=tasks[0].name, outcome="祝福"))
    assert closed.state == care_pb2.CareTask.STATE_DONE
    await refused(
        crm.care.CloseCareTask(care_pb2.CloseCareTaskRequest(name=tasks[0].name, dismissed=True)),
        "CARE_TASK_CLOSED",
    )
    snoozed = care_pb2.SnoozeCareTaskRequest(name=tasks[-1].name)
    snoozed.snooze_time.FromDatetime(NOW + timedelta(days=1))
    put_off = await crm.care.SnoozeCareTask(snoozed)
    assert put_off.state == care_pb2.CareTask.STATE_SNOOZED and crm.app.care.run() == 0
    crm.clock.advance(86_401)
    crm.app.care.run()
    woken = await crm.care.GetCareTask(care_pb2.GetCareTaskRequest(name=tasks[-1].name))
    assert woken.state == care_pb2.CareTask.STATE_OPEN
    created.title = "改名"
    mask = FieldMask(paths=["title"])
    renamed = await crm.care.UpdateContract(
        care_pb2.UpdateContractRequest(contract=created, update_mask=mask)
    )
    assert renamed.title == "改名" and renamed.balance.amount == "3.50"
    crm.clock.advance(40 * 86_400)
    crm.app.care.run()
    left = await crm.care.ListCareTasks(care_pb2.ListCareTasksRequest(customer="customers/li"))
    assert "CONTRACT_EXPIRES" not in [task.kind for task in left.care_tasks], "stale tasks expire"


async def test_who_wants_to_leave_scores_high_with_reasons(crm: Crm) -> None:
    await crm.create("li", phone_numbers=[customers_pb2.PhoneNumber(number="13800000001")])
    name = "customers/li/churnRisk"
    calm = await crm.care.GetChurnRisk(care_pb2.GetChurnRiskRequest(name=name))
    assert calm.score == 0.0 and not calm.reasons
    flagged = await crm.care.FlagLeaveIntent(
        care_pb2.FlagLeaveIntentRequest(customer="customers/li", wants_to_leave=True)
    )
    assert flagged.score >= 0.7 and [r.code for r in flagged.reasons] == ["WANTS_TO_LEAVE"]
    listed = await crm.care.ListChurnRisks(care_pb2.ListChurnRisksRequest(wants_to_leave=True))
    assert [risk.name for risk in listed.churn_risks] == [name]
    seen = await crm.pops.GetScreenPop(screen_pop_pb2.GetScreenPopRequest(customer="customers/li"))
    assert seen.churn.wants_to_leave and seen.churn.reasons[0]
    crm.clock.advance(1)
    back = await crm.care.FlagLeaveIntent(care_pb2.FlagLeaveIntentRequest(customer="customers/li"))
    assert not back.wants_to_leave and back.score == 0.0 and not back.reasons


def tell_a_day(crm: Crm, begin_ms: int) -> int:
    """A day of twelve towns' calls, one town complaining more than the others and more than in the 28 days
    before, and what three callers said of it; how many of all that are contacts of the day.
    """
    n = 0

    def call(town: int, reason: str, at_ms: int) -> None:
        nonlocal n
        n += 1
        values = {"state": "COMPLETED", "customer": f"t{town}", "resolved": True, "talk_ms": 60_000}
        told = {**values, "contact_reason": reason, "agent": "agents/a1", "product": "5g", "partner": "acme"}
        kind = InteractionKind.CALL
        for facet in ("ended", "wrapped"):
            crm.app.memory.apply(
                Fact(
                    kind=kind,
                    source="routing",
                    source_id=f"k{n}",
                    facet=facet,
                    stamp=(1, 1, 1, 1),
                    values=told,
                    began_ms=at_ms,
                )
            )

    for town in range(12):
        for _ in range(6):
            call(town, "bills", begin_ms + 1000 * n)
        call(town, "complaint/network", begin_ms + 1000 * n)
    for _ in range(22):
        call(5, "complaint/network", begin_ms + 1000 * n)
    for day in range(1, 29):
        call(day % 12, "complaint/network", begin_ms - day * DAY_MS)
    said: list[tuple[InteractionKind, str, dict[str, Any]]] = [
        (InteractionKind.SURVEY, "record", {"satisfaction": 5, "call_id": "k1"}),
        (InteractionKind.SURVEY, "record", {"satisfaction": 1, "call_id": "k2"}),
        (InteractionKind.TICKET, "snapshot", {"kind": "COMPLAINT", "call_id": "k3"}),
        (InteractionKind.TICKET, "snapshot", {"kind": "COMPLAINT", "agent": "agents/back-office"}),
    ]
    for kind, facet, spoken in said:
        crm.app.memory.apply(
            Fact(
                kind=kind,
                source="tickets",
                source_id=str(spoken.get("call_id")),
                facet=facet,
                stamp=(1,),
                values=spoken,
                began_ms=begin_ms,
            )
        )
    return 12 * 7 + 22 + len(said)


async def test_who_cannot_be_scored_keeps_nobody_waiting(crm: Crm, monkeypatch: pytest.MonkeyPatch) -> None:
    score, ids = Retention.score, [f"c{n}" for n in range(7)]

    def scored(self: Retention, customer: str) -> Churn:
        if customer in ids[:4]:
            raise Unavailable(why="always", retry_seconds=0.1)
        return score(self, customer)

    monkeypatch.setattr(care_handlers, "CHURN_BATCH", 2)
    monkeypatch.setattr(Retention, "score", scored)
    for id in ids:
        crm.app.memory.mark_churn(id)
    assert crm.app.retention.rescore() == 7
    left = documents.ChurnDocument._get_collection().find({"dirty_ms": {"$exists": True}}, {"_id": 1})
    assert sorted(raw["_id"] for raw in left) == ids[:4]


async def test_a_reason_with_a_live_one_below_it_stays_however_many_are_retired(crm: Crm) -> None:
    made = {"version": 1, "labels": {}, "complaint": False}
    nodes = [{"_id": f"n{n}", "path": f"a/{n:03}", "retired": n < 100, **made} for n in range(101)]
    voice.ReasonDocument._get_collection().insert_many([{"_id": "a", "path": "a", **made}, *nodes])
    gone = insights_pb2.DeleteContactReasonRequest(name="contactReasons/a")
    await refused(crm.insights.DeleteContactReason(gone), "HAS_CHILDREN")
    last = insights_pb2.DeleteContactReasonRequest(name="contactReasons/n100")
    await crm.insights.DeleteContactReason(last)
    assert (await crm.insights.DeleteContactReason(gone)).retired


async def test_the_report_finds_a_rising_topic_and_a_planted_place(crm: Crm) -> None:
    reason = insights_pb2.ContactReason(path="complaint", complaint=True, labels={"zh": "投诉"})
    reason.minute_cost.CopyFrom(common_pb2.Money(currency_code="CNY", amount="1.20"))
    await crm.insights.CreateContactReason(
        insights_pb2.CreateContactReasonRequest(contact_reason=reason, contact_reason_id="complaint")
    )
    await refused(
        crm.insights.CreateContactReason(insights_pb2.CreateContactReasonRequest(contact_reason=reason)),
        "ALREADY_EXISTS",
    )
    begin_ms = to_ms(NOW) - DAY_MS
    for town in range(12):
        place = customers_pb2.PostalAddress(township=f"街道{town}")
        place.location.latitude, place.location.longitude = 22.5 + town * 0.02, 114.0
        await crm.create(f"t{town}", addresses=[place])
    told = tell_a_day(crm, begin_ms)
    scope = insights_pb2.InsightScope()
    scope.interval.start_time.FromMilliseconds(begin_ms)
    scope.interval.end_time.FromMilliseconds(begin_ms + DAY_MS)
    report = await crm.insights.GetVoiceReport(insights_pb2.GetVoiceReportRequest(scope=scope))
    assert report.interactions == told
    rising = {topic.contact_reason: topic for topic in report.hot_topics}
    assert rising["complaint/network"].p_value <= 1 / 29 + 1e-4 and rising["complaint"].observed == 34
    assert rising["complaint/network"].expected == pytest.approx(1.0)
    assert list(rising["complaint"].products) == ["5g"]
    assert list(report.hot_spots[0].places) == ["街道5"] and report.hot_spots[0].p_value <= 0.05
    assert list(report.hot_spots[0].products) == ["5g"] and list(report.hot_spots[0].partners) == ["acme"]
    [agent] = report.agent_feedback
    assert agent.agent == "agents/a1" and agent.interactions == 12 * 7 + 22
    assert (agent.praises, agent.complaints, agent.satisfaction_mean) == (1, 2, 3.0)
    stats = {r.contact_reason: r for r in report.reason_stats}
    assert stats["bills"].calls == 72 and stats["bills"].repeat_call_ratio == pytest.approx(60 / 72)
    assert stats["bills"].first_call_resolution_ratio == pytest.approx(12 / 72), "the last of each town's"
    network = stats["complaint/network"]
    assert (network.cost.amount, network.cost_per_call.amount) == ("40.80", "1.20"), "34 minutes at 1.20"
    assert network.cost.currency_code == "CNY" and not stats["bills"].HasField("cost")
    no_interval = insights_pb2.ListHotTopicsRequest(scope=insights_pb2.InsightScope())
    await refused(crm.insights.ListHotTopics(no_interval), "INVALID_ARGUMENT")


class Partner(http.server.BaseHTTPRequestHandler):
    """A partner's server."""

    got: list[tuple[dict[str, str], bytes]]
    answer = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).got.append((dict(self.headers), body))
        self.send_response(type(self).answer)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def partner() -> Iterator[tuple[str, type[Partner]]]:
    Partner.got, Partner.answer = [], 200
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Partner)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", Partner
    server.shutdown()
    server.server_close()
    thread.join()


async def test_a_webhook_is_signed_retried_and_replayed(crm: Crm, partner: tuple[str, type[Partner]]) -> None:
    url, server = partner
    kind = "callmesh.crm.v1.CustomerCreated"
    hook = webhooks_pb2.Webhook(url=url, event_types=[kind], enabled=True)
    created = await crm.webhooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(webhook=hook))
    assert created.secret.startswith("whsec_")
    read = await crm.webhooks.GetWebhook(webhooks_pb2.GetWebhookRequest(name=created.name))
    assert not read.secret
    hooks = crm.app.webhooks
    now_ms = 1_800_000_000_000
    hooks._now_ms = lambda: now_ms
    event = Event(id="e1", source="crm", type=kind, subject="customers/a", time=NOW, data={"actor": "amy"})
    assert hooks.offer_all([event]) == 1 and hooks.offer_all([event]) == 1
    server.answer = 503
    assert hooks.deliver() == 1 and hooks.deliver() == 0, "tried once, then put off"
    server.answer = 200
    now_ms += 11_000
    assert hooks.deliver() == 1
    assert len(server.got) == 2
    headers, body = server.got[1]
    stamp, _, mac = headers["Callmesh-Signature"].partition(",v1=")
    expected = hmac.new(created.secret.encode(), stamp[2:].encode() + b"." + body, hashlib.sha256)
    assert mac == expected.hexdigest() and json.loads(body)["data"] == {"actor": "amy"}
    listed = await crm.webhooks.ListWebhookDeliveries(
        webhooks_pb2.ListWebhookDeliveriesRequest(parent=created.name)
    )
    [delivery] = listed.webhook_deliveries
    assert delivery.state == webhooks_pb2.WebhookDelivery.STATE_DELIVERED and delivery.attempt_count == 2
    replay = webhooks_pb2.ReplayWebhookDeliveriesRequest(name=created.name)
    replay.start_time.FromMilliseconds(1_700_000_000_000)
    assert (await crm.webhooks.ReplayWebhookDeliveries(replay)).replayed_count == 1
    assert hooks.deliver() == 1 and len(server.got) == 3
    await crm.webhooks.RotateWebhookSecret(webhooks_pb2.RotateWebhookSecretRequest(name=created.name))
    tested = await crm.webhooks.TestWebhook(webhooks_pb2.TestWebhookRequest(name=created.name))
    assert tested.last_status == 200
    assert server.got[-1][0]["Callmesh-Signature"].count("v1=") == 2, "the old secret signs too for a day"
    await crm.webhooks.RotateWebhookSecret(webhooks_pb2.RotateWebhookSecretRequest(name=created.name))
    await crm.webhooks.TestWebhook(webhooks_pb2.TestWebhookRequest(name=created.name))
    signed = server.got[-1][0]["Callmesh-Signature"]
    keyed = hmac.new(
        created.secret.encode(), signed[2:12].encode() + b"." + server.got[-1][1], hashlib.sha256
    )
    assert signed.count("v1=") == 3 and keyed.hexdigest() in signed, "its day is not over"
    bad = webhooks_pb2.Webhook(url="ftp://x", event_types=[kind])
    await refused(
        crm.webhooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(webhook=bad)), "INVALID_ARGUMENT"
    )


async def test_a_partner_who_does_not_answer_holds_nobody_up(
    crm: Crm, partner: tuple[str, type[Partner]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crm.webhooks.ROUNDS_SECONDS_MAX", 300.0)  # a busy machine is no slow partner
    url, server = partner
    kind, now_ms = "callmesh.routing.v1.CallEnded", 1_800_000_000_000
    made = []
    for target in ("http://127.0.0.1:9/closed", url):
        hook = webhooks_pb2.Webhook(url=target, event_types=[kind], enabled=True)
        made.append(await crm.webhooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(webhook=hook)))
    hooks = crm.app.webhooks
    hooks._now_ms = lambda: now_ms
    calls = [
        Event(id=f"e{n}", source="routing", type=kind, subject=f"calls/k{n}", time=NOW, data={})
        for n in range(60)
    ]
    assert hooks.offer_all(calls) == 120
    assert hooks.deliver() == 61, "everything that can be, and one try of what cannot"
    assert sorted(headers["Callmesh-Event-Id"] for headers, _ in server.got) == sorted(e.id for e in calls)
    waiting = hooks.deliveries(made[0].name.partition("/")[2], "PENDING", None, 99)
    assert sorted(delivery["attempts"] for delivery in waiting) == [0] * 59 + [1]
    for pause_ms, tried in ((9_000, 0), (1_000, 1), (19_000, 0), (1_000, 1)):
        now_ms += pause_ms
        assert hooks.deliver() == tried, "it rests the longer the more failed in a row"
    await crm.create("li", phone_numbers=[customers_pb2.PhoneNumber(number="13800000001")])
    values = {"number": "+8613800000001", "state": "COMPLETED"}
    crm.app.memory.apply(
        Fact(
            kind=InteractionKind.CALL,
            source="routing",
            source_id="k7",
            facet="ended",
            stamp=(1, 1, 1, 1),
            values=values,
            began_ms=1,
        )
    )
    await crm.customers.EraseCustomer(
        customers_pb2.EraseCustomerRequest(name="customers/li", reason="ticket 4711")
    )
    for hook in made:
        left = hooks.deliveries(hook.name.partition("/")[2], "", None, 99)
        assert {d["event_id"] for d in left} == {e.id for e in calls} - {"e7"}, "nothing of the erased waits"


async def test_what_waits_for_a_disabled_webhook_goes_out_as_soon_as_it_is_enabled(
    crm: Crm, partner: tuple[str, type[Partner]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, server = partner
    kind, hooks = "callmesh.routing.v1.CallEnded", crm.app.webhooks
    monkeypatch.setattr("crm.webhooks.CACHE_SECONDS", 0.0)
    hook = webhooks_pb2.Webhook(url=url, event_types=[kind], enabled=True)
    hook = await crm.webhooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(webhook=hook))
    assert hooks.offer_all(
        [Event(id="e1", source="routing", type=kind, subject="calls/k", time=NOW, data={})]
    )
    mask = FieldMask(paths=["enabled"])
    for enabled, tried in ((False, 0), (True, 1)):
        hook.enabled = enabled
        hook.etag = ""
        await crm.webhooks.UpdateWebhook(webhooks_pb2.UpdateWebhookRequest(webhook=hook, update_mask=mask))
        assert hooks.deliver() == tried == len(server.got)
    monkeypatch.setattr("crm.webhooks.WEBHOOKS_MAX", 1)
    await refused(
        crm.webhooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(webhook=hook)), "RESOURCE_EXHAUSTED"
    )
    crm.app.care.ensure_defaults()
    monkeypatch.setattr("crm.care.RULES_MAX", 5)
    rule = care_pb2.CareRule(title="x", trigger=care_pb2.CareRule.TRIGGER_BIRTHDAY)
    await refused(
        crm.care.CreateCareRule(care_pb2.CreateCareRuleRequest(care_rule=rule)), "RESOURCE_EXHAUSTED"
    )


async def test_a_slow_partner_with_much_to_send_hides_nobody(
    crm: Crm, partner: tuple[str, type[Partner]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, server = partner
    kinds = ("callmesh.routing.v1.CallEnded", "callmesh.routing.v1.CallQueued")
    made = []
    for kind in kinds:
        hook = webhooks_pb2.Webhook(url=url, event_types=[kind], enabled=True)
        made.append(await crm.webhooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(webhook=hook)))
    hooks = crm.app.webhooks
    for n, kind in enumerate([kinds[0]] * 12 + [kinds[1]]):
        hooks._now_ms = lambda n=n: 1_800_000_000_000 + n
        event = Event(id=f"e{n}", source="routing", type=kind, subject=f"calls/k{n}", time=NOW, data={})
        assert hooks.offer_all([event]) == 1
    monkeypatch.setattr("crm.webhooks.WEBHOOK_ROUND_DELIVERIES", 5)
    # As if the first answer had taken all the time that there is.
    monkeypatch.setattr("crm.webhooks.ROUNDS_SECONDS_MAX", 0.0)
    assert hooks.deliver() == 2
    assert sorted(headers["Callmesh-Event-Id"] for headers, _ in server.got) == ["e0", "e12"]
    # Nor is more than so much of it sent again at once.
    monkeypatch.setattr("crm.webhooks.ROUNDS_SECONDS_MAX", 300.0)
    assert hooks.deliver() == 11
    monkeypatch.setattr("crm.webhooks.REPLAY_MAX", 5)
    monkeypatch.setattr("crm.webhooks.REPLAY_BATCH", 2)
    slow = made[0].name.partition("/")[2]
    assert hooks.replay(slow, 1_800_000_000_000, 1_800_000_000_012, False) == 5
    waiting = hooks.deliveries(slow, "PENDING", None, 99)
    assert sorted(delivery["event_id"] for delivery in waiting) == [f"e{n}" for n in range(5)]
    assert hooks.replay(slow, 1_800_000_000_000, 1_800_000_000_012, False) == 5, "the next ones"


async def test_a_webhook_is_given_up_after_three_days_and_what_failed_is_replayed(
    crm: Crm, partner: tuple[str, type[Partner]]
) -> None:
    url, server = partner
    kind = "callmesh.crm.v1.CustomerCreated"
    hook = webhooks_pb2.Webhook(url=url, event_types=[kind], enabled=True)
    created = await crm.webhooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(webhook=hook))
    hooks, began_ms = crm.app.webhooks, 1_800_000_000_000
    now_ms = began_ms
    hooks._now_ms = lambda: now_ms
    event = Event(id="e1", source="crm", type=kind, subject="customers/a", time=NOW, data={"actor": "amy"})
    hooks.offer_all([event])
    server.answer, waits = 503, []
    while True:
        before_ms = now_ms
        assert hooks.deliver() == 1
        [delivery] = hooks.deliveries(created.name.partition("/")[2], "", None, 9)
        if delivery["state"] != "PENDING":
            break
        now_ms = delivery["next_ms"]
        waits.append((now_ms - before_ms) // 1000)
    assert delivery["state"] == "FAILED" and waits[:4] == [10, 20, 40, 80] and max(waits) == 6 * 3600
    assert 66 * 3_600_000 < now_ms - began_ms <= 72 * 3_600_000 and len(server.got) == len(waits) + 1
    assert hooks.deliver() == 0, "nobody tries on"
    server.answer = 200
    now_ms += 24 * 3_600_000
    replay = webhooks_pb2.ReplayWebhookDeliveriesRequest(name=created.name, failed_only=True)
    replay.start_time.FromMilliseconds(began_ms - 1)
    for replayed in (1, 0):
        done = await crm.webhooks.ReplayWebhookDeliveries(replay)
        assert done.replayed_count == replayed
        hooks.deliver()
    [delivery] = hooks.deliveries(created.name.partition("/")[2], "", None, 9)
    assert delivery["state"] == "DELIVERED" and delivery["attempts"] == 1
    assert len({headers["Callmesh-Event-Id"] for headers, _ in server.got}) == 1, "always the same event"
