"""Settings: documented, checked, and a bad one stops the start with one line."""

from __future__ import annotations

import os

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis.config import (
    SHARED,
    ServiceSettings,
    is_loopback,
    load_settings,
    settings_table,
    unknown_variables,
)


class CrmSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="CRM_")
    service: str = "crm"
    cache_seconds: int = Field(default=60, ge=1, description="How long a profile is kept, seconds.")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("CRM_", "CALLMESH_")) or name.lower() in SHARED:
            monkeypatch.delenv(name)


def stopped(capsys, monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        load_settings(CrmSettings)
    assert caught.value.code == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1
    return out.err.rstrip("\n")


def test_a_misspelt_setting_is_found(monkeypatch):
    """It counts for nothing, and nobody would know."""
    for name in ("CRM_CACHE_SECONDS", "CRM_CACHE_SECOND", "crm_grpc_port", "CRMX_PORT", "LOG_LEVEL"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables(CrmSettings) == ["CRM_CACHE_SECOND"]


def test_defaults():
    settings = load_settings(CrmSettings)
    assert settings.service == "crm"
    assert settings.mongo_database == "callmesh_crm"
    assert settings.grpc_host == "127.0.0.1"
    assert settings.auth_mode == "open"


def test_prefixed_wins_over_shared_and_only_shared_ones_are_read_plain(monkeypatch):
    monkeypatch.setenv("MONGO_URI", "mongodb://shared")
    monkeypatch.setenv("CLOCK_SPEED", "60")
    monkeypatch.setenv("GRPC_PORT", "1234")
    assert load_settings(CrmSettings).mongo_uri == "mongodb://shared"
    assert load_settings(CrmSettings).clock_speed == 60
    assert load_settings(CrmSettings).grpc_port != 1234
    monkeypatch.setenv("CRM_MONGO_URI", "mongodb://own")
    assert load_settings(CrmSettings).mongo_uri == "mongodb://own"


@pytest.mark.parametrize("value", ["abc", "0", "65536", "-1", "", "1.5"])
def test_a_bad_port_is_one_clear_line(capsys, monkeypatch, value):
    line = stopped(capsys, monkeypatch, CRM_GRPC_PORT=value)
    assert line == f"callmesh-crm: setting CRM_GRPC_PORT: must be between 1 and 65535, got {value!r}"


def test_the_line_names_the_variable_that_was_set_and_the_others(capsys, monkeypatch):
    line = stopped(capsys, monkeypatch, LOG_LEVEL="loud", CRM_CACHE_SECONDS="x")
    assert line == (
        "callmesh-crm: setting LOG_LEVEL: must be one of debug, info, warning, error, got 'loud'"
        "; also wrong: CRM_CACHE_SECONDS"
    )


def test_a_password_is_never_printed(capsys, monkeypatch):
    line = stopped(capsys, monkeypatch, MONGO_URI="postgres://user:hunter2@host")
    assert "hunter2" not in line
    assert "must start with mongodb://" in line
    monkeypatch.setenv("MONGO_URI", "mongodb://user:hunter2@host")
    assert "hunter2" not in repr(load_settings(CrmSettings))


@pytest.mark.parametrize(
    "uri",
    [
        "http://host",
        "memory://",
        "amqp://",
        "amqp://host:port/",
        "amqp://u:hunter2@host:99999",
        "amqp://[::1",
    ],
)
def test_a_brokers_address_that_is_none_is_one_line(capsys, monkeypatch, uri):
    line = stopped(capsys, monkeypatch, AMQP_URI=uri)
    assert line.startswith("callmesh-crm: setting AMQP_URI: must ") and "hunter2" not in line


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "example.org"])
def test_open_mode_is_refused_off_loopback(capsys, monkeypatch, host):
    line = stopped(capsys, monkeypatch, CRM_GRPC_HOST=host)
    assert "CRM_AUTH_MODE" in line and "must be jwt" in line


def test_jwt_mode_needs_its_key_file(capsys, monkeypatch):
    line = stopped(capsys, monkeypatch, CRM_GRPC_HOST="0.0.0.0", AUTH_MODE="jwt")
    assert "CRM_AUTH_JWKS_FILE: must name a file" in line


@pytest.mark.parametrize(
    "url", ["http://issuer.example.org/jwks", "ftp://127.0.0.1/jwks", "https://", "jwks.json", "https://[::1"]
)
def test_keys_come_over_https_or_loopback_alone(capsys, monkeypatch, url):
    line = stopped(capsys, monkeypatch, AUTH_MODE="jwt", AUTH_JWKS_URL=url)
    assert "AUTH_JWKS_URL" in line and "must be" in line


def test_an_address_stands_for_the_key_file(monkeypatch):
    monkeypatch.setenv("AUTH_MODE", "jwt")
    monkeypatch.setenv("AUTH_JWKS_URL", "https://issuer.example.org/jwks")
    assert load_settings(CrmSettings).auth_jwks_file == ""


def test_tokens_are_bound_only_where_clients_show_certificates(capsys, monkeypatch):
    files = {f"TLS_{one}_FILE": f"/{one}" for one in ("CA", "KEY", "CERT")}
    assert "AUTH_BINDING" in stopped(capsys, monkeypatch, AUTH_BINDING="subject")
    assert "AUTH_BINDING" in stopped(
        capsys, monkeypatch, AUTH_BINDING="certificate", TLS_CLIENTS="any", **files
    )
    monkeypatch.setenv("TLS_CLIENTS", "certified")
    assert load_settings(CrmSettings).auth_binding == "certificate"


def test_loopback():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"))
    assert not any(
        is_loopback(host) for host in ("", "0.0.0.0", "::", "localhost.example.org", "192.168.1.1")
    )


def test_a_database_name_that_could_not_be_one(capsys, monkeypatch):
    assert "letters, digits" in stopped(capsys, monkeypatch, CRM_MONGO_DATABASE="a/b")


def test_every_setting_has_a_description_and_a_row():
    table = settings_table(CrmSettings)
    for name, info in CrmSettings.model_fields.items():
        if name != "service":
            assert info.description, name
        assert f"`CRM_{name.upper()}`" in table
    assert "`CRM_MONGO_URI` or `MONGO_URI`" in table
    assert "Must be between 1 and 65535." in table


def test_what_every_process_has_is_told_once():
    every, own = settings_table(ServiceSettings), settings_table(CrmSettings, but=ServiceSettings)
    assert "| `<SERVICE>_MONGO_URI` or `MONGO_URI` |" in every and "MONGO_URI" not in own
    listed = {row.split("`")[1] for row in own.splitlines()[2:]}
    added = CrmSettings.model_fields.keys() - ServiceSettings.model_fields.keys()
    assert {f"CRM_{name.upper()}" for name in added} <= listed
    # What a service sets otherwise is told with it.
    assert "| `CRM_SERVICE` | `crm` |" in own and "`CRM_THREADS`" not in own


def test_the_clock_follows_the_settings(monkeypatch):
    monkeypatch.setenv("CLOCK_SPEED", "60")
    monkeypatch.setenv("CLOCK_ORIGIN_BUSINESS_MS", "1000")
    clock = load_settings(CrmSettings).clock()
    assert clock.speed == 60
    assert 1000 <= clock.now_ms() < 1000 + 60 * 60_000


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_settings(CrmSettings).grpc_port = 1
