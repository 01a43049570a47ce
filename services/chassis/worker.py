"""The bootstrap of every worker process: nameko under eventlet, the outbox relay, probes and a graceful end.

Importing this module loads next to nothing, because eventlet must patch the standard library before anything
that does I/O is imported. A service's worker.py therefore imports inside `main`:

    def main() -> int:
        from chassis import worker

        worker.patch()
        from chassis.config import load_settings
        from crm.config import CrmSettings
        from crm.consumers import CrmConsumers
        from crm.documents import CustomerDocument

        return worker.run_worker(load_settings(CrmSettings), CrmConsumers, documents=[CustomerDocument])

    if __name__ == "__main__":
        raise SystemExit(main())

Exit status: 0 after SIGTERM or SIGINT, 2 when the process could not start, 1 when it broke. With `--declare`
on the command line it declares its queues and ends; with `--subscriptions` it says as JSON which events its
handlers want, and ends. grpc must never be loaded here: it stops working under eventlet.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from chassis.bus.entrypoint import BusOptions
    from chassis.config import ServiceSettings
    from chassis.mongo import Aggregate

#: Waits that many seconds at most, less when the process is to end; whether it is to end.
Stopping = Callable[[float], bool]

#: Modules that keep references to unpatched parts when they are imported before `patch`.
_BEFORE_PATCH = ("amqp", "kombu", "nameko", "pymongo", "mongoengine", "prometheus_client", "structlog")

DECLARE_FLAG, SUBSCRIPTIONS_FLAG = "--declare", "--subscriptions"


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """A loop beside the consumers, in a green thread of its own.

    When it raises, that is logged and counted and it is started again, after a growing pause; when it
    returns, it is done.
    """

    #: Label in metrics and logs.
    name: str
    #: Gets `stopping`, which it calls in place of a sleep and whose True it obeys.
    run: Callable[[Stopping], None]


def periodic(name: str, seconds: float, step: Callable[[], Any]) -> Background:
    """A background loop that calls `step` every so many seconds, counted from its end to its next start."""

    def run(stopping: Stopping) -> None:
        while not stopping(seconds):
            step()

    return Background(name=name, run=run)


def patch() -> None:
    """Makes the standard library green; to be called before anything that does I/O is imported.

    Until `run_worker` nobody looks for garbage: of what is imported nothing is, and to look through it again
    and again takes a fifth of a start. RuntimeError when it is too late, or when grpc is loaded.
    """
    import warnings

    gc.disable()
    # Known and recorded in the process model's decision; every start need not repeat it.
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
    import eventlet.patcher

    if not eventlet.patcher.is_monkey_patched("socket"):
        early = [name for name in _BEFORE_PATCH if name in sys.modules]
        if early:
            raise RuntimeError(f"chassis.worker.patch() must come before the import of {', '.join(early)}")
        eventlet.monkey_patch()
    if "grpc" in sys.modules:
        raise RuntimeError("grpc is loaded in a worker; under eventlet it stops working")


def run_worker(
    settings: ServiceSettings,
    service_class: type,
    *,
    documents: Sequence[type[Aggregate]] = (),
    background: Sequence[Background] = (),
    optional_events: Sequence[type[Message] | str] = (),
    people: str = "",
    options: BusOptions | None = None,
) -> int:
    """Runs a service's worker until SIGTERM, SIGINT or a failure; the exit status.

    `service_class` is the nameko class with the `@subscribe` handlers, `documents` the aggregates whose
    outbox is relayed, `optional_events` the types among them that nobody has to subscribe to, `people` the
    collection of resource names whose members the event log can forget. RuntimeError when `patch` was not
    called first.
    """
    import eventlet.patcher

    if not eventlet.patcher.is_monkey_patched("socket"):
        raise RuntimeError("call chassis.worker.patch() before importing anything else")
    gc.freeze()
    gc.enable()
    if SUBSCRIPTIONS_FLAG in sys.argv[1:]:
        print(_subscriptions(service_class))
        return 0
    from chassis.workerprocess import WorkerProcess

    process = WorkerProcess(
        settings,
        service_class,
        documents=documents,
        background=background,
        optional=frozenset(
            kind if isinstance(kind, str) else kind.DESCRIPTOR.full_name for kind in optional_events
        ),
        people=people,
        options=options,
    )
    return process.declare() if DECLARE_FLAG in sys.argv[1:] else process.run()


def _subscriptions(service_class: type) -> str:
    """What the handlers want, as JSON."""
    import json

    from chassis.bus.entrypoint import subscriptions_of

    return json.dumps(
        [
            {
                "service": each.service,
                "handler": each.handler,
                "queue": each.queue,
                "source": each.source,
                "types": each.types,
            }
            for each in subscriptions_of(service_class)
        ]
    )
