"""Channels to other servers."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import grpc
import pytest

from chassis.client import watchful_channel

#: A server that answers a stream once and then says nothing.
QUIET_SERVER = """
import asyncio
import grpc

async def stream(requests, context):
    yield b"here"
    await asyncio.Event().wait()

async def main():
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(stream)
    service = grpc.method_handlers_generic_handler("quiet.Quiet", {"Stream": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""


async def test_a_server_that_hangs_is_given_up_before_the_grace_period_ends() -> None:
    """Its connection stays open, and nothing comes: only the keepalive can tell."""
    with subprocess.Popen([sys.executable, "-c", QUIET_SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            async with watchful_channel(f"127.0.0.1:{int(server.stdout.readline())}") as channel:
                stream = channel.stream_stream("/quiet.Quiet/Stream")()
                assert await stream.read() == b"here"
                server.send_signal(signal.SIGSTOP)
                # Without a keepalive it would hang as long as the server does; 4.5 seconds, if all goes well.
                with pytest.raises(grpc.aio.AioRpcError) as lost:
                    await asyncio.wait_for(stream.read(), 30)
                assert lost.value.code() == grpc.StatusCode.UNAVAILABLE
        finally:
            server.kill()
