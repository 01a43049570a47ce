"""What a shard's leader counts of itself: blocks and how long their commits take, and how leading changes
hands, for /metrics.
"""

from __future__ import annotations

from chassis.metrics import counter, gauge, histogram

COMMITS = histogram(
    "callmesh_journal_commit_seconds", "Time from sending a block to its majority.", ["shard"]
)
BLOCKS = counter("callmesh_journal_blocks_total", "Blocks committed.", ["shard"])
EVENTS = counter("callmesh_journal_events_total", "Events committed.", ["shard"])
LEADS = gauge("callmesh_shard_leads", "1 while this router leads the shard.", ["shard"])
OPENINGS = counter("callmesh_shard_openings_total", "Times this router began to lead the shard.", ["shard"])
TAKEOVERS = counter(
    "callmesh_shard_takeovers_total", "Times this router began to lead after another one.", ["shard"]
)
PAUSES = histogram(
    "callmesh_shard_leaderless_seconds",
    "Time from a shard's last block to the opening by its next leader, real seconds.",
    ["shard"],
    buckets=(1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 120.0),
)
POISON = counter("callmesh_shard_poison_total", "Commands that the engine failed on.", ["shard"])
