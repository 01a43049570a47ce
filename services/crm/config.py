"""Settings of the crm service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from chassis.config import Port, ServiceSettings
from crm import engine, identity
from crm.handlers import Policy


class CrmSettings(ServiceSettings):
    """What the server and the worker of crm need."""

    model_config = SettingsConfigDict(env_prefix="CRM_", frozen=True, extra="ignore", validate_default=True)

    service: str = "crm"
    grpc_port: Port = Field(default=7140, description="Port that gRPC listens on.")
    http_port: Port = Field(default=7141, description="Port of /metrics, /healthz and /readyz.")

    default_country: str = Field(
        default="CN", description="ISO 3166-1 country that telephone numbers without + belong to."
    )
    time_zone: str = Field(
        default="Asia/Shanghai",
        description="IANA time zone that decides the day of customers who have none of their own.",
    )
    language: Literal["zh", "en"] = Field(
        default="zh", description="Language of the texts for customers whose language is not known."
    )
    screen_pop_ms: int = Field(
        default=150,
        ge=10,
        le=10_000,
        description="Real milliseconds after which a screen pop is answered with what there is.",
    )

    webhooks_private: bool = Field(
        default=False,
        description="Whether webhooks may go to private addresses and over plain http (development only).",
    )
    care_minutes: float = Field(
        default=15.0,
        gt=0,
        le=1440,
        description="Real minutes between two runs of the care rules.",
    )

    @field_validator("default_country")
    @classmethod
    def _check_country(cls, value: str) -> str:
        try:
            return identity.country(value)
        except identity.NotIdentifiable as why:
            raise ValueError(str(why)) from None

    @field_validator("time_zone")
    @classmethod
    def _check_zone(cls, value: str) -> str:
        if not engine.is_time_zone(value):
            raise ValueError("must be an IANA time zone such as Asia/Shanghai")
        return value

    def policy(self) -> Policy:
        """What decisions depend on."""
        return Policy(
            default_country=self.default_country,
            time_zone=self.time_zone,
            language=self.language,
            screen_pop_seconds=self.screen_pop_ms / 1000,
        )
