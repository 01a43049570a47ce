"""What a compose file may hold, as far as ours uses it: nothing else passes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Seconds = Annotated[str, StringConstraints(pattern=r"^[0-9]+s$")]
#: `127.0.0.1:HOST:CONTAINER`: on this machine alone.
Port = Annotated[str, StringConstraints(pattern=r"^127\.0\.0\.1:[0-9]{2,5}:[0-9]{2,5}$")]
#: `volume-or-path:/target`, perhaps read-only.
Mount = Annotated[str, StringConstraints(pattern=r"^(\.\./[\w./-]+|[a-z0-9-]+):/[\w./-]+(:ro)?$")]
#: A released version, never whatever is newest on the day.
Image = Annotated[str, StringConstraints(pattern=r"^([\w-]+/)?[\w-]+:v?[0-9][\w.-]*$")]


class Strict(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Build(Strict):
    """How an image is made."""

    context: str
    dockerfile: str


class Condition(Strict):
    """What of another service is waited for."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Healthcheck(Strict):
    """Whether a container is well."""

    test: list[str] = Field(min_length=2)
    interval: Seconds
    start_period: Seconds
    retries: int


class ConfigMount(Strict):
    """A config as a file."""

    source: str
    target: str


class Service(Strict):
    """A container."""

    image: Image | Literal["callmesh"]
    build: Build | None = None
    command: list[str] = []
    user: Annotated[str, StringConstraints(pattern=r"^[0-9]+:[0-9]+$")] | None = None
    read_only: bool = False
    tmpfs: list[str] = []
    cap_drop: list[str] = []
    security_opt: list[str] = []
    restart: Literal["unless-stopped", "no"] = "no"
    stop_grace_period: Seconds | None = None
    hostname: str | None = None
    volumes: list[Mount] = []
    ports: list[Port] = []
    environment: dict[str, str] = {}
    configs: list[ConfigMount] = []
    depends_on: dict[str, Condition] = {}
    healthcheck: Healthcheck | None = None


class Config(Strict):
    """A file that the compose file itself holds."""

    content: str


class Compose(Strict):
    """The whole file; `x-` keys are merged into others and mean nothing by themselves."""

    name: str
    services: dict[str, Service]
    configs: dict[str, Config]
    volumes: dict[str, dict[str, Any]]

    @model_validator(mode="before")
    @classmethod
    def _without_extensions(cls, found: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in found.items() if not key.startswith("x-")}

    @model_validator(mode="after")
    def _names_mean_something(self) -> Compose:
        """Whoever is waited for, mounted or reached by name exists, and is well in a way that can be told."""
        for name, service in self.services.items():
            for other, wait in service.depends_on.items():
                assert other in self.services, f"{name} waits for {other}"
                asked = wait.condition == "service_healthy"
                assert not asked or self.services[other].healthcheck, (
                    f"{other} tells nobody whether it is well"
                )
            for mount in service.volumes:
                source = mount.split(":")[0]
                assert source.startswith("../") or source in self.volumes, f"{name} mounts {source}"
            assert {config.source for config in service.configs} <= self.configs.keys(), name
            for value in service.environment.values():
                for host in re.findall(r"(?:^|//|@|,|=)([a-z][a-z0-9-]*):[0-9]+", value):
                    assert host in self.services, f"{name} reaches for {host}"
        return self
