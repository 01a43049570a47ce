"""The gRPC process: `python -m tickets`."""

from __future__ import annotations

from chassis import server
from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from tickets.config import TicketsSettings
from tickets.convert import event_of
from tickets.documents import DOCUMENTS
from tickets.handlers import Handlers
from tickets.servicer import SCOPES, bindings
from tickets.store import MongoReader, MongoStore


async def run(settings: TicketsSettings) -> None:
    """Serves until told to end."""
    connect(settings)
    database = async_database(settings)
    handlers = Handlers(MongoStore(), settings.clock(), settings.rules(), event_of)
    services = [
        server.ServiceBinding(descriptor, add, servicer)
        for descriptor, add, servicer in bindings(handlers, MongoReader(database))
    ]
    await server.serve(
        settings,
        services,
        scopes=SCOPES,
        on_start=lambda: ensure_indexes(DOCUMENTS),
        on_stop=[database.client.close, disconnect],
    )


def main() -> int:
    """Returns the process's exit status."""
    return server.main(TicketsSettings, run)
