"""How a router asks shards: once, patiently, or until it must have got through.

What is asked may be asked again: a leader that goes, or a link that breaks, leaves the answer unknown. While
a shard has no leader, whoever asks patiently waits for the next one, and takes its turn among the others.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from chassis.clock import Clock
from chassis.errors import CallmeshError, Unavailable
from routing.committed import Committed, NothingTaken
from routing.errors import CallNotFound
from routing.model import AskCall, CallView, Command
from routing.streams import Present, Update
from routing.turnstile import NoTurn, Turnstile, Urgency

if TYPE_CHECKING:
    from routing.links import ShardPort

#: First and longest pause between two tries of something that must get through, real seconds; less by chance,
#: so that not all try in the same moment.
RETRY_SECONDS, RETRY_SECONDS_MAX = 0.05, 1.0

log = structlog.get_logger(__name__)


class Shards:
    """Every shard, as one router asks it. Its methods belong to one event loop."""

    def __init__(self, ports: Mapping[str, ShardPort], clock: Clock, ask_seconds: float) -> None:
        """`ports` by region id; a leader has `ask_seconds` (real) to answer, unless more or less is said."""
        self._ports = ports
        self._clock = clock
        self._ask_seconds = ask_seconds
        #: By region: who may ask when many want to.
        self.turnstiles = {
            region: Turnstile(functools.partial(_is_up, port)) for region, port in ports.items()
        }
        #: What runs and outlives the request that began it.
        self.tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs work that outlives the request that began it; `close` waits for it."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def close(self) -> None:
        """Cancels what still runs."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def ask(self, region: str, command: Command, seconds: float | None = None) -> Awaitable[Committed]:
        """One question to a region's leader. Raises Unavailable's kinds."""
        return self._ports[region].ask(command, seconds or self._ask_seconds)

    async def ask_patiently(self, region: str, command: Command, seconds: float) -> Committed:
        """The same question until it is answered or `seconds` (real) are over: for what must get through.
        While the shard has no leader it waits for the next.
        """
        committed = await self._until_heard(region, lambda: command, seconds)
        assert committed is not None
        return committed

    async def _until_heard(
        self, region: str, say: Callable[[], Command | None], seconds: float
    ) -> Committed | None:
        """As `ask_patiently`; `say` tells before each try what is to be asked by then. None when there is
        nothing to say any more.
        """
        give_up, pause = self._clock.monotonic() + seconds, RETRY_SECONDS
        try:
            return await self._ask_for(region, say, seconds)
        except Unavailable as error:
            failure = error
        while (left := give_up - self._clock.monotonic()) > RETRY_SECONDS:
            if self._ports[region].up:
                await asyncio.sleep(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(2 * pause, RETRY_SECONDS_MAX)
            try:
                async with self.turnstiles[region].passage(Urgency.AGENT, left):
                    return await self._ask_for(region, say, give_up - self._clock.monotonic())
            except Unavailable as error:
                failure = error
            except NoTurn:
                break
        raise failure

    async def _ask_for(
        self, region: str, say: Callable[[], Command | None], seconds: float
    ) -> Committed | None:
        command = say()
        if command is None:
            return None
        return await self.ask(region, command, max(0.05, min(seconds, self._ask_seconds)))

    async def newest(self, call_id: str, regions: Sequence[str]) -> Committed:
        question = AskCall(call_id=call_id)
        results = await asyncio.gather(*(self.ask(r, question) for r in regions), return_exceptions=True)
        found = [r for r in results if isinstance(r, Committed) and r.answer.call is not None]
        if found:
            return max(found, key=_version_of)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        raise CallNotFound(resource=f"calls/{call_id}")

    async def get_through(
        self, region: str, say: Callable[[], Command | None], seconds: float
    ) -> Committed | None:
        """What nobody waits for, but must arrive. A leader that has too much to do is asked until it takes
        it, however long that is: it would go on for ever with who is gone. One that is away for `seconds`
        need not hear it: the next one, or the same one by its next link, finds by itself who is not there.
        The answer is None then.
        """
        while True:
            try:
                return await self._until_heard(region, say, seconds)
            except CallmeshError as error:
                if not isinstance(error, NothingTaken) or not self._ports[region].up:
                    log.info("given_up", shard=region, command=type(say()).__name__, error=error.reason)
                    return None
            await asyncio.sleep(RETRY_SECONDS_MAX * random.uniform(0.5, 1.0))

    async def until_done(self, region: str, urgency: Urgency, attach: Callable[[], Awaitable[bool]]) -> None:
        """Tries until it is done, each time in its turn, or until the next change of leader, which begins
        anew; a region that stays away is lost.
        """
        pause = RETRY_SECONDS
        while True:
            try:
                async with self.turnstiles[region].passage(urgency):
                    if await attach():
                        return
            except NoTurn:
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, RETRY_SECONDS_MAX)


def _is_up(port: ShardPort) -> bool:
    return port.up


def regions_of(*regions: str, besides: str = "") -> list[str]:
    """Each named one once, in order."""
    return [region for region in dict.fromkeys(regions) if region not in ("", besides)]


def _version_of(committed: Committed) -> tuple[int, int]:
    view = committed.answer.call
    return (view.attempt, view.move) if view is not None else (0, 0)


def update_of(committed: Committed, call: CallView | None = None) -> Update:
    """What an answer says of its call, or of `call`."""
    return Update(
        shard=committed.shard,
        epoch=committed.epoch,
        sequence=committed.sequence,
        now_ms=committed.now_ms,
        what=Present(call=call or committed.answer.call),
        durable=committed.durable,
    )
