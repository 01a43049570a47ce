"""Which server a client calls: its own, another one while that is away, and then its own again.

1. Everybody has an order of its own over the servers of a service (`order_of`): the address is hashed with
   the name of who calls, and the order is that of the hashes. So a crowd is spread evenly, who starts again
   calls where it called before, and the clients of a server that dies go to all the others, not all to the
   next one.
2. A server is trusted until somebody loses it: a call finds nobody there, or a stream breaks. From then on it
   is asked for its health, more and more seldom while it does not answer, and trusted again once it has said
   for a while, each time, that it serves.
3. That while is short at first. It doubles when the server is lost again soon after it was trusted, up to a
   limit: who comes and goes is not run after. A server that stays is forgiven.
4. Called is the first trusted one in one's order; where none is trusted, the one after that which failed, so
   that all are tried in turn.
5. Who has to do something for changing (an agent's desktop: it opens its session anew) goes home later by a
   random time, and not before it has been idle for a moment (`Return`).

Nothing in here has a clock or a connection: `now` is any clock's seconds that never go back.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Homing:
    """How patiently clients go back to their own server; seconds."""

    #: Between two questions for the health of a lost server that answers, and at most between two to one that
    #: does not.
    ask_seconds: float = 5.0
    ask_seconds_max: float = 20.0
    #: How long a lost server has to serve until it is trusted again: the first time, and at most.
    trust_seconds: float = 15.0
    trust_seconds_max: float = 600.0
    #: A server that is lost again within this time of being trusted has to serve for twice as long.
    relapse_seconds: float = 900.0
    #: Desktops come back within this time, each at a random moment of it.
    spread_seconds: float = 30.0
    #: How long a desktop must have been idle, and how often it looks.
    idle_seconds: float = 1.0
    look_seconds: float = 1.0

    def __post_init__(self) -> None:
        """ValueError naming the field that cannot be right."""
        for name in ("ask_seconds", "trust_seconds", "look_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be more than 0")
        for name in ("relapse_seconds", "spread_seconds", "idle_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative")
        for name in ("ask_seconds", "trust_seconds"):
            if not getattr(self, name) <= getattr(self, f"{name}_max") < math.inf:
                raise ValueError(f"{name}_max must not be less than {name}")


def order_of(name: str, addresses: Iterable[str], backups: Iterable[str] = ()) -> list[str]:
    """The order in which `name` calls these servers, each once; backups come after all others.

    Rendezvous hashing (Thaler and Ravishankar, 1998): sorted by SHA-256 of "address name". A server that is
    added or removed changes the first choice of nobody but those whose first choice it is.
    """

    def place(address: str) -> bytes:
        return hashlib.sha256(f"{address} {name}".encode()).digest()

    return list(dict.fromkeys([*sorted(addresses, key=place), *sorted(backups, key=place)]))


@dataclass(slots=True)
class _Lost:
    """What is known of a server that was lost once."""

    #: When it was trusted again; None while it is not.
    trusted_at: float | None
    #: How long it has to serve this time, seconds.
    trust_seconds: float
    #: Since when it has served whenever it was asked; None: it did not, the last time.
    serves_since: float | None
    #: When it is asked next, and how long after that again if it does not answer, seconds.
    ask_at: float
    ask_seconds: float


class Servers:
    """What a client knows of the servers of one service: those that it has lost."""

    def __init__(self, homing: Homing, rng: random.Random | None = None) -> None:
        self._homing = homing
        self._rng = rng or random.Random()
        self._lost: dict[str, _Lost] = {}

    def trusted(self, address: str) -> bool:
        """Whether nobody has lost the server, or it serves again for long enough."""
        known = self._lost.get(address)
        return known is None or known.trusted_at is not None

    def choose(self, order: Sequence[str], failed: str = "") -> str:
        """Whom to call now, by one's own order; not the one that just `failed`, unless there is no other."""
        others = [address for address in order if address != failed] or list(order)
        for address in others:
            if self.trusted(address):
                return address
        if failed in order:
            return order[(order.index(failed) + 1) % len(order)]
        # All were lost: rather one that has answered since.
        return next((address for address in order if self._lost[address].serves_since is not None), order[0])

    def home(self, order: Sequence[str], at: str) -> str | None:
        """The trusted server that comes before the present one, if there is one."""
        before = order[: order.index(at)] if at in order else order
        return next((address for address in before if self.trusted(address)), None)

    def lost(self, address: str, now: float) -> None:
        """Nobody was there, or the stream to it broke."""
        homing, known = self._homing, self._lost.get(address)
        if known is not None and known.trusted_at is None:
            # Not trusted anyway: that many streams broke is one loss.
            known.serves_since = None
            return
        patience = homing.trust_seconds
        if known is not None and now - (known.trusted_at or 0.0) <= homing.relapse_seconds:
            patience = min(2 * known.trust_seconds, homing.trust_seconds_max)
        self._lost[address] = _Lost(
            trusted_at=None,
            trust_seconds=patience,
            serves_since=None,
            # All of its clients lose a server at the same moment.
            ask_at=now + homing.ask_seconds * self._rng.random(),
            ask_seconds=homing.ask_seconds,
        )

    def due(self, now: float) -> list[str]:
        """Servers that are to be asked for their health now; `heard` says what came of it."""
        return [
            address
            for address, known in self._lost.items()
            if known.trusted_at is None and known.ask_at <= now
        ]

    def next_at(self) -> float | None:
        """When a server is to be asked next; None while all are trusted."""
        return min((known.ask_at for known in self._lost.values() if known.trusted_at is None), default=None)

    def heard(self, address: str, serves: bool, now: float) -> None:
        """What a server said, or that it said nothing."""
        homing, known = self._homing, self._lost.get(address)
        if known is None or known.trusted_at is not None:
            return
        if not serves:
            known.serves_since = None
            known.ask_at = now + known.ask_seconds * self._rng.uniform(0.8, 1.2)
            known.ask_seconds = min(2 * known.ask_seconds, homing.ask_seconds_max)
            return
        known.serves_since = now if known.serves_since is None else known.serves_since
        known.ask_seconds = homing.ask_seconds
        known.ask_at = now + homing.ask_seconds * self._rng.uniform(0.8, 1.2)
        if now - known.serves_since >= known.trust_seconds:
            known.trusted_at = now


class Return:
    """When one desktop goes home."""

    def __init__(
        self, servers: Servers, order: Sequence[str], homing: Homing, rng: random.Random | None = None
    ) -> None:
        self._servers = servers
        self._order = order
        self._homing = homing
        self._rng = rng or random.Random()
        #: Where to, and not before.
        self._target: str | None = None
        self._due = 0.0

    def look(self, at: str, idle_since: float | None, now: float) -> str | None:
        """Where to go at this moment, from `at`; None: stay. `idle_since`: None while there is anything in
        hand.
        """
        better = self._servers.home(self._order, at)
        if better != self._target:
            self._target = better
            self._due = now + self._homing.spread_seconds * self._rng.random()
        if better is None or now < self._due:
            return None
        if idle_since is None or now - idle_since < self._homing.idle_seconds:
            return None
        return better
