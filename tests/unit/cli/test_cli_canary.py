"""The canary's line, and that of all other commands: by which files they are let in."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc, routing_pb2, routing_pb2_grpc
from chassis.testing.certificates import Authority
from cli.canary import CallFailed, line_of, one_call
from cli.directory import Refused, bearer, stub_at
from cli.doctor import server


@pytest.fixture
async def certified(tmp_path):
    """Address of a server that asks every client for a certificate; its authority has written `tmp_path`."""
    Authority().write(tmp_path)
    pair = ((tmp_path / "tls.key").read_bytes(), (tmp_path / "tls.crt").read_bytes())
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    credentials = grpc.ssl_server_credentials(
        [pair], (tmp_path / "ca.crt").read_bytes(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def served(line) -> bool:
    async with line.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_it_shows_its_certificate_to_servers_that_ask_for_one(certified, tmp_path):
    authority, certificate, key = (str(tmp_path / name) for name in ("ca.crt", "tls.crt", "tls.key"))
    assert await served(line_of(certified, "", authority, certificate, key))
    assert not await served(line_of(certified, "", authority, "", ""))


async def test_a_renewed_authority_counts_for_the_next_call(certified, tmp_path):
    stranger = tmp_path / "stranger"
    Authority().write(stranger)
    authority, certificate, key = (str(stranger / name) for name in ("ca.crt", "tls.crt", "tls.key"))
    line = line_of(certified, "", authority, certificate, key)
    assert not await served(line)
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (tmp_path / name).replace(stranger / name)
    assert await served(line)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (("ca.crt", "tls.crt", ""), "--key-file"),
        (("ca.crt", "", "tls.key"), "--cert-file"),
        (("", "tls.crt", "tls.key"), "--ca-file"),
        (("none", "", ""), "cannot be read"),
    ],
)
def test_files_that_make_no_line_are_refused(tmp_path, files, why):
    Authority().write(tmp_path)
    named = [str(tmp_path / name) if name else "" for name in files]
    with pytest.raises(Refused, match=why):
        line_of("127.0.0.1:1", "", *named)


class Refusing(routing_pb2_grpc.RoutingServiceServicer, agent_pb2_grpc.AgentServiceServicer):
    """Nobody leads: agents may sit down, and no call is placed."""

    async def RouteCall(self, request, context):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "nobody leads")
        yield routing_pb2.RouteCallEvent()

    async def Session(self, requests, context):
        async for _ in requests:
            yield agent_pb2.AgentEvent(status={})


async def test_a_call_that_is_refused_is_told_as_that():
    """And at once: the agent, who is offered nothing, would be waited for until the end."""
    server, refusing = grpc.aio.server(), Refusing()
    routing_pb2_grpc.add_RoutingServiceServicer_to_server(refusing, server)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(refusing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with pytest.raises(CallFailed, match="placing the call: UNAVAILABLE"):
            await asyncio.wait_for(one_call(line_of(f"127.0.0.1:{port}", "", "", "", "")), 15)
    finally:
        await server.stop(None)


async def test_every_command_shows_its_certificate_and_token_by_the_environment(
    certified, tmp_path, monkeypatch
):
    def ask() -> int:
        with stub_at(certified, health_pb2_grpc.HealthStub) as stub:
            return stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status

    for name, file in (("CA", "ca.crt"), ("CERT", "tls.crt"), ("KEY", "tls.key")):
        monkeypatch.setenv(f"TLS_{name}_FILE", str(tmp_path / file))
    assert await asyncio.to_thread(ask) == health_pb2.HealthCheckResponse.SERVING
    assert [found.what for found in await asyncio.to_thread(list, server(certified, False))] == ["SERVING"]
    monkeypatch.delenv("TLS_KEY_FILE")
    with pytest.raises(Refused, match="comes with its key"):
        ask()
    monkeypatch.delenv("TLS_CERT_FILE")
    with pytest.raises(Refused, match="a certificate that it knows"):
        await asyncio.to_thread(ask)
    monkeypatch.setenv("TLS_CA_FILE", str(tmp_path / "none"))
    with pytest.raises(Refused, match="none cannot be read"):
        ask()

    (tmp_path / "token").write_text("from-a-file\n")
    monkeypatch.setenv("CALLMESH_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.delenv("CALLMESH_TOKEN", raising=False)
    assert bearer() == [("authorization", "Bearer from-a-file")]
    monkeypatch.setenv("CALLMESH_TOKEN", "given")
    assert bearer() == [("authorization", "Bearer given")]
    assert line_of("127.0.0.1:1", "", "", "", "").metadata() == bearer()
    own = line_of("127.0.0.1:1", str(tmp_path / "token"), "", "", "").metadata()
    assert own == [("authorization", "Bearer from-a-file")], "a file that the canary is given is its own"
    for name in ("CA", "CERT", "KEY"):
        monkeypatch.delenv(f"TLS_{name}_FILE", raising=False)
    with pytest.raises(Refused, match="TLS_CA_FILE"):
        next(server("127.0.0.1:1", True))
