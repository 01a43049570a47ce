"""A job in a Python process of its own: seconds of pure computing, or a library that is heavy to load, have
no place in a process that routes calls.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass

from chassis.errors import DeadlineExceeded

#: Of what the process says on its standard error, the last so many characters are kept.
WHY_CHARACTERS_MAX = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How the process ended."""

    #: Exit status; 0 when all went well.
    status: int
    #: Its standard output.
    said: bytes
    #: The end of its standard error, for a log line.
    why: str


async def run_apart(
    module: str, *arguments: str, job: bytes, seconds_max: float, environment: dict[str, str] | None = None
) -> Ended:
    """Runs `python -m module arguments` with `job` on its standard input, on this process's paths and
    environment, `environment` on top. The process ends with this coroutine, however that ends. Raises
    DeadlineExceeded after `seconds_max` real seconds.
    """
    paths = os.pathsep.join(filter(None, sys.path))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
    )
    try:
        async with asyncio.timeout(seconds_max):
            said, why = await process.communicate(job)
    except TimeoutError:
        raise DeadlineExceeded() from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    status = process.returncode or 0
    return Ended(status=status, said=said, why=why.decode(errors="replace").strip()[-WHY_CHARACTERS_MAX:])
