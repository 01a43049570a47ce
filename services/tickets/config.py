"""Settings of the tickets service."""

from __future__ import annotations

import zoneinfo

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from chassis.config import Port, ServiceSettings
from tickets.model import Rules
from tickets.sla import DEFAULT_POLICY


class TicketsSettings(ServiceSettings):
    """What the server and the worker of tickets need."""

    model_config = SettingsConfigDict(
        env_prefix="TICKETS_", frozen=True, extra="ignore", validate_default=True
    )

    service: str = "tickets"
    grpc_port: Port = Field(default=7150, description="Port that gRPC listens on.")
    http_port: Port = Field(default=7151, description="Port of /metrics, /healthz and /readyz.")

    time_zone: str = Field(
        default="Asia/Shanghai",
        description="IANA time zone of the quiet windows of customers who have none of their own; as crm's.",
    )
    follow_up_delay_seconds: float = Field(
        default=86_400.0,
        gt=0,
        le=366 * 86_400.0,
        description="From a ticket's resolution to its return visit, business seconds.",
    )
    timer_poll_seconds: float = Field(
        default=0.25,
        gt=0,
        le=60,
        description="How often the worker looks for timers set by other processes, real seconds.",
    )
    timer_batch_max: int = Field(
        default=256, ge=1, le=10_000, description="Most due timers that the worker fetches at once."
    )
    timer_lease_seconds: float = Field(
        default=1.0,
        ge=0.5,
        le=60,
        description="After how long another worker takes over the timers, real seconds.",
    )

    sla_warn_percent: int = Field(
        default=80,
        ge=0,
        le=99,
        description="Share of a service-level target after which a warning is told, percent; 0: never.",
    )
    default_team: str = Field(
        default="",
        pattern=r"^(teams/[A-Za-z0-9._~:-]{1,128})?$",
        description="Team that tickets go to when theirs is deleted and their flow names no other, such as "
        "teams/front; empty: they lie with no team.",
    )
    setup_file: str = Field(
        default="",
        max_length=4096,
        description="JSON file of teams, flows, calendars and SLA policies to put into the database at the "
        "start; empty: none.",
    )

    @field_validator("time_zone")
    @classmethod
    def _check_zone(cls, value: str) -> str:
        if value not in zoneinfo.available_timezones():
            raise ValueError("must be an IANA time zone such as Asia/Shanghai")
        return value

    def rules(self) -> Rules:
        """What decisions depend on."""
        return Rules(
            sla=DEFAULT_POLICY,
            follow_up_delay_ms=int(self.follow_up_delay_seconds * 1000),
            warn_percent=self.sla_warn_percent,
            time_zone=self.time_zone,
            default_team=self.default_team.removeprefix("teams/"),
        )
