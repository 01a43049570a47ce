"""How far a journal's readers in the worker have come: a document for each shard and reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pymongo.errors import DuplicateKeyError

if TYPE_CHECKING:
    from pymongo.collection import Collection


def move_cursor(
    cursors: Collection[dict[str, Any]], shard: str, old_sequence: int, values: Mapping[str, Any]
) -> bool:
    """Moves the cursor of a shard on, if it still is at the block `old_sequence` (0: there is none yet);
    False when somebody else has moved it.
    """
    if cursors.update_one({"_id": shard, "sequence": old_sequence}, {"$set": values}).matched_count:
        return True
    if old_sequence:
        return False
    try:
        cursors.insert_one({"_id": shard, **values})
    except DuplicateKeyError:
        return False
    return True
