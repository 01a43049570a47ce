"""What the three streams that are opened again have in common: when to go on trying."""

from __future__ import annotations

import asyncio
import logging
import time

import grpc

from callmesh_sdk import errors
from callmesh_sdk.client import Backoff, Client

#: What a stream that breaks with it may be opened again after; the rest is a refusal.
_BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)

#: Reasons that speak of one call, from a router that is well: the call is opened again right there.
_OF_THE_CALL = frozenset({"UNCONFIRMED"})

#: A stream outlived the token that it was opened with: it is opened again with the one there is now.
_TOKEN_ENDED = "STREAM_TOKEN_ENDED"

#: The SDK's one line for people: without it a wrong address is silent until `give_up_seconds` are over.
_log = logging.getLogger("callmesh_sdk")


class Reopening:
    """Decides after each break whether a stream is opened once more, and waits until then."""

    def __init__(self, client: Client, service: str, name: str = "") -> None:
        """`name` has an order of servers of its own; the client's when it is empty."""
        self._client = client
        self._service = service
        self._order = client.order(service, name)
        self._servers = client.watch(service).servers
        self._backoff = Backoff()
        self._since: float | None = None
        #: Where the stream is, or is to be opened.
        self.address = self._servers.choose(self._order)

    def well(self) -> None:
        """The stream gave something: the next break is a first one."""
        self._since = None
        self._backoff.reset()

    async def after(self, raised: grpc.aio.AioRpcError | None) -> None:
        """Waits before the next try, at another server unless it was the call's own fault. `CallError` when
        the server refused, or nothing came of it for `give_up_seconds`.
        """
        # A stream that a server ended in order is opened again as well, and no longer than a broken one.
        error = _ended() if raised is None else errors.of(raised)
        outlived = error.reason == _TOKEN_ENDED
        refused = raised is not None and raised.code() not in _BROKEN and not outlived
        now = time.monotonic()
        first, self._since = self._since is None, now if self._since is None else self._since
        patience = self._client.options.give_up_seconds
        if refused or now - self._since > patience:
            raise error from None
        if first and not outlived:
            where = f"the stream to {self._service} at {self.address}"
            _log.warning("%s broke: %s; it is tried again for %g s", where, error.reason, patience)
        if error.reason not in _OF_THE_CALL and not outlived:
            if raised is None or raised.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._client.lost(self._service, self.address)
            self.address = self._servers.choose(self._order, failed=self.address)
        await asyncio.sleep(self._backoff.seconds(error))


class _Nothing(grpc.RpcError):
    """An error without details."""

    def trailing_metadata(self) -> tuple[()]:
        """None."""
        return ()


def _ended() -> errors.CallError:
    return errors.Unavailable("the stream ended", code=grpc.StatusCode.UNAVAILABLE, error=_Nothing())
