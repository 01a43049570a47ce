"""Jobs in processes of their own: what they say, how they fail, and that none outlives who asked."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chassis import apart
from chassis.errors import DeadlineExceeded


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
    create = asyncio.create_subprocess_exec

    async def watched(*arguments: str, **options: Any) -> Any:
        process = await create(*arguments, **options)
        begun.put_nowait(process)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)
    asked = asyncio.create_task(apart.run_apart("a_job", job=b"", seconds_max=0.2 if how == "late" else 60))
    process = await begun.get()
    if how == "cancelled":
        asked.cancel()
    with pytest.raises(DeadlineExceeded if how == "late" else asyncio.CancelledError):
        await asked
    assert process.returncode == -signal.SIGKILL


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
    async with asyncio.timeout(30):
        while kept.pid is None:
            await asyncio.sleep(0.01)
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
    async with asyncio.timeout(30):
        while one.pid is not None:
            await asyncio.sleep(0.01)
    assert (await one.ask(b"one", 30)).said != before.said
    await one.close()
