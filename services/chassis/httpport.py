"""The HTTP port of a gRPC process: a few lines of asyncio around `chassis.probes`, so that a stuck loop fails
its probe.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from http import HTTPStatus

from chassis import metrics, probes
from chassis.errors import StartError

#: Longest request head read, bytes.
HEAD_BYTES_MAX = 8192
#: Time for a client to send its request and take the answer, seconds.
REQUEST_SECONDS_MAX = 5.0
#: Requests served at once; more are turned away.
CONNECTIONS_MAX = 64


class HttpPort:
    """Serves /metrics, /healthz and /readyz, one request a connection."""

    def __init__(self, host: str, port: int, checks: Mapping[str, probes.Check]) -> None:
        """`port` 0 takes any free one; see `port` after `start`."""
        self._host = host
        self._checks = checks
        self._server: asyncio.Server | None = None
        self._open = 0
        self.port = port

    async def start(self) -> None:
        """StartError when the address cannot be used."""
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self.port, limit=HEAD_BYTES_MAX
            )
        except OSError as error:
            raise StartError(f"HTTP cannot listen on {self._host}:{self.port}: {error.strerror}") from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening; safe to repeat."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), REQUEST_SECONDS_MAX)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS_MAX:
                async with asyncio.timeout(REQUEST_SECONDS_MAX):
                    writer.write(await self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # Not a well-formed request, or a client that went away: nobody to tell.
            return
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3:
            answer = probes.Answer(status=400, content_type="text/plain", body=b"bad request\n")
        elif probes.is_metrics(words[0], words[1]):
            # States are read here, where they change; thousands of series are written out in a thread, so
            # that no caller waits for them.
            metrics.look()
            answer = await asyncio.to_thread(probes.answer_metrics)
        else:
            answer = probes.answer(words[0], words[1], self._checks)
        lines = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            "Connection: close",
            "",
            "",
        ]
        body = b"" if words[0] == "HEAD" else answer.body
        return "\r\n".join(lines).encode("latin-1") + body
