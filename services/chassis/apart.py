"""A job in a Python process of its own: seconds of pure computing, or a library that is heavy to load, have
no place in a process that routes calls.

`run_apart` starts a process for one job. `Kept` keeps one for the jobs that follow, where loading the library
takes longer than the job; its other side is `serve_jobs`. Between them go frames: a status (of answers
alone, a byte), a length (four bytes, big-endian), and so many bytes.

Processes are started by the `subprocess` module, whose child runs nothing of this process before it is
another program. The event loop's own way (uvloop's, of a fork) runs what libraries want done in a child that
goes on: a tracer starts its thread anew there, and the child dies of a segmentation fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from subprocess import PIPE

from chassis.errors import DeadlineExceeded, Unavailable

#: Of what the process says on its standard error, the last so many characters are kept.
WHY_CHARACTERS_MAX = 300
#: Bytes read at a time of what nobody waits for.
READ_BYTES = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How the process ended."""

    #: Exit status; 0 when all went well.
    status: int
    #: Its standard output.
    said: bytes
    #: The end of its standard error, for a log line.
    why: str


class _Process:
    """A process and its pipes; `end` is owed."""

    def __init__(self, started: subprocess.Popen[bytes]) -> None:
        self._started = started
        self._transports: list[asyncio.BaseTransport] = []
        self.stdin: StreamWriter
        self.stdout: StreamReader
        self.stderr: StreamReader

    async def connect(self) -> None:
        """Its pipes become streams of the running loop."""
        loop, started = asyncio.get_running_loop(), self._started
        # Of a pipe that is written to, the reader is never read.
        unread = StreamReaderProtocol(StreamReader())
        transport, _ = await loop.connect_write_pipe(lambda: unread, started.stdin)
        self._transports.append(transport)
        self.stdin = StreamWriter(transport, unread, None, loop)
        self.stdout, self.stderr = await self._read(started.stdout), await self._read(started.stderr)

    async def _read(self, pipe: object) -> StreamReader:
        reader = StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: StreamReaderProtocol(reader), pipe
        )
        self._transports.append(transport)
        return reader

    @property
    def pid(self) -> int:
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal that ended it."""
        return self._started.poll()

    async def write(self, job: bytes) -> None:
        """Raises ConnectionError when it does not read any more."""
        if self.stdin.is_closing():
            raise ConnectionResetError("the process has ended")
        self.stdin.write(job)
        await self.stdin.drain()

    async def wait(self) -> int:
        """Its exit status."""
        return await asyncio.to_thread(self._started.wait)

    async def end(self) -> None:
        """Kills it if it still runs, and closes its pipes."""
        try:
            if self.returncode is None:
                self._started.kill()
            await self.wait()
        finally:
            for transport in self._transports:
                transport.close()
            # The others belong to their transports.
            pipes = (self._started.stdin, self._started.stdout, self._started.stderr)
            for pipe in filter(None, pipes[len(self._transports) :]):
                pipe.close()


async def _start(module: str, arguments: Sequence[str], environment: Mapping[str, str] | None) -> _Process:
    """`python -m module arguments` on this process's paths and environment, `environment` on top. Raises
    Unavailable when the machine starts no process.
    """
    command = [sys.executable, "-m", module, *arguments]
    paths = os.pathsep.join(filter(None, sys.path))
    environ = {**os.environ, "PYTHONPATH": paths, **(environment or {})}
    try:
        started = subprocess.Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environ)
    except OSError as error:
        raise Unavailable(why=f"no process can be started: {error.strerror}", retry_seconds=5.0) from error
    process = _Process(started)
    try:
        await process.connect()
    except BaseException:
        await process.end()
        raise
    return process


async def run_apart(
    module: str, *arguments: str, job: bytes, seconds_max: float, environment: dict[str, str] | None = None
) -> Ended:
    """Runs `python -m module arguments` with `job` on its standard input, on this process's paths and
    environment, `environment` on top. The process ends with this coroutine, however that ends. Raises
    DeadlineExceeded after `seconds_max` real seconds, Unavailable when no process can be started.
    """
    process = await _start(module, arguments, environment)
    try:
        async with asyncio.timeout(seconds_max):
            _, said, why = await asyncio.gather(
                _given(process, job), process.stdout.read(), process.stderr.read()
            )
            status = await process.wait()
    except TimeoutError:
        raise DeadlineExceeded() from None
    finally:
        await process.end()
    return Ended(status=status, said=said, why=why.decode(errors="replace").strip()[-WHY_CHARACTERS_MAX:])


async def _given(process: _Process, job: bytes) -> None:
    """The whole of its standard input; it need not read all of it."""
    with contextlib.suppress(ConnectionError):
        await process.write(job)
    process.stdin.close()


class Kept:
    """A process that is kept for further jobs while they come. One job at a time; belongs to one event
    loop.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        kept_seconds: float,
    ) -> None:
        """The process is started with the first job, and ends `kept_seconds` (real) after the last."""
        self._how = (module, arguments, environment)
        self._kept_seconds = kept_seconds
        self._process: _Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._said = b""
        self._resting: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Future[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def ask(self, job: bytes, seconds_max: float) -> Ended:
        """The answer to a job; of a process that ended over it, its exit status. Raises DeadlineExceeded
        after `seconds_max` real seconds; the process has ended then, and is started anew for the next job.
        Raises Unavailable when no process can be started.
        """
        async with self._one_at_a_time:
            self._stay()
            answered = False
            try:
                async with asyncio.timeout(seconds_max):
                    found = await self._asked(job)
                answered = self.pid is not None
                return found
            except TimeoutError:
                raise DeadlineExceeded() from None
            finally:
                # Of a process that was interrupted nobody knows what it will say next.
                if answered:
                    self._resting = asyncio.get_running_loop().call_later(self._kept_seconds, self._rest)
                else:
                    await self.close()

    async def _asked(self, job: bytes) -> Ended:
        if self.pid is None:
            # One that ended by itself has left its pipes.
            await self.close()
        # What it said over the job before is no reason for what becomes of this one.
        self._said = b""
        if self._process is None:
            self._process = await _start(*self._how)
            self._listening = asyncio.create_task(self._listen(self._process))
        process = self._process
        assert process is not None
        try:
            await process.write(len(job).to_bytes(4) + job)
            head = await process.stdout.readexactly(5)
            said = await process.stdout.readexactly(int.from_bytes(head[1:]))
        except (asyncio.IncompleteReadError, ConnectionError):
            status = await process.wait()
            if self._listening is not None:
                await self._listening
            return Ended(status=status or 1, said=b"", why=self._why())
        return Ended(status=head[0], said=said, why=self._why())

    def _why(self) -> str:
        return self._said.decode(errors="replace").strip()[-WHY_CHARACTERS_MAX:]

    async def _listen(self, process: _Process) -> None:
        """What it says on its standard error, the last of it."""
        while said := await process.stderr.read(READ_BYTES):
            self._said = (self._said + said)[-4 * WHY_CHARACTERS_MAX :]

    def _stay(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def _rest(self) -> None:
        """Its end of work. Another job meanwhile starts another process."""
        self._resting = None
        process, self._process = self._process, None
        listening, self._listening = self._listening, None
        self._leaving = asyncio.ensure_future(_left(process, listening))

    async def close(self) -> None:
        """Ends the process, if there is one."""
        self._stay()
        process, self._process = self._process, None
        listening, self._listening = self._listening, None
        await _left(process, listening)
        if self._leaving is not None:
            await self._leaving


async def _left(process: _Process | None, listening: asyncio.Task[None] | None) -> None:
    """Waits for the end of a process that has nothing to do any more."""
    if process is not None:
        await process.end()
    if listening is not None:
        await listening


def serve_jobs(carry_out: Callable[[bytes], tuple[int, bytes]]) -> int:
    """The other side of `Kept`: (status below 256, answer) of each job, until standard input ends. Whatever
    else is printed goes to standard error.
    """
    source = sys.stdin.buffer
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while len(head := source.read(4)) == 4:
        status, said = carry_out(source.read(int.from_bytes(head)))
        sink.write(bytes([status]) + len(said).to_bytes(4) + said)
        sink.flush()
    return 0
