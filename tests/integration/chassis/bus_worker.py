"""A worker for the tests: a service, named by PROBE_SERVICE, whose handlers do what the event tells them.

Run as a program. Effects are rows of the collection `effects`: {handler, event, pid}. Imports stand inside
functions, because nothing may be loaded before the worker has patched the standard library.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chassis.bus import Event

_breaks = iter([True, True])


def effects(handler: str, event: Event) -> int:
    """Notes a run of a handler; how many there were before for this event."""
    import mongoengine

    from chassis.telemetry import current_traceparent

    rows = mongoengine.get_db()["effects"]
    before = int(rows.count_documents({"handler": handler, "event": event.id}))
    rows.insert_one(
        {"handler": handler, "event": event.id, "pid": os.getpid(), "trace": current_traceparent()}
    )
    return before


def obey(event: Event, before: int) -> None:
    """Does what the event's name says: "fail:2" fails twice, "die:1" kills the process once …"""
    import mongoengine

    from chassis.errors import InvalidArgument, Unavailable

    verb, _, argument = str(event.data.get("name", "")).partition(":")
    if verb == "fail" and before < int(argument):
        raise RuntimeError(f"failure {before + 1}")
    if verb == "poison":
        raise InvalidArgument(field="name", why="can never be right")
    if verb == "away" and before < int(argument):
        raise Unavailable(why="the other side sleeps")
    if verb == "die" and before < int(argument):
        os.kill(os.getpid(), 9)
    if verb == "wait":
        gate = mongoengine.get_db()["gates"]
        while gate.find_one({"_id": argument}) is None:
            time.sleep(0.02)
        effects("waited", event)


def step() -> None:
    """A background loop's step: notes itself, and breaks the first two times."""
    import mongoengine

    mongoengine.get_db()["effects"].insert_one({"handler": "background", "event": "", "pid": os.getpid()})
    if next(_breaks, False):
        raise RuntimeError("a loop that breaks twice")


def consumers(service: str, source: str) -> type[Any]:
    """The nameko service."""
    from google.protobuf.type_pb2 import EnumValue, Option, Type
    from google.protobuf.type_pb2 import Field as ProtoField

    from chassis.bus.entrypoint import subscribe

    class ProbeConsumers:
        name = service

        @subscribe(source, ProtoField, Option)
        def on_thing(self, event: Event) -> None:
            obey(event, effects("on_thing", event))

        @subscribe(source, EnumValue, name="values")
        def on_value(self, event: Event) -> None:
            effects("values", event)

        @subscribe(source, Type, together_max=4)
        def on_list(self, events: list[Event]) -> None:
            import mongoengine

            names = [str(event.data["name"]) for event in events]
            mongoengine.get_db()["lists"].insert_one({"names": names})
            for event in events:
                obey(event, effects("on_list", event))

    return ProbeConsumers


def main() -> int:
    """Returns the process's exit status."""
    from chassis import worker

    worker.patch()
    import sys

    from mongoengine import StringField
    from pydantic_settings import SettingsConfigDict

    from chassis.bus.entrypoint import BusOptions
    from chassis.config import ServiceSettings, load_settings
    from chassis.mongo import Aggregate

    class ProbeSettings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="PROBE_")
        service: str = "probe"

    class Thing(Aggregate):
        meta = {"collection": "things"}  # noqa: RUF012
        name = StringField()

    settings = load_settings(ProbeSettings)
    service = consumers(settings.service, os.environ["PROBE_SOURCE"])
    if "grpc" in sys.modules:
        raise SystemExit("grpc was loaded")
    return worker.run_worker(
        settings,
        service,
        documents=[Thing],
        background=[worker.periodic("step", 0.05, step)],
        optional_events=["probe.Optional"],
        options=BusOptions(
            retry_delays_seconds=(0.1, 0.2, 0.3, 0.4),
            drain_seconds=float(os.environ.get("PROBE_DRAIN_SECONDS", "5")),
            connect_seconds=2,
            deliveries_max=int(os.environ.get("PROBE_DELIVERIES", "20")),
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
