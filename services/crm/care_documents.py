"""How contracts, usage and care rules lie in MongoDB. Tasks and churn scores stand in `crm.documents`,
because a screen pop reads them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import BooleanField, DictField, Document, FloatField, IntField, ListField, StringField

from chassis.mongo import Aggregate

_PRESENT = {"$gt": ""}
_OWN = {"fields": ["own"], "name": "own", "partialFilterExpression": {"own": _PRESENT}}


def contract_name(id: str) -> str:
    """The resource name of a contract by its `_id`: the one it was created with, whoever has merged since."""
    customer, _, contract = id.partition("|")
    return f"customers/{customer}/contracts/{contract}"


class ContractDocument(Aggregate):
    """A contract; `_id` is "customer|contract" as it was created."""

    resource_collection: ClassVar[str] = "contracts"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "contracts",
        "indexes": [
            {"fields": ["customer", "contract", "_id"], "name": "customer_contract_id"},
            {"fields": ["end_ms", "_id"], "name": "end", "partialFilterExpression": {"end_ms": {"$gt": 0}}},
            {
                "fields": ["balance_value", "_id"],
                "name": "balance",
                "partialFilterExpression": {"balance_value": {"$gt": -1e18}},
            },
            _OWN,
        ],
    }

    customer = StringField(required=True)
    own = StringField()
    contract = StringField(required=True)
    product = StringField()
    title = StringField()
    state = StringField()
    start_ms = IntField()
    end_ms = IntField()
    auto_renew = BooleanField()
    price = DictField()
    allowances = ListField(DictField())
    partner = StringField()
    balance = DictField()
    #: Searched: the balance's amount as a number.
    balance_value = FloatField()

    @property
    def resource(self) -> str:
        """As of `Aggregate`."""
        return contract_name(self.id)


class UsageDocument(Document):
    """What a customer used of one thing in one period; `_id` follows from those."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "usage",
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "indexes": [
            {"fields": ["customer", "-end_ms", "-_id"], "name": "customer_newest"},
            {"fields": ["customer", "metric", "-end_ms", "-_id"], "name": "customer_metric_newest"},
            {"fields": ["end_ms", "_id"], "name": "end"},
            _OWN,
        ],
    }

    id = StringField(primary_key=True)
    customer = StringField(required=True)
    own = StringField()
    contract = StringField()
    metric = StringField()
    start_ms = IntField()
    end_ms = IntField()
    quantity = FloatField()
    allowance = FloatField()


class CareRuleDocument(Aggregate):
    """A care rule."""

    resource_collection: ClassVar[str] = "careRules"
    meta: ClassVar[dict[str, Any]] = {"collection": "care_rules", "indexes": []}

    title = StringField()
    trigger = StringField(required=True)
    days_before = IntField()
    threshold = FloatField()
    tier_min = StringField()
    texts = DictField()
    enabled = BooleanField()


CARE_DOCUMENTS: tuple[type[Document], ...] = (ContractDocument, UsageDocument, CareRuleDocument)
