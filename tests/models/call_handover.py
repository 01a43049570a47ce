"""One call, two shards: who may connect it when placements, consents and refusals are late, lost or twice.

What is modelled. The edge holds the line and may open its stream again (a new attempt) while the old front
still believes in the old one. Each front places the call in either shard, a new move number each time; a
shard that has taken it lets the front withdraw it from the other. A shard's agent accepts, the edge is told,
consents to exactly one offer, and bridges when the shard says yes. A shard's step is a commit of its journal:
a change of leader loses only messages, and here every message may stay out, come late, or come again.

Left out: what an offer does before the agent accepts, and OVERFLOWING (the source may offer at any time here,
which is more than it does), the caller hanging up, and time: a deadline is something that may always happen.

The rules are switches, all on; `RULES` says what goes on when one is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

SHARDS = "ST"

#: Rule to what goes on when it is switched off.
RULES = {
    "accept_is_not_connect": "an agent's accept connects the call, nobody is asked",
    "the_edge_consents": "the front consents for its edge, whose stream may be half open",
    "confirmations_name_the_offer": "a confirmation connects whatever offer is accepted just then",
    "offer_ids_are_never_reused": "the next offer of a call has the same id",
    "free_by_refusal_alone": "the edge thinks itself free again after a time without an answer",
}

Version = tuple[int, int]
NEVER: Version = (0, 0)


class Offer(NamedTuple):
    """What an agent accepted."""

    shard: str
    version: Version
    number: int
    agent: str


class Message(NamedTuple):
    """Once sent, it may arrive at any time, again and again, or never."""

    #: "place", "withdraw", "accepted", "confirm", "yes" or "no".
    kind: str
    shard: str
    version: Version
    offer: Offer | None = None


class Shard(NamedTuple):
    """The call's entry in one shard."""

    name: str
    version: Version
    #: "none", "waiting", "accepted", "connected" or "ended".
    phase: str
    #: Offers made so far.
    offers: int
    #: The offer that is accepted or connected.
    offer: Offer | None


class Edge(NamedTuple):
    """Who holds the line."""

    attempt: int
    #: The one offer it has consented to and has no refusal of.
    consent: Offer | None
    #: Agents whose media it bridged.
    bridged: tuple[str, ...]


class Front(NamedTuple):
    """A router with a stream of the edge, perhaps half open."""

    moves: int
    #: It has consented for its edge (only where it may).
    consented: bool


class State(NamedTuple):
    """Everything."""

    edge: Edge
    #: By attempt.
    fronts: tuple[Front, ...]
    shards: tuple[Shard, ...]
    messages: frozenset[Message]
    #: What the journals say: the agent that was confirmed, and the agent that was connected.
    connected: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class CallHandover:
    """The model within its bounds."""

    #: Rule that is switched off; "" for none.
    without: str = ""
    #: Times that the edge may open its stream.
    attempts: int = 2
    #: Placements by each front.
    moves: int = 2
    #: Offers by each shard.
    offers: int = 2

    def __post_init__(self) -> None:
        if self.without and self.without not in RULES:
            raise ValueError(f"there is no rule {self.without!r}; there are {', '.join(RULES)}")

    def initial(self) -> State:
        fronts = tuple(Front(0, False) for _ in range(self.attempts))
        shards = tuple(Shard(name, NEVER, "none", 0, None) for name in SHARDS)
        return State(Edge(0, None, ()), fronts, shards, frozenset(), ())

    # --- what may happen ---

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        yield from self._edge(s)
        for attempt in range(1, s.edge.attempt + 1):
            yield from self._front(s, attempt)
        for shard in s.shards:
            yield from self._shard(s, shard)
            for message in s.messages:
                if message.shard == shard.name:
                    yield from self._arrives(s, shard, message)

    def _edge(self, s: State) -> Iterator[tuple[str, State]]:
        edge = s.edge
        if edge.attempt < self.attempts and edge.consent is None:
            opened = edge._replace(attempt=edge.attempt + 1)
            yield f"the edge opens its stream, attempt {opened.attempt}", s._replace(edge=opened)
        for message in s.messages:
            offer = message.offer
            if offer is None:
                continue
            if message.kind == "accepted" and edge.consent is None and self._hears(s, edge.attempt, offer):
                if self.without not in ("the_edge_consents", "accept_is_not_connect"):
                    consents = s._replace(edge=edge._replace(consent=offer))
                    yield f"the edge consents to {_say(offer)}", _send(consents, _about("confirm", offer))
            elif message.kind == "no" and edge.consent == offer:
                yield (
                    f"the edge hears no to {_say(offer)}, is free",
                    s._replace(edge=edge._replace(consent=None)),
                )
            elif message.kind == "yes" and edge.consent == offer and not edge.bridged:
                bridged = edge._replace(bridged=(*edge.bridged, offer.agent))
                yield f"the edge hears yes and bridges {offer.agent}", s._replace(edge=bridged)
        if self.without == "free_by_refusal_alone" and edge.consent is not None and not edge.bridged:
            yield (
                "the edge hears nothing for a while and is free",
                s._replace(edge=edge._replace(consent=None)),
            )

    def _hears(self, s: State, attempt: int, offer: Offer) -> bool:
        """A front passes on what is about its newest placement, and an edge hears its newest stream."""
        return offer.version == (attempt, s.fronts[attempt - 1].moves)

    def _front(self, s: State, attempt: int) -> Iterator[tuple[str, State]]:
        front = s.fronts[attempt - 1]
        if front.moves < self.moves:
            version = (attempt, front.moves + 1)
            moved = _with_front(s, attempt, front._replace(moves=front.moves + 1))
            # The shards are alike, so the first placement may be said to be at the first of them.
            for name in SHARDS if s.messages else SHARDS[:1]:
                told = f"front {attempt} places the call at {name} as {_version(version)}"
                yield told, _send(moved, Message("place", name, version))
        if self.without != "the_edge_consents" or front.consented:
            return
        for message in s.messages:
            offer = message.offer
            if message.kind == "accepted" and offer is not None and self._hears(s, attempt, offer):
                said = _with_front(s, attempt, front._replace(consented=True))
                yield f"front {attempt} consents to {_say(offer)}", _send(said, _about("confirm", offer))

    def _shard(self, s: State, shard: Shard) -> Iterator[tuple[str, State]]:
        """Its agents accept, and an offer that nobody confirms in time ends."""
        if shard.phase == "waiting" and shard.offers < self.offers:
            made = shard.offers + 1
            number = 1 if self.without == "offer_ids_are_never_reused" else made
            offer = Offer(shard.name, shard.version, number, f"{shard.name}'s agent {made}")
            if self.without == "accept_is_not_connect":
                after = _with_shard(s, shard._replace(phase="connected", offers=made, offer=offer))
                after = after._replace(connected=(*s.connected, (offer.agent, offer.agent)))
                yield f"{offer.agent} accepts and is connected", after
            else:
                after = _with_shard(s, shard._replace(phase="accepted", offers=made, offer=offer))
                yield f"{offer.agent} accepts {_say(offer)}", _send(after, _about("accepted", offer))
        if shard.phase == "accepted" and shard.offer is not None:
            free = shard._replace(phase="waiting", offer=None)
            yield (
                f"{_say(shard.offer)} is not confirmed in time: {shard.offer.agent} is free",
                _with_shard(s, free),
            )

    def _arrives(self, s: State, shard: Shard, m: Message) -> Iterator[tuple[str, State]]:
        if m.kind == "place" and m.version > shard.version and shard.phase != "connected":
            taken = _with_shard(s, shard._replace(version=m.version, phase="waiting", offer=None))
            other = SHARDS.replace(shard.name, "")
            yield (
                f"{shard.name} queues {_version(m.version)}",
                _send(taken, Message("withdraw", other, m.version)),
            )
        elif m.kind == "withdraw" and m.version > shard.version and shard.phase in ("waiting", "accepted"):
            ended = shard._replace(phase="ended", offer=None)
            yield (
                f"{shard.name} hears of {_version(m.version)} elsewhere and ends its entry",
                _with_shard(s, ended),
            )
        elif m.kind == "confirm" and m.offer is not None:
            yield from self._confirm(s, shard, m.offer)

    def _confirm(self, s: State, shard: Shard, wanted: Offer) -> Iterator[tuple[str, State]]:
        held = shard.offer
        same = held is not None and (held.version, held.number) == (wanted.version, wanted.number)
        loose = self.without == "confirmations_name_the_offer"
        fits = held is not None and (same or (loose and held.version == wanted.version))
        if shard.phase == "accepted" and held is not None and fits:
            after = _with_shard(s, shard._replace(phase="connected"))
            after = after._replace(connected=(*s.connected, (wanted.agent, held.agent)))
            told = f"{shard.name} connects {held.agent}, for {_say(wanted)}"
            yield told, _send(after, _about("yes", wanted))
        elif not (same and shard.phase == "connected"):
            yield f"{shard.name} refuses {_say(wanted)}", _send(s, _about("no", wanted))

    # --- what must never be ---

    def harm(self, s: State) -> str:
        if len(s.connected) > 1:
            return f"the call is connected to {s.connected[0][1]} and to {s.connected[1][1]}"
        if len(s.edge.bridged) > 1:
            return f"the edge bridges {' and '.join(s.edge.bridged)}"
        for wanted, given in s.connected:
            if wanted != given:
                return f"the edge consented to {wanted}, and {given} is connected"
        return ""


def _about(kind: str, offer: Offer) -> Message:
    return Message(kind, offer.shard, offer.version, offer)


def _send(s: State, message: Message) -> State:
    return s._replace(messages=s.messages | {message})


def _with_shard(s: State, shard: Shard) -> State:
    return s._replace(shards=tuple(shard if each.name == shard.name else each for each in s.shards))


def _with_front(s: State, attempt: int, front: Front) -> State:
    return s._replace(fronts=(*s.fronts[: attempt - 1], front, *s.fronts[attempt:]))


def _version(version: Version) -> str:
    return f"({version[0]}, {version[1]})"


def _say(offer: Offer) -> str:
    return f"offer {offer.shard}{offer.number} of {_version(offer.version)}"
