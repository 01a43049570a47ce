"""Routing's settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from chassis.config import ServiceSettings
from routing import addresses
from routing.continuing import ContinueOptions
from routing.front import FrontOptions
from routing.leader_options import LeaderOptions
from routing.model import Timing
from routing.relay import RETENTION_BYTES_MAX
from routing.snapshots import SnapshotOptions

#: A round of asking takes an outage's time, and the next must be over before the promise is.
HOLD_PER_OUTAGE = 3
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PEER = re.compile(rf"{_REGION.pattern}=(?P<address>{addresses.PATTERN})")


def _parts(peers: str) -> list[str]:
    """The routers that `peers` names, each as `region=host:port`."""
    return [part for part in map(str.strip, peers.split(",")) if part]


class RoutingSettings(ServiceSettings):
    """Settings of routing's processes; the environment variables begin with ROUTING_."""

    model_config = SettingsConfigDict(
        env_prefix="ROUTING_", frozen=True, extra="ignore", validate_default=True
    )

    service: str = Field(default="routing", description="Name of the service.")
    region: str = Field(default="local", description="Region of this router.")
    peers: str = Field(
        default="",
        description="Routers of all regions, `region=host:port`, commas between; a region with several is"
        " named once for each.",
    )
    advertise: str = Field(
        default="",
        description="This router's own `host:port` as ROUTING_PEERS and lead lists name it; needed where"
        " ROUTING_PEERS names several routers of its region.",
    )
    peer_token_file: str = Field(
        default="",
        description="File with the token (scope routing.shards.peer) that other routers know this one by.",
    )
    place_token_key_file: str = Field(
        default="",
        description="File with the key (32 bytes or more) that signs place tokens; all routers share it.",
    )
    place_token_life_seconds: int = Field(
        default=7200,
        ge=60,
        le=86_400,
        description="Business time after which a place token is refused, seconds.",
    )
    heartbeat_seconds: float = Field(
        default=0.5, ge=0.05, le=10, description="An idle leader commits a block this often, seconds."
    )
    takeover_seconds: float = Field(
        default=1.5,
        ge=0.1,
        le=60,
        description="Silence of the journal after which a router of the region may open it, seconds.",
    )
    backup_seconds: float = Field(
        default=4.0,
        ge=0.1,
        le=600,
        description="Silence after which a router of another region on the lead list may, seconds.",
    )
    outage_seconds: float = Field(
        default=1.0,
        ge=0.1,
        le=60,
        description="A block unknown for longer makes new calls UNAVAILABLE, seconds.",
    )
    on_outage: Literal["reject", "continue"] = Field(
        default="reject",
        description="What a leader does while no router can write its journal. `reject`: new calls are"
        " answered UNAVAILABLE, nothing is forgotten. `continue`: it goes on from memory while all"
        " routers of the lead list hold still (docs/routing-journal.md). The same for all routers, changed"
        " while the database is well.",
    )
    hold_seconds: float = Field(
        default=3.0,
        ge=1,
        le=30,
        description="With `continue`: for so long a router promises not to lead, and none leads sooner after"
        " its start, seconds. The same for all routers, at least three times ROUTING_OUTAGE_SECONDS.",
    )
    continue_seconds_max: float = Field(
        default=600.0,
        ge=1,
        le=86_400,
        description="With `continue`: from memory for at most this long, seconds.",
    )
    backlog_bytes_max: int = Field(
        default=64 << 20,
        ge=1 << 20,
        le=1 << 30,
        description="With `continue`: bytes of blocks that may wait to be written down, of each shard.",
    )
    gather_seconds: float = Field(
        default=0.003,
        ge=0,
        le=0.1,
        description="Blocks of a busy leader begin at least so far apart, seconds: each costs as much as a"
        " dozen decisions.",
    )
    silent_seconds: float = Field(
        default=3.0, ge=0.2, le=60, description="A peer or leader silent for longer counts as lost, seconds."
    )
    confirm_seconds: float = Field(
        default=5.0,
        ge=0.2,
        le=60,
        description="The edge confirms an accepted offer within this, real seconds.",
    )
    grace_seconds: float = Field(
        default=5.0,
        ge=0.2,
        le=600,
        description="A call or agent without a stream is kept this long, real seconds.",
    )
    reattach_seconds: float = Field(
        default=3.0,
        ge=0.2,
        le=60,
        description="After a leader's change nothing is concluded from absence for this, real seconds.",
    )
    move_seconds_max: float = Field(
        default=5.0,
        ge=0.2,
        le=60,
        description="An overflowing call is offered at home again after this, real seconds.",
    )
    memory_seconds: int = Field(
        default=900, ge=1, le=86_400, description="Ended calls are remembered this long, business seconds."
    )
    snapshot_events: int = Field(
        default=50_000,
        ge=100,
        le=10_000_000,
        description="A snapshot of a shard is made after so many events: what a start has to read.",
    )
    snapshot_blocks: int = Field(
        default=20_000,
        ge=100,
        le=10_000_000,
        description="A snapshot of a quiet shard is made after so many blocks (two a second when idle).",
    )
    journal_retention_seconds: int = Field(
        default=86_400,
        ge=0,
        le=31_536_000,
        description="The journal is kept this long, business seconds, for explanations and what-ifs.",
    )
    retention_bytes_max: int = Field(
        default=RETENTION_BYTES_MAX,
        ge=1 << 20,
        description="Bytes of a journal that may wait for the broker; beyond, the oldest are skipped.",
    )
    directory_poll_seconds: float = Field(
        default=0.5,
        ge=0.05,
        le=60,
        description="Changes of the directory are looked for this often, seconds.",
    )
    profiles_held_max: int = Field(
        default=200_000,
        ge=0,
        le=5_000_000,
        description="Profiles of callers that a router holds in memory (about 1 KiB each); with more it looks"
        " callers up. 0: none.",
    )
    profile_seconds: float = Field(
        default=0.1,
        ge=0.005,
        le=2,
        description="A caller's profile is waited for this long at most, seconds.",
    )
    repeat_window_seconds: int = Field(
        default=86_400,
        ge=0,
        le=2_592_000,
        description="Who calls again within this gets the queue's points for repeat callers, business"
        " seconds; 0: nobody.",
    )
    menu_session_seconds: int = Field(
        default=1800,
        ge=60,
        le=86_400,
        description="A menu session without a step for so long is over, business seconds.",
    )
    menu_poll_seconds: float = Field(
        default=1.0,
        ge=0.05,
        le=60,
        description="How old a router's word may be on which version of a menu is in service, seconds.",
    )
    menu_record_days: int = Field(
        default=90, ge=1, le=3650, description="Menu sessions are kept so long for statistics, days."
    )
    planner_kept_seconds: float = Field(
        default=900.0,
        ge=0,
        le=86_400,
        description="How long the process that works out forecasts and plans is kept for the next one, real"
        " seconds: it holds about 150 MB, and takes seconds to start.",
    )
    menu_records_waiting_max: int = Field(
        default=20_000,
        ge=100,
        le=1_000_000,
        description="Menu sessions that may wait to be written down while the database is away; beyond, they"
        " are not counted.",
    )

    @field_validator("region")
    @classmethod
    def _check_region(cls, value: str) -> str:
        if not _REGION.fullmatch(value):
            raise ValueError("must be 1 to 63 characters of a-z, 0-9 and -, starting with a letter or digit")
        return value

    @field_validator("peers")
    @classmethod
    def _check_peers(cls, value: str) -> str:
        seen: set[str] = set()
        for part in _parts(value):
            match = _PEER.fullmatch(part)
            if match is None:
                raise ValueError(f"must be region=host:port separated by commas, not {part[:60]!r}")
            if not addresses.is_address(match["address"]):
                raise ValueError(f"names a port that there is not: {part[:60]!r}")
            if match["address"] in seen:
                raise ValueError(f"names {match['address']!r} twice")
            seen.add(match["address"])
        return value

    @field_validator("advertise")
    @classmethod
    def _check_advertise(cls, value: str) -> str:
        if value and not addresses.is_address(value):
            raise ValueError(f"must be host:port, not {value[:60]!r}")
        return value

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        """Who waits for less than two heartbeats takes a leader that is well for a silent one."""
        if self.takeover_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("ROUTING_TAKEOVER_SECONDS must be at least twice ROUTING_HEARTBEAT_SECONDS")
        if self.on_outage == "continue" and self.hold_seconds < HOLD_PER_OUTAGE * self.outage_seconds:
            raise ValueError("ROUTING_HOLD_SECONDS must be at least three times ROUTING_OUTAGE_SECONDS")
        if self.backup_seconds < self.takeover_seconds:
            raise ValueError("ROUTING_BACKUP_SECONDS must be at least ROUTING_TAKEOVER_SECONDS")
        return self

    @model_validator(mode="after")
    def _check_own_address(self) -> Self:
        home = self.routers().get(self.region, ())
        if home and self.advertise not in (*home, *([""] if len(home) == 1 else [])):
            raise ValueError(
                f"ROUTING_ADVERTISE must be one of the routers of region {self.region!r} in ROUTING_PEERS"
            )
        return self

    @field_validator("place_token_key_file")
    @classmethod
    def _check_key_file(cls, value: str) -> str:
        if value and not Path(value).is_file():
            raise ValueError("must name a file that exists")
        return value

    def routers(self) -> dict[str, tuple[str, ...]]:
        """Addresses of every region's routers, this one included."""
        found: dict[str, tuple[str, ...]] = {}
        for region, _, address in (part.partition("=") for part in _parts(self.peers)):
            found[region] = (*found.get(region, ()), address)
        return found

    def own_address(self) -> str:
        """This router's `host:port`; empty when nothing says it, which is well for a region's only router."""
        home = self.routers().get(self.region, ())
        return self.advertise or (home[0] if len(home) == 1 else "")

    def business_ms(self, real_seconds: float) -> int:
        """A real duration on the business clock, milliseconds: protocol durations do not shrink when
        business time is fast.
        """
        return round(real_seconds * 1000 * self.clock_speed)

    def timing(self) -> Timing:
        """The engine's protocol durations."""
        return Timing(
            confirm_span_ms=self.business_ms(self.confirm_seconds),
            grace_span_ms=self.business_ms(self.grace_seconds),
            reattach_span_ms=self.business_ms(self.reattach_seconds),
            agent_grace_span_ms=self.business_ms(self.grace_seconds),
            move_span_ms=self.business_ms(self.move_seconds_max),
            memory_span_ms=self.memory_seconds * 1000,
        )

    def leader_options(self) -> LeaderOptions:
        return LeaderOptions(
            heartbeat_seconds=self.heartbeat_seconds,
            takeover_seconds=self.takeover_seconds,
            backup_seconds=self.backup_seconds,
            outage_seconds=self.outage_seconds,
            gather_seconds=self.gather_seconds,
            timing=self.timing(),
        )

    def continue_options(self) -> ContinueOptions | None:
        """How an outage of the store is outlasted; None where new work is refused in it."""
        if self.on_outage != "continue":
            return None
        return ContinueOptions(
            hold_seconds=self.hold_seconds,
            seconds_max=self.continue_seconds_max,
            backlog_bytes_max=self.backlog_bytes_max,
        )

    def snapshot_options(self) -> SnapshotOptions:
        return SnapshotOptions(
            events=self.snapshot_events,
            blocks=self.snapshot_blocks,
            retention_ms=self.journal_retention_seconds * 1000,
        )

    def front_options(self) -> FrontOptions:
        return FrontOptions(silent_seconds=self.silent_seconds)
