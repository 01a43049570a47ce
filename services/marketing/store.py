"""Where marketing keeps what it knows: the whole store as a port, and on MongoDB. Its parts, each a port and
its MongoDB side, stand in offer_store.py, decision_store.py, decision_figures.py, history_store.py,
customer_store.py, sale_store.py, survey_store.py and model_store.py, and the path of a recommendation in
reader.py. The memory store of both ports is in memory_store.py; one contract suite holds both.

The unit of work is one document. What spans two is made so that a crash in between is found and finished by
the worker:

* A unit of stock. `claim_unit` takes one atomically under a token, then the decision is closed naming that
  token, then `settle_claim` forgets the token. A claim whose decision does not name its token is given back
  by the worker, which first touches the decision, so that a closing still in flight with that token can only
  fail. So stock is never oversold and no unit is lost.
* History after an acceptance. The closed decision is marked `unsettled` until its purchase is stored under an
  id made of the decision's, so repeating is harmless.
"""

from __future__ import annotations

from typing import Protocol

from marketing.customer_store import CustomerStore, MongoCustomerStore
from marketing.decision_figures import DecisionFigures, MongoDecisionFigures
from marketing.decision_store import DecisionStore, MongoDecisionStore
from marketing.history_store import HistoryStore
from marketing.model_store import ModelStore, MongoModelStore
from marketing.offer_store import MongoOfferStore, OfferStore
from marketing.sale_store import MongoSaleStore, SaleStore
from marketing.survey_store import MongoSurveyStore, SurveyStore


class Store(
    OfferStore,
    DecisionStore,
    DecisionFigures,
    HistoryStore,
    CustomerStore,
    SaleStore,
    SurveyStore,
    ModelStore,
    Protocol,
):
    """Blocking access. Any method may raise Unavailable while the database is away; repeat it then."""


class MongoStore(
    MongoOfferStore,
    MongoDecisionStore,
    MongoDecisionFigures,
    MongoCustomerStore,
    MongoSaleStore,
    MongoSurveyStore,
    MongoModelStore,
):
    """The store on MongoDB. Needs `chassis.mongo.connect` first."""
