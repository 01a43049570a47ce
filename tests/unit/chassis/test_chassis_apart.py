"""Jobs in processes of their own: what they say, how they fail, and that none outlives who asked."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chassis import apart
from chassis.errors import DeadlineExceeded, Unavailable
from chassis.testing.waiting import eventually


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module `a_job` on this process's path."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path / "a_job.py"


async def test_a_job_goes_in_and_an_answer_comes_out(module: Path) -> None:
    module.write_text(
        "import os, sys\n"
        "print(sys.argv[1], os.environ['MORE'], sys.stdin.read(), end='')\n"
        "sys.stderr.write('x' * 10_000 + 'the end')\n"
        "sys.exit(3)\n"
    )
    ended = await apart.run_apart("a_job", "one", job=b"three", seconds_max=30, environment={"MORE": "two"})
    assert (ended.status, ended.said) == (3, b"one two three")
    assert ended.why.endswith("xthe end") and len(ended.why) == apart.WHY_CHARACTERS_MAX


@pytest.mark.parametrize("how", ["late", "cancelled"])
async def test_no_process_outlives_who_asked(module: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    module.write_text("import signal\nsignal.pause()\n")
    begun: asyncio.Queue[Any] = asyncio.Queue()
    create = subprocess.Popen

    def watched(*arguments: Any, **options: Any) -> Any:
        process = create(*arguments, **options)
        begun.put_nowait(process)
        return process

    monkeypatch.setattr(subprocess, "Popen", watched)
    asked = asyncio.create_task(apart.run_apart("a_job", job=b"", seconds_max=0.2 if how == "late" else 60))
    process = await begun.get()
    if how == "cancelled":
        asked.cancel()
    with pytest.raises(DeadlineExceeded if how == "late" else asyncio.CancelledError):
        await asked
    assert process.returncode == -signal.SIGKILL


async def test_a_job_need_not_be_read(module: Path) -> None:
    module.write_text("print('no', end='')\n")
    ended = await apart.run_apart("a_job", job=b"x" * 1_000_000, seconds_max=30)
    assert (ended.status, ended.said) == (0, b"no")


async def test_a_machine_that_starts_no_process_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    one = apart.Kept("a_job", kept_seconds=60.0)
    with pytest.raises(Unavailable, match="no process can be started"):
        await apart.run_apart("a_job", job=b"", seconds_max=30)
    with pytest.raises(Unavailable, match="no process can be started"):
        await one.ask(b"one", 30)
    assert one.pid is None


# --- a process that is kept

KEPT = """
import os, sys
from chassis.apart import serve_jobs

def carry_out(job):
    if job == b"die":
        sys.stderr.write("no more")
        os._exit(7)
    if job == b"sleep":
        import signal
        signal.pause()
    print("a library says something")
    return len(job) % 256, b"%d %s" % (os.getpid(), job)

sys.exit(serve_jobs(carry_out))
"""


@pytest.fixture
async def kept(module: Path) -> AsyncIterator[apart.Kept]:
    module.write_text(KEPT)
    one = apart.Kept("a_job", kept_seconds=60.0)
    yield one
    await one.close()
    assert one.pid is None


async def test_a_process_is_kept_for_the_jobs_that_follow(kept: apart.Kept) -> None:
    assert kept.pid is None
    first = await kept.ask(b"one", 30)
    large = b"x" * 300_000
    second = await kept.ask(large, 30)
    assert first.said == b"%d one" % (kept.pid or 0) and first.status == 3
    assert second.said == b"%d %s" % (kept.pid or 0, large) and second.status == len(large) % 256


async def test_a_process_that_fails_is_started_anew(kept: apart.Kept) -> None:
    before = await kept.ask(b"one", 30)
    ended = await kept.ask(b"die", 30)
    assert (ended.status, ended.said) == (7, b"") and ended.why.endswith("no more")
    with pytest.raises(DeadlineExceeded):
        await kept.ask(b"sleep", 0.5)
    asked = asyncio.create_task(kept.ask(b"sleep", 60))
    await eventually(lambda: kept.pid is not None)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert kept.pid is None
    after = await kept.ask(b"one", 30)
    assert after.status == 3 and after.said != before.said


async def test_a_process_that_is_not_asked_any_more_ends(module: Path) -> None:
    module.write_text(KEPT)
    one = apart.Kept("a_job", kept_seconds=0.05)
    before = await one.ask(b"one", 30)
    await eventually(lambda: one.pid is None)
    assert (await one.ask(b"one", 30)).said != before.said
    await one.close()


def test_no_hook_of_a_fork_runs_in_a_process_that_is_started(module: Path) -> None:
    """On the servers' event loop: a library that starts a thread there, as tracers do, lets the child die."""
    module.write_text(KEPT)
    parent, armed = os.getpid(), [True]
    os.register_at_fork(after_in_child=lambda: os._exit(9) if armed[0] and os.getppid() == parent else None)

    async def ask() -> None:
        one = apart.Kept("a_job", kept_seconds=60.0)
        assert (await one.ask(b"one", 30)).status == 3
        assert (await one.ask(b"die", 30)).status == 7
        assert (await one.ask(b"two", 30)).status == 3
        await one.close()
        ended = await apart.run_apart("a_job", job=b"", seconds_max=30)
        assert (ended.status, ended.said) == (0, b"")

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(ask())
    finally:
        armed[0] = False


def test_a_process_that_ends_at_once_is_no_accident(module: Path) -> None:
    """Nobody reads the job, and the loop may know that already."""
    module.write_text("import sys\nsys.exit('cannot')\n")

    async def ask() -> None:
        one = apart.Kept("a_job", kept_seconds=60.0)
        process = await apart._start("a_job", (), None)
        await process.wait()
        await process.stdout.read()
        one._process, one._listening = process, asyncio.create_task(one._listen(process))
        with pytest.MonkeyPatch.context() as patched:
            # As it is known a moment before its end is.
            patched.setattr(apart.Kept, "pid", property(lambda kept: 1))
            await asyncio.sleep(0.05)
            ended = await one.ask(b"x", 30)
        assert ended.status == 1
        ended = await one.ask(b"x" * 300_000, 30)
        assert ended.status == 1 and ended.why == "cannot"
        await one.close()

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(ask())
