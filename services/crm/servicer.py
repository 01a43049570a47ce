"""The gRPC face: read the request, call a use case, answer. Hot reads are asynchronous, writes run in the
server's threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from callmesh.crm.v1 import (
    care_pb2,
    care_pb2_grpc,
    customers_pb2,
    customers_pb2_grpc,
    insights_pb2,
    insights_pb2_grpc,
    screen_pop_pb2,
    screen_pop_pb2_grpc,
    timeline_pb2,
    timeline_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
    webhooks_pb2,
    webhooks_pb2_grpc,
)
from chassis import metrics
from chassis.callcontext import current_identity
from chassis.errors import CallmeshError, InvalidArgument
from chassis.fieldmask import apply_mask
from chassis.grpc_status import rich_status
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import ID_LENGTH_MAX, check_id, parse_name
from chassis.localize import accepted_language
from chassis.mongo import parse_etag
from chassis.pagination import Page
from crm import convert, duplicates, engine, merging
from crm.app import App
from crm.care_servicer import CareServicer
from crm.handlers import Create, Recording
from crm.insights_servicer import InsightsServicer
from crm.model import Customer, CustomField, Interaction
from crm.sagas import MergeWish
from crm.transfer_servicer import ExportServicer, ImportServicer
from crm.webhooks_servicer import WebhookServicer

#: Most entries of one batch.
BATCH_MAX = 500
DOMAIN = "callmesh.crm"

_UPDATABLE = frozenset(engine.WRITABLE) - {"kind"}
_IMMUTABLE = frozenset({"kind"})

_missing = metrics.counter(
    "crm_screen_pop_missing_total", "Parts of screen pops that could not be had in time.", ("part",)
)


def _customer_id(field: str, name: str) -> str:
    return parse_name(field, "customers", name)


def _subject() -> str:
    return current_identity().subject


def _create_in(request: customers_pb2.CreateCustomerRequest) -> Create:
    key = request_key(current_identity(), "CreateCustomer", request.request_id)
    return Create(
        draft=convert.customer_in(request.customer),
        id=check_id("customer_id", request.customer_id) if request.customer_id else "",
        default_country=request.default_country,
        request_key=key,
        fingerprint=content_fingerprint(request, ignoring=("request_id", "validate_only")) if key else None,
        dry=request.validate_only,
    )


def _check_batch(field: str, items: Sequence[Any]) -> None:
    if not 1 <= len(items) <= BATCH_MAX:
        raise InvalidArgument(field=field, why=f"must hold 1 to {BATCH_MAX}, got {len(items)}")


class CustomerServicer(customers_pb2_grpc.CustomerServiceServicer):
    """CustomerService."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._customers = app.customers
        self._questions = app.questions

    def CreateCustomer(
        self, request: customers_pb2.CreateCustomerRequest, context: Any
    ) -> customers_pb2.Customer:
        """Creates a customer."""
        return convert.customer_out(self._customers.create(_create_in(request), _subject()))

    def BatchCreateCustomers(
        self, request: customers_pb2.BatchCreateCustomersRequest, context: Any
    ) -> customers_pb2.BatchCreateCustomersResponse:
        """Creates many, each on its own."""
        _check_batch("requests", request.requests)
        wanted: list[Create | CallmeshError] = []
        for item in request.requests:
            try:
                wanted.append(_create_in(item))
            except CallmeshError as error:
                wanted.append(error)
        readable = [item for item in wanted if isinstance(item, Create)]
        created = iter(self._customers.create_many(readable, _subject()))
        outcomes = [next(created) if isinstance(item, Create) else item for item in wanted]
        response, language = customers_pb2.BatchCreateCustomersResponse(), accepted_language(context)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, Customer):
                response.customers.append(convert.customer_out(outcome))
            else:
                response.failures.add(index=index, status=rich_status(outcome, DOMAIN, language, "crm"))
        return response

    async def GetCustomer(
        self, request: customers_pb2.GetCustomerRequest, context: Any
    ) -> customers_pb2.Customer:
        """One customer."""
        found = await self._questions.shown(_customer_id("name", request.name))
        return convert.shown_customer(found)

    async def BatchGetCustomers(
        self, request: customers_pb2.BatchGetCustomersRequest, context: Any
    ) -> customers_pb2.BatchGetCustomersResponse:
        """Many customers."""
        _check_batch("names", request.names)
        ids = [_customer_id(f"names[{index}]", name) for index, name in enumerate(request.names)]
        found = await self._questions.customers(ids)
        return customers_pb2.BatchGetCustomersResponse(customers=[convert.customer_out(c) for c in found])

    async def LookupCustomer(
        self, request: customers_pb2.LookupCustomerRequest, context: Any
    ) -> customers_pb2.Customer:
        """The owner of a number, an address or an id elsewhere."""
        key = request.WhichOneof("key")
        if key == "phone_number":
            found = await self._questions.by_number(request.phone_number, request.default_country)
        elif key == "email_address":
            found = await self._questions.by_email(request.email_address)
        elif key == "external_id":
            found = await self._questions.by_external_id(request.external_id.system, request.external_id.id)
        else:
            raise InvalidArgument(field="key", why="must be a phone_number, email_address or external_id")
        return convert.shown_customer(found)

    async def ListCustomers(
        self, request: customers_pb2.ListCustomersRequest, context: Any
    ) -> customers_pb2.ListCustomersResponse:
        """A page of customers."""
        page = Page.of(request)
        which = convert.filter_in(request.filter, request.show_deleted)
        shown, behind = await self._questions.page(which, page.value(str), page.limit)
        return customers_pb2.ListCustomersResponse(
            customers=[convert.customer_out(customer) for customer in shown],
            next_page_token=page.next_token(behind),
        )

    def UpdateCustomer(
        self, request: customers_pb2.UpdateCustomerRequest, context: Any
    ) -> customers_pb2.Customer:
        """Changes what the mask names."""

        def edit(current: Customer) -> Customer:
            message = convert.customer_out(current)
            apply_mask(
                message,
                request.customer,
                request.update_mask,
                allowed=_UPDATABLE,
                immutable=_IMMUTABLE,
                at="customer",
            )
            return replace(convert.customer_in(message), id=current.id)

        changed = self._customers.update(
            _customer_id("customer.name", request.customer.name),
            edit,
            _subject(),
            expected_version=parse_etag("customer.etag", request.customer.etag),
            country=request.default_country,
            dry=request.validate_only,
        )
        return convert.customer_out(changed)

    def DeleteCustomer(
        self, request: customers_pb2.DeleteCustomerRequest, context: Any
    ) -> customers_pb2.Customer:
        """Deletes softly."""
        gone = self._customers.delete(
            _customer_id("name", request.name),
            _subject(),
            expected_version=parse_etag("etag", request.etag),
            allow_missing=request.allow_missing,
        )
        return customers_pb2.Customer() if gone is None else convert.customer_out(gone)

    def UndeleteCustomer(
        self, request: customers_pb2.UndeleteCustomerRequest, context: Any
    ) -> customers_pb2.Customer:
        """Brings back."""
        back = self._customers.undelete(
            _customer_id("name", request.name), _subject(), expected_version=parse_etag("etag", request.etag)
        )
        return convert.customer_out(back)

    def ListAuditEntries(
        self, request: customers_pb2.ListAuditEntriesRequest, context: Any
    ) -> customers_pb2.ListAuditEntriesResponse:
        """A page of changes."""
        id = _customer_id("parent", request.parent)
        page = Page.of(request)
        found = self._customers.audit(id, page.value(int), page.limit + 1)
        shown, token = page.cut(found, attrgetter("version"))
        return customers_pb2.ListAuditEntriesResponse(
            audit_entries=[convert.audit_out(request.parent, entry) for entry in shown],
            next_page_token=token,
        )

    async def SearchCustomers(
        self, request: customers_pb2.SearchCustomersRequest, context: Any
    ) -> customers_pb2.SearchCustomersResponse:
        """A page of what resembles."""
        page = Page.of(request, default=20, maximum=100)
        which = convert.filter_in(request.filter, show_deleted=False)
        shown, token = page.part(await self._questions.search(request.query, which))
        return customers_pb2.SearchCustomersResponse(
            matches=[
                customers_pb2.CustomerMatch(
                    customer=convert.customer_out(match.customer),
                    score=match.score,
                    matched_fields=match.fields,
                )
                for match in shown
            ],
            next_page_token=token,
        )

    async def ListDuplicates(
        self, request: customers_pb2.ListDuplicatesRequest, context: Any
    ) -> customers_pb2.ListDuplicatesResponse:
        """A page of probable duplicates."""
        if not 0.0 <= request.score_min <= 1.0:
            raise InvalidArgument(field="score_min", why="must be 0 to 1")
        least = request.score_min or duplicates.SCORE_DEFAULT
        page = Page.of(request, maximum=200)
        shown: Sequence[duplicates.Pair]
        if request.parent == "customers/-":
            shown, last = await self._questions.pairs(page.key(str, str), least, page.limit)
            token = page.next_token(last)
        else:
            customer = _customer_id("parent", request.parent)
            shown, token = page.part(await self._questions.duplicates(customer, least))
        return customers_pb2.ListDuplicatesResponse(
            duplicates=[convert.duplicate_out(pair) for pair in shown], next_page_token=token
        )

    def EraseCustomer(
        self, request: customers_pb2.EraseCustomerRequest, context: Any
    ) -> customers_pb2.Customer:
        """Erases for good."""
        gone = self._app.erasures.erase(
            _customer_id("name", request.name),
            request.reason,
            _subject(),
            parse_etag("etag", request.etag),
        )
        return convert.customer_out(gone)

    def RecordConsent(
        self, request: customers_pb2.RecordConsentRequest, context: Any
    ) -> customers_pb2.Customer:
        """Records a decision."""
        decision = convert.consent_in(request.consent, self._app.clock.now_ms())
        return convert.customer_out(
            self._customers.decide_consent(_customer_id("name", request.name), decision, _subject())
        )

    async def CheckContactPermission(
        self, request: customers_pb2.CheckContactPermissionRequest, context: Any
    ) -> customers_pb2.CheckContactPermissionResponse:
        """Whether the customer may be contacted."""
        timed = request.HasField("contact_time")
        found = await self._questions.permission(
            _customer_id("name", request.name),
            convert.channel_in("channel", request.channel),
            convert.purpose_in("purpose", request.purpose),
            convert.moment_in("contact_time", request.contact_time) if timed else self._app.clock.now(),
        )
        return customers_pb2.CheckContactPermissionResponse(
            allowed=found.allowed,
            reasons=found.reasons,
            next_allowed_time=convert.timestamp(found.next_allowed),
        )

    def MergeCustomers(
        self, request: customers_pb2.MergeCustomersRequest, context: Any
    ) -> customers_pb2.Merge:
        """Merges."""
        key = request_key(current_identity(), "MergeCustomers", request.request_id)
        ignored = ("request_id", "validate_only")
        wish = MergeWish(
            survivor=_customer_id("survivor", request.survivor),
            absorbed=tuple(
                _customer_id(f"absorbed[{index}]", name)
                for index, name in enumerate(request.absorbed[: merging.ABSORBED_MAX + 1])
            ),
            reason=request.reason,
            request_key=key,
            fingerprint=content_fingerprint(request, ignoring=ignored) if key else None,
            dry=request.validate_only,
        )
        return convert.merge_out(self._app.merges.request(wish, _subject()))

    def UnmergeCustomers(
        self, request: customers_pb2.UnmergeCustomersRequest, context: Any
    ) -> customers_pb2.Merge:
        """Undoes a merge."""
        id = parse_name("name", "merges", request.name)
        return convert.merge_out(self._app.merges.undo(id, request.reason, _subject()))

    def GetMerge(self, request: customers_pb2.GetMergeRequest, context: Any) -> customers_pb2.Merge:
        """One merge."""
        return convert.merge_out(self._app.merges.get(parse_name("name", "merges", request.name)))

    def ListMerges(
        self, request: customers_pb2.ListMergesRequest, context: Any
    ) -> customers_pb2.ListMergesResponse:
        """A page of merges."""
        page = Page.of(request)
        customer = _customer_id("customer", request.customer) if request.customer else ""
        found = self._app.merges.page(customer, page.value(str), page.limit + 1)
        shown, token = page.cut(found, attrgetter("id"))
        return customers_pb2.ListMergesResponse(
            merges=[convert.merge_out(merge) for merge in shown], next_page_token=token
        )

    def CreateCustomField(
        self, request: customers_pb2.CreateCustomFieldRequest, context: Any
    ) -> customers_pb2.CustomField:
        """Declares a custom field."""
        draft = convert.custom_field_in(request.custom_field)
        return convert.custom_field_out(self._app.fields.create(draft, request.custom_field_id))

    def GetCustomField(
        self, request: customers_pb2.GetCustomFieldRequest, context: Any
    ) -> customers_pb2.CustomField:
        """One custom field."""
        return convert.custom_field_out(self._app.fields.get(_field_id(request.name)))

    def ListCustomFields(
        self, request: customers_pb2.ListCustomFieldsRequest, context: Any
    ) -> customers_pb2.ListCustomFieldsResponse:
        """A page of custom fields."""
        page = Page.of(request)
        found = self._app.fields.page(request.show_deleted, page.value(str), page.limit + 1)
        shown, token = page.cut(found, attrgetter("id"))
        return customers_pb2.ListCustomFieldsResponse(
            custom_fields=[convert.custom_field_out(field) for field in shown], next_page_token=token
        )

    def UpdateCustomField(
        self, request: customers_pb2.UpdateCustomFieldRequest, context: Any
    ) -> customers_pb2.CustomField:
        """Changes a declaration."""

        def edit(current: CustomField) -> CustomField:
            message = convert.custom_field_out(current)
            apply_mask(
                message,
                request.custom_field,
                request.update_mask,
                allowed={"label", "choices", "required"},
                immutable={"kind"},
                at="custom_field",
            )
            return convert.custom_field_in(message)

        changed = self._app.fields.update(
            parse_name("custom_field.name", "customFields", request.custom_field.name),
            edit,
            parse_etag("custom_field.etag", request.custom_field.etag),
        )
        return convert.custom_field_out(changed)

    def DeleteCustomField(
        self, request: customers_pb2.DeleteCustomFieldRequest, context: Any
    ) -> customers_pb2.CustomField:
        """Retires a custom field."""
        gone = self._app.fields.retire(_field_id(request.name), parse_etag("etag", request.etag))
        return convert.custom_field_out(gone)


def _field_id(name: str) -> str:
    return parse_name("name", "customFields", name)


class TimelineServicer(timeline_pb2_grpc.TimelineServiceServicer):
    """TimelineService."""

    def __init__(self, app: App) -> None:
        self._questions = app.questions
        self._recorder = app.recorder

    async def ListInteractions(
        self, request: timeline_pb2.ListInteractionsRequest, context: Any
    ) -> timeline_pb2.ListInteractionsResponse:
        """A page of a timeline."""
        page = Page.of(request)
        found = await self._found(request, page.key(int, str), page.limit + 1)
        shown, token = page.cut(found, attrgetter("began_ms", "id"))
        return timeline_pb2.ListInteractionsResponse(
            interactions=[convert.interaction_out(item) for item in shown], next_page_token=token
        )

    async def _found(
        self, request: timeline_pb2.ListInteractionsRequest, after: tuple[int, str] | None, limit: int
    ) -> list[Interaction]:
        which = convert.timeline_filter_in(request)
        subject = request.WhichOneof("subject")
        if subject == "customer":
            id = _customer_id("customer", request.customer)
            return await self._questions.customers_timeline(id, which, after, limit)
        if subject == "phone_number":
            return await self._questions.numbers_timeline(request.phone_number, which, after, limit)
        raise InvalidArgument(field="subject", why="must be a customer or a phone_number")

    async def GetInteraction(
        self, request: timeline_pb2.GetInteractionRequest, context: Any
    ) -> timeline_pb2.Interaction:
        """One interaction."""
        found = await self._questions.interaction(parse_name("name", "interactions", request.name))
        return convert.interaction_out(found)

    def RecordInteraction(
        self, request: timeline_pb2.RecordInteractionRequest, context: Any
    ) -> timeline_pb2.Interaction:
        """Records what no other service tells of."""
        message = request.interaction
        kind = convert.recorded_kind(message)
        key = request_key(current_identity(), "RecordInteraction", request.request_id)
        wanted = Recording(
            kind=kind,
            source=message.source,
            source_id=message.source_id or key or "",
            values=convert.recorded_values(message, kind),
            customer=_customer_id("interaction.customer", message.customer) if message.customer else "",
            number=message.phone_number,
            began_ms=message.start_time.ToMilliseconds() if message.HasField("start_time") else None,
        )
        return convert.interaction_out(self._recorder.record(wanted, _subject()))


class ScreenPopServicer(screen_pop_pb2_grpc.ScreenPopServiceServicer):
    """ScreenPopService."""

    def __init__(self, app: App) -> None:
        self._pops = app.pops
        self._clock = app.clock

    async def GetScreenPop(
        self, request: screen_pop_pb2.GetScreenPopRequest, context: Any
    ) -> screen_pop_pb2.ScreenPop:
        """The customer in one glance."""
        if len(request.call_id) > ID_LENGTH_MAX:
            raise InvalidArgument(field="call_id", why=f"must be at most {ID_LENGTH_MAX} characters")
        customer = _customer_id("customer", request.customer) if request.customer else ""
        pop = await self._pops.get(request.phone_number, request.call_id, customer, request.default_country)
        for part in pop.missing:
            _missing.labels(part.value).inc()
        return convert.screen_pop_out(pop, self._clock.now())


def bindings(app: App) -> list[tuple[Any, Any, Any]]:
    """(descriptor, add-to-server function, servicer) of every service; `server` makes the chassis's bindings
    of them.
    """
    everything: list[tuple[Any, Any, str, Any]] = [
        (customers_pb2, customers_pb2_grpc, "CustomerService", CustomerServicer(app)),
        (timeline_pb2, timeline_pb2_grpc, "TimelineService", TimelineServicer(app)),
        (screen_pop_pb2, screen_pop_pb2_grpc, "ScreenPopService", ScreenPopServicer(app)),
        (care_pb2, care_pb2_grpc, "CareService", CareServicer(app)),
        (insights_pb2, insights_pb2_grpc, "InsightsService", InsightsServicer(app)),
        (transfer_pb2, transfer_pb2_grpc, "ImportService", ImportServicer(app)),
        (transfer_pb2, transfer_pb2_grpc, "ExportService", ExportServicer(app)),
        (webhooks_pb2, webhooks_pb2_grpc, "WebhookService", WebhookServicer(app)),
    ]
    return [
        (pb2.DESCRIPTOR.services_by_name[name], getattr(grpc, f"add_{name}Servicer_to_server"), servicer)
        for pb2, grpc, name, servicer in everything
    ]
