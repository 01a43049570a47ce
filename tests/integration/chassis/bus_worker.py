"""A worker for the tests: a service, named by PROBE_SERVICE, whose handlers do what the event tells them.

Run as a program. Effects are rows of the collection `effects`: {handler, event, pid}.
"""

from __future__ import annotations

import os


def main() -> int:
    from chassis import worker

    worker.patch()
    import sys

    import mongoengine
    from google.protobuf.type_pb2 import EnumValue, Option
    from google.protobuf.type_pb2 import Field as ProtoField
    from mongoengine import StringField
    from pydantic_settings import SettingsConfigDict

    from chassis.bus import Event
    from chassis.bus.entrypoint import BusOptions, subscribe
    from chassis.config import ServiceSettings, load_settings
    from chassis.errors import InvalidArgument, Unavailable
    from chassis.mongo import Aggregate
    from chassis.telemetry import current_traceparent

    class ProbeSettings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="PROBE_")
        service: str = "probe"

    settings = load_settings(ProbeSettings)
    source = os.environ["PROBE_SOURCE"]

    class Thing(Aggregate):
        meta = {"collection": "things"}  # noqa: RUF012
        name = StringField()

    def effects(handler: str, event: Event) -> int:
        """Notes a run of a handler; how many there were before for this event."""
        rows = mongoengine.get_db()["effects"]
        before = int(rows.count_documents({"handler": handler, "event": event.id}))
        rows.insert_one(
            {"handler": handler, "event": event.id, "pid": os.getpid(), "trace": current_traceparent()}
        )
        return before

    class ProbeConsumers:
        name = settings.service

        @subscribe(source, ProtoField, Option)
        def on_thing(self, event: Event) -> None:
            before = effects("on_thing", event)
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
                    worker_pause()
                effects("waited", event)

        @subscribe(source, EnumValue, name="values")
        def on_value(self, event: Event) -> None:
            effects("values", event)

    def worker_pause() -> None:
        import time

        time.sleep(0.02)

    breaks = iter([True, True])

    def step() -> None:
        mongoengine.get_db()["effects"].insert_one({"handler": "background", "event": "", "pid": os.getpid()})
        if next(breaks, False):
            raise RuntimeError("a loop that breaks twice")

    if "grpc" in sys.modules:
        raise SystemExit("grpc was loaded")
    return worker.run_worker(
        settings,
        ProbeConsumers,
        documents=[Thing],
        background=[worker.periodic("step", 0.05, step)],
        optional_events=["probe.Optional"],
        options=BusOptions(
            retry_delays_seconds=(0.1, 0.2, 0.3, 0.4),
            drain_seconds=5,
            connect_seconds=2,
            deliveries_max=int(os.environ.get("PROBE_DELIVERIES", "20")),
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
