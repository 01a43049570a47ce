"""Whoever is erased at crm is taken out of the event log of every service whose log names customers."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime
from typing import Any
from unittest.mock import MagicMock

import pytest

from callmesh.crm.v1 import events_pb2
from chassis.bus import Event

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
#: Service -> (its consumers, who hears of an erasure).
HEARING = {
    "crm": ("CrmConsumers", "on_told"),
    "tickets": ("TicketsConsumers", "on_customer"),
    "marketing": ("MarketingConsumers", "on_customer"),
}


def told(kind: Any) -> Event:
    message = kind(customer={"customer": "customers/1"}, actor="dpo", event_time=NOW)
    return Event.of(message, source="crm", subject="customers/1", time=NOW)


@pytest.mark.parametrize("service", HEARING)
def test_an_erasure_reaches_the_services_own_log(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    consumers = importlib.import_module(f"{service}.consumers")
    name, handler = HEARING[service]
    forgotten: list[tuple[Any, str]] = []
    monkeypatch.setattr(consumers, "get_db", lambda: service)
    monkeypatch.setattr(consumers.eventlog, "forget", lambda *asked: forgotten.append(asked))
    # What else it does with it is for the service's own tests.
    for part in ("forget", "erase", "MongoStore", "forget_assets"):
        monkeypatch.setattr(consumers, part, MagicMock(), raising=False)
    consumer = getattr(consumers, name)
    for part in ("use", "facts", "segments", "webhooks"):
        monkeypatch.setattr(consumer, part, MagicMock(), raising=False)

    getattr(consumer(), handler)(told(events_pb2.CustomerDeleted))
    assert forgotten == [], "one who is only deleted is not forgotten"
    getattr(consumer(), handler)(told(events_pb2.CustomerErased))
    assert forgotten == [(service, "customers/1")]
