"""A whole gRPC process: it starts on uvloop, serves, drains on a signal, and says in one line why it cannot
start.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import textwrap

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from chassis.localstack import free_ports
from chassis.testing.echo import EchoStub

PROGRAM = textwrap.dedent(
    """
    import asyncio, sys
    from pydantic_settings import SettingsConfigDict
    from chassis.config import ServiceSettings
    from chassis.server import main, serve
    from chassis.testing.echo import echo_binding

    class Settings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="ECHO_")
        service: str = "echo"

    class Echo:
        async def Unary(self, request, context):
            if request.value == "slow":
                await asyncio.sleep(0.5)
            elif request.value == "stuck":
                await asyncio.Event().wait()
            return type(request)(value=type(asyncio.get_running_loop()).__module__)

    async def run(settings):
        binding = echo_binding(Echo())
        step = lambda name: lambda: print(name, flush=True)
        await serve(settings, [binding], scopes=dict.fromkeys(binding.methods, "echo"),
                    on_start=step("start"), on_drain=step("drain"), on_stop=[step("stop 1"), step("stop 2")])

    sys.exit(main(Settings, run))
    """
)


class Process:
    """The program with its ports."""

    def __init__(self, **settings):
        self.port, self.http_port = free_ports(2)
        self.variables = {
            "ECHO_GRPC_PORT": str(self.port),
            "ECHO_HTTP_PORT": str(self.http_port),
            "LOG_FORMAT": "json",
            "PYTHONPATH": "services",
            "PATH": os.environ["PATH"],
            **settings,
        }

    async def __aenter__(self):
        self.run = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM),
            env=self.variables,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(self, *_):
        if self.run.returncode is None:
            self.run.kill()
            await self.run.communicate()

    async def ended(self):
        """(exit status, stdout lines, stderr lines)."""
        out, err = await asyncio.wait_for(self.run.communicate(), 60)
        return self.run.returncode, out.decode().splitlines(), err.decode().splitlines()

    def channel(self):
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")


async def ready(channel) -> EchoStub:
    stub = EchoStub(channel)
    await stub.Unary(StringValue(), timeout=60, wait_for_ready=True)
    return stub


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_well(number):
    async with Process() as process, process.channel() as channel:
        stub = await ready(channel)
        assert (await stub.Unary(StringValue())).value == "uvloop"
        slow = asyncio.ensure_future(_answer(stub.Unary(StringValue(value="slow"), timeout=60)))
        await asyncio.sleep(0)  # lets the call be sent before the signal
        await stub.Unary(StringValue())
        process.run.send_signal(number)
        assert (await slow).value == "uvloop"
        status, out, err = await process.ended()
        assert status == 0
        assert out == ["start", "drain", "stop 1", "stop 2"]
        events = [json.loads(line)["event"] for line in err]
        assert events == ["server.started", "server.draining", "server.stopped"]


async def _answer(call):
    return await call


@pytest.mark.parametrize("second_signal", [False, True])
async def test_a_stuck_call_is_cut_after_the_grace_or_a_second_signal(second_signal):
    seconds = "300" if second_signal else "0.3"
    async with Process(ECHO_DRAIN_SECONDS=seconds) as process, process.channel() as channel:
        stub = await ready(channel)
        stuck = stub.Unary(StringValue(value="stuck"), timeout=60)
        await stub.Unary(StringValue())
        process.run.send_signal(signal.SIGTERM)
        assert await process.run.stdout.readline() == b"start\n"
        assert await process.run.stdout.readline() == b"drain\n"
        if second_signal:
            process.run.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await stuck
        status, out, _ = await process.ended()
        assert (status, out) == (0, ["stop 1", "stop 2"])


async def test_a_taken_port_is_one_line_and_status_2():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        async with Process(ECHO_GRPC_PORT=port) as process:
            status, out, err = await process.ended()
        assert status == 2
        assert out == ["stop 1", "stop 2"]
        assert err[-1].startswith(f"callmesh-echo: gRPC cannot listen on 127.0.0.1:{port}")
        assert not any("Traceback" in line for line in err)


async def test_a_bad_setting_is_one_line_and_status_2():
    async with Process(ECHO_GRPC_PORT="abc") as process:
        assert await process.ended() == (
            2,
            [],
            ["callmesh-echo: setting ECHO_GRPC_PORT: must be between 1 and 65535, got 'abc'"],
        )
