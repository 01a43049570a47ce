"""The use cases of one process, put together once: by the server, and by tests with stores of their own."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.clock import Clock
from crm.handlers import (
    Customers,
    CustomFields,
    Memory,
    Policy,
    Questions,
    Recorder,
    ScreenPops,
)
from crm.sagas import Erasures, Merges
from crm.store import Reads, Store


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


def compose(store: Store, reads: Reads, clock: Clock, policy: Policy) -> App:
    """Everything on one pair of stores."""
    return App(
        clock=clock,
        policy=policy,
        customers=Customers(store, clock, policy),
        questions=Questions(reads, policy),
        recorder=Recorder(store, clock, policy),
        pops=ScreenPops(reads, clock, policy),
        fields=CustomFields(store, clock),
        merges=Merges(store, clock),
        erasures=Erasures(store, clock),
        memory=Memory(store, clock),
    )
