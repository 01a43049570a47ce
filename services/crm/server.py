"""The gRPC process: `python -m crm`."""

from __future__ import annotations

from chassis import eventservice, server
from chassis.acts import Acts
from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from crm.app import compose
from crm.collections import ALL_DOCUMENTS
from crm.config import CrmSettings
from crm.lifecycle import LIFECYCLE
from crm.scopes import SCOPES
from crm.servicer import bindings
from crm.store import MongoReads, MongoStore


async def run(settings: CrmSettings) -> None:
    """Serves until told to end."""
    connect(settings)
    database = async_database(settings)
    app = compose(
        MongoStore(),
        MongoReads(database),
        settings.clock(),
        settings.policy(),
        private_webhooks=settings.webhooks_private,
    )
    events = eventservice.EventSource("crm", lambda: database)
    await server.serve(
        settings,
        [*(server.ServiceBinding(*parts) for parts in bindings(app)), events.binding()],
        scopes={**SCOPES, **eventservice.scopes("crm")},
        acts=Acts("crm", lambda: database, LIFECYCLE.acts),
        on_drain=events.drain,
        on_start=lambda: ensure_indexes(ALL_DOCUMENTS),
        on_stop=[database.client.close, disconnect],
    )


def main() -> int:
    """Returns the process's exit status."""
    return server.main(CrmSettings, run)
