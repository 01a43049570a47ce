"""The dialler's settings, and the command line that sets the same."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from chassis.config import Port, ServiceSettings

#: Settings of the dialler's own: each is an option of the command line, too.
OWN = (
    *("region", "inbound", "outbound", "routing", "marketing", "token_file"),
    *("share", "stint_seconds", "price", "answer_ratio", "talk_seconds", "dial_seconds"),
    *("answered_wait_seconds", "from_hour", "until_hour", "calls_a_day"),
)


class DiallerSettings(ServiceSettings):
    """Settings of the dialler's process; the environment variables begin with DIALLER_."""

    model_config = SettingsConfigDict(
        env_prefix="DIALLER_", frozen=True, extra="ignore", validate_default=True
    )

    service: str = Field(default="dialler", description="Name of the service.")
    grpc_port: Port = Field(default=7165, description="Port that gateways with telephone lines come to.")
    http_port: Port = Field(default=7166, description="Port of /metrics, /healthz and /readyz.")

    region: str = Field(
        default="beijing", min_length=1, max_length=64, description="Region whose agents call."
    )
    inbound: str = Field(
        default="service", min_length=1, max_length=128, description="Queue whose service level is kept."
    )
    outbound: str = Field(
        default="callout",
        min_length=1,
        max_length=128,
        description="Queue of the outbound calls and of the lists that are called.",
    )
    routing: str = Field(default="127.0.0.1:7120", description="A router, host:port.")
    marketing: str = Field(default="127.0.0.1:7160", description="A marketing server, host:port.")
    token_file: str = Field(
        default="", description="File with the dialler's bearer token, renewed by others; empty sends none."
    )

    share: float = Field(
        default=0.7, ge=0.5, le=0.8, description="Share of the people there who may be in outbound at a time."
    )
    stint_seconds: int = Field(
        default=300, ge=0, le=14_400, description="Shortest time of an agent in outbound, once begun."
    )
    price: float = Field(default=2.2, ge=0, le=1_000, description="Late calls that an hour of it may cost.")
    answer_ratio: float = Field(
        default=0.3, ge=0.001, le=1, description="Share of contacts who answer, while nothing is known of it."
    )
    talk_seconds: float = Field(
        default=70.0, ge=1, le=7_200, description="Mean conversation and work after it."
    )
    dial_seconds: float = Field(default=25.0, ge=0, le=600, description="Mean time until somebody answers.")
    answered_wait_seconds: float = Field(
        default=2.0,
        ge=0.5,
        le=30,
        description="Who answered a gateway's line and has no agent by then is abandoned.",
    )
    from_hour: int = Field(
        default=8, ge=0, le=23, description="Calls begin from this hour on, by the clock where they go."
    )
    until_hour: int = Field(default=21, ge=1, le=24, description="And before this hour.")
    calls_a_day: int = Field(
        default=3, ge=1, le=20, description="Calls to one number in 24 hours, at most, whatever its lists."
    )

    @field_validator("until_hour")
    @classmethod
    def _after_the_first(cls, value: int, info: ValidationInfo) -> int:
        if value <= info.data.get("from_hour", 0):
            raise ValueError("must be later than from_hour")
        return value


def environment_of(argv: Sequence[str]) -> Mapping[str, str]:
    """The settings that a command line names, as variables. Ends the process with 2 for an unknown option."""
    parser = argparse.ArgumentParser(prog="dialler", description="Outbound calls between inbound ones.")
    for name in OWN:
        info = DiallerSettings.model_fields[name]
        default = "" if info.default == "" else f" ({info.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{info.description}{default}")
    given = vars(parser.parse_args(argv))
    return {f"DIALLER_{name.upper()}": value for name, value in given.items() if value is not None}
