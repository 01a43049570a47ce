"""The journal's fence: two routers, a replica set that may lose its primary, messages late or twice.

What is modelled. Blocks go into a collection that takes each sequence once. An insert first stands on the
primary alone, then with a majority; a primary that is lost takes what it had alone with it. Whatever was sent
once may be applied at any later time, and again. Router A leads at first, router B is its standby; both may
crash, and either may be asleep for any time between any two of its steps. A side process makes a snapshot and
prunes.

Left out: time (so takeover may happen whenever it likes, which is more than the heartbeat allows), bytes,
edges and agents. A word stands for all events of a block: "a1" is router A's first.

The rules are switches, all on; `RULES` says what goes on when one is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

#: Word of the block that everything begins with.
ROOT = "root"
OPENING = "open"

#: Rule to what goes on when it is switched off.
RULES = {
    "only_majority_acknowledges": "a DuplicateKey on the own block is taken for a commit",
    "majority_reads": "a takeover reads what the primary alone has",
    "one_in_flight": "a second block is sent while the first is unanswered",
    "openings_are_kept": "pruning takes opening blocks too",
    "openings_are_verified": "a new leader does not look above its opening",
    "sent_bytes_are_frozen": "a command joins a block that was sent already",
}


class Block(NamedTuple):
    """What is inserted at once."""

    sequence: int
    word: str
    #: Word of the block it was decided on top of.
    prev: str

    @property
    def nonce(self) -> str:
        """The block's own, whatever was added to it later."""
        return self.word.partition("+")[0]


class Router(NamedTuple):
    """One candidate or leader."""

    name: str
    #: "standby", "opening" (its opening is sent), "leading" or "deposed".
    phase: str
    #: Words it holds for committed, by sequence.
    memory: tuple[str, ...]
    #: Blocks sent and not known to be committed.
    pending: tuple[Block, ...]
    #: Commands still to come, and openings it may still try.
    commands: int
    openings: int


class State(NamedTuple):
    """Everything."""

    #: Blocks that a majority has.
    committed: frozenset[Block]
    #: Blocks on the primary alone, in order.
    tail: tuple[Block, ...]
    #: The first block ever committed at each sequence, pruned or not: what the world was told.
    truth: frozenset[Block]
    #: Sequences below it are in a snapshot (0: there is none).
    snapshot: int
    #: Inserts that were sent: each may be applied at any time, and again.
    sent: frozenset[Block]
    routers: tuple[Router, ...]
    #: Primaries that may still be lost.
    failovers: int


@dataclass(frozen=True, kw_only=True)
class JournalFence:
    """The model within its bounds."""

    #: Rule that is switched off; "" for none.
    without: str = ""
    #: Commands of router A and of router B.
    commands: tuple[int, int] = (2, 1)
    #: Openings that each may try.
    openings: tuple[int, int] = (1, 1)
    failovers: int = 1
    #: Blocks that a snapshot leaves above it.
    snapshot_behind: int = 1

    def __post_init__(self) -> None:
        if self.without and self.without not in RULES:
            raise ValueError(f"there is no rule {self.without!r}; there are {', '.join(RULES)}")

    def initial(self) -> State:
        root = frozenset({Block(0, ROOT, "")})
        leader = Router("A", "leading", (ROOT,), (), self.commands[0], self.openings[0])
        standby = Router("B", "standby", (), (), self.commands[1], self.openings[1])
        return State(root, (), root, 0, frozenset(), (leader, standby), self.failovers)

    # --- what may happen ---

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        yield from self._store(s)
        yield from self._side_process(s)
        for router in s.routers:
            if router.phase == "standby":
                yield from self._open(s, router)
            elif router.phase != "deposed":
                yield from self._look(s, router)
                yield from self._decide(s, router)
            if router.phase in ("leading", "opening") and router.openings:
                asleep = router._replace(phase="standby", memory=(), pending=())
                yield f"{router.name} crashes and forgets", _with(s, asleep)

    def _store(self, s: State) -> Iterator[tuple[str, State]]:
        taken = {block.sequence for block in (*s.committed, *s.tail)}
        for block in s.sent:
            if block.sequence not in taken:
                yield f"the primary takes {_say(block)}", s._replace(tail=(*s.tail, block))
        if not s.tail:
            return
        first = s.tail[0]
        known = {block.sequence for block in s.truth}
        truth = s.truth if first.sequence in known else s.truth | {first}
        moved = s._replace(committed=s.committed | {first}, tail=s.tail[1:], truth=truth)
        yield f"a majority has {_say(first)}", moved
        if s.failovers:
            lost = " and ".join(_say(block) for block in s.tail)
            yield f"the primary is lost, and {lost} with it", s._replace(tail=(), failovers=s.failovers - 1)

    def _side_process(self, s: State) -> Iterator[tuple[str, State]]:
        """One snapshot of committed blocks, and everything below it pruned but the openings."""
        length = len(_chain(s.truth))
        below = length - self.snapshot_behind
        if s.snapshot or below < 2:
            return
        keep_openings = self.without != "openings_are_kept"
        kept = frozenset(
            block
            for block in s.committed
            if block.sequence >= below or (keep_openings and block.word.startswith(OPENING))
        )
        yield (
            f"a snapshot is made, blocks below {below} are pruned",
            s._replace(committed=kept, snapshot=below),
        )

    def _open(self, s: State, router: Router) -> Iterator[tuple[str, State]]:
        """Reads to any point that the tail ever had, and sends an opening for the next sequence."""
        if not router.openings:
            return
        words = self._read(s)
        number = self.openings["AB".index(router.name)] - router.openings + 1
        for length in range(1, len(words) + 1):
            memory = words[:length]
            block = Block(length, f"{OPENING}{router.name}{number}", memory[-1])
            opened = router._replace(
                phase="opening", memory=memory, pending=(block,), openings=router.openings - 1
            )
            told = f"{router.name}, who has read up to {memory[-1]}, sends its opening as block {length}"
            yield told, _with(s._replace(sent=s.sent | {block}), opened)

    def _read(self, s: State) -> tuple[str, ...]:
        """The journal's words: a snapshot, then block after block, each naming the one before it."""
        visible = s.committed if self.without != "majority_reads" else s.committed | set(s.tail)
        by_sequence = {block.sequence: block for block in visible}
        words = list(_chain(s.truth)[: s.snapshot])
        while (block := by_sequence.get(len(words))) and block.prev == (words[-1] if words else ""):
            words.append(block.word)
        return tuple(words)

    def _decide(self, s: State, router: Router) -> Iterator[tuple[str, State]]:
        if router.phase != "leading" or not router.commands:
            return
        index = "AB".index(router.name)
        word = f"{router.name.lower()}{self.commands[index] - router.commands + 1}"
        less = router._replace(commands=router.commands - 1)
        window = 1 if self.without != "one_in_flight" else 2
        if len(router.pending) < window:
            on_top = router.pending[-1].word if router.pending else router.memory[-1]
            block = Block(len(router.memory) + len(router.pending), word, on_top)
            sent = s._replace(sent=s.sent | {block})
            yield (
                f"{router.name} sends {_say(block)}",
                _with(sent, less._replace(pending=(*router.pending, block))),
            )
        elif self.without == "sent_bytes_are_frozen" and "+" not in router.pending[0].word:
            more = router.pending[0]._replace(word=f"{router.pending[0].word}+{word}")
            sent = s._replace(sent=s.sent | {more})
            yield (
                f"{router.name} adds {word} and sends {_say(more)}",
                _with(sent, less._replace(pending=(more,))),
            )

    def _look(self, s: State, router: Router) -> Iterator[tuple[str, State]]:
        """The answer to the oldest block is unknown: what does the journal say at its place?"""
        if not router.pending:
            return
        block = router.pending[0]
        visible = {each.sequence: each for each in s.committed}
        if self.without == "only_majority_acknowledges":
            visible |= {each.sequence: each for each in s.tail}
        there = visible.get(block.sequence)
        if there is None:
            return
        if there.nonce == block.nonce:
            yield self._commit(s, router, block)
        elif router.phase == "leading":
            deposed = router._replace(phase="deposed", memory=(), pending=())
            yield f"{router.name} finds {_say(there)} in its place and steps down", _with(s, deposed)
        elif there.word.startswith(OPENING) or there.prev != router.memory[-1]:
            follower = router._replace(phase="standby", memory=(), pending=())
            yield f"{router.name} finds {_say(there)} and follows", _with(s, follower)
        else:
            again = Block(block.sequence + 1, f"{block.word}'", there.word)
            later = router._replace(memory=(*router.memory, there.word), pending=(again,))
            told = f"{router.name} finds {_say(there)}, applies it and sends its opening as block"
            yield f"{told} {again.sequence}", _with(s._replace(sent=s.sent | {again}), later)

    def _commit(self, s: State, router: Router, block: Block) -> tuple[str, State]:
        if router.phase == "opening" and self.without != "openings_are_verified":
            above = s.snapshot > block.sequence or any(b.sequence > block.sequence for b in s.committed)
            if above:
                asleep = router._replace(phase="standby", memory=(), pending=())
                return f"{router.name} has opened, looks above, had slept and discards all", _with(s, asleep)
        leader = router._replace(
            phase="leading", memory=(*router.memory, block.word), pending=router.pending[1:]
        )
        what = "leads" if router.phase == "opening" else "answers its client"
        return f"{router.name} holds {_say(block)} for committed and {what}", _with(s, leader)

    # --- what must never be ---

    def harm(self, s: State) -> str:
        return self._untrue(s) or self._unreadable(s)

    def _untrue(self, s: State) -> str:
        """What a leader answers from is in the journal, or on its way there."""
        truth = {block.sequence: block.word for block in s.truth}
        coming = {(block.sequence, block.word) for block in s.tail}
        for router in s.routers:
            if router.phase != "leading":
                continue
            for sequence, word in enumerate(router.memory):
                if truth.get(sequence) == word or (sequence not in truth and (sequence, word) in coming):
                    continue
                has = truth.get(sequence, "nothing")
                return f"{router.name} answers from block {sequence} = {word}, where the journal has {has}"
        return ""

    def _unreadable(self, s: State) -> str:
        """Each block of the journal names the one before it."""
        truth = {block.sequence: block for block in s.truth}
        for block in s.truth:
            before = truth.get(block.sequence - 1)
            if before is not None and before.word != block.prev:
                return f"{_say(block)} was decided on top of {block.prev}, not {before.word}"
        return ""


def _with(s: State, router: Router) -> State:
    return s._replace(routers=tuple(router if each.name == router.name else each for each in s.routers))


def _chain(truth: frozenset[Block]) -> tuple[str, ...]:
    """Words from the beginning up to the first gap."""
    by_sequence = {block.sequence: block.word for block in truth}
    words: list[str] = []
    while len(words) in by_sequence:
        words.append(by_sequence[len(words)])
    return tuple(words)


def _say(block: Block) -> str:
    return f"block {block.sequence} = {block.word}"
