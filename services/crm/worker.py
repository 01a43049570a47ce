"""The worker process: `python -m crm.worker` consumes the bus and relays what customers' changes tell the
others.

Imports happen inside `main`, after eventlet has patched the standard library.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Returns the process's exit status."""
    from chassis import worker

    worker.patch()
    from callmesh.crm.v1 import events_pb2
    from chassis.config import load_settings
    from crm.config import CrmSettings
    from crm.consumers import CrmConsumers
    from crm.documents import AGGREGATES
    from crm.handlers import Memory
    from crm.store import MongoStore

    settings = load_settings(CrmSettings)
    CrmConsumers.use = Memory(MongoStore(), settings.clock())
    return worker.run_worker(
        settings,
        CrmConsumers,
        documents=AGGREGATES,
        # Told for whoever wants to know; the platform's own services can do without.
        optional_events=[events_pb2.InteractionRecorded, events_pb2.CustomerDeleted],
    )


if __name__ == "__main__":
    sys.exit(main())
