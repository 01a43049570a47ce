"""Quality of products and service: problems behind many tickets, reviews of products and campaigns,
customers'
assets. Message stubs only; `servicer` puts the calls into the gRPC service."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from callmesh.tickets.v1 import quality_pb2
from chassis.callcontext import current_identity
from chassis.clock import Clock
from chassis.errors import FailedPrecondition, InvalidArgument
from chassis.ids import parse_name
from tickets import convert
from tickets.filters import Condition, choice_field, enum_choices, list_field, name_field, text_field
from tickets.handlers import Handlers, Request
from tickets.model import Change, Kind, Ticket, Updated
from tickets.records import Records
from tickets.resources import Crud, Problem, Resource
from tickets.store import Query
from tickets.validation import (
    ATTRIBUTES_MAX,
    VALUE_CHARACTERS_MAX,
    label_problem,
    line_or_text,
    line_problem,
    text_problem,
)

#: Most tickets named in one call, criteria of a review, improvements, products of a problem.
LINKED_MAX, CRITERIA_MAX, IMPROVEMENTS_MAX, PRODUCTS_MAX = 1_000, 100, 100, 32
#: Tickets of a product that a review's score looks at, the newest first.
REVIEW_TICKETS_MAX = 10_000

_Problem, _Review = quality_pb2.Problem, quality_pb2.Review

#: (state, transition) -> state of a problem.
PROBLEM_TABLE: Mapping[tuple[int, str], int] = {
    (_Problem.STATE_OPEN, "analyse"): _Problem.STATE_ANALYSIS,
    (_Problem.STATE_OPEN, "identify"): _Problem.STATE_KNOWN_ERROR,
    (_Problem.STATE_ANALYSIS, "identify"): _Problem.STATE_KNOWN_ERROR,
    (_Problem.STATE_OPEN, "resolve"): _Problem.STATE_RESOLVED,
    (_Problem.STATE_ANALYSIS, "resolve"): _Problem.STATE_RESOLVED,
    (_Problem.STATE_KNOWN_ERROR, "resolve"): _Problem.STATE_RESOLVED,
    (_Problem.STATE_RESOLVED, "reopen"): _Problem.STATE_ANALYSIS,
    (_Problem.STATE_RESOLVED, "close"): _Problem.STATE_CLOSED,
}


class IllegalTransition(FailedPrecondition):
    """{subject}: {why}."""

    reason = "ILLEGAL_TRANSITION"


class ReviewOver(FailedPrecondition):
    """{subject}: {why}."""

    reason = "REVIEW_OVER"


def _title(text: str) -> str | None:
    return line_problem(text, 200) if text.strip() else "must not be empty"


def _product(text: str) -> str | None:
    return None if re.fullmatch(r"[^\x00-\x1f\x7f]{1,160}", text) else "must be 1 to 160 characters"


def _found(checks: Sequence[tuple[str, str | None]]) -> list[Problem]:
    return [(name, why) for name, why in checks if why]


def _problem_problems(message: Any) -> list[Problem]:
    if len(message.products) > PRODUCTS_MAX:
        return [("products", f"at most {PRODUCTS_MAX} are allowed")]
    return _found(
        [
            ("title", _title(message.title)),
            ("description", text_problem(message.description)),
            ("root_cause", text_problem(message.root_cause)),
            ("workaround", text_problem(message.workaround)),
            ("owner", line_problem(message.owner, 128)),
            *((f"products[{index}]", _product(product)) for index, product in enumerate(message.products)),
        ]
    )


def _review_problems(message: Any) -> list[Problem]:
    if len(message.criteria) > CRITERIA_MAX:
        return [("criteria", f"at most {CRITERIA_MAX} are allowed")]
    span = message.span
    whole = span.HasField("start_time") and span.HasField("end_time")
    turned = whole and convert.read_stamp(span.end_time) <= convert.read_stamp(span.start_time)
    ids = [one.criterion_id for one in message.criteria]
    found: list[tuple[str, str | None]] = [
        ("product", _product(message.product)),
        ("stage", None if message.stage in list(_Review.Stage.values())[1:] else "must be one of Stage"),
        ("span", "must end after it starts" if turned else None),
        ("criteria", "holds a criterion twice" if len(set(ids)) < len(ids) else None),
    ]
    for index, one in enumerate(message.criteria):
        name = f"criteria[{index}]"
        weighs = math.isfinite(one.weight) and 0 <= one.weight <= 100
        scored = math.isfinite(one.score) and one.score <= 100
        found.append((f"{name}.criterion_id", label_problem(one.criterion_id)))
        found.append((f"{name}.question", line_problem(one.question, 1_024)))
        found.append((f"{name}.weight", None if weighs else "must be 0 to 100"))
        found.append((f"{name}.score", None if scored else "must be 0 to 100, or negative while not scored"))
        found.append((f"{name}.finding", text_problem(one.finding)))
    if len(message.improvement_tickets) > IMPROVEMENTS_MAX:
        found.append(("improvement_tickets", f"at most {IMPROVEMENTS_MAX} are allowed"))
    for index, name in enumerate(message.improvement_tickets):
        good = re.fullmatch(r"tickets/[A-Za-z0-9._~:-]{1,128}", name)
        found.append(
            (f"improvement_tickets[{index}]", None if good else "must have the form tickets/{ticket}")
        )
    return _found(found)


def _asset_problems(message: Any) -> list[Problem]:
    good = re.fullmatch(r"customers/[A-Za-z0-9._~:-]{1,128}", message.customer)
    checks: list[tuple[str, str | None]] = [
        ("customer", None if good else "must have the form customers/{customer}"),
        ("product", _product(message.product) if message.product else None),
        ("model", line_problem(message.model, 128)),
        ("serial_number", line_problem(message.serial_number, 128)),
        ("contract", line_problem(message.contract, 128)),
        ("site_address", line_problem(message.site_address, 512)),
    ]
    both = message.HasField("purchase_time") and message.HasField("warranty_end_time")
    if both and message.warranty_end_time.seconds < message.purchase_time.seconds:
        checks.append(("warranty_end_time", "must not be before purchase_time"))
    if len(message.attributes) > ATTRIBUTES_MAX:
        checks.append(("attributes", f"at most {ATTRIBUTES_MAX} are allowed"))
    for key, value in message.attributes.items():
        checks.append(
            (f"attributes[{key[:64]}]", label_problem(key) or line_problem(value, VALUE_CHARACTERS_MAX))
        )
    return _found(checks)


_PROBLEM = Resource(
    kind="problems",
    field="problem",
    message=_Problem,
    updatable=frozenset(["title", "description", "products", "root_cause", "workaround", "owner"]),
    fields={
        "state": choice_field(enum_choices(_Problem.State, "STATE_"), "STATE_"),
        "owner": text_field(),
        "products": list_field(),
    },
    problems=_problem_problems,
    search=lambda message: {
        "state": _Problem.State.Name(message.state).removeprefix("STATE_"),
        "owner": message.owner,
        "products": list(message.products),
    },
)
_REVIEW = Resource(
    kind="reviews",
    field="review",
    message=_Review,
    updatable=frozenset(["criteria", "span", "improvement_tickets"]),
    immutable=frozenset({"product", "stage"}),
    fields={
        "product": text_field(),
        "stage": choice_field(enum_choices(_Review.Stage, "STAGE_"), "STAGE_"),
        "verdict": choice_field(enum_choices(_Review.Verdict, "VERDICT_"), "VERDICT_"),
    },
    problems=_review_problems,
    search=lambda message: {
        "product": message.product,
        "stage": _Review.Stage.Name(message.stage).removeprefix("STAGE_"),
        "verdict": _Review.Verdict.Name(message.verdict).removeprefix("VERDICT_"),
    },
)
_ASSET = Resource(
    kind="assets",
    field="asset",
    message=quality_pb2.Asset,
    updatable=frozenset(
        [
            "customer",
            "product",
            "model",
            "serial_number",
            "purchase_time",
            "warranty_end_time",
            "contract",
            "site_address",
            "attributes",
        ]
    ),
    fields={
        "customer": name_field("customers"),
        "product": text_field(),
        "model": text_field(),
        "serial_number": text_field(),
        "contract": text_field(),
    },
    problems=_asset_problems,
    search=lambda message: {
        "customer": message.customer.removeprefix("customers/"),
        "product": message.product,
        "model": message.model,
        "serial_number": message.serial_number,
        "contract": message.contract,
        "serial_key": f"{message.product}|{message.serial_number}" if message.serial_number else "",
    },
)


def weighted_score(criteria: Sequence[Any]) -> float:
    """The mean of what is scored, by weight, 0 to 100; 0 when nothing is. Equal weights where all are 0."""
    scored = [one for one in criteria if one.score >= 0]
    weights = [one.weight for one in scored]
    if not any(weights):
        weights = [1.0] * len(scored)
    total = sum(weights)
    return (
        sum(one.score * weight for one, weight in zip(scored, weights, strict=True)) / total if total else 0.0
    )


class QualityCalls:
    """QualityService."""

    def __init__(self, store: Records, handlers: Handlers, clock: Clock) -> None:
        self._store = store
        self._handlers = handlers
        self._clock = clock
        self._problems = Crud(_PROBLEM, store, clock)
        self._reviews = Crud(_REVIEW, store, clock)
        self._assets = Crud(_ASSET, store, clock)

    # ---- problems

    def CreateProblem(self, request: Any, context: Any) -> Any:
        """Records a problem."""

        def prepare(message: Any) -> None:
            message.state = _Problem.STATE_OPEN

        return self._problems.create(request, "CreateProblem", prepare)

    def GetProblem(self, request: Any, context: Any) -> Any:
        """One problem, with how many tickets are cases of it."""
        message = self._problems.get(request)
        message.ticket_count = self._handlers.count(
            Query(
                conditions=(Condition(field="problem", op="=", value=message.name.removeprefix("problems/")),)
            )
        )
        return message

    def ListProblems(self, request: Any, context: Any) -> quality_pb2.ListProblemsResponse:
        """A page of problems."""
        found, token = self._problems.list(request)
        return quality_pb2.ListProblemsResponse(problems=found, next_page_token=token)

    def UpdateProblem(self, request: Any, context: Any) -> Any:
        """Changes a problem."""
        return self._problems.update(request)

    def TransitionProblem(self, request: Any, context: Any) -> Any:
        """Takes a problem to another state."""
        if why := line_or_text(request.reason):
            raise InvalidArgument(field="reason", why=why)

        def edit(message: Any) -> None:
            target = PROBLEM_TABLE.get((message.state, request.transition))
            if target is None:
                options = ", ".join(verb for state, verb in PROBLEM_TABLE if state == message.state)
                raise IllegalTransition(
                    subject=request.name,
                    why=f"{request.transition[:64]!r} is not possible now, possible: {options or 'nothing'}",
                    state=_Problem.State.Name(message.state),
                    allowed=options.replace(" ", ""),
                )
            if target == _Problem.STATE_KNOWN_ERROR and not message.root_cause.strip():
                raise InvalidArgument(
                    field="problem.root_cause", why="is required before a cause is identified"
                )
            message.state, message.state_reason = target, request.reason

        return self._problems.change(request.name, request.etag, edit)

    def LinkProblemTickets(self, request: Any, context: Any) -> Any:
        """Says that tickets are cases of a problem, or no longer; each by itself, safe to repeat."""
        problem = self._problems.id_of(request.name)
        self._problems.record(request.name)
        cases = dict[str, bool]()
        for field in ("add_tickets", "remove_tickets"):
            names = getattr(request, field)
            if len(names) > LINKED_MAX:
                raise InvalidArgument(field=field, why=f"at most {LINKED_MAX} are allowed")
            ids = [parse_name(f"{field}[{index}]", "tickets", name) for index, name in enumerate(names)]
            missing = [id for id in ids if not self._handlers.exists(id)]
            if missing:
                raise InvalidArgument(field=field, why=f"tickets/{missing[0]} does not exist")
            cases |= dict.fromkeys(ids, field == "add_tickets")
        for id, wanted in cases.items():
            self._case(id, problem, wanted)
        return self.GetProblem(request, context)

    def _case(self, ticket_id: str, problem: str, wanted: bool) -> None:
        actor = current_identity().subject

        def decide(ticket: Ticket, now: int) -> Change:
            if wanted is (ticket.problem == problem):
                return Change(ticket=ticket)
            changed = replace(
                ticket, problem=problem if wanted else "", updated_ms=max(now, ticket.updated_ms)
            )
            return Change(ticket=changed, happenings=(Updated(fields=("problem",), actor=actor),))

        self._handlers.change(Request(ticket_id=ticket_id), decide)

    # ---- reviews

    def CreateReview(self, request: Any, context: Any) -> Any:
        """Starts a review."""
        return self._scored(self._reviews.create(request, "CreateReview"))

    def GetReview(self, request: Any, context: Any) -> Any:
        """One review with its scores as of now."""
        return self._scored(self._reviews.get(request))

    def ListReviews(self, request: Any, context: Any) -> quality_pb2.ListReviewsResponse:
        """A page of reviews, with the scores of their criteria."""
        found, token = self._reviews.list(request)
        for message in found:
            message.score = weighted_score(message.criteria)
        return quality_pb2.ListReviewsResponse(reviews=found, next_page_token=token)

    def UpdateReview(self, request: Any, context: Any) -> Any:
        """Changes a review's criteria and findings."""

        def check(message: Any) -> None:
            if message.HasField("complete_time"):
                raise ReviewOver(subject=request.review.name, why="is complete")

        return self._scored(self._reviews.update(request, check))

    def CompleteReview(self, request: Any, context: Any) -> Any:
        """Ends a review with a verdict."""
        if request.verdict not in list(_Review.Verdict.values())[1:]:
            raise InvalidArgument(field="verdict", why="must be one of Verdict, and not unspecified")
        if why := line_or_text(request.reason):
            raise InvalidArgument(field="reason", why=why)

        def edit(message: Any) -> None:
            if message.HasField("complete_time"):
                raise ReviewOver(subject=request.name, why="is complete already")
            message.verdict, message.verdict_reason = request.verdict, request.reason
            message.complete_time.FromMilliseconds(self._clock.now_ms())

        return self._scored(self._reviews.change(request.name, request.etag, edit))

    def _scored(self, message: Any) -> Any:
        """The review with what its product's tickets say. Where nobody scored a criterion by hand, the score
        of a product in the market is 100 less the share of its tickets that are complaints or missed their
        target, in percent."""
        tickets = self._product_tickets(message)
        message.ticket_count = len(tickets)
        message.complaint_count = sum(1 for ticket in tickets if ticket.kind is Kind.COMPLAINT)
        message.score = weighted_score(message.criteria)
        by_hand = any(one.score >= 0 for one in message.criteria)
        if not by_hand and message.stage == _Review.STAGE_IN_MARKET and tickets:
            bad = sum(
                1 for t in tickets if t.kind is Kind.COMPLAINT or t.sla.resolution.breached_ms is not None
            )
            message.score = 100 * (1 - bad / len(tickets))
        return message

    def _product_tickets(self, message: Any) -> list[Ticket]:
        conditions = [Condition(field="products", op=":", value=message.product)]
        for name, op in (("start_time", ">="), ("end_time", "<")):
            if message.span.HasField(name):
                value = convert.read_stamp(getattr(message.span, name))
                conditions.append(Condition(field="create_time", op=op, value=value))
        return self._handlers.all_of(Query(conditions=tuple(conditions)), REVIEW_TICKETS_MAX)

    # ---- assets

    def CreateAsset(self, request: Any, context: Any) -> Any:
        """Records something that a customer owns. ALREADY_EXISTS when the product's serial number is
        taken."""
        return self._assets.create(request, "CreateAsset")

    def GetAsset(self, request: Any, context: Any) -> Any:
        """One asset."""
        return self._assets.get(request)

    def ListAssets(self, request: Any, context: Any) -> quality_pb2.ListAssetsResponse:
        """A page of assets."""
        found, token = self._assets.list(request)
        return quality_pb2.ListAssetsResponse(assets=found, next_page_token=token)

    def UpdateAsset(self, request: Any, context: Any) -> Any:
        """Changes an asset."""
        return self._assets.update(request)
