"""LeadService: chances of business from capture to won or lost, and the partners who follow them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from google.protobuf.empty_pb2 import Empty

from callmesh.marketing.v1 import events_pb2, leads_pb2, leads_pb2_grpc
from chassis.bus import Event
from chassis.clock import Clock
from chassis.errors import FailedPrecondition, InvalidArgument
from chassis.ids import parse_name, resource_name
from marketing import convert
from marketing.engine import Problem
from marketing.kinds import LEADS, PARTNERS
from marketing.resources import Desk, Resource, money_problems, name_problems, text_problems, turn
from marketing.shelf import Shelves
from marketing.store import Store

#: Business hours that a partner has to speak to the person.
DUE_HOURS = 48
#: Partners looked at for an assignment.
PARTNERS_MAX = 1_000
#: Imagined leads, of average luck, beside those counted.
PRIOR_LEADS = 10.0
PRIOR_RATE = 0.2

S = leads_pb2
#: The state that a verb leads to; a pair that is missing is refused and changes nothing.
TRANSITIONS: Mapping[tuple[int, str], int] = {
    (S.LEAD_STATE_NEW, "assign"): S.LEAD_STATE_ASSIGNED,
    (S.LEAD_STATE_ASSIGNED, "assign"): S.LEAD_STATE_ASSIGNED,
    (S.LEAD_STATE_ASSIGNED, "contact"): S.LEAD_STATE_CONTACTED,
    (S.LEAD_STATE_ASSIGNED, "win"): S.LEAD_STATE_WON,
    (S.LEAD_STATE_CONTACTED, "win"): S.LEAD_STATE_WON,
    (S.LEAD_STATE_NEW, "lose"): S.LEAD_STATE_LOST,
    (S.LEAD_STATE_ASSIGNED, "lose"): S.LEAD_STATE_LOST,
    (S.LEAD_STATE_CONTACTED, "lose"): S.LEAD_STATE_LOST,
}
OPEN = (S.LEAD_STATE_NEW, S.LEAD_STATE_ASSIGNED, S.LEAD_STATE_CONTACTED)


class LeadStateError(FailedPrecondition):
    """{subject}: {why}."""

    reason = "LEAD_STATE"


class NoPartnerFits(FailedPrecondition):
    """{subject}: {why}."""

    reason = "NO_PARTNER_FITS"


class PartnerHasLeads(FailedPrecondition):
    """{subject}: {why}."""

    reason = "PARTNER_HAS_LEADS"


def lead_problems(message: Any, currency: str) -> list[Problem]:
    """Everything wrong with a lead."""
    found: list[Problem] = []
    if not message.customer and not message.contact_number:
        found.append(("customer", "either this or contact_number must be set"))
    if message.contact_number and not convert.is_e164(message.contact_number):
        found.append(("contact_number", "must be an E.164 number such as +8613800138000"))
    for field, collection in (
        ("customer", "customers"),
        ("agent", "agents"),
        ("region", "regions"),
        ("campaign", "campaigns"),
    ):
        found += name_problems(field, collection, getattr(message, field))
    convert.checked_id("product", message.product, found)
    if message.call_id:
        convert.checked_id("call_id", message.call_id, found)
    found += text_problems("contact_name", message.contact_name, 200)
    found += text_problems("note", message.note, 4_000)
    return found + money_problems("", message, "estimated_value", currency)


def partner_problems(message: Any) -> list[Problem]:
    """Everything wrong with a partner."""
    found = text_problems("display_name", message.display_name, 200, required=True)
    for at, name in enumerate(message.regions[:100]):
        found += name_problems(f"regions[{at}]", "regions", name)
    for at, product in enumerate(message.products[:100]):
        convert.checked_id(f"products[{at}]", product, found)
    if len(message.regions) > 100 or len(message.products) > 100:
        found.append(("products", "at most 100 regions and 100 products"))
    if not 0 <= message.capacity <= 100_000:
        found.append(("capacity", "must be 0 to 100,000"))
    return found


def likelihood(won: int, lost: int, *, wanted: bool, known: bool, worth: bool) -> float:
    """Likelihood that a lead is won: the product's own share of closed leads, pulled to `PRIOR_RATE`, and
    raised in its odds by what speaks for this one (asked in a call, a known customer, a value named).
    """
    rate = (won + PRIOR_LEADS * PRIOR_RATE) / (won + lost + PRIOR_LEADS)
    odds = rate / (1 - rate) * (1.5 if wanted else 1.0) * (1.3 if known else 1.0) * (1.2 if worth else 1.0)
    return odds / (1 + odds)


class LeadServicer(leads_pb2_grpc.LeadServiceServicer):
    """LeadService."""

    def __init__(self, shelves: Shelves, store: Store, clock: Clock, currency: str) -> None:
        self._shelves = shelves
        self._store = store
        self._clock = clock
        self._currency = currency
        self._leads = Desk(
            Resource(
                service="LeadService",
                field="lead",
                kind=LEADS,
                message=leads_pb2.Lead,
                problems=lambda message, _: lead_problems(message, currency),
                keys=lambda m: {
                    "state": m.state,
                    "partner": m.partner,
                    "customer": m.customer,
                    "product": m.product,
                    "score": m.score,
                    "open": m.state in OPEN,
                    "due": convert.moment(m.due_time) if m.HasField("due_time") else None,
                },
                kept_keys=frozenset({"won_at"}),
                fixed=frozenset({"score", "state", "partner", "won_value", "lost_reason", "due_time"}),
            ),
            shelves,
            clock,
        )
        self._partners = Desk(
            Resource(
                service="LeadService",
                field="partner",
                kind=PARTNERS,
                message=leads_pb2.Partner,
                problems=lambda message, _: partner_problems(message),
                fixed=frozenset({"open_leads"}),
            ),
            shelves,
            clock,
        )

    def CreateLead(self, request: leads_pb2.CreateLeadRequest, context: Any) -> leads_pb2.Lead:
        """Captures, scores, and assigns where a partner fits."""
        return self._leads.create(request, self._capture)

    def _capture(self, lead: Any) -> Sequence[Event]:
        now = self._clock.now()
        lead.state = S.LEAD_STATE_NEW
        counts = [
            self._shelves.count(LEADS, {"product": lead.product, "state": state})
            for state in (S.LEAD_STATE_WON, S.LEAD_STATE_LOST)
        ]
        lead.score = likelihood(
            *counts,
            wanted=bool(lead.call_id),
            known=bool(lead.customer),
            worth=lead.HasField("estimated_value"),
        )
        created = events_pb2.LeadCreated(
            lead=lead.name,
            customer=lead.customer,
            call_id=lead.call_id,
            product=lead.product,
            score=lead.score,
            create_time=convert.timestamp(now),
        )
        events = [Event.of(created, source=convert.SOURCE, subject=lead.name, time=now)]
        if partner := self._best(lead):
            events += self._go(lead, "assign", partner)
        return events

    def _best(self, lead: Any) -> str:
        """The partner who fits and has the most room, "" for none."""
        best = (0.0, "")
        for row in self._shelves.find(PARTNERS, {}, PARTNERS_MAX):
            partner = self._partners.shown(row)
            if (partner.regions and lead.region not in partner.regions) or (
                partner.products and lead.product not in partner.products
            ):
                continue
            room = partner.capacity - self._open(partner.name)
            if room > 0:
                best = max(best, (room / partner.capacity, partner.name))
        return best[1]

    def _open(self, partner: str) -> int:
        return self._shelves.count(LEADS, {"partner": partner, "open": True})

    def _go(self, lead: Any, verb: str, partner: str = "") -> list[Event]:
        """Moves a lead; the events of that. LeadStateError."""
        now = self._clock.now()
        before = turn(lead, verb, TRANSITIONS, LeadStateError)
        if partner:
            lead.partner = partner
            lead.due_time.FromDatetime(now + timedelta(hours=DUE_HOURS))
        moved = events_pb2.LeadTransitioned(
            lead=lead.name,
            customer=lead.customer,
            from_state=before,
            to_state=leads_pb2.LeadState.Name(lead.state).removeprefix("LEAD_STATE_"),
            partner=lead.partner,
            value=lead.won_value if lead.HasField("won_value") else None,
            transition_time=convert.timestamp(now),
        )
        return [Event.of(moved, source=convert.SOURCE, subject=lead.name, time=now)]

    def GetLead(self, request: leads_pb2.GetLeadRequest, context: Any) -> leads_pb2.Lead:
        """Reads one."""
        return self._leads.get(request)

    def ListLeads(self, request: leads_pb2.ListLeadsRequest, context: Any) -> leads_pb2.ListLeadsResponse:
        """A page, highest score first."""
        wanted = {"state": request.state, "partner": request.partner}
        condition: dict[str, Any] = {key: value for key, value in wanted.items() if value}
        if request.customer:
            condition["customer"] = {"$in": self._names(request.customer)}
        if request.overdue:
            if request.state not in (S.LEAD_STATE_UNSPECIFIED, S.LEAD_STATE_ASSIGNED):
                raise InvalidArgument(field="state", why="only ASSIGNED leads can be overdue")
            condition |= {"state": S.LEAD_STATE_ASSIGNED, "due": {"$lt": self._clock.now()}}
        rows, token = self._leads.list(request, condition, "-score")
        return leads_pb2.ListLeadsResponse(leads=rows, next_page_token=token)

    def _names(self, customer: str) -> list[str]:
        """The name asked for, and those of whom it stands for since they were merged into that customer."""
        profile = self._store.profile(parse_name("customer", "customers", customer))
        merged = profile.absorbed if profile is not None else ()
        return [customer, *(resource_name("customers", id) for id in merged)]

    def UpdateLead(self, request: leads_pb2.UpdateLeadRequest, context: Any) -> leads_pb2.Lead:
        """Changes what was captured."""
        return self._leads.update(request)

    def AssignLead(self, request: leads_pb2.AssignLeadRequest, context: Any) -> leads_pb2.Lead:
        """Gives it to a partner, or to the best one."""

        def change(lead: Any) -> Sequence[Event]:
            partner = self._partners.row(request.partner, "partner") if request.partner else None
            name = f"partners/{partner.id}" if partner else self._best(lead)
            if not name:
                raise NoPartnerFits(subject=lead.name, why="no partner with room sells this there")
            return self._go(lead, "assign", name)

        return self._leads.move(request, change)

    def ContactLead(self, request: leads_pb2.ContactLeadRequest, context: Any) -> leads_pb2.Lead:
        """The partner has spoken to the person."""
        if problems := text_problems("note", request.note, 4_000):
            raise InvalidArgument.many(problems)

        def change(lead: Any) -> Sequence[Event]:
            events = self._go(lead, "contact")
            lead.note = f"{lead.note}\n{request.note}".strip()[-4_000:]
            lead.ClearField("due_time")
            return events

        return self._leads.move(request, change)

    def WinLead(self, request: leads_pb2.WinLeadRequest, context: Any) -> leads_pb2.Lead:
        """Sold."""
        problems = money_problems("", request, "value", self._currency)
        if not request.HasField("value") or problems:
            raise InvalidArgument.many(problems or [("value", "must be set")])

        def change(lead: Any) -> Sequence[Event]:
            lead.won_value.CopyFrom(request.value)
            return self._go(lead, "win")

        # Beside the lead: a later correction of it must not move its revenue to another day.
        return self._leads.move(request, change, won_at=self._clock.now())

    def LoseLead(self, request: leads_pb2.LoseLeadRequest, context: Any) -> leads_pb2.Lead:
        """Not sold."""
        if problems := text_problems("reason", request.reason, 1_000, required=True):
            raise InvalidArgument.many(problems)

        def change(lead: Any) -> Sequence[Event]:
            lead.lost_reason = request.reason
            return self._go(lead, "lose")

        return self._leads.move(request, change)

    # partners

    def _shown(self, partner: Any) -> leads_pb2.Partner:
        partner.open_leads = self._open(partner.name)
        return partner

    def CreatePartner(self, request: leads_pb2.CreatePartnerRequest, context: Any) -> leads_pb2.Partner:
        """Adds one."""
        return self._partners.create(request)

    def GetPartner(self, request: leads_pb2.GetPartnerRequest, context: Any) -> leads_pb2.Partner:
        """Reads one."""
        return self._shown(self._partners.get(request))

    def ListPartners(
        self, request: leads_pb2.ListPartnersRequest, context: Any
    ) -> leads_pb2.ListPartnersResponse:
        """A page by id."""
        rows, token = self._partners.list(request, {})
        return leads_pb2.ListPartnersResponse(partners=map(self._shown, rows), next_page_token=token)

    def UpdatePartner(self, request: leads_pb2.UpdatePartnerRequest, context: Any) -> leads_pb2.Partner:
        """Changes one."""
        return self._shown(self._partners.update(request))

    def DeletePartner(self, request: leads_pb2.DeletePartnerRequest, context: Any) -> Empty:
        """Removes one without open leads."""

        def allowed(partner: Any) -> None:
            if count := self._open(partner.name):
                raise PartnerHasLeads(subject=partner.name, why=f"{count} leads are open")

        self._partners.delete(request, allowed)
        return Empty()
