"""Opening a ticket by hand: the one use case that runs on the event loop, because it is the most frequent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chassis.clock import Clock
from chassis.errors import AlreadyExists, InvalidArgument
from chassis.ids import new_id
from tickets import engine
from tickets.flows import find_flow, is_retired
from tickets.hotstore import AsyncStore, NewTicket
from tickets.model import Change, Draft, Happening, Kind, Profile, Rules, Ticket
from tickets.validation import check_draft

if TYPE_CHECKING:
    from chassis.bus import Event

#: Merges one after another through which a customer is followed.
SURVIVORS_MAX = 20
#: The rules, or where to ask for the latest.
RulesSource = Rules | Callable[[], Rules]
Encode = Callable[[Ticket, Happening], "Event"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Create:
    """A ticket to be opened by hand."""

    kind: Kind
    draft: Draft
    actor: str
    #: Chosen by the client; empty: chosen here.
    ticket_id: str = ""
    #: Id of a flow; empty: the kind's own.
    flow: str = ""
    parent_id: str = ""
    request_key: str | None = None
    fingerprint: str | None = None
    validate_only: bool = False


def rules_of(source: RulesSource) -> Callable[[], Rules]:
    """How to get the rules of this moment."""
    if isinstance(source, Rules):
        fixed = source
        return lambda: fixed
    return source


def check_kind(kind: Kind, draft: Draft) -> None:
    """InvalidArgument for parts that only other kinds have."""
    parts = (
        ("dispatch", draft.dispatch is not None, (Kind.REPAIR, Kind.INSTALLATION)),
        ("fee", bool(draft.fee), (Kind.FEE_ORDER,)),
        ("parts", bool(draft.parts), (Kind.PARTS_REQUEST,)),
        ("survey", bool(draft.survey), (Kind.MARKET_SURVEY,)),
    )
    found = [
        (f"ticket.{name}", f"only tickets of kind {' or '.join(k.name for k in kinds)} have it")
        for name, filled, kinds in parts
        if filled and kind not in kinds
    ]
    if found:
        raise InvalidArgument.many(found)


def check_create(command: Create, *, parent_exists: bool) -> None:
    """InvalidArgument naming each bad field."""
    check_draft(command.draft)
    check_kind(command.kind, command.draft)
    found: list[tuple[str, str]] = []
    if command.kind is Kind.RETURN_VISIT:
        found.append(("ticket.kind", "return visits are made by the service, after a resolution"))
    flow = find_flow(command.flow or command.kind.value)
    if flow is None or flow.kind is not command.kind or is_retired(flow.id):
        found.append(("ticket.flow", "must be a flow of the ticket's kind, or empty"))
    if engine.VISIT_MARK in command.ticket_id or command.ticket_id.startswith(engine.CALL_PREFIX):
        found.append(("ticket_id", "has a form that the service keeps for itself"))
    if len(command.ticket_id) > engine.TICKET_ID_CHARACTERS_MAX:
        found.append(("ticket_id", f"must be at most {engine.TICKET_ID_CHARACTERS_MAX} characters"))
    if command.parent_id and not parent_exists:
        found.append(("ticket.parent", "does not exist"))
    if found:
        raise InvalidArgument.many(found)


def check_free(command: Create, there: Ticket | None) -> None:
    """AlreadyExists where a dry run finds the chosen id taken. A request that may be the repeat of the one
    that took it is not refused: it would be answered."""
    if there is not None and not command.request_key:
        raise AlreadyExists(resource=f"tickets/{there.id}", conflict="_id")


def plan_create(command: Create, path: Sequence[Profile], rules: Rules, now: int) -> Change:
    """The ticket that a checked command opens, with what is known of its customer, or of the last one who
    took it over (`engine.of_path`). CustomerErased."""
    profile = path[-1] if path else None
    engine.check_served(profile)
    draft = command.draft
    if profile is not None:
        language = draft.language or profile.language
        draft = replace(draft, customer_id=profile.customer_id, language=language)
    draft = engine.with_documents(command.kind, draft)
    change = engine.open_ticket(
        command.ticket_id or new_id(),
        command.kind,
        draft,
        rules,
        now,
        actor=command.actor,
        flow=command.flow,
        tier=profile.tier if profile else "",
        parent_id=command.parent_id,
    )
    return engine.of_path(change, path)


class Opening:
    """The use case. Holds no state of its own."""

    def __init__(self, store: AsyncStore, clock: Clock, rules: RulesSource, encode: Encode) -> None:
        self._store = store
        self._clock = clock
        self._rules = rules_of(rules)
        self._encode = encode

    async def create(self, command: Create) -> Ticket:
        """Opens a ticket; a repeat with the same request key answers the first one's. InvalidArgument naming
        each bad field, AlreadyExists when the chosen id is taken."""
        parent = await self._store.find(command.parent_id) if command.parent_id else None
        check_create(command, parent_exists=parent is not None)
        path = await self._path_of(command.draft)
        change = plan_create(command, path, self._rules(), self._clock.now_ms())
        if command.validate_only:
            check_free(command, await self._store.find(change.ticket.id))
            return change.ticket
        opened = replace(change.ticket, version=1)
        new = NewTicket(
            ticket=change.ticket,
            events=[self._encode(opened, happening) for happening in change.happenings],
            request_key=command.request_key,
            fingerprint=command.fingerprint,
        )
        return (await self._store.insert(new))[0]

    async def _path_of(self, draft: Draft) -> list[Profile]:
        """What is known of a draft's customer, and of those who took it over, one after another."""
        if draft.customer_id:
            found = await self._store.profile(draft.customer_id)
        else:
            found = await self._store.profile_of_number(draft.caller_number) if draft.caller_number else None
        path: list[Profile] = []
        while found is not None and len(path) <= SURVIVORS_MAX:
            path.append(found)
            found = await self._store.profile(found.merged_into) if found.merged_into else None
        return path
