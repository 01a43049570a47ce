"""Virtual time, and processes that live in it.

The agenda is one heap of what will happen: timers, messages that arrive, answers of the store, faults. Each
entry belongs to a process (a router, an edge, a desktop) and is carried out with that process's event loop
running, together with everything that becomes ready through it; then time jumps to the next entry. A process
that is frozen (SIGSTOP) or gone (kill -9) carries out nothing: its entries wait, or are dropped. None of its
clean-up code runs, as in life.

A freeze or a death may also be set to strike in the middle of an entry, after a number of callbacks, so that
there is no point of the code at which it cannot happen.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

#: Wall clock at the start of every run, milliseconds since 1970.
ORIGIN_MS = 1_772_000_000_000
#: Callbacks of one process without time passing; beyond it something spins.
SPIN_MAX = 200_000


class Spinning(AssertionError):
    """A process goes round in a circle without waiting for anything."""


class Handle:
    """A callback that is to come; cancelled it is passed over."""

    __slots__ = ("_cancelled", "args", "callback", "context")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Any) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self.callback, self.args = _nothing, ()

    def cancelled(self) -> bool:
        return self._cancelled

    def run(self) -> None:
        self.context.run(self.callback, *self.args)


def _nothing() -> None:
    pass


class Agenda:
    """What will happen, in order of time, then of being entered."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Process, Handle]] = []
        self._numbers = itertools.count()
        #: What no code awaited: failed tasks and the like.
        self.unhandled: list[str] = []
        self.over = False

    def at(self, when: float, process: Process, callback: Callable[..., Any], *args: Any) -> Handle:
        """Enters `callback(*args)` for `process` at a virtual second."""
        return self.enter(when, process, Handle(callback, args, contextvars.copy_context()))

    def after(self, seconds: float, process: Process, callback: Callable[..., Any], *args: Any) -> Handle:
        return self.at(self.now + seconds, process, callback, *args)

    def enter(self, when: float, process: Process, handle: Handle) -> Handle:
        heapq.heappush(self._heap, (max(when, self.now), next(self._numbers), process, handle))
        return handle

    def run(self, until: float, stop: Callable[[], bool]) -> None:
        """Carries out entries up to a virtual second, or until `stop()`."""
        heap = self._heap
        while heap and heap[0][0] <= until and not stop():
            when, _, process, handle = heapq.heappop(heap)
            if handle.cancelled():
                continue
            self.now = when
            process.carry_out(handle)
        if not stop():
            self.now = max(self.now, until)


class Process:
    """One process on one machine: an event loop, a clock, and whether it runs at all."""

    #: Whose code runs just now; the patched `time` module asks it.
    current: Process | None = None

    def __init__(self, agenda: Agenda, name: str, *, rate: float = 1.0, wall_offset_ms: int = 0) -> None:
        """`rate`: monotonic seconds of this machine in a true second."""
        self.agenda = agenda
        self.name = name
        self.rate = rate
        #: How far the machine's wall clock is off.
        self.wall_offset_ms = wall_offset_ms
        #: What its clock of holds stands still at; None while it runs.
        self.stuck_at: float | None = None
        self.alive = True
        self.frozen = False
        self.born = agenda.now
        #: When it was frozen, and for how long, true seconds; oldest first.
        self.naps: list[tuple[float, float]] = []
        self.loop = SimLoop(self)
        self.ready: deque[Handle] = deque()
        self.tasks: dict[asyncio.Task[Any], None] = {}
        #: Called at a crash: connections are reset by the machine's kernel.
        self.on_crash: list[Callable[[], None]] = []
        self._parked: list[Handle] = []
        self._fuse: tuple[int, Callable[[], None]] | None = None

    # --- time

    def monotonic(self) -> float:
        return 1_000.0 + self.agenda.now * self.rate

    def boottime(self) -> float:
        """Goes on while the process is frozen, as the other clock does here; unless it is stuck."""
        return self.monotonic() if self.stuck_at is None else self.stuck_at

    def wall_ms(self) -> int:
        return ORIGIN_MS + int(self.agenda.now * 1000) + self.wall_offset_ms

    # --- running

    def carry_out(self, handle: Handle) -> None:
        """Runs an entry and all that becomes ready through it; a frozen process keeps it for later."""
        if not self.alive:
            return
        if self.frozen:
            self._parked.append(handle)
            return
        self.ready.append(handle)
        self.drain()

    def drain(self) -> None:
        before, Process.current = Process.current, self
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)
        try:
            self._drain()
        finally:
            asyncio._set_running_loop(running)
            Process.current = before

    def _drain(self) -> None:
        ready = self.ready
        count = 0
        while ready and self.alive and not self.frozen:
            handle = ready.popleft()
            if not handle._cancelled:
                handle.context.run(handle.callback, *handle.args)
            if self._fuse is not None:
                self._burn()
            count += 1
            if count > SPIN_MAX:
                raise Spinning(f"{self.name}: {handle.callback!r}")

    def _burn(self) -> None:
        assert self._fuse is not None
        left, strike = self._fuse
        self._fuse = (left - 1, strike) if left > 0 else None
        if left <= 0:
            strike()

    # --- what is done to it

    def after_callbacks(self, count: int, strike: Callable[[], None]) -> None:
        """`strike()` after that many more callbacks of this process."""
        self._fuse = (count, strike)

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        if self.alive and not self.frozen:
            self.frozen = True
            self.naps.append((self.agenda.now, seconds))
            self.agenda.at(self.agenda.now + seconds, _WORLD, self.thaw)

    def thaw(self) -> None:
        """SIGCONT: what came in meanwhile is there all at once, in order."""
        if not self.alive or not self.frozen:
            return
        self.frozen = False
        parked, self._parked = self._parked, []
        for handle in parked:
            self.agenda.enter(self.agenda.now, self, handle)
        self.agenda.at(self.agenda.now, self, _nothing)

    def wakeful(self, since: float, allowed: float) -> float:
        """True seconds since then, less what each nap took beyond `allowed`."""
        slept = sum(max(0.0, seconds - allowed) for at, seconds in self.naps if at >= since)
        return self.agenda.now - since - slept

    def crash(self) -> None:
        """Kill -9: nothing of it runs any more."""
        if not self.alive:
            return
        self.alive = self.frozen = False
        for callback in self.on_crash:
            callback()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """Starts a task in this process, from outside or inside of it."""
        task = self.loop.create_task(work, name=name or getattr(work, "__qualname__", "work"))
        self.agenda.at(self.agenda.now, self, _nothing)
        return task

    def bury(self) -> None:
        """After the run: ends every task in peace, with nothing left that could be reached."""
        self.alive, self.frozen = True, False
        for _ in range(20):
            left = [task for task in self.tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            self.drain()
        for task in self.tasks:
            # What even that does not end is left to the collector, without a word.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            if task.done() and not task.cancelled():
                task.exception()
        self.alive = False
        self.ready.clear()
        self.tasks.clear()


class _World(Process):
    """The process that faults and other acts of nature belong to: never frozen, never gone."""

    def __init__(self) -> None:
        self.name = "world"

    def carry_out(self, handle: Handle) -> None:
        handle.run()


_WORLD: Process = _World()
WORLD = _WORLD


class SimLoop(asyncio.AbstractEventLoop):
    """The event loop of one process: as much of it as asyncio's own primitives need."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._agenda = process.agenda

    def time(self) -> float:
        return self._process.monotonic()

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = Handle(callback, args, context or contextvars.copy_context())
        self._process.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = Handle(callback, args, context or contextvars.copy_context())
        return self._agenda.enter(self._agenda.now + delay / self._process.rate, self._process, handle)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> Any:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        tasks = self._process.tasks
        tasks[task] = None
        task.add_done_callback(lambda done: tasks.pop(done, None))
        return task

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """A thread's work, done at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A failure that nobody awaits; what is left at the end is none."""
        if not self._agenda.over:
            failure = f"{self._process.name}: {context.get('message')}: {context.get('exception')!r}"
            self._agenda.unhandled.append(failure)
