"""The use cases of one process, put together once: by the server, and by tests with stores of their own."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.clock import Clock
from crm import inbound
from crm.care_handlers import Care, Contracts, Retention
from crm.handlers import (
    Customers,
    CustomFields,
    Memory,
    Policy,
    Questions,
    Recorder,
    ScreenPops,
)
from crm.import_rows import appliers
from crm.imports import Imports
from crm.sagas import Erasures, Merges
from crm.store import Reads, Store
from crm.voice import Reasons, Voice
from crm.webhooks import Sender, Webhooks


@dataclass(frozen=True, kw_only=True, slots=True)
class App:
    """What the servicers call."""

    #: Business and real time.
    clock: Clock
    #: What an operator decides.
    policy: Policy
    #: Writing customers.
    customers: Customers
    #: Reading.
    questions: Questions
    #: Recording interactions.
    recorder: Recorder
    #: Screen pops.
    pops: ScreenPops
    #: Declaring custom fields.
    fields: CustomFields
    #: Merging and its undoing.
    merges: Merges
    #: Legal erasure.
    erasures: Erasures
    #: What events tell.
    memory: Memory
    #: Contracts and usage.
    contracts: Contracts
    #: Rules and tasks.
    care: Care
    #: Churn.
    retention: Retention
    #: The tree of contact reasons.
    reasons: Reasons
    #: Insights.
    voice: Voice
    #: Files in.
    imports: Imports
    #: Partners' webhooks.
    webhooks: Webhooks


def compose(
    store: Store, reads: Reads, clock: Clock, policy: Policy, *, private_webhooks: bool = False
) -> App:
    """Everything on one pair of stores; `private_webhooks` allows private addresses and plain http."""
    customers = Customers(store, clock, policy)
    recorder = Recorder(store, clock, policy)
    contracts = Contracts(store, clock)
    reasons = Reasons(clock)
    return App(
        clock=clock,
        policy=policy,
        customers=customers,
        questions=Questions(reads, policy),
        recorder=recorder,
        pops=ScreenPops(reads, clock, policy),
        fields=CustomFields(store, clock),
        merges=Merges(store, clock),
        erasures=Erasures(store, clock),
        memory=Memory(store, clock),
        contracts=contracts,
        care=Care(store, clock, policy),
        retention=Retention(store, clock),
        reasons=reasons,
        voice=Voice(clock, reasons),
        imports=Imports(customers, clock, appliers(contracts, recorder)),
        webhooks=make_webhooks(clock, private=private_webhooks),
    )


def make_webhooks(clock: Clock, *, private: bool) -> Webhooks:
    """Webhooks for every event that crm hears or tells."""
    return Webhooks(clock, Sender(private=private), known_types=inbound.WEBHOOK_TYPES, private=private)
