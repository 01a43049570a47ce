"""What a shard knows, and `evolve`, the only function that changes it.

The state is a function of the journal alone: `evolve` reads no clock, no configuration and no randomness,
only the event and the time it was decided at. What stands beside the facts (heaps, idle sets, worklists) is
an index of them and may be tidied at any time. Entries of a heap are never moved: a change pushes a new entry
under a new ticket, and the old one is skipped when it comes up. So a decision costs O(log n).

To read, in this order:

    entries.py        what a state is made of: a call, an agent, a line
    shard.py          the state itself, and how its indexes are asked
    evolving.py       `evolve` and its table: which function applies which event
    calls.py          … to calls, offers included
    agents.py         … to agents' sessions
    configuration.py  … to queues, agents and the shard's settings
    indexes.py        what a changed call or agent is listed in from then on
    lines.py          who belongs to a line, who is free for it, who comes next
    free.py           the free agents of a line, in the order of its queue's strategy
    deadlines.py      what is due next
    tallies.py        a queue's running figures, and the expected waits made of them

Whoever only reads a state, or applies events to one, imports from here.
"""

from routing.state.entries import AgentEntry, CallEntry, Crowd, Line
from routing.state.evolving import evolve
from routing.state.indexes import adopt_agent, adopt_call
from routing.state.lines import best_idle, head_of, turn_of, worth_waiting_for
from routing.state.shard import ShardState, due_together, next_deadline
from routing.state.tallies import Tally, expected_span_ms

__all__ = [
    "AgentEntry",
    "CallEntry",
    "Crowd",
    "Line",
    "ShardState",
    "Tally",
    "adopt_agent",
    "adopt_call",
    "best_idle",
    "due_together",
    "evolve",
    "expected_span_ms",
    "head_of",
    "next_deadline",
    "turn_of",
    "worth_waiting_for",
]
