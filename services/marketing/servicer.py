"""The gRPC face: messages in, use case, message out.

Plain `def` methods run in the server's thread pool and may block; `async def` ones run on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from google.protobuf.empty_pb2 import Empty

from callmesh.marketing.v1 import (
    offers_pb2,
    offers_pb2_grpc,
    recommendations_pb2,
    recommendations_pb2_grpc,
)
from chassis import localize
from chassis.auth import current_identity
from chassis.clock import Clock, from_ms, to_ms
from chassis.errors import InvalidArgument
from chassis.fieldmask import apply_mask
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import check_id, new_id, parse_name, parse_names
from chassis.localize import caller_language
from chassis.mongo import parse_etag
from chassis.pagination import Page
from marketing import convert, wire
from marketing.decision_store import DecisionFilter
from marketing.handlers import Decisions, History, Models, Offers, Recommender
from marketing.kinds import DEFAULT_POLICY, PolicyNotFound
from marketing.learned import Policies, Propensities, Versions
from marketing.model import Contact, ModelInfo, OfferState, OfferVerb, Profile, Purchase
from marketing.offer_store import OfferFilter
from marketing.policy import Policy
from marketing.rules import CustomerFacts, parse_rule, rule_problems
from marketing.scopes import method

#: Most purchases in one request.
PURCHASES_MAX = convert.PURCHASES_MAX
#: Refused purchases that an import tells of.
REJECTED_SHOWN_MAX = 100
#: Customers that a rule is tried on.
SAMPLE_CUSTOMERS = 1_000
#: How far back a policy is judged by unless asked otherwise, and at most.
JUDGED_USUAL = timedelta(days=90)
JUDGED_LONGEST = timedelta(days=400)
#: Most batches of one import.
IMPORT_BATCHES_MAX = 10_000


def _repeat(full_method: str, request: Any) -> tuple[str | None, str | None]:
    key = request_key(current_identity(), full_method, request.request_id)
    return key, content_fingerprint(request) if key is not None else None


def _optional_id(field: str, collection: str, name: str) -> str | None:
    return parse_name(field, collection, name) if name else None


class OfferServicer(offers_pb2_grpc.OfferServiceServicer):
    """OfferService."""

    def __init__(self, offers: Offers, currency: str) -> None:
        self._offers = offers
        self._currency = currency

    def CreateOffer(self, request: offers_pb2.CreateOfferRequest, context: Any) -> offers_pb2.Offer:
        """Adds a draft."""
        key, fingerprint = _repeat(method("OfferService", "CreateOffer"), request)
        offer_id = check_id("offer_id", request.offer_id) if request.offer_id else new_id()
        offer = convert.offer_from_proto(request.offer, offer_id, self._currency)
        stored = self._offers.create(
            offer, request_key=key, fingerprint=fingerprint, validate_only=request.validate_only
        )
        return convert.offer_to_proto(stored)

    def GetOffer(self, request: offers_pb2.GetOfferRequest, context: Any) -> offers_pb2.Offer:
        """Reads one."""
        return convert.offer_to_proto(self._offers.get(parse_name("name", "offers", request.name)))

    def ListOffers(
        self, request: offers_pb2.ListOffersRequest, context: Any
    ) -> offers_pb2.ListOffersResponse:
        """A page by id."""
        page = Page.of(request)
        state = convert.enum_member(offers_pb2.OfferState, "OFFER_STATE", request.state, OfferState)
        if request.state and state is None:
            raise InvalidArgument(field="state", why="is not a value that this server knows")
        query = OfferFilter(state=state, product=request.product or None, tag=request.tag or None)
        found = self._offers.list(query, page.limit + 1, page.value(str))
        shown, token = page.cut(found, attrgetter("id"))
        return offers_pb2.ListOffersResponse(
            offers=[convert.offer_to_proto(offer) for offer in shown], next_page_token=token
        )

    def UpdateOffer(self, request: offers_pb2.UpdateOfferRequest, context: Any) -> offers_pb2.Offer:
        """Changes the content."""
        offer_id = parse_name("offer.name", "offers", request.offer.name)
        version = parse_etag("offer.etag", request.offer.etag)

        def change(present: Any) -> Any:
            target = convert.offer_to_proto(present)
            apply_mask(
                target,
                request.offer,
                request.update_mask,
                allowed=convert.OFFER_CHANGEABLE,
                immutable=convert.OFFER_FIXED,
                at="offer",
            )
            return convert.offer_from_proto(target, offer_id, self._currency, present)

        return convert.offer_to_proto(self._offers.update(offer_id, version, change, request.validate_only))

    def DeleteOffer(self, request: offers_pb2.DeleteOfferRequest, context: Any) -> Empty:
        """Removes one that is not published."""
        self._offers.delete(parse_name("name", "offers", request.name), parse_etag("etag", request.etag))
        return Empty()

    def PublishOffer(self, request: offers_pb2.PublishOfferRequest, context: Any) -> offers_pb2.Offer:
        """Lets it be suggested."""
        return self._move(request, OfferVerb.PUBLISH)

    def RetireOffer(self, request: offers_pb2.RetireOfferRequest, context: Any) -> offers_pb2.Offer:
        """Lets it be suggested no more."""
        return self._move(request, OfferVerb.RETIRE)

    def _move(self, request: Any, verb: OfferVerb) -> offers_pb2.Offer:
        offer_id, version = parse_name("name", "offers", request.name), parse_etag("etag", request.etag)
        return convert.offer_to_proto(self._offers.move(offer_id, version, verb))

    def ListOfferRevisions(
        self, request: offers_pb2.ListOfferRevisionsRequest, context: Any
    ) -> offers_pb2.ListOfferRevisionsResponse:
        """A page of versions, newest first."""
        offer_id, page = parse_name("name", "offers", request.name), Page.of(request)
        found = self._offers.revisions(offer_id, page.limit + 1, page.value(int))
        shown, token = page.cut(found, attrgetter("version"))
        return offers_pb2.ListOfferRevisionsResponse(
            offers=[convert.offer_to_proto(offer) for offer in shown], next_page_token=token
        )

    def CheckEligibilityRule(
        self, request: offers_pb2.CheckEligibilityRuleRequest, context: Any
    ) -> offers_pb2.CheckEligibilityRuleResponse:
        """What is wrong with a rule, and how many of a sample of customers it matches."""
        response = offers_pb2.CheckEligibilityRuleResponse()
        problems = rule_problems(request.rule)
        for problem in problems:
            response.problems.add(offset=problem.offset, code=problem.code, message=problem.message)
        if all(problem.harmless for problem in problems):
            rule, now = parse_rule(request.rule), self._offers.now()
            sample = self._offers.sample(SAMPLE_CUSTOMERS)
            response.sampled_count = len(sample)
            response.matched_count = sum(_matches(rule.matches, profile, now) for profile in sample)
        return response


def _matches(matches: Any, profile: Profile, now: datetime) -> bool:
    return bool(matches(CustomerFacts(profile, Contact(), now)))


class RecommendationServicer(recommendations_pb2_grpc.RecommendationServiceServicer):
    """RecommendationService."""

    def __init__(
        self,
        recommender: Recommender,
        decisions: Decisions,
        history: History,
        models: Models,
        clock: Clock,
        propensities: Propensities,
        policies: Policies,
        currency: str,
        effects: Mapping[int, Versions] | None = None,
    ) -> None:
        """`effects` are the further kinds of learned models, by the proto's number."""
        self._kinds: dict[int, Models | Versions] = {
            recommendations_pb2.MODEL_KIND_ASSOCIATION: models,
            recommendations_pb2.MODEL_KIND_PROPENSITY: propensities,
            **(effects or {}),
        }
        self._propensities = propensities
        self._policies = policies
        self._currency = currency
        self._recommender = recommender
        self._decisions = decisions
        self._history = history
        self._models = models
        self._clock = clock

    async def Recommend(self, request: recommendations_pb2.RecommendRequest, context: Any) -> bytes:
        """The hot path: the Decision that it answers is put together encoded."""
        key, fingerprint = _repeat(method("RecommendationService", "Recommend"), request)
        customer, number, contact, limit = convert.recommend_request(request)
        decision = await self._recommender.recommend(
            customer, number, contact, limit, request_key=key, fingerprint=fingerprint
        )
        return wire.decision_wire(decision)

    def RecordOutcome(
        self, request: recommendations_pb2.RecordOutcomeRequest, context: Any
    ) -> recommendations_pb2.Decision:
        """Closes a decision."""
        decision_id, outcome = convert.outcome_request(request, self._clock.now())
        return wire.decision_to_proto(self._decisions.record(decision_id, outcome))

    def GetDecision(
        self, request: recommendations_pb2.GetDecisionRequest, context: Any
    ) -> recommendations_pb2.Decision:
        """Reads one."""
        return wire.decision_to_proto(self._decisions.get(parse_name("name", "decisions", request.name)))

    def ListDecisions(
        self, request: recommendations_pb2.ListDecisionsRequest, context: Any
    ) -> recommendations_pb2.ListDecisionsResponse:
        """A page, newest first."""
        page = Page.of(request)
        if request.state not in recommendations_pb2.DecisionState.values():
            raise InvalidArgument(field="state", why="is not a value that this server knows")
        query = DecisionFilter(
            customer=_optional_id("customer", "customers", request.customer),
            call_id=check_id("call_id", request.call_id) if request.call_id else None,
            open=request.state == recommendations_pb2.DECISION_STATE_OPEN if request.state else None,
        )
        found = self._decisions.list(query, page.limit + 1, page.value(str))
        shown, token = page.cut(found, attrgetter("id"))
        return recommendations_pb2.ListDecisionsResponse(
            decisions=[wire.decision_to_proto(decision) for decision in shown], next_page_token=token
        )

    def RecordPurchases(
        self, request: recommendations_pb2.RecordPurchasesRequest, context: Any
    ) -> recommendations_pb2.RecordPurchasesResponse:
        """All or none."""
        good, bad = self._purchases(request)
        if bad:
            raise InvalidArgument.many([(f"purchases[{index}].{field}", why) for index, (field, why) in bad])
        new = self._history.record(good)
        return recommendations_pb2.RecordPurchasesResponse(
            recorded_count=new, duplicate_count=len(good) - new
        )

    def _purchases(self, request: Any) -> tuple[list[Purchase], list[tuple[int, tuple[str, str]]]]:
        if not 1 <= len(request.purchases) <= PURCHASES_MAX:
            raise InvalidArgument(field="purchases", why=f"must hold 1 to {PURCHASES_MAX} purchases")
        return convert.purchases_from_proto(request.purchases, self._clock.now())

    async def ImportPurchases(
        self,
        request_iterator: AsyncIterator[recommendations_pb2.ImportPurchasesRequest],
        context: Any,
    ) -> recommendations_pb2.ImportPurchasesResponse:
        """A stream of batches; each is stored before the next is read."""
        response, language = recommendations_pb2.ImportPurchasesResponse(), caller_language(context)
        offset = batches = 0
        async for request in request_iterator:
            batches += 1
            if batches > IMPORT_BATCHES_MAX:
                raise InvalidArgument(field="purchases", why=f"at most {IMPORT_BATCHES_MAX} batches a stream")
            good, bad = self._purchases(request)
            new = await asyncio.to_thread(self._history.record, good)
            response.recorded_count += new
            response.duplicate_count += len(good) - new
            response.rejected_count += len(bad)
            for index, (field, why) in bad[: REJECTED_SHOWN_MAX - len(response.rejected)]:
                said = localize.description(why, language, "marketing")
                response.rejected.add(index=offset + index, field=field, description=said)
            offset += len(request.purchases)
        return response

    def ListPurchases(
        self, request: recommendations_pb2.ListPurchasesRequest, context: Any
    ) -> recommendations_pb2.ListPurchasesResponse:
        """A page, newest first."""
        customer, page = parse_name("customer", "customers", request.customer), Page.of(request)
        found = self._history.list(customer, page.limit + 1, _after_purchase(page))
        shown, token = page.cut(found, lambda purchase: (to_ms(purchase.at), purchase.id))
        return recommendations_pb2.ListPurchasesResponse(
            purchases=[convert.purchase_to_proto(purchase) for purchase in shown], next_page_token=token
        )

    def GetProfile(
        self, request: recommendations_pb2.GetProfileRequest, context: Any
    ) -> recommendations_pb2.Profile:
        """What is known of a customer."""
        if not request.name.endswith("/profile"):
            raise InvalidArgument(field="name", why="must have the form customers/{id}/profile")
        (customer,) = parse_names("name", ("customers",), request.name.removesuffix("/profile"))
        profile, complaints = self._history.profile(customer)
        tickets = [complaint.ticket for complaint in complaints]
        return convert.profile_to_proto(profile, tickets, self._history.now())

    def _of(self, model_id: str) -> tuple[int, Models | Versions]:
        """(the proto's number of a model's kind, its versions)."""
        for kind, versions in self._kinds.items():
            if isinstance(versions, Versions) and versions.owns(model_id):
                return kind, versions
        return recommendations_pb2.MODEL_KIND_ASSOCIATION, self._models

    def _kind(self, kind: int) -> Models | Versions:
        if (found := self._kinds.get(kind)) is not None:
            return found
        known = ", ".join(recommendations_pb2.ModelKind.Name(each) for each in self._kinds)
        raise InvalidArgument(field="kind", why=f"must be one of {known}")

    def GetModel(
        self, request: recommendations_pb2.GetModelRequest, context: Any
    ) -> recommendations_pb2.Model:
        """Reads one version."""
        model_id = parse_name("name", "models", request.name)
        return self._shown(self._of(model_id)[1].get(model_id))

    def _shown(self, info: ModelInfo) -> recommendations_pb2.Model:
        return convert.model_to_proto(info, self._of(info.id)[0])

    def ListModels(
        self, request: recommendations_pb2.ListModelsRequest, context: Any
    ) -> recommendations_pb2.ListModelsResponse:
        """A page of versions, newest first; of all kinds, one kind after another."""
        page = Page.of(request)
        wanted = [kind for kind in sorted(self._kinds) if request.kind in (0, kind)]
        first, below = page.key(int, int) or (0, None)
        rows: list[tuple[int, ModelInfo]] = []
        for kind in wanted:
            if kind >= first and len(rows) <= page.limit:
                bound = below if kind == first else None
                found = self._kinds[kind].list(page.limit + 1 - len(rows), bound)
                rows += [(kind, info) for info in found]
        shown, token = page.cut(rows, lambda row: (row[0], row[1].version))
        return recommendations_pb2.ListModelsResponse(
            models=[self._shown(info) for _, info in shown], next_page_token=token
        )

    def TrainModel(
        self, request: recommendations_pb2.TrainModelRequest, context: Any
    ) -> recommendations_pb2.Model:
        """Asks the worker for a new version."""
        return self._shown(self._kind(request.kind).train())

    def ActivateModel(
        self, request: recommendations_pb2.ActivateModelRequest, context: Any
    ) -> recommendations_pb2.Model:
        """Lets a version serve."""
        model_id = parse_name("name", "models", request.name)
        return self._shown(self._of(model_id)[1].activate(model_id))

    def RollbackModel(
        self, request: recommendations_pb2.RollbackModelRequest, context: Any
    ) -> recommendations_pb2.Model:
        """Back to the version before."""
        return self._shown(self._kind(request.kind).rollback())

    def GetPolicy(
        self, request: recommendations_pb2.GetPolicyRequest, context: Any
    ) -> recommendations_pb2.Policy:
        """Reads the policy."""
        _default_policy("name", request.name)
        return convert.policy_to_proto(self._policies.get())

    def UpdatePolicy(
        self, request: recommendations_pb2.UpdatePolicyRequest, context: Any
    ) -> recommendations_pb2.Policy:
        """Changes the policy."""
        _default_policy("policy.name", request.policy.name)
        version = parse_etag("policy.etag", request.policy.etag)

        def change(present: Policy) -> Policy:
            target = convert.policy_to_proto(present)
            apply_mask(
                target,
                request.policy,
                request.update_mask,
                allowed=convert.POLICY_CHANGEABLE,
                immutable={"name"},
                at="policy",
            )
            return convert.policy_from_proto(target, self._currency)

        return convert.policy_to_proto(self._policies.update(version, change))

    def EvaluatePolicy(
        self, request: recommendations_pb2.EvaluatePolicyRequest, context: Any
    ) -> recommendations_pb2.PolicyEvaluation:
        """How another policy would have done."""
        policy = convert.policy_from_proto(request.policy, self._currency)
        model = parse_name("model", "models", request.model) if request.model else ""
        if model and not self._propensities.owns(model):
            raise InvalidArgument(field="model", why="must be a version of the propensity model")
        span = convert.span_of("interval", request.interval, self._clock.now(), JUDGED_USUAL, JUDGED_LONGEST)
        return convert.evaluation_to_proto(self._policies.evaluate(policy, model, *span), *span)


def _default_policy(field: str, name: str) -> None:
    if parse_name(field, "policies", name) != DEFAULT_POLICY:
        raise PolicyNotFound(resource=name)


def _after_purchase(page: Page) -> tuple[datetime, str] | None:
    key = page.key(int, str)
    if key is None:
        return None
    at_ms, id = key
    try:
        return from_ms(at_ms), id
    except (ValueError, OverflowError):
        raise InvalidArgument(field="page_token", why="is not a token that this list gave out") from None
