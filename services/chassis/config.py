"""Settings of a process: read once from the environment, checked whole, then passed around.

A service subclasses `ServiceSettings` with its prefix and its own fields:

    class CrmSettings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="CRM_")
        service: str = "crm"

Every setting may be given with the service's prefix; those in `SHARED` also without, for all services at once
(the prefixed one wins). A bad setting stops the start with one line and exit status 2.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import time
import types
import typing
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from chassis.clock import SPEED_MAX, SystemClock

if TYPE_CHECKING:
    from chassis.credentials import ConnectionFile

#: Exit status of a process whose settings are wrong.
EXIT_BAD_SETTING = 2

#: Fields that are read from their plain name as well, so that one variable serves every process of a stack.
SHARED = frozenset(
    {
        "mongo_uri_file",
        "mongo_uri",
        "amqp_uri_file",
        "amqp_uri",
        "clock_speed",
        "clock_origin_real_ms",
        "clock_origin_business_ms",
        "clock_origin_monotonic_ms",
        "otel_exporter_otlp_endpoint",
        "trace_ratio",
        "log_format",
        "log_level",
        "auth_mode",
        "auth_jwks_file",
        "auth_jwks_url",
        "auth_jwks_ca_file",
        "auth_binding",
        "limits_file",
        "auth_issuer",
        "auth_audience",
        "tls_cert_file",
        "tls_key_file",
        "tls_ca_file",
        "tls_clients",
    }
)

#: Text shown instead of a value that may hold a password.
HIDDEN = "(not shown)"

Port = Annotated[int, Field(ge=1, le=65535)]
_SECRET: JsonDict = {"secret": True}


class _SharedSource(EnvSettingsSource):
    """The environment without the service's prefix, for the fields in `SHARED` only."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, env_prefix="")

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if name in SHARED}


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` can be reached from this machine alone."""
    bare = host.strip("[]")
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


class ServiceSettings(BaseSettings):
    """What both processes of every service need."""

    model_config = SettingsConfigDict(
        env_prefix="CALLMESH_", frozen=True, extra="ignore", validate_default=True
    )

    service: str = Field(
        default="callmesh", description="Name of the service; in metrics, logs and errors' domain."
    )
    instance: str = Field(
        default="", description="Name of this process in logs and traces; empty means host name and pid."
    )

    grpc_host: str = Field(default="127.0.0.1", description="Address that gRPC listens on.")
    grpc_port: Port = Field(default=7100, description="Port that gRPC listens on.")
    http_host: str = Field(default="127.0.0.1", description="Address of the HTTP port.")
    http_port: Port = Field(default=7101, description="Port of /metrics, /healthz and /readyz.")

    mongo_uri_file: str = Field(
        default="",
        description="File with the MongoDB connection string, in place of MONGO_URI; a new user or password"
        " in it counts for new connections. A second line is tried when the first is refused.",
    )
    mongo_uri: str = Field(
        default="mongodb://127.0.0.1:27017",
        description="MongoDB connection string, a replica set's or a sharded cluster's.",
        repr=False,
        json_schema_extra=_SECRET,
    )
    mongo_database: str = Field(
        default="", max_length=60, description="Database of this service; empty means callmesh_<service>."
    )
    mongo_pool_max: int = Field(
        default=50, ge=1, le=1000, description="Most connections a MongoDB client keeps."
    )
    mongo_connect_seconds: float = Field(
        default=30.0,
        gt=0,
        le=600,
        description="How long a start waits for MongoDB before it gives up, seconds.",
    )
    mongo_operation_seconds: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="How long one operation looks for a usable MongoDB server, seconds.",
    )
    amqp_uri_file: str = Field(
        default="",
        description="File with the RabbitMQ connection string, in place of AMQP_URI; read again for every"
        " connection. A second line is tried when the first is refused.",
    )
    amqp_uri: str = Field(
        default="amqp://127.0.0.1:5672//",
        description="RabbitMQ connection string; amqps:// is TLS, its authority that of the parameter"
        " cacertfile or the system's.",
        repr=False,
        json_schema_extra=_SECRET,
    )

    clock_speed: float = Field(
        default=1.0,
        gt=0,
        le=SPEED_MAX,
        description="Business seconds in a real second; other than 1 only for demos.",
    )
    clock_origin_real_ms: int | None = Field(
        default=None,
        ge=0,
        description="Real time, ms since 1970, at which business time is CLOCK_ORIGIN_BUSINESS_MS.",
    )
    clock_origin_business_ms: int | None = Field(
        default=None, ge=0, description="Business time, ms since 1970, at the origin; unset means real time."
    )
    clock_origin_monotonic_ms: int | None = Field(
        default=None,
        ge=0,
        description="This machine's monotonic clock at the origin, ms: its processes then agree exactly.",
    )

    auth_mode: Literal["open", "jwt"] = Field(
        default="open",
        description="How callers are known: jwt checks a signed token; open trusts all, loopback only.",
    )
    auth_jwks_url: str = Field(
        default="",
        description="Address of the JSON Web Key Set, https (or http on loopback), in place of a file (jwt).",
    )
    auth_jwks_file: str = Field(
        default="",
        description="File with the JSON Web Key Set that tokens are signed with (jwt); beside an address,"
        " what a start uses while that does not answer.",
    )
    auth_jwks_ca_file: str = Field(
        default="", description="Authority (PEM) of the address's certificate; empty means the system's."
    )
    auth_jwks_refresh_seconds: float = Field(
        default=300.0,
        ge=10,
        le=86_400,
        description="How often the key set is fetched from its address, seconds.",
    )
    auth_issuer: str = Field(default="", description="Required issuer (iss) of a token; empty accepts any.")
    auth_audience: str = Field(
        default="callmesh", min_length=1, description="Required audience (aud) of a token."
    )
    auth_leeway_seconds: int = Field(
        default=30, ge=0, le=600, description="Clock difference forgiven in a token, seconds."
    )
    auth_stream_grace_seconds: int = Field(
        default=300,
        ge=0,
        le=86_400,
        description="A stream is ended so long after the token that it was opened with, seconds: time for a "
        "late renewal, during which no call is lost.",
    )

    tls_ca_file: str = Field(
        default="", description="Authority (PEM) that certificates of clients and of other servers come from."
    )
    tls_key_file: str = Field(default="", description="Private key (PEM) of the certificate.")
    tls_cert_file: str = Field(
        default="",
        description="This process's certificate (PEM), for serving and for calling; empty means plain text.",
    )
    tls_clients: Literal["certified", "any"] = Field(
        default="certified",
        description="Whether every client must show a certificate of the authority, where there is TLS.",
    )

    auth_binding: Literal["off", "subject", "certificate"] = Field(
        default="off",
        description="What binds a token to the client's certificate, besides its own cnf claim: subject, that"
        " one of the certificate's names is the token's subject; certificate, that the claim is there.",
    )

    limits_file: str = Field(
        default="",
        description="File with rates, quotas and open calls allowed to each subject (YAML), read again when"
        " it changes; in place of RATE_LIMIT_PER_SECOND.",
    )
    rate_limit_per_second: float = Field(
        default=0.0, ge=0, le=1_000_000, description="Calls a second allowed to one subject; 0 sets no limit."
    )
    rate_limit_burst: int = Field(
        default=100, ge=1, le=1_000_000, description="Calls one subject may make at once."
    )
    rate_limit_subjects_max: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Subjects remembered by the rate limit; the idlest is forgotten.",
    )

    message_bytes_max: int = Field(
        default=16 * 1024 * 1024,
        ge=1024,
        le=256 * 1024 * 1024,
        description="Largest gRPC message received or sent, bytes.",
    )
    metadata_bytes_max: int = Field(
        default=16 * 1024, ge=1024, le=1024 * 1024, description="Largest request metadata accepted, bytes."
    )
    concurrent_streams_max: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Most calls open at once on one connection."
    )
    concurrent_calls_max: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Most calls open at once in this server; more are RESOURCE_EXHAUSTED.",
    )
    threads: int = Field(default=16, ge=1, le=512, description="Threads for handlers that block.")
    default_deadline_seconds: float = Field(
        default=5.0,
        gt=0,
        le=600,
        description="Deadline taken for a unary call whose caller set none, seconds.",
    )
    drain_notice_seconds: float = Field(
        default=0.0,
        ge=0,
        le=300,
        description="After SIGTERM: time to go on serving while reporting NOT_SERVING, seconds.",
    )
    drain_seconds: float = Field(
        default=10.0,
        ge=0,
        le=600,
        description="After SIGTERM: time for open calls to end before they are cut, seconds.",
    )
    keepalive_seconds: float = Field(
        default=30.0,
        ge=1,
        le=7200,
        description="Silence on a connection after which the server pings its client, seconds.",
    )
    keepalive_timeout_seconds: float = Field(
        default=10.0,
        ge=1,
        le=600,
        description="How long a ping may stay unanswered before the connection is closed, seconds.",
    )
    reflection: bool = Field(default=True, description="Serve gRPC reflection.")
    event_log_hours: float = Field(
        default=72.0,
        gt=0,
        le=24 * 90,
        description="How long events are kept for partners who read them with a cursor, real hours.",
    )
    event_log_entries_max: int = Field(
        default=1_000_000,
        ge=1_000,
        le=100_000_000,
        description="Most events kept for them; the oldest go first.",
    )

    otel_exporter_otlp_endpoint: str = Field(
        default="",
        description="OTLP-over-HTTP collector for traces, such as http://collector:4318; empty exports none.",
    )
    trace_ratio: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of calls that start a trace; a caller's sampled trace is always kept.",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="Form of log lines; auto is text on a terminal and json elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level logged."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the prefixed environment, then the plain one. No .env file: what counts must be
        visible.
        """
        return init_settings, env_settings, _SharedSource(settings_cls)

    @field_validator("mongo_database")
    @classmethod
    def _name_database(cls, value: str, info: ValidationInfo) -> str:
        name = value or f"callmesh_{info.data.get('service', '')}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError("may hold only letters, digits, _ and -")
        return name

    @field_validator("mongo_uri", "amqp_uri", mode="before")
    @classmethod
    def _read_uri_file(cls, value: Any, info: ValidationInfo) -> Any:
        file = info.data.get(f"{info.field_name}_file", "")
        if not file:
            return value
        # settings are read before a worker may import anything that does I/O
        from chassis.credentials import first_of
        from chassis.errors import StartError

        try:
            return first_of(file)
        except StartError as error:
            raise ValueError(f"must come from a file ({info.field_name}_file): {error}") from None

    @field_validator("mongo_uri")
    @classmethod
    def _check_mongo_uri(cls, value: str) -> str:
        if not value.startswith(("mongodb://", "mongodb+srv://")):
            raise ValueError("must start with mongodb:// or mongodb+srv://")
        return value

    @field_validator("amqp_uri")
    @classmethod
    def _check_amqp_uri(cls, value: str) -> str:
        if not value.startswith(("amqp://", "amqps://", "pyamqp://")):
            raise ValueError("must start with amqp:// or amqps://")
        try:
            parts = urllib.parse.urlsplit(value)
            named = parts.hostname and parts.port != 0
        except ValueError:
            named = False
        if not named:
            raise ValueError("must be of the form amqp://user:password@host:port/vhost")
        return value

    @field_validator("auth_mode")
    @classmethod
    def _check_auth_mode(cls, value: str, info: ValidationInfo) -> str:
        host = str(info.data.get("grpc_host", ""))
        if value == "open" and not is_loopback(host):
            raise ValueError(f"must be jwt, because grpc_host {host!r} is not a loopback address")
        return value

    @field_validator("clock_origin_monotonic_ms")
    @classmethod
    def _check_monotonic_origin(cls, value: int | None) -> int | None:
        if value is not None and value > time.monotonic() * 1000:
            raise ValueError("must not be to come: it is of another machine or from before its restart")
        return value

    @field_validator("tls_cert_file")
    @classmethod
    def _check_tls_files(cls, value: str, info: ValidationInfo) -> str:
        named = {"tls_key_file": info.data.get("tls_key_file"), "tls_ca_file": info.data.get("tls_ca_file")}
        missing = [name for name, path in named.items() if bool(path) != bool(value)]
        if missing:
            raise ValueError(f"tls_cert_file, tls_key_file and tls_ca_file go together: see {missing[0]}")
        return value

    @field_validator("auth_jwks_file")
    @classmethod
    def _check_jwks_file(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("auth_mode") == "jwt" and not value and not info.data.get("auth_jwks_url"):
            raise ValueError("must name a file when auth_mode is jwt and there is no auth_jwks_url")
        return value

    @field_validator("auth_jwks_url")
    @classmethod
    def _check_jwks_url(cls, value: str) -> str:
        if not value:
            return value
        try:
            parts = urllib.parse.urlsplit(value)
            host = parts.hostname or ""
        except ValueError:
            raise ValueError("must be an address such as https://issuer/jwks.json") from None
        if not host or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))):
            raise ValueError("must begin with https:// and a host; http is for loopback alone")
        return value

    @field_validator("auth_binding")
    @classmethod
    def _check_binding(cls, value: str, info: ValidationInfo) -> str:
        certified = info.data.get("tls_cert_file") and info.data.get("tls_clients") == "certified"
        if value != "off" and not certified:
            raise ValueError("needs TLS with tls_clients certified: without it no client shows a certificate")
        return value

    def clock(self) -> SystemClock:
        """The business clock that these settings describe."""
        return SystemClock(
            self.clock_speed,
            self.clock_origin_real_ms,
            self.clock_origin_business_ms,
            self.clock_origin_monotonic_ms,
        )

    def broker(self) -> str | ConnectionFile:
        """Where RabbitMQ is: `amqp_uri`, or the file that it came from. StartError."""
        from chassis.credentials import ConnectionFile

        return ConnectionFile(self.amqp_uri_file) if self.amqp_uri_file else self.amqp_uri

    def instance_name(self) -> str:
        """`instance`, or host name and pid."""
        return self.instance or f"{os.uname().nodename}-{os.getpid()}"


SettingsType = TypeVar("SettingsType", bound=ServiceSettings)


def variable(cls: type[BaseSettings], name: str) -> str:
    """The environment variable that gives the field `name` its value now, or would."""
    prefixed = f"{cls.model_config.get('env_prefix', '')}{name}".upper()
    present = {key.upper() for key in os.environ}
    return (
        name.upper() if name in SHARED and prefixed not in present and name.upper() in present else prefixed
    )


def _limits(info: FieldInfo) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in info.metadata:
        for key in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if (value := getattr(item, key, None)) is not None:
                found[key] = value
    return found


def rule(info: FieldInfo) -> str:
    """What a setting's value must be, in words: "must be between 1 and 65535"; "" where anything goes."""
    annotation: Any = info.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is Literal:
        return "must be one of " + ", ".join(map(str, typing.get_args(annotation)))
    if annotation is bool:
        return "must be true or false"
    if annotation not in (int, float):
        return ""
    limits = _limits(info)
    if "ge" in limits and "le" in limits:
        return f"must be between {limits['ge']:.12g} and {limits['le']:.12g}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [f"{words[key]} {limits[key]:.12g}" for key in words if key in limits]
    kind = "a whole number" if annotation is int else "a number"
    return " ".join(["must be", kind, " and ".join(bounds)]).strip()


def is_secret(info: FieldInfo) -> bool:
    """Whether a setting's value may hold a password."""
    return isinstance(info.json_schema_extra, dict) and bool(info.json_schema_extra.get("secret"))


def explain(cls: type[BaseSettings], problem: ValidationError) -> str:
    """One line on what is wrong with the settings, without any secret value."""
    service = cls.model_fields["service"].default
    errors = problem.errors(include_url=False)
    names = list(dict.fromkeys(str(error["loc"][0]) for error in errors if error["loc"]))
    first = errors[0]
    name = str(first["loc"][0]) if first["loc"] else "service"
    info = cls.model_fields[name]
    why = _own_words(first) or rule(info) or (first["msg"][:1].lower() + first["msg"][1:])
    got = HIDDEN if is_secret(info) else repr(str(first["input"])[:100])
    more = "".join(f"; also wrong: {variable(cls, other)}" for other in names[1:])
    return f"callmesh-{service}: setting {variable(cls, name)}: {why}, got {got}{more}"


def _own_words(error: ErrorDetails) -> str:
    """The text of a validator of ours; "" for pydantic's own."""
    return error["msg"].removeprefix("Value error, ") if error["type"] == "value_error" else ""


def load_settings(cls: type[SettingsType]) -> SettingsType:
    """The settings from the environment; one line to stderr and exit status 2 when one is wrong."""
    try:
        return cls()
    except ValidationError as problem:
        print(explain(cls, problem), file=sys.stderr)
        raise SystemExit(EXIT_BAD_SETTING) from None


def unknown_variables(cls: type[BaseSettings]) -> list[str]:
    """Variables that begin as the class's do and are none of its settings: misspelt, or of another release,
    so they are told and not refused.
    """
    prefix = str(cls.model_config.get("env_prefix", "")).upper()
    known = {f"{prefix}{name.upper()}" for name in cls.model_fields}
    return sorted(
        name for name in os.environ if name.upper().startswith(prefix) and name.upper() not in known
    )


def settings_table(cls: type[ServiceSettings], *, but: type[ServiceSettings] | None = None) -> str:
    """The settings of a process as a Markdown table, for its documentation; without those that are the same
    in the class `but`. Those of every process alike, in the base class, have `<SERVICE>_` before them.
    """
    prefix = "<SERVICE>_" if cls is ServiceSettings else str(cls.model_config.get("env_prefix", ""))
    told = dict(_told(but)) if but is not None else {}
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, text in _told(cls):
        if told.get(name) != text:
            names = f"`{prefix}{name.upper()}`" + (f" or `{name.upper()}`" if name in SHARED else "")
            rows.append(f"| {names} | {text} |".replace("  ", " "))
    return "\n".join(rows) + "\n"


def _told(cls: type[ServiceSettings]) -> Iterator[tuple[str, str]]:
    """(name, its default and meaning as the cells of a row) of each setting."""
    for name, info in cls.model_fields.items():
        default = "" if info.default in (None, "") or info.is_required() else f"`{info.default}`"
        meant = (info.description or ServiceSettings.model_fields.get(name, info).description) or ""
        text = " ".join(part for part in (meant, _sentence(rule(info))) if part)
        yield name, f"{default} | {text}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""
