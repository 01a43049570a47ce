"""The worker process: `python -m crm.worker` consumes the bus and relays what customers' changes tell the
others.

Imports happen inside `main`, after eventlet has patched the standard library.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

#: Pauses of the background loops, real seconds: unfinished merges and erasures, churn scores, webhooks.
SAGA_SECONDS = 5.0
CHURN_SECONDS = 2.0
WEBHOOK_SECONDS = 1.0
#: Age at which a batch of imported rows counts as broken off, real seconds: it is open for less than one.
IMPORT_OPEN_SECONDS = 60.0


def main() -> int:
    """Returns the process's exit status."""
    from chassis import worker

    worker.patch()
    from chassis.config import load_settings
    from crm.app import make_webhooks
    from crm.care_handlers import Care, Retention
    from crm.collections import ALL_AGGREGATES
    from crm.config import CrmSettings
    from crm.consumers import CrmConsumers
    from crm.handlers import Memory
    from crm.sagas import Erasures, Merges
    from crm.store import MongoStore

    settings = load_settings(CrmSettings)
    store, clock = MongoStore(), settings.clock()
    retention = Retention(store, clock)
    CrmConsumers.use = Memory(store, clock, retention.heard_in_call)
    CrmConsumers.webhooks = make_webhooks(clock, private=settings.webhooks_private)
    care, merges, erasures = (
        Care(store, clock, settings.policy()),
        Merges(store, clock),
        Erasures(store, clock),
    )

    def sagas() -> None:
        merges.resume()
        erasures.resume()
        store.finish_imports(datetime.now(UTC) - timedelta(seconds=IMPORT_OPEN_SECONDS))

    def rules() -> None:
        care.ensure_defaults()
        care.run()

    return worker.run_worker(
        settings,
        CrmConsumers,
        documents=ALL_AGGREGATES,
        people="customers",
        background=[
            worker.periodic("sagas", SAGA_SECONDS, sagas),
            worker.periodic("churn", CHURN_SECONDS, retention.rescore),
            worker.periodic("care", settings.care_minutes * 60, rules),
            worker.periodic("webhooks", WEBHOOK_SECONDS, CrmConsumers.webhooks.deliver),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
