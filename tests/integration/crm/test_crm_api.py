"""The gRPC API on a real server and a real MongoDB: what a partner sees."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import (
    care_pb2_grpc,
    customers_pb2,
    customers_pb2_grpc,
    events_pb2,
    screen_pop_pb2,
    screen_pop_pb2_grpc,
    timeline_pb2,
    timeline_pb2_grpc,
)
from callmesh.marketing.v1 import events_pb2 as marketing_events
from callmesh.marketing.v1 import types_pb2 as marketing_types
from callmesh.routing.v1 import call_pb2
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.tickets.v1 import events_pb2 as tickets_events
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus import Event
from chassis.client import channel
from chassis.grpc_status import detail_messages, error_info
from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from chassis.server import ServiceBinding
from chassis.testing import FakeClock
from chassis.testing.grpc import GrpcServerFactory
from crm import inbound
from crm.app import compose
from crm.collections import ALL_DOCUMENTS
from crm.config import CrmSettings
from crm.handlers import Memory
from crm.model import RecentCalls
from crm.scopes import SCOPES
from crm.servicer import bindings
from crm.store import MongoReads, MongoStore

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_scanned")]

#: 10:42 in Shanghai.
NOW = datetime(2026, 3, 2, 2, 42, tzinfo=UTC)


class StumblingReads(MongoReads):
    """Reads that fail, or never answer, where a test says so."""

    def __init__(self, database: Any) -> None:
        super().__init__(database)
        self.broken: set[str] = set()
        self.stuck: set[str] = set()

    async def _stumble(self, what: str) -> None:
        if what in self.broken:
            raise RuntimeError(f"{what} is broken")
        if what in self.stuck:
            await asyncio.Event().wait()

    async def owner(self, claim: str) -> Any:
        await self._stumble("owner")
        return await super().owner(claim)

    async def recent_calls(self, *args: Any) -> RecentCalls:
        await self._stumble("calls")
        return await super().recent_calls(*args)

    async def open_tickets(self, *args: Any) -> Any:
        await self._stumble("tickets")
        return await super().open_tickets(*args)

    async def rankings(self, *args: Any) -> Any:
        await self._stumble("offers")
        return await super().rankings(*args)

    async def glance(self, *args: Any) -> Any:
        for part in ("calls", "tickets", "offers"):
            await self._stumble(part)
        return await super().glance(*args)


@dataclass
class Crm:
    """A running server and what a test drives it with."""

    customers: customers_pb2_grpc.CustomerServiceStub
    timeline: timeline_pb2_grpc.TimelineServiceStub
    pops: screen_pop_pb2_grpc.ScreenPopServiceStub
    care: care_pb2_grpc.CareServiceStub
    memory: Memory
    reads: StumblingReads
    clock: FakeClock
    database: Any

    async def create(self, id: str = "", number: str = "", **fields: Any) -> customers_pb2.Customer:
        message = customers_pb2.Customer(display_name=f"客户 {id}", **fields)
        if number:
            message.phone_numbers.add(number=number)
        request = customers_pb2.CreateCustomerRequest(customer=message, customer_id=id)
        return await self.customers.CreateCustomer(request)

    async def events(self, name: str) -> list[Event]:
        """What waits in a customer's outbox."""
        raw = await self.database.customers.find_one({"_id": name.rpartition("/")[2]})
        return [Event.from_json(item["event"]) for item in raw["outbox"]]


@pytest_asyncio.fixture
async def crm(mongo_uri: str, mongo_database: str, grpc_server: GrpcServerFactory) -> AsyncIterator[Crm]:
    # Whole answers are compared, also on a machine that has something else to do.
    settings = CrmSettings(mongo_uri=mongo_uri, mongo_database=mongo_database, screen_pop_ms=10_000)
    connect(settings)
    ensure_indexes(ALL_DOCUMENTS)
    database = async_database(settings)
    clock, policy, store = FakeClock(NOW), settings.policy(), MongoStore()
    reads = StumblingReads(database)
    app = compose(store, reads, clock, policy)
    parts = bindings(app)
    server = await grpc_server([ServiceBinding(*part) for part in parts], scopes=SCOPES)
    line = channel(server.address)
    yield Crm(
        customers=customers_pb2_grpc.CustomerServiceStub(line),
        timeline=timeline_pb2_grpc.TimelineServiceStub(line),
        pops=screen_pop_pb2_grpc.ScreenPopServiceStub(line),
        care=care_pb2_grpc.CareServiceStub(line),
        memory=app.memory,
        reads=reads,
        clock=clock,
        database=database,
    )
    await line.close()
    await database.client.close()
    disconnect()


async def refused(call: Any, code: str, reason: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code().name == code, caught.value.details()
    info = error_info(caught.value)
    assert info is not None and info.reason == reason
    return caught.value


def bad_fields(error: grpc.aio.AioRpcError) -> set[str]:
    (bad,) = detail_messages(error, error_details_pb2.BadRequest)
    return {violation.field for violation in bad.field_violations}


async def test_a_customer_is_created_found_by_anything_and_told_of(crm: Crm) -> None:
    made = await crm.create(
        "li",
        "138 0000 0001",
        tier=customers_pb2.TIER_VIP,
        email_addresses=[customers_pb2.EmailAddress(address="Li@Example.com")],
        external_ids=[customers_pb2.ExternalId(system="billing", id="4711")],
        tags=["vip", "vip"],
    )
    assert made.name == "customers/li" and made.etag == "v1" and made.creator == "local"
    assert made.phone_numbers[0].number == "+8613800000001" and list(made.tags) == ["vip"]
    get = await crm.customers.GetCustomer(customers_pb2.GetCustomerRequest(name=made.name))
    assert get == made
    for key in (
        {"phone_number": "+86 (138) 0000-0001"},
        {"phone_number": "０１３８０００００００１"},
        {"email_address": " li@EXAMPLE.COM"},
        {"external_id": customers_pb2.ExternalId(system="billing", id="4711")},
    ):
        assert await crm.customers.LookupCustomer(customers_pb2.LookupCustomerRequest(**key)) == made
    (event,) = await crm.events(made.name)
    told = event.message(events_pb2.CustomerCreated)
    assert event.subject == "customers/li" and told.customer.version == 1
    assert list(told.customer.numbers) == ["+8613800000001"] and told.customer.tier == customers_pb2.TIER_VIP


async def test_looking_up_nobody(crm: Crm) -> None:
    lookup = crm.customers.LookupCustomer
    request = customers_pb2.LookupCustomerRequest
    await refused(lookup(request(phone_number="13800000009")), "NOT_FOUND", "NOT_FOUND")
    for bad, field in (
        (request(), "key"),
        (request(phone_number="{$gt: 1}"), "phone_number"),
        (request(phone_number="13800000009", default_country="XX"), "default_country"),
        (request(email_address="x"), "email_address"),
        (request(external_id=customers_pb2.ExternalId(system="$where", id="1")), "external_id.system"),
    ):
        error = await refused(lookup(bad), "INVALID_ARGUMENT", "INVALID_ARGUMENT")
        assert bad_fields(error) == {field}
    get = crm.customers.GetCustomer
    await refused(get(customers_pb2.GetCustomerRequest(name="customers/x")), "NOT_FOUND", "NOT_FOUND")
    await refused(
        get(customers_pb2.GetCustomerRequest(name="people/x")), "INVALID_ARGUMENT", "INVALID_ARGUMENT"
    )


async def test_bad_input_names_every_field_and_writes_nothing(crm: Crm) -> None:
    error = await refused(
        crm.create("bad", "12", language="?", tags=["x" * 65], notes="n" * 10_001),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
    )
    assert bad_fields(error) == {
        "customer.phone_numbers[0].number",
        "customer.language",
        "customer.tags[0]",
        "customer.notes",
    }
    for id in ("x" * 129, "a b", "a/b", "a\x00", "$where"):
        error = await refused(crm.create(id), "INVALID_ARGUMENT", "INVALID_ARGUMENT")
        assert bad_fields(error) == {"customer_id"}
    error = await refused(crm.create("x", tier=99), "INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert bad_fields(error) == {"customer.tier"}
    error = await refused(crm.create("x", company="customers/none"), "INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert bad_fields(error) == {"customer.company"}
    custom = {"colour": customers_pb2.CustomValue(text="red")}
    error = await refused(crm.create("x", custom_values=custom), "INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert bad_fields(error) == {"customer.custom_values.colour"}
    error = await refused(crm.create("x", notes="é" * 5_000_000), "INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert bad_fields(error) == {"customer.notes"}
    assert await crm.database.customers.count_documents({}) == 0


async def test_two_customers_claiming_one_number(crm: Crm) -> None:
    await crm.create("a", "13800000001")
    error = await refused(crm.create("b", "+86 138 0000 0001"), "ALREADY_EXISTS", "CLAIM_TAKEN")
    info = error_info(error)
    assert info is not None and info.metadata["owner"] == "customers/a"
    assert info.metadata["field"] == "customer.phone_numbers[0].number"
    await refused(crm.create("a"), "ALREADY_EXISTS", "ALREADY_EXISTS")
    outcomes = await asyncio.gather(
        *(crm.create(f"n{index}", "13800000002") for index in range(8)), return_exceptions=True
    )
    assert sum(isinstance(outcome, customers_pb2.Customer) for outcome in outcomes) == 1


async def test_a_request_may_be_repeated(crm: Crm) -> None:
    request = customers_pb2.CreateCustomerRequest(
        customer=customers_pb2.Customer(display_name="A"), request_id=str(uuid.uuid4())
    )
    first, second = await asyncio.gather(
        crm.customers.CreateCustomer(request), crm.customers.CreateCustomer(request)
    )
    assert first == second and await crm.customers.CreateCustomer(request) == first
    request.customer.display_name = "B"
    error = await refused(crm.customers.CreateCustomer(request), "INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert bad_fields(error) == {"request_id"}
    request.request_id = "7"
    await refused(crm.customers.CreateCustomer(request), "INVALID_ARGUMENT", "INVALID_ARGUMENT")


async def test_validate_only_checks_everything_and_stores_nothing(crm: Crm) -> None:
    await crm.create("a", "13800000001")
    request = customers_pb2.CreateCustomerRequest(
        customer=customers_pb2.Customer(display_name="B"), customer_id="b", validate_only=True
    )
    request.customer.phone_numbers.add(number="13800000002")
    answer = await crm.customers.CreateCustomer(request)
    assert answer.name == "customers/b"
    request.customer.phone_numbers[0].number = "13800000001"
    await refused(crm.customers.CreateCustomer(request), "ALREADY_EXISTS", "CLAIM_TAKEN")
    assert await crm.database.customers.count_documents({}) == 1


async def test_an_update_changes_what_the_mask_names(crm: Crm) -> None:
    made = await crm.create("a", "13800000001", tags=["old"])
    crm.clock.advance(60)
    patch = customers_pb2.Customer(name=made.name, etag=made.etag, tier=customers_pb2.TIER_GOLD)
    patch.phone_numbers.add(number="138 0000 0002")
    request = customers_pb2.UpdateCustomerRequest(
        customer=patch, update_mask=FieldMask(paths=["tier", "phone_numbers", "tags"])
    )
    changed = await crm.customers.UpdateCustomer(request)
    assert changed.etag == "v2" and changed.tier == customers_pb2.TIER_GOLD and not changed.tags
    assert (
        changed.display_name == made.display_name
        and changed.update_time.ToDatetime() > made.update_time.ToDatetime()
    )
    updated = (await crm.events(made.name))[1].message(events_pb2.CustomerUpdated)
    assert list(updated.changed_fields) == ["phone_numbers", "tags", "tier"]
    assert list(updated.released_numbers) == ["+8613800000001"] and updated.customer.version == 2
    await refused(crm.customers.UpdateCustomer(request), "ABORTED", "ETAG_MISMATCH")
    lookup = customers_pb2.LookupCustomerRequest(phone_number="13800000001")
    await refused(crm.customers.LookupCustomer(lookup), "NOT_FOUND", "NOT_FOUND")
    same = await crm.customers.UpdateCustomer(
        customers_pb2.UpdateCustomerRequest(
            customer=customers_pb2.Customer(name=made.name, display_name=made.display_name)
        )
    )
    assert same == changed, "a change that changes nothing is no change"


async def test_bad_updates(crm: Crm) -> None:
    made = await crm.create("a", "13800000001")
    await crm.create("b", "13800000002")

    def request(*paths: str, **fields: Any) -> customers_pb2.UpdateCustomerRequest:
        message = customers_pb2.Customer(**{"name": made.name, **fields})
        return customers_pb2.UpdateCustomerRequest(customer=message, update_mask=FieldMask(paths=paths))

    update = crm.customers.UpdateCustomer
    for bad, field in (
        (request("nothing"), "update_mask"),
        (request("kind", kind=2), "update_mask"),
        (request("state"), "update_mask"),
        (request("tier", etag="w1"), "customer.etag"),
        (request("display_name"), "customer.display_name"),
        (request("tier", name="customers/"), "customer.name"),
    ):
        error = await refused(update(bad), "INVALID_ARGUMENT", "INVALID_ARGUMENT")
        assert bad_fields(error) == {field}
    taken = [customers_pb2.PhoneNumber(number="13800000002")]
    await refused(update(request("phone_numbers", phone_numbers=taken)), "ALREADY_EXISTS", "CLAIM_TAKEN")
    await refused(update(request("tier", name="customers/none", tier=2)), "NOT_FOUND", "NOT_FOUND")
    dry = request("tier", tier=customers_pb2.TIER_VIP)
    dry.validate_only = True
    assert (await update(dry)).tier == customers_pb2.TIER_VIP
    assert await crm.customers.GetCustomer(customers_pb2.GetCustomerRequest(name=made.name)) == made


async def test_many_updates_at_once_without_an_etag_all_count(crm: Crm) -> None:
    made = await crm.create("a")

    async def label(index: int) -> None:
        patch = customers_pb2.Customer(name=made.name, notes=f"n{index}")
        await crm.customers.UpdateCustomer(
            customers_pb2.UpdateCustomerRequest(customer=patch, update_mask=FieldMask(paths=["notes"]))
        )

    await asyncio.gather(*(label(index) for index in range(4)))
    audit = await crm.customers.ListAuditEntries(
        customers_pb2.ListAuditEntriesRequest(parent=made.name, page_size=3)
    )
    assert [entry.version for entry in audit.audit_entries] == [5, 4, 3] and audit.next_page_token
    rest = await crm.customers.ListAuditEntries(
        customers_pb2.ListAuditEntriesRequest(parent=made.name, page_size=3, page_token=audit.next_page_token)
    )
    assert [(entry.version, entry.action, entry.actor) for entry in rest.audit_entries] == [
        (2, "UPDATE", "local"),
        (1, "CREATE", "local"),
    ]
    assert rest.audit_entries[0].changes[0].field == "notes"


async def test_a_deleted_customer_frees_its_number_and_can_come_back(crm: Crm) -> None:
    made = await crm.create("a", "13800000001")
    delete = customers_pb2.DeleteCustomerRequest(name=made.name, etag="v9")
    await refused(crm.customers.DeleteCustomer(delete), "ABORTED", "ETAG_MISMATCH")
    delete.etag = made.etag
    gone = await crm.customers.DeleteCustomer(delete)
    assert gone.state == customers_pb2.CUSTOMER_STATE_DELETED and gone.HasField("delete_time")
    again = await crm.customers.DeleteCustomer(customers_pb2.DeleteCustomerRequest(name=made.name))
    assert again == gone
    lookup = customers_pb2.LookupCustomerRequest(phone_number="13800000001")
    await refused(crm.customers.LookupCustomer(lookup), "NOT_FOUND", "NOT_FOUND")
    patch = customers_pb2.UpdateCustomerRequest(customer=customers_pb2.Customer(name=made.name, notes="x"))
    await refused(crm.customers.UpdateCustomer(patch), "FAILED_PRECONDITION", "CUSTOMER_NOT_ACTIVE")
    told = (await crm.events(made.name))[1].message(events_pb2.CustomerDeleted)
    assert list(told.released_numbers) == ["+8613800000001"] and not told.customer.numbers
    back = await crm.customers.UndeleteCustomer(customers_pb2.UndeleteCustomerRequest(name=made.name))
    assert (await crm.customers.LookupCustomer(lookup)) == back
    undelete = customers_pb2.UndeleteCustomerRequest(name=made.name)
    await refused(crm.customers.UndeleteCustomer(undelete), "FAILED_PRECONDITION", "CUSTOMER_NOT_DELETED")
    missing = customers_pb2.DeleteCustomerRequest(name="customers/none", allow_missing=True)
    assert await crm.customers.DeleteCustomer(missing) == customers_pb2.Customer()
    missing.allow_missing = False
    await refused(crm.customers.DeleteCustomer(missing), "NOT_FOUND", "NOT_FOUND")


async def test_a_batch_is_created_entry_by_entry(crm: Crm) -> None:
    await crm.create("taken", "13800000001")
    batch = customers_pb2.BatchCreateCustomersRequest()
    for index in range(20):
        entry = batch.requests.add(customer_id=f"b{index:02}", request_id=str(uuid.uuid4()))
        entry.customer.display_name = f"B {index}"
        entry.customer.phone_numbers.add(number=f"139{index:08}")
    batch.requests[3].customer.phone_numbers[0].number = "13800000001"
    batch.requests[5].customer.display_name = ""
    batch.requests[7].customer_id = "not an id"
    batch.requests[9].validate_only = True
    chinese = {"metadata": (("accept-language", "zh"),)}
    answer = await crm.customers.BatchCreateCustomers(batch, **chinese)
    assert [(f.index, grpc_name(f.status.code)) for f in answer.failures] == [
        (3, "ALREADY_EXISTS"),
        (5, "INVALID_ARGUMENT"),
        (7, "INVALID_ARGUMENT"),
    ]
    told = error_details_pb2.LocalizedMessage()
    texts = [told.message for f in answer.failures for d in f.status.details if d.Unpack(told)]
    assert len(texts) == 3 and texts[:2] == [
        "customer.phone_numbers[0].number：已属于 customers/taken。",
        "customer.display_name：不能为空。",
    ]
    assert len(answer.customers) == 17 and await crm.database.customers.count_documents({}) == 17
    again = await crm.customers.BatchCreateCustomers(batch, **chinese)
    assert again == answer, "repeating a batch answers the same"
    for size in (0, 501):
        many = customers_pb2.BatchCreateCustomersRequest(requests=[batch.requests[0]] * size)
        error = await refused(
            crm.customers.BatchCreateCustomers(many), "INVALID_ARGUMENT", "INVALID_ARGUMENT"
        )
        assert bad_fields(error) == {"requests"}
    names = ["customers/b02", "customers/b01", "customers/b02"]
    got = await crm.customers.BatchGetCustomers(customers_pb2.BatchGetCustomersRequest(names=names))
    assert [customer.name for customer in got.customers] == names
    names.append("customers/none")
    missing = crm.customers.BatchGetCustomers(customers_pb2.BatchGetCustomersRequest(names=names))
    await refused(missing, "NOT_FOUND", "NOT_FOUND")


def grpc_name(code: int) -> str:
    return next(status.name for status in grpc.StatusCode if status.value[0] == code)


async def test_a_list_is_paged_without_gap_or_repetition(crm: Crm) -> None:
    batch = customers_pb2.BatchCreateCustomersRequest()
    for index in range(25):
        entry = batch.requests.add()
        entry.customer.display_name = f"C {index}"
        entry.customer.tags.append("odd" if index % 2 else "even")
    await crm.customers.BatchCreateCustomers(batch)
    request = customers_pb2.ListCustomersRequest(page_size=4)
    request.filter.tag = "odd"
    seen = []
    while True:
        page = await crm.customers.ListCustomers(request)
        seen += [customer.display_name for customer in page.customers]
        assert len(page.customers) <= 4
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        await crm.create("0-before-all", tags=["odd"]) if len(seen) == 4 else None
    assert seen == [f"C {index}" for index in range(1, 25, 2)]
    token = request.page_token
    for bad, field in (
        (customers_pb2.ListCustomersRequest(page_size=-1), "page_size"),
        (customers_pb2.ListCustomersRequest(page_token="garbage"), "page_token"),
        (customers_pb2.ListCustomersRequest(page_size=4, page_token=token), "page_token"),
        (
            customers_pb2.ListCustomersRequest(filter=customers_pb2.CustomerFilter(company="x")),
            "filter.company",
        ),
        (customers_pb2.ListCustomersRequest(filter=customers_pb2.CustomerFilter(tier=77)), "filter.tier"),
    ):
        error = await refused(crm.customers.ListCustomers(bad), "INVALID_ARGUMENT", "INVALID_ARGUMENT")
        assert bad_fields(error) == {field}


# Timeline and screen pop


def ref(call_id: str, number: str, sequence: int) -> routing_events.CallRef:
    return routing_events.CallRef(
        call_id=call_id,
        version=common_pb2.CallVersion(attempt=1, move=1),
        shard="beijing",
        epoch=1,
        sequence=sequence,
        caller_number=number,
        channel=common_pb2.CHANNEL_VOICE,
        queue="queues/bills",
        region="regions/beijing",
        agent="agents/a7",
    )


def past_call(crm: Crm, call_id: str, number: str, at: datetime, *, resolved: bool) -> None:
    """Tells crm of a whole call, its end before its beginning."""
    ended = routing_events.CallEnded(call=ref(call_id, number, 3), outcome=call_pb2.CALL_OUTCOME_COMPLETED)
    wrapped = routing_events.CallWrappedUp(call=ref(call_id, number, 4))
    wrapped.disposition.code = "explained"
    wrapped.disposition.resolved = resolved
    wrapped.disposition.contact_reason = "billing/roaming"
    queued = routing_events.CallQueued(call=ref(call_id, number, 1))
    for message in (ended, wrapped, queued):
        message.event_time.FromDatetime(at)
    ended.queue_time.FromDatetime(at)
    ended.talk.FromSeconds(95)
    for message in (wrapped, ended, queued, ended):
        inbound.learn_message(crm.memory, message)


def ticket_event(
    version: int, phase: int, *, customer: str = "", number: str = ""
) -> tickets_events.TicketUpdated:
    snapshot = tickets_events.TicketSnapshot(
        ticket="tickets/t1",
        kind=ticket_pb2.TICKET_KIND_COMPLAINT,
        state="in_progress",
        phase=phase,
        priority=ticket_pb2.PRIORITY_HIGH,
        subject="漫游费用",
        customer=customer,
        caller_number=number,
        version=version,
    )
    snapshot.create_time.FromDatetime(NOW)
    snapshot.update_time.FromDatetime(NOW)
    snapshot.due_time.FromDatetime(NOW)
    return tickets_events.TicketUpdated(ticket=snapshot)


def ranking(customer: str, *offers: str) -> marketing_events.RecommendationMade:
    message = marketing_events.RecommendationMade(decision="decisions/d1", customer=customer)
    for rank, offer in enumerate(offers, 1):
        made = message.offers.add(offer=f"offers/{offer}", rank=rank, score=10.0 - rank)
        made.titles.add(language="zh", text=f"套餐{offer}")
        made.reason.texts.add(language="zh", text="很多客户选择")
    message.create_time.FromDatetime(NOW)
    return message


def pop(number: str, call_id: str = "live", **more: Any) -> screen_pop_pb2.GetScreenPopRequest:
    return screen_pop_pb2.GetScreenPopRequest(phone_number=number, call_id=call_id, **more)


async def test_a_screen_pop_has_everything_in_one_answer(crm: Crm) -> None:
    number = "+8613800000001"
    made = await crm.create("li", number, language="zh-CN", tier=customers_pb2.TIER_VIP, tags=["vip"])
    morning = datetime(2026, 3, 2, 1, 0, tzinfo=UTC)
    past_call(crm, "yesterday", number, datetime(2026, 3, 1, 15, 0, tzinfo=UTC), resolved=True)
    past_call(crm, "early", number, morning, resolved=True)
    past_call(crm, "late", number, datetime(2026, 3, 2, 2, 40, tzinfo=UTC), resolved=False)
    live = routing_events.CallQueued(call=ref("live", number, 9))
    live.event_time.FromDatetime(NOW)
    opened = ticket_event(1, ticket_pb2.TICKET_PHASE_ACTIVE, customer=made.name)
    for message in (live, opened, ranking(made.name, "a", "b")):
        inbound.learn_message(crm.memory, message)
    crm.clock.advance(120)
    seen = await crm.pops.GetScreenPop(pop("138 0000 0001"))
    assert not seen.missing and seen.phone_number == number and seen.language == "zh"
    assert seen.customer.name == made.name and seen.customer.tier == customers_pb2.TIER_VIP
    assert (seen.call_ordinal_today, seen.earlier_calls_today) == (3, 2)
    assert seen.last_call.call_id == "late" and seen.last_call.outcome == "COMPLETED"
    assert seen.last_call.resolved is False and seen.last_call.talk_duration.seconds == 95
    assert seen.last_call.contact_reason == "billing/roaming"
    assert seen.repeat_call_notice == "今天第3次来电，上次 10:40，未解决"
    assert seen.greeting.startswith("客户 li，早上好，感谢您再次来电")
    (open_ticket,) = seen.open_tickets
    assert seen.open_ticket_count == 1 and open_ticket.overdue
    assert (open_ticket.ticket, open_ticket.kind, open_ticket.priority) == (
        "tickets/t1",
        "COMPLAINT",
        "HIGH",
    )
    assert [(offer.offer, offer.title) for offer in seen.offers] == [
        ("offers/a", "套餐a"),
        ("offers/b", "套餐b"),
    ]
    by_name = await crm.pops.GetScreenPop(pop("", customer=made.name))
    assert by_name.customer == seen.customer and by_name.earlier_calls_today == 2


async def test_what_changed_since_is_seen_at_the_next_call(crm: Crm) -> None:
    made = await crm.create("li", "13800000001")
    for version, phase in ((2, ticket_pb2.TICKET_PHASE_CLOSED), (1, ticket_pb2.TICKET_PHASE_NEW)):
        inbound.learn_message(crm.memory, ticket_event(version, phase, customer=made.name))
    outcome = marketing_events.OfferOutcomeRecorded(
        decision="decisions/d1",
        customer=made.name,
        offer="offers/a",
        result=marketing_types.OUTCOME_RESULT_ACCEPTED,
        declined_offers=["offers/c"],
    )
    outcome.outcome_time.FromDatetime(NOW)
    outcome.titles.add(language="zh", text="套餐a")
    for message in (outcome, ranking(made.name, "a", "b", "c"), outcome):
        inbound.learn_message(crm.memory, message)
    seen = await crm.pops.GetScreenPop(pop("13800000001"))
    assert not seen.open_tickets and [offer.offer for offer in seen.offers] == ["offers/b"]
    listed = await crm.timeline.ListInteractions(
        timeline_pb2.ListInteractionsRequest(customer=made.name, kinds=[timeline_pb2.INTERACTION_KIND_OFFER])
    )
    (offer,) = listed.interactions
    assert (offer.offer.offer, offer.offer.outcome, offer.summary) == ("offers/a", "ACCEPTED", "套餐a")


async def test_an_unknown_or_withheld_number_is_an_answer(crm: Crm) -> None:
    past_call(crm, "one", "+8613800000009", NOW, resolved=False)
    seen = await crm.pops.GetScreenPop(pop("13800000009"))
    assert not seen.HasField("customer") and not seen.missing and seen.call_ordinal_today == 2
    assert seen.greeting.startswith("您好") and seen.phone_number == "+8613800000009"
    withheld = await crm.pops.GetScreenPop(pop(""))
    assert not withheld.HasField("customer") and withheld.call_ordinal_today == 1
    nobody = await crm.pops.GetScreenPop(pop("", customer="customers/none"))
    assert not nobody.HasField("customer")
    for bad, field in (
        (pop("10086"), "phone_number"),
        (pop("13800000009", "x" * 200), "call_id"),
        (pop("13800000009", customer="x"), "customer"),
        (pop("13800000009", default_country="ZZ"), "default_country"),
    ):
        error = await refused(crm.pops.GetScreenPop(bad), "INVALID_ARGUMENT", "INVALID_ARGUMENT")
        assert bad_fields(error) == {field}


async def test_a_part_that_fails_or_is_late_is_named_and_the_rest_is_there(
    crm: Crm, monkeypatch: pytest.MonkeyPatch
) -> None:
    await crm.create("li", "13800000001")
    crm.reads.broken = {"tickets"}
    crm.reads.stuck = {"offers"}
    # A stuck part waits for ever; it costs a share of the caller's deadline. A busy machine has the rest.
    monkeypatch.setattr("crm.handlers.DEADLINE_SHARE", 0.05)
    seen = await crm.pops.GetScreenPop(pop("13800000001"), timeout=30)
    assert list(seen.missing) == [
        screen_pop_pb2.SCREEN_POP_PART_TICKETS,
        screen_pop_pb2.SCREEN_POP_PART_OFFERS,
    ]
    assert seen.customer.name == "customers/li" and seen.call_ordinal_today == 1
    crm.reads.stuck = {"owner"}
    blind = await crm.pops.GetScreenPop(pop("13800000001"), timeout=30)
    assert len(blind.missing) == 6 and blind.phone_number == "+8613800000001" and blind.greeting


async def test_calls_from_before_the_customer_was_known_become_his(crm: Crm) -> None:
    number = "+8613800000001"
    past_call(crm, "before", number, NOW, resolved=False)
    listed = await crm.timeline.ListInteractions(
        timeline_pb2.ListInteractionsRequest(phone_number="13800000001")
    )
    assert [item.source_id for item in listed.interactions] == ["before"]
    made = await crm.create("li", number)
    request = timeline_pb2.ListInteractionsRequest(customer=made.name)
    assert [i.source_id for i in (await crm.timeline.ListInteractions(request)).interactions] == ["before"]
    assert crm.memory.attach_numbers("li", [number]) == 1
    assert crm.memory.attach_numbers("li", [number]) == 0
    await crm.customers.DeleteCustomer(customers_pb2.DeleteCustomerRequest(name=made.name))
    await crm.create("wang", number)
    past_call(crm, "after", number, NOW, resolved=True)
    assert crm.memory.attach_numbers("li", [number]) == 0, "an old event does not take the number back"
    old = await crm.timeline.ListInteractions(request)
    request.customer = "customers/wang"
    new = await crm.timeline.ListInteractions(request)
    assert [i.source_id for i in old.interactions] == ["before"]
    assert [i.source_id for i in new.interactions] == ["after"]


async def test_the_timeline_is_paged_and_filtered(crm: Crm) -> None:
    number = "+8613800000001"
    made = await crm.create("li", number)
    for index in range(7):
        past_call(crm, f"k{index}", number, datetime(2026, 3, 1, index // 2, tzinfo=UTC), resolved=True)
    request = timeline_pb2.ListInteractionsRequest(customer=made.name, page_size=2)
    seen: list[str] = []
    while True:
        page = await crm.timeline.ListInteractions(request)
        seen += [item.source_id for item in page.interactions]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert sorted(seen) == [f"k{index}" for index in range(7)] and seen[0] == "k6"
    interval = common_pb2.Interval()
    interval.start_time.FromDatetime(datetime(2026, 3, 1, 1, tzinfo=UTC))
    interval.end_time.FromDatetime(datetime(2026, 3, 1, 2, tzinfo=UTC))
    some = await crm.timeline.ListInteractions(
        timeline_pb2.ListInteractionsRequest(customer=made.name, interval=interval)
    )
    assert sorted(item.source_id for item in some.interactions) == ["k2", "k3"]
    one = await crm.timeline.GetInteraction(
        timeline_pb2.GetInteractionRequest(name=some.interactions[0].name)
    )
    assert one == some.interactions[0] and one.customer == made.name
    for bad, field in (
        (timeline_pb2.ListInteractionsRequest(), "subject"),
        (timeline_pb2.ListInteractionsRequest(customer=made.name, kinds=[0]), "kinds"),
        (timeline_pb2.ListInteractionsRequest(customer=made.name, kinds=[99]), "kinds[0]"),
        (timeline_pb2.ListInteractionsRequest(customer=made.name, page_size=-5), "page_size"),
        (timeline_pb2.ListInteractionsRequest(phone_number="x"), "phone_number"),
    ):
        error = await refused(crm.timeline.ListInteractions(bad), "INVALID_ARGUMENT", "INVALID_ARGUMENT")
        assert bad_fields(error) == {field}
    nobody = timeline_pb2.ListInteractionsRequest(customer="customers/none")
    await refused(crm.timeline.ListInteractions(nobody), "NOT_FOUND", "NOT_FOUND")


async def test_a_note_is_recorded_once(crm: Crm) -> None:
    made = await crm.create("li", "13800000001")
    request = timeline_pb2.RecordInteractionRequest(request_id=str(uuid.uuid4()))
    request.interaction.kind = timeline_pb2.INTERACTION_KIND_NOTE
    request.interaction.customer = made.name
    request.interaction.note.text = "prefers e-mail\nnever before ten"
    first = await crm.timeline.RecordInteraction(request)
    assert first == await crm.timeline.RecordInteraction(request)
    assert first.customer == made.name and first.note.text == request.interaction.note.text
    listed = await crm.timeline.ListInteractions(timeline_pb2.ListInteractionsRequest(customer=made.name))
    assert [item.name for item in listed.interactions] == [first.name]
    raw = await crm.database.interactions.find_one({})
    (event,) = [Event.from_json(item["event"]) for item in raw["outbox"]]
    told = event.message(events_pb2.InteractionRecorded)
    assert told.interaction.name == first.name and not told.interaction.note.text
    survey = timeline_pb2.RecordInteractionRequest()
    survey.interaction.kind = timeline_pb2.INTERACTION_KIND_SURVEY
    survey.interaction.phone_number = "138 0000 0001"
    survey.interaction.survey.satisfaction = 5
    by_number = await crm.timeline.RecordInteraction(survey)
    assert by_number.customer == made.name and by_number.survey.satisfaction == 5


async def test_bad_recordings(crm: Crm) -> None:
    await crm.create("li", "13800000001")

    def request(**fields: Any) -> timeline_pb2.RecordInteractionRequest:
        message = timeline_pb2.Interaction(**{"kind": 7, "customer": "customers/li", **fields})
        return timeline_pb2.RecordInteractionRequest(interaction=message)

    for bad, field in (
        (request(kind=1), "interaction.kind"),
        (request(kind=0), "interaction.kind"),
        (request(customer=""), "interaction.customer"),
        (request(phone_number="1"), "interaction.phone_number"),
        (request(source="Bad!"), "interaction.source"),
        (request(survey=timeline_pb2.SurveyDetail()), "interaction.survey"),
        (
            request(kind=5, survey=timeline_pb2.SurveyDetail(satisfaction=9)),
            "interaction.survey.satisfaction",
        ),
        (request(note=timeline_pb2.NoteDetail(text="x" * 10_001)), "interaction.note.text"),
        (request(note=timeline_pb2.NoteDetail(text="a\x00")), "interaction.note.text"),
    ):
        record = crm.timeline.RecordInteraction(bad)
        assert bad_fields(await refused(record, "INVALID_ARGUMENT", "INVALID_ARGUMENT")) == {field}
    gone = crm.timeline.RecordInteraction(request(customer="customers/none"))
    await refused(gone, "NOT_FOUND", "NOT_FOUND")
    assert await crm.database.interactions.count_documents({}) == 0
