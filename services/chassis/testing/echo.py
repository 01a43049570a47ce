"""A gRPC service without a proto file, for tests and benchmarks of the chassis: one RPC of each kind, on
StringValue.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2
from google.protobuf.wrappers_pb2 import StringValue

from chassis.server import ServiceBinding

#: Full name of the service.
ECHO_SERVICE = "callmesh.testing.v1.EchoService"
#: Name of an RPC -> (request is a stream, response is a stream).
ECHO_METHODS = {
    "Unary": (False, False),
    "ServerStream": (False, True),
    "ClientStream": (True, False),
    "Both": (True, True),
    "Missing": (False, False),
}

_KINDS: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


@cache
def _descriptor() -> Any:
    package, _, name = ECHO_SERVICE.rpartition(".")
    file = descriptor_pb2.FileDescriptorProto(
        name="callmesh/testing/v1/echo.proto", package=package, dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    service = file.service.add(name=name)
    for method, (client_streaming, server_streaming) in ECHO_METHODS.items():
        service.method.add(
            name=method,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=client_streaming,
            server_streaming=server_streaming,
        )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(ECHO_SERVICE)


def _missing(request: Any, context: Any) -> Any:
    """Stands for what the generated base class has under a method that nobody wrote."""
    raise NotImplementedError


_missing.__module__ = "echo_pb2_grpc"


def add_echo_to_server(servicer: Any, server: Any) -> None:
    """What protoc's plugin generates for a service."""
    handlers = {
        method: _KINDS[kinds](
            getattr(servicer, method, _missing), StringValue.FromString, StringValue.SerializeToString
        )
        for method, kinds in ECHO_METHODS.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ECHO_SERVICE, handlers),))
    server.add_registered_method_handlers(ECHO_SERVICE, handlers)


def echo_binding(servicer: Any) -> ServiceBinding:
    """Binds an object that has some of the RPCs as methods."""
    return ServiceBinding(_descriptor(), add_echo_to_server, servicer)


class EchoStub:
    """What protoc's plugin generates for clients."""

    def __init__(self, channel: Any) -> None:
        def make(name: str, kind: Callable[..., Any]) -> Any:
            return kind(
                f"/{ECHO_SERVICE}/{name}",
                request_serializer=StringValue.SerializeToString,
                response_deserializer=StringValue.FromString,
            )

        self.Unary = make("Unary", channel.unary_unary)
        self.ServerStream = make("ServerStream", channel.unary_stream)
        self.ClientStream = make("ClientStream", channel.stream_unary)
        self.Both = make("Both", channel.stream_stream)
        self.Missing = make("Missing", channel.unary_unary)
