"""The worker process: `python -m routing.worker` publishes the journals of all shards and the directory's
changes, counts the journals into half-hour reports, makes snapshots of the shards and prunes their journals,
and keeps the audit log and what routing knows of customers and their open tickets.

Imports happen inside `main`, after eventlet has patched the standard library.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Returns the process's exit status."""
    from chassis import worker

    worker.patch()
    from callmesh.routing.v1 import menu_events_pb2
    from chassis.config import load_settings
    from routing.audit_store import MongoAudit
    from routing.background import Loops
    from routing.config import RoutingSettings
    from routing.consumers import RoutingConsumers
    from routing.documents import DIRECTORY
    from routing.menus.documents import TELLING
    from routing.menus.inbound import MongoCallers
    from routing.publish import OPTIONAL
    from routing.store import MongoProfiles

    settings = load_settings(RoutingSettings)
    RoutingConsumers.use = MongoProfiles()
    RoutingConsumers.acts = MongoAudit()
    RoutingConsumers.callers = MongoCallers()
    loops = Loops(settings)
    return worker.run_worker(
        settings,
        RoutingConsumers,
        documents=(*DIRECTORY, *TELLING),
        background=[
            worker.Background(name="journal", run=loops.journal),
            worker.Background(name="reports", run=loops.reports),
            worker.Background(name="snapshots", run=loops.snapshots),
            worker.Background(name="callers", run=loops.callers),
        ],
        # Nobody need listen to which version of a menu is in service.
        optional_events=(*OPTIONAL, menu_events_pb2.MenuPublished),
    )


if __name__ == "__main__":
    sys.exit(main())
