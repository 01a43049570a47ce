"""The gRPC face of care and retention."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import care_pb2, care_pb2_grpc
from chassis.callcontext import current_identity
from chassis.errors import InvalidArgument
from chassis.fieldmask import apply_mask
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import check_id, new_id, parse_name, parse_names
from chassis.localize import caller_language, description
from chassis.mongo import etag, parse_etag
from chassis.pagination import Page
from crm import churn, convert
from crm.app import App
from crm.care_documents import contract_name
from crm.care_handlers import USAGE_MAX
from crm.model import Churn
from crm.records import Raw

_CONTRACT_STATES = {
    care_pb2.Contract.STATE_UNSPECIFIED: "ACTIVE",
    care_pb2.Contract.STATE_ACTIVE: "ACTIVE",
    care_pb2.Contract.STATE_SUSPENDED: "SUSPENDED",
    care_pb2.Contract.STATE_ENDED: "ENDED",
}
_TASK_STATES: dict[str, Any] = {
    name.removeprefix("STATE_"): number for name, number in care_pb2.CareTask.State.items() if number
}
_UPDATABLE_CONTRACT = frozenset(
    {
        *("product", "title", "state", "start_time", "end_time", "auto_renew", "monthly_price"),
        *("allowances", "partner", "balance"),
    }
)
_UPDATABLE_RULE = frozenset({"title", "days_before", "threshold", "tier_min", "texts", "enabled"})


def _ms(message: Any, field: str) -> int | None:
    return int(getattr(message, field).ToMilliseconds()) if message.HasField(field) else None


def _money_in(message: Any, field: str) -> dict[str, str] | None:
    if not message.HasField(field):
        return None
    money = getattr(message, field)
    return {"currency": money.currency_code, "amount": money.amount}


def _money_out(raw: Mapping[str, Any] | None) -> common_pb2.Money | None:
    return common_pb2.Money(currency_code=raw["currency"], amount=raw["amount"]) if raw else None


def contract_in(message: care_pb2.Contract) -> dict[str, Any]:
    """A contract's fields as a caller wrote them, not checked yet."""
    state = _CONTRACT_STATES.get(message.state)
    if state is None:
        raise InvalidArgument(field="contract.state", why=f"has no value {message.state}")
    return {
        "product": message.product,
        "title": message.title,
        "state": state,
        "start_ms": _ms(message, "start_time"),
        "end_ms": _ms(message, "end_time"),
        "auto_renew": message.auto_renew,
        "price": _money_in(message, "monthly_price"),
        "allowances": [{"metric": a.metric, "quantity": a.quantity} for a in message.allowances],
        "partner": message.partner,
        "balance": _money_in(message, "balance"),
    }


def contract_out(raw: Raw) -> care_pb2.Contract:
    """A contract as callers see it."""
    states = {name: number for number, name in _CONTRACT_STATES.items() if number}
    return care_pb2.Contract(
        name=contract_name(raw["_id"]),
        product=raw.get("product") or "",
        title=raw.get("title") or "",
        state=states[raw.get("state") or "ACTIVE"],
        start_time=convert.ms_timestamp(raw.get("start_ms")),
        end_time=convert.ms_timestamp(raw.get("end_ms")),
        auto_renew=bool(raw.get("auto_renew")),
        monthly_price=_money_out(raw.get("price")),
        allowances=[
            care_pb2.Allowance(metric=a["metric"], quantity=a["quantity"])
            for a in raw.get("allowances") or ()
        ],
        partner=raw.get("partner") or "",
        balance=_money_out(raw.get("balance")),
        create_time=convert.timestamp(raw.get("created_at")),
        update_time=convert.timestamp(raw.get("updated_at")),
        etag=etag(raw["version"]),
    )


def usage_in(message: care_pb2.UsageRecord, index: int) -> dict[str, Any]:
    """A usage record as a caller wrote it; InvalidArgument for a bad customer name."""
    return {
        "customer": parse_name(f"usage_records[{index}].customer", "customers", message.customer),
        "contract": message.contract[:300],
        "metric": message.metric,
        "start_ms": _ms(message.period, "start_time"),
        "end_ms": _ms(message.period, "end_time"),
        "quantity": message.quantity,
        "allowance": message.allowance,
    }


def usage_out(raw: Raw) -> care_pb2.UsageRecord:
    """A usage record as callers see it."""
    return care_pb2.UsageRecord(
        customer=f"customers/{raw['customer']}",
        contract=raw.get("contract") or "",
        metric=raw["metric"],
        period=common_pb2.Interval(
            start_time=convert.ms_timestamp(raw["start_ms"]), end_time=convert.ms_timestamp(raw["end_ms"])
        ),
        quantity=raw.get("quantity") or 0.0,
        allowance=raw.get("allowance") or 0.0,
    )


def rule_in(message: care_pb2.CareRule) -> dict[str, Any]:
    """A rule's fields as a caller wrote them, not checked yet."""
    names = {number: name.removeprefix("TRIGGER_") for name, number in care_pb2.CareRule.Trigger.items()}
    return {
        "title": message.title,
        "trigger": names.get(message.trigger, ""),
        "days_before": message.days_before,
        "threshold": message.threshold,
        "tier_min": message.tier_min.removeprefix("TIER_"),
        "texts": dict(message.texts),
        "enabled": message.enabled,
    }


def rule_out(raw: Raw) -> care_pb2.CareRule:
    """A rule as callers see it."""
    return care_pb2.CareRule(
        name=f"careRules/{raw['_id']}",
        title=raw.get("title") or "",
        trigger=f"TRIGGER_{raw['trigger']}",
        days_before=raw.get("days_before") or 0,
        threshold=raw.get("threshold") or 0.0,
        tier_min=raw.get("tier_min") or "",
        texts=raw.get("texts") or {},
        enabled=bool(raw.get("enabled")),
        etag=etag(raw["version"]),
        create_time=convert.timestamp(raw.get("created_at")),
        update_time=convert.timestamp(raw.get("updated_at")),
    )


def task_out(raw: Raw) -> care_pb2.CareTask:
    """A task as callers see it; a previewed one has no name."""
    return care_pb2.CareTask(
        name=f"careTasks/{raw['_id']}" if "_id" in raw else "",
        customer=f"customers/{raw['customer']}",
        care_rule=f"careRules/{raw['rule']}",
        kind=raw["kind"],
        text=raw.get("text") or "",
        state=_TASK_STATES[raw["state"]],
        due_time=convert.ms_timestamp(raw.get("due_ms")),
        snooze_time=convert.ms_timestamp(raw.get("snooze_ms")),
        outcome=raw.get("outcome") or "",
        closer=raw.get("closer") or "",
        create_time=convert.timestamp(raw.get("created_at")),
        update_time=convert.timestamp(raw.get("updated_at")),
    )


def churn_out(found: Churn, language: str) -> care_pb2.ChurnRisk:
    """A churn score as callers see it."""
    return care_pb2.ChurnRisk(
        name=f"customers/{found.customer}/churnRisk",
        score=found.score,
        reasons=[
            care_pb2.ChurnReason(code=r.code, text=churn.text(r, language), weight=r.weight)
            for r in found.reasons
        ],
        wants_to_leave=found.wants_to_leave,
        leave_intent_time=convert.ms_timestamp(found.intent_ms or None),
        score_time=convert.ms_timestamp(found.scored_ms or None),
    )


def _contract_name(field: str, name: str) -> tuple[str, str]:
    customer, contract = parse_names(field, ("customers", "contracts"), name)
    return customer, contract


class CareServicer(care_pb2_grpc.CareServiceServicer):
    """CareService."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._contracts = app.contracts
        self._care = app.care
        self._retention = app.retention

    def CreateContract(self, request: care_pb2.CreateContractRequest, context: Any) -> care_pb2.Contract:
        """Creates a contract."""
        key = request_key(current_identity(), "CreateContract", request.request_id)
        done = self._contracts.create(
            parse_name("parent", "customers", request.parent),
            request.contract_id,
            contract_in(request.contract),
            key,
            content_fingerprint(request) if key else None,
        )
        return contract_out(done)

    def GetContract(self, request: care_pb2.GetContractRequest, context: Any) -> care_pb2.Contract:
        """One contract."""
        return contract_out(self._contracts.get(*_contract_name("name", request.name)))

    def ListContracts(
        self, request: care_pb2.ListContractsRequest, context: Any
    ) -> care_pb2.ListContractsResponse:
        """A page of contracts."""
        page = Page.of(request)
        customer = parse_name("parent", "customers", request.parent)
        found = self._contracts.page(customer, page.key(str, str), page.limit + 1)
        shown, token = page.cut(found, lambda raw: (raw["contract"], raw["_id"]))
        return care_pb2.ListContractsResponse(
            contracts=[contract_out(raw) for raw in shown], next_page_token=token
        )

    def UpdateContract(self, request: care_pb2.UpdateContractRequest, context: Any) -> care_pb2.Contract:
        """Changes a contract."""

        def edit(raw: Raw) -> dict[str, Any]:
            message = contract_out(raw)
            apply_mask(message, request.contract, request.update_mask, allowed=_UPDATABLE_CONTRACT)
            return contract_in(message)

        done = self._contracts.update(
            *_contract_name("contract.name", request.contract.name),
            edit,
            parse_etag("contract.etag", request.contract.etag),
        )
        return contract_out(done)

    def DeleteContract(self, request: care_pb2.DeleteContractRequest, context: Any) -> care_pb2.Contract:
        """Deletes a contract."""
        gone = self._contracts.delete(*_contract_name("name", request.name), parse_etag("etag", request.etag))
        return contract_out(gone)

    def RecordUsage(self, request: care_pb2.RecordUsageRequest, context: Any) -> care_pb2.RecordUsageResponse:
        """Records usage."""
        if not 1 <= len(request.usage_records) <= USAGE_MAX:
            raise InvalidArgument(field="usage_records", why=f"must hold 1 to {USAGE_MAX}")
        wanted = [usage_in(message, index) for index, message in enumerate(request.usage_records)]
        count, failures = self._contracts.record_usage(wanted)
        language = caller_language(context)
        return care_pb2.RecordUsageResponse(
            recorded_count=count,
            failures=[f"{f.index}: {f.field}: {description(f.why, language, 'crm')}" for f in failures],
        )

    def ListUsage(self, request: care_pb2.ListUsageRequest, context: Any) -> care_pb2.ListUsageResponse:
        """A page of usage."""
        page = Page.of(request)
        customer = parse_name("parent", "customers", request.parent)
        found = self._contracts.usage(customer, request.metric, page.key(int, str), page.limit + 1)
        shown, token = page.cut(found, lambda raw: (raw["end_ms"], raw["_id"]))
        return care_pb2.ListUsageResponse(
            usage_records=[usage_out(raw) for raw in shown], next_page_token=token
        )

    def CreateCareRule(self, request: care_pb2.CreateCareRuleRequest, context: Any) -> care_pb2.CareRule:
        """Creates a rule."""
        key = request_key(current_identity(), "CreateCareRule", request.request_id)
        id = check_id("care_rule_id", request.care_rule_id) if request.care_rule_id else new_id()
        fingerprint = content_fingerprint(request) if key else None
        return rule_out(self._care.create_rule(id, rule_in(request.care_rule), key, fingerprint))

    def GetCareRule(self, request: care_pb2.GetCareRuleRequest, context: Any) -> care_pb2.CareRule:
        """One rule."""
        return rule_out(self._care.rules.get(parse_name("name", "careRules", request.name)))

    def ListCareRules(
        self, request: care_pb2.ListCareRulesRequest, context: Any
    ) -> care_pb2.ListCareRulesResponse:
        """A page of rules."""
        page = Page.of(request)
        after = page.value(str)
        query = {} if after is None else {"_id": {"$gt": after}}
        found = self._care.rules.find(query, [("_id", 1)], page.limit + 1)
        shown, token = page.cut(found, itemgetter("_id"))
        return care_pb2.ListCareRulesResponse(
            care_rules=[rule_out(raw) for raw in shown], next_page_token=token
        )

    def UpdateCareRule(self, request: care_pb2.UpdateCareRuleRequest, context: Any) -> care_pb2.CareRule:
        """Changes a rule."""

        def edit(raw: Raw) -> dict[str, Any]:
            message = rule_out(raw)
            apply_mask(
                message,
                request.care_rule,
                request.update_mask,
                allowed=_UPDATABLE_RULE,
                immutable={"trigger"},
                at="care_rule",
            )
            return self._care.checked_rule(rule_in(message))

        done = self._care.rules.update(
            parse_name("care_rule.name", "careRules", request.care_rule.name),
            edit,
            parse_etag("care_rule.etag", request.care_rule.etag),
        )
        return rule_out(done)

    def DeleteCareRule(self, request: care_pb2.DeleteCareRuleRequest, context: Any) -> care_pb2.CareRule:
        """Deletes a rule."""
        gone = self._care.rules.delete(
            parse_name("name", "careRules", request.name), parse_etag("etag", request.etag)
        )
        return rule_out(gone)

    def PreviewCareTasks(
        self, request: care_pb2.PreviewCareTasksRequest, context: Any
    ) -> care_pb2.PreviewCareTasksResponse:
        """What the rules would raise."""
        timed = request.HasField("as_of_time")
        as_of = convert.moment_in("as_of_time", request.as_of_time) if timed else None
        found = self._care.preview(parse_name("customer", "customers", request.customer), as_of)
        return care_pb2.PreviewCareTasksResponse(care_tasks=[task_out(raw) for raw in found])

    def GetCareTask(self, request: care_pb2.GetCareTaskRequest, context: Any) -> care_pb2.CareTask:
        """One task."""
        return task_out(self._care.tasks.get(parse_name("name", "careTasks", request.name)))

    def ListCareTasks(
        self, request: care_pb2.ListCareTasksRequest, context: Any
    ) -> care_pb2.ListCareTasksResponse:
        """A page of tasks."""
        page = Page.of(request)
        names = {number: name for name, number in _TASK_STATES.items()}
        states = [names.get(number, "") for number in request.states] or ["OPEN"]
        if "" in states:
            raise InvalidArgument(field="states", why="must name states")
        customer = parse_name("customer", "customers", request.customer) if request.customer else ""
        found = self._care.page(customer, states, page.key(int, str), page.limit + 1)
        shown, token = page.cut(found, lambda raw: (raw["due_ms"], raw["_id"]))
        return care_pb2.ListCareTasksResponse(
            care_tasks=[task_out(raw) for raw in shown], next_page_token=token
        )

    def CloseCareTask(self, request: care_pb2.CloseCareTaskRequest, context: Any) -> care_pb2.CareTask:
        """Closes a task."""
        id = parse_name("name", "careTasks", request.name)
        done = self._care.close(id, request.dismissed, request.outcome, current_identity().subject)
        return task_out(done)

    def SnoozeCareTask(self, request: care_pb2.SnoozeCareTaskRequest, context: Any) -> care_pb2.CareTask:
        """Puts a task off."""
        id = parse_name("name", "careTasks", request.name)
        return task_out(self._care.snooze(id, _ms(request, "snooze_time") or 0))

    def GetChurnRisk(self, request: care_pb2.GetChurnRiskRequest, context: Any) -> care_pb2.ChurnRisk:
        """How likely a customer is to leave."""
        if not request.name.endswith("/churnRisk"):
            raise InvalidArgument(field="name", why="must have the form customers/{id}/churnRisk")
        customer = parse_name("name", "customers", request.name.removesuffix("/churnRisk"))
        return churn_out(self._retention.get(customer), self._app.policy.language)

    def ListChurnRisks(
        self, request: care_pb2.ListChurnRisksRequest, context: Any
    ) -> care_pb2.ListChurnRisksResponse:
        """A page of scores."""
        if not 0.0 <= request.score_min <= 1.0:
            raise InvalidArgument(field="score_min", why="must be 0 to 1")
        page = Page.of(request)
        found = self._retention.page(
            request.score_min, request.wants_to_leave, page.key(float, str), page.limit + 1
        )
        shown, token = page.cut(found, lambda each: (float(each.score), each.customer))
        language = self._app.policy.language
        return care_pb2.ListChurnRisksResponse(
            churn_risks=[churn_out(each, language) for each in shown if not each.customer.startswith("n:")],
            next_page_token=token,
        )

    def FlagLeaveIntent(self, request: care_pb2.FlagLeaveIntentRequest, context: Any) -> care_pb2.ChurnRisk:
        """Sets or clears "wants to leave" by hand."""
        customer = parse_name("customer", "customers", request.customer)
        if len(request.comment) > 500:
            raise InvalidArgument(field="comment", why="must be at most 500 characters")
        self._retention.get(customer)
        now_ms = self._app.clock.now_ms()
        self._retention.flag(customer, request.wants_to_leave, now_ms, comment=request.comment)
        return churn_out(self._retention.score(customer), self._app.policy.language)
