"""The gRPC process: `python -m tickets`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from pymongo.errors import PyMongoError

from chassis import eventservice, logs, server
from chassis.acts import Acts
from chassis.errors import CallmeshError, StartError
from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from tickets.config import TicketsSettings
from tickets.configuring import Configuring, apply_file
from tickets.convert import event_of
from tickets.documents import DOCUMENTS
from tickets.feedback import FEEDBACK_DOCUMENTS, MongoFeedback
from tickets.governing import REFRESH_SECONDS, Governor, MongoState
from tickets.handlers import Handlers
from tickets.hotstore import AsyncMongoStore
from tickets.knowledge import Library
from tickets.lifecycle import LIFECYCLE
from tickets.opening import Opening
from tickets.records import RECORDS, MongoRecords
from tickets.reporting import ImportedCaseDocument, MongoImports
from tickets.scopes import SCOPES
from tickets.servicer import (
    ExpertServicer,
    FlowServicer,
    KnowledgeServicer,
    QualityServicer,
    ReportServicer,
    Servicers,
    SlaServicer,
    TeamServicer,
    TicketServicer,
    bindings,
)
from tickets.store import MongoStore
from tickets.teams import Teams

log = logs.get_logger(__name__)


class Parts:
    """What the process serves, and what is done before the first and after the last call."""

    def __init__(self, settings: TicketsSettings) -> None:
        """Connects to MongoDB. Needs a running event loop; StartError when the database does not answer."""
        connect(settings)
        self._settings = settings
        self.database = async_database(settings)
        clock, base, state = settings.clock(), settings.rules(), MongoState()
        store, self._records, hot = MongoStore(), MongoRecords(), AsyncMongoStore(self.database)
        self.governor = Governor(base, self._records, state, clock)
        handlers = Handlers(store, clock, self.governor.rules, event_of)
        self._feedback = MongoFeedback()
        self.library = Library(self._records, clock, self._feedback)
        opening = Opening(hot, clock, self.governor.rules, event_of)
        self._configuring = Configuring(self._records, self.governor, handlers, clock)
        servicers = Servicers(
            tickets=TicketServicer(handlers, opening, hot, Teams(self.governor.rules, store, state)),
            flows=FlowServicer(self._configuring),
            sla=SlaServicer(self._configuring),
            teams=TeamServicer(self._configuring),
            knowledge=KnowledgeServicer(self.library, handlers),
            experts=ExpertServicer(self.library, handlers),
            quality=QualityServicer(self._records, handlers, clock),
            reports=ReportServicer(store.whole, MongoImports(), clock),
        )
        self.services = [server.ServiceBinding(*binding) for binding in bindings(servicers)]
        self._watching: asyncio.Task[None] | None = None
        self.on_start: list[server.Hook] = [self._prepare, self._watch]
        self.on_stop: list[server.Hook] = [self._stop, self.database.client.close, disconnect]

    def _prepare(self) -> None:
        ensure_indexes((*DOCUMENTS, *RECORDS.values(), *FEEDBACK_DOCUMENTS, ImportedCaseDocument))
        self.governor.refresh()
        apply_setup_file(self._configuring, self._settings.setup_file)

    def _watch(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(
            keep_fresh(self.governor.refresh, self.library.refresh, self._feedback.flush)
        )

    async def _stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()


async def keep_fresh(*works: Callable[[], object]) -> None:
    """Looks for changed rules and articles, and writes down what was looked for, for as long as the process
    serves; an outage is borne."""
    while True:
        for work in works:
            try:
                await asyncio.to_thread(work)
            except (PyMongoError, CallmeshError) as error:
                log.warning("server.not_refreshed", error=repr(error))
            except Exception:
                # One thing that cannot be read must not leave all others as they are for ever.
                log.exception("server.refresh_failed")
        await asyncio.sleep(REFRESH_SECONDS)


def apply_setup_file(parts: Configuring, path: str) -> None:
    """Puts what the setup file holds into the database; StartError saying what is wrong with it."""
    if not path:
        return
    try:
        content = json.loads(Path(path).read_bytes())
        changed = apply_file(parts, content)
    except (OSError, ValueError) as error:
        raise StartError(f"{path} cannot be read: {error}") from None
    except CallmeshError as error:
        raise StartError(f"{path}: {error}") from None
    log.info("setup.applied", changed=changed)


async def run(settings: TicketsSettings) -> None:
    """Serves until told to end."""
    parts = Parts(settings)
    events = eventservice.EventSource("tickets", lambda: parts.database)
    await server.serve(
        settings,
        [*parts.services, events.binding()],
        scopes={**SCOPES, **eventservice.scopes("tickets")},
        acts=Acts("tickets", lambda: parts.database, LIFECYCLE.acts),
        on_start=parts.on_start,
        on_drain=events.drain,
        on_stop=parts.on_stop,
    )


def main() -> int:
    """Returns the process's exit status."""
    return server.main(TicketsSettings, run)
