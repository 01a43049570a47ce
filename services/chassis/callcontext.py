"""What is known of the call or message being handled: who asks, until when, under which trace.

Kept in one context variable, set once by the server's wrapper or the consumer's entrypoint. Free of any
transport, so that handlers shared by both kinds of process may read it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar, Token
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who is calling."""

    #: The token's subject; "local" on an open server, "worker" in a consumer.
    subject: str
    #: What the caller may do; "*" stands for everything.
    scopes: frozenset[str] = frozenset()
    #: Thumbprint of the certificate that the token is bound to; empty when it is bound to none.
    certificate: str = ""
    #: When the token ends, seconds of Unix time with the leeway; None for an identity without an end.
    ends_at: float | None = None

    def has(self, scope: str) -> bool:
        """Whether a call that needs `scope` is allowed; the empty scope asks only for an identity."""
        return not scope or scope in self.scopes or "*" in self.scopes


#: A caller of which nothing is known: health probes.
ANONYMOUS = Identity(subject="anonymous")


class CallContext:
    """One call. Not frozen and without dataclass machinery: one is made for every call."""

    __slots__ = ("deadline", "identity", "method", "traceparent")

    def __init__(
        self, method: str, identity: Identity, deadline: float | None, traceparent: str | None
    ) -> None:
        #: Full method name, or the consumer's queue.
        self.method = method
        self.identity = identity
        #: On the monotonic clock, real seconds; None when the caller set none.
        self.deadline = deadline
        #: W3C trace context to pass on; None when the call came without and is not sampled.
        self.traceparent = traceparent


_current: ContextVar[CallContext | None] = ContextVar("callmesh_call", default=None)


def set_current(call: CallContext | None) -> Token[CallContext | None]:
    """Makes `call` the current one of this task or thread."""
    return _current.set(call)


def reset_current(token: Token[CallContext | None]) -> None:
    """Back to what was before the `set_current` that gave `token`."""
    _current.reset(token)


def current() -> CallContext | None:
    """The call being handled; None outside one."""
    return _current.get()


def current_identity() -> Identity:
    """Who makes the call being handled; `ANONYMOUS` outside one."""
    call = _current.get()
    return ANONYMOUS if call is None else call.identity


def remaining_seconds(default: float | None = None) -> float | None:
    """Real seconds left of the caller's deadline, never below 0; `default` when there is none or no call."""
    call = _current.get()
    if call is None or call.deadline is None:
        return default
    return max(0.0, call.deadline - time.monotonic())
