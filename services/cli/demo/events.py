"""Whether the platform's events have all arrived: counted from every process' /metrics and from the broker's
queues.
"""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import amqp
from prometheus_client.parser import text_string_to_metric_families

from chassis.bus.connection import CONNECTION_ERRORS, close_quietly, open_connection
from chassis.bus.topology import RETRY_DELAYS_SECONDS, dead_queue, retry_name

#: One scrape may take this long on a busy machine, real seconds.
SCRAPE_SECONDS_MAX = 10.0
#: Largest answer of a scrape taken.
SCRAPE_BYTES_MAX = 8 << 20
#: Pause between two looks while waiting for the last events, real seconds.
LOOK_SECONDS = 0.5
#: Looks in a row that must find nothing new and nothing waiting.
QUIET_LOOKS = 2

PUBLISHED = "callmesh_bus_published_total"
CONSUMED = "callmesh_bus_consumed_total"
DUPLICATES = "callmesh_bus_duplicate_total"
RETRIED = "callmesh_bus_retried_total"
DEAD = "callmesh_bus_dead_total"
#: Every handler is in this one from its start, whether it had an event or not.
HANDLERS = "callmesh_consumer_seconds_count"
UNROUTABLE = "callmesh_bus_unroutable_total"
#: Age of what waits to be published, by service; 0 when nothing does.
OLDEST = "callmesh_outbox_oldest_seconds"


@dataclass(frozen=True, kw_only=True, slots=True)
class EventFigures:
    """The bus at one moment, since the stack's start."""

    #: Events that the broker confirmed, by publishing service.
    published: Mapping[str, int]
    #: The same by event type.
    published_types: Mapping[str, int]
    #: Deliveries that a handler took, by consuming service.
    consumed: Mapping[str, int]
    #: Deliveries recognised as repeats, and attempts that failed and were put back.
    duplicates: int
    retried: int
    #: Messages in dead-letter queues, or ended there by the handlers' count, whichever is more.
    dead: int
    #: Messages that wait in handlers' queues.
    waiting: int
    #: Services with events that are written but not yet published.
    backlog: int
    #: Events that no service takes: the broker had no queue for them.
    unroutable: int
    #: Processes, the broker among them, that did not answer in time: what they would have said is missing.
    unheard: int = 0

    @property
    def settled(self) -> bool:
        """Whether all have said that nothing waits: of who says nothing, nothing is known."""
        return self.waiting == 0 and self.backlog == 0 and self.unheard == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """The samples of one or more scrapes: name and labels to value, summed over processes."""

    #: (name, labels) to value.
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def total(self, name: str, **wanted: str) -> int:
        """Sum over all label sets that have the wanted labels."""
        return int(
            sum(
                value
                for (found, labels), value in self.values.items()
                if found == name and wanted.items() <= dict(labels).items()
            )
        )

    def values_of(self, name: str) -> list[float]:
        """The value of each label set."""
        return [value for (found, _), value in self.values.items() if found == name]

    def pairs(self, name: str, first: str, second: str) -> list[tuple[str, str]]:
        """The values that two labels have together, each pair once, sorted."""
        rows = [dict(labels) for found, labels in self.values if found == name]
        return sorted({(row[first], row[second]) for row in rows if first in row and second in row})

    def by(self, name: str, label: str, **wanted: str) -> dict[str, int]:
        """Sums by the value of a label."""
        sums: Counter[str] = Counter()
        for (found, labels), value in self.values.items():
            row = dict(labels)
            if found == name and label in row and wanted.items() <= row.items():
                sums[row[label]] += int(value)
        return dict(sums)


def read_samples(texts: Iterable[str]) -> Samples:
    """Sums scrapes; a text that is no exposition counts as empty."""
    values: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
    for text in texts:
        with contextlib.suppress(ValueError):
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    values[(sample.name, tuple(sorted(sample.labels.items())))] += sample.value
    return Samples(values=values)


def _scrape(address: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=SCRAPE_SECONDS_MAX) as answer:
            return str(answer.read(SCRAPE_BYTES_MAX).decode("utf-8", errors="replace"))
    except OSError:
        return ""


def _queue_depths(amqp_uri: str, queues: Iterable[str]) -> tuple[dict[str, int], bool]:
    """Messages ready in each queue that exists; whether the broker answered to the end."""
    depths: dict[str, int] = {}
    connection = None
    try:
        connection = open_connection(amqp_uri)
        for queue in queues:
            # A passive declaration of a queue that is not there closes the channel.
            channel = connection.channel()
            with contextlib.suppress(amqp.NotFound):
                depths[queue] = int(channel.queue_declare(queue, passive=True).message_count)
                channel.close()
    except CONNECTION_ERRORS:
        return depths, False
    finally:
        close_quietly(connection)
    return depths, True


class EventCounter:
    """Reads the bus. A process that was killed took its counters along: the highest seen of each is kept."""

    def __init__(self, addresses: Mapping[str, str], amqp_uri: str) -> None:
        """`addresses`: process name to host:port of its /metrics."""
        self._addresses = addresses
        self._amqp_uri = amqp_uri
        self._ended: list[str] = []

    async def remember(self, process: str) -> None:
        """Keeps the process' last counts: it is about to be killed, and will count from zero again."""
        self._ended.append(await asyncio.to_thread(_scrape, self._addresses[process]))

    async def read(self) -> EventFigures:
        """The figures now."""
        scrapes = (asyncio.to_thread(_scrape, address) for address in self._addresses.values())
        living = await asyncio.gather(*scrapes)
        samples = read_samples([*living, *self._ended])
        handlers = samples.pairs(HANDLERS, "service", "handler")
        ready = [f"{service}.{handler}" for service, handler in handlers]
        ready += [
            retry_name(service, delay)
            for service in {service for service, _ in handlers}
            for delay in RETRY_DELAYS_SECONDS
        ]
        dead = [dead_queue(f"{service}.{handler}") for service, handler in handlers]
        depths, broker_answers = await asyncio.to_thread(_queue_depths, self._amqp_uri, [*ready, *dead])
        return EventFigures(
            published=samples.by(PUBLISHED, "service"),
            published_types=samples.by(PUBLISHED, "type"),
            consumed=samples.by(CONSUMED, "service"),
            unroutable=samples.total(UNROUTABLE),
            duplicates=samples.total(DUPLICATES),
            retried=samples.total(RETRIED),
            dead=max(sum(depths.get(queue, 0) for queue in dead), samples.total(DEAD)),
            waiting=sum(depths.get(queue, 0) for queue in ready),
            backlog=sum(seconds > 0 for seconds in read_samples(living).values_of(OLDEST)),
            unheard=living.count("") + (not broker_answers),
        )

    async def settle(self, seconds_max: float) -> EventFigures:
        """Waits, at most so many real seconds, until nothing waits and nothing arrives; the last figures."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds_max
        figures = await self.read()
        quiet = 0
        while quiet < QUIET_LOOKS and loop.time() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
            latest = await self.read()
            same = latest.consumed == figures.consumed and latest.published == figures.published
            quiet = quiet + 1 if same and latest.settled else 0
            figures = latest
        return figures
