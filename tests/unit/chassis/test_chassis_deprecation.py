"""A deprecated method or field works, and says so in a trailer and a metric."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from chassis import deprecation, metrics
from chassis.server import ServiceBinding

SERVICE = "callmesh.deprecating.v1.OldService"


def service() -> Any:
    """Two methods, `Old` deprecated, that take a message with an old field."""
    file = descriptor_pb2.FileDescriptorProto(
        name="callmesh/deprecating/v1/old.proto", package="callmesh.deprecating.v1", syntax="proto3"
    )
    message = file.message_type.add(name="Thing")
    for number, name in enumerate(("name", "old_name"), 1):
        message.field.add(name=name, number=number, type=9, label=1).options.deprecated = name == "old_name"
    made = file.service.add(name="OldService")
    for name in ("Old", "New"):
        method = made.method.add(
            name=name, input_type=f".{file.package}.Thing", output_type=f".{file.package}.Thing"
        )
        method.options.deprecated = name == "Old"
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(SERVICE)


async def echo(request: Any, context: Any) -> Any:
    return request


def uses(element: str) -> float:
    found = metrics.counter("callmesh_deprecated_uses_total", "", ("service", "element", "subject"))
    return float(found.labels("test", element, "local")._value.get())


async def test_what_is_deprecated_says_so(grpc_server: Any) -> None:
    descriptor = service()
    thing = message_factory.GetMessageClass(descriptor.methods_by_name["Old"].input_type)

    def add(servicer: Any, server: Any) -> None:
        handler = grpc.unary_unary_rpc_method_handler(echo, thing.FromString, thing.SerializeToString)
        server.add_registered_method_handlers(SERVICE, {"Old": handler, "New": handler})

    server = await grpc_server([ServiceBinding(descriptor, add, None)])
    async with grpc.aio.insecure_channel(server.address) as channel:

        async def told(method: str, **fields: str) -> str | None:
            call = channel.unary_unary(f"/{SERVICE}/{method}", thing.SerializeToString, thing.FromString)(
                thing(**fields)
            )
            assert await call == thing(**fields)
            return dict(await call.trailing_metadata()).get(deprecation.TRAILER)

        assert await told("New", name="a") is None
        assert await told("New", old_name="a") == "old_name"
        assert await told("Old", name="a") == "Old"
        assert await told("Old", old_name="b") == "Old old_name"
    assert (uses("Old"), uses("New.old_name"), uses("Old.old_name"), uses("New")) == (2, 1, 1, 0)


def test_nothing_deprecated_costs_nothing_to_ask() -> None:
    assert deprecation.of("crm", "/no.such.Service/Method", None) is None
