"""Which release this is, and which ones may run beside it.

Every connection to MongoDB says of which service and release its process is (`app_name`), so whoever may look
at the database's connections knows what runs, without asking the processes: `callmesh doctor` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: The same as in pyproject.toml and Chart.yaml; a test holds it.
RELEASE = "0.1.0"

_APP = re.compile(r"callmesh-([a-z]+)(?:/(\S+))?")


def app_name(service: str) -> str:
    """How a process of this release calls itself to the database."""
    return f"callmesh-{service}/{RELEASE}"


def of_app_name(name: str) -> tuple[str, str] | None:
    """(service, release) of a process that calls itself so; None for somebody else's. A release before names
    were told is "".
    """
    found = _APP.fullmatch(name)
    return None if found is None else (found[1], found[2] or "")


def neighbours(one: str, other: str) -> bool:
    """Whether two releases may run side by side: the same, or one minor release apart."""
    numbers = [re.match(r"(\d+)\.(\d+)\.", each) for each in (one, other)]
    if not all(numbers):
        return one == other
    (major, minor), (other_major, other_minor) = (
        (int(each[1]), int(each[2])) for each in numbers if each is not None
    )
    return major == other_major and abs(minor - other_minor) <= 1


def apart(running: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Pairs of releases that run and may not run side by side; `running`: service -> releases."""
    every = sorted(set().union(*running.values())) if running else []
    return [
        (one, other) for n, one in enumerate(every) for other in every[n + 1 :] if not neighbours(one, other)
    ]
