"""The dialler's settings."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis.config import Port, ServiceSettings


class DiallerSettings(ServiceSettings):
    """Settings of the dialler's process; the environment variables begin with DIALLER_."""

    model_config = SettingsConfigDict(
        env_prefix="DIALLER_", frozen=True, extra="ignore", validate_default=True
    )

    service: str = Field(default="dialler", description="Name of the service.")
    grpc_port: Port = Field(default=7190, description="Port that gateways with telephone lines come to.")
    http_port: Port = Field(default=7191, description="Port of /metrics, /healthz and /readyz.")
