"""The database's own plan of every query that crm makes, asked on the full database."""

from __future__ import annotations

from typing import Any

from pymongo.database import Database

from crm.plans import queries, scanning


def checked(database: Database[dict[str, Any]]) -> dict[str, int]:
    """How many queries were asked about, and how many scan; those are printed."""
    found = scanning(database)
    for line in found:
        print(f"scans: {line}")
    return {"plans": len(list(queries())), "plans_with_scan": len(found)}
