"""How much one caller may ask of a server. Pure of transport: the wrapper around every RPC asks.

A policy says for a caller (a token's subject):

    default:                              # whoever is not named below
      rates:
        all:   [{calls: 200, seconds: 1, burst: 400}]
        write: [{calls: 50, seconds: 1}, {calls: 100000, seconds: 86400}]
        crm.export.read: [{calls: 10, seconds: 3600}]
      calls_open_max: 500
      streams_open_max: 200
      stream_messages: {calls: 50, seconds: 1, burst: 200}
    subjects:
      routers: {}                         # no limit: our own
      pbx-1: {rates: {all: [{calls: 2000}]}, streams_open_max: 10000}

Rules:
1. A rate's key is a class of methods: `all`, `stream` (one side or both stream), `read` (a scope that ends in
   .read) or `write` (any other), or one scope. A call is measured by every rate of every key that fits.
2. A rate is a bucket of `burst` calls (by default `calls`) that refills with `calls` in `seconds`. A long one
   is a quota. A call that one bucket refuses takes nothing from the others.
3. What is open at once is counted for calls and streams apart.
4. `stream_messages` slows a client's stream down instead of ending it: messages beyond it wait, and the
   connection's flow control makes the client wait. Nothing is lost.
5. A subject that is named has its own policy alone; nothing is inherited from `default`.
6. A server counts for itself: behind n replicas a caller may reach n times as much.
7. The file is looked at again every `LOOK_SECONDS`; one that cannot be used leaves the policies in force.
8. At most `subjects_max` callers are remembered; the one idle longest is forgotten and starts full again.
   Whoever has a call open is never forgotten, and open calls are bounded by the server.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from chassis import logs, metrics
from chassis.errors import ResourceExhausted, StartError
from chassis.watched import WatchedFiles

if TYPE_CHECKING:
    from chassis.config import ServiceSettings

#: How often the file is looked at, real seconds.
LOOK_SECONDS = 1.0
#: Rates from this window on are quotas in errors and metrics, seconds.
QUOTA_SECONDS = 60.0
#: Advice to a caller who has too much open, seconds.
OPEN_RETRY_SECONDS = 1.0
#: Subjects that have a label of their own in metrics: those named first in the file.
SUBJECTS_SHOWN_MAX = 50
#: Most subjects a file names, and rates of one key.
SUBJECTS_NAMED_MAX, RATES_MAX = 10_000, 8
#: Longest that one message of a stream is held back at once, seconds.
PAUSE_SECONDS_MAX = 60.0

CLASSES = frozenset({"all", "read", "write", "stream"})
_SCOPE = re.compile(r"[a-z]+(\.[a-z_]+)+")

_log = logs.get_logger(__name__)


class RateLimited(ResourceExhausted):
    """Too many calls by {subject}{limit}."""

    reason = "RATE_LIMITED"


class QuotaExceeded(ResourceExhausted):
    """The quota of {subject} is used up{limit}."""

    reason = "QUOTA_EXCEEDED"


class TooManyOpenCalls(ResourceExhausted):
    """Too many calls of {subject} are open{limit}."""

    reason = "TOO_MANY_OPEN_CALLS"


class TooManyOpenStreams(ResourceExhausted):
    """Too many streams of {subject} are open{limit}."""

    reason = "TOO_MANY_OPEN_STREAMS"


class Rate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many calls (or messages) in so many seconds."""

    calls: Annotated[float, msgspec.Meta(gt=0, le=1e9)]
    seconds: Annotated[float, msgspec.Meta(gt=0, le=31 * 86_400)] = 1.0
    #: At once after a silence; None as many as `calls`, one at least.
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] | None = None

    @property
    def size(self) -> float:
        """What the bucket holds."""
        return float(self.burst) if self.burst is not None else max(1.0, self.calls)

    def __str__(self) -> str:
        return f"{self.calls:g} in {self.seconds:g} s"


Open = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Rates = Annotated[list[Rate], msgspec.Meta(max_length=RATES_MAX)]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one caller may do; without anything set, everything."""

    rates: dict[str, Rates] = {}
    calls_open_max: Open | None = None
    streams_open_max: Open | None = None
    stream_messages: Rate | None = None


class LimitsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    default: Policy = Policy()
    subjects: Annotated[dict[str, Policy], msgspec.Meta(max_length=SUBJECTS_NAMED_MAX)] = {}


class Kind:
    """What is known of a method beforehand: under which keys it is measured, whether it streams."""

    __slots__ = ("keys", "streaming")

    def __init__(self, scope: str, streaming: bool) -> None:
        kind = "read" if scope.endswith(".read") else "write"
        self.keys = ("all", *(["stream"] if streaming else []), kind, *([scope] if scope else []))
        self.streaming = streaming


def parse(text: bytes, service: str, scopes: Collection[str]) -> LimitsFile:
    """Reads a file; ValueError naming the place. Of this `service`, only `scopes` may be keys of rates."""
    try:
        found = msgspec.yaml.decode(text, type=LimitsFile, strict=True)
    except msgspec.MsgspecError as error:
        raise ValueError(" ".join(str(error).split())) from None
    for where, policy in (("default", found.default), *found.subjects.items()):
        for key in policy.rates:
            known = key in CLASSES or (_SCOPE.fullmatch(key) and not key.startswith(f"{service}."))
            if not known and key not in scopes:
                raise ValueError(f"{where}: rates has {key!r}, which is no class of methods and no scope")
    return found


class Bucket:
    """Fills with a rate, is emptied by calls."""

    __slots__ = ("_filled_at", "_tokens", "per_second", "rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self.per_second = rate.calls / rate.seconds
        self._tokens = rate.size
        self._filled_at = now

    def wait(self, now: float) -> float:
        """Seconds until there is one to take, 0 when there is."""
        self._tokens = min(self.rate.size, self._tokens + max(0.0, now - self._filled_at) * self.per_second)
        self._filled_at = now
        return 0.0 if self._tokens >= 1.0 else (1.0 - self._tokens) / self.per_second

    def take(self) -> None:
        """Takes one, after `wait` said 0; or borrows it from the time to come."""
        self._tokens -= 1.0


class Account:
    """One caller."""

    __slots__ = ("_buckets", "calls_open", "policy", "streams_open")

    def __init__(self, policy: Policy) -> None:
        self.calls_open = self.streams_open = 0
        self.apply(policy)

    def apply(self, policy: Policy) -> None:
        """From now on; buckets of another policy start full."""
        self.policy = policy
        self._buckets: dict[str, list[Bucket]] = {}

    def fitting(self, keys: tuple[str, ...], now: float) -> Iterator[Bucket]:
        """The buckets that a call of these keys takes from."""
        rates = self.policy.rates
        for key in keys:
            if key in rates:
                buckets = self._buckets.get(key)
                if buckets is None:
                    buckets = self._buckets[key] = [Bucket(rate, now) for rate in rates[key]]
                yield from buckets

    def leave(self, kind: Kind) -> None:
        """A call that was counted has ended."""
        if kind.streaming:
            self.streams_open -= 1
        else:
            self.calls_open -= 1

    @property
    def idle(self) -> bool:
        """Whether nothing is open."""
        return not (self.calls_open or self.streams_open)


class Pace:
    """The messages of one stream."""

    __slots__ = ("_bucket",)

    def __init__(self, rate: Rate, now: float) -> None:
        self._bucket = Bucket(rate, now)

    def next(self, now: float) -> float:
        """Takes a message; how long it has to be held back first, seconds."""
        pause = min(PAUSE_SECONDS_MAX, self._bucket.wait(now))
        self._bucket.take()
        return pause


class Limits:
    """The accounts of all callers of one server. Belongs to one event loop."""

    def __init__(
        self, service: str, default: Policy, subjects_max: int, file: str = "", scopes: Collection[str] = ()
    ) -> None:
        """`default` holds where there is no file. StartError when the file cannot be used."""
        self._service = service
        self._scopes = frozenset(scopes)
        self._subjects_max = subjects_max
        self._policies: Mapping[str, Policy] = {}
        self._default = default
        self._shown: frozenset[str] = frozenset()
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        self._refused = metrics.counter(
            "callmesh_limited_total",
            "RPCs refused because a caller reached a limit; subjects that the file does not name are other.",
            ("service", "subject", "limit"),
        )
        self._usable = metrics.gauge(
            "callmesh_limits_file_usable", "0 while the file of limits cannot be used.", ("service",)
        )
        self._look_at = float("-inf")
        self._files = WatchedFiles([file]) if file else None
        if self._files is not None:
            try:
                self._use(self._files.contents()[0])
            except ValueError as error:
                raise StartError(f"the file of limits cannot be used: {error}") from None

    def _use(self, text: bytes) -> None:
        found = parse(text, self._service, self._scopes)
        self._default, self._policies = found.default, found.subjects
        self._shown = frozenset(list(found.subjects)[:SUBJECTS_SHOWN_MAX])
        for subject, account in self._accounts.items():
            policy = found.subjects.get(subject, found.default)
            if policy != account.policy:
                account.apply(policy)
        self._usable.labels(self._service).set(1)

    def _look(self, files: WatchedFiles) -> None:
        generation = files.generation
        (text,) = files.contents()
        if files.generation == generation:
            return
        try:
            self._use(text)
        except ValueError as error:
            self._usable.labels(self._service).set(0)
            _log.error("limits.unusable", error=str(error))
        else:
            _log.info("limits.renewed", subjects=len(self._policies))

    def enter(self, subject: str, kind: Kind, now: float) -> Account:
        """Counts a call that begins at `now` (monotonic seconds); the account's `leave` is for its end.
        RateLimited, QuotaExceeded, TooManyOpenCalls or TooManyOpenStreams.
        """
        if self._files is not None and now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look(self._files)
        account = self._accounts.get(subject)
        if account is None:
            account = self._opened(subject)
        else:
            self._accounts.move_to_end(subject)
        self._check_open(subject, account, kind.streaming)
        buckets = [*account.fitting(kind.keys, now)] if account.policy.rates else ()
        for bucket in buckets:
            if wait := bucket.wait(now):
                self._refuse(subject, bucket.rate, wait)
        for bucket in buckets:
            bucket.take()
        if kind.streaming:
            account.streams_open += 1
        else:
            account.calls_open += 1
        return account

    def _opened(self, subject: str) -> Account:
        account = self._accounts[subject] = Account(self._policies.get(subject, self._default))
        excess = len(self._accounts) - self._subjects_max
        if excess > 0:
            # The oldest that has nothing open. Looked for from the front, where idle ones gather; those with
            # calls open are fewer than the server's open calls.
            idle = next((name for name, one in self._accounts.items() if one.idle and name != subject), None)
            if idle is not None:
                del self._accounts[idle]
        return account

    def _check_open(self, subject: str, account: Account, streaming: bool) -> None:
        policy = account.policy
        most = policy.streams_open_max if streaming else policy.calls_open_max
        if most is None or (account.streams_open if streaming else account.calls_open) < most:
            return
        kind = TooManyOpenStreams if streaming else TooManyOpenCalls
        self._count(subject, "streams_open" if streaming else "calls_open")
        raise kind(
            subject=f"client:{subject}", limit=f"at most {most} at once", retry_seconds=OPEN_RETRY_SECONDS
        )

    def _refuse(self, subject: str, rate: Rate, wait: float) -> None:
        quota = rate.seconds >= QUOTA_SECONDS
        self._count(subject, "quota" if quota else "rate")
        raise (QuotaExceeded if quota else RateLimited)(
            subject=f"client:{subject}", limit=f"{rate} are allowed", retry_seconds=wait
        )

    def _count(self, subject: str, limit: str) -> None:
        shown = subject if subject in self._shown else "other"
        self._refused.labels(self._service, shown, limit).inc()

    def __len__(self) -> int:
        return len(self._accounts)


def of_settings(settings: ServiceSettings, scopes: Collection[str]) -> Limits | None:
    """What the settings ask for; None where nothing is limited. StartError when the file cannot be used."""
    if not settings.limits_file and settings.rate_limit_per_second <= 0:
        return None
    rates: dict[str, Any] = {}
    if settings.rate_limit_per_second > 0:
        rate = Rate(calls=settings.rate_limit_per_second, burst=settings.rate_limit_burst)
        rates = {"all": [rate]}
    return Limits(
        settings.service,
        Policy(rates=rates),
        settings.rate_limit_subjects_max,
        settings.limits_file,
        scopes,
    )
