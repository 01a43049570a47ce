"""A day of a call log (format and quirks: cli/demo/calls.py) as a `routing.whatif.Past`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cli.demo import calls as log
from cli.demo import staffing
from cli.demo.edge import PRIORITY_POINTS
from cli.demo.replay import agent_id
from routing.model import AgentConfig, QueueConfig
from routing.virtual import Contact, Duty, Fate, Roster
from routing.whatif import Past, Seen

#: Queue of a log's calls where types are not told apart.
QUEUE = "service"


def past_from_log(path: Path, wanted: str | None, *, by_type: bool) -> tuple[Past, log.TornLines]:
    """A day of the log, and the lines left out of the whole file. With `by_type` each type of service asked
    is a queue of its own (all with the same agents). Raises CallLogError.
    """
    summary = log.summarise(path)
    date = log.choose_day(summary, wanted)
    rows = log.calls_of_day(path, date)
    duties = _duties(rows)
    if not duties:
        raise log.CallLogError(f"the log names no server at work on {date}")
    seen = tuple(_seen(row, row.type.lower() if by_type else QUEUE) for row in rows)
    queues = {each.contact.queue for each in seen}
    agents = sorted({duty.agent for duty in duties})
    roster = Roster(
        queues=tuple(QueueConfig(id=queue, wrap_up_span_ms=0) for queue in sorted(queues)),
        agents=tuple(AgentConfig(id=agent) for agent in agents),
        duties=duties,
    )
    busy: dict[str, int] = defaultdict(int)
    for row in rows:
        if row.outcome == "AGENT":
            busy[agent_id(row.server) if row.server else ""] += row.service_seconds * 1000
    past = Past(
        title=f"{path.name}, {date:%a %Y-%m-%d}",
        origin_ms=0,
        seen=seen,
        roster=roster,
        busy_ms=busy,
        notes=_notes(rows),
    )
    return past, summary.torn


def _duties(rows: Sequence[log.LogCall]) -> tuple[Duty, ...]:
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    end = 0
    for row in rows:
        if row.server and row.outcome == "AGENT":
            until = row.service_start_seconds + row.service_seconds
            spans[agent_id(row.server)].append((row.service_start_seconds, until))
            end = max(end, until)
    return tuple(
        Duty(agent=d.agent, start_ms=round(d.start_seconds * 1000), end_ms=round(d.end_seconds * 1000))
        for d in staffing.duties_from_services(spans, 0, end + 1)
    )


def _seen(row: log.LogCall, queue: str) -> Seen:
    served = row.outcome == "AGENT"
    contact = Contact(
        id=f"l{row.line}",
        queue=queue,
        arrival_ms=row.arrival_seconds * 1000,
        talk_ms=row.service_seconds * 1000,
        priority=PRIORITY_POINTS.get(row.priority, 0),
    )
    fate = Fate.ANSWERED if served else Fate.ABANDONED
    agent = agent_id(row.server) if row.server else ""
    return Seen(contact=contact, fate=fate, wait_ms=row.wait_seconds * 1000, agent=agent)


def _notes(rows: Sequence[log.LogCall]) -> tuple[str, ...]:
    nameless = sum(row.outcome == "AGENT" and not row.server for row in rows)
    at_once = sum(row.outcome == "HANG" and row.wait_seconds == 0 for row in rows)
    return (
        f"Agents are at work where the log shows them serving, gaps up to {staffing.GAP_SECONDS} s included.",
        f"{nameless} calls were served by nobody named, so the day had a little more staff than is known.",
        f"{at_once} callers hung up without waiting at all, and do so under every policy.",
    )
