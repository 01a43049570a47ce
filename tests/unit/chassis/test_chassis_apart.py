"""Jobs in processes of their own: what they say, how they fail, and that none outlives who asked."""

from __future__ import annotations

import asyncio
import signal
import sys
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
