"""Makes the Grafana dashboards in deploy/observability/dashboards from the tables below.

`python tools/make_dashboards.py` writes them, `--check` exits with 1 when the files are not what it would
write. A panel is a row of a table: title, unit, what it says, and its queries with their legends. What is
nothing in a healthy system is written so that it shows 0: a panel without data always means trouble. Each
query is asked of the platform that is chosen: the tables need not say so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "observability" / "dashboards"
#: Of Grafana 10 and 11.
SCHEMA_VERSION = 39
#: Width of the grid, and sizes of a figure and of a graph in it.
GRID_WIDTH = 24
STAT, GRAPH = (4, 4), (12, 8)
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

#: Selectors: by region and queue (customers' ones: the canary's calls are nobody's), by region, by shard (a
#: region's id, too), by service.
RQ = 'region=~"$region",queue=~"$queue",queue!="canary"'
R, S, V = 'region=~"$region"', 'shard=~"$region"', 'service=~"$service"'
RATE = "[$__rate_interval]"
PLATFORM = 'platform=~"$platform"'
BAD = 'code=~"INTERNAL|UNKNOWN|UNAVAILABLE|DATA_LOSS|DEADLINE_EXCEEDED|OVERLOADED"'

Queries = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel; its size follows from its kind."""

    title: str
    #: A unit of Grafana.
    unit: str
    #: (PromQL, legend).
    queries: Queries
    text: str = ""
    #: "stat", "timeseries" or "table".
    kind: str = "timeseries"
    stacked: bool = False
    #: From here on the figure is red; None for never. `worst_below` turns that round.
    red: float | None = None
    worst_below: bool = False


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One file."""

    name: str
    title: str
    text: str
    #: Of "region", "queue" and "service".
    variables: tuple[str, ...]
    panels: tuple[Panel, ...]


def stat(
    title: str, unit: str, query: str, text: str = "", red: float | None = None, below: bool = False
) -> Panel:
    """One figure."""
    return Panel(
        title=title, unit=unit, queries=((query, ""),), text=text, kind="stat", red=red, worst_below=below
    )


def graph(title: str, unit: str, *queries: tuple[str, str], text: str = "", stacked: bool = False) -> Panel:
    """Lines over time."""
    return Panel(title=title, unit=unit, queries=queries, text=text, stacked=stacked)


def table(title: str, unit: str, *queries: tuple[str, str], text: str = "") -> Panel:
    """Figures of now, a column a query."""
    return Panel(title=title, unit=unit, queries=queries, text=text, kind="table")


def rates(metric: str, by: str, selector: str = "", window: str = RATE) -> str:
    """How many a second."""
    return f"sum by ({by}) (rate({metric}{f'{{{selector}}}' if selector else ''}{window}))"


def rises(metric: str, by: str, selector: str = "", window: str = RATE) -> str:
    """How many in the window."""
    return f"sum by ({by}) (increase({metric}{f'{{{selector}}}' if selector else ''}{window}))"


def per_minute(metric: str, by: str, selector: str = RQ) -> str:
    """How many a minute."""
    return f"60 * {rates(metric, by, selector)}"


def total(metric: str, selector: str, window: str = RATE) -> str:
    """How many in the window, 0 when there never was one."""
    return f"sum(increase({metric}{{{selector}}}{window})) or vector(0)"


def share(
    good: str, *all_of: str, by: str = "", selector: str = RQ, window: str = RATE, rest: int = 0
) -> str:
    """Rates of `good` among the rates of `all_of`; `rest` where there was nothing to be among."""
    grouping = f" by ({by})" if by else ""
    whole = " + ".join(f"sum{grouping} (rate({metric}{{{selector}}}{window}))" for metric in all_of)
    nothing = f"{rest} + 0 * ({whole})" if by else f"vector({rest})"
    return f"sum{grouping} (rate({good}{{{selector}}}{window})) / (({whole}) > 0) or {nothing}"


def quantile(q: float, metric: str, by: str, selector: str, window: str = RATE) -> str:
    """A quantile of a histogram."""
    grouping = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({grouping}) (rate({metric}_bucket{{{selector}}}{window})))"


OFFERED, ANSWERED, ABANDONED = (f"callmesh_queue_{w}_total" for w in ("offered", "answered", "abandoned"))
IN_TARGET, WAITS = "callmesh_queue_answered_in_target_total", "callmesh_queue_answer_wait_seconds_total"
TYPE, RPCS = "callmesh_bus_published_total", "callmesh_rpc_requests_total"
QUERIES, SLOW = "callmesh_db_queries_total", "callmesh_db_query_seconds"
SEQUENCE = f"callmesh_shard_sequence{{{S}}}"

WALLBOARD = Dashboard(
    name="wallboard",
    title="Wallboard",
    text="What a supervisor looks at: who waits, who is there, how the service is just now.",
    variables=("region", "queue"),
    panels=(
        stat("Callers waiting", "none", f"sum(callmesh_queue_waiting_calls{{{RQ}}})"),
        stat("Longest wait", "s", f"max(callmesh_queue_longest_wait_seconds{{{RQ}}})", red=600),
        stat(
            "Service level, 15 min",
            "percentunit",
            share(IN_TARGET, ANSWERED, ABANDONED, window="[15m]", rest=1),
            "Answered within the target, of those answered and those who went after the short-abandon time.",
            0.8,
            True,
        ),
        stat("Speed of answer, 15 min", "s", share(WAITS, ANSWERED, window="[15m]")),
        stat(
            "Abandoned, 15 min", "percentunit", share(ABANDONED, ANSWERED, ABANDONED, window="[15m]"), red=0.1
        ),
        stat("Agents free", "none", f'sum(callmesh_agents{{{R},state="available"}})'),
        graph(
            "Calls a minute",
            "none",
            (f"60 * sum(rate({OFFERED}{{{RQ}}}{RATE}))", "offered"),
            (f"60 * sum(rate({ANSWERED}{{{RQ}}}{RATE}))", "answered"),
            (f"60 * sum(rate({ABANDONED}{{{RQ}}}{RATE}))", "abandoned"),
        ),
        graph(
            "Agents by what they do",
            "none",
            (f'sum by (state) (callmesh_agents{{{R},state!="offline"}})', "{{state}}"),
            stacked=True,
        ),
        graph(
            "Callers waiting by queue",
            "none",
            (f"sum by (region, queue) (callmesh_queue_waiting_calls{{{RQ}}})", "{{region}} {{queue}}"),
            stacked=True,
        ),
        graph(
            "Longest wait by queue",
            "s",
            (f"max by (region, queue) (callmesh_queue_longest_wait_seconds{{{RQ}}})", "{{region}} {{queue}}"),
        ),
        graph(
            "Service level by queue",
            "percentunit",
            (f"callmesh:service_level:ratio_5m{{{RQ}}}", "{{region}} {{queue}}"),
        ),
        graph("Speed of answer by queue", "s", (f"callmesh:asa:seconds_5m{{{RQ}}}", "{{region}} {{queue}}")),
        graph(
            "Occupancy",
            "percentunit",
            (f"callmesh:occupancy:ratio_5m{{{R}}}", "{{region}}"),
            text="Agents with a contact, of those who are free or have one. Pauses do not count.",
        ),
        graph(
            "Handle time by queue",
            "s",
            (f"callmesh:aht:seconds_1h{{{RQ}}}", "{{region}} {{queue}}"),
            text="Conversation and after-call work, the last hour's mean.",
        ),
        table(
            "Queues now",
            "none",
            (f"sum by (region, queue) (callmesh_queue_waiting_calls{{{RQ}}})", "waiting"),
            (f"max by (region, queue) (callmesh_queue_longest_wait_seconds{{{RQ}}})", "longest wait, s"),
            (f"max by (region, queue) (callmesh_queue_expected_wait_seconds{{{RQ}}})", "expected wait, s"),
            (f"max by (region, queue) (callmesh_queue_agents_logged_in{{{RQ}}})", "agents"),
            (f"max by (region, queue) (callmesh_queue_agents_free{{{RQ}}})", "free"),
            (f"callmesh:queue_occupancy:ratio_5m{{{RQ}}}", "busy"),
        ),
        graph(
            "Abandoned by queue",
            "percentunit",
            (f"callmesh:abandonment:ratio_5m{{{RQ}}}", "{{region}} {{queue}}"),
        ),
    ),
)

ROUTING = Dashboard(
    name="routing",
    title="Routing",
    text="Whether calls get to agents as they should: decisions, waits, estimates, streams.",
    variables=("region", "queue"),
    panels=(
        stat(
            "Calls lost",
            "none",
            f"max(callmesh_calls_lost{{{R}}})",
            "Taken, and in nobody's hands. Never.",
            1,
        ),
        stat("Agents stuck", "none", f"max(callmesh_agents_stuck{{{R}}})", "Held by calls that are over.", 1),
        stat("Callers' streams", "none", "sum(callmesh_front_callers)"),
        stat("Agents' sessions", "none", "sum(callmesh_front_desks)"),
        stat("Given up, 15 min", "none", total("callmesh_queue_refused_total", RQ, "[15m]"), red=20),
        stat(
            "Broken off, 15 min",
            "none",
            total("callmesh_calls_interrupted_total", RQ, "[15m]"),
            "Conversations that the loss of a region or of an agent's desktop ended.",
            5,
        ),
        graph(
            "Calls by state",
            "none",
            (f"sum by (state) (callmesh_calls_live{{{R}}})", "{{state}}"),
            stacked=True,
        ),
        graph(
            "Events committed a second",
            "none",
            (rates("callmesh_journal_events_total", "shard", S), "{{shard}}"),
        ),
        graph(
            "Waits of those answered",
            "s",
            (quantile(0.5, "callmesh_calls_answer_wait_seconds", "", RQ, "[5m]"), "half"),
            (quantile(0.95, "callmesh_calls_answer_wait_seconds", "", RQ, "[5m]"), "95 %"),
        ),
        graph(
            "Expected wait of a call that came now",
            "s",
            (
                f"max by (region, queue) (callmesh_queue_expected_wait_seconds{{{RQ}}})",
                "{{region}} {{queue}}",
            ),
        ),
        graph(
            "Told and real wait",
            "s",
            (
                share(
                    "callmesh_calls_promised_wait_seconds_total",
                    "callmesh_calls_promised_total",
                    window="[15m]",
                ),
                "told",
            ),
            (
                share(
                    "callmesh_calls_promised_real_wait_seconds_total",
                    "callmesh_calls_promised_total",
                    window="[15m]",
                ),
                "real",
            ),
            (
                share(
                    "callmesh_calls_promised_error_seconds_total",
                    "callmesh_calls_promised_total",
                    window="[15m]",
                ),
                "difference",
            ),
            text="Means of the answered calls that were told a wait when they began to wait.",
        ),
        graph(
            "Error of the told wait",
            "percentunit",
            (f"callmesh:expected_wait_error:ratio_1h{{{RQ}}} >= 0 or on() vector(0)", "{{region}} {{queue}}"),
        ),
        graph(
            "Offers that came to nothing a minute",
            "none",
            (per_minute("callmesh_calls_offers_missed_total", "region"), "{{region}} rang out"),
            (per_minute("callmesh_calls_offers_declined_total", "region"), "{{region}} declined"),
        ),
        graph(
            "Handed on and called back a minute",
            "none",
            (per_minute("callmesh_calls_transferred_total", "region"), "{{region}} handed on"),
            (per_minute("callmesh_calls_callbacks_total", "region"), "{{region}} asked for a call back"),
        ),
        graph(
            "Moved to another region a minute",
            "none",
            (per_minute("callmesh_queue_moved_total", "region"), "from {{region}}"),
            (per_minute("callmesh_front_moves_total", "reason", "") + " or vector(0)", "because {{reason}}"),
        ),
        graph(
            "RPCs of routing a second",
            "reqps",
            (rates(RPCS, "method", 'service="routing"') + " > 0", "{{method}}"),
        ),
    ),
)

FAILOVER = Dashboard(
    name="failover",
    title="Region failover",
    text="Who leads, who could, and what a loss cost.",
    variables=("region",),
    panels=(
        stat("Regions heard", "none", "count(max by (region) (callmesh_peer_up) > 0) or vector(0)"),
        stat("Regions silent", "none", "count(max by (region) (callmesh_peer_up) < 1) or vector(0)", red=1),
        stat("Shards led", "none", f"sum(callmesh_shard_leads{{{S}}})"),
        stat("Takeovers, 1 h", "none", total("callmesh_shard_takeovers_total", S, "[1h]"), red=4),
        stat("Cannot commit", "none", f"sum(callmesh_shard_stalled{{{S}}})", red=1),
        stat("Draining", "none", f"sum(callmesh_region_draining{{{R}}})"),
        graph(
            "Who leads",
            "none",
            (
                f"max by (shard, process, instance) (callmesh_shard_leads{{{S}}}) > 0",
                "{{shard}}: {{process}} {{instance}}",
            ),
            text="Two lines of one shard at once are a scrape of before and one of after a change.",
        ),
        graph("Leaders heard", "none", ("max by (region) (callmesh_peer_up)", "{{region}}")),
        graph(
            "Openings and takeovers",
            "none",
            (rises("callmesh_shard_openings_total", "shard", S), "{{shard}} opened"),
            (rises("callmesh_shard_takeovers_total", "shard", S), "{{shard}} taken over"),
        ),
        graph(
            "Without a leader",
            "s",
            (rises("callmesh_shard_leaderless_seconds_sum", "shard", S, window="[15m]"), "{{shard}}"),
            text="Silence of the journal before an opening, added up over a quarter of an hour.",
        ),
        graph(
            "Led from memory",
            "none",
            # Routers that refuse in an outage have no such figures.
            (f"max by (shard) (callmesh_shard_from_memory{{{S}}}) or vector(0)", "{{shard}}"),
            (
                rises("callmesh_journal_orphaned_blocks_total", "shard", S, window="[15m]") + " or vector(0)",
                "{{shard}}: blocks orphaned",
            ),
            text="Only with ROUTING_ON_OUTAGE=continue. Orphaned is what was told and met another leader.",
        ),
        graph("Epoch", "none", (f"max by (shard) (callmesh_shard_epoch{{{S}}})", "{{shard}}")),
        graph(
            "Standbys behind the leader",
            "none",
            (
                f"max by (shard) ({SEQUENCE}) - min by (shard) ({SEQUENCE})",
                "{{shard}}",
            ),
            text="Blocks; what a scrape later of one of the two adds is no lag.",
        ),
        graph(
            "Calls moved because of a loss",
            "none",
            (
                'sum(increase(callmesh_front_moves_total{reason="REGION_LOST"}[5m])) or vector(0)',
                "region lost",
            ),
            (
                'sum(increase(callmesh_front_moves_total{reason!="REGION_LOST"}[5m])) or vector(0)',
                "other reasons",
            ),
        ),
        graph(
            "Conversations broken off",
            "none",
            (rises("callmesh_calls_interrupted_total", "region", R, window="[5m]"), "{{region}}"),
        ),
        graph(
            "Callers' streams by router",
            "none",
            ("sum by (process, instance) (callmesh_front_callers)", "{{process}} {{instance}}"),
            stacked=True,
        ),
        graph(
            "Agents logged in",
            "none",
            (f'sum by (region) (callmesh_agents{{{R},state!="offline"}})', "{{region}}"),
            stacked=True,
        ),
    ),
)

SERVICES = Dashboard(
    name="services",
    title="Services",
    text="Requests, errors and duration of every RPC and query, and what the processes use.",
    variables=("service",),
    panels=(
        stat("Processes up", "none", 'sum(up{process!=""})'),
        stat("Processes down", "none", 'count(up{process!=""} == 0) or vector(0)', red=1),
        stat("RPCs a second", "reqps", f"sum(rate(callmesh_rpc_requests_total{{{V}}}{RATE}))"),
        stat(
            "RPCs failed",
            "percentunit",
            f"(sum(rate({RPCS}{{{V},{BAD}}}{RATE})) or vector(0)) / sum(rate({RPCS}{{{V}}}{RATE}))",
            "INTERNAL, UNKNOWN, UNAVAILABLE, DATA_LOSS, DEADLINE_EXCEEDED, OVERLOADED: not callers' own.",
            0.001,
        ),
        stat("RPCs open", "none", f"sum(callmesh_rpc_open{{{V}}})"),
        stat(
            "Loops broken, 1 h",
            "none",
            "sum(increase(callmesh_background_crashes_total[1h])) or vector(0)",
            red=1,
        ),
        graph(
            "RPCs by service a second",
            "reqps",
            (rates(RPCS, "service", V), "{{service}}"),
        ),
        graph(
            "RPCs by outcome a second",
            "reqps",
            (rates(RPCS, "service, code", V) + " > 0", "{{service}} {{code}}"),
        ),
        graph(
            "Refused because of a limit a second",
            "reqps",
            (rates("callmesh_limited_total", "service, limit", V) + " or vector(0)", "{{service}} {{limit}}"),
        ),
        graph(
            "Ten busiest methods a second",
            "reqps",
            (f"topk(10, {rates(RPCS, 'method', V)})", "{{method}}"),
        ),
        graph(
            "Ten slowest methods, 99 %",
            "s",
            (f"topk(10, {quantile(0.99, 'callmesh_rpc_seconds', 'method', V)} >= 0)", "{{method}}"),
            text="Streams last as long as their caller stays.",
        ),
        graph(
            "Error budget: share of RPCs failed",
            "percentunit",
            (
                "callmesh:rpc_errors:ratio_5m",
                "{{service}} 5 min",
            ),
            (
                "callmesh:rpc_errors:ratio_1h",
                "{{service}} 1 h",
            ),
        ),
        graph(
            "Database commands a second",
            "reqps",
            (rates(QUERIES, "service, command", V) + " > 0", "{{service}} {{command}}"),
            text="Of all clients: mongoengine's, the servers' hot reads, the journal.",
        ),
        graph(
            "Database commands failed a second",
            "reqps",
            (rates(QUERIES, "service", f'{V},outcome="failed"') + " or vector(0)", "{{service}}"),
        ),
        graph(
            "Database commands, 99 %",
            "s",
            (
                f"topk(10, {quantile(0.99, SLOW, 'service, collection, command', V)} >= 0)",
                "{{service}} {{collection}} {{command}}",
            ),
        ),
        graph(
            "CPU",
            "none",
            (f'rate(process_cpu_seconds_total{{process!=""}}{RATE})', "{{process}} {{instance}}"),
            text="Cores. A router near 1 has too many agents for one core.",
        ),
        graph("Memory", "bytes", ('process_resident_memory_bytes{process!=""}', "{{process}} {{instance}}")),
    ),
)

BUS = Dashboard(
    name="bus",
    title="Bus and journal",
    text="From the decision to the last consumer: commits, relays, queues, dead letters.",
    variables=("region",),
    panels=(
        stat(
            "Dead letters",
            "none",
            "sum(max by (service, handler) (callmesh_bus_dead_letters))",
            "In the dead-letter queues now.",
            1,
        ),
        stat(
            "Events waiting", "none", "sum(max by (service, handler) (callmesh_bus_queue_messages))", red=5000
        ),
        stat("Oldest outbox", "s", "max(callmesh_outbox_oldest_seconds)", red=120),
        stat(
            "Journal unpublished",
            "none",
            f"sum(max by (shard) (callmesh_relay_lag_blocks{{{S}}}))",
            "Blocks.",
            600,
        ),
        stat("Commit, 99 %", "s", "max(callmesh:journal_commit:p99_5m >= 0)", red=0.25),
        stat(
            "Broken journals",
            "none",
            "(sum(callmesh_relay_shard_stopped) or vector(0))"
            " + (sum(callmesh_snapshot_shard_stopped) or vector(0))"
            " + (sum(callmesh_reports_shard_stopped) or vector(0))"
            " + (sum(callmesh_journal_digest_mismatches_total) or vector(0))",
            red=1,
        ),
        graph(
            "Commit of a block",
            "s",
            (quantile(0.5, "callmesh_journal_commit_seconds", "shard", S), "{{shard}} half"),
            (quantile(0.99, "callmesh_journal_commit_seconds", "shard", S), "{{shard}} 99 %"),
        ),
        graph(
            "Blocks a second",
            "none",
            (rates("callmesh_journal_blocks_total", "shard", S), "{{shard}}"),
            text="Two a second are an idle leader's heartbeat.",
        ),
        graph("Events published a second", "none", (rates(TYPE, "service"), "{{service}}")),
        graph(
            "Events handled a second",
            "none",
            (rates("callmesh_consumer_events_total", "service, outcome") + " > 0", "{{service}} {{outcome}}"),
        ),
        graph(
            "Lag of consumers, 99 %",
            "s",
            ("topk(10, callmesh:consumer_lag:p99_5m >= 0)", "{{service}} {{handler}}"),
            text="From the broker to the end of the handling.",
        ),
        graph(
            "Handling of an event, 99 %",
            "s",
            (
                f"topk(10, {quantile(0.99, 'callmesh_consumer_seconds', 'service, handler', '')} >= 0)",
                "{{service}} {{handler}}",
            ),
        ),
        graph(
            "Waiting at the broker",
            "none",
            ("max by (service, handler) (callmesh_bus_queue_messages)", "{{service}} {{handler}}"),
            stacked=True,
        ),
        graph(
            "Given up and put off",
            "none",
            (rises("callmesh_bus_dead_total", "service, handler"), "{{service}} {{handler}} dead"),
            (rises("callmesh_bus_retried_total", "service, handler"), "{{service}} {{handler}} put off"),
        ),
        graph(
            "Not taken by the broker",
            "none",
            (rises("callmesh_bus_unpublished_total", "service") + " or vector(0)", "{{service}} unpublished"),
            (rises("callmesh_bus_unroutable_total", "service") + " or vector(0)", "{{service}} unroutable"),
        ),
        graph(
            "Behind the journal",
            "none",
            (f"max by (shard) (callmesh_relay_lag_blocks{{{S}}})", "{{shard}} unpublished"),
            text="Blocks that the relay has not published.",
        ),
        graph(
            "Who relays",
            "none",
            ("max by (process) (callmesh_relay_active)", "{{process}} journals"),
            ("max by (service, process) (callmesh_outbox_relay_active)", "{{process}} outbox"),
        ),
        graph(
            "Counted into reports, blocks a second",
            "none",
            (rates("callmesh_reports_blocks_total", "shard", S), "{{shard}}"),
        ),
    ),
)


def events(kind: str, window: str = "[1h]") -> str:
    """How many events of a type were published."""
    return f'sum(increase({TYPE}{{type="callmesh.{kind}"}}{window})) or vector(0)'


BUSINESS = Dashboard(
    name="business",
    title="Business",
    text="What came of the calls: answers, tickets, offers, customers.",
    variables=("region", "queue"),
    panels=(
        stat("Calls, 1 h", "none", f"sum(increase({OFFERED}{{{RQ}}}[1h]))"),
        stat("Answered, 1 h", "none", f"sum(increase({ANSWERED}{{{RQ}}}[1h]))"),
        stat(
            "Service level, 1 h",
            "percentunit",
            share(IN_TARGET, ANSWERED, ABANDONED, window="[1h]", rest=1),
            "",
            0.8,
            True,
        ),
        stat("Tickets opened, 1 h", "none", events("tickets.v1.TicketCreated")),
        stat("Deadlines of tickets missed, 1 h", "none", events("tickets.v1.SlaBreached")),
        stat("Offers shown, 1 h", "none", events("marketing.v1.RecommendationMade")),
        graph(
            "Calls by region a minute", "none", (per_minute(OFFERED, "region"), "{{region}}"), stacked=True
        ),
        graph(
            "Service level by region",
            "percentunit",
            (share(IN_TARGET, ANSWERED, ABANDONED, by="region", window="[15m]", rest=1), "{{region}}"),
        ),
        graph(
            "Talk time by region",
            "s",
            (
                share(
                    "callmesh_calls_talk_seconds_sum",
                    "callmesh_calls_talk_seconds_count",
                    by="region",
                    window="[15m]",
                ),
                "{{region}}",
            ),
        ),
        graph(
            "Callers who went: how long they had waited",
            "s",
            (
                share(
                    "callmesh_calls_abandoned_wait_seconds_sum",
                    "callmesh_calls_abandoned_wait_seconds_count",
                    by="region",
                    window="[15m]",
                ),
                "{{region}}",
            ),
        ),
        graph(
            "Tickets a minute",
            "none",
            *(
                (f"{per_minute(TYPE, 'type', selector)} or vector(0)", legend)
                for selector, legend in (
                    ('type="callmesh.tickets.v1.TicketCreated"', "opened"),
                    ('type="callmesh.tickets.v1.TicketTransitioned"', "moved on"),
                    ('type="callmesh.tickets.v1.SlaBreached"', "deadline missed"),
                )
            ),
        ),
        graph(
            "Tickets' timers",
            "none",
            (f"60 * sum(rate(callmesh_tickets_timers_fired_total{RATE})) or vector(0)", "run a minute"),
            ("max(callmesh_tickets_timer_late_seconds) or vector(0)", "latest, s"),
        ),
        graph(
            "Offers a minute",
            "none",
            (per_minute("marketing_decisions_total", "outcome", "") + " or vector(0)", "asked: {{outcome}}"),
            (per_minute("marketing_outcomes_total", "result", "") + " or vector(0)", "answered: {{result}}"),
        ),
        graph(
            "Customers",
            "none",
            *(
                (f"{per_minute(TYPE, 'type', selector)} or vector(0)", legend)
                for selector, legend in (
                    ('type="callmesh.crm.v1.CustomerCreated"', "new a minute"),
                    ('type="callmesh.crm.v1.LeaveIntentFlagged"', "want to leave a minute"),
                )
            ),
        ),
        graph(
            "Screen pops a second",
            "reqps",
            (
                f'sum(rate(callmesh_rpc_requests_total{{service="crm",method="callmesh.crm.v1.ScreenPopService/GetScreenPop"}}{RATE}))',
                "asked for",
            ),
            (f"sum(rate(crm_screen_pop_missing_total{RATE})) or vector(0)", "with a part missing"),
        ),
        graph(
            "Partners told",
            "none",
            (rises("crm_webhook_tries_total", "outcome") + " or vector(0)", "webhooks {{outcome}}"),
        ),
        graph(
            "Outbound calls a minute",
            "none",
            (
                per_minute("callmesh_dialler_offers_total", "outcome", "") + " or vector(0)",
                "offered: {{outcome}}",
            ),
            (
                per_minute("callmesh_dialler_lines_total", "result", "") + " or vector(0)",
                "lines: {{result}}",
            ),
        ),
    ),
)

DASHBOARDS = (WALLBOARD, ROUTING, FAILOVER, SERVICES, BUS, BUSINESS)

#: A metric or recorded series in a query, and where its selector begins if it has one.
ASKED = re.compile(r"\b((?:callmesh[_:]|crm_|marketing_|process_)[a-z0-9_:]+|up)(\{|(?=[\[), ]|$))")


def of_platform(query: str) -> str:
    """The query, of the chosen platform alone."""
    return ASKED.sub(lambda found: f"{found[1]}{{{PLATFORM}{',' if found[2] else '}'}", query)


#: Where the values of a variable come from.
VARIABLES = {
    "platform": "label_values(callmesh_rpc_open, platform)",
    "region": "label_values(callmesh_shard_epoch, shard)",
    "queue": 'label_values(callmesh_queue_offered_total{queue!="canary"}, queue)',
    "service": "label_values(callmesh_rpc_open, service)",
}


def variable(name: str) -> dict[str, Any]:
    """A choice at the top of a dashboard, everything at first."""
    query = VARIABLES[name] if name == "platform" else of_platform(VARIABLES[name])
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "variable"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def thresholds(panel: Panel) -> dict[str, Any]:
    """Colours of a figure."""
    first, second = ("red", "green") if panel.worst_below else ("green", "red")
    steps: list[dict[str, Any]] = [{"color": first, "value": None}]
    if panel.red is not None:
        steps.append({"color": second, "value": panel.red})
    else:
        steps[0]["color"] = "text" if panel.kind == "stat" else "green"
    return {"mode": "absolute", "steps": steps}


def options(panel: Panel) -> dict[str, Any]:
    """What Grafana wants to know of each kind."""
    if panel.kind == "stat":
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "area", "textMode": "auto"}
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    return {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def target(panel: Panel, place: int) -> dict[str, Any]:
    """One query."""
    query, legend = panel.queries[place]
    found: dict[str, Any] = {
        "refId": chr(ord("A") + place),
        "expr": of_platform(query),
        "legendFormat": legend or "__auto",
        "datasource": DATASOURCE,
        "editorMode": "code",
        "range": panel.kind != "table",
        "instant": panel.kind == "table",
    }
    return found | ({"format": "table"} if panel.kind == "table" else {})


def transformations(panel: Panel) -> list[dict[str, Any]]:
    """Joins a table's queries into one row a queue."""
    names = {f"Value #{chr(ord('A') + i)}": legend for i, (_, legend) in enumerate(panel.queries)}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names}},
    ]


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """A panel at its place."""
    width, height = STAT if panel.kind == "stat" else GRAPH
    custom = (
        {}
        if panel.kind != "timeseries"
        else {
            "custom": {
                "fillOpacity": 20 if panel.stacked else 0,
                "showPoints": "never",
                "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            }
        }
    )
    made: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "thresholds": thresholds(panel), **custom},
            "overrides": [],
        },
        "options": options(panel),
        "targets": [target(panel, i) for i in range(len(panel.queries))],
    }
    return made | ({"transformations": transformations(panel)} if panel.kind == "table" else {})


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """A whole dashboard; panels from left to right, then down."""
    panels, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(dashboard.panels, 1):
        width, this = STAT if panel.kind == "stat" else GRAPH
        if x + width > GRID_WIDTH or (height and this != height):
            x, y, height = 0, y + height, 0
        panels.append(panel_json(panel, number, x, y))
        x, height = x + width, this
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "current": {},
        "hide": 0,
    }
    return {
        "uid": f"callmesh-{dashboard.name}",
        "title": f"callmesh / {dashboard.title}",
        "description": dashboard.text,
        "tags": ["callmesh"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "tags": ["callmesh"],
                "title": "callmesh",
                "asDropdown": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [source, *(variable(name) for name in ("platform", *dashboard.variables))]},
        "annotations": {
            "list": [
                {
                    "name": "Takeovers",
                    "datasource": DATASOURCE,
                    "enable": True,
                    "iconColor": "orange",
                    "expr": of_platform("sum by (shard) (increase(callmesh_shard_takeovers_total[1m])) > 0"),
                    "titleFormat": "{{shard}} has a new leader",
                }
            ]
        },
        "panels": panels,
    }


def main() -> int:
    """Writes the files, or says which are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = []
    for dashboard in DASHBOARDS:
        path = FOLDER / f"{dashboard.name}.json"
        text = json.dumps(dashboard_json(dashboard), indent=1, ensure_ascii=False) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(
        *(f"{'stale' if check else 'written'}: {name}" for name in stale), sep="\n", end="\n" if stale else ""
    )
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
